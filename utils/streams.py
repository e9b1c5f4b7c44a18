"""Standard input, output and error, made robust against closed streams, closed pipes and full disks."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


def prepare_streams() -> None:
    """Reopen closed standard streams, and make every character printable.

    Streams that are closed at the start (cron, pythonw, `>&-`) are connected to the null device. Output is UTF-8,
    except to a terminal with another encoding; characters that cannot be encoded are replaced.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # in this order, each gets its own descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a notebook has its own classes
            encoding = stream.encoding if stream.isatty() else "utf-8"
            stream.reconfigure(encoding=encoding, errors="replace")  # together: `encoding` alone resets `errors`


def discard(stream: TextIO) -> None:
    """Redirect a stream, including what it has buffered, to the null device."""
    with open(os.devnull, "wb") as null:
        os.dup2(null.fileno(), stream.fileno())


class OptionalOutput:
    """A stream that discards its output once that can no longer be written."""

    def __init__(self, stream: TextIO, name: str):
        self.stream, self.name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> None:
        try:
            self.stream.write(text)
        except OSError as error:
            self.drop(error)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self.drop(error)

    def drop(self, error: OSError) -> None:
        discard(self.stream)
        print(f"{self.name} cannot be written ({error.strerror}): continuing without it", file=sys.stderr)


@contextlib.contextmanager
def optional_output() -> Iterator[None]:
    """Return a context in which the program continues if its output cannot be written.

    This happens if the reader of a pipe has exited, the terminal has been closed, or the disk is full.
    """
    output = OptionalOutput(sys.stdout, "standard output")
    errors = OptionalOutput(sys.stderr, "standard error")
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            yield
        finally:
            output.flush()
