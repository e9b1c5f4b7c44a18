"""Measure the loss of a checkpoint on one split of a text, and say whether it is normal.

    python estimate.py                                      the checkpoint that ships, on tiny Shakespeare
    python estimate.py checkpoints/my_run/best.pt --data my.txt --split all

On the validation split the loss is compared with two baselines: the uniform distribution over the vocabulary, and a
5-gram model that counts the training split of the same text.
"""

import math
from dataclasses import fields

import numpy as np

from data.corpora import DEFAULT_PATH
from data.ngram import ngram_loss
from data.prepare import open_tokens
from data.readers import ReadOptions
from data.tokenizer import CharTokenizer
from data.windows import ConsecutiveWindows
from training.checkpoint import SHIPPED, load_model
from training.evaluate import estimate_loss
from training.precision import autocast, pick_device, pick_dtype
from utils.errors import Parser, UserError, command
from utils.parameters import count_parameters
from utils.printable import one_line

# Validation losses on tiny Shakespeare, in nats per character. A loss on another text or per token of another
# tokenizer is not comparable.
REFERENCES = {"tiny Shakespeare": [
    (1.4666, "BardGPT, 10.68M parameters: the checkpoint that ships"),
    (1.4697, "nanoGPT, 10.65M parameters, as published"),
    (1.4725, "transformer_4d.py, 3.69M parameters, ten minutes on 2 CPU cores, mean of three seeds"),
]}


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", default=SHIPPED,
                        help="a checkpoint of train.py or transformer_4d.py (%(default)s)")
    parser.add_argument("--data", default=DEFAULT_PATH,
                        help="a text file, or anything that data.path of train.py accepts (%(default)s)")
    for field in fields(ReadOptions):
        parser.add_argument(f"--{field.name}", f"--data.{field.name}", help=f"as --data.{field.name} of train.py")
    parser.add_argument("--split", choices=("val", "train", "all"), default="val",
                        help="val: about the last tenth of the text; train: the rest; all: both (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="batch size, in sequences (%(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"batch_size must be > 0, got {args.batch_size}")

    device = pick_device(args.device)
    model, tokenizer = load_model(args.checkpoint, device)
    options = ReadOptions(**{field.name: getattr(args, field.name) for field in fields(ReadOptions)})
    text = open_tokens(args.data, options, tokenizer)
    tokens = np.concatenate((text.train, text.val)) if args.split == "all" else getattr(text, args.split)
    if len(tokens) < 2:
        raise UserError(f"{args.data} is too short: its {args.split} split has {len(tokens)} token(s), and at least 2 "
                        "are needed. Use a longer text")
    with autocast(device, pick_dtype(device)):
        loss = estimate_loss(model, ConsecutiveWindows(tokens, model.block_size, args.batch_size))

    print(one_line(f"{args.checkpoint}: {type(model).__name__}, {count_parameters(model.config):,} parameters"))
    print(one_line(f"{args.data} ({text.title}), split {args.split}: {len(tokens):,} tokens"))
    print()
    print(f"loss                {loss:.4f}   nats per token")
    print(f"perplexity          {perplexity(loss):.3f}")
    print(f"bits per character  {bits_per_character(loss, tokens[1:], tokenizer):.4f}")
    if args.split == "val":
        print_comparison(loss, text, model.config.vocab_size)


def perplexity(loss):
    """exp(loss), or infinity where that exceeds the range of a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_character(loss, targets, tokenizer):
    """Convert a mean loss in nats per token over `targets` (N) to bits per character of the text they encode."""
    in_text = targets[~np.isin(targets, list(tokenizer.special_ids))]  # special tokens have no characters in the text
    characters = max(1, len(tokenizer.decode(in_text)))
    return loss * len(targets) / characters / math.log(2)


def print_comparison(loss, text, vocab_size):
    """Print a validation loss between the baselines and, where there are any, the references; then the verdict."""
    uniform, ngram = math.log(vocab_size), ngram_loss(text.train, text.val, vocab_size)
    rows = [(uniform, "uniform baseline, ln V"), (ngram, "5-gram baseline"), (loss, "<- this checkpoint")]
    if isinstance(text.tokenizer, CharTokenizer):
        rows += REFERENCES.get(text.title, [])
    print()
    print(one_line(f"comparison on the validation split of {text.title}:"))
    for row_loss, name in sorted(rows):
        print(f"  {row_loss:.4f}  {name}")
    print(f"\n{verdict(loss, uniform, ngram)}")


def verdict(loss, uniform, ngram):
    """One line that says whether a validation loss is normal, given the two baselines; all in nats per token."""
    if not loss < uniform:  # NaN included
        return ("No better than the uniform baseline: the checkpoint is untrained, or was trained on a different text "
                "or with a different tokenizer.")
    if loss >= ngram:
        return ("Between the uniform and the 5-gram baseline: undertrained (train longer), overfitting (the loss on "
                "--split train is much lower), or trained on a different text.")
    return "Better than the 5-gram baseline, which sees only the last 4 tokens: normal for a trained GPT."


if __name__ == "__main__":
    main()
