"""Documents from tables, and from text files with separators."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from reading.blocks import text_blocks
from reading.options import ReadOptions
from reading.rows import Row
from reading.tables import JSON_FILES, Table, clean_text, json_kind, open_table, refuse_poems, text_column
from reading.text_files import LIMIT, encoding_of
from utils.errors import UserError
from utils.printable import print_once


def table_documents(path: Path, options: ReadOptions) -> Iterator[tuple[str, int]]:
    """Yield (text, number of bytes read so far) of the rows of a table or the items of a .json list.

    Raises UserError.
    """
    table = open_table(path, options)
    if not table.names:
        return
    column = options.column
    if column is None:
        refuse_poems(table)
    if column is None or path.suffix.lower() not in JSON_FILES:  # a JSON file may have it in a later row
        column = text_column(table.names, column, table.where)
    yield from column_texts(column_values(table, column), path, column, chain.from_iterable(table.names))


def column_values(table: Table, column: str) -> Iterator[Row]:
    """Yield the rows of a table with the value in a column for each record; an item that is no object is the value.

    Raises UserError if such an item is not text.
    """
    for place, record, position in table.read([column]):
        if isinstance(record, dict):
            record = record.get(column)
        elif not isinstance(record, str | None):
            raise UserError(f"{table.path}, {place} is {json_kind(record)}, not text: correct it")
        yield Row(place, record, position)


def separated_documents(path: Path, options: ReadOptions) -> Iterator[tuple[str, int]]:
    """Yield (text, number of bytes read so far) of the documents of a text file with separators.

    Raises UserError.
    """
    rest = ""
    for block, position in text_blocks(path, encoding_of(path, options.encoding)):
        *complete, rest = (rest + block).split(options.document_separator)
        if len(rest) > LIMIT:
            raise UserError(f"{path}: a document before byte {position:,} is longer than {LIMIT:,} characters: "
                            f"separate it by {options.document_separator}, or read the file without a separator")
        for document in complete:
            yield document.strip("\n"), position
    yield rest.strip("\n"), position


def column_texts(values: Iterable[Row], path: Path | str, column: str,
                 names: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield (text, position) of rows whose records are the values in a column; None is a row without a text.

    Raises UserError if a value is not a string, or if all are None; then it lists the `names` of the columns.
    """
    n_rows = n_missing = 0
    for place, value, position in values:
        n_rows += 1
        if isinstance(value, str):
            yield clean_text(value), position
        elif value is None:
            n_missing += 1
        else:
            raise UserError(f"{path}, {place}: {column} is {json_kind(value)}, not text: pass the column with the text "
                            "as --data.column")
    if n_rows and n_missing == n_rows:
        raise UserError(f"{path}: no row has a text in the column {column}: pass another --data.column, of "
                        f"{', '.join(dict.fromkeys(names))}")
    if n_missing:
        print_once(f"{path}: skipped {n_missing:,} of {n_rows:,} rows, which have no {column}")
