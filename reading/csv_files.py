"""Rows of CSV files: the delimiter and the header are detected."""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice, product
from pathlib import Path
from typing import NamedTuple

from reading.options import ReadOptions
from reading.rows import Row
from reading.text_files import BLANK, LIMIT, encoding_of, lines
from utils.errors import UserError
from utils.printable import one_line, print_once
from utils.quantities import quantity

FIRST = 100  # rows from which the delimiter and the header are detected
DELIMITERS = ",;\t|"


class Dialect(NamedTuple):
    """How the fields of a row are separated."""

    delimiter: str
    skip_spaces: bool
    """Whether spaces after a delimiter do not belong to the field."""


def csv_records(path: Path, options: ReadOptions) -> Iterator[Row]:
    """Yield the rows of a CSV file. Raises UserError."""
    encoding = encoding_of(path, options.encoding)
    rows = csv_rows(path, encoding, detect_dialect(path, encoding, options))
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
        yield Row(f"line {number}", dict(zip(names, fields, strict=True)), position)


def csv_rows(path: Path, encoding: str, dialect: Dialect) -> Iterator[tuple[int, list[str], int]]:
    """Yield (number of its first line, fields, position) of each row that is not blank. Line ends become LF."""
    csv.field_size_limit(LIMIT)
    start = 1
    with open(path, encoding=encoding) as file:
        content = lines(file, path)
        first = next(content, "")
        if declared_delimiter(first):
            first = "\n"
        rows = csv.reader(chain([first], content), strict=True, delimiter=dialect.delimiter,
                          skipinitialspace=dialect.skip_spaces)
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


def detect_dialect(path: Path, encoding: str, options: ReadOptions) -> Dialect:
    """Return the Dialect in which the first rows make the best table.

    First, its header names the wanted column; second, all rows have as many fields as the header; third, there are many
    fields. Raises UserError if the delimiter that is given is not a character.
    """
    with open(path, encoding=encoding) as file:
        declared = declared_delimiter(file.readline(10))
    given = "\t" if options.delimiter in ("\\t", "tab") else options.delimiter
    if given is not None and (len(given) != 1 or given in '"\r\n'):
        raise UserError(f"--data.delimiter must be one character, or tab: got {given!r}")

    def quality(dialect: Dialect) -> tuple[bool, bool, int]:
        rows, valid = [], True
        try:
            for _, fields, _ in islice(csv_rows(path, encoding, dialect), FIRST):
                rows.append(fields)
        except UserError:
            valid = False
        names = [name.rstrip() for name in rows[0]] if rows else []
        consistent = valid and len(names) > 1 and all(len(row) == len(names) for row in rows)
        return (options.column or "text") in names, consistent, len(names)

    delimiters = given or declared or DELIMITERS  # one character or several
    dialects = [Dialect(delimiter, skip_spaces) for delimiter, skip_spaces in product(delimiters, (False, True))]
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
