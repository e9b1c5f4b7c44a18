"""What an importer returns."""

from collections.abc import Iterator
from typing import NamedTuple

from models.config import ModelConfig


class Foreign(NamedTuple):
    """A model in the files of another project, valid except for the values of its weights."""

    model_class: str
    """A name in models.zoo.ZOO."""
    config: ModelConfig
    tokenizer: object
    weights: Iterator
    """Yields (name in a checkpoint file, tensor) for every weight of models.weights.file_weights, reading one after the
    other. Raises UserError for values that are not finite."""
    chat_template: str | None = None
    """A Jinja template for dialogues."""
    sampling: dict = {}
    """The fields of ReplyConfig that are recorded with the model."""
