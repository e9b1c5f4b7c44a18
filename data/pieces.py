"""A corpus as a stream of pieces, so that memory does not grow with it; each is for training or for validation."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

PIECE = 1 << 14  # characters, approximately
VALIDATION_BYTES = 10_000_000
BOUNDARY = re.compile(r"(?<=\S)[ \t\n]")

Block = tuple[str, int]  # a text, and how many bytes of the corpus have been read after it


class Piece(NamedTuple):
    text: str
    split: str
    """train or val."""
    ends: bool
    """Whether the document ends here, and another may follow."""
    position: int
    """Bytes of the corpus that have been read so far."""


def text_pieces(blocks: Iterable[Block], length: int, ends: bool) -> Iterator[Piece]:
    """Yield the pieces of one text of `length` characters: the first 90% for training, the rest for validation."""
    n_train = int(0.9 * length)

    def split_blocks() -> Iterator[tuple[str, Block]]:
        n_done = 0
        for text, position in blocks:
            train = text[: max(0, n_train - n_done)]
            n_done += len(text)
            for split, part in (("train", train), ("val", text[len(train) :])):
                if part:
                    yield split, (part, position)

    for split, group in itertools.groupby(split_blocks(), lambda pair: pair[0]):
        for text, position, is_last in split_into_pieces(block for _, block in group):
            yield Piece(text, split, ends and is_last, position)


def row_pieces(rows: Iterable[Block], size: int) -> Iterator[Piece]:
    """Yield the pieces of documents (text, position), read from `size` bytes. Empty ones are skipped."""
    every = max(10, -(-size // VALIDATION_BYTES))
    documents = (row for row in rows if row[0])
    for i, document in enumerate(documents):
        split = "val" if i % every == 1 else "train"  # both exist from two documents on
        for text, position, is_last in split_into_pieces([document]):
            yield Piece(text, split, is_last, position)


def split_into_pieces(blocks: Iterable[Block]) -> Iterator[tuple[str, int, bool]]:
    """Yield (text, position, whether it is the last) of the pieces of a text, of about PIECE characters each.

    Each but the last ends before white space, where byte-level BPE pre-tokenizers split, too, so that the pieces have
    the same tokens as the whole. Text without white space nearby is split anyway.

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
