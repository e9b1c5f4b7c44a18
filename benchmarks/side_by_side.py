"""What the benchmarks against other projects share."""

import contextlib
import importlib.util
import statistics
import sys
import time
import timeit

import torch

from utils.errors import UserError


def nanogpt_model(checkout, c):
    """nanoGPT's model, from a checkout, in the shape of the ModelConfig c. Raises UserError."""
    path = checkout / "model.py"
    if not path.is_file():
        raise UserError(f"{path} does not exist: give the folder of a checkout of nanoGPT")
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    nanogpt = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nanogpt)
    with contextlib.redirect_stdout(sys.stderr):  # the model prints its number of parameters
        return nanogpt.GPT(nanogpt.GPTConfig(n_embd=c.n_embd, block_size=c.block_size, n_layer=c.n_blocks,
                                             n_head=c.num_heads, vocab_size=c.vocab_size, bias=c.bias,
                                             dropout=c.dropout))


def in_turns(runs, n_tokens, turns):
    """Run each of `runs`, functions by name that process `n_tokens` tokens, in turns; return the median tokens/s."""
    speeds = {name: [] for name in runs}
    for turn in range(1, turns + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            speeds[name].append(n_tokens / (time.perf_counter() - started))
        latest = ", ".join(f"{name} {values[-1]:,.1f}" for name, values in speeds.items())
        print(f"turn {turn}: {latest} tokens/s", file=sys.stderr, flush=True)
    return {name: statistics.median(values) for name, values in speeds.items()}


def synchronize(device):
    """Wait until a CUDA device has finished all kernels; on other devices, do nothing."""
    if device == "cuda":
        torch.cuda.synchronize()


def device_name(device):
    """The name of the GPU, or the number of CPU threads."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def matmul_rate(device, dtype):
    """Floating-point operations per second in the product of two large matrices."""
    size = 8192 if device == "cuda" else 2048
    a, b = torch.randn(2, size, size, device=device).to(dtype)

    def multiply():
        a @ b
        synchronize(device)

    return 2 * size**3 / min(timeit.repeat(multiply, number=1, repeat=20))
