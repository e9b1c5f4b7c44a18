"""Tokenizers: text to token ids and back.

    python -m data.tokenizer train my_text.txt --vocab_size 20000 --out tokenizer.json
    python -m data.tokenizer show tokenizer.json "a sentence"
    python -m data.tokenizer show gpt2 "a sentence"
"""

import json
import re
from itertools import chain
from pathlib import Path

from data.bpe import MAX_BYTES, BPETokenizer
from data.char_files import characters_in, to_library
from data.download import download, hub_endpoints
from data.library_tokenizer import MAX_FILE_BYTES, NEVER, SPECIAL_TOKENS, SURROGATE, LibraryTokenizer
from data.llama2c import read_tokenizer_bin
from data.meta_pickle import characters_in_meta
from data.sentencepiece_bpe import SentencePieceTokenizer, is_sentencepiece
from utils.errors import Parser, UserError, command
from utils.files import replacing

GPT2_FOLDER = Path(__file__).parent / "gpt2"
GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
GPT2_ON_HUB = "openai-community/gpt2/resolve/main"
GPT2_FILES = (  # name at GPT2_URL, name on the Hugging Face hub, sha256
    ("encoder.json", "vocab.json", "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"),
    ("vocab.bpe", "merges.txt", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
)
SOURCES = ("gpt2, a tokenizer.json, llama2.c's tokenizer.bin, or a folder with tokenizer.json, vocab.json and "
           "merges.txt, encoder.json and vocab.bpe, meta.pkl, or tokenizer.bin")
UNREAD = {"tokenizer.model": "SentencePiece", "vocab.txt": "WordPiece"}  # files of tokenizers
KINDS = {tokenizer.kind: tokenizer for tokenizer in (BPETokenizer, SentencePieceTokenizer)}  # besides "char"


class CharTokenizer:
    """One token per character and, if `special`, the tokens of SPECIAL_TOKENS behind them.

    `padding`, `message_start`, `message_end`, `end_of_text`, `special_tokens`, `special_ids` and `text_start` are as in
    LibraryTokenizer: `encode` never returns a special token.

    >>> tokenizer = CharTokenizer("abc", special=True)
    >>> tokenizer.encode("cab")
    [2, 0, 1]
    >>> tokenizer.decode([2, 0, 1, tokenizer.message_end])
    'cab<|im_end|>'
    """

    text_start = None

    def __init__(self, vocab, where="the tokenizer", special=False):
        """`vocab` is the string of all characters, in the order of their ids. Raises UserError, which names `where`,
        if it is empty, repeats a character or has a lone surrogate."""
        self.vocab, self.special = vocab, special
        self.tokens = [*vocab, *SPECIAL_TOKENS.values()] if special else [*vocab]
        self.special_tokens = {token: i for i, token in enumerate(self.tokens[len(vocab) :], len(vocab))}
        self.special_ids = frozenset(self.special_tokens.values())
        for name, token in SPECIAL_TOKENS.items():
            setattr(self, name, self.special_tokens.get(token))
        self.ids = {character: i for i, character in enumerate(vocab)}
        if not vocab:
            raise UserError(f"{where} has an empty vocabulary: use another one")
        if len(self.ids) < len(vocab):
            raise UserError(f"{where} has a character twice in its vocabulary: use another one")
        if SURROGATE.search("".join(vocab)):
            raise UserError(f"{where} has a lone surrogate in its vocabulary: use another one")

    @classmethod
    def of_text(cls, text, where="the text"):
        """The tokenizer of all characters of a text (a string or an iterable of characters), in code point order.
        Raises UserError, which names `where`, if there are none."""
        vocab = sorted(set(text))
        if not vocab:
            raise UserError(f"{where} is empty: use another text")
        return cls("".join(vocab), where)

    def with_special_tokens(self):
        """A tokenizer with the same ids that also has all of SPECIAL_TOKENS."""
        return self if self.special else CharTokenizer(self.vocab, special=True)

    @property
    def vocab_size(self):
        return len(self.tokens)

    @property
    def start_id(self):
        """The context of the first token of a text: a line feed, where the vocabulary has one."""
        return self.ids.get("\n", 0)

    def unknown(self, text):
        """The characters of a text that the vocabulary lacks, each once, in order."""
        return [character for character in dict.fromkeys(text) if character not in self.ids]

    def encode(self, text):
        """A list of token ids. Raises UserError if the vocabulary lacks a character of the text."""
        try:
            return [self.ids[character] for character in text]
        except KeyError:
            raise UserError(f"the text has characters that are not in the vocabulary: {quote_all(self.unknown(text))}. "
                            "Use the text that the model was trained on, or a model with a BPE tokenizer") from None

    def encode_batch(self, texts):
        """A list of token ids for each text. Raises UserError as `encode` does."""
        return [self.encode(text) for text in texts]

    def encode_with_special_tokens(self, text, fill):
        """As in LibraryTokenizer."""
        names, ids = "|".join(map(re.escape, self.special_tokens)), []
        for i, part in enumerate(re.split(f"({names or NEVER})", text)):
            ids += [self.special_tokens[part]] if i % 2 else self.encode(fill(part))
        return ids

    def decode(self, ids):
        """The text of token ids, special tokens by name."""
        return "".join(self.tokens[i] for i in ids)

    def stream(self, before=()):
        """A function from each next token id to the text it completes, and from None to what is left: nothing.

        The ids `before` make no difference: no token depends on others.
        """
        return lambda token=None: "" if token is None else self.tokens[token]

    def show(self, i):
        """A token for display."""
        return repr(self.tokens[i])

    def to_dict(self):
        saved = {"kind": "char", "vocab": self.vocab}
        if self.special:  # only then, so that tokenizers without special tokens are saved as before
            saved["special"] = True
        return saved

    @property
    def library(self):
        """The same tokenizer as one of the `tokenizers` library."""
        return to_library(self.vocab, self.special)

    def save(self, path):
        """Write the result of `to_dict` as JSON. Raises UserError."""
        with replacing(path) as file:
            file.write(json.dumps(self.to_dict()).encode())


Tokenizer = CharTokenizer | LibraryTokenizer


def without_unknown(text: str, tokenizer: Tokenizer) -> tuple[str, list[str]]:
    """(text without the characters that a tokenizer cannot encode, list of those, each once).

    >>> without_unknown("a, b!", CharTokenizer("ab "))
    ('a b', [',', '!'])
    """
    unknown = tokenizer.unknown(text)
    return text.translate(dict.fromkeys(map(ord, unknown))), unknown


def quote_all(characters, limit=10):
    """A list of characters for a message, of which only the first `limit` are shown.

    >>> quote_all(["x", "y", "z"], limit=2)
    "'x', 'y' and 1 more"
    """
    quoted = ", ".join(map(repr, characters[:limit]))
    return quoted if len(characters) <= limit else f"{quoted} and {len(characters) - limit:,} more"


def train_tokenizer(texts, kind, vocab_size=20_000, max_bytes=MAX_BYTES, where="the text"):
    """The tokenizer of an iterable of texts: `char`, their characters, or `bpe`, as BPETokenizer.train. Raises
    UserError, which names `where`."""
    if kind == "char":
        return CharTokenizer.of_text(chain.from_iterable(texts), where)
    return BPETokenizer.train(texts, vocab_size, max_bytes, where)


# ---- Loading ---------------------------------------------------------------------------------------------------------


def load_tokenizer(source):
    """The tokenizer of a name or a path: one of SOURCES, or a file that the `save` of a tokenizer wrote. Raises
    UserError."""
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


def load_from_folder(folder):
    """The tokenizer in a folder, None if there is none. Raises UserError for damaged files, and OSError."""
    for name in ("tokenizer.json", "meta.pkl", "tokenizer.bin"):
        if (folder / name).is_file():
            return load_file(folder / name)
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        vocab, merges = (folder / name for name in names)
        if vocab.is_file() and merges.is_file():
            return BPETokenizer.from_vocab_and_merges(read_file(vocab), read_file(merges), f"{vocab} with {merges}")
    return None


def load_file(path):
    """The tokenizer in a .json, .pkl or .bin file. Raises UserError if it is damaged, and OSError."""
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
    characters = characters_in(saved)
    if characters:
        return CharTokenizer(characters[0], path, special=characters[1])
    if is_sentencepiece(saved):
        return SentencePieceTokenizer(content, path)
    return BPETokenizer(content, path)


def read_file(path):
    """The bytes of a tokenizer's file. Raises UserError unless it is a regular file of a sensible size, and OSError."""
    if not path.is_file():
        raise UserError(f"there is no tokenizer {path}: use {SOURCES}")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"{path} has more than {MAX_FILE_BYTES:,} bytes, too many for a tokenizer: use {SOURCES}")
    return path.read_bytes()


