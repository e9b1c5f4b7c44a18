"""Error messages of one line, without a traceback, for everything that a user can fix."""

import argparse
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from utils.printable import one_line
from utils.streams import discard, prepare_streams

CLOSED_PIPE = {errno.EPIPE, errno.EINVAL} if os.name == "nt" else {errno.EPIPE}


class UserError(Exception):
    """An error that the user can fix. The message says in one line what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class if it has no message."""
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def check_numbers(settings: object, positive: Iterable[str] = (), not_negative: Iterable[str] = ()) -> None:
    """Raise UserError if one of the named attributes of `settings` is too small or NaN; None is valid."""
    for name in positive:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise UserError(f"{name} cannot be {value}: it must be > 0")
    for name in not_negative:
        value = getattr(settings, name)
        if value is not None and not value >= 0:
            raise UserError(f"{name} cannot be {value}: it must be >= 0")


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UserError, and whose help keeps the line breaks of its description."""

    def __init__(self, description: str | None = None, **more: Any):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help shows all options)")


def command(main: Callable[..., object]) -> Callable[..., object]:
    """Decorate the `main` of a script so that an error that the user can fix prints one line, with exit code 2.

    Ctrl-C exits with code 130. If the reader of the output, such as `head`, closes the pipe, the script exits silently.
    """

    @functools.wraps(main)
    def run(*args: Any, **kwargs: Any) -> object:
        prepare_streams()
        try:
            try:
                return main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # so that errors of the last output are handled here
        except UserError as error:
            fail(error)
        except KeyboardInterrupt:
            sys.exit(130)
        except OSError as error:
            if error.filename is not None:
                fail(f"{error.filename}: {error.strerror}. Give another path")
            if error.errno not in CLOSED_PIPE | {errno.ENOSPC}:
                raise
            discard(sys.stdout)
            if error.errno == errno.ENOSPC:
                fail(f"cannot write the output: {error.strerror}. Free some space")

    return run


def fail(message: object) -> NoReturn:
    print(f"error: {one_line(str(message))}", file=sys.stderr)
    sys.exit(2)
