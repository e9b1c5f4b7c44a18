"""What the user can mend is one line, never a traceback."""

import argparse
import errno
import functools
import os
import sys


class UserError(Exception):
    """What the user can mend: what is wrong, where, and what to do, in one line."""


def check_numbers(settings, positive=(), not_negative=()):
    """Raise UserError if one of these fields is too small. None, where a field may be that, is not looked at."""
    for name in (*positive, *not_negative):
        value = getattr(settings, name)
        if value is not None and not (value > 0 or value == 0 and name in not_negative):
            raise UserError(f"{name} cannot be {value}: give a number above zero{', or zero' * (name in not_negative)}")


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are UserErrors, and whose description is shown in the lines that it has."""

    def __init__(self, description=None, **more):
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **more)

    def error(self, message):
        raise UserError(f"{message} (--help shows all)")


def command(main):
    """Decorate the `main` of a script: a UserError ends it with one line and exit code 2, Ctrl-C with 130.

    A reader that has enough, such as `head`, ends it in silence. What is not shown in a terminal is UTF-8.
    """

    @functools.wraps(main)
    def run(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # a Windows console may lack some of a text's characters
            if not stream.isatty():
                stream.reconfigure(encoding="utf-8")
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)
        except OSError as error:
            if error.filename is not None:
                print(f"error: {error.filename}: {error.strerror}. Give another path", file=sys.stderr)
                sys.exit(2)
            if error.errno not in ((errno.EPIPE, errno.EINVAL) if os.name == "nt" else (errno.EPIPE,)):
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it once more at its end

    return run
