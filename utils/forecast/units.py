"""Bytes: of the elements of a dtype, in binary units, and as text."""

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
KIB, MIB, GIB = 2**10, 2**20, 2**30


def format_bytes(size: float) -> str:
    """Format a number of bytes.

    >>> format_bytes(3 * 2**29)
    '1.50 GiB'
    """
    if size >= GIB:
        return f"{size / GIB:,.2f} GiB"
    if size >= MIB:
        return f"{size / MIB:,.2f} MiB"
    return f"{size / KIB:,.2f} KiB"
