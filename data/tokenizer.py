"""Train a tokenizer, or show how a text is tokenized.

    python -m data.tokenizer train my_text.txt --vocab_size 20000 --out tokenizer.json
    python -m data.tokenizer show tokenizer.json "a sentence"
    python -m data.tokenizer show gpt2 "a sentence"
"""

from pathlib import Path

from data.corpora import open_corpus
from data.prepare import pieces_with_progress
from reading.options import add_read_options, read_options
from tokenization.bpe import MAX_BYTES, BPETokenizer
from tokenization.load import SOURCES, load_tokenizer
from utils.errors import Parser, command
from utils.quantities import quantity


@command
def main() -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="train a byte-level BPE on texts")
    train.add_argument("files", nargs="+", help="files and folders, or hf:NAME, as data.path of train.py")
    add_read_options(train)
    train.add_argument("--vocab_size", type=int, default=20_000, help="maximum vocabulary size (%(default)s)")
    train.add_argument("--max_bytes", type=int, default=MAX_BYTES,
                       help="train on a sample of at most this many bytes, which bounds the memory (%(default)s)")
    train.add_argument("--out", type=Path, default="tokenizer.json", help="(%(default)s)")
    show = commands.add_parser("show", help="show how a text is tokenized")
    show.add_argument("tokenizer", help=SOURCES)
    show.add_argument("text")
    args = parser.parse_args()
    if args.command == "train":
        corpus = open_corpus(args.files[0] if len(args.files) == 1 else args.files, read_options(args))
        texts = (piece.text for piece in pieces_with_progress(corpus, "reading the text"))
        tokenizer = BPETokenizer.train(texts, args.vocab_size, args.max_bytes, ", ".join(args.files))
        tokenizer.save(args.out)
        print(f"{args.out}: {tokenizer.vocab_size:,} tokens")
    else:
        tokenizer = load_tokenizer(args.tokenizer)
        ids = tokenizer.encode(args.text)
        for i in ids:
            print(f"{i:>7}  {tokenizer.show(i)}")
        print(f"{quantity(len(args.text), 'characters')} in {quantity(len(ids), 'tokens')}")


if __name__ == "__main__":
    main()
