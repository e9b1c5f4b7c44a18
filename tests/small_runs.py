"""Runs of seconds, for tests."""

import json
import subprocess
import sys
from pathlib import Path

from training.arguments import parse_settings

ROOT = Path(__file__).resolve().parents[1]
HERE = ["--data.path=data/input.txt", "--output.folder=checkpoints"]  # in the working directory
TINY = {"n_embd": 16, "block_size": 12, "n_blocks": 2, "num_heads": 4}


def tiny_settings(*more):
    """Settings of a run of seconds, as the command line gives them."""
    tiny = [f"--model.{name}={value}" for name, value in TINY.items()]
    return parse_settings([*tiny, *HERE, "--run=tiny", "--training.max_iters=6", "--training.eval_interval=2",
                        "--training.device=cpu", "--training.batch_size=4", "--training.dtype=float32",
                        "--output.sample_tokens=5", *more])


def command(script, *arguments, **more):
    return subprocess.run([sys.executable, ROOT / script, *arguments], capture_output=True, text=True,
                          encoding="utf-8", **more)


def losses(folder):
    """Step, training and validation loss of each line of metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["step"], line["train_loss"], line["val_loss"]) for line in map(json.loads, lines)]
