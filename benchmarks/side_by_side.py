"""Helpers shared by the benchmarks: nanoGPT's model, runs in turns, hardware, Markdown tables."""

import contextlib
import importlib.util
import statistics
import sys
import time
import timeit
from collections.abc import Callable
from pathlib import Path

import torch

from models.config import ModelConfig
from utils.errors import UserError
from utils.quantities import quantity


def nanogpt_model(checkout: Path, config: ModelConfig) -> torch.nn.Module:
    """Return nanoGPT's model with the sizes of `config`. Raises UserError if `checkout` has no model.py."""
    path = checkout / "model.py"
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the folder of a checkout of nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    with contextlib.redirect_stdout(sys.stderr):  # the model prints its number of parameters
        return nanogpt.GPT(nanogpt.GPTConfig(n_embd=config.n_embd, block_size=config.block_size,
                                             n_layer=config.n_blocks, n_head=config.num_heads,
                                             vocab_size=config.vocab_size, bias=config.bias, dropout=config.dropout))


def in_turns(runs: dict[str, Callable[[], object]], n_tokens: int, turns: int) -> dict[str, float]:
    """Call the functions `runs`, which process `n_tokens` tokens each, in turns; return their median tokens/s."""
    speeds = {name: [] for name in runs}
    for turn in range(1, turns + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            speeds[name].append(n_tokens / (time.perf_counter() - started))
        latest = ", ".join(f"{name} {values[-1]:,.1f}" for name, values in speeds.items())
        print(f"turn {turn}: {latest} tokens/s", file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in speeds.items()}


def synchronize(device: str) -> None:
    """Wait until a CUDA device has finished all kernels; on other devices, do nothing."""
    if device == "cuda":
        torch.cuda.synchronize()


def device_name(device: str) -> str:
    """Return the name of the GPU, or the number of CPU threads."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {quantity(torch.get_num_threads(), 'threads')}"


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of the product of two large matrices."""
    size = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).to(dtype)

    def multiply() -> None:
        a @ b
        synchronize(device)

    return 2 * size**3 / min(timeit.repeat(multiply, number=1, repeat=20))


def print_header(*columns: str) -> None:
    """Print the header of a Markdown table."""
    print_row(*columns)
    print(f"|{'---|' * len(columns)}", flush=True)


def print_row(*cells: object) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)
