"""Errors that users can fix are one line, never a traceback."""

import argparse
import errno
import functools
import os
import sys

from utils.printable import one_line
from utils.streams import discard, prepare_streams

CLOSED_PIPE = {errno.EPIPE, errno.EINVAL} if os.name == "nt" else {errno.EPIPE}


class UserError(Exception):
    """An error the user can fix: what is wrong, where, and what to do, in one line."""


def first_line(error):
    """The first line of the message of an exception, or its class if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_numbers(settings, positive=(), not_negative=()):
    """Raise UserError if one of these attributes is too small or NaN; None is valid."""
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

    def __init__(self, description=None, **more):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message):
        raise UserError(f"{message} (--help shows all options)")


def command(main):
    """Decorate the `main` of a script: errors the user can fix end it with one line and exit code 2.

    Ctrl-C ends it with exit code 130, and a reader of its output that has read enough, such as `head`, silently.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        prepare_streams()
        try:
            try:
                return main(*args, **kwargs)
            finally:
                sys.stdout.flush()  # errors of the last output are handled here, too
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


def fail(message):
    print(f"error: {one_line(str(message))}", file=sys.stderr)
    sys.exit(2)
