"""Byte-level byte-pair encoding (BPE), as in GPT-2, built on the `tokenizers` library."""

import codecs
import heapq
import json
import random
import re
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from utils.errors import UserError
from utils.files import replacing

SPECIAL_TOKENS = {  # attribute of a tokenizer: token, named as in ChatML and GPT-2
    "padding": "<|pad|>",
    "message_start": "<|im_start|>",
    "message_end": "<|im_end|>",
    "end_of_text": "<|endoftext|>",
}
MAX_BYTES = 20_000_000  # of text to train on
MAX_FILE_BYTES = 50_000_000  # of a tokenizer file; the largest in common use have 30 MB
CHUNK = 1 << 16  # characters

# A tokenizer.json writes bytes as characters: the visible ones of Latin-1 as themselves, the others from U+0100 on.
VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
BYTE_OF = {chr(byte): byte for byte in VISIBLE} | {chr(0x100 + i): byte for i, byte in enumerate(HIDDEN)}
BYTES_IN_UTF_8 = {*range(0xC0), *range(0xC2, 0xF5)}
SURROGATE = re.compile("[\ud800-\udfff]")
PRE_TOKENIZERS = ("ByteLevel", "Split", "Digits", "Punctuation")  # of a tokenizer.json, those that keep every character


class BPETokenizer:
    """Byte-pair encoding of UTF-8 bytes: Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909), on bytes as in GPT-2.

    Text is split into words, each with the space before it. A word starts as its bytes, and the learned merges join
    them, the earliest learned first. No character is unknown, and decoding an encoded text reproduces it exactly.

    `padding`, `message_start`, `message_end` and `end_of_text` are the ids of the special tokens, None where the
    vocabulary has no such token; `special_ids` holds the ids of all special tokens. `encode` never returns them: their
    names in a text, such as "<|im_end|>", are encoded as ordinary characters. Otherwise, whoever writes a text could
    end a message in it and start one that seems to come from someone else.
    """

    def __init__(self, description, where="the tokenizer"):
        """Build it from the content of a tokenizer.json. Raises UserError, which names `where`, unless that is a plain
        byte-level BPE."""
        description = parse_description(description, where)
        try:
            library = Tokenizer.from_str(json.dumps(description))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{where} is damaged or not a tokenizer.json ({error}): create it again") from None
        library.no_truncation()
        library.no_padding()
        special = {i: token.content for i, token in library.get_added_tokens_decoder().items()}
        library.add_special_tokens([*special.values()])  # some files list them as words to be found in a text
        library.encode_special_tokens = True  # as ordinary text
        tokens = {i: bytes_of(token) for token, i in library.get_vocab().items()}
        tokens |= {i: content.encode() for i, content in special.items()}
        if any(special.get(token["id"]) != token["content"] for token in description.get("added_tokens") or ()):
            raise UserError(f"{where} has special tokens whose ids are out of range or used twice: create it again")
        self.library, self.special_ids = library, frozenset(special)
        self.tokens = [tokens.get(i) for i in range(len(tokens))]
        if None in self.tokens:
            raise UserError(f"{where} has {len(tokens)} tokens, but their ids are not 0 to {len(tokens) - 1}: use "
                            "another tokenizer")
        id_of = {content: i for i, content in special.items()}
        for name, token in SPECIAL_TOKENS.items():
            setattr(self, name, id_of.get(token))

    @classmethod
    def train(cls, texts, vocab_size=20_000, max_bytes=MAX_BYTES, where="the text"):
        """Learn a vocabulary from an iterable of texts; it is smaller if the texts have no more pairs to merge.

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
    def from_vocab_and_merges(cls, vocab, merges, where):
        """Build it from the contents of GPT-2's two files: token -> id as JSON, and the merges in order, one a line.
        Raises UserError, which names `where`."""
        try:
            vocab = json.loads(vocab)
            pairs = [tuple(line.split(" ")) for line in merges.decode().split("\n") if line and line[:9] != "#version:"]
            library = byte_level(models.BPE(vocab, pairs))
        except Exception:  # the library raises nothing narrower
            raise UserError(f"{where} is damaged or not a byte-level BPE: download it again") from None
        library.add_special_tokens([token for token in SPECIAL_TOKENS.values() if token in vocab])
        return cls(library.to_str(), where)

    def with_special_tokens(self):
        """A tokenizer with the same ids that also has all of SPECIAL_TOKENS: missing ones follow the vocabulary."""
        missing = [token for name, token in SPECIAL_TOKENS.items() if getattr(self, name) is None]
        if not missing:
            return self
        library = Tokenizer.from_str(self.library.to_str())
        library.add_special_tokens(missing)
        return BPETokenizer(library.to_str())

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
        """The context of the first token of a text: the end of another text, or a line feed without such a token."""
        return self.encode("\n")[0] if self.end_of_text is None else self.end_of_text

    def unknown(self, text):
        """The characters of a text that cannot be encoded, each once, in order: lone surrogates."""
        return list(dict.fromkeys(SURROGATE.findall(text)))

    def encode(self, text):
        """A list of token ids without special tokens. Raises UserError for a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts):
        """A list of token ids for each text of a list, computed on all cores. Raises UserError as `encode` does."""
        try:
            return [encoding.ids for encoding in self.library.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:
            for text in texts:
                utf_8(text)
            raise
        except BaseException as error:
            if type(error).__name__ == "PanicException":  # the library exports no name for it
                raise UserError(f"the tokenizer failed on the text ({error}): use another tokenizer") from None
            raise

    def decode(self, ids):
        """The text of token ids: special tokens by name, invalid UTF-8 as U+FFFD."""
        return b"".join([self.tokens[i] for i in ids]).decode("utf-8", "replace")

    def stream(self):
        """A function from each next token id to the text it completes, and from None to what is left at the end.

        Bytes are held back until their character is complete. The results, joined, equal those of `decode`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token=None: decoder.decode(b"" if token is None else self.tokens[token], final=token is None)

    def show(self, i):
        """A token for display: quoted text or, if its bytes are not valid UTF-8, hexadecimal."""
        try:
            return repr(self.tokens[i].decode())
        except UnicodeDecodeError:
            return self.tokens[i].hex(" ")

    def to_dict(self):
        return {"kind": "bpe", "tokenizer.json": self.library.to_str()}


# ---- The content of a tokenizer.json ---------------------------------------------------------------------------------


def parse_description(content, where):
    """The content of a tokenizer.json as a dictionary. Raises UserError unless it is a plain byte-level BPE.

    With some other tokenizers the library uses up all memory or aborts the process, so they must not get that far.
    """
    if len(content) > MAX_FILE_BYTES:
        raise UserError(f"{where} has more than {MAX_FILE_BYTES:,} characters: use a smaller tokenizer")
    try:
        description = json.loads(content)
        description["model"] = {"type": "BPE"} | description["model"]  # files of before 2021 do not name the type
        problem = find_unsupported(description)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        raise UserError(f"{where} is damaged or not a tokenizer.json: create it again") from None
    if problem:
        raise UserError(f"{where} is not a plain byte-level BPE (it has {problem}): use another one, or train one with "
                        "python -m data.tokenizer train")
    return description


def find_unsupported(description):
    """What makes a tokenizer.json other than a byte-level BPE that reproduces every text; None if nothing does."""
    model, normalizer, pre_tokenizer = (description.get(key) for key in ("model", "normalizer", "pre_tokenizer"))
    if model["type"] != "BPE":
        return f"the model {model['type']}"
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(option):
            return f"the option {option}"
    missing = BYTES_IN_UTF_8 - {BYTE_OF.get(token) for token in model["vocab"]}
    if missing:
        return f"no token for the byte 0x{min(missing):02x}"
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


def byte_level(model):
    """The library's tokenizer that splits words as GPT-2 does, around a BPE model."""
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def bytes_of(token):
    """The bytes of a token, given as a tokenizer.json writes it.

    >>> bytes_of("Ġa")
    b' a'
    """
    try:
        return bytes(BYTE_OF[character] for character in token)
    except KeyError:  # no merge of bytes makes it, so it is never used
        return token.encode()


# ---- Training texts --------------------------------------------------------------------------------------------------


def sample(texts, max_bytes):
    """A list of texts as bytes: all of them, or a reproducible uniform sample of at most `max_bytes`.

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


def utf_8(text):
    """The bytes of a text. Raises UserError for a lone surrogate, which UTF-8 cannot encode."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text has the lone surrogate {text[error.start]!r} at character {error.start}: remove "
                        "it, or read the text with its correct encoding") from None
