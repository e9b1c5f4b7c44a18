"""Parameters, memory, what fits, time and communication: computed, without building the model.

    python utils/num_params_calculate.py                                       the model of transformer_4d.py
    python utils/num_params_calculate.py --model GPT2 --batch_size 32 --memory 8GiB
    python utils/num_params_calculate.py --model UltimateModel --n_embd 512 --num_heads 8 --memory 24GiB --plot fits.png
    python utils/num_params_calculate.py --model FOLDER            a Hugging Face model, or its config.json
    python utils/num_params_calculate.py --model GPT2 --lora_rank 8 --lora_targets qkv out up down
    python utils/num_params_calculate.py --model SmallGPT90M --n_labels 2 --trainable_blocks 1
    python utils/num_params_calculate.py --model GPT2XL --gpus 8 --strategy fsdp --memory 80GiB \\
        --flops 200T --link 450GB --tokens 30B --price 2.5

Numbers may be written as 1,000,000 or with K, M, B or T. On a CPU the memory is within 1% of what PyTorch allocates, on
several ranks too (benchmarks/memory.py). On an H100 it was within 3%, before training steps became CUDA graphs;
torch.compile takes less.
"""

import argparse
import dataclasses
import difflib
import re
import sys
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Literal, get_args, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.config import ModelConfig  # noqa: E402
from utils.errors import Parser, UserError, command  # noqa: E402
from utils.files import check_writable, replacing  # noqa: E402
from utils.forecast.communication import sent_bytes, step_time  # noqa: E402
from utils.forecast.fit import advice, largest_batch  # noqa: E402
from utils.forecast.flops import flops_per_token  # noqa: E402
from utils.forecast.inference import cache_bytes, cache_dtype, inference_memory  # noqa: E402
from utils.forecast.parameters import count_parameters, parameter_table, symbols, weight_bytes  # noqa: E402
from utils.forecast.plan import PARTS, Plan  # noqa: E402
from utils.forecast.step import training_memory  # noqa: E402
from utils.forecast.trained_weights import TrainedWeights  # noqa: E402
from utils.forecast.units import GIB, KIB, MIB, readable  # noqa: E402
from utils.printable import one_line  # noqa: E402

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
SUFFIXES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": KIB, "mib": MIB, "gib": GIB, "tib": 2**40}


# ---- The command line ------------------------------------------------------------------------------------------------


def parse_number(text):
    """The Decimal in a text such as 1,000,000, 2e14, 300B or 1.5k, for argparse."""
    match = re.fullmatch(r"(-?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)[0-9.e+-]*)([KMBT]?)", text.strip(), re.IGNORECASE)
    try:
        return Decimal(match[1].replace(",", "")) * SUFFIXES[match[2].upper()]
    except (TypeError, ArithmeticError):  # no match; not a number, or beyond what Decimal can hold
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)} is not a number such as 1,000,000 or 300B") from None


def parse_float(text):
    return float(parse_number(text))


def parse_positive(text):
    number = parse_float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)} is out of range: give a number > 0")
    return number


def parse_int(text):
    number = parse_number(text)
    if abs(number) >= 2**63 or number != int(number):
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)} is not an integer below 2^63")
    return int(number)


def parse_bytes(text):
    """The bytes in a text such as 8GiB or 24GB, for argparse."""
    number, unit = re.fullmatch(r"(.*?)\s*([a-z]*)", text.strip(), re.IGNORECASE | re.DOTALL).groups()
    if unit.lower() not in UNITS:
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)!r} needs a unit of memory, such as 8GiB or 24GB")
    size = parse_number(number) * UNITS[unit.lower()]
    if not 1 <= size < 2**63:
        raise argparse.ArgumentTypeError(f"{one_line(text, 60)} is out of range: give a size > 0 and below 2^63 bytes")
    return int(size)


def add_model_arguments(parser):
    """An option for each field of ModelConfig."""
    parsers = {int: parse_int, float: parse_float}
    for field in dataclasses.fields(ModelConfig):
        kinds = get_args(field.type) if get_origin(field.type) in (Literal, UnionType) else (field.type,)
        if get_origin(field.type) is Literal:
            parser.add_argument(f"--{field.name}", choices=kinds)
        elif kinds[0] is bool:
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(f"--{field.name}", type=parsers[kinds[0]], metavar="N")


