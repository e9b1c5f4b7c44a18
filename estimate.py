"""Measure the loss of a checkpoint over a whole split of a text, in order.

    python estimate.py                                      the model that ships, on tiny Shakespeare
    python estimate.py checkpoints/my_run/best.pt --data my.txt --split all
"""

import math

import numpy as np

from data.corpora import DEFAULT_PATH
from data.prepare import open_tokens
from data.tokenizer import CharTokenizer
from training.checkpoint import SHIPPED, load_model
from training.evaluate import estimate_loss
from training.precision import autocast, pick_device, pick_dtype
from utils.errors import Parser, UserError, command
from utils.parameters import count_parameters

# What others have measured, on the validation split of tiny Shakespeare, per character. Losses on different texts, or
# per token of another kind, don't compare.
REFERENCES = {"tiny Shakespeare": [
    (1.4666, "BardGPT, 10.68 M parameters: the model that ships"),
    (1.4697, "nanoGPT, 10.65 M, as published"),
    (1.5029, "transformer_4d.py, 3.69 M, 7.6 minutes on 2 CPU cores"),
]}


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", default=SHIPPED,
                        help="a .pt file of train.py or transformer_4d.py (%(default)s)")
    parser.add_argument("--data", default=DEFAULT_PATH,
                        help="a text, or what else data.path of train.py takes (%(default)s)")
    parser.add_argument("--column", help="the column that holds the text, where there are columns")
    parser.add_argument("--split", choices=("val", "train", "all"), default="val",
                        help="its last tenth, the nine tenths before, or all of it (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="windows at once (%(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"batch_size cannot be {args.batch_size}: give a number above zero")

    device = pick_device(args.device)
    model, tokenizer = load_model(args.checkpoint, device)
    text = open_tokens(args.data, args.column, tokenizer)
    tokens = np.concatenate((text.train, text.val)) if args.split == "all" else getattr(text, args.split)
    if len(tokens) < 2:
        raise UserError(f"{args.data} is too short: its {args.split} split has {len(tokens)} tokens. Give more text")
    with autocast(device, pick_dtype(device)):
        loss = estimate_loss(model, tokens, args.batch_size)

    name = text.title
    written = tokens[1:][~np.isin(tokens[1:], [*tokenizer.special_ids])]  # the names of markers are no text
    bits = loss * (len(tokens) - 1) / max(1, len(tokenizer.decode(written))) / math.log(2)
    print(f"{args.checkpoint}: {type(model).__name__}, {count_parameters(model.config):,} parameters")
    print(f"{args.data} ({name}), split {args.split}: {len(tokens):,} tokens\n")
    print(f"loss                {loss:.4f}   nats per token")
    print(f"perplexity          {math.exp(loss):.3f}")
    print(f"bits per character  {bits:.4f}")
    if args.split == "val" and name in REFERENCES and isinstance(tokenizer, CharTokenizer):
        print(f"\nfor comparison, on the same split of {name}:")
        lines = [*REFERENCES[name], (math.log(model.config.vocab_size), "a blind guess"), (loss, "<- this checkpoint")]
        for reference, what in sorted(lines):
            print(f"  {reference:.4f}  {what}")


if __name__ == "__main__":
    main()
