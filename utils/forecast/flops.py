"""The floating-point operations of training, per token."""

from math import prod

from utils.forecast.parameters import linear_shapes


def flops_per_token(config, trainable_blocks=None, lora_rank=None, lora_targets=(), activation_checkpointing=False):
    """Floating-point operations of training per token: the matrix products, forward and backward.

    A product with a matrix of N weights takes 2 N operations forward, 2 N for the gradient of its input and 2 N for
    that of the matrix; the two products of attention take 4 C T forward, as if each token attended to the whole
    context, and 8 C T backward. If everything is trained, the sum is 6 N + 12 L C T, where N counts the matrices of the
    blocks and the heads, tied or not (Chowdhery et al., 2022, appendix B). With frozen blocks or LoRA, only trained
    matrices need their gradient, and only what lies above the lowest trained weight needs that of its input. Activation
    checkpointing repeats the forward pass of each block with a trained weight.
    """
    names, L = linear_shapes(config).keys(), config.n_blocks
    adapted = names & set(lora_targets) if lora_rank is not None else set()
    if lora_rank is None:
        n_trained, reached = L if trainable_blocks is None else trainable_blocks, True  # norms are trained, too
        blocks = (L - n_trained) * block_flops(config, False) + n_trained * block_flops(config, reached, names)
        head_trained = trainable_blocks is None or not config.tied_head
    else:
        n_trained, reached = L if adapted else 0, bool(adapted)
        first = block_flops(config, False, adapted, lora_rank)
        blocks = first + (L - 1) * block_flops(config, reached, adapted, lora_rank)
        # For the loss, an adapter of the head is merged into it.
        head_trained = config.n_labels is not None or "head" in lora_targets
    heads = matrix_flops((config.n_outputs, config.n_embd), reached, head_trained)
    if config.auxiliary_lm:
        everything = lora_rank is None and trainable_blocks is None
        heads += matrix_flops((config.vocab_size, config.n_embd), reached, everything)
    recomputed = n_trained * recomputed_flops(config, adapted, lora_rank) if activation_checkpointing else 0
    return blocks + heads + recomputed


def recomputed_flops(config, adapted, lora_rank):
    """Operations per token of the forward pass that activation checkpointing repeats in one block, with the adapters of
    LoRA. It ends with the last tensor that is saved: the mask of the dropout, or else the input of the last product."""
    shapes = linear_shapes(config)
    flops = block_flops(config, False) + sum(2 * lora_rank * sum(shapes[name]) for name in adapted)
    return flops if config.dropout else flops - matrix_flops(shapes["down"], False, False)


def block_flops(config, reached, trained=(), lora_rank=None):
    """Operations of training per token in one block, of which the matrices `trained` are trained or, with `lora_rank`,
    their adapters. `reached`: whether the input of the block needs a gradient."""
    shapes, flops = linear_shapes(config), 0
    for names in (["qkv"], ["out"], ["up", "gate"], ["down"]):  # up and gate have the same input
        names = [name for name in names if name in shapes]
        flops += sum(matrix_flops(shapes[name], reached, name in trained, lora_rank) for name in names)
        reached = reached or any(name in trained for name in names)
        if names == ["qkv"]:
            flops += (12 if reached else 4) * config.num_heads * config.head_size * config.block_size
    return flops


def matrix_flops(shape, reached, trained, lora_rank=None):
    """Operations of training per token for a matrix of a `shape` (outputs, inputs), or for it and the adapter that is
    trained in its place, two matrices of `lora_rank`. `reached`: whether its input needs a gradient."""
    if trained and lora_rank is not None:
        outputs, inputs = shape
        adapter = matrix_flops((lora_rank, inputs), reached, True) + matrix_flops((outputs, lora_rank), True, True)
        return matrix_flops(shape, reached, False) + adapter
    return 2 * prod(shape) * (1 + reached + trained)