def parse_arguments():
    """The command line. Raises UserError."""
    parser = Parser(__doc__)
    parser.add_argument("--model", default="TransformerModel",
                        help="a class of models/zoo.py, or the folder or config.json of a Hugging Face model "
                             "(%(default)s)")
    parser.add_argument("--batch_size", type=parse_int, default=16, metavar="N",
                        help="sequences per micro-batch and GPU (%(default)s)")
    parser.add_argument("--accumulation", type=parse_int, default=1, metavar="N",
                        help="micro-batches per step (%(default)s)")
    parser.add_argument("--dtype", default="bf16", choices=(*DTYPES, *DTYPES.values()),
                        help="compute dtype (%(default)s)")
    parser.add_argument("--optimizer", default="muon", choices=("muon", "adamw"), help="(%(default)s)")
    parser.add_argument("--ema", action="store_true", help="with a moving average of the weights")
    parser.add_argument("--activation_checkpointing", action="store_true",
                        help="recompute activations instead of saving them")
    parser.add_argument("--lora_rank", type=parse_int, metavar="N", help="train only LoRA adapters of this rank")
    parser.add_argument("--lora_targets", nargs="+", default=Plan.lora_targets, metavar="NAME",
                        help=f"matrices with an adapter (default: {' '.join(Plan.lora_targets)})")
    parser.add_argument("--trainable_blocks", type=parse_int, metavar="N",
                        help="train only the last N blocks, the final norm and an untied head")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="(%(default)s)")
    parser.add_argument("--gpus", type=parse_int, default=1, metavar="N",
                        help="GPUs, or ranks on a CPU (%(default)s)")
    parser.add_argument("--strategy", default="ddp", choices=("ddp", "fsdp"),
                        help="with several, a full copy on each or shards (%(default)s)")
    parser.add_argument("--memory", type=parse_bytes, metavar="SIZE", help="of one GPU or of the machine: 8GiB, 24GB")
    parser.add_argument("--flops", type=parse_positive, metavar="N",
                        help="operations per second that one GPU achieves: 40T")
    parser.add_argument("--link", type=parse_bytes, metavar="SIZE",
                        help="bytes per second that a GPU sends to the next: 450GB (NVLink); between machines, what "
                             "all network adapters of one send, such as 50GB (400 Gb/s) or 1.25GB (10 Gb/s)")
    parser.add_argument("--tokens_per_second", type=parse_positive, metavar="N",
                        help="measured throughput of all GPUs together")
    parser.add_argument("--tokens", type=parse_positive, metavar="N", help="tokens to train on in total: 1B")
    parser.add_argument("--price", type=parse_positive, metavar="N", help="of one GPU for one hour")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="plot the parts of the memory")
    add_model_arguments(parser.add_argument_group("changes to the model", "explained in models/config.py"))
    return parser.parse_args()


def build_config(args):
    """The ModelConfig that the command line describes. Raises UserError."""
    from formats.huggingface_config import read_config
    from models.zoo import ZOO  # here, so that --help and a mistyped option do not wait for torch

    changes = {field.name: getattr(args, field.name) for field in dataclasses.fields(ModelConfig)}
    changes = {name: value for name, value in changes.items() if value is not None}
    if args.model not in ZOO and Path(args.model).exists():
        return dataclasses.replace(read_config(args.model)[1], **changes)
    if args.model not in ZOO:
        names = {name.lower(): name for name in ZOO}
        closest = difflib.get_close_matches(args.model.lower(), names, n=1, cutoff=0)[0]
        raise UserError(f"there is no model {one_line(args.model, 60)}: did you mean {names[closest]}? The models are "
                        f"{', '.join(ZOO)}")
    return dataclasses.replace(ZOO[args.model].config, **changes)


# ---- The report ------------------------------------------------------------------------------------------------------


