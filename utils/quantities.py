"""Numbers and sizes: on a command line, for argparse (1,000,000, 300B, 8GiB), and in a message (1 step)."""

import argparse
import re
from decimal import Decimal

from utils.printable import one_line

SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


def quantity(n: int, noun: str) -> str:
    """Return a number with its noun, which is given in the plural.

    >>> quantity(1, "steps")
    '1 step'
    >>> quantity(2000, "steps")
    '2,000 steps'
    """
    if n == 1:
        noun = noun.removesuffix("s")
    return f"{n:,} {noun}"


def parse_int(text: str) -> int:
    number = parse_number(text)
    if abs(number) >= 2**63 or number != int(number):
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)} is not an integer below 2^63")
    return int(number)


def parse_float(text: str) -> float:
    return float(parse_number(text))


def parse_positive(text: str) -> float:
    number = parse_float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)} is out of range: give a number > 0")
    return number


def parse_bytes(text: str) -> int:
    """Return the bytes in a text such as 8GiB or 24GB."""
    number, unit = re.fullmatch(r"(.*?)\s*([a-z]*)", text.strip(), re.IGNORECASE | re.DOTALL).groups()
    if unit.lower() not in UNITS:
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)!r} needs a unit of memory, such as 8GiB or 24GB")
    size = parse_number(number) * UNITS[unit.lower()]
    if not 1 <= size < 2**63:
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)} is out of range: give a size > 0 and below 2^63 bytes")
    return int(size)


def parse_number(text: str) -> Decimal:
    """Return the number in a text such as 1,000,000, 2e14, 300B or 1.5k."""
    match = re.fullmatch(r"(-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)[0-9.e+-]*)([KMBT]?)", text.strip(), re.IGNORECASE)
    try:
        return Decimal(match[1].replace(",", "")) * SUFFIXES[match[2].upper()]
    except (TypeError, ArithmeticError):  # no match; not a number, or beyond what Decimal can hold
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)} is not a number such as 1,000,000 or 300B") from None
