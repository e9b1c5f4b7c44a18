"""The base class of tasks whose data are `Examples`: separate sequences, rather than one continuous text."""

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

from torch import Tensor

from reading.options import ReadOptions
from records.examples import Example, ExampleBatches
from records.report import DataReport, highlight, print_examples
from tasks.task import Task
from tokenization.base import Tokenizer
from tokenization.load import load_tokenizer, train_tokenizer
from utils.errors import UserError
from utils.quantities import quantity


class ExampleTask(Task):
    """A task whose data are records, such as dialogues.

    A subclass reads the records (`read(path)`), splits them (`split(records)` returns a dictionary of lists, with at
    least `train` and `val`), turns them into `Examples` (`make_examples(records, block_size)`), and yields the texts
    that a tokenizer is trained on (`tokenizer_texts()`).
    """

    noun = "records"

    def __init__(self, settings: Any, options: ReadOptions, tokenizer: Tokenizer | str, entry: dict | None = None):
        """Read the data of a `training.settings.Settings`.

        `tokenizer` is an object, `char`, `bpe` or what `load_tokenizer` takes. `entry` is the task of the checkpoint
        that the model comes from, if it is the same task.
        """
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
    def splits(self) -> dict[str, list]:
        """Lists of records by split: `train`, `val` and, for some tasks, `test`."""
        if self.data.val_path is None:
            return self.split(self.records)
        return {"train": self.records, "val": self.read(self.data.val_path)}

    def prepare(self, block_size: int) -> None:
        """Create the examples for a context length, and print a report. Raises UserError if a split has none."""
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
            print(f"---- example {i + 1}: {quantity(self.train.lengths[i], 'tokens')} ----")
            self.print_example(self.train[i])

    def print_example(self, example: Example) -> None:
        """Print an example, with the predicted tokens highlighted."""
        print(highlight(example, self.tokenizer))

    def train_batches(self, training: Any) -> ExampleBatches:
        """Return a function from a step number to its micro-batches, by a `training.settings.TrainingSettings`."""
        return ExampleBatches(self.train, training.batch_size, training.accumulation, training.seed, self.augment())

    def augment(self) -> Callable | None:
        """Return a function that augments a training example, as `ExampleBatches` takes it, or None."""
        dropout = self.make_dropout()
        if not dropout:
            return None
        return lambda example, random: dropout.split_example(example, self.block_size, random)

    def val_batches(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Return the batches of the validation examples."""
        return self.val.batches(batch_size)

    def digest(self) -> str:
        """Return a fingerprint of the validation data, by which a resumed run recognizes its data."""
        return hashlib.sha256(self.val.tokens.tobytes() + self.val.targets.tobytes()).hexdigest()
