"""Speed of training on a CPU: training/loop.py against nanoGPT's step, in turns.

    python benchmarks/train.py PATH/TO/nanoGPT

Both train a model of RainbowGPT's shape, without dropout, on the same batches. Ours is the loop that train.py runs,
with its optimizers (Muon and AdamW) and, where the CPU is fast in it, bfloat16. nanoGPT does what its own train.py
does on a CPU: float32, AdamW, nothing compiled.

The share of the matrix-multiply rate counts 6 N + 12 L C T operations a token (Chowdhery et al., 2022, appendix B):
N is the parameters without the embeddings, which are looked up and not multiplied, L the blocks, C the width, T the
context. What the optimizers multiply does not count.
"""

import contextlib
import io
import sys
import timeit
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from side_by_side import in_turns, nanogpt_model  # noqa: E402

from data.windows import RandomWindows  # noqa: E402
from models.zoo import RainbowGPT  # noqa: E402
from training.loop import Progress, Trainer, fit  # noqa: E402
from training.optim import make_optimizers  # noqa: E402
from training.precision import pick_dtype  # noqa: E402
from training.settings import OptimSettings  # noqa: E402
from training.step import TrainStep  # noqa: E402
from utils.errors import Parser, command  # noqa: E402
from utils.parameters import flops_per_token  # noqa: E402


def our_trainer(model, batch, dtype):
    """A function that trains for a number of steps."""
    optimizers, progress = make_optimizers(model, OptimSettings(), dtype), Progress()
    train_step = TrainStep(model, optimizers, 1.0, dtype, torch.amp.GradScaler("cpu", enabled=False))

    def advance(steps):
        trainer = Trainer(train_step, batch, lambda step: 1.0, lambda *_: False, accumulation=1,
                          max_iters=progress.step + steps, eval_interval=1000, seed=0)
        with contextlib.redirect_stderr(io.StringIO()):  # hides the progress bar: one line per turn is enough
            fit(trainer, progress)

    return advance


def nanogpt_trainer(model, batch):
    """A function that trains for so many steps more."""
    optimizer = model.configure_optimizers(weight_decay=0.1, learning_rate=1e-3, betas=(0.9, 0.99), device_type="cpu")

    def advance(steps):
        for step in range(steps):
            _, loss = model(*(ids.contiguous() for ids in batch(step, 0)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return advance


def multiply_rate(dtype):
    """Operations per second in the product of two large matrices."""
    a, b = torch.randn(2, 2048, 2048).to(dtype)
    return 2 * 2048**3 / min(timeit.repeat(lambda: a @ b, number=1, repeat=20))


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--batch_size", type=int, default=16, help="windows in a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="in a turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="of each; the median counts (%(default)s)")
    args = parser.parse_args()

    dtype = pick_dtype("cpu")
    model = RainbowGPT(dropout=0.0)
    c = model.config
    tokens = np.random.default_rng(0).integers(c.vocab_size, size=1_000_000)
    batch = RandomWindows(tokens, c.block_size, args.batch_size, seed=0).batch
    trainers = {
        "ours": our_trainer(model, batch, dtype),
        "nanoGPT": nanogpt_trainer(nanogpt_model(args.nanogpt, c), batch),
    }
    dtype_name = str(dtype).removeprefix("torch.")
    print(f"RainbowGPT, batch {args.batch_size} x {c.block_size}, {torch.get_num_threads()} threads; ours multiplies "
          f"in {dtype_name}, nanoGPT in float32\n")
    for advance in trainers.values():
        advance(2)  # the first steps of a process are slow
    runs = {name: partial(advance, args.steps) for name, advance in trainers.items()}
    speed = in_turns(runs, args.steps * args.batch_size * c.block_size, args.turns)

    flops, rate = flops_per_token(c), multiply_rate(dtype)
    print(f"\nours: {speed['ours']:,.0f} tokens/s\n"
          f"  {speed['ours'] / speed['nanoGPT']:.2f} times nanoGPT's {speed['nanoGPT']:,.0f}\n"
          f"  {speed['ours'] * flops / rate:.0%} of the {rate / 1e9:,.0f} GFLOP/s at which this machine multiplies in "
          f"{dtype_name}, at {flops / 1e6:.1f} MFLOP a token (6 N + 12 L C T)")


if __name__ == "__main__":
    main()