def tokenizer_from_dict(saved, where="the tokenizer"):
    """The tokenizer that `to_dict` returned `saved` for, as checkpoints contain it. Raises UserError, which names
    `where`."""
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


def fetch_gpt2():
    """The folder with GPT-2's encoder.json and vocab.bpe, downloaded on first use. Raises UserError."""
    for name, name_on_hub, sha256 in GPT2_FILES:
        on_hub = [f"{endpoint}/{GPT2_ON_HUB}/{name_on_hub}" for endpoint in hub_endpoints()]
        download([f"{GPT2_URL}/{name}", *on_hub], GPT2_FOLDER / name, sha256)
    return GPT2_FOLDER


# ---- Command line ----------------------------------------------------------------------------------------------------


@command
def main():
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a byte-level BPE on texts")
    train.add_argument("files", nargs="+", help="files and folders, as for data.path of train.py")
    train.add_argument("--column", help="the column that contains the text, for .jsonl, .csv and .parquet files")
    train.add_argument("--vocab_size", type=int, default=20_000, help="maximum vocabulary size (%(default)s)")
    train.add_argument("--max_bytes", type=int, default=MAX_BYTES,
                       help="train on a sample of at most this many bytes, which bounds the memory (%(default)s)")
    train.add_argument("--out", type=Path, default="tokenizer.json", help="(%(default)s)")
    show = commands.add_parser("show", help="show how a text is tokenized")
    show.add_argument("tokenizer", help=SOURCES)
    show.add_argument("text")
    args = parser.parse_args()
    if args.command == "train":
        from data.corpora import open_corpus  # only here: a tokenizer needs no corpus
        from data.readers import ReadOptions

        corpus = open_corpus(args.files, ReadOptions(column=args.column))
        texts = (piece.text for piece in corpus.pieces())
        tokenizer = BPETokenizer.train(texts, args.vocab_size, args.max_bytes, ", ".join(args.files))
        tokenizer.save(args.out)
        print(f"{args.out}: {tokenizer.vocab_size:,} tokens")
    else:
        tokenizer = load_tokenizer(args.tokenizer)
        ids = tokenizer.encode(args.text)
        for i in ids:
            print(f"{i:>7}  {tokenizer.show(i)}")
        print(f"{len(args.text):,} characters in {len(ids):,} tokens")


if __name__ == "__main__":
    main()
