"""Byte-level byte-pair encoding (BPE), as in GPT-2, and its training."""

import heapq
import json
import random
import sys
from collections.abc import Iterable

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from tokenization.base import SPECIAL_TOKENS
from tokenization.library import LibraryTokenizer, utf_8
from utils.errors import UserError

MAX_BYTES = 20_000_000  # of text to train on
CHUNK = 1 << 16  # characters

# A tokenizer.json writes bytes as characters: the visible ones of Latin-1 as themselves, the others from U+0100 on.
VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
BYTE_OF = {chr(byte): byte for byte in VISIBLE} | {chr(0x100 + i): byte for i, byte in enumerate(HIDDEN)}
PRE_TOKENIZERS = ("ByteLevel", "Split", "Digits", "Punctuation")  # of a tokenizer.json, those that keep every character


class BPETokenizer(LibraryTokenizer):
    """Byte-pair encoding of UTF-8 bytes: Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909), on bytes as in GPT-2.

    Text is split into words, each with the space before it. A word starts as its bytes, and the learned merges join
    them, the earliest learned first. No character is unknown, and decoding an encoded text reproduces it exactly.
    """

    kind = "bpe"
    description = "a plain byte-level BPE"
    unsupported_options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    byte_tokens = BYTE_OF

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 20_000, max_bytes: int = MAX_BYTES,
              where: object = "the text") -> "BPETokenizer":
        """Learn a vocabulary from texts; it is smaller if the texts have no more pairs to merge.

        The vocabulary starts with the special tokens and the 256 bytes; a pair that occurs at least twice can become a
        merge. If the texts have more than `max_bytes` in UTF-8, a uniform sample of that size is used. Raises
        UserError, which names `where`.

        Memory does not grow with the texts but with `max_bytes`: 15 to 45 times as much for English, and 100 times as
        much (2 GB by default) for text without spaces between words, such as Chinese.
        """
        smallest = len(SPECIAL_TOKENS) + 256
        if not smallest <= vocab_size < 2**31:
            raise UserError(f"vocab_size must be from {smallest} (the 256 bytes and {len(SPECIAL_TOKENS)} special "
                            f"tokens) to below 2^31, got {vocab_size}")
        if max_bytes < 1:
            raise UserError(f"max_bytes must be > 0, got {max_bytes}")
        chunks = sample(texts, max_bytes)
        if not chunks:
            raise UserError(f"{where} is empty, or max_bytes is too small: use another text, or increase it")
        library = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, initial_alphabet=[*BYTE_OF],
                                      special_tokens=[*SPECIAL_TOKENS.values()],
                                      show_progress=sys.stdout.isatty())  # redirected, its bars are blank lines
        library.train_from_iterator((chunk.decode() for chunk in chunks), trainer)
        return cls(library.to_str())

    @classmethod
    def from_vocab_and_merges(cls, vocab: bytes, merges: bytes, where: str) -> "BPETokenizer":
        """Build it from the contents of GPT-2's two files: token -> id as JSON, and the merges in order, one a line.

        Raises UserError, which names `where`.
        """
        try:
            vocab = json.loads(vocab)
            lines = merges.decode("utf-8-sig").replace("\r\n", "\n").split("\n")
            pairs = [tuple(line.split(" ")) for line in lines if line and line[:9] != "#version:"]
            library = byte_level(models.BPE(vocab, pairs))
        except Exception:  # the library raises nothing narrower
            raise UserError(f"{where} is damaged or not a byte-level BPE: download it again") from None
        library.add_special_tokens([token for token in SPECIAL_TOKENS.values() if token in vocab])
        return cls(library.to_str(), where)

    @staticmethod
    def find_unsupported(description: dict) -> str | None:
        """Return what keeps a tokenizer.json from being a byte-level BPE that reproduces every text, or None."""
        normalizer, pre_tokenizer = description.get("normalizer"), description.get("pre_tokenizer")
        if normalizer is not None and normalizer != {"type": "Sequence", "normalizers": []}:
            return f"the normalizer {normalizer['type']}"
        if pre_tokenizer is None:
            return "no pre_tokenizer"
        parts = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
        for part in parts:
            if part["type"] not in PRE_TOKENIZERS or part.get("behavior") == "Removed":
                return f"the pre_tokenizer {part['type']}"
        if [part.get("add_prefix_space") for part in parts if part["type"] == "ByteLevel"] != [False]:
            return "not one pre_tokenizer ByteLevel without a prefix space"
        return None

    @staticmethod
    def bytes_of(token: str) -> bytes:
        """Return the bytes of a token, given as a tokenizer.json writes it.

        >>> BPETokenizer.bytes_of("Ġa")
        b' a'
        """
        try:
            return bytes(BYTE_OF[character] for character in token)
        except KeyError:  # no merge of bytes makes it, so it is never used
            return token.encode()


def byte_level(model: models.BPE) -> Library:
    """Return the library's tokenizer that splits words as GPT-2 does, around a BPE model."""
    library = Library(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


# ---- Training texts --------------------------------------------------------------------------------------------------


def sample(texts: Iterable[str], max_bytes: int) -> list[bytes]:
    """Return texts as bytes: all of them, or a reproducible uniform sample of at most `max_bytes`.

    Long texts are split into chunks. Raises UserError for a lone surrogate.
    """
    random_numbers, kept, size = random.Random(0), [], 0
    chunks = (text[start : start + CHUNK] for text in texts for start in range(0, len(text), CHUNK))
    for number, chunk in enumerate(map(utf_8, chunks)):
        heapq.heappush(kept, (random_numbers.random(), number, chunk))
        size += len(chunk)
        while size > max_bytes:  # the chunks with the highest random numbers stay
            size -= len(heapq.heappop(kept)[-1])
    return [chunk for _, _, chunk in kept]
