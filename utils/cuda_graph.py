"""CUDA graphs: many kernels, one launch."""

import weakref
from collections.abc import Callable

import torch

idle_streams: list[torch.cuda.Stream] = []


def cuda_graph(function: Callable[[], object], stream: torch.cuda.Stream,
               pool: tuple[int, int] | None = None) -> Callable[[], None]:
    """Capture the CUDA kernels that `function()` launches, and return a function that launches all of them at once.

    For a small model, launching a kernel from Python takes longer than running it, and a training step has hundreds.
    The graph reads and writes the same memory at every replay, so everything that changes between replays must be in a
    tensor, and `function` must not synchronize with the device, as `.item()` does. Dropout draws a new mask at every
    replay, from the current seed. Graphs that never run at the same time can share a memory `pool`.

    `function` is called four times, on `stream`. The first three calls are a warmup, in which libraries allocate
    workspaces: that cannot be captured. Only graphs that are deleted together may share a stream: deleting a graph
    frees the cuBLAS workspaces of its stream, which the others still use (pytorch/pytorch#193402).
    """
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool, stream=stream):
        function()
    return graph.replay


def lease_stream(owner: object) -> torch.cuda.Stream:
    """Return a stream that nothing else uses until `owner`, which has the graphs captured on it, is deleted.

    Streams are used again, as PyTorch may keep a cuBLAS workspace for each stream that there ever was.
    """
    stream = idle_streams.pop() if idle_streams else torch.cuda.Stream()
    weakref.finalize(owner, idle_streams.append, stream)
    return stream
