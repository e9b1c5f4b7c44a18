"""Speed of data preparation, data/prepare.py against the `tokenizers` library alone, in turns on the same text.

    python benchmarks/prepare.py TEXT [TEXT ...]

The texts are concatenated and repeated up to --megabytes. Ours is everything that a run waits for: read the text, check
its encoding, split it into pieces, tokenize, write train.bin and val.bin. The library tokenizes the same pieces from
memory, and its output is discarded. Both use all cores.
"""

import os
import shutil
import sys
import tempfile
from itertools import cycle
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ["TQDM_DISABLE"] = "1"  # one line per turn is enough

from side_by_side import in_turns  # noqa: E402

from data.corpora import open_corpus  # noqa: E402
from data.prepare import batches, prepare  # noqa: E402
from data.token_files import Prepared  # noqa: E402
from reading.text_files import read_text  # noqa: E402
from tokenization.load import load_tokenizer  # noqa: E402
from utils.errors import Parser, command  # noqa: E402


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("texts", type=Path, nargs="+", help="texts to concatenate and repeat")
    parser.add_argument("--tokenizer", default="gpt2", help="gpt2, a tokenizer.json or a folder (%(default)s)")
    parser.add_argument("--megabytes", type=int, default=100, help="size of the text in MB (%(default)s)")
    parser.add_argument("--turns", type=int, default=3, help="turns; medians are reported (%(default)s)")
    args = parser.parse_args()

    tokenizer = load_tokenizer(args.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "text.txt"
        with open(path, "wb") as file:
            for text in cycle([read_text(text).encode() for text in args.texts]):
                file.write(text)
                if file.tell() >= args.megabytes * 1_000_000:
                    break

        def prepare_text() -> Prepared:
            shutil.rmtree(path.parent / "prepared", ignore_errors=True)
            return prepare(open_corpus(path), tokenizer)

        prepared = prepare_text()
        n_tokens = len(prepared.train) + len(prepared.val)
        print(f"{path.stat().st_size / 1e6:.0f} MB, {n_tokens:,} tokens, {os.cpu_count()} cores\n")
        texts = [[piece.text for piece in batch] for batch in batches(open_corpus(path).pieces())]

        def tokenize() -> None:
            for batch in texts:
                tokenizer.library.encode_batch_fast(batch, add_special_tokens=False)

        speed = in_turns({"ours": prepare_text, "tokenizers": tokenize}, n_tokens, args.turns)
    print(f"\nours takes {speed['tokenizers'] / speed['ours']:.3f} times as long as the library alone")


if __name__ == "__main__":
    main()
