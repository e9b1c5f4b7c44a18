"""Sizes of dtypes and units of memory."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
KIB, MIB, GIB = 2**10, 2**20, 2**30


def readable(size):
    """Format a number of bytes.

    >>> readable(3 * 2**29)
    '1.50 GiB'
    """
    unit, name = next(((unit, name) for unit, name in ((GIB, "GiB"), (MIB, "MiB")) if size >= unit), (KIB, "KiB"))
    return f"{size / unit:,.2f} {name}"
