"""The cache of what is derived from a corpus, such as its tokens, in `prepared/` beside the text.

A name is NAME-KEY and a suffix, where KEY is a hash of the corpus's identity (paths, sizes and modification times of
its files) and of a description of what is derived. NAME-KEY.source.json records the identity, so that what belongs to
an earlier version of the same files is recognized and removed.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from data.corpora import Corpus
from utils.errors import UserError
from utils.files import replacing

VERSION = 1  # another one derives everything again
FALLBACK = Path(__file__).parent / "prepared"  # if the folder of the text is read-only
MAX_NAME_BYTES = 200  # of the 255 of a file name, so that the longest suffix fits
RECORD = ".source.json"


def cached_file(corpus: Corpus, description: Any, suffix: str, build: Callable[[Path], None],
                is_complete: Callable[[Path], bool] = Path.exists) -> Path:
    """Return the path of something derived from a corpus, which `build(path)` creates unless it exists.

    `description` is JSON; with another one, or once the text has changed, the path is another one. Processes that need
    the same thing at once wait for the first. Raises UserError if nothing can be written.
    """
    identity = json.loads(json.dumps(corpus.identity()))  # as JSON reads it back, with lists for tuples
    name = corpus.name
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        name = os.fsencode(name)[:MAX_NAME_BYTES].decode(errors="ignore")
    name += f"-{cache_key(identity, description)}"
    folder = cache_folder(corpus, name + suffix, is_complete)
    path, lock = folder / (name + suffix), folder / f"{name}.lock"
    if not is_complete(path):
        with FileLock(lock):
            if not is_complete(path):
                with replacing(folder / (name + RECORD)) as file:
                    file.write(json.dumps(identity).encode())
                build(path)
        remove_stale(folder, identity)
    with contextlib.suppress(OSError):
        lock.unlink()  # whoever still waits for it finds the result
    return path


def cache_key(identity: Any, description: Any) -> str:
    """Return a hash of 12 characters that changes with the text and with what is derived from it."""
    parts = json.dumps([VERSION, identity, description], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


def cache_folder(corpus: Corpus, name: str, is_complete: Callable[[Path], bool]) -> Path:
    """Return the folder in which `name` is complete, else the first that can be written. Raises UserError."""
    folders = [corpus.folder / "prepared", FALLBACK]
    for folder in folders:
        if is_complete(folder / name):
            return folder
    for folder in folders:
        with contextlib.suppress(OSError):
            parent = folder if folder.exists() else folder.parent
            if parent.exists() and not parent.stat().st_mode & 0o222:
                continue  # root can write to a read-only folder, but should not
            folder.mkdir(parents=True, exist_ok=True)
            if os.access(folder, os.W_OK):
                return folder
    raise UserError(f"neither {folders[0]} nor {folders[1]} can be written: copy the text to a folder of your own")


def remove_stale(folder: Path, identity: Any) -> None:
    """Remove what was derived from earlier versions of the same files, unless a process is building it."""
    for record in folder.glob(f"*{RECORD}"):
        with contextlib.suppress(OSError, ValueError, Timeout):
            recorded = json.loads(record.read_text(encoding="utf-8"))
            if recorded == identity or without_numbers(recorded) != without_numbers(identity):
                continue
            name = record.name.removesuffix(RECORD)
            lock = folder / f"{name}.lock"
            with FileLock(lock, timeout=0):
                for path in folder.glob(f"{glob.escape(name)}*"):
                    if path.is_dir():
                        shutil.rmtree(path)
                    elif path not in (lock, record):
                        path.unlink()
            record.unlink()
            lock.unlink()


def without_numbers(identity: Any) -> Any:
    """Return an identity with None for sizes and times: it is the same for all versions of the files."""
    return json.loads(json.dumps(identity), parse_int=lambda number: None)
