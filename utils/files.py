"""Files that are written whole or not at all."""

import contextlib
import os

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
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}. Make room, or use a folder of your own") from None
    finally:
        if partial.is_file():
            partial.unlink()
