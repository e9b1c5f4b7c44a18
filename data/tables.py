"""Tables (.jsonl, .csv, .tsv, .parquet and .json), and documents from them and from .txt files with a separator.

The functions for documents take (path, encoding, options) and yield (text, number of bytes read so far) of one document
after another. Rows without a text are skipped and counted. All raise UserError.
"""

import csv
import json
import re
from collections.abc import Callable
from contextlib import contextmanager
from itertools import chain, islice, product
from types import NoneType
from typing import NamedTuple

from data.readers import LIMIT, encoding_of, print_once, text_blocks
from utils.errors import UserError
from utils.printable import one_line

FIRST = 100  # rows from which columns and delimiter are inferred
DELIMITERS = ",;\t|"
BLANK = " \t\r\n\x1a"  # DOS programs end a file with Ctrl-Z
JSON_BYTES = 1 << 28  # a .json file is parsed in memory
JSON_FILES = (".json", ".jsonl")
JSON_KINDS = {NoneType: "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list",
              dict: "an object"}
EXPANSION = 1000  # times that a Parquet file may grow when it is decompressed


# ---- Columns and rows ------------------------------------------------------------------------------------------------


class Table(NamedTuple):
    """A table that is read row by row."""

    where: str
    """What names the columns, for error messages."""
    names: list
    """The column names of each of the first rows; there are none if the table is empty."""
    rows: Callable
    """A function from a list of columns to an iterator of (place, their values, number of bytes read so far)."""
    has_other_columns: bool = False
    """Whether a column may first appear in a later row."""


def open_table(path, options):
    """The Table in a file with one of the suffixes in TABLES. Raises UserError."""
    suffix = path.suffix.lower()
    if suffix not in TABLES:
        raise UserError(f"{path} is not a table: pass a file whose name ends in {', '.join(TABLES)}")
    encoding = None
    if suffix != ".parquet":
        encoding = encoding_of(path, options.encoding)
    return TABLES[suffix](path, encoding, options)


def table_documents(path, encoding, options):
    table = TABLES[path.suffix.lower()](path, encoding, options)
    if table.names:
        column = options.column
        if column is None or not table.has_other_columns:
            column = text_column(table.names, column, table.where)
        rows = ((place, value, position) for place, (value,), position in table.rows([column]))
        yield from texts(rows, path, column, chain.from_iterable(table.names))


def list_columns(rows):
    """The column names of the first rows, for an error message."""
    return one_line(", ".join(dict.fromkeys(chain.from_iterable(rows))) or "none", 200)


def text_column(rows, wanted, where, usual=("text",)):
    """The column with the text: the one wanted, the first of the `usual` ones, or the only one that all rows have.

    `rows` are the column names of each of the first rows. Raises UserError naming all columns.
    """
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    if wanted in names:
        return wanted
    listed = list_columns(rows)
    if wanted is not None:
        raise UserError(f"{where} has no column {wanted}: pass one of its columns as --data.column: {listed}")
    for name in usual:
        if name in names:
            return name
    shared = [name for name in names if all(name in row for row in rows if row)]
    if len(shared) != 1:
        raise UserError(f"{where} has the columns {listed}: pass the one with the text as --data.column")
    return shared[0]


def texts(rows, path, column, names):
    """Yield (text, position) of rows (place, value, position). CRLF becomes LF.

    Values that are None are counted as rows without a text. Raises UserError if all are, which lists the `names` of
    columns, or if one is not a string.
    """
    total = missing = 0
    for place, value, position in rows:
        total += 1
        if value is None:
            missing += 1
            continue
        if not isinstance(value, str):
            if column == "item":
                raise UserError(f"{path}, {place} is {json_kind(value)}, not text: correct it")
            raise UserError(f"{path}, {place}: {column} is {json_kind(value)}, not text: pass the column with the text "
                            "as --data.column")
        yield clean_text(value), position
    if total and missing == total:
        raise UserError(f"{path}: no row has a text in the column {column}: pass another --data.column, of "
                        f"{', '.join(dict.fromkeys(names))}")
    if missing:
        print_once(f"{path}: skipped {missing:,} of {total:,} rows, which have no {column}")


