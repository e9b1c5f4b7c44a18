"""From files of any kind of record to parsed records, counted in a DataReport."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from reading.rows import Row
from reading.tables import json_kind
from records.report import DataReport
from utils.errors import UserError

Record = TypeVar("Record")


def parse_records(files: list[Path], read: Callable[[Path], Iterable[Row]], parse: Callable[[dict, str], Record],
                  report: DataReport) -> list[Record]:
    """Return what `parse` makes of the record and the place of each row, where `read` yields the rows of a file.

    A record for which `parse` raises UserError, or that is not an object, is skipped and counted. Raises UserError if
    none is left.
    """
    parsed = []
    for file in files:
        is_only_file = not isinstance(report.path, list) and Path(report.path) == file
        for row in read(file):
            report.n_records += 1
            place = row.place if is_only_file else f"{file}, {row.place}"
            try:
                if not isinstance(row.record, dict):
                    raise UserError(f"it is {json_kind(row.record)}, not an object")
                parsed.append(parse(row.record, place))
            except UserError as reason:
                report.skip(str(reason), place)
    if not parsed:
        raise UserError(f"{report.path} contains no {report.noun}: {report.first_skipped() or 'it is empty'}")
    return parsed
