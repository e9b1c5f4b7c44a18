"""Text to token ids and back.

    python -m data.tokenizer train my_text.txt --vocab_size 20000 --out tokenizer.json
    python -m data.tokenizer show tokenizer.json "how is this cut?"
    python -m data.tokenizer show data/gpt2 "how is this cut?"     a folder with GPT-2's encoder.json and vocab.bpe
"""

import codecs
import heapq
import json
import random
import re
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from utils.errors import Parser, UserError, command
from utils.files import replacing

SPECIAL_TOKENS = {  # what they are called here, and their names: those of ChatML and GPT-2
    "padding": "<|pad|>",
    "message_start": "<|im_start|>",
    "message_end": "<|im_end|>",
    "end_of_text": "<|endoftext|>",
}
MAX_BYTES = 20_000_000
PIECE = 1 << 16  # characters

# A tokenizer.json writes bytes as characters: the visible ones of Latin-1 as themselves, the others from U+0100 on.
VISIBLE = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
HIDDEN = [byte for byte in range(256) if byte not in VISIBLE]
BYTE_OF = {chr(byte): byte for byte in VISIBLE} | {chr(0x100 + i): byte for i, byte in enumerate(HIDDEN)}

# Every byte that UTF-8 has, and what tokenizers for other ends change: case, accents, line ends, spaces.
PROBE = "".join(map(chr, [*range(0xC0), *range(0xC0, 0x800, 0x40), 0x800, *range(0x1000, 0x10000, 0x1000),
                          *range(0x10000, 0x110000, 0x40000), 0x10FFFF])) + "e\u0301 \u00e9\r\n  \uff21 \u3000 "
SURROGATE = re.compile("[\ud800-\udfff]")


class CharTokenizer:
    """One token per character. There are no special tokens.

    >>> tokenizer = CharTokenizer("abc")
    >>> tokenizer.encode("cab")
    [2, 0, 1]
    >>> tokenizer.decode([2, 0, 1])
    'cab'
    """

    padding = message_start = message_end = end_of_text = None
    special_ids = frozenset()

    def __init__(self, vocab):
        self.vocab = vocab
        self.ids = {character: i for i, character in enumerate(vocab)}

    @classmethod
    def of_text(cls, text):
        """The tokenizer of all characters of a text, in the order of their code points. Raises UserError for none."""
        vocab = sorted(set(text))
        if not vocab:
            raise UserError("there is no text in what was given: give another file")
        return cls("".join(vocab))

    @property
    def vocab_size(self):
        return len(self.vocab)

    @property
    def start_id(self):
        """What stands before a text that begins with nothing: the end of a line, where there is one."""
        return self.ids.get("\n", 0)

    def unknown(self, text):
        """The characters of a text that the vocabulary lacks, each once, in order."""
        return [character for character in dict.fromkeys(text) if character not in self.ids]

    def encode(self, text):
        """A list of token ids. Raises UserError if the vocabulary lacks a character of the text."""
        try:
            return [self.ids[character] for character in text]
        except KeyError:
            unknown = self.unknown(text)
            names = ", ".join(f"{character!r}" for character in unknown[:10]) + ", ..." * (len(unknown) > 10)
            raise UserError(f"{len(unknown)} characters of the text are not in the vocabulary: {names}. Give the text "
                            "that the model was trained on, or a model with a BPE") from None

    def encode_batch(self, texts):
        """A list of token ids for each text. Raises UserError as `encode` does."""
        return [self.encode(text) for text in texts]

    def decode(self, ids):
        return "".join(self.vocab[i] for i in ids)

    def stream(self):
        """A function from each next token id to the text that it completes; without an id, to what is left: nothing."""
        return lambda token=None: "" if token is None else self.vocab[token]

    def to_dict(self):
        return {"kind": "char", "vocab": self.vocab}

    def save(self, path):
        """Write what `to_dict` gives as JSON. Raises UserError."""
        with replacing(Path(path)) as file:
            file.write(json.dumps(self.to_dict()).encode())


