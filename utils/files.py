"""Files and folders that are written completely or not at all, and the lock of a run."""

import contextlib
import errno
import glob
import io
import json
import os
import secrets
import shutil
import time
from pathlib import Path

from filelock import FileLock, Timeout

from utils.errors import UserError

LARGEST_JSON = 1 << 24  # bytes of the JSON file of a model
PROJECT = Path(__file__).resolve().parents[1]  # its folder; defaults do not depend on the working directory
ABANDONED_AFTER = 24 * 3600  # seconds without a write
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # network drives


class OutputFile(io.FileIO):
    """A file that keeps the error of a failed write: torch.save hides it behind a RuntimeError."""

    error = None

    def write(self, data):
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


@contextlib.contextmanager
def replacing(path):
    """Open a binary file that replaces the file `path` once it is complete; after a failure, that one is unchanged.

    Raises UserError if it cannot be written.
    """
    partial, output = partial_path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path)
        output = OutputFile(partial, "x")
        with io.BufferedWriter(output) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        rename(partial, path)
    except OSError as error:
        raise cannot_write(path, error) from None
    except RuntimeError:
        if output is None or output.error is None:
            raise
        raise cannot_write(path, output.error) from None
    finally:
        with contextlib.suppress(OSError):  # already renamed, or never created
            partial.unlink()


def check_writable(path):
    """Raise UserError if `replacing` could not write the file `path`, before the work on its content. Its folder is
    created."""
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise cannot_write(path, error) from None


def partial_path(path):
    """A new name beside the file `path`: two processes may write the same path. Raises UserError if it is a folder."""
    if os.path.isdir(path):  # unlike Path.is_dir, without an exception for a name that is too long
        raise cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def replacing_folder(path):
    """Create an empty folder that replaces the folder `path` once the context ends; after a failure, that one is
    unchanged. If the process is killed between two renames, it has the suffix `.old`, until the next call.

    Raises UserError if it cannot be written.
    """
    token = secrets.token_hex(4)
    partial, old = (path.with_name(f"{path.name}.{token}.{suffix}") for suffix in ("partial", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        restore(path)
        remove_abandoned(path)
        partial.mkdir()
        yield partial
        for file in partial.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        if path.exists():
            rename(path, old)
        try:
            rename(partial, path)
        except OSError:
            if old.exists():
                rename(old, path)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise cannot_write(path, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # already renamed, or never created


def restore(path):
    """Give the folder `path` its name back if a process was killed that was replacing it; if it was killed later,
    remove the one that it had replaced."""
    for old in leftovers(path, "old"):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            rename(old, path)


def remove_abandoned(path):
    """Remove what killed processes left when they were replacing the file or folder `path`."""
    for partial in leftovers(path, "partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED_AFTER:
                if partial.is_dir():
                    shutil.rmtree(partial)
                else:
                    partial.unlink()


def leftovers(path, suffix):
    """Yield what processes that are replacing `path`, or that were killed, have beside it under this suffix."""
    return path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.{suffix}")


def rename(partial, path):
    """Rename a file, replacing `path`. On Windows this fails while a program such as a virus scanner reads `path`."""
    for wait in (0.1, 0.3, 1.0):
        try:
            return os.replace(partial, path)
        except PermissionError:
            time.sleep(wait)
    os.replace(partial, path)


def cannot_write(path, error):
    return UserError(f"cannot write {path}: {error.strerror or error}. Free some space, or choose another folder")


@contextlib.contextmanager
def lock_run(folder):
    """Context in which no other process can use the folder of a run. It is created, and removed again if left empty.

    The operating system releases the lock when the process ends, even if it is killed. A leftover lock file has no
    effect. Raises UserError if another process holds the lock, or if the folder cannot be written.
    """
    path = folder / ".lock"
    lock = FileLock(path, timeout=0)
    new_parent = not folder.parent.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise UserError(f"another process is using the run {folder}: wait until it ends, or choose another name with "
                        "--run NAME") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise cannot_write(folder, error) from None
        print(f"{folder} cannot be locked ({error.strerror}): do not use this run in two processes at once")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes it when it is released
            path.unlink()  # before the release: afterwards it may be the lock of another process
        lock.release()
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
            if new_parent:
                folder.parent.rmdir()


def read_if_there(path):
    """The object in a JSON file of a model, {} if there is no file. Raises UserError."""
    return read_json_object(path) if path.is_file() else {}


def read_json_object(path):
    """The object in a JSON file of a model. Raises UserError."""
    try:
        if not path.is_file():
            raise UserError(f"there is no file {path}: give the folder of a complete model")
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path} has more than {LARGEST_JSON:,} bytes, too many for a configuration: download "
                            "it again")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give the folder of a readable model") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): download it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a JSON object: download it again")
    return found
