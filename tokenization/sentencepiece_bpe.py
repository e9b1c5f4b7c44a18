"""SentencePiece-style byte-pair encoding (BPE), as in Llama 2, from a tokenizer.json of the `tokenizers` library."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers

from tokenization.library import LibraryTokenizer, encode_batch, start_adder

SPACE = "▁"  # U+2581, which stands for a space in the tokens
BYTE_TOKENS = {f"<0x{byte:02X}>": byte for byte in range(256)}
UNKNOWN, START, END = SPECIAL = ("<unk>", "<s>", "</s>")
PREPEND = {"type": "Prepend", "prepend": SPACE}
REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}


class SentencePieceTokenizer(LibraryTokenizer):
    """Byte-pair encoding of characters: SentencePiece (https://arxiv.org/abs/1808.06226), as Llama 2 uses it.

    Spaces are written as "▁", most files put one before a text, and a whole text is merged as if it were one word.
    Characters outside the vocabulary are encoded as their bytes, so no character is unknown.

    Decoding an encoded text reproduces it, with two exceptions: "▁" becomes a space, and files whose pre_tokenizer is
    Metaspace (rather than a Prepend normalizer) drop one of the spaces that a text starts with. Invalid UTF-8, which
    only a model can generate, is decoded byte by byte, as in BPETokenizer.

    Without "<|endoftext|>", `end_of_text` is "</s>". Without a post-processor, `start_id` is "<s>".
    """

    kind = "sentencepiece"
    description = "a plain SentencePiece-style BPE"
    unsupported_options = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges")
    byte_tokens = BYTE_TOKENS
    reserved = frozenset(BYTE_TOKENS)

    def __init__(self, content: str | bytes, where: str | Path = "the tokenizer"):
        super().__init__(content, where)
        if self.end_of_text is None:
            self.end_of_text = self.special_tokens.get(END)
        description = json.loads(self.library.to_str())
        scheme = (description["pre_tokenizer"] or {}).get("prepend_scheme", "never")
        if scheme != "never" or PREPEND in parts(description["normalizer"]):
            self.prefix = b" "
        self.library_inside = self.library  # for text that follows a special token
        if scheme == "first":
            description["pre_tokenizer"]["prepend_scheme"] = "never"
            self.library_inside = Library.from_str(json.dumps(description))
            self.library_inside.encode_special_tokens = True

    @staticmethod
    def find_unsupported(description: dict) -> str | None:
        """Return what keeps a tokenizer.json from being a SentencePiece-style BPE of all characters, or None."""
        normalizer, pre_tokenizer = description.get("normalizer"), description.get("pre_tokenizer")
        if SPACE not in description["model"]["vocab"]:
            return f'no token "{SPACE}"'
        allowed = ([PREPEND, REPLACE], [REPLACE]) if pre_tokenizer is None else ([],)
        if parts(normalizer) not in allowed:
            return f"the normalizer {normalizer['type']}" if normalizer else "no normalizer"
        if pre_tokenizer and (pre_tokenizer["type"] != "Metaspace" or pre_tokenizer["replacement"] != SPACE):
            return f"the pre_tokenizer {pre_tokenizer['type']}"
        return None

    @staticmethod
    def bytes_of(token: str) -> bytes:
        """Return the bytes of a token, given as a tokenizer.json writes it.

        >>> [SentencePieceTokenizer.bytes_of(token) for token in ("▁a", "<0x0A>")]
        [b' a', b'\\n']
        """
        if token in BYTE_TOKENS:
            return bytes([BYTE_TOKENS[token]])
        return token.replace(SPACE, " ").encode()

    @property
    def start_id(self) -> int:
        """The context of the first token of a text: `text_start`, else "<s>", else as in LibraryTokenizer."""
        if self.text_start is None and START in self.special_tokens:
            return self.special_tokens[START]
        return super().start_id

    def encode_continuation(self, text: str) -> list[int]:
        """Return the token ids of a text that follows a special token, with a space before it if the file adds one."""
        return encode_batch(self.library_inside, [text])[0]


def is_sentencepiece(description: Any) -> bool:
    """Return whether the content of a tokenizer.json, which may be malformed, is a BPE of characters, not of bytes."""
    model = description.get("model") if isinstance(description, dict) else None
    return isinstance(model, dict) and model.get("type", "BPE") == "BPE" and bool(model.get("byte_fallback"))


def parts(normalizer: dict | None) -> list[dict]:
    """Return the normalizers in the normalizer of a tokenizer.json, which can be None, one, or a sequence."""
    if normalizer is None:
        return []
    return normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]


def from_vocab_and_merges(vocab: dict[str, int], merges: list[tuple[str, str]],
                          where: str | Path) -> SentencePieceTokenizer:
    """Return the tokenizer of a vocabulary, token -> id, that starts with SPECIAL, and its merges, in order.

    Raises UserError, which names `where`.
    """
    library = Library(models.BPE(vocab, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    library.add_special_tokens([*SPECIAL])
    library.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    library.post_processor = start_adder(vocab[START], START)
    library.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    return SentencePieceTokenizer(library.to_str(), where)
