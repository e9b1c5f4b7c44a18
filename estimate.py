"""Evaluate a checkpoint on its task, and compare the loss of a language model with baselines.

    python estimate.py                                      the checkpoint that ships, on tiny Shakespeare
    python estimate.py checkpoints/my_run/best.pt --data my.txt --split all
    python estimate.py --quantize int8                      before and after int8 quantization
    python estimate.py checkpoints/chat_small --data chat.txt         replies to held-out messages
    python estimate.py checkpoints/instruct --data test.json --split all --answers answers.json
    python estimate.py checkpoints/sentiment --data reviews.csv --split test --out errors

The loss of a language model on the validation split is compared with two baselines: the uniform distribution over the
vocabulary, and a 5-gram model of the training split of the same text. As in training, sequences start anywhere in the
text, without the start token of a Llama; llama.cpp puts one before each, so its perplexity can be slightly lower.
"""

import argparse
import math
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from data.known_texts import DEFAULT_PATH
from data.ngram import ngram_loss
from data.prepare import open_tokens
from data.token_files import Prepared
from data.windows import ConsecutiveWindows
from models.quantize import int8_summary, quantize_int8
from reading.options import ReadOptions, add_read_options, read_options
from records.report import DataReport, print_examples
from records.reviews import Review, label_ids
from tasks.classification import classify
from tasks.kinds import TASKS
from tasks.scores import format_scores, scores, write_errors
from tokenization.base import Tokenizer
from tokenization.characters import CharTokenizer
from training.checkpoint import CHECKPOINT_HELP, SHIPPED, Loaded, load_checkpoint
from training.evaluate import estimate_loss
from training.plots import plot_confusion
from training.precision import autocast, avoid_attention_plans, pick_device, pick_dtype
from training.settings import DataSettings, Settings
from utils.errors import Parser, UserError, command
from utils.files import check_writable
from utils.forecast.parameters import count_parameters
from utils.printable import one_line
from utils.quantities import quantity

# Validation losses on tiny Shakespeare, in nats per character. A loss on another text or per token of another
# tokenizer is not comparable.
REFERENCES = {"tiny Shakespeare": [
    (1.4666, "BardGPT, 10.68M parameters: the checkpoint that ships"),
    (1.4697, "nanoGPT, 10.65M parameters, as published"),
    (1.4725, "transformer_4d.py, 3.69M parameters, ten minutes on 2 CPU cores, mean of three seeds"),
]}


OPTIONS = {  # options for one task: the task, and the YAML file that trains a model for it
    "answers": ("instruction", "config/instruct.yaml"),
    "out": ("classification", "config/sentiment.yaml"),
    "label_column": ("classification", "config/sentiment.yaml"),
    "split_seed": ("classification", "config/sentiment.yaml"),
}


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("checkpoint", nargs="?", default=SHIPPED, help=CHECKPOINT_HELP)
    parser.add_argument("--data", help="a file, or anything that data.path of train.py accepts for the task of the "
                                       f"checkpoint (language models: {DEFAULT_PATH})")
    add_read_options(parser)
    parser.add_argument("--label_column", "--data.label_column", help="as --data.label_column of train.py")
    parser.add_argument("--split_seed", "--data.split_seed", type=int, help="as --data.split_seed of train.py")
    parser.add_argument("--split", choices=("val", "train", "test", "all"), default="val",
                        help="val: about a tenth of the data, as in training; train: the rest; test: of reviews, those "
                             "that training leaves; all: the whole data (%(default)s)")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="write the answers to instructions to this .json")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write misclassified reviews (errors.csv) and the "
                                                                   "confusion matrix (confusion.png) to this folder")
    parser.add_argument("--quantize", choices=("int8",), help="evaluate the model before and after its weights are "
                                                              "quantized")
    parser.add_argument("--batch_size", type=int, default=32, help="batch size, in sequences (%(default)s)")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="(%(default)s)")
    args = parser.parse_args()
    if args.batch_size < 1:
        raise UserError(f"batch_size must be > 0, got {args.batch_size}")

    device = pick_device(args.device)
    avoid_attention_plans()
    loaded = load_checkpoint(args.checkpoint, device)
    check_options(args, loaded.task["kind"])
    for path in output_files(args):
        check_writable(path)
    options = read_options(args)
    if loaded.task["kind"] == "language":
        evaluate_language_model(loaded, args, options)
    else:
        evaluate_on_examples(loaded, args, options)


