"""The memory of a step of Muon."""

from collections import Counter
from math import prod

from utils.forecast.architecture import Architecture
from utils.forecast.parameters import linear_shapes, matrices_in_blocks
from utils.forecast.plan import MUON_STACK, Plan
from utils.forecast.units import BYTES


def muon_buffers(config: Architecture, plan: Plan, n_blocks: int) -> int:
    """Return the bytes that a step of Muon allocates for its largest stack of matrices of equal shape.

    Muon first computes the updates in float32, one by one, and stacks them; with FSDP, it gathers whole weights. Then
    orthogonalization needs three buffers of the size of the stack (the update, x and the next x) and two of square
    matrices (a and b). With autocast, the result in half precision and its input exist while it is cast to float32.
    Each of several ranks orthogonalizes a part of the stack, in addition to the stack and its result.
    """
    element, peak = BYTES[plan.dtype], 0
    for shape, per_block in Counter(matrices_in_blocks(config)).items():
        count = min(per_block * n_blocks, max(1, MUON_STACK // prod(shape)))
        own = -(-count // plan.gpus)  # rounded up
        n, n_own, squares = count * prod(shape), own * prod(shape), own * min(shape) ** 2  # elements
        unstacked = gathered_for_muon(config, n_blocks, shape, count) if plan.is_sharded else n
        peak = max(peak, 4 * (unstacked + n), element * (3 * n_own + 2 * squares))
        if plan.gpus > 1:
            cast = 4 * n if plan.autocast else 0
            peak = max(peak, 2 * element * n + max(element * (2 * n_own + 2 * squares), cast))
    return peak


def gathered_for_muon(config: Architecture, n_blocks: int, shape: tuple[int, int], count: int) -> int:
    """Return the number of elements of the weights that contain `count` matrices of a shape; qkv weights come first."""
    in_qkv = matrices_in_qkv(config, shape)
    if not in_qkv:
        return count * prod(shape)
    from_qkv = min(count, in_qkv * n_blocks)
    n_weights = -(-from_qkv // in_qkv)  # rounded up
    return n_weights * prod(linear_shapes(config)["qkv"]) + (count - from_qkv) * prod(shape)


def matrices_in_qkv(config: Architecture, shape: tuple[int, int]) -> int:
    """Return how many of the query, key and value matrices, which are one weight, have this shape."""
    queries, keys = config.num_heads * config.head_size, config.kv_heads * config.head_size
    return [(queries, config.n_embd), (keys, config.n_embd), (keys, config.n_embd)].count(shape)
