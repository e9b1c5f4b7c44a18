"""The base classes of tasks: their training side, and how a trained model answers."""

import dataclasses
from collections.abc import Callable

from torch import nn

from models.config import ReplyConfig
from tasks.bpe_dropout import BPEDropout
from tokenization.base import Tokenizer


class Answers:
    """A trained model that answers.

    A subclass has `hint`, a line for the user, and `answer(text, config)`, which yields the pieces of an answer.
    """

    continues_text = has_history = False
    streams = True  # pieces of text, rather than a whole answer
    max_tokens = 500  # if a ReplyConfig does not set it

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, entry: dict, tell: Callable[[str], None]):
        """`entry` is the task in the checkpoint; `tell` prints a line to the user."""
        self.model, self.tokenizer, self.entry, self.tell = model, tokenizer, entry, tell

    @classmethod
    def with_max_tokens(cls, config: ReplyConfig) -> ReplyConfig:
        """Return a ReplyConfig with the `max_tokens` of the task, unless it has its own."""
        if config.max_tokens:
            return config
        return dataclasses.replace(config, max_tokens=cls.max_tokens)


class Task:
    """A task: its data as batches, and its metrics besides the loss.

    A subclass sets `data` (DataSettings) and `tokenizer`, and has the methods of `tasks.language.Language`.
    """

    info = {}  # what a checkpoint records about the task, besides its kind
    head = {}  # fields of ModelConfig that the task sets
    train_loss_name = "training loss"  # in plots and printed lines

    def make_dropout(self) -> BPEDropout | None:
        """Return the BPEDropout of the settings, or None."""
        if not self.data.bpe_dropout:
            return None
        return BPEDropout(self.tokenizer, self.data.bpe_dropout)

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return metrics besides the loss, by name."""
        return {}

    @staticmethod
    def is_valid(entry: dict) -> bool:
        """Return whether the task entry of a checkpoint, read from a file, is valid for this task."""
        return entry.keys() == {"kind"}
