"""What is derived from a corpus, such as its tokens: built once, and kept in `prepared/` beside the text.

It is called NAME-KEY and a suffix, where KEY is a hash of the corpus's identity (paths, sizes and modification times of
its files) and a description of what is derived. NAME-KEY.source.json records the identity: it tells what was derived
from an earlier version of the same files, and can be removed.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError
from utils.files import replacing

VERSION = 1  # another one derives everything again
FALLBACK = Path(__file__).parent / "prepared"  # if the folder of the text is read-only
MAX_NAME_BYTES = 200  # of the 255 of a file name, so that the longest suffix fits
RECORD = ".source.json"


def derive(corpus, description, suffix, build, is_complete=Path.exists):
    """The path of something derived from a corpus, which `build(path)` creates unless it exists.

    `description` is JSON; another one, or a text that has changed, is another path. Processes that want the same thing
    at once wait for the first one. Raises UserError if nothing can be written.
    """
    identity = json.loads(json.dumps(corpus.identity()))  # as JSON reads it back, with lists for tuples
    name = f"{short_name(corpus.name)}-{cache_key(identity, description)}"
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


def short_name(name):
    """A name of at most MAX_NAME_BYTES bytes."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= MAX_NAME_BYTES else encoded[:MAX_NAME_BYTES].decode(errors="ignore")


def cache_key(identity, description):
    """A hash of 12 characters that changes with the text and with what is derived from it."""
    parts = json.dumps([VERSION, identity, description], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


def cache_folder(corpus, name, is_complete):
    """The folder that contains something complete of this name, else the first that can be written. Raises UserError.
    """
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


def remove_stale(folder, identity):
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


def without_numbers(identity):
    """An identity without sizes and times: it stays the same when the content of the files changes."""
    return json.loads(json.dumps(identity), parse_int=lambda number: None)