def clean_text(text):
    """A text with LF for CRLF, and U+FFFD for half of a surrogate pair, which JSON may contain."""
    if not text.isascii():
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.replace("\r\n", "\n")


def lines(file, path):
    """The lines of an open text file. Raises UserError for one that is longer than LIMIT."""
    number = 0
    while line := file.readline(LIMIT + 1):
        number += 1
        if len(line) > LIMIT:
            raise UserError(f"{path}, line {number} is longer than {LIMIT:,} characters: split it into several rows")
        yield line


# ---- JSON ------------------------------------------------------------------------------------------------------------


def parse_json(text, where):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}): correct it") from None


def json_kind(value):
    """What kind of value this is, in the words of JSON, for error messages.

    >>> json_kind(None), json_kind([1])
    ('null', 'a list')
    """
    return JSON_KINDS.get(type(value), type(value).__name__)  # a Parquet file may have others, such as bytes


def jsonl_objects(path, encoding):
    """Yield (place, object, position) of each line."""
    with open(path, encoding=encoding) as file:
        for number, line in enumerate(lines(file, path), 1):
            if not line.strip(BLANK):
                continue
            place = f"line {number}"
            row = parse_json(line, f"{path}, {place}")
            if not isinstance(row, dict):
                raise UserError(f"{path}, {place} is {json_kind(row)}, not an object: write it as "
                                '{"name": value, ...}')
            yield place, row, file.buffer.tell()


def jsonl_table(path, encoding, options):
    def rows(columns):
        for place, row, position in jsonl_objects(path, encoding):
            yield place, [row.get(column) for column in columns], position

    names = [list(row) for _, row, _ in islice(jsonl_objects(path, encoding), FIRST)]
    return Table(path, names, rows, has_other_columns=True)


def read_json(path, encoding):
    """The list in a .json file."""
    if path.stat().st_size > JSON_BYTES:
        raise UserError(f"{path} is larger than {JSON_BYTES:,} bytes, the limit for .json: save it as .jsonl")
    items = parse_json("".join(text for text, _ in text_blocks(path, encoding_of(path, encoding))), path)
    if not isinstance(items, list):
        raise UserError(f"{path} is {json_kind(items)}, not a list: a .json file is a list of texts or of records")
    return items


def json_records(path, encoding):
    """Yield (place, record) of the items of a .json list, whatever they are, or of the objects of a .jsonl file."""
    if path.suffix.lower() == ".json":
        for number, record in enumerate(read_json(path, encoding), 1):
            yield f"item {number}", record
    else:
        for place, record, _ in jsonl_objects(path, encoding_of(path, encoding)):
            yield place, record


def json_table(path, encoding, options):
    """Items are objects, or a text each, which is the value of the first column."""
    items, size = read_json(path, encoding), path.stat().st_size
    if options.column is None and any(map(is_poem, items[:FIRST])):
        raise UserError(f"{path} contains poems, not texts: train on them with --task poem")

    def rows(columns):
        for number, item in enumerate(items, 1):
            row = item if isinstance(item, dict) else {columns[0]: item}
            yield f"item {number}", [row.get(column) for column in columns], size * number // len(items)

    names = [list(item) for item in items[:FIRST] if isinstance(item, dict)]
    return Table(path, names or [["item"]], rows, has_other_columns=not names)


def is_poem(item):
    """Whether an item has the lines of a poem, and no text."""
    return isinstance(item, dict) and "text" not in item and isinstance(item.get("para", item.get("paragraphs")), list)


# ---- CSV -------------------------------------------------------------------------------------------------------------


def csv_rows(path, encoding, **dialect):
    """Yield (number of its first line, fields, position) of each row that is not blank. Line ends become LF."""
    csv.field_size_limit(LIMIT)
    start = 1
    with open(path, encoding=encoding) as file:
        content = lines(file, path)
        first = next(content, "")
        rows = csv.reader(chain(["\n" if declared_delimiter(first) else first], content), strict=True, **dialect)
        try:
            for fields in rows:
                if any(field.strip(BLANK) for field in fields):
                    yield start, fields, file.buffer.tell()
                start = rows.line_num + 1
        except csv.Error as error:
            raise UserError(f"{path}, line {start}: the row that starts here is not valid CSV ({error}): check its "
                            "quotes") from None