class BPETokenizer:
    """Byte-pair encoding of UTF-8 bytes: Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909), on bytes as GPT-2's.

    Text is cut into words, each with the space before it; a word begins as its bytes, and the merges that were learnt
    join them, the earliest learnt first. No character is unknown, and every text comes back as it was.

    `padding`, `message_start`, `message_end` and `end_of_text` are the ids of the special tokens; None: the vocabulary
    has no such one. `special_ids` are those of all there are. Put them into a list of ids where they belong. `encode`
    never gives them: their names in a text, such as "<|im_end|>", are encoded as the characters they consist of. Were
    it otherwise, whoever writes a text that is encoded could end a message and begin one that seems to be another's.
    """

    def __init__(self, description, where="the tokenizer"):
        """From the content of a tokenizer.json, which `where` names. Raises UserError if it is no byte-level BPE."""
        try:
            library = Tokenizer.from_str(description)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(f"{where} is damaged, or no tokenizer.json at all ({error}): make it again") from None
        library.no_truncation()
        library.no_padding()
        special = {i: token.content for i, token in library.get_added_tokens_decoder().items()}
        library.add_special_tokens([*special.values()])  # some files list them as words to be found in a text
        library.encode_special_tokens = True  # which means: as other text
        tokens = {i: bytes_of(token) for token, i in library.get_vocab().items()}
        tokens |= {i: content.encode() for i, content in special.items()}
        self.library, self.special_ids = library, frozenset(special)
        self.tokens = [tokens.get(i) for i in range(len(tokens))]
        if None in self.tokens:
            raise UserError(f"{where} has {len(tokens)} tokens, and their ids are not the numbers from 0 on: train one")
        if self.decode(self.encode(PROBE)) != PROBE:
            raise UserError(f"{where} does not give every text back as it was, so it is no byte-level BPE, or one with "
                            "a normalizer or a prefix space: train one")
        for name, token in SPECIAL_TOKENS.items():
            setattr(self, name, next((i for i, content in special.items() if content == token), None))

    @classmethod
    def train(cls, texts, vocab_size=20_000, max_bytes=MAX_BYTES):
        """Learn a vocabulary from an iterable of texts; it is smaller if the texts have no more pairs to merge.

        The vocabulary begins with the special tokens and the 256 bytes; a merge is learnt if its pair occurs at least
        twice. Of texts that have more than `max_bytes` in UTF-8, so much is sampled evenly. Raises UserError.

        Memory does not grow with the texts but with `max_bytes`: 100 times as much where no spaces set words apart, as
        in Chinese (so 2 GB by default), and 15 to 45 times as much for English.
        """
        smallest = len(SPECIAL_TOKENS) + 256
        if not smallest <= vocab_size < 2**31:
            raise UserError(f"vocab_size cannot be {vocab_size}: give {smallest} or more, for the 256 bytes and "
                            f"{len(SPECIAL_TOKENS)} special tokens, and less than 2^31")
        if max_bytes < 1:
            raise UserError(f"max_bytes cannot be {max_bytes}: give a number above zero")
        pieces = sample(texts, max_bytes)
        if not pieces:
            raise UserError("there is no text to train a tokenizer on, or max_bytes is too small: give more")
        library = byte_level(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=vocab_size, min_frequency=2, initial_alphabet=[*BYTE_OF],
                                      special_tokens=[*SPECIAL_TOKENS.values()],
                                      show_progress=sys.stdout.isatty())  # elsewhere its bars are empty lines
        library.train_from_iterator((piece.decode() for piece in pieces), trainer)
        return cls(library.to_str())

    @classmethod
    def load(cls, path):
        """From a tokenizer.json, or a folder with GPT-2's encoder.json and vocab.bpe. Raises UserError."""
        path = Path(path)
        if path.is_dir():
            return cls(gpt2_description(path), path)
        try:
            return cls(path.read_text(encoding="utf-8"), path)
        except OSError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path} is damaged, or no tokenizer.json at all (not UTF-8): make it again") from None

    def save(self, path):
        """Write a tokenizer.json of the `tokenizers` library. Raises UserError."""
        with replacing(Path(path)) as file:
            file.write(self.library.to_str().encode())

    @property
    def vocab_size(self):
        return len(self.tokens)

    @property
    def start_id(self):
        """What stands before a text that begins with nothing: the end of a text, where there is such a token."""
        return self.encode("\n")[0] if self.end_of_text is None else self.end_of_text

    def unknown(self, text):
        """The characters of a text that cannot be encoded, each once, in order: the halves of surrogate pairs."""
        return [*dict.fromkeys(SURROGATE.findall(text))]

    def encode(self, text):
        """A list of token ids, no special ones. Raises UserError if the text holds half a surrogate pair."""
        try:
            return self.library.encode(text, add_special_tokens=False).ids
        except TypeError:
            utf_8(text)
            raise

    def encode_batch(self, texts):
        """A list of token ids for each text of a list, by all cores. Raises UserError as `encode` does."""
        try:
            return [encoding.ids for encoding in self.library.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:
            for text in texts:
                utf_8(text)
            raise

    def decode(self, ids):
        """The text of token ids; special tokens are their names, bytes that are not UTF-8 are U+FFFD."""
        return b"".join([self.tokens[i] for i in ids]).decode("utf-8", "replace")

    def stream(self):
        """A function from each next token id to the text that it completes; without an id, to what is left at the end.

        Bytes wait until their character is whole. All that the function gives is, joined, what `decode` gives.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return lambda token=None: decoder.decode(b"" if token is None else self.tokens[token], final=token is None)

    def show(self, i):
        """A token for the eye: quoted text or, if it does not consist of whole characters, its bytes in hexadecimal."""
        try:
            return repr(self.tokens[i].decode())
        except UnicodeDecodeError:
            return self.tokens[i].hex(" ")

    def to_dict(self):
        return {"kind": "bpe", "tokenizer.json": self.library.to_str()}


KINDS = {"char": (CharTokenizer, "vocab"), "bpe": (BPETokenizer, "tokenizer.json")}


def tokenizer_from_dict(saved):
    """The tokenizer of a checkpoint, from what its `to_dict` gave. Raises UserError for a kind that is not known."""
    kind = saved.get("kind")
    if kind not in KINDS:
        raise UserError(f"the tokenizer is of kind {kind!r}, which this version does not know: update it")
    make, field = KINDS[kind]
    if not isinstance(saved.get(field), str):
        raise UserError(f"the tokenizer of kind {kind!r} lacks its {field}: the file it comes from is damaged")
    return make(saved[field])


def byte_level(model):
    """The library's tokenizer that cuts words as GPT-2 does, around a BPE model."""
    library = Tokenizer(model)
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    return library


def gpt2_description(folder):
    """The tokenizer.json that says what GPT-2's two files in a folder say. Raises UserError."""
    files = [folder / "encoder.json", folder / "vocab.bpe"]
    for file in files:
        if not file.is_file():
            raise UserError(f"there is no {file}: name a tokenizer.json, or a folder with encoder.json and vocab.bpe")
    try:
        vocab, merges = models.BPE.read_file(*map(str, files))
        library = byte_level(models.BPE(vocab, merges))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{files[0]} and {files[1]} are not GPT-2's, or damaged ({error}): fetch them again") from None
    library.add_special_tokens([token for token in SPECIAL_TOKENS.values() if token in vocab])
    return library.to_str()


def bytes_of(token):
    """The bytes of a token as a tokenizer.json writes it.

    >>> bytes_of("Ġa")
    b' a'
    """
    try:
        return bytes(BYTE_OF[character] for character in token)
    except KeyError:  # of another kind of tokenizer, which the probe will tell
        return token.encode()


def utf_8(text):
    """The bytes of a text. Raises UserError if it holds half a surrogate pair, which UTF-8 has no bytes for."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the text has {text[error.start]!r} at character {error.start}: half a surrogate pair is no "
                        "Unicode. Remove it, or read the text with its right encoding") from None


def sample(texts, max_bytes):
    """A list of texts as bytes, `max_bytes` at most. If there are more, each has the same chance; always the same ones.

    Long texts are cut into pieces. Raises UserError for a text that is not Unicode.
    """
    draw, kept, size = random.Random(0), [], 0
    pieces = (text[start : start + PIECE] for text in texts for start in range(0, len(text), PIECE))
    for number, piece in enumerate(map(utf_8, pieces)):
        heapq.heappush(kept, (draw.random(), number, piece))
        size += len(piece)
        while size > max_bytes:  # those that drew the highest numbers stay
            size -= len(heapq.heappop(kept)[-1])
    return [piece for _, _, piece in kept]


@command
def main():
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="learn a byte-level BPE from texts")
    train.add_argument("files", nargs="+", help="what --data.path of train.py may be: files, folders")
    train.add_argument("--column", help="the column of .jsonl, .csv and .parquet files that holds the text")
    train.add_argument("--vocab_size", type=int, default=20_000, help="tokens at most (%(default)s)")
    train.add_argument("--max_bytes", type=int, default=MAX_BYTES,
                       help="of more text than this so much is sampled; it bounds the memory (%(default)s)")
    train.add_argument("--out", default="tokenizer.json", help="(%(default)s)")
    show = commands.add_parser("show", help="how a text is cut into tokens")
    show.add_argument("tokenizer", help="a tokenizer.json, or a folder with GPT-2's encoder.json and vocab.bpe")
    show.add_argument("text")
    args = parser.parse_args()
    if args.command == "train":
        from data.corpora import open_corpus  # here, as a tokenizer needs no corpus
        from data.readers import ReadOptions

        texts = (piece.text for piece in open_corpus(args.files, ReadOptions(args.column)).pieces())
        tokenizer = BPETokenizer.train(texts, args.vocab_size, args.max_bytes)
        tokenizer.save(args.out)
        print(f"{args.out}: {tokenizer.vocab_size:,} tokens")
    else:
        tokenizer = BPETokenizer.load(args.tokenizer)
        ids = tokenizer.encode(args.text)
        for i in ids:
            print(f"{i:>7}  {tokenizer.show(i)}")
        print(f"{len(args.text):,} characters in {len(ids):,} tokens")


if __name__ == "__main__":
    main()
