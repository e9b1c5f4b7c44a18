"""Time to a validation loss: transformer_4d.py against nanoGPT's trainer, on the same text and the same machine.

    python benchmarks/time_to_loss.py PATH/TO/nanoGPT

Both train a model of the same width, depth, heads and context on batches of the same size, without dropout, each by
its own recipe (nanoGPT's is its config/train_shakespeare_char.py), in as few steps as bring it under the target, and
both models are then measured alike, over the whole validation split. The time is that from the evaluation before the
first step to the one after the last. transformer_4d.py runs before nanoGPT and again after it, to show how far the
machine's speed drifts.
"""

import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from transformer_4d import Settings, TransformerModel, evaluate, read_text  # noqa: E402
from utils.errors import Parser, UserError, command  # noqa: E402

STEPS, NANOGPT_STEPS = 470, 1080  # found by trial on a CPU: about the fewest that bring each to 1.60


def seconds_between(command, folder, first, last):
    """Run a command; return the seconds from the line of its output that starts with `first` to that with `last`."""
    seen = {}
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        for line in process.stdout:
            for mark in (first, last):
                if line.startswith(mark):
                    seen[mark] = time.perf_counter()
    if process.returncode or len(seen) < 2:
        raise UserError(f"{' '.join(command)} in {folder} ended with exit code {process.returncode}")
    return seen[last] - seen[first]


def train_ours(folder, args):
    """Train a copy of transformer_4d.py in `folder`; return the seconds it took and the model."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    command = [sys.executable, "-u", "transformer_4d.py", f"--max_iters={args.steps}", f"--eval_interval={args.steps}",
               f"--batch_size={args.batch_size}", f"--device={args.device}", "--dropout=0.0", "--max_new_chars=0"]
    seconds = seconds_between(command, folder, f"step {0:5} ", f"step {args.steps:5} ")
    [path] = (folder / "checkpoints").iterdir()
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model = TransformerModel(**checkpoint["config"])
    model.load_state_dict(checkpoint["weights"])
    return seconds, model


def train_nanogpt(folder, args):
    """Train a copy of nanoGPT in `folder`; return the seconds it took and the model."""
    s = Settings()
    options = {"n_embd": s.n_embd, "block_size": s.block_size, "n_layer": s.n_blocks, "n_head": s.num_heads,
               "batch_size": args.batch_size, "max_iters": args.nanogpt_steps, "lr_decay_iters": args.nanogpt_steps,
               "eval_interval": args.nanogpt_steps, "eval_iters": 1, "log_interval": 100, "dropout": 0.0,
               "device": args.device, "compile": args.device != "cpu"}
    command = [sys.executable, "-u", "train.py", "config/train_shakespeare_char.py"]
    command += [f"--{name}={value}" for name, value in options.items()]
    seconds = seconds_between(command, folder, "step 0:", f"step {args.nanogpt_steps}:")
    sys.path.insert(0, str(folder))
    from model import GPT, GPTConfig

    checkpoint = torch.load(folder / "out-shakespeare-char" / "ckpt.pt", map_location="cpu", weights_only=True)
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict({name.removeprefix("_orig_mod."): weight for name, weight in checkpoint["model"].items()})
    model.block_size = model.config.block_size
    return seconds, model


@command
def main():
    parser = Parser(__doc__)
    parser.add_argument("nanogpt", type=Path, help="a checkout of nanoGPT")
    parser.add_argument("--steps", type=int, default=STEPS, help="of transformer_4d.py (%(default)s)")
    parser.add_argument("--nanogpt_steps", type=int, default=NANOGPT_STEPS, help="of nanoGPT (%(default)s)")
    parser.add_argument("--target", type=float, default=1.60, help="validation loss to reach (%(default)s)")
    parser.add_argument("--batch_size", type=int, default=Settings.batch_size, help="of both (%(default)s)")
    parser.add_argument("--device", default=Settings.device, help="of both (%(default)s)")
    args = parser.parse_args()
    if not (args.nanogpt / "train.py").is_file():
        raise UserError(f"there is no {args.nanogpt / 'train.py'}: give the folder of a checkout of nanoGPT")

    text = read_text(ROOT / "data" / "input.txt")
    vocab = sorted(set(text))
    tokens = np.array([vocab.index(character) for character in text], dtype=np.uint16)
    splits = dict(zip(("train", "val"), np.split(tokens, [int(0.9 * len(tokens))]), strict=True))
    with tempfile.TemporaryDirectory() as temporary:
        ours, nanogpt = Path(temporary) / "ours", Path(temporary) / "nanogpt"
        (ours / "data").mkdir(parents=True)
        shutil.copy(ROOT / "transformer_4d.py", ours)
        shutil.copy(ROOT / "data" / "input.txt", ours / "data")
        shutil.copytree(args.nanogpt, nanogpt, ignore=shutil.ignore_patterns(".git"))
        for name, split in splits.items():
            split.tofile(nanogpt / "data" / "shakespeare_char" / f"{name}.bin")
        (nanogpt / "data" / "shakespeare_char" / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": len(vocab)}))

        val_tokens = torch.from_numpy(splits["val"].astype(np.int64))
        times = []
        for name, steps, train, folder in (
            ("transformer_4d.py", args.steps, train_ours, ours),
            ("nanoGPT", args.nanogpt_steps, train_nanogpt, nanogpt),
            ("transformer_4d.py", args.steps, train_ours, ours),
        ):
            seconds, model = train(folder, args)
            loss = evaluate(model, val_tokens, 64)
            verdict = "" if loss <= args.target else f", NOT {args.target}: give it more steps"
            print(f"{name:18} {steps:5} steps {seconds:7.1f} s  validation loss {loss:.4f}{verdict}", flush=True)
            times.append(seconds)
    print(f"transformer_4d.py is {times[1] / max(times[0], times[2]):.2f} to {times[1] / min(times[0], times[2]):.2f} "
          f"times as fast to {args.target}")


if __name__ == "__main__":
    main()
