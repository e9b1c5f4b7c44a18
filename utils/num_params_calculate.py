"""Parameters, memory, time and communication of a model, and what fits: computed without building it.

    python utils/num_params_calculate.py                                       the model of transformer_4d.py
    python utils/num_params_calculate.py --model GPT2 --batch_size 32 --memory 8GiB
    python utils/num_params_calculate.py --model UltimateModel --n_embd 512 --num_heads 8 --memory 24GiB --plot fits.png
    python utils/num_params_calculate.py --model FOLDER            a Hugging Face model, or its config.json
    python utils/num_params_calculate.py --model GPT2 --lora_rank 8 --lora_targets qkv out up down
    python utils/num_params_calculate.py --model SmallGPT90M --n_labels 2 --trainable_blocks 1
    python utils/num_params_calculate.py --model GPT2XL --gpus 8 --strategy fsdp --memory 80GiB \\
        --flops 200T --link 450GB --tokens 30B --price 2.5

Numbers may be written as 1,000,000 or with K, M, B or T. On a CPU, the memory is within 1% of what PyTorch allocates,
also with DDP on several ranks (benchmarks/memory.py). On an H100 it was within 3%, measured before training steps
became CUDA graphs. torch.compile needs less.
"""

import argparse
import dataclasses
import difflib
import sys
from pathlib import Path
from types import UnionType
from typing import Literal, get_args, get_origin

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.config import ModelConfig  # noqa: E402
from utils.errors import Parser, UserError, command  # noqa: E402
from utils.forecast.parameters import count_parameters  # noqa: E402
from utils.forecast.plan import Plan  # noqa: E402
from utils.forecast.plot import check_plot, plot_memory  # noqa: E402
from utils.forecast.report import (  # noqa: E402
    print_communication,
    print_fit,
    print_inference,
    print_parameters,
    print_time,
    print_training,
)
from utils.printable import one_line  # noqa: E402
from utils.quantities import parse_bytes, parse_float, parse_int, parse_positive  # noqa: E402

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def parse_arguments() -> argparse.Namespace:
    """Return the arguments of the command line. Raises UserError if they are invalid."""
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
    parser.add_argument("--optimizer", default="muon", choices=("muon", "adamw"),
                        help="muon: for the matrices of the blocks, with AdamW for the rest; adamw: for all weights "
                             "(%(default)s)")
    parser.add_argument("--ema", action="store_true", help="keep a moving average of the weights")
    parser.add_argument("--activation_checkpointing", action="store_true",
                        help="recompute activations in the backward pass instead of saving them")
    parser.add_argument("--lora_rank", type=parse_int, metavar="N", help="train only LoRA adapters of this rank")
    parser.add_argument("--lora_targets", nargs="+", default=Plan.lora_targets, metavar="NAME",
                        help=f"matrices with adapters ({' '.join(Plan.lora_targets)})")
    parser.add_argument("--trainable_blocks", type=parse_int, metavar="N",
                        help="train only the last N blocks, the final norm and an untied head")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="(%(default)s)")
    parser.add_argument("--gpus", type=parse_int, default=1, metavar="N",
                        help="GPUs, or ranks on a CPU (%(default)s)")
    parser.add_argument("--strategy", default="ddp", choices=("ddp", "fsdp"),
                        help="on several GPUs, ddp: a full copy on each; fsdp: sharded (%(default)s)")
    parser.add_argument("--memory", type=parse_bytes, metavar="SIZE",
                        help="available memory, of one GPU or of the machine: 8GiB, 24GB")
    parser.add_argument("--flops", type=parse_positive, metavar="N",
                        help="floating-point operations per second that one GPU achieves: 40T")
    parser.add_argument("--link", type=parse_bytes, metavar="SIZE",
                        help="bytes per second from one GPU to the next: 450GB (NVLink); between machines, over all "
                             "network adapters of one machine: 50GB (400 Gb/s), 1.25GB (10 Gb/s)")
    parser.add_argument("--tokens_per_second", type=parse_positive, metavar="N",
                        help="measured throughput of all GPUs together, instead of --flops")
    parser.add_argument("--tokens", type=parse_positive, metavar="N", help="total number of training tokens: 1B")
    parser.add_argument("--price", type=parse_positive, metavar="N", help="price of one GPU for one hour")
    parser.add_argument("--plot", type=Path, metavar="FILE",
                        help="plot the training memory over batch size and context length: memory.png")
    add_model_arguments(parser.add_argument_group("changes to the model", "documented in models/config.py"))
    return parser.parse_args()


def add_model_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add an option for each field of ModelConfig."""
    parsers = {int: parse_int, float: parse_float}
    for field in dataclasses.fields(ModelConfig):
        kinds = get_args(field.type) if get_origin(field.type) in (Literal, UnionType) else (field.type,)
        if get_origin(field.type) is Literal:
            parser.add_argument(f"--{field.name}", choices=kinds)
        elif kinds[0] is bool:
            parser.add_argument(f"--{field.name}", action=argparse.BooleanOptionalAction)
        else:
            parser.add_argument(f"--{field.name}", type=parsers[kinds[0]], metavar="N")


def make_plan(args: argparse.Namespace) -> Plan:
    """Return the Plan that the command line describes. Raises UserError if a value is out of range."""
    return Plan(
        batch_size=args.batch_size,
        accumulation=args.accumulation,
        dtype=DTYPES.get(args.dtype, args.dtype),
        optimizer=args.optimizer,
        activation_checkpointing=args.activation_checkpointing,
        device=args.device,
        gpus=args.gpus,
        strategy=args.strategy,
        ema=args.ema,
        lora_rank=args.lora_rank,
        lora_targets=tuple(args.lora_targets),
        trainable_blocks=args.trainable_blocks,
    )


def build_config(args: argparse.Namespace) -> ModelConfig:
    """Return the ModelConfig that the command line describes. Raises UserError if there is no such model."""
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


@command
def main() -> None:
    args = parse_arguments()
    plan = make_plan(args)
    config = build_config(args)
    if args.plot:
        check_plot(args.plot)
    print(f"{one_line(args.model, 200)}: {count_parameters(config):,} parameters\n")
    print_parameters(config)
    print_training(config, plan)
    print_inference(config, plan.device)
    if args.memory:
        print_fit(config, plan, args.memory)
    print_time(config, plan, flops=args.flops, tokens_per_second=args.tokens_per_second, tokens=args.tokens,
               price=args.price)
    if plan.gpus > 1:
        print_communication(config, plan, args.flops, args.link)
    if args.plot:
        plot_memory(config, plan, args.memory, args.plot)
        print(f"\nsaved the plot as {one_line(str(args.plot))}")


if __name__ == "__main__":
    main()
