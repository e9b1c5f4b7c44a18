"""The base class of tokenizers that are built on the `tokenizers` library."""

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Library
from tokenizers import processors

from tokenization.base import SPECIAL_TOKENS, Tokenizer
from utils.errors import UserError
from utils.files import replacing

MAX_FILE_BYTES = 50_000_000  # of a tokenizer file; the largest in common use have 30 MB
BYTES_IN_UTF_8 = {*range(0xC0), *range(0xC2, 0xF5)}
WORD = re.compile(r"\w+|\s+")


class LibraryTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library, read from the content of a tokenizer.json.

    Words and white space that a file adds without calling them special are ordinary text. A subclass has the functions
    `find_unsupported` and `bytes_of`, and these attributes:
    """

    kind: str
    """The name by which a checkpoint names it."""
    description: str
    """What it is called in messages."""
    unsupported_options: tuple[str, ...]
    """Options of the model that must not be set."""
    byte_tokens: dict[str, int]
    """The bytes that tokens stand for, by token."""
    reserved: frozenset[str] = frozenset()
    """The tokens that no merge may produce."""

    def __init__(self, content: str | bytes, where: str | Path = "the tokenizer"):
        """Read a tokenizer.json. Raises UserError, which names `where`, unless it is such a tokenizer."""
        description, self.text_start = self.parse(content, where)
        try:
            library = Library.from_str(json.dumps(description))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{where} is damaged or not a tokenizer.json ({error}): create it again") from None
        library.no_truncation()
        library.no_padding()
        added = library.get_added_tokens_decoder()
        special = {i: token.content for i, token in added.items() if is_special(token.content, token.special)}
        library.add_special_tokens([*special.values()])  # some files list them as words to be found in a text
        library.encode_special_tokens = True  # as ordinary text
        tokens = {i: self.bytes_of(token) for token, i in library.get_vocab().items()}
        tokens |= {i: token.content.encode() for i, token in added.items()}
        names = {i: token.content for i, token in added.items()}
        if any(names.get(token["id"]) != token["content"] for token in description.get("added_tokens") or ()):
            raise UserError(f"{where} has special tokens whose ids are out of range or used twice: create it again")
        if tokens.keys() != set(range(len(tokens))):
            raise UserError(f"{where} has {len(tokens)} tokens, but their ids are not 0 to {len(tokens) - 1}: use "
                            "another tokenizer")
        super().__init__([tokens[i] for i in range(len(tokens))], added, frozenset(special))
        self.library = library
        if self.text_start is not None:
            if not 0 <= self.text_start < len(tokens):
                raise UserError(f"{where} puts the token {self.text_start} before every text, but has only "
                                f"{len(tokens)} tokens: use another tokenizer")
            library.post_processor = start_adder(self.text_start, library.id_to_token(self.text_start))

    @classmethod
    def parse(cls, content: str | bytes, where: str | Path) -> tuple[dict, int | None]:
        """Return the content of a tokenizer.json without its post_processor, and the id that this puts before a text.

        The id is None if it puts none. Raises UserError unless it is a tokenizer of this kind: with some others the
        library uses up all memory or aborts the process, so they must not get that far.
        """
        if len(content) > MAX_FILE_BYTES:
            raise UserError(f"{where} has more than {MAX_FILE_BYTES:,} characters: use a smaller tokenizer")
        try:
            description = json.loads(content)
            description["model"] = {"type": "BPE"} | description["model"]  # old files do not name the type
            problem = cls.find_unsupported_model(description["model"]) or cls.find_unsupported(description)
            text_start = first_added(description.pop("post_processor", None))
            if not problem:
                remove_merges(description, cls.reserved)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise UserError(f"{where} is damaged or not a tokenizer.json: create it again") from None
        if problem:
            raise UserError(f"{where} is not {cls.description} (it has {problem}): use another one, or train one with "
                            "python -m data.tokenizer train")
        return description, text_start

    @classmethod
    def find_unsupported_model(cls, model: dict) -> str | None:
        """Return what keeps the model in a tokenizer.json from being a BPE without unknown characters, or None."""
        if model["type"] != "BPE":
            return f"the model {model['type']}"
        for option in cls.unsupported_options:
            if model.get(option):
                return f"the option {option}"
        missing = BYTES_IN_UTF_8 - {cls.byte_tokens.get(token) for token in model["vocab"]}
        if missing:
            return f"no token for the byte 0x{min(missing):02x}"
        return None

    def with_special_tokens(self) -> "LibraryTokenizer":
        missing = [token for name, token in SPECIAL_TOKENS.items() if getattr(self, name) is None]
        if not missing:
            return self
        library = Library.from_str(self.library.to_str())
        library.add_special_tokens(missing)
        return type(self)(library.to_str())

    def merged_from(self) -> dict[int, tuple[int, int]]:
        """Return the two token ids that each merged token consists of, by its id."""
        model, id_of = json.loads(self.library.to_str())["model"], self.library.token_to_id
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return {id_of(first + second): (id_of(first), id_of(second)) for first, second in pairs}

    def save(self, path: Path) -> None:
        with replacing(path) as file:
            file.write(self.library.to_str().encode())

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the result of `encode` for each text, computed on all cores."""
        return encode_batch(self.library, texts)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokenizer.json": self.library.to_str()}


