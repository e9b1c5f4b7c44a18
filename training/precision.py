"""Device and dtype of matrix products."""

import os
import timeit

import torch

from utils.errors import UserError
from utils.forecast.context import CACHED_KERNELS


def pick_device(name="auto"):
    """Return the name of a device: `name`, or for `auto` the first of CUDA, MPS and CPU that is available.

    Raises UserError if the device is not available. Called before the first matrix product, it bounds the memory of
    the CPU's kernels.
    """
    bound_kernel_caches()
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device in available if available[device])
    if not available[name]:
        choices = " or ".join(device for device in available if available[device])
        raise UserError(f"device {name} is not available on this machine: use {choices}")
    return name


def bound_kernel_caches():
    """Let a CPU keep CACHED_KERNELS kernels for matrix products in half precision; each fits one shape.

    By default, it keeps 1,024. A step has about 20 for the length of its batch, which take 10 MiB and lie between its
    activations, so that the memory of those is in pieces when it is free, and too small for a batch of another length.
    PyTorch and oneDNN read the limits of their caches from the environment, at the first of these products.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(CACHED_KERNELS))


def pick_dtype(device, name="auto"):
    """Return the dtype for matrix products in training: bfloat16 where the device is fast in it, else float16 on a GPU,
    else float32. A `name` other than auto decides."""
    if name != "auto":
        return getattr(torch, name)
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device == "mps":
        return torch.float32
    full = torch.ones(512, 512)  # timed, because CPUs differ by a factor of a hundred
    half = full.bfloat16()
    full_seconds, half_seconds = (min(timeit.repeat(lambda a=a: a @ a, number=1, repeat=5)) for a in (full, half))
    return torch.bfloat16 if half_seconds < 0.7 * full_seconds else torch.float32


def inference_dtype(device):
    """Return the dtype of a model that generates text. Every token reads all weights once, so that their size decides,
    even on a CPU that is slow in bfloat16."""
    return torch.bfloat16 if device == "cpu" else pick_dtype(device)


def autocast(device, dtype):
    """Context in which matrix products are computed in `dtype`. Without a cache of cast weights: a CUDA graph must not
    read tensors that were allocated before it."""
    return torch.autocast(device, dtype, enabled=dtype != torch.float32, cache_enabled=False)
