"""A corpus to token ids in files, once: train.bin and val.bin.

They hold nothing but ids, little-endian, two bytes each or, for a vocabulary above 65,536, four: the layout of nanoGPT
(https://github.com/karpathy/nanoGPT), whose files can be opened here as they are.

What is prepared lies beside the text, in `prepared/NAME-KEY`, or in `data/prepared` if that folder can't be written.
The key stands for the text (paths, sizes, times of change) and the tokenizer: if one of them changes, so does the key.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from data.corpora import OWN, open_corpus
from data.download import download, hub_endpoints
from data.readers import ReadOptions
from data.tokenizer import MAX_BYTES, BPETokenizer, CharTokenizer, tokenizer_from_dict
from utils.errors import UserError
from utils.files import replacing

VERSION = 1  # another one prepares all texts again
BATCH = 1 << 20  # characters, about, that are encoded at once
SAVE_SECONDS = 5
SPLITS = ("train", "val")
FALLBACK = Path("data/prepared")
GPT2_FOLDER = Path("data/gpt2")
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
GPT2_ON_HUB = "openai-community/gpt2/resolve/main"
GPT2_FILES = (  # what they are called there, what on the Hugging Face hub, sha256
    ("encoder.json", "vocab.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    ("vocab.bpe", "merges.txt", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A corpus as token ids."""

    folder: Path
    tokenizer: object
    train: np.ndarray
    """Memory-mapped, (N), uint16 or uint32; so is `val`."""
    val: np.ndarray
    title: str = OWN
    """What the text is called."""


@dataclasses.dataclass
class Done:
    """How far the preparing of a corpus has come, and at its end what it holds."""

    pieces: int = 0
    position: int = 0
    characters: int = 0
    train: int = 0
    """Tokens; so is `val`."""
    val: int = 0


def open_tokens(path, column=None, tokenizer="char", vocab_size=20_000, max_bytes=MAX_BYTES):
    """The `Prepared` at `path`: a folder that holds train.bin and val.bin, or a text as `open_corpus` takes it.

    `tokenizer` is one, or says which one is meant: `char`, the characters of the text; `bpe`, a BPE of `vocab_size`
    tokens trained on the text, or on `max_bytes` sampled from it if it has more; `gpt2`, GPT-2's; or a file or folder
    that `BPETokenizer.load` reads. A folder that names its own tokenizer needs none. Raises UserError.
    """
    if isinstance(path, str | Path) and is_prepared(path):
        return open_prepared(path, None if tokenizer in ("char", "bpe") else named_tokenizer(tokenizer))
    corpus = open_corpus(path, ReadOptions(column))
    if tokenizer == "char":
        tokenizer = tokenizer_for(corpus, {"kind": "char"},
                                  lambda texts: CharTokenizer.of_text(chain.from_iterable(texts)))
    elif tokenizer == "bpe":
        tokenizer = tokenizer_for(corpus, {"kind": "bpe", "vocab_size": vocab_size, "max_bytes": max_bytes},
                                  lambda texts: BPETokenizer.train(texts, vocab_size, max_bytes))
    return prepare(corpus, named_tokenizer(tokenizer))


def named_tokenizer(tokenizer):
    """The tokenizer that a name or a path means; one that is none of both comes back."""
    if not isinstance(tokenizer, str | Path):
        return tokenizer
    return BPETokenizer.load(fetch_gpt2_tokenizer() if tokenizer == "gpt2" else tokenizer)


def fetch_gpt2_tokenizer():
    """The folder with GPT-2's encoder.json and vocab.bpe. Raises UserError."""
    for name, name_on_hub, sha256 in GPT2_FILES:
        on_hub = [f"{endpoint}/{GPT2_ON_HUB}/{name_on_hub}" for endpoint in hub_endpoints()]
        download([f"{GPT2_URL}/{name}", *on_hub], GPT2_FOLDER / name, sha256)
    return GPT2_FOLDER


def token_dtype(vocab_size):
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def is_prepared(path):
    """Whether a folder holds prepared tokens, ours or nanoGPT's."""
    return all((Path(path) / f"{split}.bin").is_file() for split in SPLITS)


