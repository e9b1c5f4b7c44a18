"""Measures of replies, on examples counted by hand."""


import pytest

from tasks.reply_metrics import distinct, measure_replies, ngrams, repeats_itself, repeats_question


@pytest.mark.parametrize("texts, n, expected", [
    (["abc", "abd"], 1, 4 / 6), (["abc", "abd"], 2, 3 / 4),  # no n-gram spans two texts
    (["我是我"], 1, 2 / 3), (["我是我"], 2, 1.0), (["a", ""], 2, 0.0), ([], 1, 0.0),
])
def test_distinct_is_the_share_of_different_ngrams(texts, n, expected):
    assert distinct(texts, n) == pytest.approx(expected)


def test_a_text_shorter_than_n_has_no_ngrams():
    assert ngrams("abcd", 3) == ["abc", "bcd"] and ngrams("ab", 3) == []


@pytest.mark.parametrize("question, reply, expected", [
    ("你喜欢电影吗？", "你喜欢电影吗", True), ("你喜欢电影吗？", "我问：你喜欢，电影吗!", True),
    ("你喜欢电影吗？", "喜欢电影", False), ("你好", "你好", False), ("Hello there", "HELLO THERE, you", True),
    ("？", "？", False),
])  # fmt: skip
def test_a_reply_that_contains_a_question_repeats_it(question, reply, expected):
    assert repeats_question(question, reply) is expected


@pytest.mark.parametrize("text, expected", [
    ("哈哈哈哈哈", False), ("哈哈哈哈哈哈", True),  # 2 and 3 times 哈哈哈哈
    ("我也喜欢，我也喜欢，我也喜欢", True), ("我也喜欢，我也喜欢，我也", False), ("", False),
])  # fmt: skip
def test_a_text_with_four_characters_three_times_repeats_itself(text, expected):
    assert repeats_itself(text) is expected


def test_shares_are_means_over_the_replies():
    measures = measure_replies(["abcd", "abcd", "x", "y"], ["abcd", "aaaaaa", "abcdabcdabcd", "z"])
    assert list(measures.values())[2:] == [0.25, 0.5]
