"""What all tasks share: the training side, and how a trained model answers."""

from data.bpe_dropout import BPEDropout


class Answers:
    """A trained model that answers; a subclass has `hint`, a line for the user, and `answer(text, config)`."""

    continues_text = has_history = False
    streams = True  # pieces of text, rather than a whole answer

    def __init__(self, model, tokenizer, entry, tell):
        """`entry` is the task in the checkpoint; `tell` prints a line to the user."""
        self.model, self.tokenizer, self.entry, self.tell = model, tokenizer, entry, tell


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