def open_prepared(folder, tokenizer=None):
    """The `Prepared` in a folder; `tokenizer` is for one that has none, as some of nanoGPT's. Raises UserError."""
    folder = Path(folder)
    own = tokenizer_in(folder)
    if own is None and tokenizer is None:
        raise UserError(f"{folder} has no tokenizer.json: say by --data.tokenizer which one its tokens are of")
    if own and tokenizer and own.to_dict() != tokenizer.to_dict():
        raise UserError(f"{folder} was prepared with another tokenizer than the one given: prepare the text anew")
    tokenizer = own or tokenizer
    train, val = (read_tokens(folder / f"{split}.bin", tokenizer.vocab_size) for split in SPLITS)
    return Prepared(folder, tokenizer, train, val)


def tokenizer_in(folder):
    """The tokenizer whose file lies in a folder: tokenizer.json, or nanoGPT's meta.pkl of characters. None: neither."""
    if (path := folder / "tokenizer.json").is_file():
        return read_tokenizer(path)
    if (path := folder / "meta.pkl").is_file():
        try:
            with open(path, "rb") as file:
                characters = NumbersAndText(file).load()["itos"]
            return CharTokenizer("".join(characters[i] for i in range(len(characters))))
        except (pickle.UnpicklingError, EOFError, LookupError, AttributeError, TypeError, ValueError):
            raise UserError(f"{path} is not what nanoGPT's prepare.py writes: remove it, or make it again") from None
    return None


class NumbersAndText(pickle.Unpickler):
    """A pickle of anything more could run code."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError


def read_tokenizer(path):
    """The tokenizer in a file that its `save` made, or in a tokenizer.json of the `tokenizers` library."""
    try:
        content = path.read_text(encoding="utf-8")
        saved = json.loads(content)
        return tokenizer_from_dict(saved) if "kind" in saved else BPETokenizer(content, path)
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path} is damaged: remove it, and it is made again") from None


def read_tokens(path, vocab_size):
    """The ids in a file, memory-mapped. Raises UserError if they can't be those of a vocabulary of this size."""
    dtype, size = token_dtype(vocab_size), path.stat().st_size
    if size % dtype.itemsize:
        raise UserError(f"{path} has {size:,} bytes, no whole number of {dtype.itemsize}-byte tokens: prepare it anew")
    if size == 0:
        return np.zeros(0, dtype)  # nothing cannot be mapped
    tokens = np.asarray(np.memmap(path, dtype, "r"))  # slices of a plain array are made faster than those of a memmap
    highest = max(tokens[:10_000_000].max(), tokens[-10_000_000:].max())
    if highest >= vocab_size:
        raise UserError(f"{path} has a token {highest}, and the tokenizer {vocab_size} of them: they do not belong "
                        "together. Name another one by --data.tokenizer")
    return tokens


def prepare(corpus, tokenizer):
    """The `Prepared` of a corpus, from what was prepared before or, if the text or the tokenizer is new, made now.

    A preparing that was killed goes on where it was. Processes that ask for the same at once wait for the first.
    Memory does not grow with the text. Raises UserError.
    """
    name = f"{corpus.name}-{key_of(corpus, tokenizer.to_dict())}"
    folder = found_or_new(corpus, name)
    if not is_prepared(folder):
        with FileLock(folder.with_name(f"{name}.lock")):
            if not is_prepared(folder):
                make(corpus, tokenizer, folder)
    return dataclasses.replace(open_prepared(folder), title=corpus.title())


def tokenizer_for(corpus, description, build):
    """The tokenizer `build(texts)` of a corpus, kept for the next time.

    `texts` yields the text, all of it, in pieces. `description`, for JSON, says what `build` makes: another one is
    built anew, as is that of a text that changed.
    """
    name = f"{corpus.name}-{key_of(corpus, description)}.tokenizer.json"
    path = found_or_new(corpus, name)
    if not path.exists():
        with FileLock(path.with_name(f"{name}.lock")):
            if not path.exists():
                with progress_bar(corpus, "reading the text") as bar:
                    tokenizer = build(piece.text for piece in followed(corpus.pieces(), bar))
                tokenizer.save(path)
    return read_tokenizer(path)


