"""Classification: the model labels texts, such as reviews."""

import numpy as np
import torch

from data.corpora import list_files
from data.examples import Example, padded
from data.reviews import (
    SPLITS,
    as_review,
    combine,
    label_ids,
    labels_of,
    read_reviews,
    review_examples,
    scores,
    split_reviews,
)
from data.tables import TABLES
from tasks.examples import ExampleTask
from tasks.task import Answers
from utils.printable import escape_controls, one_line

BATCH = 32  # examples that are classified at once


class Classifier(Answers):
    """A model that labels texts."""

    hint = "Type a text: the model prints its label, and the probability of each label."
    streams = False

    def answer(self, text, config):
        """Yield the label of a text and the probabilities of all labels, the most likely one first."""
        labels = self.entry["labels"]
        [probabilities] = classify(self.model, self.tokenizer, self.entry, [as_review(labels[0], text, "")])
        order = probabilities.argsort()[::-1]
        yield ", ".join(f"{labels[i]} {probabilities[i]:.1%}" for i in order)


class Classification(ExampleTask):
    """Training on labeled texts."""

    answers = Classifier
    noun = "reviews"

    def __init__(self, settings, options, tokenizer, entry=None):
        self.label_column, self.split_seed = settings.data.label_column, settings.data.split_seed
        self.labels = entry and entry["labels"]
        super().__init__(settings, options, tokenizer)
        self.head = {"n_labels": len(self.labels), "auxiliary_lm": self.data.auxiliary_lm > 0}
        self.info = {"labels": self.labels, "mask_padding": self.data.mask_padding,
                     "both_directions": self.data.both_directions}

    def read(self, path):
        """Read the reviews. Raises UserError."""
        reviews = [review for file in list_files(path, TABLES)
                   for review in read_reviews(file, self.options, self.label_column, self.report)]
        self.labels = self.labels or labels_of(reviews)
        return reviews

    def split(self, reviews):
        splits = dict(zip(SPLITS, split_reviews(reviews, self.split_seed), strict=True))
        sizes = ", ".join(f"{len(part):,} for {name}" for name, part in splits.items())
        print(f"split of the reviews: {sizes} (python estimate.py --split test)")
        return splits

    def tokenizer_texts(self):
        return (review.text for review in self.splits["train"])

    def prepare(self, block_size):
        """As in ExampleTask; prints the labels first."""
        print(one_line(f"labels: {', '.join(self.labels)}"))
        super().prepare(block_size)

    def make_examples(self, reviews, block_size):
        return review_examples(reviews, self.labels, self.tokenizer, block_size, not self.data.mask_padding,
                               self.report)[0]

    def augment(self):
        data, dropout = self.data, self.make_dropout()
        if not dropout and not data.both_directions and not data.auxiliary_lm:
            return None

        def augment(example, random):
            if dropout:
                example = dropout.labeled(example, self.block_size, random)
            if data.both_directions and random.random() < 0.5:
                example = backward(example, self.tokenizer)
            if data.auxiliary_lm:
                example = with_next_tokens(example, data.auxiliary_lm, len(self.labels), random)
            return example

        return augment

    def measure(self, model):
        """The accuracy per review on the validation reviews."""
        reviews = self.splits["val"]
        probabilities = classify(model, self.tokenizer, self.info, reviews)
        return {"accuracy": float(scores(self.labels, label_ids(reviews, self.labels), probabilities).accuracy)}

    def samples(self, model, config):
        return []

    def print_example(self, example):
        label = self.labels[example.targets[-1]]
        print(escape_controls(f"{label}: {self.tokenizer.decode(example.tokens)}"))

    @staticmethod
    def is_valid(entry):
        """Whether the entry of a checkpoint, read from a file, is one of this task."""
        labels = entry.get("labels")
        flags = [entry.get("mask_padding"), entry.get("both_directions")]
        if len(entry) != 4 or not all(isinstance(flag, bool) for flag in flags):
            return False
        return isinstance(labels, list) and len(labels) > 1 and all(isinstance(label, str) for label in labels)


def backward(example, tokenizer):
    """An Example whose text is read from its end; a start token of its own tells the model."""
    return Example([tokenizer.message_start, *example.tokens[:0:-1]], example.targets)


def with_next_tokens(example, share, n_labels, random):
    """An Example with the label as the target at all tokens, rather than only at the last one, but for a random `share`
    of them: there it is n_labels plus the next token, the number of that token for the second head of a model."""
    targets = np.full(len(example.tokens), example.targets[-1])
    chosen = random.random(len(targets) - 1) < share
    targets[:-1][chosen] = n_labels + np.asarray(example.tokens)[1:][chosen]
    return Example(example.tokens, targets)


@torch.no_grad()
def classify(model, tokenizer, entry, reviews):
    """The probabilities of the labels of reviews, (reviews, classes): the mean over the chunks of a long review and, if
    the model reads both ways, over the two directions.

    `entry` is the task in a checkpoint. The model should be in evaluation mode.
    """
    examples, review_of = review_examples(reviews, entry["labels"], tokenizer, model.block_size,
                                          not entry["mask_padding"])
    device = model.device
    probabilities = np.zeros((len(examples), len(entry["labels"])))
    order = examples.lengths.argsort(kind="stable")
    for start in range(0, len(order), BATCH):
        indices = order[start : start + BATCH]
        readings = [[examples[i] for i in indices]]
        if entry["both_directions"]:
            readings.append([backward(example, tokenizer) for example in readings[0]])
        last = torch.from_numpy(examples.lengths[indices] - 1).to(device)
        for reading in readings:
            logits = model(padded(reading, examples.longest)[0].to(device))[0]  # (B, T, classes)
            logits = logits[torch.arange(len(indices), device=device), last]
            probabilities[indices] += logits.softmax(dim=-1).cpu().numpy() / len(readings)
    return combine(probabilities, review_of)
