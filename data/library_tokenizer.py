"""What the tokenizers that are built on the `tokenizers` library have in common."""

import codecs
import json
import re

from tokenizers import Tokenizer, processors

from utils.errors import UserError
from utils.files import replacing

SPECIAL_TOKENS = {  # attribute of a tokenizer: token, named as in ChatML and GPT-2
    "padding": "<|pad|>",
    "message_start": "<|im_start|>",
    "message_end": "<|im_end|>",
    "end_of_text": "<|endoftext|>",
}
MAX_FILE_BYTES = 50_000_000  # of a tokenizer file; the largest in common use have 30 MB
BYTES_IN_UTF_8 = {*range(0xC0), *range(0xC2, 0xF5)}
SURROGATE = re.compile("[\ud800-\udfff]")
WORD = re.compile(r"\w+|\s+")
NEVER = "(?!)"  # a regular expression that matches nothing


class LibraryTokenizer:
    """A tokenizer of the `tokenizers` library, read from the content of a tokenizer.json.

    `padding`, `message_start`, `message_end` and `end_of_text` are the ids of the special tokens, None where the
    vocabulary has no such token; `special_tokens` maps the names of all special tokens to their ids, which are also in
    `special_ids`. `encode` never returns them: their names in a text, such as "<|im_end|>", are encoded as ordinary
    characters. Otherwise, whoever writes a text could end a message in it and start one that seems to come from someone
    else. Words and white space that a file adds without calling them special are ordinary text. `text_start` is the id
    of the token that the file says to put before every text, None if there is none.

    A subclass has a `kind`, by which a checkpoint names it, a `description` of it for messages, and the functions
    `find_unsupported` and `bytes_of`. `prefix` is what `encode` puts before a text, as bytes, and `reserved` the tokens
    that no merge may produce.
    """

    prefix = b""
    reserved = frozenset()

    def __init__(self, content, where="the tokenizer"):
        """Raises UserError, which names `where`, unless `content` is the tokenizer.json of such a tokenizer."""
        description, self.text_start = self.parse(content, where)
        try:
            library = Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{where} is damaged or not a tokenizer.json ({error}): create it again") from None
        library.no_truncation()
        library.no_padding()
        added = library.get_added_tokens_decoder()
        names = {i: token.content for i, token in added.items()}
        special = {i: name for i, name in names.items() if is_special(name, added[i].special)}
        library.add_special_tokens([*special.values()])  # some files list them as words to be found in a text
        library.encode_special_tokens = True  # as ordinary text
        tokens = {i: self.bytes_of(token) for token, i in library.get_vocab().items()}
        tokens |= {i: name.encode() for i, name in names.items()}
        if any(names.get(token["id"]) != token["content"] for token in description.get("added_tokens") or ()):
            raise UserError(f"{where} has special tokens whose ids are out of range or used twice: create it again")
        self.library, self.added, self.special_ids = library, added, frozenset(special)
        self.special_tokens = {name: i for i, name in special.items()}
        self.tokens = [tokens.get(i) for i in range(len(tokens))]
        if None in self.tokens:
            raise UserError(f"{where} has {len(tokens)} tokens, but their ids are not 0 to {len(tokens) - 1}: use "
                            "another tokenizer")
        for name, token in SPECIAL_TOKENS.items():
            setattr(self, name, self.special_tokens.get(token))
        if self.text_start is not None:
            if not 0 <= self.text_start < len(tokens):
                raise UserError(f"{where} puts the token {self.text_start} before every text, but has only "
                                f"{len(tokens)} tokens: use another tokenizer")
            library.post_processor = start_adder(self.text_start, library.id_to_token(self.text_start))

    @classmethod
    def parse(cls, content, where):
        """The content of a tokenizer.json as a dictionary without its post_processor, and the id that this puts before
        every text, or None. Raises UserError unless it is a tokenizer of this kind.

        With some other tokenizers the library uses up all memory or aborts the process, so they must not get that far.
        """
        if len(content) > MAX_FILE_BYTES:
            raise UserError(f"{where} has more than {MAX_FILE_BYTES:,} characters: use a smaller tokenizer")
        try:
            description = json.loads(content)
            description["model"] = {"type": "BPE"} | description["model"]  # files of before 2021 do not name the type
            problem = cls.find_unsupported(description)
            text_start = first_added(description.pop("post_processor", None))
            if not problem:
                remove_merges(description, cls.reserved)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise UserError(f"{where} is damaged or not a tokenizer.json: create it again") from None
        if problem:
            raise UserError(f"{where} is not {cls.description} (it has {problem}): use another one, or train one with "
                            "python -m data.tokenizer train")
        return description, text_start

    def with_special_tokens(self):
        """A tokenizer with the same ids that also has all of SPECIAL_TOKENS: missing ones follow the vocabulary."""
        missing = [token for name, token in SPECIAL_TOKENS.items() if getattr(self, name) is None]
        if not missing:
            return self
        library = Tokenizer.from_str(self.library.to_str())
        library.add_special_tokens(missing)
        return type(self)(library.to_str())

    def merged_from(self):
        """The two token ids that each merged token consists of, by its id."""
        model, id_of = json.loads(self.library.to_str())["model"], self.library.token_to_id
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        return {id_of(first + second): (id_of(first), id_of(second)) for first, second in pairs}

    def save(self, path):
        """Write a tokenizer.json of the `tokenizers` library. Raises UserError."""
        with replacing(path) as file:
            file.write(self.library.to_str().encode())

    @property
    def vocab_size(self):
        return len(self.tokens)

    @property
    def start_id(self):
        """The context of the first token of a text: `text_start`, else the end of another text, else a line feed."""
        for token in (self.text_start, self.end_of_text):
            if token is not None:
                return token
        return self.encode("\n")[0]

    def unknown(self, text):
        """The characters of a text that cannot be encoded, each once, in order: lone surrogates."""
        return list(dict.fromkeys(SURROGATE.findall(text)))

    def encode(self, text):
        """A list of token ids without special tokens. Raises UserError for a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """A list of token ids for each text of a list, computed on all cores. Raises UserError as `encode` does."""
        return encode_batch(self.library, texts)

    def encode_continuation(self, text):
        """A list of token ids of a text that follows a special token. Raises UserError as `encode` does."""
        return self.encode(text)

    def encode_with_special_tokens(self, text, fill):
        """A list of token ids of a text in which the names of special tokens are these tokens, as in the library.

        `fill` is applied to the parts between them; what it returns is ordinary text, whatever it contains. Raises
        UserError if a part has a lone surrogate, or if the tokenizer encodes some of it as a special token.
        """
        ids, encode = [], self.encode
        for part, token in self.split_at_special_tokens(text):
            part_ids = encode(fill(part))
            if not self.special_ids.isdisjoint(part_ids):
                raise UserError("the tokenizer encodes ordinary text as a special token: use another tokenizer")
            ids += part_ids if token is None else [*part_ids, token]
            encode = self.encode_continuation
        return ids

    def split_at_special_tokens(self, text):
        """Yield (ordinary text, id of the special token whose name follows it), and None as the last id.

        White space that a special token absorbs is left out.
        """
        added = [(i, self.added[i]) for i in self.special_ids]
        added.sort(key=lambda item: len(item[1].content), reverse=True)
        pattern = "|".join(name_pattern(token) for _, token in added)
        end = 0
        for match in re.finditer(pattern or NEVER, text):
            i, token = added[match.lastindex - 1]
            part = text[end : match.start()]
            yield part.rstrip() if token.lstrip else part, i
            end = match.end()
        yield text[end:], None

    def decode(self, ids):
        """The text of token ids: special tokens by name, invalid UTF-8 as U+FFFD."""
        return b"".join([self.tokens[i] for i in ids]).removeprefix(self.prefix).decode("utf-8", "replace")

    def stream(self, before=()):
        """A function from each next token id to the text it completes, and from None to what is left at the end.

        Bytes are held back until their character is complete. A text starts here unless the last of the ids `before` is
        an ordinary token; the results, joined, then equal those of `decode`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        prefix = self.prefix if self.special_ids.issuperset(before[-1:]) else b""

        def complete(token=None):
            nonlocal prefix
            content = b"" if token is None else self.tokens[token]
            if content:
                content, prefix = content.removeprefix(prefix), b""
            return decoder.decode(content, final=token is None)

        return complete

    def show(self, i):
        """A token for display: quoted text or, if its bytes are not valid UTF-8, hexadecimal."""
        try:
            return repr(self.tokens[i].decode())
        except UnicodeDecodeError:
            return self.tokens[i].hex(" ")

    def to_dict(self):
        return {"kind": self.kind, "tokenizer.json": self.library.to_str()}


