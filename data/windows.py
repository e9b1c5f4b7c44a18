"""Token ids to windows (x, y): y is x, one token later."""

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from utils.errors import UserError


def check_length(tokens, length, what="the text"):
    """Raise UserError, which calls the tokens `what`, if they are too few for a single window of this length."""
    if len(tokens) <= length:
        raise UserError(f"{what} is too short: {len(tokens):,} tokens, and a window takes {length + 1:,}. Give more "
                        "text or a smaller --model.block_size")


class RandomWindows:
    """Batches of windows that start anywhere in an array of token ids (memory-mapped or not).

    A batch is a function of the seed and its key alone, whatever was drawn before: so a run that was interrupted sees
    what an unbroken one sees. Raises UserError if the tokens are too few for one window.
    """

    def __init__(self, tokens, block_size, batch_size, seed):
        check_length(tokens, block_size)
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed

    def batch(self, *key):
        """x and y, int64, (B, T) each, for a key of whole numbers such as (step, micro-batch)."""
        random = np.random.default_rng((self.seed, *key))
        places = random.integers(len(self.tokens) - self.block_size, size=self.batch_size)
        windows = np.stack([self.tokens[place : place + self.block_size + 1] for place in places])  # (B, T + 1)
        windows = torch.from_numpy(windows.astype(np.int64))
        return windows[:, :-1], windows[:, 1:]


class SlidingWindows(Dataset):
    """Windows that start every `stride` tokens, for a DataLoader: each x and y, int64, (max_length).

    For small texts: with a stride below max_length a token is learned in several contexts. The last tokens are left
    out where they don't fill a window (Raschka, "Build a Large Language Model (From Scratch)", 2024, section 2.6).
    Raises UserError if the tokens are too few for one window.
    """

    def __init__(self, tokens, max_length=256, stride=128):
        check_length(tokens, max_length)
        if stride < 1:
            raise UserError(f"stride cannot be {stride}: give a number above zero")
        self.tokens, self.max_length, self.stride = tokens, max_length, stride

    def __len__(self):
        return -(-(len(self.tokens) - self.max_length) // self.stride)

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)  # by which Python knows where a loop ends
        window = self.tokens[i * self.stride : i * self.stride + self.max_length + 1]
        window = torch.from_numpy(np.asarray(window).astype(np.int64))  # (T + 1)
        return window[:-1], window[1:]


class ShuffledWindows:
    """Batches of a SlidingWindows for the training loop: in each epoch every window once, in a new order.

    Windows that don't fill a batch are left out of their epoch. A batch is a function of the seed and its place alone,
    as in RandomWindows. Raises UserError if the windows are too few for one batch.
    """

    def __init__(self, windows, batch_size, accumulation, seed):
        if len(windows) < batch_size:
            raise UserError(f"the text is too short: {len(windows)} windows, and a batch takes {batch_size}. Give more "
                            "text, or a smaller --training.batch_size or --data.stride")
        self.windows, self.batch_size, self.accumulation, self.seed = windows, batch_size, accumulation, seed

    def batch(self, step, i):
        """x and y, int64, (B, T) each, of micro-batch i of a step."""
        epoch, place = divmod(step * self.accumulation + i, len(self.windows) // self.batch_size)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.windows))
        chosen = order[place * self.batch_size : (place + 1) * self.batch_size]
        return default_collate([self.windows[number] for number in chosen.tolist()])
