"""Batches of context windows (x, y) from an array of token ids: y is x, one token later."""

from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import Dataset

from utils.errors import UserError


def check_length(tokens, length, what="the text"):
    """Raise UserError, which calls the tokens `what`, if they are too few for one window of this length."""
    if len(tokens) <= length:
        raise UserError(f"{what} is too short: {len(tokens):,} token(s), and one window needs {length + 1:,}. Use more "
                        "text or a smaller --model.block_size")


def windows_at(tokens, starts, length):
    """Return x and y, int64, (B, T) each, that start at `starts` (B); T is `length`."""
    windows = np.stack([tokens[start : start + length + 1] for start in starts])  # (B, T + 1)
    windows = torch.from_numpy(windows.astype(np.int64))
    return windows[:, :-1], windows[:, 1:]


class RandomWindows:
    """Batches of windows at random positions.

    A batch depends only on the seed and its key, so a resumed run sees the batches of an uninterrupted one. Raises
    UserError if the tokens, an array or a memmap (N), are too few for one window.
    """

    def __init__(self, tokens, block_size, batch_size, seed):
        check_length(tokens, block_size)
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed

    @property
    def batches_per_epoch(self):
        """Batches with as many tokens as there are."""
        return -(-len(self.tokens) // (self.block_size * self.batch_size))

    def batch(self, *key):
        """Return x and y, int64, (B, T) each, for a key of integers such as (step, micro-batch)."""
        random = np.random.default_rng((self.seed, *key))
        starts = random.integers(len(self.tokens) - self.block_size, size=self.batch_size)
        return windows_at(self.tokens, starts, self.block_size)


class SlidingWindows(Dataset):
    """Windows that start every `stride` tokens, for a DataLoader: each is x and y, int64, (max_length).

    With a stride below max_length, a token is predicted in several contexts, which helps on small texts. The last
    tokens are left out if they do not fill a window (Raschka, "Build a Large Language Model (From Scratch)", 2024,
    section 2.6). Raises UserError if the tokens are too few for one window, or if the stride would skip tokens.
    """

    def __init__(self, tokens, max_length=256, stride=128):
        check_length(tokens, max_length)
        if not 1 <= stride <= max_length:
            raise UserError(f"stride must be from 1 to block_size ({max_length}), which uses every token; got {stride}")
        self.tokens, self.max_length, self.stride = tokens, max_length, stride

    def __len__(self):
        return -(-(len(self.tokens) - self.max_length) // self.stride)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)  # ends a for loop over the dataset
        x, y = windows_at(self.tokens, [i * self.stride], self.max_length)
        return x[0], y[0]


class EpochWindows:
    """Batches that cover the text once per epoch: every window at a multiple of `stride`, in a new random order.

    With `random_offset`, all windows of an epoch are shifted by the same random number of tokens below the stride, so
    that epochs differ in where windows begin. Windows that do not fill the last batch of an epoch are left out. A batch
    depends only on the seed and its position in the run. Raises UserError if the tokens are too few for one batch.
    """

    def __init__(self, tokens, block_size, stride, batch_size, accumulation, seed, random_offset):
        self.tokens, self.block_size, self.stride, self.seed = tokens, block_size, stride, seed
        self.batch_size, self.accumulation, self.random_offset = batch_size, accumulation, random_offset
        shift = stride - 1 if random_offset else 0
        self.n_windows = len(SlidingWindows(tokens[: len(tokens) - shift], block_size, stride))
        if self.n_windows < batch_size:
            raise UserError(f"the text is too short: {self.n_windows} windows, and a batch has {batch_size}. Use more "
                            "text, or a smaller --training.batch_size or --data.stride")
        self.batches_per_epoch = self.n_windows // batch_size
        self.epoch_starts = lru_cache(maxsize=1)(self.epoch_starts)

    def epoch_starts(self, epoch):
        """Return the positions (n_windows) where the windows of an epoch start, in order."""
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(self.n_windows)
        offset = random.integers(self.stride) if self.random_offset else 0
        return offset + self.stride * order

    def batch(self, step, i):
        """Return x and y, int64, (B, T) each, of micro-batch i of a step."""
        epoch, place = divmod(step * self.accumulation + i, self.batches_per_epoch)
        starts = self.epoch_starts(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return windows_at(self.tokens, starts, self.block_size)


class WindowBatches:
    """The micro-batches of each training step from RandomWindows or EpochWindows."""

    same_shape = True

    def __init__(self, windows, accumulation, augment=None):
        """`augment` is a function (x, y, random) -> x and y, called for each micro-batch."""
        self.windows, self.accumulation, self.augment = windows, accumulation, augment
        self.steps_per_epoch = -(-windows.batches_per_epoch // accumulation)

    def __call__(self, step):
        batches = [self.windows.batch(step, i) for i in range(self.accumulation)]
        if self.augment is None:
            return batches
        random = np.random.default_rng((self.windows.seed, 1, step))
        return [self.augment(x, y, random) for x, y in batches]


def reverse_some(x, y, random):
    """Windows x and y, int64, (B, T) each, of which a random half is read backward."""
    backward = torch.from_numpy(random.random((len(x), 1)) < 0.5)  # (B, 1)
    return torch.where(backward, y.flip(1), x), torch.where(backward, x.flip(1), y)


class ConsecutiveWindows:
    """Batches that cover all tokens once, for evaluation: each token but the first is a target once, predicted from the
    tokens before it in its window. The windows do not overlap, so the same weights always give the same loss."""

    def __init__(self, tokens, block_size, batch_size):
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.n_windows = (len(tokens) - 1) // block_size
        self.rest = (len(tokens) - 1) % block_size  # targets in the last window, which is shorter

    def __len__(self):
        return -(-self.n_windows // self.batch_size) + (self.rest > 0)

    def __iter__(self):
        starts = [i * self.block_size for i in range(self.n_windows)]
        for i in range(0, len(starts), self.batch_size):
            yield windows_at(self.tokens, starts[i : i + self.batch_size], self.block_size)
        if self.rest:
            yield windows_at(self.tokens, [self.n_windows * self.block_size], self.rest)


def make_windows(tokens, data, block_size, batch_size, accumulation, seed):
    """The windows that DataSettings `data` describe, for training on `tokens` (N). Raises UserError."""
    if data.windows == "random":
        return RandomWindows(tokens, block_size, batch_size, seed)
    stride = block_size if data.windows == "shuffled" else data.stride or min(128, block_size)
    return EpochWindows(tokens, block_size, stride, batch_size, accumulation, seed, data.windows == "shuffled")
