"""Character tokenizers: one token per character."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Library

from tokenization.base import SPECIAL_TOKENS, SURROGATE, Tokenizer
from utils.errors import UserError
from utils.files import replacing


class CharTokenizer(Tokenizer):
    """One token per character and, if `special`, the tokens of SPECIAL_TOKENS behind them.

    >>> tokenizer = CharTokenizer("abc", special=True)
    >>> tokenizer.encode("cab")
    [2, 0, 1]
    >>> tokenizer.decode([2, 0, 1, tokenizer.message_end])
    'cab<|im_end|>'
    """

    def __init__(self, vocab: str, where: object = "the tokenizer", special: bool = False):
        """Take the string of all characters, in the order of their ids.

        Raises UserError, which names `where`, if it is empty, repeats a character or has a lone surrogate.
        """
        self.vocab, self.special = vocab, special
        self.ids = {character: i for i, character in enumerate(vocab)}
        if not vocab:
            raise UserError(f"{where} has an empty vocabulary: use another one")
        if len(self.ids) < len(vocab):
            raise UserError(f"{where} has a character twice in its vocabulary: use another one")
        if SURROGATE.search(vocab):
            raise UserError(f"{where} has a lone surrogate in its vocabulary: use another one")
        names = [*SPECIAL_TOKENS.values()] if special else []
        added = {i: AddedToken(name) for i, name in enumerate(names, len(vocab))}
        super().__init__([token.encode() for token in (*vocab, *names)], added, frozenset(added))

    @classmethod
    def of_text(cls, text: Iterable[str], where: object = "the text") -> "CharTokenizer":
        """Return the tokenizer of all characters of a text, in code point order.

        Raises UserError, which names `where`, if there are none.
        """
        vocab = sorted(set(text))
        if not vocab:
            raise UserError(f"{where} is empty: use another text")
        return cls("".join(vocab), where)

    def with_special_tokens(self) -> "CharTokenizer":
        return self if self.special else CharTokenizer(self.vocab, special=True)

    @property
    def start_id(self) -> int:
        """The context of the first token of a text: a line feed, where the vocabulary has one."""
        return self.ids.get("\n", 0)

    def unknown(self, text: str) -> list[str]:
        """Return the characters of a text that the vocabulary lacks, each once, in order."""
        return [character for character in dict.fromkeys(text) if character not in self.ids]

    def encode(self, text: str) -> list[int]:
        try:
            return [self.ids[character] for character in text]
        except KeyError:
            raise UserError(f"the text has characters that are not in the vocabulary: {quote_all(self.unknown(text))}. "
                            "Use the text that the model was trained on, or a model with a BPE tokenizer") from None

    def to_dict(self) -> dict[str, Any]:
        saved: dict[str, Any] = {"kind": "char", "vocab": self.vocab}
        if self.special:  # only then, so that tokenizers without special tokens are saved as before
            saved["special"] = True
        return saved

    def save(self, path: Path) -> None:
        with replacing(path) as file:
            file.write(json.dumps(self.to_dict()).encode())

    @property
    def library(self) -> Library:
        """The same tokenizer as one of the `tokenizers` library. It raises an exception for any other character."""
        library = Library(models.WordLevel(self.ids, unk_token="<|unknown|>"))  # which the vocabulary lacks
        library.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")  # every character is a word
        library.decoder = decoders.Fuse()  # without it, words are joined with spaces
        library.add_special_tokens([*self.special_tokens])
        return library


def from_library(description: dict, where: str | Path) -> CharTokenizer | None:
    """Return the CharTokenizer whose `library` has a tokenizer.json of this content, or None if there is none."""
    try:
        if description["model"]["type"] != "WordLevel":
            return None
        ids = description["model"]["vocab"]
        characters = sorted(ids, key=ids.get)
        if [ids[word] for word in characters] != list(range(len(ids))) or any(len(word) != 1 for word in characters):
            return None
        for special in (False, True):
            tokenizer = CharTokenizer("".join(characters), where, special)
            written = json.loads(tokenizer.library.to_str())
            if all(description.get(key) == written[key] for key in ("added_tokens", "normalizer", "pre_tokenizer")):
                return tokenizer
    except (TypeError, LookupError, AttributeError, UnicodeError):
        pass
    return None


def quote_all(characters: list[str], limit: int = 10) -> str:
    """Return a list of characters for a message, of which only the first `limit` are shown.

    >>> quote_all(["x", "y", "z"], limit=2)
    "'x', 'y' and 1 more"
    """
    quoted = ", ".join(map(repr, characters[:limit]))
    return quoted if len(characters) <= limit else f"{quoted} and {len(characters) - limit:,} more"
