"""Draw docs/picture.png, the picture in the READMEs: the losses of the model that ships, and a sample of its text.

    python docs/picture.py
"""

import json
import subprocess
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PROJECT = Path(__file__).resolve().parent.parent
RUN = PROJECT / "checkpoints" / "shakespeare"
PROMPT, OPTIONS = "JULIET:", ["--seed", "1", "--max_tokens", "593"]
BASELINES = {"5-gram model": 1.6688, "nanoGPT, as published": 1.4697}  # docs/results.md


def draw_losses(axes: Axes) -> None:
    """Draw the losses of the run over its minutes."""
    lines = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for key, label in (("train_loss", "training"), ("val_loss", "validation")):
        points = [(line["seconds"] / 60, line[key]) for line in lines if line[key] is not None]
        axes.plot(*zip(*points, strict=True), marker=".", label=label)
    for (name, loss), style in zip(BASELINES.items(), ("--", ":"), strict=True):
        axes.axhline(loss, color="gray", linestyle=style, linewidth=1, label=f"{name}: {loss:.2f}")
    axes.set(xlabel="minutes on two CPU cores", ylabel="loss (nats per character)", ylim=(1, 2.2))
    axes.set_title("The model that ships: 10.7 million parameters, tiny Shakespeare")
    axes.grid(alpha=0.3)
    axes.legend()


def draw_terminal(axes: Axes) -> None:
    """Draw a terminal in which terminal_demo.py continues PROMPT."""
    done = subprocess.run([sys.executable, "terminal_demo.py", *OPTIONS], input=PROMPT, cwd=PROJECT, text=True,
                          stdout=subprocess.PIPE, check=True)
    text = f'$ echo "{PROMPT}" | python terminal_demo.py {" ".join(OPTIONS)}\n{done.stdout.rstrip()}'
    axes.set_facecolor("#1e1e2e")
    axes.set(xticks=[], yticks=[])
    axes.text(0.02, 0.97, text, transform=axes.transAxes, va="top", color="#e6e6e6", family="monospace", size=8.5,
              linespacing=1.35, parse_math=False)


def main() -> None:
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    draw_losses(left)
    draw_terminal(right)
    figure.savefig(PROJECT / "docs" / "picture.png", dpi=110)


if __name__ == "__main__":
    main()
