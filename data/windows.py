"""Batches of context windows (x, y) from an array of token ids: y is x, one token later."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils.errors import UserError
from utils.quantities import quantity

Batch = tuple[Tensor, Tensor]  # x and y, int64, (B, T) each


def check_length(tokens: np.ndarray, length: int, what: str = "the text") -> None:
    """Raise UserError, which calls the tokens `what`, if they are too few for one window of this length."""
    if len(tokens) <= length:
        raise UserError(f"{what} is too short: {quantity(len(tokens), 'tokens')}, and one window needs {length + 1:,}. "
                        "Use more text or a smaller --model.block_size")


def windows_at(tokens: np.ndarray, starts: list[int] | np.ndarray, length: int) -> Batch:
    """Return x and y, int64, (B, T) each, that start at `starts` (B); T is `length`."""
    windows = np.stack([tokens[start : start + length + 1] for start in starts])  # (B, T + 1)
    windows = torch.from_numpy(windows.astype(np.int64))
    return windows[:, :-1], windows[:, 1:]


class RandomWindows:
    """Batches of windows at random positions.

    A batch depends only on the seed and its key, so a resumed run sees the batches of an uninterrupted one. Raises
    UserError if the tokens, an array or a memmap (N), are too few for one window.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int, seed: int):
        check_length(tokens, block_size)
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed

    @property
    def batches_per_epoch(self) -> int:
        """The number of batches with as many tokens as there are."""
        return -(-len(self.tokens) // (self.block_size * self.batch_size))

    def batch(self, *key: int) -> Batch:
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

    def __init__(self, tokens: np.ndarray, max_length: int = 256, stride: int = 128):
        check_length(tokens, max_length)
        if not 1 <= stride <= max_length:
            raise UserError(f"stride must be from 1 to block_size ({max_length}), which uses every token; got {stride}")
        self.tokens, self.max_length, self.stride = tokens, max_length, stride

    def __len__(self) -> int:
        return -(-(len(self.tokens) - self.max_length) // self.stride)

    def __getitem__(self, i: int) -> Batch:
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

    def __init__(self, tokens: np.ndarray, block_size: int, stride: int, *, batch_size: int, accumulation: int,
                 seed: int, random_offset: bool):
        self.tokens, self.block_size, self.stride, self.seed = tokens, block_size, stride, seed
        self.batch_size, self.accumulation, self.random_offset = batch_size, accumulation, random_offset
        largest_offset = stride - 1 if random_offset else 0
        self.n_windows = len(SlidingWindows(tokens[: len(tokens) - largest_offset], block_size, stride))
        if self.n_windows < batch_size:
            raise UserError(f"the text is too short: {quantity(self.n_windows, 'windows')}, and a batch has "
                            f"{batch_size}. Use more text, or a smaller --training.batch_size or --data.stride")
        self.batches_per_epoch = self.n_windows // batch_size
        self.epoch_starts = lru_cache(maxsize=1)(self.epoch_starts)

    def epoch_starts(self, epoch: int) -> np.ndarray:
        """Return the positions (n_windows) where the windows of an epoch start, in order."""
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(self.n_windows)
        offset = random.integers(self.stride) if self.random_offset else 0
        return offset + self.stride * order

    def batch(self, step: int, i: int) -> Batch:
        """Return x and y, int64, (B, T) each, of micro-batch i of a step."""
        epoch, place = divmod(step * self.accumulation + i, self.batches_per_epoch)
        starts = self.epoch_starts(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return windows_at(self.tokens, starts, self.block_size)


def make_windows(tokens: np.ndarray, kind: str, stride: int | None, block_size: int, *, batch_size: int,
                 accumulation: int, seed: int) -> RandomWindows | EpochWindows:
    """Return the windows for training on `tokens` (N), by the settings `windows` and `stride`. Raises UserError."""
    if kind == "random":
        return RandomWindows(tokens, block_size, batch_size, seed)
    if kind == "shuffled":
        stride = block_size
    elif stride is None:
        stride = min(128, block_size)
    return EpochWindows(tokens, block_size, stride, batch_size=batch_size, accumulation=accumulation, seed=seed,
                        random_offset=kind == "shuffled")


class WindowBatches:
    """The micro-batches of each training step from RandomWindows or EpochWindows."""

    same_shape = True

    def __init__(self, windows: RandomWindows | EpochWindows, accumulation: int,
                 augment: Callable[[Tensor, Tensor, np.random.Generator], Batch] | None = None):
        """Draw from `windows`; `augment` is a function (x, y, random) -> x and y, called for each micro-batch."""
        self.windows, self.accumulation, self.augment = windows, accumulation, augment
        self.steps_per_epoch = -(-windows.batches_per_epoch // accumulation)

    def __call__(self, step: int) -> list[Batch]:
        batches = [self.windows.batch(step, i) for i in range(self.accumulation)]
        if self.augment is None:
            return batches
        random = np.random.default_rng((self.windows.seed, 1, step))
        return [self.augment(x, y, random) for x, y in batches]


def reverse_some(x: Tensor, y: Tensor, random: np.random.Generator) -> Batch:
    """Return windows x and y, int64, (B, T) each, with a random half of them read backward."""
    backward = torch.from_numpy(random.random((len(x), 1)) < 0.5)  # (B, 1)
    return torch.where(backward, y.flip(1), x), torch.where(backward, x.flip(1), y)


class ConsecutiveWindows:
    """Batches that cover all tokens once, for evaluation; the windows do not overlap.

    Each token but the first is a target once, predicted from the tokens before it in its window, so the same weights
    always give the same loss.
    """

    def __init__(self, tokens: np.ndarray, block_size: int, batch_size: int):
        self.tokens, self.block_size, self.batch_size = tokens, block_size, batch_size
        self.n_windows, self.n_rest = divmod(len(tokens) - 1, block_size)  # the last window has `n_rest` targets

    def __len__(self) -> int:
        return -(-self.n_windows // self.batch_size) + (self.n_rest > 0)

    def __iter__(self) -> Iterator[Batch]:
        starts = [i * self.block_size for i in range(self.n_windows)]
        for i in range(0, len(starts), self.batch_size):
            yield windows_at(self.tokens, starts[i : i + self.batch_size], self.block_size)
        if self.n_rest:
            yield windows_at(self.tokens, [self.n_windows * self.block_size], self.n_rest)
