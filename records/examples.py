"""Training examples: separate sequences with targets, such as a dialogue, and batches padded to the longest of them."""

from array import array
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError

IGNORED = -100  # a target that is not predicted
MULTIPLE = 8  # of the length of batches: a CPU keeps kernels for each shape of a product in half precision
POOL = 32  # training steps whose examples are sorted by length together


class Example(NamedTuple):
    """One sequence: T token ids, and the target at each of these positions, IGNORED where there is none."""

    tokens: list[int] | np.ndarray
    targets: list[int] | np.ndarray


Parts = list[tuple[list[int], bool]]  # of a sequence: token ids, and whether they are supervised


def next_token_example(parts: Parts, block_size: int) -> Example:
    """Return the Example of a sequence for a language model, cut off at the context length.

    Each part was tokenized on its own, so that no token spans the boundary of two.

    >>> next_token_example([([1, 2], False), ([3, 4], True)], block_size=8)
    Example(tokens=[1, 2, 3], targets=[-100, 3, 4])
    """
    ids = [i for part, _ in parts for i in part]
    targets = [i if supervised else IGNORED for part, supervised in parts for i in part]
    return Example(ids[:-1][:block_size], targets[1:][:block_size])


class Examples:
    """N examples, from an iterable of `Example`, kept in compact arrays."""

    def __init__(self, examples: Iterable[Example]):
        tokens, targets, lengths = array("i"), array("i"), array("q")
        for example in examples:
            tokens.extend(example.tokens)
            targets.extend(example.targets)
            lengths.append(len(example.tokens))
        self.tokens, self.targets = np.asarray(tokens, np.int32), np.asarray(targets, np.int32)  # (tokens in total)
        self.lengths = np.asarray(lengths, np.int64)  # (N)
        self.ends = self.lengths.cumsum()
        self.longest = max(lengths, default=0)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, i: int) -> Example:
        """Return example i, as two arrays (T)."""
        end = self.ends[i]
        part = slice(end - self.lengths[i], end)
        return Example(self.tokens[part], self.targets[part])

    @property
    def n_supervised(self) -> int:
        """The number of targets."""
        return int((self.targets != IGNORED).sum())

    def batch(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Return the examples at `indices` as x and y of `pad`."""
        return pad([self[i] for i in indices], self.longest)

    def batches(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches that contain each example once, sorted by length, for evaluation."""
        order = self.lengths.argsort(kind="stable")
        return [self.batch(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]


def pad(examples: list[Example], longest: int) -> tuple[Tensor, Tensor]:
    """Return x and y, int64, (B, T) each, padded on the right, where the targets are IGNORED.

    T is a multiple of MULTIPLE, unless that exceeds `longest`, the length of the longest example of all. Attention is
    causal, so no prediction depends on the padding.
    """
    needed = max(len(example.tokens) for example in examples)
    rounded = -(-needed // MULTIPLE) * MULTIPLE
    shape = len(examples), max(needed, min(rounded, longest))
    x, y = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    for row, (tokens, targets) in enumerate(examples):
        x[row, : len(tokens)], y[row, : len(tokens)] = tokens, targets
    return torch.from_numpy(x), torch.from_numpy(y)


class ExampleBatches:
    """The batches of each training step: every example once per epoch, in a new random order.

    Examples of similar length share a step, so that little of a batch is padding. The examples that are left at the end
    of an epoch are a smaller step. A step depends only on the seed and its number, so a resumed run sees the batches of
    an uninterrupted one. Raises UserError if there are no examples.
    """

    same_shape = False

    def __init__(self, examples: Examples, batch_size: int, accumulation: int, seed: int,
                 augment: Callable[[Example, np.random.Generator], Example] | None = None):
        """Draw from `examples`; `augment` is called for each example of each batch."""
        if not len(examples):
            raise UserError("there is no example to train on: use other data, or a larger --model.block_size")
        self.examples, self.batch_size, self.seed, self.augment = examples, batch_size, seed, augment
        self.step_size = batch_size * accumulation
        self.steps_per_epoch = -(-len(examples) // self.step_size)
        self.steps_of_epoch = lru_cache(maxsize=1)(self.steps_of_epoch)

    def steps_of_epoch(self, epoch: int) -> list[np.ndarray]:
        """Return the indices of the examples of each step of an epoch."""
        random = np.random.default_rng((self.seed, epoch))
        order, pool_size, steps = random.permutation(len(self.examples)), POOL * self.step_size, []
        for start in range(0, len(order), pool_size):
            pool = order[start : start + pool_size]
            pool = pool[self.examples.lengths[pool].argsort(kind="stable")]
            steps += [pool[i : i + self.step_size] for i in range(0, len(pool), self.step_size)]
        return [steps[i] for i in random.permutation(len(steps))]

    def __call__(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """Return the micro-batches (x, y), int64, (B, T) each, of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        indices = self.steps_of_epoch(epoch)[place]
        examples = [self.examples[i] for i in indices]
        if self.augment:
            random = np.random.default_rng((self.seed, 1, step))
            examples = [self.augment(example, random) for example in examples]
        return [pad(examples[i : i + self.batch_size], self.examples.longest)
                for i in range(0, len(examples), self.batch_size)]
