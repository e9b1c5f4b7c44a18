"""The n-gram baseline against a brute-force implementation, and by hand."""

import math
import random
from collections import Counter

import numpy as np
import pytest

import data.ngram
from data.ngram import ngram_loss


def counts(train, order):
    """The number of times each n-gram (a tuple) of 1 to `order` tokens occurs in a list."""
    return Counter(tuple(train[i : i + n]) for n in range(1, order + 1) for i in range(len(train) - n + 1))


def probability(w, context, c, V):
    """p(w|context) by the recursion of Witten and Bell; `c` is what `counts` returns, `context` a tuple."""
    lower = probability(w, context[1:], c, V) if context else 1 / V
    after = [c[(*context, token)] for token in range(V) if c[(*context, token)]]
    if not after:
        return lower
    return (c[(*context, w)] + len(after) * lower) / (sum(after) + len(after))


def brute_force(train, val, V, order):
    c = counts(train, order)
    nats = [-math.log(probability(val[i], tuple(val[max(0, i - order + 1) : i]), c, V)) for i in range(1, len(val))]
    return sum(nats) / len(nats)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["<u2", "<u4", "int64"])
def test_the_loss_is_that_of_a_brute_force_implementation(order, dtype):
    draw = random.Random(order)
    for V, train_length, val_length in [(2, 60, 40), (3, 200, 50), (7, 300, 80), (20, 100, 100), (4, 3, 9), (5, 30, 2)]:
        seen = max(2, V - 2)  # tokens from here on occur in `val` only
        train = [draw.randrange(seen) for _ in range(train_length)]
        val = [draw.randrange(V) for _ in range(val_length)]
        measured = ngram_loss(np.array(train, dtype), np.array(val, dtype), V, order)
        assert measured == pytest.approx(brute_force(train, val, V, order), rel=1e-12)


def test_the_loss_of_a_bigram_model_by_hand():
    # V = 3 and train = a b a b, so c(a) = c(b) = 2, c(c) = 0, N = 4, T = 2, and p0 = 1/3:
    #   p1(a) = p1(b) = (2 + 2/3) / (4 + 2) = 4/9,   p1(c) = (0 + 2/3) / (4 + 2) = 1/9
    # After a: c(ab) = 2, T(a) = 1. After b: c(ba) = 1, T(b) = 1, as nothing follows the last b. c is never followed.
    # val = a b b c a:
    #   p2(b|a) = (2 + 4/9) / (2 + 1) = 22/27
    #   p2(b|b) = (0 + 4/9) / (1 + 1) = 2/9
    #   p2(c|b) = (0 + 1/9) / (1 + 1) = 1/18
    #   p2(a|c) = p1(a) = 4/9
    a, b, c = 0, 1, 2
    expected = -math.log(22 / 27 * 2 / 9 * 1 / 18 * 4 / 9) / 4
    assert ngram_loss(np.array([a, b, a, b]), np.array([a, b, b, c, a]), 3, order=2) == pytest.approx(expected)


@pytest.mark.parametrize("context", [[0], [1, 0], [0, 1, 2, 0], [2, 2, 2, 2], [5, 0, 1, 2], [5, 5, 5, 5]])
def test_the_probabilities_after_a_context_sum_to_one(context):
    draw, V = random.Random(0), 6  # token 5 does not occur in `train`
    train = np.array([draw.choice([0, 0, 1, 2, 3, 4]) for _ in range(200)])

    def log_probability(tokens):
        return -ngram_loss(train, np.array(tokens), V) * (len(tokens) - 1) if len(tokens) > 1 else 0

    p = [math.exp(log_probability([*context, w]) - log_probability(context)) for w in range(V)]
    assert sum(p) == pytest.approx(1) and min(p) > 0
    c = counts(train.tolist(), 5)
    assert p == pytest.approx([probability(w, tuple(context), c, V) for w in range(V)])


def test_without_counts_the_loss_is_that_of_the_uniform_distribution():
    train, val = np.array([0, 1, 2, 1]), np.array([1, 1, 0, 2])
    assert ngram_loss(train, val, 7, order=0) == pytest.approx(math.log(7))
    assert ngram_loss(train[:0], val, 7) == pytest.approx(math.log(7))


def test_ids_of_a_large_vocabulary_do_not_overflow():
    V, tokens = 2**31, np.array([0, 2**31 - 1, 5, 2**31 - 2] * 20, "<u4")
    assert ngram_loss(tokens, tokens, V) < ngram_loss(tokens, tokens, V, order=1) < math.log(V)
    small = np.array([0, 1, 2, 3] * 20)  # the same sequence under other names; only p0 tells the vocabularies apart
    renamed = np.array([0, V - 1, 5, V - 2])[small]
    assert ngram_loss(renamed, renamed, V) == pytest.approx(ngram_loss(small, small, V), rel=1e-12)


def test_of_a_long_text_the_last_tokens_are_counted(monkeypatch):
    draw = np.random.default_rng(0)
    train, val = draw.integers(3, size=500), draw.integers(3, size=50)
    monkeypatch.setattr(data.ngram, "MAX_TOKENS", 100)
    assert ngram_loss(train, val, 3) == ngram_loss(train[-100:], val, 3)
    assert ngram_loss(train, val, 3) != ngram_loss(train[-99:], val, 3)


@pytest.mark.parametrize("length", [0, 1])
def test_a_text_without_a_target_is_an_error(length):
    with pytest.raises(ValueError, match=f"at least 2 tokens, got {length}"):
        ngram_loss(np.zeros(9, int), np.zeros(length, int), 3)
