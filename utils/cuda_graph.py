"""CUDA graphs: many kernels, one launch."""

import functools
from collections.abc import Callable

import torch


def cuda_graph(function: Callable[[], object], pool: tuple[int, int] | None = None) -> Callable[[], None]:
    """Capture the CUDA kernels that `function()` launches, and return a function that launches all of them at once.

    For a small model, launching a kernel from Python takes longer than running it, and a training step has hundreds.
    The graph reads and writes the same memory at every replay, so everything that changes between replays must be in a
    tensor, and `function` must not synchronize with the device, as `.item()` does. Dropout draws a new mask at every
    replay, from the current seed. Graphs that never run at the same time can share a memory `pool`.

    `function` is called four times. The first three calls are a warmup, in which libraries allocate workspaces: that
    cannot be captured.
    """
    stream = side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        function()
    return graph.replay


@functools.cache
def side_stream() -> torch.cuda.Stream:
    """Return the stream of all warmups and captures: PyTorch keeps a cuBLAS workspace for each stream ever used."""
    return torch.cuda.Stream()
