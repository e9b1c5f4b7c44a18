"""Freezing: training only the last blocks of a model."""

from models.gpt import GPT
from utils.errors import UserError


def freeze_below(model: GPT, trainable_blocks: int) -> None:
    """Freeze a GPT except for its last `trainable_blocks` blocks, its final norm, and its head.

    A tied head is frozen, as it is the token embedding. Raises UserError if there are fewer blocks.
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
