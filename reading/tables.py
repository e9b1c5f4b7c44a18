"""Tables (.jsonl, .csv, .tsv, .parquet) and .json lists. All functions raise UserError."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, NamedTuple

from reading.blocks import text_blocks
from reading.csv_files import FIRST, csv_records
from reading.options import ReadOptions
from reading.rows import Row
from reading.text_files import BLANK, encoding_of, lines
from utils.errors import UserError
from utils.printable import one_line

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

JSON_FILES = (".json", ".jsonl")
JSON_BYTES = 1 << 28  # a .json file is parsed in memory
JSON_KINDS = {NoneType: "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
              dict: "an object"}
EXPANSION = 1000  # times that a Parquet file may grow when it is decompressed


class Table(NamedTuple):
    """An open table."""

    path: Path
    where: str
    """Where the column names are, such as `the first row of a.csv`, for error messages."""
    names: list[list[str]]
    """The column names of each of the first rows; none if the table is empty. A list without objects has `item`."""
    first: list[Row]
    """Its first rows; none for a Parquet file."""
    read: Callable[[list[str] | None], Iterator[Row]]
    """Yields all rows, once. Only the values in the columns that are passed are needed; None means all."""


def is_table(path: Path) -> bool:
    """Return whether a file is a table by its name."""
    return path.suffix.lower() in TABLE_SUFFIXES


def open_table(path: Path, options: ReadOptions) -> Table:
    """Open a table."""
    suffix, where = path.suffix.lower(), str(path)
    if not is_table(path):
        raise UserError(f"{path} is not a table: pass a file whose name ends in {', '.join(TABLE_SUFFIXES)}")
    if suffix == ".parquet":
        return Table(path, where, parquet_names(path), [], lambda columns: parquet_records(path, columns))
    if suffix in (".csv", ".tsv"):
        where = f"the first row of {path}"
    rows = READERS[suffix](path, options)
    first = list(islice(rows, FIRST))
    names = [list(row.record) for row in first if isinstance(row.record, dict)]
    if first and not names:
        names = [["item"]]
    return Table(path, where, names, first, lambda columns: chain(first, rows))


def read_rows(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Yield the rows of a table."""
    return open_table(path, options).read(None)


def refuse_poems(table: Table) -> None:
    """Raise UserError if one of the first records is a poem: it has lines, and no text."""
    for row in table.first:
        if isinstance(row.record, dict) and "text" not in row.record and isinstance(lines_of_poem(row.record), list):
            raise UserError(f"{table.path} contains poems, not texts: train on them with --task poem")


def lines_of_poem(record: dict) -> Any:
    """Return the lines of a poem; None if there are none."""
    return record.get("para", record.get("paragraphs"))


def list_columns(names: list[list[str]]) -> str:
    """Return the column names of the first rows in one line, for an error message."""
    return one_line(", ".join(dict.fromkeys(chain.from_iterable(names))) or "none", 200)


def text_column(names: list[list[str]], wanted: str | None, where: str, usual: tuple[str, ...] = ("text",)) -> str:
    """Return the column with the text: the one wanted, the first of the `usual` ones, or the only one of all rows.

    `names` are those of the columns of each of the first rows. Raises UserError, which lists all columns.
    """
    distinct = set(chain.from_iterable(names))
    if wanted in distinct:
        return wanted
    listed = list_columns(names)
    if wanted is not None:
        raise UserError(f"{where} has no column {wanted}: pass one of its columns as --data.column: {listed}")
    for name in usual:
        if name in distinct:
            return name
    shared = distinct.intersection(*(row for row in names if row))
    if len(shared) != 1:
        raise UserError(f"{where} has the columns {listed}: pass the one with the text as --data.column")
    return shared.pop()


def clean_text(text: str) -> str:
    """Return a text with LF for CRLF and CR, and with U+FFFD for half of a surrogate pair, which JSON may contain."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\r\n", "\n").replace("\r", "\n")


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


def jsonl_records(path: Path, options: ReadOptions) -> Iterator[Row]:
    with open(path, encoding=encoding_of(path, options.encoding)) as file:
        for number, line in enumerate(lines(file, path), 1):
            if not line.strip(BLANK):
                continue
            record = parse_json(line, f"{path}, line {number}")
            if not isinstance(record, dict):
                raise UserError(f"{path}, line {number} is {json_kind(record)}, not an object: write it as "
                                '{"name": value, ...}')
            yield Row(f"line {number}", record, file.buffer.tell())


def json_records(path: Path, options: ReadOptions) -> Iterator[Row]:
    size = path.stat().st_size
    if size > JSON_BYTES:
        raise UserError(f"{path} is larger than {JSON_BYTES:,} bytes, the limit for .json: save it as .jsonl")
    encoding = encoding_of(path, options.encoding)
    items = parse_json("".join(text for text, _ in text_blocks(path, encoding)), path)
    if not isinstance(items, list):
        raise UserError(f"{path} is {json_kind(items)}, not a list: a .json file is a list of texts or of records")
    for number, item in enumerate(items, 1):
        yield Row(f"item {number}", item, size * number // len(items))


# ---- Parquet ---------------------------------------------------------------------------------------------------------


def parquet_names(path: Path) -> list[list[str]]:
    """Return the column names of a Parquet file; none if it is empty."""
    if not path.stat().st_size:
        return []
    with open_parquet(path) as file:
        return [file.schema_arrow.names]


def parquet_records(path: Path, columns: list[str] | None) -> Iterator[Row]:
    number, size = 0, path.stat().st_size
    if not size:
        return
    with open_parquet(path) as file:
        for batch in file.iter_batches(batch_size=64, columns=columns):  # few: each may be long
            for record in batch.to_pylist():
                number += 1
                yield Row(f"row {number}", record, size * number // file.metadata.num_rows)


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


READERS = {".jsonl": jsonl_records, ".csv": csv_records, ".tsv": csv_records, ".json": json_records}
TABLE_SUFFIXES = (".parquet", *READERS)
