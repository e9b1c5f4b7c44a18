"""Classification: the model labels texts, such as reviews."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from models.config import ReplyConfig
from reading.options import ReadOptions
from reading.paths import list_files
from reading.tables import TABLE_SUFFIXES
from records.examples import Example, Examples, pad
from records.reviews import (
    SPLITS,
    Review,
    as_review,
    label_ids,
    labels_of,
    read_reviews,
    review_examples,
    split_reviews,
)
from tasks.example_task import ExampleTask
from tasks.scores import combine, scores
from tasks.task import Answers
from tokenization.base import Tokenizer
from utils.printable import escape_controls, one_line

BATCH_SIZE = 32  # of `classify`, in examples


class Classifier(Answers):
    """A model that labels texts."""

    hint = "Type a text: the model prints its label, and the probability of each label."
    streams = False

    def answer(self, text: str, config: ReplyConfig) -> Iterator[str]:
        """Yield the labels and their probabilities for a text, the most likely first."""
        labels = self.entry["labels"]
        [probabilities] = classify(self.model, self.tokenizer, self.entry, [as_review(labels[0], text, "")])
        order = probabilities.argsort()[::-1]
        yield ", ".join(f"{labels[i]} {probabilities[i]:.1%}" for i in order)


class Classification(ExampleTask):
    """Training on labeled texts."""

    answers = Classifier
    noun = "reviews"

    def __init__(self, settings: Any, options: ReadOptions, tokenizer: Tokenizer | str, entry: dict | None = None):
        self.label_column, self.split_seed = settings.data.label_column, settings.data.split_seed
        self.labels = entry["labels"] if entry else None
        super().__init__(settings, options, tokenizer)
        self.head = {"n_labels": len(self.labels), "auxiliary_lm": self.data.auxiliary_lm > 0}
        if self.data.auxiliary_lm:
            self.train_loss_name = "training loss, with language model"  # not comparable with the validation loss
        self.info = {"labels": self.labels, "mask_padding": self.data.mask_padding,
                     "both_directions": self.data.both_directions}

    def read(self, path: str | list[str]) -> list[Review]:
        """Return the reviews in files. Raises UserError if they cannot be read."""
        reviews = []
        for file in list_files(path, TABLE_SUFFIXES):
            reviews += read_reviews(file, self.options, self.label_column, self.report)
        self.labels = self.labels or labels_of(reviews)
        return reviews

    def split(self, reviews: list[Review]) -> dict[str, list[Review]]:
        """Split reviews into `train`, `val` and `test`."""
        splits = dict(zip(SPLITS, split_reviews(reviews, self.split_seed), strict=True))
        sizes = ", ".join(f"{len(part):,} for {name}" for name, part in splits.items())
        print(f"split of the reviews: {sizes} (python estimate.py --split test)")
        return splits

    def tokenizer_texts(self) -> Iterator[str]:
        """Return the texts that a tokenizer is trained on: the training reviews."""
        return (review.text for review in self.splits["train"])

    def prepare(self, block_size: int) -> None:
        """Print the labels, then prepare the examples."""
        print(one_line(f"labels: {', '.join(self.labels)}"))
        super().prepare(block_size)

    def make_examples(self, reviews: list[Review], block_size: int) -> Examples:
        """Return the Examples of reviews."""
        examples, _ = review_examples(reviews, self.labels, self.tokenizer, block_size, not self.data.mask_padding,
                                      self.report)
        return examples

    def augment(self) -> Callable | None:
        """Return a function that augments a training example, as `ExampleBatches` takes it, or None."""
        data, dropout = self.data, self.make_dropout()
        if not dropout and not data.both_directions and not data.auxiliary_lm:
            return None

        def augment_example(example: Example, random: np.random.Generator) -> Example:
            if dropout:
                example = dropout.split_labeled(example, self.block_size, random)
            if data.both_directions and random.random() < 0.5:
                example = read_backward(example, self.tokenizer)
            if data.auxiliary_lm:
                example = add_next_token_targets(example, data.auxiliary_lm, len(self.labels), random)
            return example

        return augment_example

    def measure(self, model: nn.Module) -> dict[str, float]:
        """Return the accuracy on the validation reviews."""
        reviews = self.splits["val"]
        probabilities = classify(model, self.tokenizer, self.info, reviews)
        return {"accuracy": float(scores(self.labels, label_ids(reviews, self.labels), probabilities).accuracy)}

    def samples(self, model: nn.Module, config: ReplyConfig) -> list[str]:
        """Return no lines: a classifier generates no text."""
        return []

    def print_example(self, example: Example) -> None:
        """Print the label and the tokens of an example."""
        label = self.labels[example.targets[-1]]
        print(escape_controls(f"{label}: {self.tokenizer.decode(example.tokens)}"))

    @staticmethod
    def is_valid(entry: dict) -> bool:
        """Return whether the task entry of a checkpoint, read from a file, is valid for this task."""
        labels = entry.get("labels")
        flags = [entry.get("mask_padding"), entry.get("both_directions")]
        if len(entry) != 4 or not all(isinstance(flag, bool) for flag in flags):
            return False
        return isinstance(labels, list) and len(labels) > 1 and all(isinstance(label, str) for label in labels)


def read_backward(example: Example, tokenizer: Tokenizer) -> Example:
    """Return an Example whose text is read from its end, which its start token tells the model."""
    return Example([tokenizer.message_start, *example.tokens[:0:-1]], example.targets)


def add_next_token_targets(example: Example, share: float, n_labels: int, random: np.random.Generator) -> Example:
    """Return an Example with a target at every token: the label or, at a random `share` of them, the next token.

    A next token is n_labels plus its id, as a model with a second head numbers it.
    """
    targets = np.full(len(example.tokens), example.targets[-1])
    chosen = random.random(len(targets) - 1) < share
    targets[:-1][chosen] = n_labels + np.asarray(example.tokens)[1:][chosen]
    return Example(example.tokens, targets)


@torch.no_grad()
def classify(model: nn.Module, tokenizer: Tokenizer, entry: dict, reviews: list[Review]) -> np.ndarray:
    """Return the probabilities of the labels of reviews, (reviews, classes).

    They are means over the chunks of a long review and, if the model reads both directions, over these. `entry` is the
    task in a checkpoint. The model should be in evaluation mode.
    """
    examples, review_of = review_examples(reviews, entry["labels"], tokenizer, model.block_size,
                                          not entry["mask_padding"])
    device = model.device
    probabilities = np.zeros((len(examples), len(entry["labels"])))
    order = examples.lengths.argsort(kind="stable")
    for start in range(0, len(order), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        readings = [[examples[i] for i in indices]]
        if entry["both_directions"]:
            readings.append([read_backward(example, tokenizer) for example in readings[0]])
        last = torch.from_numpy(examples.lengths[indices] - 1).to(device)
        for reading in readings:
            x, _ = pad(reading, examples.longest)
            logits, _ = model(x.to(device))  # (B, T, classes)
            logits = logits[torch.arange(len(indices), device=device), last]  # (B, classes)
            probabilities[indices] += logits.softmax(dim=-1).cpu().numpy() / len(readings)
    return combine(probabilities, review_of)
