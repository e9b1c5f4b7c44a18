"""Text sources: local files and Hugging Face datasets.

A corpus streams pieces of text, each for the training or the validation split. In a .txt file, the first 90% of the
characters are for training. Of the rows of a table (.jsonl, .csv, .tsv, .parquet), the items of a .json file, the rows
of a Hugging Face dataset and the documents of a .txt file with separators, every tenth is for validation; in a large
corpus fewer are, about 10 MB at most.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from data.documents import column_texts, separated_documents, table_documents
from data.known_texts import OWN_TEXT, fetch_if_known, title_of
from data.pieces import Piece, row_pieces, text_pieces
from reading.blocks import text_blocks
from reading.encodings import inspect
from reading.options import DEFAULTS, ReadOptions
from reading.paths import Paths, as_list, list_files
from reading.rows import Row
from reading.tables import is_table, text_column
from reading.text_files import encoding_of, read_text
from utils.download import answering_endpoint
from utils.errors import UserError, first_line
from utils.files import PROJECT, stamp

if TYPE_CHECKING:
    from datasets import Dataset

HUB = "hf:"


# ---- Opening a corpus ------------------------------------------------------------------------------------------------


class Corpus:
    """A text source with a `name`, a `size` in bytes, and a `folder`, in which `prepared/` is created."""

    name: str
    size: int
    folder: Path

    def identity(self) -> dict[str, Any]:
        """Return what changes whenever the text may have changed."""
        raise NotImplementedError

    def title(self) -> str:
        """Return the title of the text, if this project recognizes it."""
        return OWN_TEXT

    def pieces(self) -> Iterator[Piece]:
        """Yield every Piece, the same ones on each call. Raises UserError if a file is malformed."""
        raise NotImplementedError


def open_corpus(path: Paths, options: ReadOptions = DEFAULTS) -> Corpus:
    """Open the corpus at `path`: a file, a folder, a list of them, or `hf:NAME` or `hf:NAME:CONFIG` on Hugging Face.

    A folder means all .txt, .jsonl, .csv, .tsv and .parquet files in it and its subfolders, except hidden ones. A .json
    file is a list of documents. A file with any other suffix is read as text. Known texts are downloaded if they do not
    exist. Raises UserError.
    """
    if isinstance(path, str | Path) and str(path).startswith(HUB):
        return HubDataset(str(path).removeprefix(HUB), options)
    for name in as_list(path):
        fetch_if_known(Path(name))
    files = list_files(path)
    for file in files:
        if file.name in ("train.bin", "val.bin"):
            raise UserError(f"{file} holds token ids, not text: pass its folder, with train.bin and val.bin in it")
    first = Path(path if isinstance(path, str | Path) else files[0])
    return Files(first.parent, first.resolve().stem, files, options)


class SplitCorpus(Corpus):
    """A corpus whose training and validation splits are all of two others."""

    def __init__(self, train: Corpus, val: Corpus):
        self.train, self.val = train, val
        self.folder, self.name, self.size = train.folder, train.name, train.size + val.size

    def identity(self) -> dict[str, Any]:
        return {"train": self.train.identity(), "val": self.val.identity()}

    def pieces(self) -> Iterator[Piece]:
        for piece in self.train.pieces():
            yield piece._replace(split="train")
        for piece in self.val.pieces():
            yield piece._replace(split="val", position=self.train.size + piece.position)


# ---- Files -----------------------------------------------------------------------------------------------------------


class Files(Corpus):
    """Text files, tables and lists of documents."""

    def __init__(self, folder: Path, name: str, files: list[Path], options: ReadOptions = DEFAULTS):
        self.folder, self.name, self.options = folder, name, options
        has_documents = {file: is_table(file) or options.document_separator is not None for file in files}
        self.whole = [file for file in files if not has_documents[file]]
        self.with_documents = [file for file in files if has_documents[file]]
        self.size = bytes_in(files)

    def identity(self) -> dict[str, Any]:
        return {"files": [stamp(file) for file in self.whole + self.with_documents], **self.options.identity()}

    def title(self) -> str:
        if self.with_documents or len(self.whole) > 1 or self.size > 2_000_000:  # larger than every known text
            return super().title()
        return title_of(read_text(self.whole[0], self.options.encoding))

    def pieces(self) -> Iterator[Piece]:
        several, n_before = len(self.whole + self.with_documents) > 1, 0
        for file in self.whole:
            encoding = encoding_of(file, self.options.encoding)
            _, length = inspect(file, self.options.encoding)
            yield from text_pieces(shift(text_blocks(file, encoding), n_before), length, several)
            n_before += file.stat().st_size
        yield from row_pieces(self.documents(n_before), bytes_in(self.with_documents))

    def documents(self, n_before: int) -> Iterator[tuple[str, int]]:
        """Yield (text, position) of the documents of all files, where `n_before` bytes precede them."""
        for file in self.with_documents:
            read = table_documents if is_table(file) else separated_documents
            yield from shift(read(file, self.options), n_before)
            n_before += file.stat().st_size


def bytes_in(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def shift(texts: Iterator[tuple[str, int]], n_before: int) -> Iterator[tuple[str, int]]:
    """Turn positions in a file into positions in the corpus, where `n_before` bytes precede the file."""
    return ((text, n_before + position) for text, position in texts)


# ---- Hugging Face ----------------------------------------------------------------------------------------------------


class HubDataset(Corpus):
    """The training split of a Hugging Face dataset: `NAME`, `NAME:CONFIG`, or a local folder with the same layout.

    The `datasets` library caches it. Unless HF_ENDPOINT is set, `utils.download.hub_endpoints` are tried in order.
    """

    def __init__(self, address: str, options: ReadOptions = DEFAULTS):
        is_local = Path(address).is_dir()
        name, _, config = (address, "", "") if is_local else address.partition(":")
        if not is_local and not {"HF_ENDPOINT", "HF_HUB_OFFLINE"} & os.environ.keys():
            endpoint = answering_endpoint(f"api/datasets/{name}")
            if endpoint:  # without one, the dataset may still be in the cache
                os.environ["HF_ENDPOINT"] = endpoint  # the library reads it on import
        try:
            import datasets
        except ImportError:
            raise UserError(f"{HUB}{address} requires the datasets library: pip install datasets") from None
        self.folder, self.name, self.options = PROJECT / "data", Path(name).resolve().name, options
        self.rows = load_split(datasets, name, config or None)
        self.column = text_column([self.rows.column_names], options.column, f"{HUB}{address}")
        self.size = self.rows.data.nbytes

    def identity(self) -> dict[str, Any]:
        return {"files": [stamp(Path(file["filename"])) for file in self.rows.cache_files],
                **self.options.identity() | {"column": self.column}}

    def pieces(self) -> Iterator[Piece]:
        documents = column_texts(self.values(), f"{HUB}{self.name}", self.column, self.rows.column_names)
        return row_pieces(documents, self.size)

    def values(self) -> Iterator[Row]:
        """Yield the rows, whose records are the values in the column; positions are estimated."""
        n_read = 0
        for batch in self.rows.select_columns([self.column]).iter(1000):
            for value in batch[self.column]:
                n_read += 1
                yield Row(f"row {n_read}", value, self.size * n_read // len(self.rows))


def load_split(datasets: ModuleType, name: str, config: str | None) -> "Dataset":
    """Load the training split with the `datasets` library. Raises UserError for any error in it."""
    try:
        try:
            return datasets.load_dataset(name, config, split="train")
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return datasets.load_dataset(name, config, split="train", revision="refs/convert/parquet")
    except Exception as error:  # loading has many stages, each with errors of its own
        raise UserError(f"{HUB}{name} could not be loaded ({first_line(error)}): check the name and the network "
                        "(HF_ENDPOINT selects a mirror), or pass a folder with its .parquet files as "
                        "--data.path") from None
