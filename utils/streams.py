"""Standard input, output and error, usable however a program is started and whatever happens to their other ends."""

import contextlib
import io
import os
import sys


def prepare_streams():
    """Open the standard streams that are closed, and let no character fail to be printed.

    Closed ones (cron, pythonw, `>&-`) read and write nothing. Output to anything but a terminal is UTF-8.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # this order: each takes its own descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has others
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")  # at once: an encoding alone would reset errors


def discard(stream):
    """Write to nowhere from now on, also what the stream has buffered."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


class OptionalOutput:
    """A stream that drops its output when that cannot be written."""

    def __init__(self, stream, name):
        self.stream, self.name = stream, name

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        try:
            self.stream.write(text)
        except OSError as error:
            self.drop(error)

    def flush(self):
        try:
            self.stream.flush()
        except OSError as error:
            self.drop(error)

    def drop(self, error):
        discard(self.stream)
        print(f"{self.name} cannot be written ({error.strerror}): continuing without it", file=sys.stderr)


@contextlib.contextmanager
def optional_output():
    """Context in which the program continues if its output cannot be written: its reader has ended, the terminal has
    been closed, or the disk is full."""
    output = OptionalOutput(sys.stdout, "standard output")
    errors = OptionalOutput(sys.stderr, "standard error")
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield
        finally:
            output.flush()