def print_parameters(config):
    n, rows = count_parameters(config), parameter_table(config)
    letters = [f"{letter} = {name} {value:,}" for letter, (name, value) in symbols(config).items()]
    print("Parameters\n  " + "   ".join(letters))
    print(f"\n  {'component':36}{'shape':>16}  {'formula':38}{'count':>15}{'share':>8}")
    for row in rows:
        shape = " x ".join(f"{side:,}" for side in row.shape)
        print(f"  {row.component:36}{shape:>16}  {row.formula:38}{row.count:>15,}{row.count / n:>8.1%}")
    if config.tied_head:
        print(f"  {'head.weight':54}  {'shared with the token embedding':38}{0:>15}{0:>8.1%}")
    print(f"  {'total':92}{n:>15,}{1:>8.1%}")


def unit(plan):
    """What a plan with several of them is for."""
    return "GPU" if plan.device == "cuda" else "rank"


def describe(plan):
    """A plan in words."""
    batch = f"batch size {plan.batch_size}"
    if plan.accumulation > 1:
        batch += f" x {plan.accumulation} micro-batches"
    dtype = f"{plan.dtype} autocast" if plan.autocast else plan.dtype
    words = [batch, dtype, {"muon": "Muon and AdamW", "adamw": "AdamW"}[plan.optimizer]]
    if plan.activation_checkpointing:
        words.append("activation checkpointing")
    if plan.ema:
        words.append("moving average of the weights")
    if plan.lora_rank is not None:
        words.append(f"LoRA of rank {plan.lora_rank} on {' '.join(plan.lora_targets)}")
    if plan.trainable_blocks is not None:
        words.append(f"trainable_blocks {plan.trainable_blocks}")
    if plan.gpus > 1:
        words.append(f"per {unit(plan)} with {plan.strategy.upper()} on {plan.gpus:,} {unit(plan)}s")
    if plan.device == "cpu":
        words.append("on a CPU")
    elif plan.gpus == 1:
        words.append("on CUDA")
    return ", ".join(words)


def print_training(config, plan):
    memory = training_memory(config, plan)
    print(f"\nTraining: {describe(plan)}")
    print(f"  {TrainedWeights(config, plan).total:,} weights are trained")
    for part, n in memory.parts.items():
        print(f"  {part:24}{readable(n):>14}{n / memory.total:>8.1%}")
    print(f"  {'total':24}{readable(memory.total):>14}{1:>8.1%}")
    context = memory.parts["context and allocator"]
    peaks = ", ".join(f"{phase} {readable(peak + context)}" for phase, peak in memory.phases.items())
    print(f"  peak of each phase: {peaks}")
    if plan.device == "cuda":
        print("  within 3% on an H100, measured before training steps became CUDA graphs; torch.compile takes less")


