"""Time to a validation loss, transformer_4d.py against nanoGPT's train.py, on the same text and machine.

    python benchmarks/time_to_loss.py PATH/TO/nanoGPT
    python benchmarks/time_to_loss.py PATH/TO/nanoGPT --published

Both train a model of the same width, depth, heads and context length, with the same batch size and no dropout, each
with its own recipe (nanoGPT's is config/train_shakespeare_char.py) and about the fewest steps that reach the target.
The same code then evaluates the checkpoints, in float32, on the whole validation split. transformer_4d.py runs before
and after nanoGPT, to show how much the speed of the machine drifts. The times:

- training: from the evaluation before the first step to the evaluation after the last step, without compile time.
- compile: on CUDA, nanoGPT runs with torch.compile and an empty cache. This is the time of its first training step
  minus the time of an average step.
- process: from start to exit, including imports, the compilation of nanoGPT's first evaluation, the capture of
  transformer_4d.py's CUDA graph, and saving the checkpoint.

With --published, for a GPU, each runs as it is published: transformer_4d.py with its defaults, and nanoGPT with its
model of 10.65 million parameters and dropout. The time is that from the start of the process until it prints a
validation loss, on its own estimate and every 250 steps, of at most 1.4697: nanoGPT's published result.
"""

import argparse
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from side_by_side import nanogpt_model, print_header, print_row  # noqa: E402

import transformer_4d  # noqa: E402
from data.known_texts import DEFAULT_PATH, title_of  # noqa: E402
from data.windows import ConsecutiveWindows  # noqa: E402
from models.config import ModelConfig  # noqa: E402
from training.checkpoint import load_model  # noqa: E402
from training.evaluate import estimate_loss  # noqa: E402
from transformer_4d import DEVICES, Config  # noqa: E402
from utils.errors import Parser, UserError, check_numbers, command  # noqa: E402

STEPS, NANOGPT_STEPS = 460, 1080  # about the fewest that reach 1.60 on a CPU
PUBLISHED_LOSS = 1.4697
PRINTED_LOSS = re.compile(r"step +\d+.* val(?:idation)? loss (\d+\.\d+)")  # of transformer_4d.py, and of nanoGPT


class Result(NamedTuple):
    """A trained model's validation loss, and the times of its training in seconds."""

    name: str
    steps: int
    loss: float
    training: float
    compiling: float
    process: float


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of transformer_4d.py (%(default)s)")
    parser.add_argument("--nanogpt_steps", type=int, default=NANOGPT_STEPS,
                        help="training steps of nanoGPT (%(default)s)")
    parser.add_argument("--target", type=float, default=1.60, help="validation loss to reach (%(default)s)")
    parser.add_argument("--published", action="store_true",
                        help=f"time to {PUBLISHED_LOSS}, each with its published model and settings")
    parser.add_argument("--batch_size", type=int, default=Config.batch_size, help="sequences per step (%(default)s)")
    devices = [name for name, available in DEVICES.items() if available]
    parser.add_argument("--device", choices=devices, default=Config.device, help="device of both (%(default)s)")
    args = parser.parse_args()
    check_numbers(args, positive=("steps", "nanogpt_steps", "target", "batch_size"))
    if not (args.nanogpt / "train.py").is_file():
        raise UserError(f"{args.nanogpt / 'train.py'} does not exist: give the folder of a checkout of nanoGPT")
    with tempfile.TemporaryDirectory() as folder:
        copies = make_copies(Path(folder), args.nanogpt)
        if args.published:
            print_published(copies, args.device)
            return
        results = train_all(copies, args)
    title = title_of(DEFAULT_PATH.read_text(encoding="utf-8"))
    print(f"\n{title}, batch size {args.batch_size} x {Config.block_size}, {args.device}\n")
    print_results(results, args.target)


class Copies(NamedTuple):
    """Copies of both projects, with the same text, and its validation tokens."""

    ours: Path
    nanogpt: Path
    val_tokens: np.ndarray


