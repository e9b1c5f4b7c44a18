"""Examples: sequences of their own with targets, such as a dialogue, and batches of them, padded to the longest."""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from utils.errors import UserError

IGNORED = -100  # a target that is not predicted
POOL = 32  # training steps whose examples are sorted by length together


class Example(NamedTuple):
    """One sequence: T token ids, and the target at each of these positions, IGNORED where there is none."""

    tokens: list
    targets: list


def next_token_example(parts, block_size):
    """The Example of a sequence that consists of `parts` (token ids, whether they are supervised), for a language model
    that predicts the next token; what exceeds the context length is cut off.

    Each part was tokenized on its own, so that no token spans the boundary of two.

    >>> next_token_example([([1, 2], False), ([3, 4], True)], block_size=8)
    Example(tokens=[1, 2, 3], targets=[-100, 3, 4])
    """
    ids = [i for part, _ in parts for i in part]
    targets = [i if supervised else IGNORED for part, supervised in parts for i in part]
    return Example(ids[:-1][:block_size], targets[1:][:block_size])


def encode_known(text, tokenizer):
    """The token ids of a text without the characters that the vocabulary lacks."""
    return tokenizer.encode(text.translate(dict.fromkeys(map(ord, tokenizer.unknown(text)))))


class Examples:
    """A list of `Example`, kept in two arrays."""

    def __init__(self, examples):
        self.lengths = np.array([len(example.tokens) for example in examples], np.int64)  # (N)
        self.ends = self.lengths.cumsum()
        self.tokens, self.targets = np.empty((2, self.lengths.sum()), np.int32)
        for (tokens, targets), end in zip(examples, self.ends, strict=True):
            self.tokens[end - len(tokens) : end] = tokens
            self.targets[end - len(tokens) : end] = targets

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, i):
        """Example i, as two arrays (T)."""
        end = self.ends[i]
        part = slice(end - self.lengths[i], end)
        return Example(self.tokens[part], self.targets[part])

    @property
    def n_supervised(self):
        """Number of targets."""
        return int((self.targets != IGNORED).sum())

    def batch(self, indices):
        """Return x and y, int64, (B, T) each, of the examples at `indices` (B), padded on the right.

        Attention is causal, so no prediction depends on the padding; its targets are IGNORED.
        """
        shape = len(indices), self.lengths[indices].max()
        x, y = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        for row, i in enumerate(indices):
            example = self[i]
            x[row, : self.lengths[i]], y[row, : self.lengths[i]] = example.tokens, example.targets
        return torch.from_numpy(x), torch.from_numpy(y)

    def batches(self, batch_size):
        """A list of batches that contain each example once, sorted by length, for evaluation."""
        order = self.lengths.argsort(kind="stable")
        return [self.batch(order[i : i + batch_size]) for i in range(0, len(order), batch_size)]


class ExampleBatches:
    """The batches of each training step: every example once per epoch, in a new random order.

    Examples of similar length share a step, so that little of a batch is padding. The examples that are left at the end
    of an epoch are a smaller step. A step depends only on the seed and its number, so a resumed run sees the batches of
    an uninterrupted one. Raises UserError if there are no examples.
    """

    same_shape = False

    def __init__(self, examples, batch_size, accumulation, seed):
        if not len(examples):
            raise UserError("there is no example to train on: use other data, or a larger --model.block_size")
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.step_size = batch_size * accumulation
        self.steps_per_epoch = -(-len(examples) // self.step_size)
        self.steps_of_epoch = lru_cache(maxsize=1)(self.steps_of_epoch)

    def steps_of_epoch(self, epoch):
        """The examples of each step of an epoch: a list of arrays of indices."""
        random = np.random.default_rng((self.seed, epoch))
        order, pool_size, steps = random.permutation(len(self.examples)), POOL * self.step_size, []
        for start in range(0, len(order), pool_size):
            pool = order[start : start + pool_size]
            pool = pool[self.examples.lengths[pool].argsort(kind="stable")]
            steps += [pool[i : i + self.step_size] for i in range(0, len(pool), self.step_size)]
        return [steps[i] for i in random.permutation(len(steps))]

    def __call__(self, step):
        """Return the micro-batches (x, y), int64, (B, T) each, of a step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        indices = self.steps_of_epoch(epoch)[place]
        return [self.examples.batch(indices[i : i + self.batch_size]) for i in range(0, len(indices), self.batch_size)]
