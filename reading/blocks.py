"""Files as streams of blocks: bytes, and text in a given encoding."""

import codecs
import io
import stat
from collections.abc import Iterator
from pathlib import Path

from utils.errors import UserError

BLOCK = 1 << 20  # bytes per read


class NotText(Exception):
    """Why the content of a file cannot be text in a given encoding."""


def text_blocks(path: Path, encoding: str, errors: str = "strict") -> Iterator[tuple[str, int]]:
    """Yield (text, number of bytes read so far) of a file, with LF for CRLF and CR.

    Raises NotText if a byte is invalid, and UserError if the file cannot be read.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(errors), translate=True)
    for data, n_read in byte_blocks(path, BLOCK):
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            offset, byte = n_read - len(error.object) + error.start, error.object[error.start]
            name = encoding.removesuffix("-sig")
            raise NotText(f"byte 0x{byte:02x} at offset {offset} is not valid {name}") from None
        yield text, n_read


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
