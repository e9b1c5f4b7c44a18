"""The share of each rank in a training step."""

from collections.abc import Callable
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from training.distributed import ALONE, World
from utils.errors import UserError
from utils.quantities import quantity

EMPTY = torch.zeros(1, 1, dtype=torch.long), torch.full((1, 1), -100)  # a micro-batch without targets


def parts_per_micro_batch(batch_size: int, accumulation: int, ranks: int) -> int:
    """Return into how many parts a micro-batch is split, so that each rank gets as many sequences of a step.

    Raises UserError if the `batch_size * accumulation` sequences cannot be divided equally.

    >>> parts_per_micro_batch(batch_size=16, accumulation=1, ranks=4)
    4
    >>> parts_per_micro_batch(batch_size=6, accumulation=2, ranks=4)
    2
    """
    sequences = batch_size * accumulation
    if sequences % ranks:
        possible = [n for n in range(1, min(sequences, 2 * ranks) + 1) if sequences % n == 0]
        nearest = min(possible, key=lambda n: abs(n - ranks))
        raise UserError(f"{ranks} ranks cannot divide the {quantity(sequences, 'sequences')} of a step equally "
                        f"(batch_size {batch_size}, accumulation {accumulation}): start {nearest} instead, or use "
                        f"--training.batch_size {ranks * max(1, round(batch_size / ranks))}")
    return ranks // gcd(accumulation, ranks)


class Share(NamedTuple):
    """The part of a training step that one rank computes."""

    batches: list[tuple[Tensor, Tensor]]
    """Micro-batches (x, y), int64, (B, T) each. All ranks have the same number: they may communicate in each."""
    first: int
    """Number of the first micro-batch within the step."""
    n_targets: int
    """Targets of the whole step."""
    n_tokens: int
    """Tokens of the whole step."""


class Shares:
    """The Share of a rank in each training step, as a function of the step number.

    `batches` is a function from a step number to its micro-batches, equal on all ranks, with an attribute `same_shape`.
    Each micro-batch is split into `parts`, and each rank gets the same number of consecutive parts.
    """

    def __init__(self, batches: Callable[[int], list[tuple[Tensor, Tensor]]], parts: int = 1, world: World = ALONE):
        self.batches, self.parts, self.world = batches, parts, world

    @property
    def same_shape(self) -> bool:
        """Whether all micro-batches of the run have the same shape."""
        return self.batches.same_shape

    def __call__(self, step: int) -> Share:
        batches = self.batches(step)
        n_targets = sum(int((y != -100).sum()) for _, y in batches)
        n_tokens = sum(x.numel() for x, _ in batches)
        parts = [part for batch in batches for part in split(batch, self.parts)]
        count = -(-len(parts) // self.world.size)
        first = self.world.rank * count
        own = parts[first : first + count]
        own += [EMPTY] * (count - len(own))
        return Share(own, first, n_targets, n_tokens)


def split(batch: tuple[Tensor, Tensor], parts: int) -> list[tuple[Tensor, Tensor]]:
    """Split a micro-batch (x, y) into `parts` of about the same number of sequences."""
    pieces = zip(*(ids.tensor_split(parts) for ids in batch), strict=True)
    return [(x, y) if len(x) else EMPTY for x, y in pieces]
