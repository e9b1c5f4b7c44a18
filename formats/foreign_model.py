"""What an importer returns, and what several of them need."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from data.chat_template import ChatTemplate
from models.config import ModelConfig
from utils.errors import UserError


class Foreign(NamedTuple):
    """A model in the files of another project, valid except for the values of its weights."""

    model_class: str
    """A name in models.zoo.ZOO."""
    config: ModelConfig
    tokenizer: object
    weights: Iterator
    """Yields (name in a checkpoint file, tensor) for every weight of models.weights.file_weights, reading one after the
    other. Raises UserError for values that are not finite."""
    template: ChatTemplate | None = None
    """Of a chat model."""
    stop_tokens: frozenset = frozenset()
    """The ids of the tokens that end what the model generates, as far as the files name them."""
    sampling: dict = {}
    """The fields of ReplyConfig that are recorded with the model."""


def check_tokenizer(tokenizer, config, where):
    """Raise UserError if the tokenizer in `where` has more tokens than the model."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{where} has a tokenizer of {tokenizer.vocab_size:,} tokens, but a model of "
                        f"{config.vocab_size:,}: use the tokenizer that the model was trained with")


def read_tensor(path, offset, shape, dtype=torch.float32):
    """The tensor whose bytes start at `offset` of a file, which is known to have that many."""
    content = np.fromfile(path, np.uint8, prod(shape) * dtype.itemsize, offset=offset)
    return torch.from_numpy(content).view(dtype).view(shape)