def key_of(corpus, tokenizer):
    """What changes when the text or the tokenizer does, in 12 characters."""
    parts = json.dumps([VERSION, corpus.identity(), tokenizer], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


def found_or_new(corpus, name):
    """Where something of this name is, or else can be written. Raises UserError."""
    places = [corpus.folder / "prepared", FALLBACK]
    for place in places:
        if (place / name).exists():
            return place / name
    for place in places:
        with contextlib.suppress(OSError):
            parent = place if place.exists() else place.parent
            if parent.exists() and not parent.stat().st_mode & 0o222:
                continue  # root could write into a folder that is read-only, but nobody is meant to
            place.mkdir(parents=True, exist_ok=True)
            if os.access(place, os.W_OK):
                return place / name
    raise UserError(f"neither {places[0]} nor {places[1]} can be written: run in a folder of your own")


def progress_bar(corpus, what, done=0):
    return tqdm(total=corpus.size, initial=done, desc=what, unit="B", unit_scale=True, delay=2)


def followed(pieces, bar):
    """The pieces, while the bar shows how far they are."""
    for piece in pieces:
        bar.update(piece.position - bar.n)
        yield piece


def make(corpus, tokenizer, folder):
    """Write the tokens of a corpus, and what they are of, to a folder that appears when all is there."""
    partial = folder.with_name(f"{folder.name}.partial")
    try:
        partial.mkdir(exist_ok=True)
        done = write_tokens(corpus, tokenizer, partial)
        tokenizer.save(partial / "tokenizer.json")
        os.replace(partial, folder)
    except OSError as error:
        raise UserError(f"cannot write {partial}: {error.strerror}. Make room, and it goes on where it was") from None
    print(f"prepared: {done.characters:,} characters in {done.train:,} tokens for training and {done.val:,} for "
          f"validation, kept in {folder}")


def write_tokens(corpus, tokenizer, partial):
    """Bring train.bin and val.bin in the folder `partial` to their end, and return the `Done`."""
    state = partial / "done.json"
    done = Done(**json.loads(state.read_text(encoding="utf-8"))) if state.exists() else Done()
    if done.pieces:
        print(f"going on with {partial}: {done.characters:,} characters are done")
    itemsize = token_dtype(tokenizer.vocab_size).itemsize
    with contextlib.ExitStack() as stack:
        files = {split: stack.enter_context(open(partial / f"{split}.bin", "ab")) for split in SPLITS}
        for split, file in files.items():
            file.truncate(getattr(done, split) * itemsize)  # what was written after the last save is made again
        bar = stack.enter_context(progress_bar(corpus, "preparing", done.position))

        def save():
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
            with replacing(state) as file:
                file.write(json.dumps(dataclasses.asdict(done)).encode())

        saved = time.monotonic()
        for batch, ids in encoded(tokenizer, batches(islice(corpus.pieces(), done.pieces, None))):
            for split in SPLITS:
                files[split].write(ids[split].tobytes())
            done = Done(done.pieces + len(batch), batch[-1].position,
                        done.characters + sum(len(piece.text) for piece in batch),
                        done.train + len(ids["train"]), done.val + len(ids["val"]))
            bar.update(done.position - bar.n)
            if time.monotonic() - saved > SAVE_SECONDS:
                save()
                saved = time.monotonic()
        save()
    return done


def encoded(tokenizer, batches):
    """Yield (batch, its token ids), in order.

    The tokenizer encodes on all cores, and one core makes arrays of what it gives: so two batches are under way at a
    time, and no core waits.
    """
    with ThreadPoolExecutor(2) as pool:
        waiting = deque()
        for batch in batches:
            waiting.append((batch, pool.submit(encode, tokenizer, batch)))
            if len(waiting) > 2:
                batch, ids = waiting.popleft()
                yield batch, ids.result()
        for batch, ids in waiting:
            yield batch, ids.result()


def batches(pieces):
    """Lists of pieces that have BATCH characters or some more."""
    batch, length = [], 0
    for piece in pieces:
        batch.append(piece)
        length += len(piece.text)
        if length >= BATCH:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


def encode(tokenizer, batch):
    """The token ids of a batch for each split.

    A message stands between its two markers. Each end of a document is a token, if the tokenizer has one for it.
    Raises UserError if there are messages and the tokenizer has no markers for them.
    """
    dtype, end = token_dtype(tokenizer.vocab_size), tokenizer.end_of_text
    before, after = tokenizer.message_start, tokenizer.message_end
    if None in (before, after) and any(piece.message for piece in batch):
        raise UserError("the tokenizer has no tokens for the start and the end of a message: "
                        "train with one that has: --data.tokenizer bpe")
    encoded = tokenizer.encode_batch([piece.text for piece in batch])
    ids = {split: [] for split in SPLITS}
    for piece, tokens in zip(batch, encoded, strict=True):
        if piece.message:
            tokens = [before, *tokens, after]
        ids[piece.split].append(tokens)
        if piece.ends and end is not None:
            ids[piece.split].append([end])
    return {split: np.fromiter(chain.from_iterable(lists), dtype) for split, lists in ids.items()}


