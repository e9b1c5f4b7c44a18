"""What a model has, what it takes to train it and to let it write, and what fits: computed, nothing is built.

    python utils/num_params_calculate.py                                       the model of transformer_4d.py
    python utils/num_params_calculate.py --model GPT2 --batch_size 32 --memory 8GiB
    python utils/num_params_calculate.py --model UltimateModel --n_embd 512 --num_heads 8 --memory 24GiB --plot fits.png
    python utils/num_params_calculate.py --model GPT2XL --gpus 8 --strategy fsdp --memory 80GiB \\
        --flops 2e14 --tokens 3e10 --price 2.5

On a CPU the memory is within half a percent of what PyTorch hands out (benchmarks/memory.py). What is said of CUDA
follows from reading PyTorch's kernels, without torch.compile, and has not been measured yet.
"""

import argparse
import dataclasses
import difflib
import re
import sys
from pathlib import Path
from types import UnionType
from typing import Literal, get_args, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.config import ModelConfig  # noqa: E402
from utils.errors import Parser, UserError, command  # noqa: E402
from utils.files import replacing  # noqa: E402
from utils.memory import (  # noqa: E402
    GIB,
    KIB,
    MIB,
    PARTS,
    Plan,
    advice,
    cache_bytes,
    cache_dtype,
    inference_memory,
    largest_batch,
    readable,
    training_memory,
    weight_bytes,
)
from utils.parameters import count_parameters, flops_per_token, parameter_table, symbols  # noqa: E402

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": KIB, "mib": MIB, "gib": GIB, "tib": 2**40}


def bytes_of(text):
    """The bytes that a text such as 8GiB or 24GB names. Raises UserError."""
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if not found or found[2].lower() not in UNITS:
        raise UserError(f"memory cannot be {text!r}: give a number and a unit, such as 8GiB or 24GB")
    size = int(float(found[1]) * UNITS[found[2].lower()])
    if not size:
        raise UserError(f"memory cannot be {text!r}: give more than nothing")
    return size


