"""tasks/bpe_dropout.py: what is split, how often, and what becomes of targets."""

import numpy as np
import pytest
import torch

from records.examples import IGNORED, Example
from tasks.bpe_dropout import BPEDropout
from tokenization.bpe import BPETokenizer
from tokenization.characters import CharTokenizer
from utils.errors import UserError

TEXT = "the cat sat on the mat, the rat sat on the hat; 猫坐在垫子上，猫坐在帽子上。" * 3
TOKENIZER = BPETokenizer.train([TEXT], vocab_size=330)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.99])
def test_split_tokens_spell_the_same_text(probability):
    ids = TOKENIZER.encode(TEXT)
    new, origin = BPEDropout(TOKENIZER, probability).split(ids, rng())
    assert TOKENIZER.decode(new) == TEXT and len(new) > len(ids)
    for i, token in enumerate(ids):
        assert TOKENIZER.decode(new[origin == i]) == TOKENIZER.decode([token])


def test_no_character_is_split_into_bytes():
    new, _ = BPEDropout(TOKENIZER, 1.0).split(TOKENIZER.encode(TEXT), rng())
    assert "".join(TOKENIZER.tokens[i].decode() for i in new) == TEXT  # each piece is valid UTF-8 by itself
    assert len(new) > 2 * len(TOKENIZER.encode(TEXT))


def test_a_token_is_split_with_the_given_probability():
    [merged] = TOKENIZER.encode(" the")
    [first, second] = TOKENIZER.merged_from()[merged]
    assert TOKENIZER.decode([first]) + TOKENIZER.decode([second]) == " the"
    dropout = BPEDropout(TOKENIZER, 0.3)
    lengths = [len(dropout.split([merged], rng(seed))[0]) for seed in range(2000)]
    assert np.mean(np.array(lengths) > 1) == pytest.approx(0.3, abs=0.03)


def test_special_tokens_are_never_split_and_text_without_dropout_is_unchanged():
    ids = [TOKENIZER.message_start, *TOKENIZER.encode("the cat"), TOKENIZER.message_end]
    new, _ = BPEDropout(TOKENIZER, 1.0).split(ids, rng())
    assert new[0] == ids[0] and new[-1] == ids[-1]
    assert BPEDropout(TOKENIZER, 0.0).split(ids, rng())[0].tolist() == ids


@pytest.mark.parametrize("tail", [0, 2])
def test_the_parts_of_a_supervised_token_are_supervised(tail):
    prompt, reply, rest = (TOKENIZER.encode(text) for text in ("the cat sat", " on the mat", ", the rat"[:tail]))
    ids = [*prompt, *reply, *rest]
    targets = [IGNORED] * (len(prompt) - 1) + reply + [IGNORED] * len(rest)
    example = Example(ids[:-1], targets[: len(ids) - 1])
    tokens, targets = BPEDropout(TOKENIZER, 0.9).split_example(example, 1000, rng())
    supervised = targets != IGNORED
    assert TOKENIZER.decode(targets[supervised]) == " on the mat"
    assert TOKENIZER.decode([*tokens, *targets[-1:][supervised[-1:]]]).startswith("the cat sat on the mat")
    assert (targets[:-1][supervised[:-1]] == tokens[1:][supervised[:-1]]).all()
    n = np.flatnonzero(supervised)[0] + 1  # a context up to the first target
    short = BPEDropout(TOKENIZER, 0.9).split_example(example, n, rng())
    assert short.tokens.tolist() == tokens[:n].tolist() and short.targets.tolist() == targets[:n].tolist()


def test_an_example_whose_split_prompt_would_fill_the_context_stays_whole():
    prompt, reply = TOKENIZER.encode("the cat sat on the mat"), TOKENIZER.encode(", the rat")
    example = Example([*prompt, *reply[:-1]], [IGNORED] * (len(prompt) - 1) + reply)
    found = [BPEDropout(TOKENIZER, 0.9).split_example(example, len(prompt) + 1, rng(seed)) for seed in range(20)]
    assert all((np.asarray(targets) != IGNORED).any() for _, targets in found)
    assert any(each is example for each in found)


def test_a_label_stays_at_the_last_token():
    ids = TOKENIZER.encode("the cat sat")
    example = Example(ids, [IGNORED] * (len(ids) - 1) + [1])
    tokens, targets = BPEDropout(TOKENIZER, 0.9).split_labeled(example, 1000, rng())
    assert TOKENIZER.decode(tokens) == "the cat sat"
    assert targets == [IGNORED] * (len(tokens) - 1) + [1]


def test_windows_keep_their_length_and_the_start_of_their_text():
    ids = torch.tensor([TOKENIZER.encode(TEXT)[i : i + 11] for i in (0, 5)])
    x, y = BPEDropout(TOKENIZER, 0.5).split_windows(ids[:, :-1], ids[:, 1:], rng())
    assert x.shape == y.shape == (2, 10) and torch.equal(x[:, 1:], y[:, :-1])
    for row, new in zip(ids, x, strict=True):
        assert TOKENIZER.decode(row.tolist()).encode().startswith(b"".join(TOKENIZER.tokens[i] for i in new))


def test_characters_cannot_be_split():
    with pytest.raises(UserError, match="bpe_dropout is for BPE tokenizers: use --data.tokenizer bpe"):
        BPEDropout(CharTokenizer("ab"), 0.1)
