"""What all tasks share: the training side, and how a trained model answers."""

import dataclasses

from data.bpe_dropout import BPEDropout


class Answers:
    """A trained model that answers; a subclass has `hint`, a line for the user, and `answer(text, config)`."""

    continues_text = has_history = False
    streams = True  # pieces of text, rather than a whole answer
    max_tokens = 500  # for a ReplyConfig without this field

    def __init__(self, model, tokenizer, entry, tell):
        """`entry` is the task in the checkpoint; `tell` prints a line to the user."""
        self.model, self.tokenizer, self.entry, self.tell = model, tokenizer, entry, tell

    @classmethod
    def with_max_tokens(cls, config):
        """A ReplyConfig with the `max_tokens` of the task, unless it has its own."""
        return config if config.max_tokens else dataclasses.replace(config, max_tokens=cls.max_tokens)


class Task:
    """A task: its data, `self.data` (DataSettings) and `self.tokenizer`, as batches, and what is measured besides the
    loss."""

    info = {}  # fields of the checkpoint besides the kind
    head = {}  # fields of ModelConfig

    def make_dropout(self):
        """The BPEDropout of the settings, or None."""
        return BPEDropout(self.tokenizer, self.data.bpe_dropout) if self.data.bpe_dropout else None

    def measure(self, model):
        """Metrics besides the loss."""
        return {}

    @staticmethod
    def is_valid(entry):
        """Whether the entry of a checkpoint, read from a file, is one of this task."""
        return entry.keys() == {"kind"}