def is_special(name, special):
    """Whether an added token of a tokenizer.json is a special token: if it says so, as `special`, or looks like one.

    >>> is_special("<|im_start|>", False), is_special("COVID", False)
    (True, False)
    """
    return special or not WORD.fullmatch(name)


def name_pattern(token):
    """A regular expression for the name of an AddedToken, its group 1, and the white space it absorbs on its right."""
    name = f"({re.escape(token.content)})"
    return name + r"\s*" if token.rstrip else name


def first_added(post_processor):
    """The id of the token that the post_processor of a tokenizer.json puts before a text, None if it does not.

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


def start_adder(token, name):
    """The library's post-processor that puts a token before every text."""
    start = {"id": "start", "ids": [token], "tokens": [name]}
    return processors.TemplateProcessing("start $A", "start $A start:1 $B:1", [start])


def remove_merges(description, reserved):
    """Remove the merges of a tokenizer.json that make a special or a reserved token out of ordinary text."""
    model = description["model"]
    added = [(token["content"], token.get("special")) for token in description.get("added_tokens") or ()]
    names = reserved.union(name for name, special in added if is_special(name, special))
    model["merges"] = [merge for merge in model["merges"] if "".join(merge).replace(" ", "") not in names]


def encode_batch(library, texts):
    """A list of token ids for each text of a list, computed on all cores. Raises UserError for a lone surrogate."""
    try:
        return [encoding.ids for encoding in library.encode_batch_fast(texts, add_special_tokens=False)]
    except TypeError:
        for text in texts:
            utf_8(text)
        raise
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # the library exports no name for it
            raise UserError(f"the tokenizer failed on the text ({error}): use another tokenizer") from None
        raise


def utf_8(text):
    """The bytes of a text. Raises UserError for a lone surrogate, which UTF-8 cannot encode."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text has the lone surrogate {text[error.start]!r} at character {error.start}: remove "
                        "it, or read the text with its correct encoding") from None
