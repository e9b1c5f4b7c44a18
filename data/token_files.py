"""Folders of token ids: train.bin and val.bin, prepared here or by nanoGPT (https://github.com/karpathy/nanoGPT).

The files contain nothing but little-endian ids: uint16 or, for a vocabulary above 65,536, uint32. Other programs also
write int64.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.known_texts import OWN_TEXT
from tokenization.base import Tokenizer
from tokenization.load import load_from_folder
from utils.errors import UserError

SPLITS = ("train", "val")
DTYPES = {"uint16": "<u2", "uint32": "<u4", "int64": "<i8"}
WIDTH_SAMPLE = 1 << 16  # tokens


@dataclass(frozen=True)
class Prepared:
    """A text as token ids."""

    folder: Path
    tokenizer: Tokenizer
    train: np.ndarray
    """Memory-mapped, (N), of one of DTYPES; so is `val`."""
    val: np.ndarray
    title: str = OWN_TEXT


def token_dtype(vocab_size: int) -> str:
    """Return the name of the dtype in which ids of a vocabulary of this size are stored."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def token_files_in(folder: str | Path) -> list[Path]:
    """Return train.bin and val.bin of a folder, if they exist."""
    paths = [Path(folder) / f"{split}.bin" for split in SPLITS]
    return [path for path in paths if path.is_file()]


def is_prepared(folder: Path) -> bool:
    """Return whether a folder contains both train.bin and val.bin."""
    return len(token_files_in(folder)) == len(SPLITS)


def open_prepared(folder: str | Path, tokenizer: Tokenizer | None = None, dtype: str | None = None) -> Prepared:
    """Return the Prepared tokens in a folder with train.bin and val.bin.

    `tokenizer` is needed if the folder contains none; `dtype` is one of DTYPES, None for the one that fits the
    vocabulary. Raises UserError if a file is missing, or does not fit the tokenizer or the dtype.
    """
    folder = Path(folder)
    for split in SPLITS:
        if not (folder / f"{split}.bin").is_file():
            raise UserError(f"{folder} has no {split}.bin: a folder of tokens needs train.bin and val.bin. Create it "
                            "again, or pass the text files themselves")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype must be {', '.join(DTYPES)}, got {dtype!r}")
    own_tokenizer = load_from_folder(folder)
    if own_tokenizer is None and tokenizer is None:
        raise UserError(f"{folder} contains no tokenizer.json: name the tokenizer of its tokens with --data.tokenizer")
    if own_tokenizer and tokenizer and own_tokenizer.to_dict() != tokenizer.to_dict():
        raise UserError(f"{folder} was prepared with another tokenizer than the one given: prepare the text again")
    tokenizer = own_tokenizer or tokenizer
    train, val = (read_tokens(folder / f"{split}.bin", tokenizer.vocab_size, dtype) for split in SPLITS)
    return Prepared(folder, tokenizer, train, val)


def read_tokens(path: Path, vocab_size: int, dtype: str | None = None) -> np.ndarray:
    """Return the ids in a file, memory-mapped, (N). Raises UserError if the vocabulary is too small for them."""
    stored = dtype or token_dtype(vocab_size)
    itemsize, size = np.dtype(DTYPES[stored]).itemsize, path.stat().st_size
    if size % itemsize:
        raise UserError(f"{path} has {size:,} bytes, which is not a multiple of {itemsize}, the size of {stored}: "
                        "name the format with --data.dtype, or create the file again")
    if size == 0:
        return np.zeros(0, DTYPES[stored])  # an empty file cannot be mapped
    tokens = np.asarray(np.memmap(path, DTYPES[stored], "r"))  # slicing a plain array is faster than slicing a memmap
    if dtype is None:
        check_width(path, tokens, stored)
    for token in (tokens.min(), tokens.max()):  # 200 MB take 0.02 seconds, once they are in memory
        if not 0 <= token < vocab_size:
            raise UserError(f"{path} has a token {token}, but its tokenizer has only {vocab_size} tokens: name its "
                            "tokenizer with --data.tokenizer, or its format with --data.dtype")
    return tokens


def check_width(path: Path, tokens: np.ndarray, dtype: str) -> None:
    """Raise UserError if the first tokens (N) look like parts of wider ones: all but the lowest part are 0."""
    for wider in ("int64", "uint32"):
        n_parts = np.dtype(DTYPES[wider]).itemsize // tokens.itemsize
        n_wider = min(len(tokens), WIDTH_SAMPLE) // n_parts
        parts = tokens[: n_wider * n_parts].reshape(n_wider, n_parts)  # little-endian: the lowest part comes first
        if n_parts > 1 and n_wider >= 16 and parts[:, 0].any() and not parts[:, 1:].any():
            raise UserError(f"{path} was read as {dtype}, but looks like {wider}: pass --data.dtype {wider}, or, if it "
                            f"really is {dtype}, --data.dtype {dtype}")
