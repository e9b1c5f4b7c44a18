"""Records from tables (.jsonl, .csv, .tsv, .parquet) and .json lists, and documents from them and from .txt files.

A reader of records takes (path, ReadOptions, columns) and yields (place, record, number of bytes read so far). A place
is such as `line 3`; a record is a dictionary or, in a .json list, any item. Only the values in `columns` are needed,
which saves time for .parquet files; None means all. All functions raise UserError.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice, product
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TextIO

from reading.text_files import LIMIT, ReadOptions, encoding_of, print_once, text_blocks
from utils.errors import UserError
from utils.printable import one_line
from utils.quantities import quantity

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

FIRST = 100  # rows from which columns and delimiter are inferred
DELIMITERS = ",;\t|"
BLANK = " \t\r\n\x1a"  # DOS programs end a file with Ctrl-Z
JSON_BYTES = 1 << 28  # a .json file is parsed in memory
JSON_FILES = (".json", ".jsonl")
JSON_KINDS = {NoneType: "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
              dict: "an object"}
EXPANSION = 1000  # times that a Parquet file may grow when it is decompressed

Records = Iterator[tuple[str, Any, int]]


# ---- Documents -------------------------------------------------------------------------------------------------------


def table_documents(path: Path, options: ReadOptions) -> Iterator[tuple[str, int]]:
    """Yield (text, number of bytes read so far) of the rows of a table or the items of a .json list."""
    names = column_names(path, options)
    if not names:
        return
    column = options.column
    if column is None or path.suffix.lower() not in JSON_FILES:  # a JSON file may have it in a later row
        column = text_column(names, column, columns_place(path))
    values = ((place, record.get(column) if isinstance(record, dict) else record, position)
              for place, record, position in read_records(path, options, [column]))
    yield from texts(values, path, column, chain.from_iterable(names))


def separated_documents(path: Path, options: ReadOptions) -> Iterator[tuple[str, int]]:
    """Yield (text, number of bytes read so far) of the documents of a text file with separators."""
    rest = ""
    for block, position in text_blocks(path, encoding_of(path, options.encoding)):
        *complete, rest = (rest + block).split(options.document_separator)
        if len(rest) > LIMIT:
            raise UserError(f"{path}: a document before byte {position:,} is longer than {LIMIT:,} characters: "
                            f"separate it by {options.document_separator}, or read the file without a separator")
        for document in complete:
            yield document.strip("\n"), position
    yield rest.strip("\n"), position


def texts(values: Iterable[tuple[str, Any, int]], path: Path | str, column: str,
          names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield (text, position) of values (place, value, position) of a column; None is counted as a row without a text.

    Raises UserError if a value is not a string, or if all are None; then it lists the `names` of the columns.
    """
    n_rows = n_missing = 0
    for place, value, position in values:
        n_rows += 1
        if isinstance(value, str):
            yield clean_text(value), position
        elif value is None:
            n_missing += 1
        elif column == "item":
            raise UserError(f"{path}, {place} is {json_kind(value)}, not text: correct it")
        else:
            raise UserError(f"{path}, {place}: {column} is {json_kind(value)}, not text: pass the column with the text "
                            "as --data.column")
    if n_rows and n_missing == n_rows:
        raise UserError(f"{path}: no row has a text in the column {column}: pass another --data.column, of "
                        f"{', '.join(dict.fromkeys(names))}")
    if n_missing:
        print_once(f"{path}: skipped {n_missing:,} of {n_rows:,} rows, which have no {column}")


