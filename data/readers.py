"""Files to text: encodings, and the rows of .jsonl, .csv and .parquet."""

import codecs
import csv
import json
from dataclasses import dataclass

from utils.errors import UserError

BLOCK = 1 << 20  # bytes read at once
HEAD = 1 << 20  # bytes from which the encoding is guessed, before the whole file is tested
UTF_8 = "utf-8-sig"  # with its mark or without
ENCODINGS = {UTF_8: "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16",
             "gb18030": "GB18030"}
BOMS = {codecs.BOM_UTF8: UTF_8, codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


@dataclass(frozen=True)
class ReadOptions:
    """How to read text files; None: detect it."""

    column: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    document_separator: str | None = None


DEFAULTS = ReadOptions()

# ---- Text files ------------------------------------------------------------------------------------------------------


def stamp(path):
    """What changes when a file may have changed: its path, size and time of change."""
    stat = path.stat()
    return str(path.resolve()), stat.st_size, stat.st_mtime_ns


def read_text(path):
    """The text of one file, whole. Raises UserError."""
    return "".join(text for text, _ in text_blocks(path, encoding_and_length(path)[0]))


class BadByte(Exception):
    """A byte that the encoding does not have there."""

    def __init__(self, offset, byte):
        super().__init__(offset, byte)
        self.offset, self.byte = offset, byte


def text_blocks(path, encoding):
    """Yield (text, bytes read so far) of a file. CRLF becomes LF. Raises BadByte, and UserError if it can't be read."""
    decoder, held = codecs.getincrementaldecoder(encoding)(), ""
    for data, read in byte_blocks(path, BLOCK):
        try:
            text = held + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise BadByte(read - len(error.object) + error.start, error.object[error.start]) from None
        held = "\r" if data and text.endswith("\r") else ""  # its LF may come with the next block
        yield text.removesuffix(held).replace("\r\n", "\n"), read


def byte_blocks(path, size):
    """Yield (bytes, bytes read so far) of a file; the last bytes are none. Raises UserError."""
    try:
        with open(path, "rb") as file:
            read = 0
            while data := file.read(size):
                read += len(data)
                yield data, read
            yield b"", read
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def encoding_and_length(path):
    """The encoding of a text file, and its length in characters (CRLF as one). Raises UserError if it is no text.

    A byte order mark decides. Without one, what decodes to the end is UTF-8, else UTF-16 where there are zero bytes,
    else GB18030. Every encoding is tested on the whole file.
    """

    def length(encoding):
        return sum(len(text) for text, _ in text_blocks(path, encoding))

    head = next(byte_blocks(path, HEAD))[0]
    marked = next((encoding for mark, encoding in BOMS.items() if head.startswith(mark)), None)
    zeros = head.count(0)
    # An ASCII character of UTF-16 has its zero byte behind it in the little-endian form, and before it in the other.
    utf_16 = "utf-16-le" if head[1::2].count(0) * 2 >= zeros else "utf-16-be"
    first = marked or (utf_16 if zeros * 10 > len(head) else UTF_8)
    try:
        return first, length(first)
    except BadByte as error:
        bad = error
    # More than a few characters of another encoding never are UTF-8 by chance: then it is UTF-8 with a broken byte.
    foreign = sum(byte >= 0xC0 for byte in head[: bad.offset])
    if first == UTF_8 and marked is None and foreign < 16:
        second = utf_16 if zeros else "gb18030"
        try:
            if zeros or looks_chinese(head):
                return second, length(second)
        except BadByte:
            pass
        raise UserError(f"{path} is neither GB18030 nor UTF-16 nor UTF-8 (byte 0x{bad.byte:02x} at offset {bad.offset})"
                        ": save it as UTF-8")
    raise UserError(f"{path} is not {ENCODINGS[first]}: byte 0x{bad.byte:02x} at offset {bad.offset}: save it as UTF-8")


def looks_chinese(head):
    """Whether bytes read as GB18030 give the characters of GB2312, not just any: Latin-1 may seem to be GB18030."""
    foreign = [character for character in head.decode("gb18030", "ignore") if not character.isascii()]
    common = sum(bool(character.encode("gb2312", "ignore")) for character in foreign)
    return common * 4 >= len(foreign)


# ---- Rows ------------------------------------------------------------------------------------------------------------

COLUMN = "--column (of train.py: --data.column)"


def column_of(names, wanted, where):
    """The column that holds the text: the one wanted, `text`, or the only one. Raises UserError naming those there."""
    listed = ", ".join(map(str, names))
    if not names:
        raise UserError(f"{where} is empty: give another file")
    if wanted is not None and wanted not in names:
        raise UserError(f"{where} has no column {wanted}: give one of these by {COLUMN}: {listed}")
    if wanted is None and "text" not in names and len(names) != 1:
        raise UserError(f"{where} has the columns {listed}: say by {COLUMN} which one holds the text")
    return wanted or ("text" if "text" in names else names[0])


def text_in(value, column, where):
    """The text of a field; that of a missing value is empty. Raises UserError if it is a number or the like."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {column} is {type(value).__name__}, not text: name another by {COLUMN}")
    return value


def jsonl_rows(path, encoding, wanted):
    """Yield (text, bytes read so far) of each line, a JSON object."""
    column = wanted
    with open(path, encoding=encoding, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON ({error}): mend the line or take it out") from None
            if not isinstance(row, dict):
                raise UserError(f"{where} is no object but {type(row).__name__}: write it as "
                                '{"text": ...}')
            if column not in row:
                column = column_of(list(row), wanted, where)
            text = text_in(row[column], column, where)
            if "\\u" in line:  # half of a surrogate pair, which is no character
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            yield text, file.buffer.tell()


def csv_rows(path, encoding, wanted):
    """Yield (text, bytes read so far) of each row; the first line names the columns."""
    csv.field_size_limit(2**31 - 1)  # the default stops at 131,072 characters
    with open(path, encoding=encoding, newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            names = next(rows, [])
            place = names.index(column_of(names, wanted, path))
            for row in rows:
                if row and len(row) != len(names):
                    raise UserError(f"{path}, line {rows.line_num}: {len(row)} fields, where the first line has "
                                    f"{len(names)}: put a text that has commas between double quotes")
                if row:
                    yield row[place], file.buffer.tell()
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num} is not CSV ({error}): mend it") from None


def parquet_rows(path, wanted):
    """Yield (text, bytes read so far, about) of each row."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet takes pyarrow: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = column_of(file.schema_arrow.names, wanted, path)
            size, count, read = path.stat().st_size, file.metadata.num_rows, 0
            for batch in file.iter_batches(batch_size=1000, columns=[column]):
                for value in batch.column(0).to_pylist():
                    read += 1
                    yield text_in(value, column, f"{path}, row {read}"), size * read // count
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged, or no Parquet at all ({reason}): fetch it again") from None
