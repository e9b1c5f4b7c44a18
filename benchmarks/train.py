"""Training speed of training/loop.py, in tokens/s, against nanoGPT's training step, in turns.

    python benchmarks/train.py PATH/TO/nanoGPT
    python benchmarks/train.py PATH/TO/nanoGPT --device cuda

Both train a model of the same width, depth, heads, context, vocabulary and biases, without dropout, on the same
batches. Ours runs the step of train.py. nanoGPT runs as in its own train.py: float32 without compilation on a CPU;
bfloat16, torch.compile and fused AdamW on CUDA. On CUDA, ours is also compiled, inside CUDA graphs. Compile time is not
counted.

GPT2 is the same model in both, and RainbowGPT differs only in its activation. BardGPT and EasyGPT have parts that
nanoGPT lacks (rotary positions, QK norm, SwiGLU, grouped-query attention): only the sizes are the same.

The utilization counts 6 N + 12 L C T operations per token (Chowdhery et al., 2022, appendix B), where N is the number
of parameters in matrix products, L the number of blocks, C the width and T the context. Optimizers are not counted.
100% is the rate of a product of two large matrices, measured in the same run.
"""

import contextlib
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from side_by_side import (  # noqa: E402
    device_name,
    in_turns,
    matmul_rate,
    nanogpt_model,
    print_header,
    print_row,
    synchronize,
)

from data.windows import RandomWindows, WindowBatches  # noqa: E402
from models.gpt import GPT  # noqa: E402
from models.zoo import ZOO  # noqa: E402
from training.loop import Progress, Trainer, fit  # noqa: E402
from training.optim import make_optimizers  # noqa: E402
from training.precision import autocast, pick_device, pick_dtype  # noqa: E402
from training.settings import OptimSettings  # noqa: E402
from training.shares import Shares  # noqa: E402
from training.step import TrainStep, accelerate  # noqa: E402
from utils.errors import Parser, check_numbers, command  # noqa: E402
from utils.forecast.flops import flops_per_token  # noqa: E402
from utils.forecast.plan import Plan  # noqa: E402


@dataclass
class Case:
    """A row of the table: a model and a batch size, trained with each of our optimizers."""

    model: str
    batch_size: int
    optimizers: tuple[str, ...] = ("muon",)


CASES = {"cpu": [Case("RainbowGPT", 16)],
         "cuda": [Case("BardGPT", 64), Case("GPT2", 16, ("adamw", "muon")), Case("EasyGPT", 16)]}


def our_trainer(model: GPT, optimizer: str, batches: WindowBatches, dtype: torch.dtype) -> Callable[[int], None]:
    """Return a function that trains for a number of steps."""
    shares = Shares(batches)
    device = model.head.weight.device.type
    progress = Progress()
    optimizers = make_optimizers(model, OptimSettings(name=optimizer), dtype)
    scaler = torch.amp.GradScaler(device, enabled=False)
    train_step = TrainStep(model, optimizers, grad_clip=1.0, dtype=dtype, scaler=scaler)
    if device == "cuda":
        with contextlib.redirect_stdout(sys.stderr):  # its line is not a row of the table
            accelerate(train_step, shares, "yes", micro_steps=0)

    def advance(steps: int) -> None:
        trainer = Trainer(train_step, shares, lambda step: 1.0, lambda *_: False, progress.step + steps,
                          eval_interval=10**9)
        with contextlib.redirect_stderr(io.StringIO()):  # hides the progress bar
            fit(trainer, progress)
        synchronize(device)

    return advance


def nanogpt_trainer(model: torch.nn.Module, batches: WindowBatches, dtype: torch.dtype) -> Callable[[int], None]:
    """Return a function that trains for a number of steps."""
    device = next(model.parameters()).device.type
    with contextlib.redirect_stdout(sys.stderr):  # it prints the parameters with weight decay
        optimizer = model.configure_optimizers(0.1, learning_rate=1e-3, betas=(0.9, 0.99), device_type=device)
    forward = torch.compile(model) if device == "cuda" else model

    def advance(steps: int) -> None:
        for step in range(steps):
            [(x, y)] = batches(step)
            if device == "cuda":
                x, y = (ids.pin_memory().to(device, non_blocking=True) for ids in (x, y))
            with autocast(device, dtype):
                _, loss = forward(x.contiguous(), y.contiguous())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        synchronize(device)

    return advance


def measure(case: Case, checkout: Path, device: str, steps: int, turns: int) -> dict[str, float]:
    """Train in turns with nanoGPT and with each of our optimizers; return the tokens/s by name."""
    dtype = pick_dtype(device)
    config = ZOO[case.model](dropout=0.0).config
    tokens = np.random.default_rng(0).integers(config.vocab_size, size=1_000_000)
    batches = WindowBatches(RandomWindows(tokens, config.block_size, case.batch_size, seed=0), accumulation=1)
    theirs = nanogpt_model(checkout, config).to(device)
    trainers = {"nanoGPT": nanogpt_trainer(theirs, batches, dtype if device == "cuda" else torch.float32)}
    for optimizer in case.optimizers:
        trainers[optimizer] = our_trainer(ZOO[case.model](dropout=0.0).to(device), optimizer, batches, dtype)
    for advance in trainers.values():
        advance(2)  # the first steps of a process are slow
    runs = {name: partial(advance, steps) for name, advance in trainers.items()}
    return in_turns(runs, steps * case.batch_size * config.block_size, turns)


def print_speeds(checkout: Path, device: str, steps: int, turns: int) -> None:
    """Print a Markdown table of all cases of a device."""
    dtype = pick_dtype(device)
    rate = matmul_rate(device, dtype)
    dtype_name = str(dtype).removeprefix("torch.")
    print(f"Training, {device_name(device)}, ours in {dtype_name}; matrix products reach {rate / 1e12:,.2f} TFLOP/s\n")
    print_header("model", "batch", "optimizer", "ours (tokens/s)", "nanoGPT (tokens/s)", "ratio", "utilization")
    for case in CASES[device]:
        config = ZOO[case.model].config
        speeds = measure(case, checkout, device, steps, turns)
        theirs = speeds.pop("nanoGPT")
        for optimizer, ours in speeds.items():
            utilization = ours * flops_per_token(config, Plan()) / rate
            print_row(case.model, f"{case.batch_size} x {config.block_size}", optimizer, f"{ours:,.0f}",
                      f"{theirs:,.0f}", f"{ours / theirs:.2f}", f"{utilization:.0%}")


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"), help="(%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps per turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="turns; medians are reported (%(default)s)")
    args = parser.parse_args()
    check_numbers(args, positive=("steps", "turns"))
    print_speeds(args.nanogpt, pick_device(args.device), args.steps, args.turns)


if __name__ == "__main__":
    main()
