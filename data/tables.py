"""Documents from tables and lists: .jsonl, .csv, .tsv, .parquet and .json, and .txt files with a separator.

Each reader takes (path, encoding, options) and yields (text, number of bytes read so far) of one document after
another. Rows without a text are skipped and counted. All raise UserError.
"""

import csv
import json
import re
from itertools import chain, islice, product

from data.readers import LIMIT, inspect, print_encoding, print_once, text_blocks
from utils.errors import UserError
from utils.printable import one_line

FIRST = 100  # rows from which columns and delimiter are inferred
DELIMITERS = ",;\t|"
BLANK = " \t\r\n\x1a"  # DOS programs end a file with Ctrl-Z
JSON_BYTES = 1 << 28  # a .json file is parsed in memory
EXPANSION = 1000  # times that a Parquet file may grow when it is decompressed


# ---- Columns and rows ------------------------------------------------------------------------------------------------


def text_column(rows, wanted, where):
    """The column with the text: the one wanted, `text`, or the only one that all rows have.

    `rows` are the column names in each of the first rows. Raises UserError naming all columns.
    """
    names = list(dict.fromkeys(chain.from_iterable(rows)))
    if wanted in names:
        return wanted
    listed = one_line(", ".join(names) or "none", 200)
    if wanted is not None:
        raise UserError(f"{where} has no column {wanted}: pass one of its columns as --data.column: {listed}")
    if "text" in names:
        return "text"
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
                raise UserError(f"{path}, {place} is {type(value).__name__}, not text: correct it")
            raise UserError(f"{path}, {place}: {column} is {type(value).__name__}, not text: pass the column with the "
                            "text as --data.column")
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


def jsonl_objects(path, encoding):
    """Yield (place, object, position) of each line."""
    with open(path, encoding=encoding) as file:
        for number, line in enumerate(lines(file, path), 1):
            if not line.strip(BLANK):
                continue
            place = f"line {number}"
            row = parse_json(line, f"{path}, {place}")
            if not isinstance(row, dict):
                raise UserError(f'{path}, {place} is {type(row).__name__}, not an object in braces')
            yield place, row, file.buffer.tell()


def jsonl_documents(path, encoding, options):
    first = [list(row) for _, row, _ in islice(jsonl_objects(path, encoding), FIRST)]
    if first:
        column = options.column or text_column(first, None, path)
        rows = ((place, row.get(column), position) for place, row, position in jsonl_objects(path, encoding))
        yield from texts(rows, path, column, chain.from_iterable(first))


def read_json(path, encoding):
    """The list in a .json file."""
    if path.stat().st_size > JSON_BYTES:
        raise UserError(f"{path} is larger than {JSON_BYTES:,} bytes, the limit for .json: save it as .jsonl")
    encoding, _ = inspect(path, encoding)
    print_encoding(path, encoding)
    items = parse_json("".join(text for text, _ in text_blocks(path, encoding)), path)
    if not isinstance(items, list):
        raise UserError(f"{path} is {type(items).__name__}, not a list: a .json file is a list of texts or of records")
    return items


def json_documents(path, encoding, options):
    """Items are strings, or objects with a text."""
    items = read_json(path, encoding)
    first = [list(item) for item in items[:FIRST] if isinstance(item, dict)]
    column = text_column(first, options.column, path) if first else "item"
    size = path.stat().st_size
    rows = ((f"item {number}", item.get(column) if isinstance(item, dict) else item, size * number // len(items))
            for number, item in enumerate(items, 1))
    return texts(rows, path, column, chain.from_iterable(first))


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


def csv_documents(path, encoding, options):
    dialect = csv_dialect(path, encoding, options)
    rows = csv_rows(path, encoding, **dialect)
    first = [fields for _, fields, _ in islice(csv_rows(path, encoding, **dialect), FIRST)]
    if not first:
        return
    names = [name.rstrip() for name in first[0]]
    place = 0
    if has_header(first, options.column, path):
        column = text_column([names], options.column, f"the first row of {path}")
        if names.count(column) > 1:
            raise UserError(f"{path} has {names.count(column)} columns named {column}: rename all but one")
        place = names.index(column)
        next(rows)
    for start, fields, position in rows:
        if len(fields) != len(names):
            raise UserError(f"{path}, line {start}: {len(fields)} fields, but {len(names)} in the first row: put a "
                            "text that contains the delimiter between double quotes, or pass --data.delimiter")
        yield fields[place], position


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


def parquet_documents(path, encoding, options):
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
            names = file.schema_arrow.names
            column = text_column([names], options.column, path)
            yield from texts(parquet_rows(file, column, size), path, column, names)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a valid Parquet file ({one_line(str(error), 200)}): "
                        "download it again") from None


def parquet_rows(file, column, size):
    number = 0
    for batch in file.iter_batches(batch_size=64, columns=[column]):  # few: each may be long
        for value in batch.column(0):
            number += 1
            yield f"row {number}", value.as_py(), size * number // file.metadata.num_rows


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


READERS = {".jsonl": jsonl_documents, ".csv": csv_documents, ".tsv": csv_documents, ".parquet": parquet_documents,
           ".json": json_documents}
