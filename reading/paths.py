"""The files that a path names: one file, those in a folder, or a list of both."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from reading.blocks import byte_blocks
from utils.errors import UserError
from utils.printable import print_once

Paths = str | Path | list[str] | list[Path]

IN_FOLDERS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")


def as_list(path: Paths) -> list[str] | list[Path]:
    """Return a list of paths, also for one path."""
    return [path] if isinstance(path, str | Path) else path


def list_files(path: Paths, suffixes: Iterable[str] = IN_FOLDERS) -> list[Path]:
    """Return the files that `path` names: a file, those in a folder with one of `suffixes`, or a list of both.

    Raises UserError if there is no file, or one cannot be read.
    """
    files = []
    for given in map(Path, as_list(path)):
        if os.path.isdir(given):  # unlike Path.is_dir, without an exception for an unreadable parent
            files += files_in(given, suffixes)
        else:
            next(byte_blocks(given, 1))  # raises UserError if it cannot be read
            files.append(given)
    if not files:
        raise UserError("no file is given: pass at least one text file as --data.path")
    return files


def files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the files with one of `suffixes` in a folder and its subfolders, sorted, except hidden ones.

    Raises UserError if there are none, or if the folder cannot be read or contains token ids.
    """
    found, hidden = [], []
    for parent, _, names in os.walk(folder, onerror=fail_to_list):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() not in suffixes or not os.path.isfile(path):
                continue
            if any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts):
                hidden.append(path)
            else:
                found.append(path)
    for split, other in (("train", "val"), ("val", "train")):
        if (folder / f"{split}.bin").exists():
            raise UserError(f"{folder} holds {split}.bin, but no {other}.bin: both are needed for prepared tokens")
    if hidden:
        print_once(f"{folder}: skipped {len(hidden):,} hidden files, such as {min(hidden)}")
    if not found:
        raise UserError(f"{folder} contains no {', '.join(suffixes)} file: pass another folder")
    return sorted(found)


def fail_to_list(error: OSError) -> NoReturn:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}. Check its permissions") from None
