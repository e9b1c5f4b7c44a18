"""Atomic writes of files and folders, the lock of a run, and JSON files."""

import contextlib
import errno
import glob
import io
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from utils.errors import UserError

LARGEST_JSON = 1 << 24  # bytes of a model's JSON file
PROJECT = Path(__file__).resolve().parents[1]  # for defaults that do not depend on the working directory
ABANDONED_AFTER = 24 * 3600  # seconds without a write
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}  # of network drives


class OutputFile(io.FileIO):
    """A file that remembers the error of a failed write, which torch.save turns into a RuntimeError."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces the file `path` once it is complete; after a failure, `path` is unchanged.

    Raises UserError if the file cannot be written.
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
        raise write_error(path, error) from None
    except RuntimeError:
        if output is None or output.error is None:
            raise
        raise write_error(path, output.error) from None
    finally:
        with contextlib.suppress(OSError):  # already renamed, or never created
            partial.unlink()


def check_writable(path: Path) -> None:
    """Create the folder of the file `path`. Raises UserError if `replacing` could not write the file."""
    partial = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        partial.unlink()
    except OSError as error:
        raise write_error(path, error) from None


def partial_path(path: Path) -> Path:
    """Return a new name beside the file `path`, as two processes may write it. Raises UserError if it is a folder."""
    if os.path.isdir(path):  # unlike Path.is_dir, does not raise for a name that is too long
        raise write_error(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Create an empty folder that replaces the folder `path` when the context ends; after a failure, `path` is kept.

    If the process is killed between the two renames, the previous folder has the suffix `.old` until the next call.
    Raises UserError if the folder cannot be written.
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
        raise write_error(path, error) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # already renamed, or never created


def restore(path: Path) -> None:
    """Clean up after a killed process: give the previous folder its name back, or remove it if it was replaced."""
    for old in leftovers(path, "old"):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            rename(old, path)


def remove_abandoned(path: Path) -> None:
    """Remove incomplete files and folders that killed processes left when they were replacing `path`."""
    for partial in leftovers(path, "partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED_AFTER:
                if partial.is_dir():
                    shutil.rmtree(partial)
                else:
                    partial.unlink()


def leftovers(path: Path, suffix: str) -> Iterator[Path]:
    """Yield the temporary files and folders of processes that are replacing `path`, or were killed while doing so."""
    return path.parent.glob(f"{glob.escape(path.name)}.{'[0-9a-f]' * 8}.{suffix}")


def rename(partial: Path, path: Path) -> None:
    """Rename a file or folder to `path`, replacing a file.

    Retries, because on Windows this fails while another program, such as a virus scanner, reads `path`.
    """
    for wait in (0.1, 0.3, 1.0):
        try:
            return os.replace(partial, path)
        except PermissionError:
            time.sleep(wait)
    os.replace(partial, path)


def write_error(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}. Free some space, or choose another folder")


@contextlib.contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Lock the folder of a run while the context is open. The folder is created, and removed again if it stays empty.

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
            raise write_error(folder, error) from None
        print(f"{folder} cannot be locked ({error.strerror}): do not use this run in two processes at once")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes it on release
            path.unlink()  # before the release: afterwards it may be the lock of another process
        lock.release()
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
            if new_parent:
                folder.parent.rmdir()


def read_if_there(path: Path) -> dict[str, Any]:
    """Return the object in a model's JSON file, or {} if there is no file. Raises UserError if it is not readable."""
    return read_json_object(path) if path.is_file() else {}


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a model's JSON file. Raises UserError if it is missing, too large or not a JSON object."""
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


def stamp(path: Path) -> tuple[str, int, int]:
    """Return what changes when a file may have changed: its path, its size in bytes and its modification time."""
    status = path.stat()
    return str(path.resolve()), status.st_size, status.st_mtime_ns
