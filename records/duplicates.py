"""Near-duplicates: texts that must not be on both sides of a split."""

import re
import unicodedata
from collections.abc import Iterable

import numpy as np

SHIFTS = (1, 2, 4, 7, 15, 30)  # by which a hash of n characters becomes one of n + shift; none exceeds its n
BLOCK = 1 + sum(SHIFTS)  # 60 characters of a group key: longer than what people write alike by chance
MULTIPLIER = 0x9E3779B97F4A7C15  # of a polynomial hash modulo 2^64


def groups_of(texts: Iterable[str]) -> list[str]:
    """Return the group of each text, as the smallest key in it, which does not depend on the order of the texts.

    Texts with equal keys, or with a common block of BLOCK characters in their keys, such as the footer of a web page,
    are in one group. Memory is proportional to the length of all texts, and so is the time, but for sorting.
    """
    keys = [group_key(text) for text in texts]
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first = {}
    for i, key in enumerate(keys):
        parent[i] = first.setdefault(key, i)
    for i, j in pairs_with_common_block(keys):
        parent[root(i)] = root(j)
    smallest = {}
    for i, key in enumerate(keys):
        smallest[root(i)] = min(key, smallest.get(root(i), key))
    return [smallest[root(i)] for i in range(len(keys))]


def pairs_with_common_block(keys: list[str]) -> list[tuple[int, int]]:
    """Return pairs of indices that connect all keys with a common block."""
    codes = np.frombuffer("".join(keys).encode("utf-32-le"), np.uint32)
    owner = np.repeat(np.arange(len(keys), dtype=np.int32), [len(key) for key in keys])
    hashes = codes.astype(np.uint64)  # of the block that starts at each character
    for shift in SHIFTS:
        hashes = hashes[:-shift] * np.uint64(pow(MULTIPLIER, shift, 1 << 64)) + hashes[shift:]
    starts = np.flatnonzero(owner[: len(hashes)] == owner[BLOCK - 1 :])  # of blocks inside one key
    starts = starts[hashes[starts].argsort()]
    equal = hashes[starts[1:]] == hashes[starts[:-1]]
    pairs = owner[starts[:-1][equal]] * np.int64(len(keys)) + owner[starts[1:][equal]]
    return [divmod(pair, len(keys)) for pair in np.unique(pairs).tolist()]


def group_key(text: str) -> str:
    """Return what near-duplicates have in common: a text without its width, case, white space and punctuation.

    Texts of nothing but symbols keep them.

    >>> group_key("Ｇood, good!")
    'goodgood'
    """
    text = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    return re.sub(r"[\W_]+", "", text) or text
