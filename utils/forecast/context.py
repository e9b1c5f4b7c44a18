"""Memory other than tensors: Python, PyTorch and CUDA themselves, and memory that the allocator cannot use."""

from collections.abc import Mapping

from utils.forecast.plan import Plan
from utils.forecast.units import KIB, MIB

# CPU: the resident memory of a process that has imported torch and matplotlib (0.25 GiB on Linux). CUDA: the context
# with its kernels, which is on the GPU but not in torch's statistics; 0.3 to 0.6 GiB is typical, depending on GPU and
# driver.
CONTEXT = {"cpu": 256 * MIB, "cuda": 512 * MIB}
# The modules that torch imports to build an optimizer, measured on Linux.
OPTIMIZER_CODE = 80 * MIB
# A CPU caches kernels for matrix products in half precision: at most this many (training/precision.py), of this size.
CACHED_KERNELS, KERNEL_SIZE = 64, 540 * KIB
# Memory that PyTorch's CUDA allocator reserves but cannot use, as a fraction of what it allocates: an assumption.
CUDA_SLACK = 0.05
# Fragmentation on a CPU, as a fraction of these parts: their tensors are allocated and freed in every step and, unlike
# logits, are mostly too small to be mapped one by one. With it, the resident memory of 18 runs of five models on Linux
# was 0.98 to 1.25 times the forecast; without it, 1.07 to 1.43 times.
CPU_SLACK, FRAGMENTED = 0.25, ("autocast copies", "activations", "backward buffers")


def context_and_allocator(plan: Plan, parts: Mapping[str, int]) -> int:
    """Return the bytes of memory other than tensors, for a step with these parts at its peak."""
    if plan.device == "cuda":
        return CONTEXT["cuda"] + int(CUDA_SLACK * sum(parts.values()))
    kernels = CACHED_KERNELS * KERNEL_SIZE if plan.autocast else 0
    slack = int(CPU_SLACK * sum(parts.get(part, 0) for part in FRAGMENTED))
    return CONTEXT["cpu"] + OPTIMIZER_CODE + kernels + slack
