"""Plots: the losses of a run, and the confusion matrix of a classifier."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from utils.files import replacing
from utils.printable import one_line
from utils.quantities import quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.scores import Scores

COLORS = {"train_loss": "tab:orange", "val_loss": "tab:blue", "ema_val_loss": "tab:green"}  # by key in the metrics
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK TC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC",
    "Source Han Sans CN", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback",  # Linux
    "Microsoft YaHei", "SimHei", "SimSun",  # Windows
    "PingFang SC", "Hiragino Sans GB", "Heiti SC", "Heiti TC", "STHeiti", "Songti SC", "Arial Unicode MS",  # macOS
)


def plot_losses(metrics: list[dict], path: Path, title: str, train_loss_name: str) -> None:
    """Draw the losses of a run as a PNG file: over steps, and on the upper axis over tokens.

    `metrics` are the lines of its metrics.jsonl, as dictionaries; `train_loss_name` is the label of the training loss.
    If that fails, print a message.
    """
    save_plot(path, "losses", draw_losses, metrics, title, train_loss_name)


def plot_confusion(scores: Scores, path: Path) -> None:
    """Draw a confusion matrix as a PNG file. If that fails, print a message."""
    save_plot(path, "confusion matrix", draw_confusion, scores)


def save_plot(path: Path, name: str, draw: Callable[..., Figure], *arguments: Any) -> None:
    """Save the figure that `draw(*arguments)` returns, or print a message that it failed."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its warnings are about fonts and caches
    try:
        import matplotlib  # here, because it can fail: it writes to a cache folder

        with warnings.catch_warnings(), matplotlib.rc_context({"font.family": font_families()}):
            warnings.simplefilter("ignore")  # about characters that no font has
            figure = draw(*arguments)
            with replacing(path) as file:
                figure.savefig(file, format="png", dpi=110)
    except Exception as error:  # matplotlib raises exceptions of many types, and none of them may end training
        tqdm.write(one_line(f"cannot plot the {name}: {type(error).__name__}: {error}"))


def font_families() -> list[str]:
    """Return the default fonts, followed by the installed Chinese fonts for characters that they lack."""
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = set(fontManager.get_font_names())
    return matplotlib.rcParams["font.family"] + [name for name in CHINESE_FONTS if name in installed]


def draw_losses(metrics: list[dict], title: str, train_loss_name: str) -> Figure:
    """Return the figure of `plot_losses`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.margins(x=0.02)
    labels = {"train_loss": train_loss_name, "val_loss": "validation loss",
              "ema_val_loss": "validation loss, averaged weights"}
    for key, label in labels.items():
        points = [(line["step"], line[key]) for line in metrics if line.get(key) is not None]
        if points:
            steps, losses = zip(*points, strict=True)
            axes.plot(steps, losses, color=COLORS[key], marker=".", label=f"{label} (lowest {min(losses):.4f})")
    if len(metrics) > 3:  # the first loss, of random weights, would leave little height for the others
        axes.set_ylim(top=1.05 * max(highest_loss(line) for line in metrics[1:]))
    axes.set(xlabel="steps", ylabel="loss (nats per target)")
    axes.set_title(one_line(title, limit=80), parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend()

    # Tokens are not proportional to steps if the batch size has changed. Beyond the last step, assume that they are.
    last = metrics[-1]
    if last["step"] > 0:
        steps = [-last["step"], *(line["step"] for line in metrics), 2 * last["step"]]
        millions = [-last["tokens"] / 1e6, *(line["tokens"] / 1e6 for line in metrics), 2 * last["tokens"] / 1e6]
        above = axes.secondary_xaxis("top", functions=(lambda x: np.interp(x, steps, millions),
                                                       lambda x: np.interp(x, millions, steps)))
        above.set_xlabel("million tokens seen")
    return figure


def highest_loss(line: dict) -> float:
    """Return the highest loss in a line of metrics."""
    return max(line[key] for key in COLORS if line.get(key) is not None)


def draw_confusion(scores: Scores) -> Figure:
    """Return the figure of `plot_confusion`: counts by true label (row) and predicted label, colored by row share."""
    from matplotlib.figure import Figure

    names, counts = [one_line(escape_missing_glyphs(label), limit=40) for label in scores.labels], scores.confusion
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = min(4.0 + 0.5 * len(names), 20.0)  # inches
    figure = Figure(figsize=(size, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(names) <= 30:  # as many as are legible
        for (true, predicted), count in np.ndenumerate(counts):
            color = "white" if shares[true, predicted] > 0.5 else "black"
            axes.text(predicted, true, f"{count:,}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set(xlabel="predicted label", ylabel="true label")
    axes.set_title(f"{quantity(counts.sum(), 'texts')}, {scores.accuracy:.2%} correct")
    return figure


def escape_missing_glyphs(text: str) -> str:
    """Return a text with escapes in place of the characters that no font in use has."""
    import matplotlib
    from matplotlib.font_manager import FontProperties, findfont, get_font

    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in matplotlib.rcParams["font.family"]]
    escaped = ""
    for character in text:
        has_glyph = any(font.get_char_index(ord(character)) for font in fonts)
        escaped += character if has_glyph else character.encode("unicode_escape").decode()
    return escaped