def declared_delimiter(line):
    """The delimiter in a first line `sep=;`, as Excel reads and writes it, or None."""
    match = re.fullmatch(r'"?sep=(.)"?\s*', line, re.IGNORECASE)
    return match and match[1]


def csv_dialect(path, encoding, options):
    """The dialect in which the first rows make the best table: first, the header names the wanted column; second, all
    rows have as many fields as the header; third, there are many fields."""
    with open(path, encoding=encoding) as file:
        declared = declared_delimiter(file.readline(10))
    given = "\t" if options.delimiter in ("\\t", "tab") else options.delimiter
    if given is not None and (len(given) != 1 or given in '"\r\n'):
        raise UserError(f"--data.delimiter must be one character, or tab: got {given!r}")

    def quality(dialect):
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


def csv_table(path, encoding, options):
    dialect = csv_dialect(path, encoding, options)
    first = [fields for _, fields, _ in islice(csv_rows(path, encoding, **dialect), FIRST)]
    if not first:
        return Table(path, [], iter)
    header = has_header(first, options.column, path)
    names = [name.rstrip() for name in first[0]] if header else ["text"]

    def rows(columns):
        for column in columns:
            if names.count(column) > 1:
                raise UserError(f"{path} has {names.count(column)} columns named {column}: rename all but one")
        places = [names.index(column) for column in columns]
        for start, fields, position in islice(csv_rows(path, encoding, **dialect), int(header), None):
            if len(fields) != len(names):
                raise UserError(f"{path}, line {start}: {len(fields)} fields, but {len(names)} in the first row: put a "
                                "text that contains the delimiter between double quotes, or pass --data.delimiter")
            yield f"line {start}", [fields[place] for place in places], position

    return Table(f"the first row of {path}", [names], rows)


def has_header(rows, wanted, path):
    """Whether the first row names the columns. A table of several columns must have a header.

    A single column has one if it is `text`, the `wanted` name, or one word above rows of several words. Raises
    UserError if all rows are single words, any of which may be a text.
    """
    names = rows[0]
    if len(names) > 1 or wanted is not None or names[0].strip() == "text":
        return True
    words = [re.fullmatch(r"\w+", row[0].strip()) is not None for row in rows]
    first = one_line(names[0], 80)
    if not words[0]:
        print_once(f"{path}: no column name, so the first row is a text: {first}")
        return False
    if any(words[1:]):
        raise UserError(f"{path}: the first row may be a text or the name of the column: if it is the name, pass it as "
                        f"--data.column; if not, add a first line `text`: {first}")
    print_once(f"{path}: the first row is the name of the column: {first}")
    return True


# ---- Parquet ---------------------------------------------------------------------------------------------------------


@contextmanager
def open_parquet(path):
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


def parquet_table(path, encoding, options):
    def rows(columns):
        number, size = 0, path.stat().st_size
        with open_parquet(path) as file:
            for batch in file.iter_batches(batch_size=64, columns=columns):  # few: each may be long
                for values in zip(*(batch.column(column) for column in columns), strict=True):
                    number += 1
                    position = size * number // file.metadata.num_rows
                    yield f"row {number}", [value.as_py() for value in values], position

    with open_parquet(path) as file:
        return Table(path, [file.schema_arrow.names], rows)


TABLES = {".jsonl": jsonl_table, ".csv": csv_table, ".tsv": csv_table, ".parquet": parquet_table, ".json": json_table}


# ---- Text with separators --------------------------------------------------------------------------------------------


def separated_documents(path, encoding, options):
    held = ""
    for block, position in text_blocks(path, encoding):
        *complete, held = (held + block).split(options.document_separator)
        if len(held) > LIMIT:
            raise UserError(f"{path}: a document before byte {position:,} is longer than {LIMIT:,} characters: "
                            f"separate it by {options.document_separator}, or read the file without a separator")
        for document in complete:
            yield document.strip("\n"), position
    yield held.strip("\n"), position