def print_inference(config, device):
    T = config.block_size
    classifies = config.n_labels is not None
    print(f"\nInference: one text, {'of' if classifies else 'after a prompt of'} the full context length")
    for dtype in ("float32", "bfloat16", "int8"):
        memory = inference_memory(config, T, dtype, device)
        print(f"  {dtype:9} weights {readable(weight_bytes(config, dtype)):>11}   peak {readable(memory.total):>11}")
    if classifies:
        return
    kv_dtype = cache_dtype("bfloat16", device)
    counts = sorted({1, max(1, T // 4), T})
    fill = ", ".join(f"{readable(cache_bytes(config, n, kv_dtype))} after {n:,}" for n in counts)
    print(f"  the KV cache in {kv_dtype}, allocated for the full context at once, holds {fill} tokens")


def print_fit(config, plan, memory):
    per_gpu = f" per {unit(plan)}" if plan.gpus > 1 else ""
    print(f"\nIn {readable(memory)}{per_gpu}")
    print(f"  largest batch size: {largest_batch(config, plan, memory)}")
    if training_memory(config, plan).total <= memory:
        print("  this plan fits")
    else:
        print(f"  this plan does not fit; in train.py {advice(config, plan, memory)}")


def print_time(config, plan, args):
    flops = flops_per_token(config, plan.trainable_blocks, plan.lora_rank, plan.lora_targets,
                            plan.activation_checkpointing)
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


def print_communication(config, plan, args):
    sent = sent_bytes(config, plan)
    parts = ", ".join(f"{part} {readable(size)}" for part, size in sent.items())
    print(f"\nCommunication\n  each {unit(plan)} sends {readable(sum(sent.values()))} per step: {parts}")
    if not (args.flops and args.link):
        print("  for seconds, give --flops and --link")
        return
    time = step_time(config, plan, args.flops, args.link)
    tokens = plan.batch_size * plan.accumulation * config.block_size
    print(f"  seconds per step: computation {time.computation:.4g}, communication {time.communication:.4g}")
    for words, seconds in (("without overlap", time.without_overlap), ("with full overlap", time.with_full_overlap)):
        print(f"  {words}: {plan.gpus * tokens / seconds:,.0f} tokens per second, "
              f"{time.computation / seconds:.0%} of those without communication")


def check_plot(path):
    """Raise UserError if no plot can be written to the file `path`. Its folder is created."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot write {path}: give a name that ends in .png, .svg or .pdf")
    check_writable(path)


def plot(config, plan, memory, path):
    """Plot the parts of the training memory over batch size and over context length, with the available memory."""
    import matplotlib
    from matplotlib.figure import Figure

    def sweep(start, change):
        """Values up to twice `start` or beyond the available memory, and the memory parts of `change(value)`."""
        end = 2 * start
        while memory and training_memory(*change(end)).total < memory:
            end *= 2
        values = sorted({round(end * i / 32) or 1 for i in range(33)})
        return values, [training_memory(*change(value)).parts for value in values]

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    sides = (
        (f"batch size (context length {config.block_size:,})", plan.batch_size,
         sweep(plan.batch_size, lambda n: (config, dataclasses.replace(plan, batch_size=n)))),
        (f"context length (batch size {plan.batch_size:,})", config.block_size,
         sweep(config.block_size, lambda n: (dataclasses.replace(config, block_size=n), plan))),
    )
    colors = matplotlib.colormaps["tab10"]
    for axes, (label, planned, (xs, memories)) in zip(figure.subplots(1, 2, sharey=True), sides, strict=True):
        parts = [part for part in PARTS if any(part in sizes for sizes in memories)]
        axes.stackplot(xs, [[sizes.get(part, 0) / GIB for sizes in memories] for part in parts], labels=parts,
                       colors=[colors(PARTS.index(part)) for part in parts])
        axes.axvline(planned, color="black", linewidth=0.8, linestyle=":")
        if memory:
            axes.axhline(memory / GIB, color="black", linestyle="--", label=f"available: {readable(memory)}")
        axes.set(xlabel=label, xlim=(xs[0], xs[-1]))
        axes.grid(alpha=0.3)
    first = figure.axes[0]
    first.set(ylabel=f"GiB per {unit(plan)}" if plan.gpus > 1 else "GiB", ylim=(0, None))
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle(f"{count_parameters(config):,} parameters: {describe(plan)}", fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=110)


@command
def main():
    args = parse_arguments()
    plan = Plan(args.batch_size, args.accumulation, DTYPES.get(args.dtype, args.dtype), args.optimizer,
                args.activation_checkpointing, args.device, args.gpus, strategy=args.strategy, ema=args.ema,
                lora_rank=args.lora_rank, lora_targets=tuple(args.lora_targets), trainable_blocks=args.trainable_blocks)
    config = build_config(args)
    if args.plot:
        check_plot(args.plot)
    print(f"{one_line(args.model, 200)}: {count_parameters(config):,} parameters\n")
    print_parameters(config)
    print_training(config, plan)
    print_inference(config, args.device)
    if args.memory:
        print_fit(config, plan, args.memory)
    print_time(config, plan, args)
    if plan.gpus > 1:
        print_communication(config, plan, args)
    if args.plot:
        plot(config, plan, args.memory, args.plot)
        print(f"\nplotted: {one_line(str(args.plot))}")


if __name__ == "__main__":
    main()
