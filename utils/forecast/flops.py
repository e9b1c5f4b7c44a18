"""Floating-point operations of training, per token."""

from collections.abc import Iterable
from math import prod

from utils.forecast.architecture import Architecture
from utils.forecast.parameters import linear_shapes


def flops_per_token(config: Architecture, trainable_blocks: int | None = None, lora_rank: int | None = None,
                    lora_targets: Iterable[str] = (), activation_checkpointing: bool = False) -> int:
    """Return the floating-point operations per token of the matrix products, forward and backward.

    A product with a matrix of N weights takes 2 N operations forward, 2 N for the gradient of its input and 2 N for the
    gradient of the matrix. The two products of attention take 4 C T forward, as if each token attended to the whole
    context, and 8 C T backward. If everything is trained, the sum is 6 N + 12 L C T, where N counts the matrices of the
    blocks and the heads, tied or not (Chowdhery et al., 2022, appendix B). With frozen blocks or LoRA, only trained
    matrices need a gradient, and only operations above the lowest trained weight need the gradient of their input.
    Activation checkpointing repeats the forward pass of each block with a trained weight.
    """
    names, L = linear_shapes(config).keys(), config.n_blocks
    adapted = names & set(lora_targets) if lora_rank is not None else set()
    if lora_rank is None:
        n_trained = L if trainable_blocks is None else trainable_blocks
        reached = True  # by the gradient, as norms are trained
        frozen = (L - n_trained) * block_flops(config, False)
        blocks = frozen + n_trained * block_flops(config, reached, names)
        head_trained = trainable_blocks is None or not config.tied_head
    else:
        n_trained, reached = L if adapted else 0, bool(adapted)
        first = block_flops(config, False, adapted, lora_rank)
        blocks = first + (L - 1) * block_flops(config, reached, adapted, lora_rank)
        # The loss merges an adapter of the head into its weight.
        head_trained = config.n_labels is not None or "head" in lora_targets
    heads = matrix_flops((config.n_outputs, config.n_embd), reached, head_trained)
    if config.auxiliary_lm:
        everything = lora_rank is None and trainable_blocks is None
        heads += matrix_flops((config.vocab_size, config.n_embd), reached, everything)
    recomputed = n_trained * recomputed_flops(config, adapted, lora_rank) if activation_checkpointing else 0
    return blocks + heads + recomputed


def block_flops(config: Architecture, reached: bool, trained: Iterable[str] = (), lora_rank: int | None = None) -> int:
    """Return the operations per token in one block.

    The matrices named in `trained` are trained or, with `lora_rank`, their adapters. `reached`: whether the input of
    the block needs a gradient.
    """
    shapes, flops = linear_shapes(config), 0
    for names in (["qkv"], ["out"], ["up", "gate"], ["down"]):  # up and gate have the same input
        names = [name for name in names if name in shapes]
        flops += sum(matrix_flops(shapes[name], reached, name in trained, lora_rank) for name in names)
        reached = reached or any(name in trained for name in names)
        if names == ["qkv"]:
            flops += (12 if reached else 4) * config.num_heads * config.head_size * config.block_size
    return flops


def matrix_flops(shape: tuple[int, int], reached: bool, trained: bool, lora_rank: int | None = None) -> int:
    """Return the operations per token for a matrix of a `shape` (outputs, inputs).

    With `lora_rank`, `trained` means that its adapter, two matrices of this rank, is trained in its place. `reached`:
    whether its input needs a gradient.
    """
    if trained and lora_rank is not None:
        outputs, inputs = shape
        adapter = matrix_flops((lora_rank, inputs), reached, True) + matrix_flops((outputs, lora_rank), True, True)
        return matrix_flops(shape, reached, False) + adapter
    n_products = 1  # the output, the gradient of the input, the gradient of the matrix
    if reached:
        n_products += 1
    if trained:
        n_products += 1
    return 2 * prod(shape) * n_products


def recomputed_flops(config: Architecture, adapted: Iterable[str], lora_rank: int | None) -> int:
    """Return the operations per token that activation checkpointing repeats in one block, adapters included.

    The forward pass ends with the last tensor that is saved: the dropout mask, or else the input of the last product.
    """
    shapes = linear_shapes(config)
    flops = block_flops(config, False) + sum(2 * lora_rank * sum(shapes[name]) for name in adapted)
    return flops if config.dropout else flops - matrix_flops(shapes["down"], False, False)
