"""A corpus as a stream of pieces, so that memory does not grow with it; each is for training or for validation."""

import itertools
import re
from typing import NamedTuple

PIECE = 1 << 14  # characters, approximately
VALIDATION_BYTES = 10_000_000
BOUNDARY = re.compile(r"(?<=\S)[ \t\n]")


class Piece(NamedTuple):
    text: str
    split: str
    """train or val."""
    ends: bool
    """Whether the document ends with it, and another may follow."""
    position: int
    """Bytes of the corpus that have been read so far."""


def split_into_pieces(blocks):
    """Yield (text, position, whether it is the last) from a stream of (text, position).

    A piece has about PIECE characters. Each but the last ends before white space, where byte-level BPE pre-tokenizers
    split too, so the pieces have the same tokens as the whole. Text without white space nearby is split anyway.

    >>> blocks = [("x" * PIECE + " and on", 7)]
    >>> [(len(text), position, last) for text, position, last in split_into_pieces(blocks)]
    [(16391, 7, True)]
    >>> blocks = [("x" * PIECE + " and on " + "y" * PIECE, 7)]
    >>> [(text[:8], position, last) for text, position, last in split_into_pieces(blocks)]
    [('xxxxxxxx', 7, False), (' and on ', 7, True)]
    """
    text, position = "", 0
    for block, position in blocks:
        text, start = text + block, 0
        while len(text) - start > 2 * PIECE:
            found = BOUNDARY.search(text, start + PIECE, start + 2 * PIECE)
            end = found.start() if found else start + PIECE
            yield text[start:end], position, False
            start = end
        text = text[start:]
    yield text, position, True


def text_pieces(blocks, length, ends):
    """Yield the pieces of one text of `length` characters: the first 90% for training, the rest for validation."""
    n_train = int(0.9 * length)

    def labeled():
        done = 0
        for text, position in blocks:
            train = text[: max(0, n_train - done)]
            done += len(text)
            for split, part in (("train", train), ("val", text[len(train) :])):
                if part:
                    yield split, (part, position)

    for split, group in itertools.groupby(labeled(), lambda pair: pair[0]):
        for text, position, last in split_into_pieces(part for _, part in group):
            yield Piece(text, split, ends and last, position)


def row_pieces(rows, size):
    """Yield the pieces of documents (text, position), read from `size` bytes. Empty ones are skipped."""
    documents = (row for row in rows if row[0])
    for split, document in zip(splits(size), documents, strict=False):
        for text, position, last in split_into_pieces([document]):
            yield Piece(text, split, last, position)


def splits(size):
    """Yield the split of one document after another in a corpus of `size` bytes."""
    every = max(10, -(-size // VALIDATION_BYTES))
    return ("val" if i % every == 1 else "train" for i in itertools.count())  # both exist from two documents on
