"""A model of another project, as its importer returns it, and what several importers need."""

from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.config import ModelConfig
from models.weights import is_finite
from tokenization.base import Tokenizer
from tokenization.chat_template import ChatTemplate
from utils.errors import UserError


class ForeignModel(NamedTuple):
    """A model in the files of another project, valid except for the values of its weights."""

    model_class: str
    """A name in models.zoo.ZOO."""
    config: ModelConfig
    tokenizer: Tokenizer
    weights: Iterator[tuple[str, Tensor]]
    """Yields (name in a checkpoint file, tensor) for every weight of models.weights.file_weights, reading one at a
    time. Raises UserError for values that are not finite."""
    template: ChatTemplate | None = None
    """The template of a chat model."""
    stop_tokens: frozenset[int] = frozenset()
    """The ids of the tokens that end the output, if the files name any."""
    sampling: dict[str, Any] = {}
    """The fields of ReplyConfig that are recorded with the model."""


def check_exists(path: Path) -> None:
    """Raise UserError unless there is a file `path`, which is one of several of a model."""
    if not path.is_file():
        raise UserError(f"there is no file {path}: download it, too")


def check_tokenizer(tokenizer: Tokenizer, config: ModelConfig, where: Path) -> None:
    """Raise UserError if the tokenizer in `where` has more tokens than the model."""
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(f"{where} has a tokenizer of {tokenizer.vocab_size:,} tokens, but a model of "
                        f"{config.vocab_size:,}: use the tokenizer that the model was trained with")


def check_finite(weight: Tensor, name: str, where: Path) -> None:
    """Raise UserError if a weight in `where` has infinite or NaN values."""
    if not is_finite(weight):
        raise UserError(f"{where}: the weight {name} has values that are not finite: use another model")


def read_tensor(path: Path, offset: int, shape: tuple[int, ...]) -> Tensor:
    """Read the float32 tensor at `offset`, in bytes, of a file that is known to be long enough."""
    content = np.fromfile(path, np.uint8, prod(shape) * torch.float32.itemsize, offset=offset)
    return torch.from_numpy(content).view(torch.float32).view(shape)
