"""The base class of all tokenizers: special tokens, decoding and streaming."""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from utils.errors import UserError

SPECIAL_TOKENS = {  # attribute of a tokenizer: token, named as in ChatML and GPT-2
    "padding": "<|pad|>",
    "message_start": "<|im_start|>",
    "message_end": "<|im_end|>",
    "end_of_text": "<|endoftext|>",
}
SURROGATE = re.compile("[\ud800-\udfff]")
NEVER = "(?!)"  # a regular expression that matches nothing


class Tokenizer:
    """A tokenizer: a subclass has `with_special_tokens`, `encode`, `to_dict` and `save`.

    `tokens` are the bytes of all tokens, by id. `added` maps ids to tokens that were added to the vocabulary of the
    model; `special_tokens` (name to id) and `special_ids` are those of them that no text is encoded to.

    `encode` never returns a special token: names in a text, such as "<|im_end|>", are encoded as ordinary characters.
    Otherwise, whoever writes a text could end a message in it and start one that seems to come from someone else.
    """

    # The ids of the tokens in SPECIAL_TOKENS, None if there is no such token.
    padding: int | None
    message_start: int | None
    message_end: int | None
    end_of_text: int | None
    text_start: int | None = None
    """The id of the token to put before every text, None if there is none."""
    prefix = b""
    """The bytes that `encode` puts before a text."""

    def __init__(self, tokens: list[bytes], added: dict[int, AddedToken], special_ids: frozenset[int]):
        self.tokens, self.added, self.special_ids = tokens, added, special_ids
        self.special_tokens = {added[i].content: i for i in sorted(special_ids)}
        for name, token in SPECIAL_TOKENS.items():
            setattr(self, name, self.special_tokens.get(token))

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @property
    def start_id(self) -> int:
        """The context of the first token of a text: `text_start`, else the end of another text, else a line feed."""
        for token in (self.text_start, self.end_of_text):
            if token is not None:
                return token
        return self.encode("\n")[0]

    def with_special_tokens(self) -> "Tokenizer":
        """Return a tokenizer with the same ids that also has all of SPECIAL_TOKENS, behind the vocabulary."""
        raise NotImplementedError

    def unknown(self, text: str) -> list[str]:
        """Return the characters of a text that cannot be encoded, each once, in order: lone surrogates."""
        return list(dict.fromkeys(SURROGATE.findall(text)))

    def without_unknown(self, text: str) -> tuple[str, list[str]]:
        """Return a text without the characters that cannot be encoded, and these, each once, in order."""
        unknown = self.unknown(text)
        return text.translate(dict.fromkeys(map(ord, unknown))), unknown

    def encode(self, text: str) -> list[int]:
        """Return token ids without special tokens. Raises UserError if a character cannot be encoded."""
        raise NotImplementedError

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the result of `encode` for each text."""
        return [self.encode(text) for text in texts]

    def encode_continuation(self, text: str) -> list[int]:
        """Return the token ids of a text that follows a special token. Raises UserError as `encode` does."""
        return self.encode(text)

    def encode_with_special_tokens(self, text: str, fill: Callable[[str], str]) -> list[int]:
        """Return the token ids of a text in which the names of special tokens are these tokens.

        `fill` is applied to the parts between them; what it returns is ordinary text, whatever it contains. Raises
        UserError if a part cannot be encoded, or if the tokenizer encodes some of it as a special token.
        """
        ids, encode = [], self.encode
        for part, token in self.split_at_special_tokens(text):
            part_ids = encode(fill(part))
            if not self.special_ids.isdisjoint(part_ids):
                raise UserError("the tokenizer encodes ordinary text as a special token: use another tokenizer")
            ids += part_ids
            if token is not None:
                ids.append(token)
            encode = self.encode_continuation
        return ids

    def split_at_special_tokens(self, text: str) -> Iterator[tuple[str, int | None]]:
        """Yield (ordinary text, id of the special token whose name follows it), and None as the last id.

        White space that a special token absorbs is left out.
        """
        longest_first = sorted(self.special_ids, key=lambda i: len(self.added[i].content), reverse=True)
        pattern = "|".join(name_pattern(self.added[i]) for i in longest_first)
        end = 0
        for match in re.finditer(pattern or NEVER, text):
            i = longest_first[match.lastindex - 1]
            part = text[end : match.start()]
            yield part.rstrip() if self.added[i].lstrip else part, i
            end = match.end()
        yield text[end:], None

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids: special tokens by name, invalid UTF-8 as U+FFFD."""
        return b"".join([self.tokens[i] for i in ids]).removeprefix(self.prefix).decode("utf-8", "replace")

    def stream(self, before: Sequence[int] = ()) -> Callable[..., str]:
        """Return a function from each next token id to the text it completes, and from None to what is left.

        Bytes are held back until their character is complete. A text starts here unless the last of the ids `before` is
        an ordinary token; the results, joined, then equal those of `decode`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        prefix = self.prefix if self.special_ids.issuperset(before[-1:]) else b""

        def complete(token: int | None = None) -> str:
            nonlocal prefix
            content = b"" if token is None else self.tokens[token]
            if content:
                content, prefix = content.removeprefix(prefix), b""
            return decoder.decode(content, final=token is None)

        return complete

    def show(self, i: int) -> str:
        """Return a token for display: quoted text or, if its bytes are not valid UTF-8, hexadecimal."""
        try:
            return repr(self.tokens[i].decode())
        except UnicodeDecodeError:
            return self.tokens[i].hex(" ")

    def to_dict(self) -> dict[str, Any]:
        """Return what `tokenizer_from_dict` takes, as checkpoints contain it."""
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write a file that `load_tokenizer` reads. Raises UserError."""
        raise NotImplementedError


def name_pattern(token: AddedToken) -> str:
    """Return a regular expression for the name of a token, its group 1, and the white space it absorbs on its right."""
    name = f"({re.escape(token.content)})"
    return name + r"\s*" if token.rstrip else name
