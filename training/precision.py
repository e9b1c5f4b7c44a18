"""The device, and the compute dtype of matrix products."""

import os
import timeit

import torch
from torch import Tensor

from utils.errors import UserError
from utils.forecast.context import CACHED_KERNELS


def pick_device(name: str = "auto") -> str:
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


def bound_kernel_caches() -> None:
    """Limit the CPU's cache of kernels for matrix products in half precision, each for one shape, to CACHED_KERNELS.

    By default, it keeps 1,024. A step with a new sequence length adds about 20, or 10 MiB, which lie between its
    activations and fragment their memory. PyTorch and oneDNN read the limits of their caches from the environment, at
    the first of these products.
    """
    for name in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(name, str(CACHED_KERNELS))


def pick_dtype(device: str, name: str = "auto") -> torch.dtype:
    """Return the compute dtype `name`, or for `auto` the fastest one that is safe for training on a device.

    That is bfloat16 where the hardware is fast in it, else float16 on a GPU, else float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device == "mps":
        return torch.float32
    full = torch.ones(512, 512)  # timed, because CPUs differ by a factor of a hundred
    half = full.bfloat16()
    full_seconds, half_seconds = matmul_seconds(full), matmul_seconds(half)
    return torch.bfloat16 if half_seconds < 0.7 * full_seconds else torch.float32


def matmul_seconds(x: Tensor) -> float:
    """Return the shortest time of five products of a square matrix with itself, in seconds."""
    return min(timeit.repeat(lambda: x @ x, number=1, repeat=5))


def inference_dtype(device: str) -> torch.dtype:
    """Return the dtype of the weights of a model that generates text.

    Every token reads all weights once, so their size decides the speed, even on a CPU that is slow in bfloat16.
    """
    return torch.bfloat16 if device == "cpu" else pick_dtype(device)


def autocast(device: str, dtype: torch.dtype) -> torch.autocast:
    """Context in which matrix products are computed in `dtype`.

    It has no cache of cast weights: a CUDA graph must not read tensors that were allocated before it.
    """
    return torch.autocast(device, dtype, enabled=dtype != torch.float32, cache_enabled=False)


def avoid_attention_plans() -> None:
    """Do without cuDNN's attention, which PyTorch prefers on an H100.

    For each new shape of a batch it plans its kernels: half a second forward, and as long backward. That only pays for
    training on batches of one shape.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
