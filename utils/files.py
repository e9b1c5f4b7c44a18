"""Files that are written whole or not at all."""

import contextlib
import os
import time

from utils.errors import UserError


@contextlib.contextmanager
def replacing(path):
    """Open a file (binary) that takes the name `path` when all is written; a failure leaves what was there.

    Raises UserError if it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        take_name(partial, path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}. Make room, or use a folder of your own") from None
    finally:
        if partial.is_file():
            partial.unlink()


def take_name(partial, path):
    """Rename a file to a path, which is replaced. On Windows a program that reads what is there, such as a virus
    scanner, forbids that for a moment."""
    for wait in (0.1, 0.3, 1.0):
        try:
            return os.replace(partial, path)
        except PermissionError:
            time.sleep(wait)
    os.replace(partial, path)
