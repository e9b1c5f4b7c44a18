"""Text files: as a whole, and line by line."""

from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from reading.blocks import text_blocks
from reading.encodings import UTF_8, inspect
from utils.errors import UserError
from utils.printable import one_line, print_once

LIMIT = 1 << 24  # characters in one line, field or document, which are held in memory
BLANK = " \t\r\n\x1a"  # DOS programs end a file with Ctrl-Z


def read_text(path: Path, encoding: str | None = None) -> str:
    """Return the whole text of a file. Raises UserError."""
    return "".join(text for text, _ in text_blocks(path, inspect(path, encoding)[0]))


def encoding_of(path: Path, given: str | None) -> str:
    """Return the encoding of a text file, detected unless it is given. Raises UserError.

    If it is not UTF-8, it is printed with the start of the text, which shows whether it is right.
    """
    encoding, _ = inspect(path, given)
    if encoding != UTF_8:
        start = one_line(next(text_blocks(path, encoding))[0][:40])
        print_once(f"{path} is read as {encoding} (--data.encoding overrides): {start}")
    return encoding


def lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of an open text file. Raises UserError for one that is longer than LIMIT."""
    number = 0
    while line := file.readline(LIMIT + 1):
        number += 1
        if len(line) > LIMIT:
            raise UserError(f"{path}, line {number} is longer than {LIMIT:,} characters: split it into several rows")
        yield line
