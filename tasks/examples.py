"""What the tasks share whose data are `Examples`: sequences of their own, rather than windows of one text."""

import hashlib
from functools import cached_property

from data.examples import ExampleBatches
from data.report import DataReport, highlight, print_examples
from data.tokenizer import load_tokenizer, train_tokenizer
from tasks.task import Task
from utils.errors import UserError


class ExampleTask(Task):
    """A task whose data are records, such as dialogues.

    A subclass reads them (`read(path)`), splits them (`split(records)` returns a dictionary of lists, with at least
    `train` and `val`), turns them into `Examples` (`make_examples(records, block_size)`), and has the texts that a
    tokenizer is trained on (`tokenizer_texts()`).
    """

    noun = "records"

    def __init__(self, settings, options, tokenizer, entry=None):
        """Read the data of Settings; `options` are its ReadOptions. `tokenizer` is an object, `char`, `bpe` or what
        `load_tokenizer` takes. `entry` is the task of the checkpoint that the model comes from, if it is the same."""
        self.data, self.options = settings.data, options
        self.report = DataReport(self.data.path, self.noun)
        self.records = self.read(self.data.path)
        if tokenizer in ("char", "bpe"):
            tokenizer = train_tokenizer(self.tokenizer_texts(), tokenizer, self.data.vocab_size, self.data.max_bytes,
                                        self.data.path)
        elif isinstance(tokenizer, str):
            tokenizer = load_tokenizer(tokenizer)
        self.tokenizer = tokenizer.with_special_tokens()

    @cached_property
    def splits(self):
        """Lists of records by split: `train`, `val` and, for some tasks, `test`. Raises UserError."""
        if self.data.val_path is None:
            return self.split(self.records)
        return {"train": self.records, "val": self.read(self.data.val_path)}

    def prepare(self, block_size):
        """Create the examples for this context length, and print a report. Raises UserError if there is none."""
        self.block_size = block_size
        self.train, self.val = (self.make_examples(self.splits[name], block_size) for name in ("train", "val"))
        self.report.print()
        print_examples("training", self.train)
        print_examples("validation", self.val)
        for name, examples in (("training", self.train), ("validation", self.val)):
            if not len(examples):
                raise UserError(f"{self.data.path} has no example for {name}: {self.report.first_skipped()}. Use more "
                                "data, or a larger --model.block_size")
        for i in range(min(self.data.preview, len(self.train))):
            print(f"---- example {i + 1}: {self.train.lengths[i]} tokens ----")
            self.print_example(self.train[i])

    def print_example(self, example):
        print(highlight(example, self.tokenizer))

    def train_batches(self, training):
        """A function from a step to its micro-batches, by TrainingSettings."""
        return ExampleBatches(self.train, training.batch_size, training.accumulation, training.seed, self.augment())

    def augment(self):
        """A function that varies an example of a training batch, as for `ExampleBatches`, or None."""
        dropout = self.make_dropout()
        if not dropout:
            return None
        return lambda example, random: dropout.split_example(example, self.block_size, random)

    def val_batches(self, batch_size):
        return self.val.batches(batch_size)

    def digest(self):
        """A fingerprint of the validation data, by which a resumed run recognizes its data."""
        return hashlib.sha256(self.val.tokens.tobytes() + self.val.targets.tobytes()).hexdigest()
