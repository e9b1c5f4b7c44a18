"""Text files: streamed in blocks, decoded, and checked to be text."""

import codecs
import functools
import re
import stat
from dataclasses import asdict, dataclass

from data.encodings import CANDIDATES, CONTROL_CHARACTERS, UTF_8, binary_format, marked_encoding
from utils.errors import UserError
from utils.printable import one_line

BLOCK = 1 << 20  # bytes per read
HEAD = 1 << 10  # bytes in which signatures are looked for
SAMPLE = 100_000  # non-ASCII characters from which the encoding is detected
LIMIT = 1 << 24  # characters in one line, field or document, which are held in memory
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

    def identity(self):
        """The options that are set, and the column in any case: as data that was prepared before has it."""
        return {name: value for name, value in asdict(self).items() if value is not None or name == "column"}


DEFAULTS = ReadOptions()


class NotText(Exception):
    """Why the content of a file cannot be text in a given encoding."""


def stamp(path):
    """What changes when a file may have changed: its path, size and modification time."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns


@functools.cache
def print_once(message):
    """Print a message about a file, which may be read several times in one run."""
    print(message)


def byte_blocks(path, size):
    """Yield (bytes, number of bytes read so far) of a file; the last block is empty. Raises UserError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # devices and pipes may block or never end
            raise UserError(f"{path} is not a regular file: copy its content to a file and pass that")
        with open(path, "rb") as file:
            read = 0
            while data := file.read(size):
                read += len(data)
                yield data, read
            yield b"", read
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}. Check the path and its permissions") from None


def text_blocks(path, encoding, errors="strict"):
    """Yield (text, number of bytes read so far) of a file. CRLF becomes LF. Raises NotText, and UserError if the file
    cannot be read."""
    decoder, held = codecs.getincrementaldecoder(encoding)(errors), ""
    for data, read in byte_blocks(path, BLOCK):
        try:
            text = held + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            offset, byte = read - len(error.object) + error.start, error.object[error.start]
            name = encoding.removesuffix("-sig")
            raise NotText(f"byte 0x{byte:02x} at offset {offset} is not valid {name}") from None
        held = "\r" if data and text.endswith("\r") else ""  # its LF may be in the next block
        yield text.removesuffix(held).replace("\r\n", "\n"), read


def read_text(path, encoding=None):
    """The whole text of a file. Raises UserError."""
    return "".join(text for text, _ in text_blocks(path, inspect(path, encoding)[0]))


def inspect(path, encoding=None):
    """(encoding, length in characters) of a text file, judged on all of it; `encoding` overrides the detection.

    A byte order mark decides. Without one, a file that is valid UTF-8 is UTF-8, and for any other the encoding is
    detected. Raises UserError if the file is binary, or if the evidence for an encoding is weak.
    """
    head = next(byte_blocks(path, HEAD))[0]
    binary = binary_format(head)
    if binary:
        raise UserError(f"{path} is {binary}, not text: extract or convert it, and pass a text file")
    given = known_codec(encoding) if encoding else marked_encoding(head)
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


def print_encoding(path, encoding):
    """Print an encoding other than UTF-8 with the start of the text, by which a wrong one shows."""
    if encoding != UTF_8:
        start = one_line(next(text_blocks(path, encoding))[0][:40])
        print_once(f"{path} is read as {encoding} (--data.encoding overrides): {start}")


def encoding_of(path, given):
    """The encoding of a text file, detected unless it is given, and printed if it is not UTF-8. Raises UserError."""
    encoding, _ = inspect(path, given)
    print_encoding(path, encoding)
    return encoding


def known_codec(name):
    """The codec that Python has for the name of a text encoding. Raises UserError."""
    try:
        b"text".decode(name, "replace")  # also refuses codecs such as hex, which do not give text
        codec = codecs.lookup(name).name
    except (LookupError, ValueError):
        raise UserError(f"--data.encoding {name} is unknown: use a name such as utf-8, gb18030, big5, shift_jis, "
                        "euc_kr or cp1252") from None
    return UTF_8 if codec == "utf-8" else codec


def text_length(path, encoding):
    """Length of a file in characters. Raises NotText if it does not decode or has too many control characters."""
    length = n_controls = 0
    for text, _ in text_blocks(path, encoding):
        length += len(text)
        encoded = text.encode("utf-8", "surrogatepass")
        n_controls += len(encoded) - len(encoded.translate(None, CONTROL_CHARACTERS))
    if n_controls > 1 + length / 1000:  # a stray one may be an accident
        raise NotText(f"{n_controls:,} of {length:,} characters are control characters")
    return length


def detect(path, reason):
    """The encoding of a file that is not UTF-8 for a `reason`. Raises UserError if the evidence is weak."""
    text = sample(path, UTF_8, "surrogateescape")
    broken = len(re.findall("[\udc80-\udcff]", text))
    if len(NON_ASCII.findall(text)) > 8 * broken:  # by chance, bytes of other encodings are rarely valid UTF-8
        raise UserError(f"{path} is damaged UTF-8: {reason}. Correct it and re-save it as UTF-8")
    scores = []
    for candidate in CANDIDATES:
        try:
            scores.append((candidate.score(sample(path, candidate.codec)), candidate.codec))
        except NotText:
            pass
    scores.sort(reverse=True)
    (best, codec), (second, _), *_ = [*scores, (0, None), (0, None)]
    if best >= 1 and best >= MARGIN * second:
        return codec
    candidates = ", ".join(codec for _, codec in scores)
    hint = f"; candidates: {candidates}" if candidates else ""
    raise UserError(f"{path} is not valid text: {reason}. If it is text, re-save it as UTF-8 or pass --data.encoding "
                    f"NAME{hint}")


def sample(path, encoding, errors="strict"):
    """The first blocks of a text that have SAMPLE non-ASCII characters, without blocks of ASCII. Raises NotText."""
    kept, count = [], 0
    for text, _ in text_blocks(path, encoding, errors):
        if not (kept and text.isascii()):
            kept.append(text)
            count += len(NON_ASCII.findall(text))
        if count >= SAMPLE:
            break
    return "".join(kept)
