"""Reading the checkpoints of TensorFlow's Saver, without TensorFlow.

NAME.index is a table in the format of LevelDB (https://github.com/google/leveldb/blob/main/doc/table_format.md). Its
keys are the names of the tensors; its values are Protocol Buffers, a BundleEntryProto of TensorFlow's
tensor_bundle.proto, with the place of the tensor in the files NAME.data-00000-of-00001 and so on.
"""

import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

from formats.foreign_model import check_exists
from utils.errors import UserError
from utils.printable import one_line

MAGIC = bytes.fromhex("57fb808b247547db")  # the end of a table
FOOTER = 48  # bytes, with the magic
MAX_INDEX_BYTES = 1 << 20  # GPT-2 XL has 20 kB
MAX_NAME_BYTES = 200
FLOAT32 = 1  # in TensorFlow's types.proto
FLOAT_BYTES = 4


class StoredTensor(NamedTuple):
    """The place of a float32 tensor in a file."""

    path: Path
    offset: int
    """In bytes."""
    shape: tuple[int, ...]


class Entry(NamedTuple):
    """A float32 tensor in the index of a checkpoint."""

    file_number: int
    offset: int
    """In bytes."""
    shape: tuple[int, ...]


def read_bundle(prefix: Path) -> dict[str, StoredTensor]:
    """Return the tensors, by name, of the checkpoint whose files start with the path `prefix`.

    Raises UserError unless all of them can be read.
    """
    path = prefix.with_name(f"{prefix.name}.index")
    check_exists(path)
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise UserError(f"{path} has more than {MAX_INDEX_BYTES:,} bytes, too many for an index: use another model")
    try:
        table = read_table(path.read_bytes())
        n_files = integer_field(read_message(table.pop("")), 1)
        entries = {name: read_entry(value) for name, value in table.items()}
    except (LookupError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{path} is damaged, or not an index that this project reads ({error}): download it "
                        "again") from None
    tensors = {}
    for name, (file_number, offset, shape) in entries.items():
        file = prefix.with_name(f"{prefix.name}.data-{file_number:05d}-of-{n_files:05d}")
        check_exists(file)
        size, end = file.stat().st_size, offset + FLOAT_BYTES * prod(shape)
        if end > size:
            raise UserError(f"{file} has {size:,} bytes, but its tensor {one_line(name, MAX_NAME_BYTES)} ends at "
                            f"{end:,}: download it again")
        tensors[name] = StoredTensor(file, offset, shape)
    return tensors


# ---- LevelDB ---------------------------------------------------------------------------------------------------------


class Reader:
    """Reads bytes from a position, which it advances."""

    def __init__(self, content: bytes, position: int = 0):
        self.content, self.position = content, position

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes. Raises ValueError if there are fewer."""
        found = self.content[self.position : self.position + size]
        if len(found) < size:
            raise ValueError("it ends early")
        self.position += size
        return found

    def read_varint(self) -> int:
        """Return an integer >= 0 in base 128: the high bit of each byte is set if another byte follows."""
        value = 0
        for shift in range(0, 70, 7):
            [byte] = self.read(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("an integer of more than 10 bytes")


def read_table(content: bytes) -> dict[str, bytes]:
    """Return {key: value} of a table. Raises ValueError or struct.error."""
    if len(content) < FOOTER or not content.endswith(MAGIC):
        raise ValueError("its footer is missing")
    footer, table = Reader(content, len(content) - FOOTER), {}
    footer.read_varint(), footer.read_varint()  # offset and size of the metaindex block, which is empty
    for _, index in read_block(content, footer):
        for key, value in read_block(content, Reader(index)):
            if key.decode() in table:
                raise ValueError("a name twice")
            table[key.decode()] = value
    return table


def read_block(content: bytes, handle: Reader) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of the block at the offset and size that `handle` reads. Raises ValueError or struct.error."""
    offset, size = handle.read_varint(), handle.read_varint()
    block = Reader(content, offset).read(size + 1)
    if block[-1] != 0:
        raise ValueError("it is compressed")
    [n_restarts] = struct.unpack("<I", block[-5:-1])
    end = size - 4 * (n_restarts + 1)
    reader, key = Reader(block), b""
    while reader.position < end:
        shared, added, value_size = reader.read_varint(), reader.read_varint(), reader.read_varint()
        key = key[:shared] + reader.read(added)  # a key does not repeat what it shares with the previous one
        if len(key) > MAX_NAME_BYTES:
            raise ValueError("a name that is too long")
        yield key, reader.read(value_size)


# ---- Protocol Buffers ------------------------------------------------------------------------------------------------


def read_entry(content: bytes) -> Entry:
    """Return the tensor in a BundleEntryProto. Raises ValueError unless it is one piece of float32."""
    fields = read_message(content)
    dtype, file_number, offset, size = (integer_field(fields, number) for number in (1, 3, 4, 5))
    dimensions = read_message(fields[2][0]).get(2, []) if 2 in fields else []
    shape = tuple(integer_field(read_message(dimension), 1) for dimension in dimensions)
    if dtype != FLOAT32 or size != FLOAT_BYTES * prod(shape) or 7 in fields:  # 7: slices
        raise ValueError("a tensor that is not one piece of float32")
    return Entry(file_number, offset, shape)


def read_message(content: bytes) -> dict[int, list[int | bytes]]:
    """Return the fields of a Protocol Buffer by number, each a list of its values. Raises ValueError."""
    fields, reader = {}, Reader(content)
    while reader.position < len(content):
        number, wire_type = divmod(reader.read_varint(), 8)
        if wire_type == 0:
            value = reader.read_varint()
        elif wire_type == 2:
            value = reader.read(reader.read_varint())
        else:
            value = reader.read({1: 8, 5: 4}[wire_type])
        fields.setdefault(number, []).append(value)
    return fields


def integer_field(fields: dict[int, list[int | bytes]], number: int) -> int:
    """Return the value of a field that is one integer, 0 if it is missing. Raises ValueError."""
    [value] = fields.get(number, [0])
    if not isinstance(value, int):
        raise ValueError(f"field {number} is not an integer")
    return value
