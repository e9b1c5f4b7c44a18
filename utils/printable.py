"""Text from files, names and models, made safe to print."""

import functools
import re

# C0 and C1 control characters except tab and line feed, bidirectional overrides, and lone surrogates.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escape_controls(text: str) -> str:
    r"""Escape control characters, so that printing `text` cannot move the cursor or change the terminal.

    >>> print(escape_controls("red \x1b[31m, line\nfeed"))
    red \x1b[31m, line
    feed
    """
    return CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str, limit: int = 1000) -> str:
    r"""Return `text` as one printable line of at most `limit` characters; the middle of a longer text is cut.

    >>> one_line("two\nlines")
    'two\\nlines'
    >>> one_line("0123456789abcdef", limit=9)
    '012...def'
    """
    line = escape_controls(text).replace("\n", "\\n").replace("\t", " ")
    if len(line) <= limit:
        return line
    half = (limit - 3) // 2
    return f"{line[:half]}...{line[-half:]}"


@functools.cache
def print_once(message: str) -> None:
    """Print a message about a file, which may be read several times in one run."""
    print(message)
