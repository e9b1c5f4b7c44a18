"""What readers of tables yield."""

from typing import Any, NamedTuple


class Row(NamedTuple):
    """A row of a table, or an item of a .json list."""

    place: str
    """Where it is, such as `line 3`."""
    record: Any
    """A dictionary; in a .json list, any value."""
    position: int
    """Number of bytes of the file that have been read so far."""
