"""Runs of seconds, for tests."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training.arguments import parse_settings
from training.record import Record
from training.run import train as run

ROOT = Path(__file__).resolve().parents[1]
HERE = ["--data.path=data/input.txt", "--output.folder=checkpoints"]  # in the working directory
TINY = {"n_embd": 16, "block_size": 12, "n_blocks": 2, "num_heads": 4}


def tiny_settings(*more):
    """Return settings of a run of seconds, as the command line gives them."""
    tiny = [f"--model.{name}={value}" for name, value in TINY.items()]
    return parse_settings([*tiny, *HERE, "--run=tiny", "--training.max_iters=6", "--training.eval_interval=2",
                        "--training.device=cpu", "--training.batch_size=4", "--training.dtype=float32",
                        "--output.sample_tokens=5", *more])


def command(script, *arguments, **more):
    return subprocess.run([sys.executable, ROOT / script, *arguments], capture_output=True, text=True,
                          encoding="utf-8", **more)


def losses(folder):
    """Return the step, training loss and validation loss in each line of metrics.jsonl."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(line["step"], line["train_loss"], line["val_loss"]) for line in map(json.loads, lines)]


def interrupt(settings, monkeypatch, after):
    """Run until the evaluation number `after`, which saves, and stop there as a kill would."""
    evaluated, seen = Record.evaluate_and_save, []

    def then_stop(*arguments):
        stop = evaluated(*arguments)
        seen.append(arguments)
        if len(seen) == after:
            raise KeyboardInterrupt
        return stop

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Record, "evaluate_and_save", then_stop)
        run(settings)


def weights_of(folder, name="tiny"):
    return torch.load(folder / "checkpoints" / name / "last.pt", weights_only=True)["weights"]


def assert_same_run(folder, one, other):
    assert losses(folder / "checkpoints" / one) == losses(folder / "checkpoints" / other)
    first, second = weights_of(folder, one), weights_of(folder, other)
    assert all(torch.equal(first[name], second[name]) for name in first)