def check_options(args: argparse.Namespace, kind: str) -> None:
    """Raise UserError unless the options are for a checkpoint whose task is `kind`."""
    for name, (task, config) in OPTIONS.items():
        if getattr(args, name) is not None and kind != task:
            raise UserError(f"--{name} is for the task {task}, and {args.checkpoint} is for the task {kind}: leave it "
                            f"out, or train a model with python train.py {config}")
    if args.split == "test" and kind != "classification":
        raise UserError(f"--split test is for the task classification, and {args.checkpoint} is for the task {kind}: "
                        "use --split val, or --split all for a file of test data")
    if args.data is None and kind != "language":
        raise UserError(f"{args.checkpoint} is for the task {kind}: pass its {TASKS[kind].noun} as --data")


def output_files(args: argparse.Namespace) -> list[Path]:
    """Return the files that the command line asks for."""
    if args.answers:
        return [args.answers]
    if args.out:
        return [args.out / "errors.csv", args.out / "confusion.png"]
    return []


def autocast_fast(model: nn.Module) -> torch.autocast:
    """Context in which the matrix products of a model are computed in the fastest safe dtype."""
    device = model.device.type
    return autocast(device, pick_dtype(device))


def print_model(loaded: Loaded, args: argparse.Namespace) -> None:
    """Print the name, the size and the task of a model."""
    model, n_params = loaded.model, count_parameters(loaded.model.config)
    print(one_line(f"{args.checkpoint}: {type(model).__name__}, {n_params:,} parameters, for the task "
                   f"{loaded.task['kind']}"))
    if args.quantize == "int8":
        print(int8_summary(model.config))


def losses(model: nn.Module, batches: Collection[tuple[Tensor, Tensor]],
           quantize: str | None) -> tuple[float, float | None]:
    """Return (loss, loss before quantization) of a model over batches (x, y), in nats per target.

    If `quantize` is "int8", the model is quantized; else the second loss is None.
    """
    with autocast_fast(model):
        loss = estimate_loss(model, batches)
        if quantize is None:
            return loss, None
        quantize_int8(model)
        return estimate_loss(model, batches), loss


# ---- Language models -------------------------------------------------------------------------------------------------


def evaluate_language_model(loaded: Loaded, args: argparse.Namespace, options: ReadOptions) -> None:
    """Print the loss on a text and, for the validation split, a comparison. Raises UserError if it is too short."""
    model, tokenizer = loaded[:2]
    path = DEFAULT_PATH if args.data is None else args.data
    text = open_tokens(path, options, tokenizer)
    tokens = np.concatenate((text.train, text.val)) if args.split == "all" else getattr(text, args.split)
    if len(tokens) < 2:
        raise UserError(f"{path} is too short: its {args.split} split has {quantity(len(tokens), 'tokens')}, and at "
                        "least 2 are needed. Use a longer text")
    loss, float_loss = losses(model, ConsecutiveWindows(tokens, model.block_size, args.batch_size), args.quantize)
    print_model(loaded, args)
    print(one_line(f"{path} ({text.title}), split {args.split}: {quantity(len(tokens), 'tokens')}"))
    print_loss(loss, float_loss)
    print(f"bits per character  {bits_per_character(loss, tokens[1:], tokenizer):.4f}")
    if args.split == "val":
        print_comparison(loss, text, model.config.vocab_size)


def print_loss(loss: float, float_loss: float | None) -> None:
    """Print a loss in nats per token and, unless it is None, the loss before quantization."""
    print()
    print(f"loss                {loss:.4f}   nats per token")
    if float_loss is not None:
        print_change(loss, float_loss)
    print(f"perplexity          {perplexity(loss):.3f}")


def print_change(loss: float, float_loss: float) -> None:
    """Print the loss before quantization, and the change by it."""
    print(f"not quantized: loss {float_loss:.4f}, change {loss - float_loss:+.4f}")


