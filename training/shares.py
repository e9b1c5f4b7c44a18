"""The share of each rank in a training step."""

from math import gcd
from typing import NamedTuple

import torch

from training.distributed import ALONE
from utils.errors import UserError

EMPTY = torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), -100)  # a micro-batch without targets


class Share(NamedTuple):
    """What one rank computes of a training step."""

    batches: list
    """Micro-batches (x, y), int64, (B, T) each: as many on every rank, as ranks may communicate in each."""
    first: int
    """Number of the first of them in the step."""
    n_targets: int
    """Targets of the whole step."""
    n_tokens: int
    """Tokens of the whole step."""


class Shares:
    """The Share of a rank in each training step.

    `batches` is a function from a step to its micro-batches, the same on all ranks, and has the attribute `same_shape`.
    Each micro-batch is cut into `parts`, and each rank gets as many of the parts as any other, in order.
    """

    def __init__(self, batches, parts=1, world=ALONE):
        self.batches, self.parts, self.world = batches, parts, world

    @property
    def same_shape(self):
        return self.batches.same_shape

    def __call__(self, step):
        batches = self.batches(step)
        n_targets = sum(int((y != -100).sum()) for _, y in batches)
        n_tokens = sum(x.numel() for x, _ in batches)
        batches = [part for batch in batches for part in cut(batch, self.parts)]
        count = -(-len(batches) // self.world.size)
        first = self.world.rank * count
        own = batches[first : first + count]
        own += [EMPTY] * (count - len(own))
        return Share(own, first, n_targets, n_tokens)


def cut(batch, parts):
    """Cut a micro-batch (x, y) into a list of `parts` of about the same number of sequences."""
    pieces = zip(*(ids.tensor_split(parts) for ids in batch), strict=True)
    return [(x, y) if len(x) else EMPTY for x, y in pieces]


def divide(batch_size, accumulation, ranks):
    """The number of parts that each micro-batch is cut into, so that ranks share the `batch_size * accumulation`
    sequences of a step equally. Raises UserError if they cannot.

    >>> divide(batch_size=16, accumulation=1, ranks=4), divide(batch_size=6, accumulation=2, ranks=4)
    (4, 2)
    """
    sequences = batch_size * accumulation
    if sequences % ranks:
        possible = [n for n in range(1, min(sequences, 2 * ranks) + 1) if sequences % n == 0]
        nearest = min(possible, key=lambda n: abs(n - ranks))
        raise UserError(f"{ranks} ranks cannot divide the {sequences} sequences of a step equally (batch_size "
                        f"{batch_size}, accumulation {accumulation}): start {nearest} instead, or use "
                        f"--training.batch_size {ranks * max(1, round(batch_size / ranks))}")
    return ranks // gcd(accumulation, ranks)
