"""BPE dropout: a text is tokenized in another way each time that a model trains on it (Provilkov et al., 2020).

The model then also sees the parts of words, and overfits a small text less. Here, the tokens of a prepared text are
split again, depending on a seed: with a fixed probability, each token becomes the two that it was merged from, which
are split in the same way. A character is never split into bytes.
"""

import numpy as np
import torch
from torch import Tensor

from records.examples import IGNORED, Example
from tokenization.base import Tokenizer
from utils.errors import UserError


class BPEDropout:
    """Splits tokens of a BPE tokenizer with a given probability. Raises UserError for another tokenizer."""

    def __init__(self, tokenizer: Tokenizer, probability: float):
        if not hasattr(tokenizer, "merged_from"):
            raise UserError("bpe_dropout is for BPE tokenizers: use --data.tokenizer bpe, or leave it out")
        self.probability = probability
        self.parts = np.full((tokenizer.vocab_size, 2), -1)  # of each token, -1: it is never split
        for token, parts in tokenizer.merged_from().items():
            if all(is_text(tokenizer.tokens[part]) for part in parts):
                self.parts[token] = parts

    def split(self, ids: list[int] | np.ndarray, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Split token ids (N) at random; return the new ids (M) and, for each, the index of the one it is from (M)."""
        ids = np.asarray(ids, np.int64)
        origin, fresh = np.arange(len(ids)), np.ones(len(ids), bool)
        while True:
            chosen = fresh & (self.parts[ids, 0] >= 0) & (random.random(len(ids)) < self.probability)
            if not chosen.any():
                return ids, origin
            place = np.repeat(np.arange(len(ids)), 1 + chosen)  # of each new token in the old ids
            fresh = chosen[place]
            second = np.append(False, place[1:] == place[:-1])
            ids = np.where(fresh, self.parts[ids[place], second.astype(int)], ids[place])
            origin = origin[place]

    def split_example(self, example: Example, block_size: int, random: np.random.Generator) -> Example:
        """Split the tokens of an Example whose targets are the next tokens; what exceeds the context is cut off.

        If no target is left, the example stays as it is.
        """
        ids, targets = [*example.tokens, example.targets[-1]], np.asarray(example.targets)
        supervised = np.append(False, targets != IGNORED)
        if not supervised[-1]:  # then the last token is unknown, and not needed
            ids, supervised = ids[:-1], supervised[:-1]
        ids, origin = self.split(ids, random)
        targets = np.where(supervised[origin], ids, IGNORED)[1:][:block_size]
        if (targets == IGNORED).all():
            return example
        return Example(ids[:-1][:block_size], targets)

    def split_labeled(self, example: Example, block_size: int, random: np.random.Generator) -> Example:
        """Split the tokens of an Example whose target is a label at its last token."""
        ids, _ = self.split(example.tokens, random)
        ids = ids[:block_size]
        return Example(ids, [IGNORED] * (len(ids) - 1) + [example.targets[-1]])

    def split_windows(self, x: Tensor, y: Tensor, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Split the tokens of windows x and y, int64, (B, T) each; what then exceeds T is cut off."""
        ids = torch.cat((x, y[:, -1:]), dim=1).numpy()  # (B, T + 1)
        ids = np.stack([self.split(row, random)[0][: len(row)] for row in ids])
        ids = torch.from_numpy(ids)
        return ids[:, :-1], ids[:, 1:]


def is_text(content: bytes) -> bool:
    """Return whether bytes are whole characters."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True