def perplexity(loss: float) -> float:
    """Return exp(loss), or infinity if that exceeds the range of a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def bits_per_character(loss: float, targets: np.ndarray, tokenizer: Tokenizer) -> float:
    """Convert a mean loss in nats per token over `targets` (N) to bits per character of their text."""
    in_text = targets[~np.isin(targets, list(tokenizer.special_ids))]  # special tokens have no characters in the text
    characters = max(1, len(tokenizer.decode(in_text)))
    return loss * len(targets) / characters / math.log(2)


def print_comparison(loss: float, text: Prepared, vocab_size: int) -> None:
    """Print a validation loss beside the baselines and, if there are any, the references; then the verdict."""
    uniform, ngram = math.log(vocab_size), ngram_loss(text.train, text.val, vocab_size)
    rows = [(uniform, "uniform baseline, ln V"), (ngram, "5-gram baseline"), (loss, "<- this checkpoint")]
    if isinstance(text.tokenizer, CharTokenizer):
        rows += REFERENCES.get(text.title, [])
    print()
    print(one_line(f"comparison on the validation split of {text.title}:"))
    for row_loss, name in sorted(rows):
        print(f"  {row_loss:.4f}  {name}")
    print(f"\n{verdict(loss, uniform, ngram)}")


def verdict(loss: float, uniform: float, ngram: float) -> str:
    """Return one line that interprets a validation loss, given the two baselines; all in nats per token."""
    if not loss < uniform:  # NaN included
        return ("No better than the uniform baseline: the checkpoint is untrained, or was trained on a different text "
                "or with a different tokenizer.")
    if loss >= ngram:
        return ("Between the uniform and the 5-gram baseline: undertrained (train longer), overfitting (the loss on "
                "--split train is much lower), or trained on a different text.")
    return "Better than the 5-gram baseline, which sees only the last 4 tokens: normal for a trained GPT."


# ---- Other tasks -----------------------------------------------------------------------------------------------------


def evaluate_on_examples(loaded: Loaded, args: argparse.Namespace, options: ReadOptions) -> None:
    """Print reports on the file and the split, and the metrics of a task. Raises UserError if it has no example."""
    model, tokenizer, entry, reply = loaded
    data = DataSettings(path=args.data, label_column=args.label_column, split_seed=args.split_seed or 0,
                        mask_padding=entry.get("mask_padding", True))
    task = TASKS[entry["kind"]](Settings(data=data), options, tokenizer, entry)
    records = task.records if args.split == "all" else task.splits[args.split]
    file_report = task.report
    task.report = DataReport(f"split {args.split} of {args.data}", task.noun, n_records=len(records))
    examples = task.make_examples(records, model.block_size)
    print_model(loaded, args)
    file_report.print()
    task.report.print()
    print_examples("evaluated", examples)
    if not len(examples):
        raise UserError(f"{args.data} has no example in the split {args.split}: use other data, or --split all")
    if entry["kind"] == "classification":
        evaluate_classifier(loaded, args, records)
        return
    print_loss(*losses(model, examples.batches(args.batch_size), args.quantize))
    config = replace(reply, seed=0)
    if args.answers:
        task.write_answers(model, records, config, args.answers)
    else:
        task.evaluate(model, records, config)


def evaluate_classifier(loaded: Loaded, args: argparse.Namespace, reviews: list[Review]) -> None:
    """Print the scores of a classifier on reviews, and write its errors to --out."""
    labels = loaded.task["labels"]
    ids = label_ids(reviews, labels)
    if args.quantize == "int8":
        float_loss = review_loss(label_probabilities(loaded, reviews), ids)
        quantize_int8(loaded.model)
    start = time.perf_counter()
    probabilities = label_probabilities(loaded, reviews)
    seconds = time.perf_counter() - start
    result, loss = scores(labels, ids, probabilities), review_loss(probabilities, ids)
    print(f"\n{format_scores(result)}")
    print(f"loss {loss:.4f} nats per review; {quantity(len(reviews), 'reviews')} in {seconds:.1f} s")
    if args.quantize == "int8":
        print_change(loss, float_loss)
    if args.out:
        write_errors(args.out / "errors.csv", reviews, labels, probabilities)
        plot_confusion(result, args.out / "confusion.png")
        print(one_line(f"{args.out}: the misclassified reviews in errors.csv, the confusion matrix in confusion.png"))


def label_probabilities(loaded: Loaded, reviews: list[Review]) -> np.ndarray:
    """Return the probabilities (reviews, classes) of a classifier."""
    with autocast_fast(loaded.model):
        return classify(loaded.model, loaded.tokenizer, loaded.task, reviews)


def review_loss(probabilities: np.ndarray, ids: np.ndarray) -> float:
    """Return the mean loss, in nats per review, of probabilities (N, classes) for the classes `ids` (N)."""
    with np.errstate(divide="ignore"):  # a probability of 0 is an infinite loss
        return -np.log(probabilities[np.arange(len(ids)), ids]).mean()


if __name__ == "__main__":
    main()
