"""Which device, and which numbers."""

import timeit

import torch

from utils.errors import UserError


def pick_device(name="auto"):
    """The name of the device to use: the first of CUDA, MPS and CPU that is there, or the one that is asked for."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(device for device in there if there[device])
    if not there[name]:
        raise UserError(f"device {name} is not to be had here: give {' or '.join(d for d in there if there[d])}")
    return name


def pick_dtype(device, name="auto"):
    """What to multiply matrices in: bfloat16 where the device is fast in it, else float16 on a GPU, else float32."""
    if name != "auto":
        return getattr(torch, name)
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device == "mps":
        return torch.float32
    full = torch.ones(512, 512)  # timed, because CPUs differ here by a factor of a hundred
    half = full.bfloat16()
    full_seconds, half_seconds = (min(timeit.repeat(lambda a=a: a @ a, number=1, repeat=5)) for a in (full, half))
    return torch.bfloat16 if half_seconds < 0.7 * full_seconds else torch.float32


def writing_dtype(device):
    """What to keep a model in that writes. A token needs all weights and multiplies each once: what counts is how
    small they are, on a CPU even on one that is slow in bfloat16."""
    return torch.bfloat16 if device == "cpu" else pick_dtype(device)


def autocast(device, dtype):
    """The context in which a model multiplies its matrices in `dtype`."""
    return torch.autocast(device, dtype, enabled=dtype != torch.float32, cache_enabled=False)  # for CUDA graphs
