"""Time to reach a validation loss: transformer_4d.py against nanoGPT's train.py, on the same text and machine.

    python benchmarks/time_to_loss.py PATH/TO/nanoGPT

Both train a model of the same width, depth, heads and context length, with the same batch size and no dropout, each
with its own recipe (nanoGPT's is config/train_shakespeare_char.py) and about as few steps as reach the target. Both
checkpoints are then evaluated by the same code, in float32, on the whole validation split. transformer_4d.py runs
before and after nanoGPT, which shows how much the speed of the machine drifts. The times:

- training: from the evaluation before the first step to the one after the last, without compile time.
- compile: on CUDA, nanoGPT runs with torch.compile, from an empty cache. This is how much longer its first training
  step takes than an average one.
- process: from start to exit, with the checkpoint saved. It includes everything else: imports, nanoGPT's compilation
  of the evaluation, and the CUDA graph of transformer_4d.py.
"""

import contextlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from side_by_side import nanogpt_model  # noqa: E402

import transformer_4d  # noqa: E402
from data.corpora import DEFAULT_PATH, name_of  # noqa: E402
from models.config import ModelConfig  # noqa: E402
from training.checkpoint import load_model  # noqa: E402
from training.evaluate import estimate_loss  # noqa: E402
from transformer_4d import DEVICES, Config  # noqa: E402
from utils.errors import Parser, UserError, check_numbers, command  # noqa: E402

STEPS, NANOGPT_STEPS = 400, 1080  # found by trial on a CPU: about the fewest that reach 1.60


@dataclass
class Run:
    """A finished training run; times in seconds."""

    name: str
    steps: int
    training: float
    compile: float
    process: float
    model: torch.nn.Module
    loss: float = float("nan")


def run_script(name, arguments, folder, prefixes):
    """Run a Python script in `folder`.

    Return the seconds from its start to the first line of output with each of `prefixes`, and to its exit.
    """
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compile_cache")}
    start, seconds = time.perf_counter(), {}
    with subprocess.Popen([sys.executable, "-u", *arguments], cwd=folder, env=env, stdout=subprocess.PIPE, text=True,
                          encoding="utf-8", errors="replace") as process:
        for line in process.stdout:
            if line.startswith("iter "):  # nanoGPT's progress
                print(line, end="", file=sys.stderr, flush=True)
            for prefix in prefixes:
                if line.startswith(prefix):
                    seconds.setdefault(prefix, time.perf_counter() - start)
    total = time.perf_counter() - start
    if process.returncode or len(seconds) < len(prefixes):
        raise UserError(f"{name} failed with exit code {process.returncode}: its error message is above")
    return *(seconds[prefix] for prefix in prefixes), total


