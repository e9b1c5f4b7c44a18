"""The tokens of a text: train.bin and val.bin, written once and opened by every later run."""

import dataclasses
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from data.cache import cached_file
from data.corpora import Corpus, SplitCorpus, open_corpus
from data.pieces import Piece
from data.token_files import DTYPES, SPLITS, Prepared, is_prepared, open_prepared, token_dtype, token_files_in
from reading.options import DEFAULTS, ReadOptions
from reading.paths import Paths
from tokenization.base import Tokenizer
from tokenization.bpe import MAX_BYTES
from tokenization.load import load_tokenizer, train_tokenizer
from utils.errors import UserError
from utils.files import replacing

BATCH = 1 << 20  # about how many characters are encoded at once
SAVE_SECONDS = 5


def open_tokens(path: Paths, options: ReadOptions = DEFAULTS, tokenizer: Tokenizer | str | Path = "char",
                vocab_size: int = 20_000, max_bytes: int = MAX_BYTES, dtype: str | None = None,
                val_path: Paths | None = None) -> Prepared:
    """Return the Prepared tokens of a text, or of a folder that contains train.bin and val.bin.

    `path` and `options` are as for `open_corpus`. With `val_path`, all of `path` is for training and all of `val_path`,
    another text, for validation. `dtype` is the format of a folder's train.bin and val.bin, as for `open_prepared`.

    `tokenizer` is an object, `char` (the characters of the text), `bpe` (a BPE with `vocab_size` tokens, trained on at
    most `max_bytes` of the text) or what `load_tokenizer` takes. A folder that contains its tokenizer needs none.
    Raises UserError.
    """
    built_from_text = tokenizer in ("char", "bpe")
    if isinstance(tokenizer, str | Path) and not built_from_text:
        tokenizer = load_tokenizer(tokenizer)
    if isinstance(path, str | Path) and token_files_in(path):
        if val_path is not None:
            raise UserError(f"{path} contains tokens, and val.bin among them: leave out val_path")
        return open_prepared(path, None if built_from_text else tokenizer, dtype)
    if dtype is not None:
        raise UserError(f"dtype is for a folder with train.bin and val.bin, and {path} is a text: leave it out")
    corpus = open_corpus(path, options)
    if val_path is not None:
        corpus = SplitCorpus(corpus, open_corpus(val_path, options))
    if built_from_text:
        tokenizer = build_tokenizer(corpus, tokenizer, vocab_size, max_bytes, path)
    return prepare(corpus, tokenizer)


def build_tokenizer(corpus: Corpus, kind: str, vocab_size: int, max_bytes: int,
                    where: Paths = "the text") -> Tokenizer:
    """Return the `char` or `bpe` tokenizer of a corpus, kept for later runs. Raises UserError, which names `where`."""

    def build(path: Path) -> None:
        texts = (piece.text for piece in pieces_with_progress(corpus, "reading the text"))
        train_tokenizer(texts, kind, vocab_size, max_bytes, where).save(path)

    description = {"kind": kind}
    if kind == "bpe":
        description |= {"vocab_size": vocab_size, "max_bytes": max_bytes}
    return load_tokenizer(cached_file(corpus, description, ".tokenizer.json", build))


def prepare(corpus: Corpus, tokenizer: Tokenizer) -> Prepared:
    """Return the Prepared tokens of a corpus, kept for later runs.

    An interrupted preparation resumes. Memory does not grow with the text. Raises UserError.
    """

    def build(folder: Path) -> None:
        partial = folder.with_name(f"{folder.name}.partial")
        try:
            partial.mkdir(exist_ok=True)
            progress = write_tokens(corpus, tokenizer, partial)
            tokenizer.save(partial / "tokenizer.json")
            if folder.exists():  # without train.bin or val.bin
                shutil.rmtree(folder)
            os.replace(partial, folder)
        except OSError as error:
            raise UserError(f"cannot write {partial}: {error.strerror}. Free some space and run the command again: it "
                            "resumes") from None
        print(f"prepared: {progress.characters:,} characters as {progress.train:,} tokens for training and "
              f"{progress.val:,} for validation, in {folder}")

    folder = cached_file(corpus, tokenizer.to_dict(), "", build, is_prepared)
    dtype = token_dtype(tokenizer.vocab_size)
    return dataclasses.replace(open_prepared(folder, dtype=dtype), title=corpus.title())


# ---- Writing ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class WriteProgress:
    """How much of a corpus has been written, as saved in done.json. `train` and `val` count tokens."""

    pieces: int = 0
    characters: int = 0
    train: int = 0
    val: int = 0


