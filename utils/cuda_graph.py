"""CUDA graphs: many kernels, one launch."""

import functools

import torch


def cuda_graph(function, pool=None):
    """Record the CUDA kernels that `function()` launches, and return a function that launches all of them at once.

    For a small model, launching a kernel from Python takes longer than running it, and a training step has hundreds.
    The graph reads and writes the same memory every time, so whatever changes between launches has to be in a tensor,
    and the recorded function must not wait for the device, as `.item()` does. Dropout draws new masks at every launch,
    from the seed that is current then. Graphs that never run at the same time can share a memory `pool`.

    `function` is called four times, three of them as a warmup: libraries allocate workspaces in their first calls,
    which cannot be recorded.
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
def side_stream():
    """The stream of all warmups and recordings: PyTorch keeps a cuBLAS workspace for every stream that was used."""
    return torch.cuda.Stream()