def make_copies(folder: Path, checkout: Path) -> Copies:
    """Copy transformer_4d.py and a checkout of nanoGPT to `folder`, each with its data."""
    try:
        vocab, *tokens = transformer_4d.load_data(Config(device="cpu"))
    except transformer_4d.UserError as error:
        raise UserError(str(error)) from None
    train_tokens, val_tokens = (ids.numpy().astype(np.uint16) for ids in tokens)
    ours, nanogpt = folder / "ours", folder / "nanogpt"
    (ours / "data").mkdir(parents=True)
    shutil.copy(ROOT / "transformer_4d.py", ours)
    shutil.copy(DEFAULT_PATH, ours / "data")
    shutil.copytree(checkout, nanogpt, ignore=shutil.ignore_patterns(".git"))
    prepared = nanogpt / "data" / "shakespeare_char"
    train_tokens.tofile(prepared / "train.bin")
    val_tokens.tofile(prepared / "val.bin")
    (prepared / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(vocab)}))
    return Copies(ours, nanogpt, val_tokens)


def train_all(copies: Copies, args: argparse.Namespace) -> list[Result]:
    """Train transformer_4d.py, nanoGPT, and transformer_4d.py again."""
    windows = ConsecutiveWindows(copies.val_tokens, Config.block_size, 64)
    batches = [(x.contiguous(), y.contiguous()) for x, y in windows]  # nanoGPT needs them so
    results = []
    for name, steps, train, copy in (
        ("transformer_4d.py", args.steps, train_ours, copies.ours),
        ("nanoGPT", args.nanogpt_steps, train_nanogpt, copies.nanogpt),
        ("transformer_4d.py", args.steps, train_ours, copies.ours),
    ):
        model, *times = train(copy, steps, args)
        loss = estimate_loss(model, batches)
        results.append(Result(name, steps, loss, *times))
        print(f"{name}: validation loss {loss:.4f}, {results[-1].process:.1f} s", file=sys.stderr, flush=True)
    return results


