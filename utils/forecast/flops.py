"""Floating-point operations of training, per token."""

from collections.abc import Collection
from math import prod

from utils.forecast.architecture import Architecture
from utils.forecast.parameters import linear_shapes
from utils.forecast.plan import Plan


def flops_per_token(config: Architecture, plan: Plan) -> int:
    """Return the floating-point operations per token of the matrix products, forward and backward.

    A product with a matrix of N weights takes 2 N operations forward, 2 N for the gradient of its input and 2 N for the
    gradient of the matrix. The two products of attention take 4 C T forward, as if each token attended to the whole
    context, and 8 C T backward. If everything is trained, the sum is 6 N + 12 L C T, where N counts the matrices of the
    blocks and the heads, tied or not (Chowdhery et al., 2022, appendix B). With frozen blocks or LoRA, only trained
    matrices need a gradient, and only operations above the lowest trained weight need the gradient of their input.
    Activation checkpointing repeats the forward pass of each block with a trained weight.
    """
    names, L = linear_shapes(config).keys(), config.n_blocks
    if plan.lora_rank is None:
        adapted = set()
        n_trained = L if plan.trainable_blocks is None else plan.trainable_blocks
        reached = True  # norms are trained: the final one, and those of trained blocks
        frozen = (L - n_trained) * block_flops(config, reached=False)
        blocks = frozen + n_trained * block_flops(config, reached=True, trained=names)
        head_trained = plan.trainable_blocks is None or not config.tied_head
    else:
        adapted = names & set(plan.lora_targets)
        n_trained, reached = L if adapted else 0, bool(adapted)
        first = block_flops(config, reached=False, trained=adapted, lora_rank=plan.lora_rank)
        blocks = first + (L - 1) * block_flops(config, reached=reached, trained=adapted, lora_rank=plan.lora_rank)
        # The loss merges an adapter of the head into its weight.
        head_trained = config.n_labels is not None or "head" in plan.lora_targets
    heads = matrix_flops((config.n_outputs, config.n_embd), reached=reached, trained=head_trained)
    if config.auxiliary_lm:
        all_trained = plan.lora_rank is None and plan.trainable_blocks is None
        heads += matrix_flops((config.vocab_size, config.n_embd), reached=reached, trained=all_trained)
    if not plan.activation_checkpointing:
        return blocks + heads
    return blocks + heads + n_trained * recomputed_flops(config, adapted, plan.lora_rank)


def block_flops(config: Architecture, *, reached: bool, trained: Collection[str] = (),
                lora_rank: int | None = None) -> int:
    """Return the operations per token in one block.

    `reached`: the input of the block needs a gradient. `trained` are the names of the matrices that are trained or,
    with `lora_rank`, have adapters.
    """
    shapes, flops = linear_shapes(config), 0
    for names in (["qkv"], ["out"], ["up", "gate"], ["down"]):  # up and gate have the same input
        for name in names:
            if name in shapes:
                flops += matrix_flops(shapes[name], reached=reached, trained=name in trained, lora_rank=lora_rank)
        reached = reached or any(name in trained for name in names)
        if names == ["qkv"]:
            flops += (12 if reached else 4) * config.num_heads * config.head_size * config.block_size
    return flops


def matrix_flops(shape: tuple[int, int], *, reached: bool, trained: bool, lora_rank: int | None = None) -> int:
    """Return the operations per token for a matrix of a `shape` (outputs, inputs).

    `reached`: its input needs a gradient. `trained`: the matrix is trained or, with `lora_rank`, its adapter, which
    consists of two matrices.
    """
    if trained and lora_rank is not None:
        outputs, inputs = shape
        down = matrix_flops((lora_rank, inputs), reached=reached, trained=True)
        up = matrix_flops((outputs, lora_rank), reached=True, trained=True)
        return matrix_flops(shape, reached=reached, trained=False) + down + up
    n_products = 1  # the output, the gradient of the input, the gradient of the matrix
    if reached:
        n_products += 1
    if trained:
        n_products += 1
    return 2 * prod(shape) * n_products


def recomputed_flops(config: Architecture, adapted: Collection[str], lora_rank: int | None) -> int:
    """Return the operations per token that activation checkpointing repeats in one block, adapters included.

    The forward pass ends with the last tensor that is saved: the dropout mask, or else the input of the last product.
    """
    shapes = linear_shapes(config)
    flops = block_flops(config, reached=False) + sum(2 * lora_rank * sum(shapes[name]) for name in adapted)
    if config.dropout:
        return flops
    return flops - matrix_flops(shapes["down"], reached=False, trained=False)