def encode_batch(library: Library, texts: list[str]) -> list[list[int]]:
    """Return the token ids of each text, computed on all cores. Raises UserError for a lone surrogate."""
    try:
        return [encoding.ids for encoding in library.encode_batch_fast(texts, add_special_tokens=False)]
    except TypeError:
        for text in texts:
            utf_8(text)
        raise
    except BaseException as error:  # PanicException, for which the library exports no name
        if type(error).__name__ == "PanicException":
            raise UserError(f"the tokenizer failed on the text ({error}): use another tokenizer") from None
        raise


def utf_8(text: str) -> bytes:
    """Return the bytes of a text. Raises UserError for a lone surrogate, which UTF-8 cannot encode."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text has the lone surrogate {text[error.start]!r} at character {error.start}: remove "
                        "it, or read the text with its correct encoding") from None


# ---- Parts of a tokenizer.json ---------------------------------------------------------------------------------------


def is_special(name: str, special: bool) -> bool:
    """Return whether an added token of a tokenizer.json is a special token: if it says so, or looks like one.

    >>> is_special("<|im_start|>", False), is_special("COVID", False)
    (True, False)
    """
    return special or not WORD.fullmatch(name)


def first_added(post_processor: dict | None) -> int | None:
    """Return the id of the token that the post_processor of a tokenizer.json puts before a text, or None.

    A post_processor is never run: it can drop a text or repeat it a million times.

    >>> first_added({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]})
    0
    """
    if post_processor is None:
        return None
    kind, first = post_processor["type"], None
    if kind == "Sequence":
        for part in post_processor["processors"]:
            added = first_added(part)
            first = first if added is None else added
    elif kind == "TemplateProcessing" and post_processor["single"] and "SpecialToken" in post_processor["single"][0]:
        name = post_processor["single"][0]["SpecialToken"]["id"]
        first = post_processor["special_tokens"][name]["ids"][0]
    elif kind in ("RobertaProcessing", "BertProcessing"):
        first = post_processor["cls"][1]
    if first is not None and type(first) is not int:
        raise TypeError("an id that is not an integer")
    return first


def start_adder(token: int, name: str) -> processors.TemplateProcessing:
    """Return the library's post-processor that puts a token before every text."""
    start = {"id": "start", "ids": [token], "tokens": [name]}
    return processors.TemplateProcessing("start $A", "start $A start:1 $B:1", [start])


def remove_merges(description: dict, reserved: frozenset[str]) -> None:
    """Remove the merges of a tokenizer.json that make a special or a reserved token out of ordinary text."""
    model = description["model"]
    added = [(token["content"], token.get("special")) for token in description.get("added_tokens") or ()]
    names = reserved.union(name for name, special in added if is_special(name, special))
    model["merges"] = [merge for merge in model["merges"] if "".join(merge).replace(" ", "") not in names]
