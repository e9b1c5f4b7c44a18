"""What the user can mend is one line, never a traceback."""

import functools
import sys


class UserError(Exception):
    """What the user can mend: what is wrong, where, and what to do, in one line."""


def check_numbers(settings, positive=(), not_negative=()):
    """Raise UserError if one of these fields is too small. None, where a field may be that, is not looked at."""
    for name in (*positive, *not_negative):
        value = getattr(settings, name)
        if value is not None and not (value > 0 or value == 0 and name in not_negative):
            raise UserError(f"{name} cannot be {value}: give a number above zero{', or zero' * (name in not_negative)}")


def command(main):
    """Decorate the `main` of a script: a UserError ends it with one line and exit code 2, Ctrl-C with 130."""

    @functools.wraps(main)
    def run(*args, **kwargs):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # a Windows console may lack some of a text's characters
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            sys.exit(130)

    return run
