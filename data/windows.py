"""Token ids to windows (x, y): y is x, one token later."""

import numpy as np
import torch


class RandomWindows:
    """Batches of windows that start anywhere in an array of token ids (memory-mapped or not).

    A batch is a function of the seed and its key alone, whatever was drawn before: so a run that was interrupted sees
    what an unbroken one sees.
    """

    def __init__(self, tokens, block_size, batch_size, seed):
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed

    def batch(self, *key):
        """x and y, int64, (B, T) each, for a key of whole numbers such as (step, micro-batch)."""
        random = np.random.default_rng((self.seed, *key))
        places = random.integers(len(self.tokens) - self.block_size, size=self.batch_size)
        windows = np.stack([self.tokens[place : place + self.block_size + 1] for place in places])  # (B, T + 1)
        windows = torch.from_numpy(windows.astype(np.int64))
        return windows[:, :-1], windows[:, 1:]
