"""training/precision.py: the memory of kernels for matrix products in half precision on a CPU."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils.forecast.context import CACHED_KERNELS, KERNEL_SIZE

# Prints the bytes in use on the C heap before the first product, after those of 100 shapes, and after 200 more.
PRODUCTS = """
import ctypes, torch
from training.precision import pick_device

class Statistics(ctypes.Structure):  # of mallinfo2(3)
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks",
                                                     "fsmblks", "uordblks", "fordblks", "keepcost")]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Statistics
pick_device("cpu")
x, weight = torch.ones(400, 64, dtype=torch.bfloat16), torch.ones(64, 64, dtype=torch.bfloat16)
for rows in range(100, 400):
    if rows in (100, 200):
        print(mallinfo2().uordblks + mallinfo2().hblkhd)
    x[:rows] @ weight
print(mallinfo2().uordblks + mallinfo2().hblkhd)
"""


def keeps_kernels():
    """Return whether this machine has such kernels, and a C library that reports the size of its heap."""
    return (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallinfo2")
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())


@pytest.mark.skipif(not keeps_kernels(), reason="no kernels for bfloat16, or no glibc 2.33")
def test_cached_kernels_take_no_more_memory_than_the_forecast():
    """Without a bound, 300 shapes take 158 MiB, and 200 of them 105 MiB."""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    done = subprocess.run([sys.executable, "-c", PRODUCTS], cwd=Path(__file__).parents[1], env=environment, text=True,
                          capture_output=True, check=True)
    before, after_100, after_300 = map(int, done.stdout.split())
    assert after_100 - before < 1.1 * CACHED_KERNELS * KERNEL_SIZE
    assert after_300 - after_100 < 5 * KERNEL_SIZE
