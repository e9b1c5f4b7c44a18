"""The memory of a step of Muon."""

from collections import Counter
from math import prod

from utils.forecast.parameters import linear_shapes, matrices_in_blocks
from utils.forecast.plan import MUON_STACK
from utils.forecast.units import BYTES


def muon_buffers(config, plan, n_blocks):
    """What a step of Muon allocates for the largest stack of matrices of equal shape, n elements in total.

    First the updates in float32, one by one and stacked; FSDP gathers whole weights for them. Then three buffers of
    their size, the update, x and the next x, and a and b, which are square. With autocast, at last the result in half
    precision, its input and its cast. Several ranks orthogonalize a part each, in addition to the stack and its result.
    """
    size, peak = BYTES[plan.dtype], 0
    for shape, per_block in Counter(matrices_in_blocks(config)).items():
        count = min(per_block * n_blocks, max(1, MUON_STACK // prod(shape)))
        own = -(-count // plan.gpus)
        n, n_own, squares = count * prod(shape), own * prod(shape), own * min(shape) ** 2
        apart = gathered_for_muon(config, n_blocks, shape, count) if plan.is_sharded else n
        peak = max(peak, 4 * (apart + n), size * (3 * n_own + 2 * squares))
        if plan.gpus > 1:
            cast = 4 * n if plan.autocast else 0
            peak = max(peak, 2 * size * n + max(size * (2 * n_own + 2 * squares), cast))
    return peak


def gathered_for_muon(config, n_blocks, shape, count):
    """Elements of the weights that contain `count` matrices of a `shape`; queries, keys and values come first."""
    in_qkv = matrices_in_qkv(config, shape)
    from_qkv = min(count, in_qkv * n_blocks)
    n_weights = -(-from_qkv // in_qkv) if in_qkv else 0
    return n_weights * prod(linear_shapes(config)["qkv"]) + (count - from_qkv) * prod(shape)


def matrices_in_qkv(config, shape):
    """How many of the matrices of queries, keys and values, which are one weight, have a `shape`."""
    queries, keys = (heads * config.head_size for heads in (config.num_heads, config.kv_heads))
    return [(queries, config.n_embd), (keys, config.n_embd), (keys, config.n_embd)].count(shape)
