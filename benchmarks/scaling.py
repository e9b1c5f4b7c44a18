"""Throughput and memory of training on 1 to 1,024 GPUs, computed by utils/forecast: the tables of docs/many-gpus.md.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --flops 60T --link_within 32GB --link_between 1.25GB

Machines have 8 GPUs. Nothing is measured. Latency, Muon's matrix products and loading data are not counted.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from side_by_side import print_header, print_row  # noqa: E402

from models.zoo import ZOO  # noqa: E402
from utils.errors import Parser, command  # noqa: E402
from utils.forecast.communication import step_time  # noqa: E402
from utils.forecast.plan import Plan, cublas_workspace  # noqa: E402
from utils.forecast.step import training_memory  # noqa: E402
from utils.forecast.units import GIB  # noqa: E402
from utils.quantities import parse_bytes, parse_int, parse_positive, quantity  # noqa: E402

GPUS = (1, 2, 4, 8, 16, 64, 256, 1024)
PER_MACHINE = 8


def print_table(name: str, args: argparse.Namespace) -> None:
    """Print the Markdown table of a model; with the batch size at which computation takes as long as communication."""
    config = ZOO[name].config
    print(f"\n{name}, {quantity(args.batch_size, 'sequences')} of {config.block_size:,} tokens per GPU and step\n")
    print_header("GPUs", "strategy", "GiB per GPU", "computation, s", "communication, s", "tokens/s without overlap",
                 "tokens/s with full overlap", "efficiency", "break-even sequences per GPU")
    for gpus in GPUS:
        for strategy in ("ddp", "fsdp") if gpus > 1 else ("ddp",):
            plan = Plan(batch_size=args.batch_size, dtype="bfloat16", device="cuda", gpus=gpus, strategy=strategy,
                        workspace=cublas_workspace(9))
            link = args.link_within if gpus <= PER_MACHINE else args.link_between
            time = step_time(config, plan, args.flops, link)
            tokens = gpus * args.batch_size * config.block_size
            lowest, highest = time.computation / time.without_overlap, time.computation / time.with_full_overlap
            balanced = args.batch_size * time.communication / time.computation
            print_row(f"{gpus:,}", strategy if gpus > 1 else "", f"{training_memory(config, plan).total / GIB:.1f}",
                      f"{time.computation:.3f}", f"{time.communication:.3f}", f"{tokens / time.without_overlap:,.0f}",
                      f"{tokens / time.with_full_overlap:,.0f}", f"{lowest:.0%} to {highest:.0%}", f"{balanced:.1f}")


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--flops", type=parse_positive, default=400e12, metavar="N",
                        help="floating-point operations per second that one GPU achieves (400T)")
    parser.add_argument("--link_within", type=parse_bytes, default="450GB", metavar="SIZE",
                        help="bytes per second from a GPU to others in its machine (%(default)s)")
    parser.add_argument("--link_between", type=parse_bytes, default="50GB", metavar="SIZE",
                        help="bytes per second over all network adapters of a machine (%(default)s)")
    parser.add_argument("--batch_size", type=parse_int, default=16, metavar="N",
                        help="sequences per GPU and step (%(default)s)")
    args = parser.parse_args()
    print(f"computed for {args.flops / 1e12:,.0f} TFLOP/s per GPU, {args.link_within / 1e9:,.1f} GB/s within a machine "
          f"of {PER_MACHINE} GPUs and {args.link_between / 1e9:,.1f} GB/s between machines; bfloat16, Muon and AdamW")
    for name in ("EasyGPT", "GPT2XL"):
        print_table(name, args)


if __name__ == "__main__":
    main()