def write_tokens(corpus: Corpus, tokenizer: Tokenizer, folder: Path) -> WriteProgress:
    """Write train.bin and val.bin, resuming from the progress saved in the folder. Return the progress at the end."""
    itemsize = np.dtype(DTYPES[token_dtype(tokenizer.vocab_size)]).itemsize
    progress = read_progress(folder, itemsize)
    if progress.pieces:
        print(f"resuming in {folder}: {progress.characters:,} characters are done")
    with open(folder / "train.bin", "ab") as train, open(folder / "val.bin", "ab") as val:
        train.truncate(progress.train * itemsize)  # what follows the last save is written again
        val.truncate(progress.val * itemsize)
        saved_at = time.monotonic()
        pieces = pieces_with_progress(corpus, "preparing", progress.pieces)
        for batch, ids in encode_batches(batches(pieces), tokenizer):
            train.write(ids["train"].tobytes())
            val.write(ids["val"].tobytes())
            progress.pieces += len(batch)
            progress.characters += sum(len(piece.text) for piece in batch)
            progress.train += len(ids["train"])
            progress.val += len(ids["val"])
            if time.monotonic() - saved_at > SAVE_SECONDS:
                save_progress(progress, folder, train, val)
                saved_at = time.monotonic()
        save_progress(progress, folder, train, val)
    return progress


def read_progress(folder: Path, itemsize: int) -> WriteProgress:
    """Return the progress saved in a folder; none if it is unreadable, or if the files are shorter than it claims."""
    try:
        saved = json.loads((folder / "done.json").read_text(encoding="utf-8"))
        progress = WriteProgress(**{field.name: saved[field.name] for field in dataclasses.fields(WriteProgress)})
        written = {split: (folder / f"{split}.bin").stat().st_size // itemsize for split in SPLITS}
    except (OSError, ValueError, TypeError, LookupError, RecursionError):
        return WriteProgress()
    counts = vars(progress)
    is_valid = all(type(count) is int and count >= 0 for count in counts.values())
    if is_valid and all(counts[split] <= written[split] for split in SPLITS):
        return progress
    return WriteProgress()


def save_progress(progress: WriteProgress, folder: Path, *files: BinaryIO) -> None:
    """Save the progress, once the files are on the disk."""
    for file in files:
        file.flush()
        os.fsync(file.fileno())
    with replacing(folder / "done.json") as file:
        file.write(json.dumps(vars(progress)).encode())


# ---- Encoding --------------------------------------------------------------------------------------------------------


def pieces_with_progress(corpus: Corpus, description: str, n_done: int = 0) -> Iterator[Piece]:
    """Yield the pieces of a corpus except the first `n_done`, showing a progress bar."""
    with tqdm(total=corpus.size, desc=description, unit="B", unit_scale=True, delay=2) as bar:
        for piece in islice(corpus.pieces(), n_done, None):
            bar.update(piece.position - bar.n)
            yield piece


def batches(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield lists of pieces with BATCH characters or a little more."""
    batch, length = [], 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece.text)
        if length >= BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def encode_batches(batches: Iterable[list[Piece]],
                   tokenizer: Tokenizer) -> Iterator[tuple[list[Piece], dict[str, np.ndarray]]]:
    """Yield (batch, result of `encode_batch`), in order.

    The tokenizer encodes on all cores, but converting its result to an array takes one. So that the others do not wait,
    two batches are encoded at a time.
    """
    with ThreadPoolExecutor(2) as pool:
        pending = deque()
        for batch in batches:
            pending.append((batch, pool.submit(encode_batch, tokenizer, batch)))
            if len(pending) > 2:
                batch, ids = pending.popleft()
                yield batch, ids.result()
        for batch, ids in pending:
            yield batch, ids.result()


def encode_batch(tokenizer: Tokenizer, batch: list[Piece]) -> dict[str, np.ndarray]:
    """Return the token ids of a list of pieces, (N), for each split.

    A document is followed by the token for its end, if the tokenizer has one.
    """
    ids = {split: [] for split in SPLITS}
    for piece, tokens in zip(batch, tokenizer.encode_batch([piece.text for piece in batch]), strict=True):
        ids[piece.split] += tokens
        if piece.ends and tokenizer.end_of_text is not None:
            ids[piece.split].append(tokenizer.end_of_text)
    dtype = DTYPES[token_dtype(tokenizer.vocab_size)]
    return {split: np.array(tokens, dtype) for split, tokens in ids.items()}
