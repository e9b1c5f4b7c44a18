"""A corpus comes in pieces, so that its size does not matter; each is for training or for validation."""

import itertools
import re
from typing import NamedTuple

PIECE = 1 << 14  # characters, about
VALIDATION_BYTES = 10_000_000
BOUNDARY = re.compile(r"(?<=\S)[ \t\n]")


class Piece(NamedTuple):
    text: str
    split: str
    """train or val."""
    ends: bool
    """The document ends with it, and another may follow."""
    position: int
    """Bytes of the corpus that have been read with it."""
    message: bool = False
    """It is one message of several, and not text that flows on."""


def cut_up(blocks):
    """Pieces of PIECE characters and some more from a stream of (text, position): (text, position, is it the last).

    Each but the last ends before white space, where every byte-level BPE in use cuts, too: so pieces have the tokens
    that the whole would have. Only where no white space is near is the cut made anyway.

    >>> blocks = [("x" * PIECE + " and on", 7)]
    >>> [(len(text), position, last) for text, position, last in cut_up(blocks)]
    [(16391, 7, True)]
    >>> blocks = [("x" * PIECE + " and on " + "y" * PIECE, 7)]
    >>> [(text[:8], position, last) for text, position, last in cut_up(blocks)]
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
    """Pieces of one text of `length` characters: its first nine tenths, then the rest."""
    cut = int(0.9 * length)

    def halves():
        at = 0
        for text, position in blocks:
            yield "train", (text[: max(0, cut - at)], position)
            yield "val", (text[max(0, cut - at) :], position)
            at += len(text)

    labelled = ((split, part) for split, part in halves() if part[0])
    for split, group in itertools.groupby(labelled, lambda pair: pair[0]):
        for text, position, last in cut_up(part for _, part in group):
            yield Piece(text, split, ends and last, position)


def row_pieces(rows, size):
    """Pieces of documents (text, position), which come from `size` bytes. Empty ones are left out."""
    kept = (row for row in rows if row[0])
    for split, row in zip(splits(size), kept, strict=False):
        for text, position, last in cut_up([row]):
            yield Piece(text, split, last, position)


def message_pieces(talks, size):
    """Pieces of talks (list of messages, position), which come from `size` bytes: a piece for each message."""
    for split, (messages, position) in zip(splits(size), talks, strict=False):
        for number, message in enumerate(messages, 1):
            yield Piece(message, split, number == len(messages), position, message=True)


def splits(size):
    """Yield for one document after another whether it is for training or validation, in a corpus of `size` bytes."""
    every = max(10, -(-size // VALIDATION_BYTES))
    return ("val" if i % every == 1 else "train" for i in itertools.count())  # two documents are enough for both