def clean_text(text: str) -> str:
    """Return a text with LF for CRLF, and with U+FFFD for half of a surrogate pair, which JSON may contain."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\r\n", "\n")


# ---- Records and columns ---------------------------------------------------------------------------------------------


def read_records(path: Path, options: ReadOptions, columns: list[str] | None = None) -> Records:
    """Yield (place, record, number of bytes read so far) of a file with one of the suffixes in TABLES."""
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise UserError(f"{path} is not a table: pass a file whose name ends in {', '.join(TABLES)}")
    return TABLES[suffix](path, options, columns)


def column_names(path: Path, options: ReadOptions) -> list[list[str]]:
    """Return the column names of each of the first rows; there are none if the table is empty."""
    if path.suffix.lower() == ".parquet" and path.stat().st_size:
        with open_parquet(path) as file:
            return [file.schema_arrow.names]
    first = [record for _, record, _ in islice(read_records(path, options), FIRST)]
    if options.column is None and any(is_poem(record) for record in first):
        raise UserError(f"{path} contains poems, not texts: train on them with --task poem")
    names = [list(record) for record in first if isinstance(record, dict)]
    if first and not names:
        return [["item"]]
    return names


def columns_place(path: Path) -> str:
    """Return what names the columns of a table, for error messages."""
    if path.suffix.lower() in (".csv", ".tsv"):
        return f"the first row of {path}"
    return str(path)


def list_columns(rows: list[list[str]]) -> str:
    """Return the column names of the first rows in one line, for an error message."""
    return one_line(", ".join(dict.fromkeys(chain.from_iterable(rows))) or "none", 200)


def text_column(rows: list[list[str]], wanted: str | None, where: str, usual: tuple[str, ...] = ("text",)) -> str:
    """Return the column with the text: the one wanted, the first of the `usual` ones, or the only one of all rows.

    `rows` are the column names of each of the first rows. Raises UserError, which lists all columns.
    """
    names = set(chain.from_iterable(rows))
    if wanted in names:
        return wanted
    listed = list_columns(rows)
    if wanted is not None:
        raise UserError(f"{where} has no column {wanted}: pass one of its columns as --data.column: {listed}")
    for name in usual:
        if name in names:
            return name
    shared = names.intersection(*(row for row in rows if row))
    if len(shared) != 1:
        raise UserError(f"{where} has the columns {listed}: pass the one with the text as --data.column")
    return shared.pop()


def is_poem(item: Any) -> bool:
    """Return whether an item of a .json list has the lines of a poem, and no text."""
    return isinstance(item, dict) and "text" not in item and isinstance(item.get("para", item.get("paragraphs")), list)


def lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of an open text file. Raises UserError for one that is longer than LIMIT."""
    number = 0
    while line := file.readline(LIMIT + 1):
        number += 1
        if len(line) > LIMIT:
            raise UserError(f"{path}, line {number} is longer than {LIMIT:,} characters: split it into several rows")
        yield line


# ---- JSON ------------------------------------------------------------------------------------------------------------