def train_ours(folder, args):
    """Train with the copy of transformer_4d.py in `folder`."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    arguments = ["transformer_4d.py", f"--max_iters={args.steps}", f"--eval_interval={args.steps}",
                 f"--batch_size={args.batch_size}", f"--device={args.device}", "--dropout=0.0", "--max_new_chars=0"]
    prefixes = f"step {0:5} ", f"step {args.steps:5} "
    start, end, process = run_script("transformer_4d.py", arguments, folder, prefixes)
    [path] = (folder / "checkpoints").glob("*.pt")
    return Run("transformer_4d.py", args.steps, end - start, 0.0, process, load_model(path)[0])


def train_nanogpt(folder, shape, args):
    """Train a model of the ModelConfig `shape` with the copy of nanoGPT in `folder`."""
    steps, on_cuda = args.nanogpt_steps, args.device == "cuda"
    options = {"n_embd": shape.n_embd, "block_size": shape.block_size, "n_layer": shape.n_blocks,
               "n_head": shape.num_heads, "dropout": 0.0, "batch_size": args.batch_size, "max_iters": steps,
               "lr_decay_iters": steps, "eval_interval": steps, "eval_iters": 1, "always_save_checkpoint": True,
               "log_interval": 100, "device": args.device, "compile": on_cuda}
    if not on_cuda:
        options["dtype"] = "float32"  # what it computes in anyway; else it sets up a gradient scaler for float16
    arguments = ["train.py", "config/train_shakespeare_char.py"]
    arguments += [f"--{name}={value}" for name, value in options.items()]
    prefixes = "step 0:", "iter 0:", f"step {steps}:"
    start, first_step, end, process = run_script("nanoGPT", arguments, folder, prefixes)
    compile_seconds = (first_step - start) - (end - first_step) / steps if on_cuda else 0.0

    with contextlib.redirect_stdout(sys.stderr):  # it prints its number of parameters
        model = nanogpt_model(folder, shape)
    checkpoint = torch.load(folder / "out-shakespeare-char" / "ckpt.pt", map_location="cpu", weights_only=True)
    model.load_state_dict({name.removeprefix("_orig_mod."): weight for name, weight in checkpoint["model"].items()})
    model.block_size = shape.block_size
    return Run("nanoGPT", steps, end - start - compile_seconds, compile_seconds, process, model)


def ratios(ours_before, nanogpt, ours_after):
    """How many times as long nanoGPT takes, as a range over both runs of transformer_4d.py."""
    return f"{nanogpt / max(ours_before, ours_after):.2f} to {nanogpt / min(ours_before, ours_after):.2f}"


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps of transformer_4d.py (%(default)s)")
    parser.add_argument("--nanogpt_steps", type=int, default=NANOGPT_STEPS, help="those of nanoGPT (%(default)s)")
    parser.add_argument("--target", type=float, default=1.60, help="validation loss to reach (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=Config.batch_size, help="sequences per step (%(default)s)")
    parser.add_argument("--device", default=Config.device, choices=[name for name, found in DEVICES.items() if found],
                        help="(%(default)s)")
    args = parser.parse_args()
    check_numbers(args, positive=("steps", "nanogpt_steps", "target", "batch_size"))
    if not (args.nanogpt / "train.py").is_file():
        raise UserError(f"{args.nanogpt / 'train.py'} does not exist: pass the path of a nanoGPT checkout")
    try:
        text = transformer_4d.load_text(ROOT / DEFAULT_PATH)
    except transformer_4d.UserError as error:
        raise UserError(str(error)) from None

    vocab = sorted(set(text))
    tokens = np.array([vocab.index(character) for character in text], dtype=np.uint16)
    train_tokens, val_tokens = np.split(tokens, [int(0.9 * len(tokens))])
    shape = ModelConfig(Config.n_embd, Config.block_size, Config.n_blocks, Config.num_heads, len(vocab))
    with tempfile.TemporaryDirectory() as temporary:
        ours, nanogpt = Path(temporary) / "ours", Path(temporary) / "nanogpt"
        (ours / "data").mkdir(parents=True)
        shutil.copy(ROOT / "transformer_4d.py", ours)
        shutil.copy(ROOT / DEFAULT_PATH, ours / "data")
        shutil.copytree(args.nanogpt, nanogpt, ignore=shutil.ignore_patterns(".git"))
        nanogpt_data = nanogpt / "data" / "shakespeare_char"
        train_tokens.tofile(nanogpt_data / "train.bin")
        val_tokens.tofile(nanogpt_data / "val.bin")
        (nanogpt_data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(vocab)}))
        runs = [train_ours(ours, args), train_nanogpt(nanogpt, shape, args), train_ours(ours, args)]

    hardware = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"\n{name_of(text)}, batch size {args.batch_size} x {shape.block_size}, {args.device} ({hardware})\n\n"
          "| | steps | validation loss | training (s) | compile (s) | process (s) |\n|---|---|---|---|---|---|")
    for run in runs:
        run.loss = estimate_loss(run.model, val_tokens, 64)
        print(f"| {run.name} | {run.steps} | {run.loss:.4f} | {run.training:.1f} | {run.compile:.1f} | "
              f"{run.process:.1f} |")
    for run in runs:
        if not run.loss <= args.target:
            raise UserError(f"{run.name} did not reach {args.target}: increase --steps or --nanogpt_steps")
    print(f"\nnanoGPT takes this many times as long as transformer_4d.py to reach {args.target}:\n"
          f"- training, without compile time: {ratios(*(run.training for run in runs))}\n"
          f"- training, with compile time: {ratios(*(run.training + run.compile for run in runs))}\n"
          f"- whole process: {ratios(*(run.process for run in runs))}")


if __name__ == "__main__":
    main()
