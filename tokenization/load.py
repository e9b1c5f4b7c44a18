"""Tokenizers by name and from files, and the two kinds that can be trained on texts."""

import json
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from tokenization.base import Tokenizer
from tokenization.bpe import MAX_BYTES, BPETokenizer
from tokenization.characters import CharTokenizer, from_library
from tokenization.library import MAX_FILE_BYTES
from tokenization.llama2c import read_tokenizer_bin
from tokenization.meta_pickle import characters_in_meta
from tokenization.sentencepiece_bpe import SentencePieceTokenizer, is_sentencepiece
from utils.download import download, hub_endpoints
from utils.errors import UserError
from utils.files import PROJECT

GPT2_FOLDER = PROJECT / "data" / "gpt2"
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
GPT2_ON_HUB = "openai-community/gpt2/resolve/main"
GPT2_FILES = (  # name at GPT2_URL, name on the Hugging Face hub, sha256
    ("encoder.json", "vocab.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    ("vocab.bpe", "merges.txt", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
)
SOURCES = ("gpt2, a tokenizer.json, llama2.c's tokenizer.bin, or a folder with tokenizer.json, vocab.json and "
           "merges.txt, encoder.json and vocab.bpe, meta.pkl, or tokenizer.bin")
UNREAD = {"tokenizer.model": "SentencePiece", "vocab.txt": "WordPiece"}  # files of tokenizers
KINDS = {tokenizer.kind: tokenizer for tokenizer in (BPETokenizer, SentencePieceTokenizer)}  # and "char"


def train_tokenizer(texts: Iterable[str], kind: str, vocab_size: int = 20_000, max_bytes: int = MAX_BYTES,
                    where: object = "the text") -> Tokenizer:
    """Return the tokenizer of texts: `char`, their characters, or `bpe`, as BPETokenizer.train.

    Raises UserError, which names `where`.
    """
    if kind == "char":
        return CharTokenizer.of_text(chain.from_iterable(texts), where)
    return BPETokenizer.train(texts, vocab_size, max_bytes, where)


# ---- Loading ---------------------------------------------------------------------------------------------------------


def load_tokenizer(source: str | Path) -> Tokenizer:
    """Return the tokenizer of a name or a path: one of SOURCES, or a file that a tokenizer saved. Raises UserError."""
    path = fetch_gpt2() if str(source) == "gpt2" else Path(source)
    if path.suffix == ".pt":
        raise UserError(f"{path} is a checkpoint, which only train.py can take a tokenizer from: use {SOURCES}")
    try:
        tokenizer = load_from_folder(path) if path.is_dir() else load_file(path)
    except OSError as error:
        raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    if tokenizer is None:
        unread = [f" (the {kind} file {name} is not read)" for name, kind in UNREAD.items() if (path / name).is_file()]
        raise UserError(f"{path} contains no tokenizer{''.join(unread)}: use {SOURCES}")
    return tokenizer


def fetch_gpt2() -> Path:
    """Return the folder with GPT-2's encoder.json and vocab.bpe, downloaded on first use. Raises UserError."""
    for name, name_on_hub, sha256 in GPT2_FILES:
        on_hub = [f"{endpoint}/{GPT2_ON_HUB}/{name_on_hub}" for endpoint in hub_endpoints()]
        download([f"{GPT2_URL}/{name}", *on_hub], GPT2_FOLDER / name, sha256)
    return GPT2_FOLDER


def load_from_folder(folder: Path) -> Tokenizer | None:
    """Return the tokenizer in a folder, None if there is none. Raises UserError for damaged files, and OSError."""
    for name in ("tokenizer.json", "meta.pkl", "tokenizer.bin"):
        if (folder / name).is_file():
            return load_file(folder / name)
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        vocab, merges = (folder / name for name in names)
        if vocab.is_file() and merges.is_file():
            return BPETokenizer.from_vocab_and_merges(read_file(vocab), read_file(merges), f"{vocab} with {merges}")
    return None


def load_file(path: Path) -> Tokenizer:
    """Return the tokenizer in a .json, .pkl or .bin file. Raises UserError if it is damaged, and OSError."""
    content = read_file(path)
    if path.suffix == ".bin":
        return read_tokenizer_bin(content, path)
    try:
        if path.suffix == ".pkl":
            return CharTokenizer(characters_in_meta(content), path)
        saved = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged or not a tokenizer ({error}): create it again") from None
    if isinstance(saved, dict) and "kind" in saved:
        return tokenizer_from_dict(saved, path)
    if is_sentencepiece(saved):
        return SentencePieceTokenizer(content, path)
    return from_library(saved, path) or BPETokenizer(content, path)


def read_file(path: Path) -> bytes:
    """Return the content of a tokenizer's file. Raises UserError unless it is a regular file of a sensible size."""
    if not path.is_file():
        raise UserError(f"there is no tokenizer {path}: use {SOURCES}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path} has more than {MAX_FILE_BYTES:,} bytes, too many for a tokenizer: use {SOURCES}")
    return path.read_bytes()


def tokenizer_from_dict(saved: dict[str, Any], where: str | Path = "the tokenizer") -> Tokenizer:
    """Return the tokenizer that `to_dict` returned `saved` for. Raises UserError, which names `where`."""
    kind, special = saved.get("kind"), saved.get("special", False)
    if kind not in ("char", *KINDS):
        raise UserError(f"{where} has a tokenizer of unknown kind {kind!r}: update the project")
    field = "vocab" if kind == "char" else "tokenizer.json"
    if not isinstance(saved.get(field), str):
        raise UserError(f"{where} has a tokenizer of kind {kind!r} without its {field}: the file is damaged")
    if not isinstance(special, bool):
        raise UserError(f"{where} has a tokenizer whose special is neither true nor false: the file is damaged")
    if kind == "char":
        return CharTokenizer(saved[field], where, special)
    return KINDS[kind](saved[field], where)
