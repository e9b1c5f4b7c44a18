"""Freezing: training only the last blocks of a model."""

from utils.errors import UserError


def freeze_below(model, trainable_blocks):
    """Freeze a GPT except for its last `trainable_blocks` blocks, its final norm, and its head.

    A tied head is the token embedding, which stays frozen. Raises UserError if there are fewer blocks.
    """
    n_blocks = len(model.blocks)
    if not 0 <= trainable_blocks <= n_blocks:
        raise UserError(f"trainable_blocks cannot be {trainable_blocks}: give a number from 0 to {n_blocks}, the "
                        "number of blocks of the model")
    model.requires_grad_(False)
    trainable = [*model.blocks[n_blocks - trainable_blocks :], model.final_norm]
    if not model.config.tied_head:
        trainable.append(model.head)
    for module in trainable:
        module.requires_grad_(True)
