"""The checkpoints that TensorFlow's Saver writes, without TensorFlow.

NAME.index is a table in the format of LevelDB (https://github.com/google/leveldb/blob/main/doc/table_format.md). Its
keys are the names of the tensors, its values Protocol Buffers: a BundleEntryProto of TensorFlow's tensor_bundle.proto,
which tells where the tensor is in the files NAME.data-00000-of-00001 and so on.
"""

import struct
from math import prod
from pathlib import Path
from typing import NamedTuple

from utils.errors import UserError
from utils.printable import one_line

MAGIC = bytes.fromhex("57fb808b247547db")  # the end of a table
FOOTER = 48  # bytes, with the magic
LARGEST = 1 << 20  # bytes of an index; that of GPT-2 XL has 20 kB
LONGEST = 200  # bytes of a name
FLOAT32 = 1  # in TensorFlow's types.proto
FLOAT = 4  # bytes


class Stored(NamedTuple):
    """Where a tensor of float32 is stored."""

    path: Path
    offset: int
    """In bytes."""
    shape: tuple


def read_bundle(prefix):
    """{name: Stored} of all tensors of the checkpoint whose files start with the path `prefix`. Raises UserError unless
    all of them can be read."""
    path = prefix.with_name(f"{prefix.name}.index")
    if not path.is_file():
        raise UserError(f"there is no file {path}: download it, too")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} has more than {LARGEST:,} bytes, too many for an index: use another model")
    try:
        table = read_table(path.read_bytes())
        n_files = integer(read_message(table.pop("")), 1)
        places = {name: find_tensor(read_message(value)) for name, value in table.items()}
    except (LookupError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{path} is damaged, or not an index that this project reads ({error}): download it "
                        "again") from None
    tensors = {}
    for name, (i, offset, shape) in places.items():
        file = prefix.with_name(f"{prefix.name}.data-{i:05d}-of-{n_files:05d}")
        if not file.is_file():
            raise UserError(f"there is no file {file}: download it, too")
        size, end = file.stat().st_size, offset + FLOAT * prod(shape)
        if end > size:
            raise UserError(f"{file} has {size:,} bytes, but its tensor {one_line(name, LONGEST)} ends at {end:,}: "
                            "download it again")
        tensors[name] = Stored(file, offset, shape)
    return tensors


def find_tensor(entry):
    """(number of the file, offset in bytes, shape) in the fields of a BundleEntryProto. Raises ValueError unless it is
    one piece of float32."""
    dtype, file, offset, size = (integer(entry, number) for number in (1, 3, 4, 5))
    dimensions = read_message(entry[2][0]).get(2, []) if 2 in entry else []
    shape = tuple(integer(read_message(dimension), 1) for dimension in dimensions)
    if dtype != FLOAT32 or size != FLOAT * prod(shape) or 7 in entry:  # 7: slices
        raise ValueError("a tensor that is not one piece of float32")
    return file, offset, shape


class Reader:
    """Reads bytes from a position on, which it advances."""

    def __init__(self, content, position=0):
        self.content, self.position = content, position

    def take(self, size):
        """The next `size` bytes. Raises ValueError if there are fewer."""
        taken = self.content[self.position : self.position + size]
        if len(taken) < size:
            raise ValueError("it ends early")
        self.position += size
        return taken

    def integer(self):
        """An integer >= 0 of any number of bytes, of which each has 7 bits and says whether it is the last."""
        value = 0
        for shift in range(0, 70, 7):
            [byte] = self.take(1)
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("an integer of more than 10 bytes")


def read_message(content):
    """The fields of a Protocol Buffer by number, each a list of its values: integers or bytes. Raises ValueError."""
    fields, reader = {}, Reader(content)
    while reader.position < len(content):
        number, kind = divmod(reader.integer(), 8)
        if kind == 0:
            value = reader.integer()
        elif kind == 2:
            value = reader.take(reader.integer())
        else:
            value = reader.take({1: 8, 5: 4}[kind])
        fields.setdefault(number, []).append(value)
    return fields


def integer(fields, number):
    """The value of a field that is one integer, 0 if it is missing. Raises ValueError."""
    [value] = fields.get(number, [0])
    if not isinstance(value, int):
        raise ValueError(f"field {number} is no integer")
    return value


def read_table(content):
    """{key: value} of a table, the keys as text. Raises ValueError or struct.error."""
    if len(content) < FOOTER or not content.endswith(MAGIC):
        raise ValueError("it does not end as one")
    footer, table = Reader(content, len(content) - FOOTER), {}
    footer.integer(), footer.integer()  # offset and size of a block that has nothing here
    for _, index in read_block(content, footer):
        for key, value in read_block(content, Reader(index)):
            if key.decode() in table:
                raise ValueError("a name twice")
            table[key.decode()] = value
    return table


def read_block(content, handle):
    """Yield (key, value) of the block whose offset and size the Reader `handle` reads. Raises ValueError or
    struct.error."""
    offset, size = handle.integer(), handle.integer()
    block = Reader(content, offset).take(size + 1)
    if block[-1] != 0:
        raise ValueError("it is compressed")
    [n_restarts] = struct.unpack("<I", block[-5:-1])
    end = size - 4 * (n_restarts + 1)
    reader, key = Reader(block), b""
    while reader.position < end:
        shared, more, value_size = reader.integer(), reader.integer(), reader.integer()
        key = key[:shared] + reader.take(more)  # what it shares with the key before is not repeated
        if len(key) > LONGEST:
            raise ValueError("a name that is too long")
        yield key, reader.take(value_size)
