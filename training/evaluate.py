"""The only code that evaluates a loss."""

from itertools import chain, islice, repeat

import torch
from tqdm import tqdm

from training.distributed import ALONE
from training.shares import EMPTY


@torch.no_grad()
def estimate_loss(model, batches, world=ALONE):
    """Mean loss, in nats per target, over a list of batches (x, y), int64, (B, T) each. Targets of -100 are ignored.

    Each rank evaluates a part of the batches; the result is the same on all ranks, and does not depend on their number.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    count = -(-len(batches) // world.size)  # the same on all ranks, which may communicate in each batch
    own = islice(chain(islice(batches, world.rank, None, world.size), repeat(EMPTY)), count)
    losses = []  # sum of the losses and number of targets, by batch
    for x, y in tqdm(own, "evaluation", count, leave=False, delay=5):
        n = int((y != -100).sum())
        losses.append((model(x.to(device), y.to(device))[1].item() * n, n))
    model.train(was_training)
    total, n_targets = 0.0, 0
    for of_ranks in zip(*world.gather(losses), strict=True):  # in the order of the batches
        for loss, n in of_ranks:
            total += loss
            n_targets += n
    return total / n_targets
