"""Text files: streamed in blocks, decoded, and checked to be text."""

import codecs
import contextlib
import functools
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from reading.encodings import CANDIDATES, CONTROL_CHARACTERS, UTF_8, binary_format, bom_encoding
from utils.errors import UserError
from utils.printable import one_line

BLOCK = 1 << 20  # bytes per read
HEAD = 1 << 10  # bytes in which signatures are looked for
SAMPLE = 100_000  # non-ASCII characters from which the encoding is detected
LIMIT = 1 << 24  # characters in one line, field or document, which are held in memory
BLANK = " \t\r\n\x1a"  # DOS programs end a file with Ctrl-Z
MARGIN = 1.5  # by which the best encoding must beat the second best
NON_ASCII = re.compile("[^\0-\x7f]")


@dataclass(frozen=True)
class ReadOptions:
    """How text files and tables are read; None means automatic."""

    column: str | None = None
    """Column with the text; None: `text`, or the only one."""
    encoding: str | None = None
    """Encoding of all files, a name that Python knows; None: detected."""
    delimiter: str | None = None
    """Character between the fields of a .csv or .tsv file; None: detected."""
    document_separator: str | None = None
    """String between the documents of a .txt file, such as <|endoftext|>; None: the file is one text."""

    def identity(self) -> dict[str, str | None]:
        """Return the options that are set, and `column` in any case, as existing prepared folders recorded them."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "column"}


DEFAULTS = ReadOptions()


class NotText(Exception):
    """Why the content of a file cannot be text in a given encoding."""


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


def inspect(path: Path, encoding: str | None = None) -> tuple[str, int]:
    """Return (encoding, length in characters) of a text file; `encoding` overrides the detection.

    A byte order mark decides. Without one, a file that is valid UTF-8 is UTF-8, and the encoding of any other is
    detected. Raises UserError if the file is binary, or if the evidence for an encoding is weak.
    """
    head = next(byte_blocks(path, HEAD))[0]
    binary = binary_format(head)
    if binary:
        raise UserError(f"{path} is {binary}, not text: extract or convert it, and pass a text file")
    given = codec_name(encoding) if encoding else bom_encoding(head)
    return inspect_content(path, given, stamp(path))


@functools.cache
def inspect_content(path: Path, given: str | None, version: tuple[str, int, int]) -> tuple[str, int]:
    """Do the work of `inspect`, once for each `version` (`stamp`) of a file: the whole file is read."""
    try:
        return given or UTF_8, text_length(path, given or UTF_8)
    except NotText as error:
        reason = error
    if given:
        raise UserError(f"{path} is not text in {given}: {reason}. Re-save it as UTF-8, or pass --data.encoding NAME")
    detected = detect(path, reason)
    try:
        return detected, text_length(path, detected)
    except NotText as error:
        raise UserError(f"{path} looks like {detected}, but {error}: it is damaged or not text") from None


def codec_name(name: str) -> str:
    """Return the name that Python has for a text encoding. Raises UserError if it has none."""
    try:
        b"text".decode(name, "replace")  # also refuses codecs such as hex, which do not give text
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise UserError(f"--data.encoding {name} is unknown: use a name such as utf-8, gb18030, big5, shift_jis, "
                        "euc_kr or cp1252") from None
    return UTF_8 if codec == "utf-8" else codec


def detect(path: Path, reason: NotText) -> str:
    """Return the encoding of a file that is not UTF-8 for a `reason`. Raises UserError if the evidence is weak."""
    text = sample(path, UTF_8, "surrogateescape")
    n_invalid = len(re.findall("[\udc80-\udcff]", text))
    if len(NON_ASCII.findall(text)) > 8 * n_invalid:  # by chance, bytes of other encodings are rarely valid UTF-8
        raise UserError(f"{path} is damaged UTF-8: {reason}. Correct it and re-save it as UTF-8")
    scores = {}
    for candidate in CANDIDATES:
        with contextlib.suppress(NotText):
            scores[candidate.codec] = candidate.score(sample(path, candidate.codec))
    ranked = sorted(scores, key=scores.get, reverse=True)
    if ranked and scores[ranked[0]] >= 1:
        best, *others = ranked
        if all(scores[best] >= MARGIN * scores[other] for other in others):
            return best
    hint = f"; candidates: {', '.join(ranked)}" if ranked else ""
    raise UserError(f"{path} is not valid text: {reason}. If it is text, re-save it as UTF-8 or pass --data.encoding "
                    f"NAME{hint}")


def sample(path: Path, encoding: str, errors: str = "strict") -> str:
    """Return the first blocks of a text with SAMPLE non-ASCII characters, without blocks of ASCII. Raises NotText."""
    blocks, n_non_ascii = [], 0
    for text, _ in text_blocks(path, encoding, errors):
        if not blocks or not text.isascii():
            blocks.append(text)
            n_non_ascii += len(NON_ASCII.findall(text))
        if n_non_ascii >= SAMPLE:
            break
    return "".join(blocks)


def text_length(path: Path, encoding: str) -> int:
    """Return the length of a file in characters. Raises NotText if it is not text in this encoding."""
    length = n_controls = 0
    for text, _ in text_blocks(path, encoding):
        length += len(text)
        encoded = text.encode("utf-8", "surrogatepass")
        n_controls += len(encoded) - len(encoded.translate(None, CONTROL_CHARACTERS))
    if n_controls > 1 + length / 1000:  # a stray one may be an accident
        raise NotText(f"{n_controls:,} of {length:,} characters are control characters")
    return length


def text_blocks(path: Path, encoding: str, errors: str = "strict") -> Iterator[tuple[str, int]]:
    """Yield (text, number of bytes read so far) of a file, with LF for CRLF.

    Raises NotText if a byte is invalid, and UserError if the file cannot be read.
    """
    decoder, held = codecs.getincrementaldecoder(encoding)(errors), ""
    for data, n_read in byte_blocks(path, BLOCK):
        try:
            text = held + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            offset, byte = n_read - len(error.object) + error.start, error.object[error.start]
            name = encoding.removesuffix("-sig")
            raise NotText(f"byte 0x{byte:02x} at offset {offset} is not valid {name}") from None
        held = ""
        if data and text.endswith("\r"):  # its LF may be in the next block
            held = "\r"
        yield text.removesuffix(held).replace("\r\n", "\n"), n_read


def byte_blocks(path: Path, size: int) -> Iterator[tuple[bytes, int]]:
    """Yield (bytes, number of bytes read so far) of a file; the last block is empty. Raises UserError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # devices and pipes may block or never end
            raise UserError(f"{path} is not a regular file: copy its content to a file and pass that")
        with open(path, "rb") as file:
            n_read = 0
            while data := file.read(size):
                n_read += len(data)
                yield data, n_read
            yield b"", n_read
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Check the path and its permissions") from None


def lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of an open text file. Raises UserError for one that is longer than LIMIT."""
    number = 0
    while line := file.readline(LIMIT + 1):
        number += 1
        if len(line) > LIMIT:
            raise UserError(f"{path}, line {number} is longer than {LIMIT:,} characters: split it into several rows")
        yield line


def stamp(path: Path) -> tuple[str, int, int]:
    """Return what changes when a file may have changed: its path, its size in bytes and its modification time."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


@functools.cache
def print_once(message: str) -> None:
    """Print a message about a file, which may be read several times in one run."""
    print(message)
