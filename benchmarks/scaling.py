"""Throughput and memory from 1 to 1,024 GPUs, computed from the formulas of utils/: the tables of docs/many-gpus.md.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --flops 60T --link_within 32GB --link_between 1.25GB

Machines have 8 GPUs. Nothing is measured: neither latency, nor Muon's matrix products, nor loading data are counted.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.zoo import ZOO  # noqa: E402
from utils.errors import Parser, command  # noqa: E402
from utils.forecast.communication import step_time  # noqa: E402
from utils.forecast.plan import Plan, cublas_workspace  # noqa: E402
from utils.forecast.step import training_memory  # noqa: E402
from utils.forecast.units import GIB  # noqa: E402
from utils.quantities import parse_bytes, parse_int, parse_positive  # noqa: E402

GPUS = (1, 2, 4, 8, 16, 64, 256, 1024)
PER_MACHINE = 8


def print_table(name, args):
    c = ZOO[name].config
    print(f"\n{name}, {args.batch_size} sequences of {c.block_size:,} tokens per GPU and step\n")
    print("| GPUs | strategy | GiB per GPU | computation, s | communication, s | tokens/s without overlap | "
          "tokens/s with full overlap | efficiency | equal at |")
    print("|---|---|---|---|---|---|---|---|---|")
    for gpus in GPUS:
        for strategy in ("ddp", "fsdp") if gpus > 1 else ("ddp",):
            plan = Plan(args.batch_size, 1, "bfloat16", device="cuda", gpus=gpus, workspace=cublas_workspace(9),
                        strategy=strategy)
            link = args.link_within if gpus <= PER_MACHINE else args.link_between
            time = step_time(c, plan, args.flops, link)
            tokens = gpus * args.batch_size * c.block_size
            balanced = args.batch_size * time.communication / time.computation
            print(f"| {gpus:,} | {strategy if gpus > 1 else ''} | {training_memory(c, plan).total / GIB:.1f} | "
                  f"{time.computation:.3f} | {time.communication:.3f} | {tokens / time.without_overlap:,.0f} | "
                  f"{tokens / time.with_full_overlap:,.0f} | {time.computation / time.without_overlap:.0%} to "
                  f"{time.computation / time.with_full_overlap:.0%} | {balanced:.1f} |")


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("--flops", type=parse_positive, default=400e12, metavar="N",
                        help="operations per second that one GPU achieves (400T)")
    parser.add_argument("--link_within", type=parse_bytes, default="450GB", metavar="SIZE",
                        help="bytes per second that a GPU sends to others of its machine (%(default)s)")
    parser.add_argument("--link_between", type=parse_bytes, default="50GB", metavar="SIZE",
                        help="bytes per second that all network adapters of a machine send (%(default)s)")
    parser.add_argument("--batch_size", type=parse_int, default=16, metavar="N",
                        help="sequences per GPU and step (%(default)s)")
    args = parser.parse_args()
    print(f"computed for {args.flops / 1e12:,.0f} TFLOP/s per GPU, {args.link_within / 1e9:,.1f} GB/s within a machine "
          f"of {PER_MACHINE} GPUs and {args.link_between / 1e9:,.1f} GB/s between machines; bfloat16, Muon and AdamW")
    for name in ("EasyGPT", "GPT2XL"):
        print_table(name, args)


if __name__ == "__main__":
    main()
