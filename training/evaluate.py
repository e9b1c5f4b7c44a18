"""The only code that evaluates a loss."""

from collections.abc import Collection
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn
from tqdm import tqdm

from training.distributed import ALONE, World
from training.shares import EMPTY


@torch.no_grad()
def estimate_loss(model: nn.Module, batches: Collection[tuple[Tensor, Tensor]], world: World = ALONE) -> float:
    """Return the mean loss, in nats per target, over batches (x, y), int64, (B, T) each. Targets of -100 are ignored.

    Each rank evaluates a part of the batches; the result is the same on all ranks, and does not depend on their number.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    count = -(-len(batches) // world.size)  # the same on all ranks, which may communicate in each batch
    own = islice(chain(islice(batches, world.rank, None, world.size), repeat(EMPTY)), count)
    losses = []  # sum of the losses and number of targets, by batch
    for x, y in tqdm(own, "evaluation", count, leave=False, delay=5):
        n_targets = int((y != -100).sum())
        _, loss = model(x.to(device), y.to(device))
        losses.append((loss.item() * n_targets, n_targets))
    model.train(was_training)
    loss_sum, n_targets = 0.0, 0
    for losses_by_rank in zip(*world.gather(losses), strict=True):  # in the order of the batches
        for loss, n in losses_by_rank:
            loss_sum += loss
            n_targets += n
    return loss_sum / n_targets