def train_ours(folder: Path, steps: int, args: argparse.Namespace) -> tuple[torch.nn.Module, float, float, float]:
    """Train with the copy of transformer_4d.py in `folder`; return the model and the three times in seconds."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    arguments = ["transformer_4d.py", f"--max_iters={steps}", f"--eval_interval={steps}", "--dropout=0.0",
                 f"--batch_size={args.batch_size}", f"--device={args.device}", "--max_new_chars=0"]
    first, last, process_time = run_script(arguments, folder, (f"step {0:5} ", f"step {steps:5} "))
    [path] = (folder / "checkpoints").glob("*.pt")
    model, _ = load_model(path)
    return model, last - first, 0.0, process_time


def train_nanogpt(folder: Path, steps: int, args: argparse.Namespace) -> tuple[torch.nn.Module, float, float, float]:
    """Train with the copy of nanoGPT in `folder`; return the model and the three times in seconds."""
    on_cuda = args.device == "cuda"
    options = {"n_embd": Config.n_embd, "block_size": Config.block_size, "n_layer": Config.n_blocks,
               "n_head": Config.num_heads, "dropout": 0.0, "batch_size": args.batch_size, "max_iters": steps,
               "lr_decay_iters": steps, "eval_interval": steps, "eval_iters": 1, "always_save_checkpoint": True,
               "log_interval": 100, "device": args.device, "dtype": "bfloat16" if on_cuda else "float32",
               "compile": on_cuda}
    arguments = ["train.py", "config/train_shakespeare_char.py"]
    arguments += [f"--{key}={value}" for key, value in options.items()]
    first, after_one_step, last, process_time = run_script(arguments, folder, ("step 0:", "iter 0:", f"step {steps}:"))
    compile_time = (after_one_step - first) - (last - after_one_step) / steps if on_cuda else 0.0

    checkpoint = torch.load(folder / "out-shakespeare-char" / "ckpt.pt", map_location="cpu", weights_only=True)
    config = ModelConfig(Config.n_embd, Config.block_size, Config.n_blocks, Config.num_heads,
                         checkpoint["model_args"]["vocab_size"])
    model = nanogpt_model(folder, config)
    model.load_state_dict({name.removeprefix("_orig_mod."): weight for name, weight in checkpoint["model"].items()})
    return model, last - first - compile_time, compile_time, process_time


def print_published(copies: Copies, device: str) -> None:
    """Print, as a Markdown table, the seconds that both take to the published loss."""
    on_cuda = device == "cuda"
    options = [f"--device={device}", f"--dtype={'bfloat16' if on_cuda else 'float32'}", f"--compile={on_cuda}"]
    print_header("", f"seconds to {PUBLISHED_LOSS}")
    ours = seconds_to_loss(["transformer_4d.py", f"--device={device}"], copies.ours)
    print_row("transformer_4d.py", f"{ours:.1f}")  # before nanoGPT, which may not reach the loss
    nanogpt = seconds_to_loss(["train.py", "config/train_shakespeare_char.py", *options], copies.nanogpt)
    print_row("nanoGPT", f"{nanogpt:.1f}")
    print(f"\nnanoGPT takes {nanogpt / ours:.2f} times as long")


def seconds_to_loss(arguments: list[str], folder: Path) -> float:
    """Run a Python script until it prints a validation loss of at most PUBLISHED_LOSS; return the seconds.

    Raises UserError if it ends before.
    """
    start, lowest = time.perf_counter(), float("inf")
    with start_script(arguments, folder) as process:
        for line in process.stdout:
            printed = PRINTED_LOSS.match(line)
            if printed:
                print(line, end="", file=sys.stderr, flush=True)
                lowest = min(lowest, float(printed[1]))
            if lowest <= PUBLISHED_LOSS:
                seconds = time.perf_counter() - start
                process.kill()
                return seconds
    raise UserError(f"{folder.name}/{arguments[0]} ended with exit code {process.returncode}, and its lowest "
                    f"validation loss was {lowest}: see output above")


def start_script(arguments: list[str], folder: Path) -> subprocess.Popen:
    """Start a Python script in `folder`, with an empty cache of compiled code, and return the process."""
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compile_cache")}
    return subprocess.Popen([sys.executable, "-u", *arguments], cwd=folder, env=env, stdout=subprocess.PIPE, text=True,
                            encoding="utf-8", errors="replace")


def run_script(arguments: list[str], folder: Path, prefixes: tuple[str, ...]) -> tuple[float, ...]:
    """Run a Python script; return the seconds until it prints a line with each of `prefixes`, and until it exits."""
    start, seconds = time.perf_counter(), {}
    with start_script(arguments, folder) as process:
        for line in process.stdout:
            if line.startswith("iter "):  # nanoGPT's progress
                print(line, end="", file=sys.stderr, flush=True)
            for prefix in prefixes:
                if line.startswith(prefix):
                    seconds[prefix] = time.perf_counter() - start
    total = time.perf_counter() - start
    if process.returncode or len(seconds) < len(prefixes):
        raise UserError(f"{folder.name}/{arguments[0]} failed with exit code {process.returncode}: see output above")
    return *(seconds[prefix] for prefix in prefixes), total


def print_results(results: list[Result], target: float) -> None:
    """Print a Markdown table and the ratios of the times. Raises UserError if a loss is above the target."""
    print_header("", "steps", "validation loss", "training (s)", "compile (s)", "process (s)")
    for result in results:
        print_row(result.name, result.steps, f"{result.loss:.4f}", f"{result.training:.1f}",
                  f"{result.compiling:.1f}", f"{result.process:.1f}")
    for result in results:
        if not result.loss <= target:
            raise UserError(f"{result.name} did not reach a validation loss of {target}: increase its number of steps")
    print(f"\nTo reach {target}, nanoGPT takes this many times as long as transformer_4d.py:\n"
          f"- training, without compile time: {ratio([result.training for result in results])}\n"
          f"- training, with compile time: {ratio([result.training + result.compiling for result in results])}\n"
          f"- process: {ratio([result.process for result in results])}")


def ratio(times: Sequence[float]) -> str:
    """Return nanoGPT's time divided by that of transformer_4d.py, as a range over its runs before and after."""
    before, nanogpt, after = times
    return f"{nanogpt / max(before, after):.2f} to {nanogpt / min(before, after):.2f}"


if __name__ == "__main__":
    main()
