"""Measures of the replies of a chat model: how varied they are, and how often they repeat something."""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import mean

from records.duplicates import group_key

REPEATED, TIMES = 4, 3  # a reply repeats itself if an n-gram of this many characters occurs this often
SHORTEST_QUESTION = 4  # characters; replying 你好 to 你好 is no fault


def ngrams(text: str, n: int) -> list[str]:
    """Return all n-grams of characters in a text.

    >>> ngrams("abcd", 3)
    ['abc', 'bcd']
    """
    return [text[i : i + n] for i in range(len(text) - n + 1)]


def distinct(texts: Iterable[str], n: int) -> float:
    """Return the number of different n-grams of characters divided by that of all n-grams (Li et al., 2016), or 0.

    >>> distinct(["abab", "ab"], 2)
    0.5
    """
    found = list(chain.from_iterable(ngrams(text, n) for text in texts))
    return len(set(found)) / max(1, len(found))


def repeats_question(question: str, reply: str) -> bool:
    """Return whether a reply contains the whole question, if that has at least 4 characters.

    White space, punctuation and case do not count.

    >>> repeats_question("Who are you?", "who are YOU, indeed")
    True
    """
    key = group_key(question)
    return len(key) >= SHORTEST_QUESTION and key in group_key(reply)


def repeats_itself(text: str) -> bool:
    """Return whether any 4 consecutive characters occur at least three times.

    >>> repeats_itself("so good, so good, so good"), repeats_itself("so good, so good")
    (True, False)
    """
    return max(Counter(ngrams(text, REPEATED)).values(), default=0) >= TIMES


def measure_replies(questions: Sequence[str], replies: Sequence[str]) -> dict[str, float]:
    """Return the value of each measure, by name, of replies to questions."""
    return {
        "distinct-1 (characters)": distinct(replies, 1),
        "distinct-2 (characters)": distinct(replies, 2),
        "share that contain the whole question": mean(map(repeats_question, questions, replies)),
        "share that repeat 4 characters 3 times": mean(map(repeats_itself, replies)),
    }
