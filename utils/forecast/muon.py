"""The memory of a step of Muon."""

from collections import Counter
from math import prod

from utils.forecast.architecture import Architecture
from utils.forecast.parameters import linear_shapes, matrices_in_blocks
from utils.forecast.plan import MUON_STACK, Plan
from utils.forecast.units import BYTES


def muon_buffers(config: Architecture, plan: Plan, n_blocks: int) -> int:
    """Return the bytes that a step of Muon allocates for its largest stack of matrices of equal shape.

    Muon first computes the updates in float32, one by one, and stacks them; with FSDP, it gathers whole weights, one at
    a time. Then orthogonalization needs three buffers of the size of the stack (the update, x and the next x) and two
    of square matrices (a and b). Of several ranks, each has a stack of its own, and receives those of the others one by
    one. With autocast, these are cast to float32.
    """
    element, peak = BYTES[plan.dtype], 0
    for shape, per_block in Counter(matrices_in_blocks(config)).items():
        equal_parts = -(-per_block * n_blocks // plan.gpus)  # rounded up
        count = max(1, min(equal_parts, MUON_STACK // prod(shape)))
        n, squares = count * prod(shape), count * min(shape) ** 2  # elements
        weight = prod(linear_shapes(config)["qkv"]) if matrices_in_qkv(config, shape) else prod(shape)
        gathered = 4 * (n + weight) if plan.is_sharded else 0
        received = (2 * element + 4 * plan.autocast) * n if plan.gpus > 1 else 0
        peak = max(peak, 4 * (n + n), gathered, element * (3 * n + 2 * squares), received)
    return peak


def matrices_in_qkv(config: Architecture, shape: tuple[int, int]) -> int:
    """Return how many of the query, key and value matrices, which are one weight, have this shape."""
    queries, keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
    return [(queries, config.n_embd), (keys, config.n_embd), (keys, config.n_embd)].count(shape)