def positive(text):
    """A number above zero, for argparse."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above zero")
    return number


def add_model_arguments(parser):
    """An option for each field of ModelConfig."""
    for field in dataclasses.fields(ModelConfig):
        kinds = get_args(field.type) if get_origin(field.type) in (Literal, UnionType) else (field.type,)
        if get_origin(field.type) is Literal:
            parser.add_argument(f"--{field.name}", choices=kinds)
        elif kinds[0] is bool:
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(f"--{field.name}", type=kinds[0], metavar="N")


def parse():
    """The command line. Raises UserError."""
    parser = Parser(__doc__)
    parser.add_argument("--model", default="TransformerModel", help="a class of models/zoo.py (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="windows in a micro-batch, per GPU (%(default)s)")
    parser.add_argument("--accumulation", type=int, default=1, help="micro-batches in a step (%(default)s)")
    parser.add_argument("--dtype", default="bf16", choices=(*DTYPES, *DTYPES.values()),
                        help="what matrices are multiplied in (%(default)s)")
    parser.add_argument("--optimizer", default="muon", choices=("muon", "adamw"), help="(%(default)s)")
    parser.add_argument("--activation_checkpointing", action="store_true",
                        help="compute activations again instead of keeping them")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="(%(default)s)")
    parser.add_argument("--gpus", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--strategy", default="ddp", choices=("ddp", "fsdp"),
                        help="with more than one GPU: each has everything, or its share (%(default)s)")
    parser.add_argument("--memory", help="of one GPU, or of the machine: 8GiB, 24GB")
    parser.add_argument("--flops", type=positive, help="operations per second that one GPU really does: 4e13")
    parser.add_argument("--tokens_per_second", type=positive, help="of all GPUs together, where it was measured")
    parser.add_argument("--tokens", type=positive, help="to train on, all in all: 1e9")
    parser.add_argument("--price", type=positive, help="of one GPU for an hour")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw what the memory is made of")
    add_model_arguments(parser.add_argument_group("changes to the model", "explained in models/config.py"))
    return parser.parse_args()


def configuration(args):
    """The ModelConfig that the command line describes. Raises UserError."""
    from models.zoo import ZOO  # here, so that --help and a mistyped option need not wait for torch

    if args.model not in ZOO:
        names = {name.lower(): name for name in ZOO}
        near = difflib.get_close_matches(args.model.lower(), names, n=1, cutoff=0)[0]
        raise UserError(f"there is no model {args.model}: did you mean {names[near]}? There are {', '.join(ZOO)}")
    changes = {field.name: getattr(args, field.name) for field in dataclasses.fields(ModelConfig)}
    return dataclasses.replace(ZOO[args.model].config, **{k: v for k, v in changes.items() if v is not None})


def show_parameters(c):
    n, rows = count_parameters(c), parameter_table(c)
    print("Parameters\n  " + "   ".join(f"{letter} = {name} {value:,}" for letter, (name, value) in symbols(c).items()))
    print(f"\n  {'component':36}{'shape':>16}  {'formula':38}{'count':>15}{'share':>8}")
    for row in rows:
        shape = " x ".join(f"{side:,}" for side in row.shape)
        print(f"  {row.component:36}{shape:>16}  {row.formula:38}{row.count:>15,}{row.count / n:>8.1%}")
    if c.tied:
        print(f"  {'head.weight':54}  {'the token embedding once more':38}{0:>15}{0:>8.1%}")
    print(f"  {'total':92}{n:>15,}{1:>8.1%}")


def describe(plan):
    """A plan in words."""
    words = [f"{plan.batch_size} windows at once" + f", {plan.accumulation} times a step" * (plan.accumulation > 1),
             plan.dtype + " by autocast" * plan.autocast, {"muon": "Muon and AdamW", "adamw": "AdamW"}[plan.optimizer]]
    if plan.activation_checkpointing:
        words.append("activation checkpointing")
    words.append("on a CPU" if plan.device == "cpu" else "on CUDA" if plan.gpus == 1
                 else f"on each of {plan.gpus} GPUs by {plan.strategy.upper()}")
    return ", ".join(words)


def show_parts(memory):
    for part, n in memory.parts.items():
        print(f"  {part:24}{readable(n):>14}{n / memory.total:>8.1%}")
    print(f"  {'total':24}{readable(memory.total):>14}{1:>8.1%}")


def show_training(c, plan):
    memory = training_memory(c, plan)
    print(f"\nTraining: {describe(plan)}")
    show_parts(memory)
    outside = memory.parts["context and allocator"]
    print("  at the peak of a step; of its phases take " + ", ".join(
        f"{phase} {readable(most + outside)}" for phase, most in memory.phases.items()))
    if plan.device == "cuda":
        print("  on CUDA derived from PyTorch's kernels and not measured yet; torch.compile takes less")


def show_inference(c, device):
    T = c.block_size
    print("\nWriting, one text, after a prompt of the whole context")
    for dtype in ("float32", "bfloat16", "int8"):
        memory = inference_memory(c, T, dtype, device)
        print(f"  {dtype:9} weights {readable(weight_bytes(c, dtype)):>11}   peak {readable(memory.total):>11}")
    kept_in = cache_dtype("bfloat16", device)
    print(f"  keys and values in {kept_in}, allocated for the whole context at once, fill up: " + ", ".join(
        f"{readable(cache_bytes(c, n, kept_in))} after {n:,}" for n in dict.fromkeys((1, max(1, T // 4), T))))


def show_fit(c, plan, memory):
    print(f"\nIn {readable(memory)}{' per GPU' * (plan.gpus > 1)}")
    print(f"  largest batch: {largest_batch(c, plan, memory)}")
    fits = training_memory(c, plan).total <= memory
    print("  what is planned " + ("fits" if fits else f"does not fit; in train.py {advice(c, plan, memory)}"))


def show_time(c, args):
    flops = flops_per_token(c)
    print(f"\nTime\n  operations per token, forward and backward: {flops:.4g}")
    speed = args.tokens_per_second or (args.flops * args.gpus / flops if args.flops else None)
    if speed:
        print(f"  tokens per second: {speed:,.0f}")
        if args.tokens:
            hours = args.tokens / speed / 3600
            print(f"  {args.tokens:,.0f} tokens: {hours:,.2f} hours")
            if args.price:
                print(f"  cost: {hours * args.gpus * args.price:,.2f}")
    elif args.tokens:
        print("  for hours, give --flops or --tokens_per_second")


def plot(c, plan, memory, path):
    """Draw the parts of the training memory over batch size and over context, with the line of what there is."""
    import matplotlib
    from matplotlib.figure import Figure

    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot draw {path}: give a name that ends in .png, .svg or .pdf")

    def growing(start, grown):
        """Numbers up to twice `start`, or to where the memory is exceeded, with the parts that `grown(number)` has."""
        end = 2 * start
        while memory and training_memory(*grown(end)).total < memory:
            end *= 2
        numbers = sorted({round(end * i / 32) or 1 for i in range(33)})
        return numbers, [training_memory(*grown(number)).parts for number in numbers]

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    sides = (
        (f"windows at once (context {c.block_size:,})", plan.batch_size,
         growing(plan.batch_size, lambda n: (c, dataclasses.replace(plan, batch_size=n)))),
        (f"context (batch size {plan.batch_size:,})", c.block_size,
         growing(c.block_size, lambda n: (dataclasses.replace(c, block_size=n), plan))),
    )
    colors = matplotlib.colormaps["tab10"]
    for axes, (label, now, (xs, found)) in zip(figure.subplots(1, 2, sharey=True), sides, strict=True):
        parts = [part for part in PARTS if any(part in taken for taken in found)]
        axes.stackplot(xs, [[taken.get(part, 0) / GIB for taken in found] for part in parts], labels=parts,
                       colors=[colors(PARTS.index(part)) for part in parts])
        axes.axvline(now, color="black", linewidth=0.8, linestyle=":")
        if memory:
            axes.axhline(memory / GIB, color="black", linestyle="--", label=f"what there is: {readable(memory)}")
        axes.set(xlabel=label, xlim=(xs[0], xs[-1]))
        axes.grid(alpha=0.3)
    first = figure.axes[0]
    first.set(ylabel="GiB" + " per GPU" * (plan.gpus > 1), ylim=(0, None))
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle(f"{count_parameters(c):,} parameters: {describe(plan)}", fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=110)


@command
def main():
    args = parse()
    memory = bytes_of(args.memory) if args.memory else None
    plan = Plan(args.batch_size, args.accumulation, DTYPES.get(args.dtype, args.dtype), args.optimizer,
                args.activation_checkpointing, args.device, args.gpus, strategy=args.strategy)
    c = configuration(args)
    print(f"{args.model}: {count_parameters(c):,} parameters\n")
    show_parameters(c)
    show_training(c, plan)
    show_inference(c, args.device)
    if memory:
        show_fit(c, plan, memory)
    show_time(c, args)
    if args.plot:
        plot(c, plan, memory, args.plot)
        print(f"\ndrawn: {args.plot}")


if __name__ == "__main__":
    main()
