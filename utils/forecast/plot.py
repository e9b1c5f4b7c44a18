"""The training memory as a plot."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from utils.errors import UserError
from utils.files import check_writable, replacing
from utils.forecast.architecture import Architecture
from utils.forecast.parameters import count_parameters
from utils.forecast.plan import PARTS, Plan
from utils.forecast.report import describe_plan, device_name
from utils.forecast.step import training_memory
from utils.forecast.units import GIB, format_bytes

POINTS = 32  # of a curve


def check_plot(path: Path) -> None:
    """Raise UserError if no plot can be written to the file `path`. Its folder is created."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UserError(f"cannot write {path}: give a name that ends in .png, .svg or .pdf")
    check_writable(path)


def plot_memory(config: Architecture, plan: Plan, memory: int | None, path: Path) -> None:
    """Plot the parts of the training memory over batch size and over context length, with the available memory."""
    import matplotlib
    from matplotlib.figure import Figure

    def parts_by_batch_size(batch_size: int) -> dict[str, int]:
        return training_memory(config, replace(plan, batch_size=batch_size)).parts

    def parts_by_context(block_size: int) -> dict[str, int]:
        return training_memory(replace(config, block_size=block_size), plan).parts

    figure = Figure(figsize=(11, 5.5), layout="constrained")
    sides = (
        (f"batch size (context length {config.block_size:,})", plan.batch_size, parts_by_batch_size),
        (f"context length (batch size {plan.batch_size:,})", config.block_size, parts_by_context),
    )
    colors = dict(zip(PARTS, matplotlib.colormaps["tab10"].colors, strict=True))
    for axes, (label, planned, parts_of) in zip(figure.subplots(1, 2, sharey=True), sides, strict=True):
        xs = sweep(planned, parts_of, memory)
        memories = [parts_of(x) for x in xs]
        parts = [part for part in PARTS if any(part in sizes for sizes in memories)]
        curves = [[sizes.get(part, 0) / GIB for sizes in memories] for part in parts]
        axes.stackplot(xs, curves, labels=parts, colors=[colors[part] for part in parts])
        axes.axvline(planned, color="black", linewidth=0.8, linestyle=":")
        if memory:
            axes.axhline(memory / GIB, color="black", linestyle="--", label=f"available: {format_bytes(memory)}")
        axes.set(xlabel=label, xlim=(xs[0], xs[-1]))
        axes.grid(alpha=0.3)
    first = figure.axes[0]
    first.set(ylabel=f"GiB per {device_name(plan)}" if plan.gpus > 1 else "GiB", ylim=(0, None))
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    figure.suptitle(f"{count_parameters(config):,} parameters: {describe_plan(plan)}", fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=110)


def sweep(planned: int, parts_of: Callable[[int], dict[str, int]], memory: int | None) -> list[int]:
    """Return values from 1 to twice the planned one, or to the power of two times it that exceeds `memory` bytes."""
    end = 2 * planned
    while memory and sum(parts_of(end).values()) < memory:
        end *= 2
    return sorted({max(1, round(end * i / POINTS)) for i in range(POINTS + 1)})