def parse_json(text: str, where: Path | str) -> Any:
    """Return the value that a text in JSON describes. Raises UserError, which names `where`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}): correct it") from None


def json_kind(value: Any) -> str:
    """Return what kind of value this is, in the words of JSON, for error messages.

    >>> json_kind(None), json_kind([1])
    ('null', 'a list')
    """
    return JSON_KINDS.get(type(value), type(value).__name__)  # a Parquet file may have others, such as bytes


def jsonl_records(path: Path, options: ReadOptions, columns: list[str] | None) -> Records:
    with open(path, encoding=encoding_of(path, options.encoding)) as file:
        for number, line in enumerate(lines(file, path), 1):
            if not line.strip(BLANK):
                continue
            record = parse_json(line, f"{path}, line {number}")
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number} is {json_kind(record)}, not an object: write it as "
                                '{"name": value, ...}')
            yield f"line {number}", record, file.buffer.tell()


def json_records(path: Path, options: ReadOptions, columns: list[str] | None) -> Records:
    size = path.stat().st_size
    if size > JSON_BYTES:
        raise UserError(f"{path} is larger than {JSON_BYTES:,} bytes, the limit for .json: save it as .jsonl")
    encoding = encoding_of(path, options.encoding)
    items = parse_json("".join(text for text, _ in text_blocks(path, encoding)), path)
    if not isinstance(items, list):
        raise UserError(f"{path} is {json_kind(items)}, not a list: a .json file is a list of texts or of records")
    for number, item in enumerate(items, 1):
        yield f"item {number}", item, size * number // len(items)


# ---- CSV -------------------------------------------------------------------------------------------------------------


def csv_records(path: Path, options: ReadOptions, columns: list[str] | None) -> Records:
    encoding = encoding_of(path, options.encoding)
    rows = csv_rows(path, encoding, **csv_dialect(path, encoding, options))
    first = list(islice(rows, FIRST))
    if not first:
        return
    names = ["text"]
    if has_header([fields for _, fields, _ in first], options.column, path):
        names = [name.rstrip() for name in first.pop(0)[1]]
    for name, count in Counter(names).items():
        if name and count > 1:
            raise UserError(f"{path} has {count} columns named {name}: rename all but one")
    for number, fields, position in chain(first, rows):
        if len(fields) != len(names):
            raise UserError(f"{path}, line {number}: {quantity(len(fields), 'fields')}, but {len(names)} in the first "
                            "row: put a text that contains the delimiter between double quotes, or pass "
                            "--data.delimiter")
        yield f"line {number}", dict(zip(names, fields, strict=True)), position


def csv_rows(path: Path, encoding: str, **dialect: Any) -> Iterator[tuple[int, list[str], int]]:
    """Yield (number of its first line, fields, position) of each row that is not blank. Line ends become LF."""
    csv.field_size_limit(LIMIT)
    start = 1
    with open(path, encoding=encoding) as file:
        content = lines(file, path)
        first = next(content, "")
        if declared_delimiter(first):
            first = "\n"
        rows = csv.reader(chain([first], content), strict=True, **dialect)
        try:
            for fields in rows:
                if any(field.strip(BLANK) for field in fields):
                    yield start, fields, file.buffer.tell()
                start = rows.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}, line {start}: the row that starts here is not valid CSV ({error}): check its "
                            "quotes") from None


def declared_delimiter(line: str) -> str | None:
    """Return the delimiter in a first line `sep=;`, as Excel reads and writes it, or None."""
    match = re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE)
    return match[1] if match else None


def csv_dialect(path: Path, encoding: str, options: ReadOptions) -> dict[str, Any]:
    """Return the dialect in which the first rows make the best table.

    First, its header names the wanted column; second, all rows have as many fields as the header; third, there are many
    fields. Raises UserError if the delimiter that is given is not a character.
    """
    with open(path, encoding=encoding) as file:
        declared = declared_delimiter(file.readline(10))
    given = "\t" if options.delimiter in ("\\t", "tab") else options.delimiter
    if given is not None and (len(given) != 1 or given in '"\r\n'):
        raise UserError(f"--data.delimiter must be one character, or tab: got {given!r}")

    def quality(dialect: dict[str, Any]) -> tuple[bool, bool, int]:
        rows, valid = [], True
        try:
            for _, fields, _ in islice(csv_rows(path, encoding, **dialect), FIRST):
                rows.append(fields)
        except UserError:
            valid = False
        names = [name.rstrip() for name in rows[0]] if rows else []
        consistent = valid and len(names) > 1 and all(len(row) == len(names) for row in rows)
        return (options.column or "text") in names, consistent, len(names)

    delimiters = given or declared or DELIMITERS  # one character or several
    dialects = [{"delimiter": delimiter, "skipinitialspace": spaces}
                for delimiter, spaces in product(delimiters, (False, True))]
    return max(dialects, key=quality)  # of equals, the first: a comma, spaces kept


def has_header(rows: list[list[str]], wanted: str | None, path: Path) -> bool:
    """Return whether the first row names the columns. A table of several columns must have a header.

    A single column has one if it is `text`, the `wanted` name, or one word above rows of several words. Raises
    UserError if all rows are single words, any of which may be a text.
    """
    names = rows[0]
    if len(names) > 1 or wanted is not None or names[0].strip() == "text":
        return True
    is_word = [re.fullmatch(r"\w+", row[0].strip()) is not None for row in rows]
    first = one_line(names[0], 80)
    if not is_word[0]:
        print_once(f"{path}: no column name, so the first row is a text: {first}")
        return False
    if any(is_word[1:]):
        raise UserError(f"{path}: the first row may be a text or the name of the column: if it is the name, pass it as "
                        f"--data.column; if not, add a first line `text`: {first}")
    print_once(f"{path}: the first row is the name of the column: {first}")
    return True


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def parquet_records(path: Path, options: ReadOptions, columns: list[str] | None) -> Records:
    number, size = 0, path.stat().st_size
    if not size:
        return
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=64, columns=columns):  # few: each may be long
            for record in batch.to_pylist():
                number += 1
                yield f"row {number}", record, size * number // file.metadata.num_rows


@contextmanager
def open_parquet(path: Path) -> Iterator["ParquetFile"]:
    """Open a ParquetFile. Raises UserError, also for errors of the library inside the context."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: Parquet requires pyarrow: pip install pyarrow") from None
    size = path.stat().st_size
    try:
        # Every element of a list in the metadata takes a byte: more elements are a false claim.
        with pyarrow.parquet.ParquetFile(path, thrift_container_size_limit=max(size, 1)) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            if sum(group.total_byte_size for group in groups) > EXPANSION * size:
                raise UserError(f"{path} would expand to more than {EXPANSION} times its size: it is damaged or "
                                "hostile")
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a valid Parquet file ({one_line(str(error), 200)}): "
                        "download it again") from None


TABLES = {".jsonl": jsonl_records, ".csv": csv_records, ".tsv": csv_records, ".parquet": parquet_records,
          ".json": json_records}
