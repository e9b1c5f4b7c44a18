"""Scores of a classifier, per review: accuracy, precision, recall, F1 and the confusion matrix."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from records.reviews import Review, label_ids, write_csv
from utils.printable import one_line


def combine(probabilities: np.ndarray, review_of: np.ndarray) -> np.ndarray:
    """Return the mean of the probabilities of each review's chunks, (reviews, classes), from (chunks, classes).

    >>> combine(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 0])).round(2).tolist()
    [[0.65, 0.35]]
    """
    n_chunks = np.bincount(review_of)
    total = np.zeros((len(n_chunks), probabilities.shape[1]))
    np.add.at(total, review_of, probabilities)
    return total / n_chunks[:, None]


class Scores(NamedTuple):
    """Results per review. An undefined precision, recall or F1 (0 / 0) is 0."""

    labels: list[str]
    accuracy: float
    majority_accuracy: float
    """Accuracy of always predicting the most frequent label."""
    precision: np.ndarray  # (classes), as recall and f1
    recall: np.ndarray
    f1: np.ndarray
    macro_f1: float
    """Mean of the labels' F1."""
    confusion: np.ndarray
    """Number of reviews by true (row) and predicted label (column), (classes, classes)."""


def scores(labels: list[str], true_ids: np.ndarray, probabilities: np.ndarray) -> Scores:
    """Return the Scores of predictions (reviews, classes), where the true labels are `labels[true_ids]`."""
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (true_ids, probabilities.argmax(1)), 1)
    correct, true, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    f1 = 2 * correct / np.maximum(true + predicted, 1)
    return Scores(labels, correct.sum() / len(true_ids), true.max() / len(true_ids), correct / np.maximum(predicted, 1),
                  correct / np.maximum(true, 1), f1, f1.mean(), confusion)


def format_scores(result: Scores) -> str:
    """Return Scores as a table of lines."""
    names = [one_line(label, 40) for label in result.labels]
    width = max(len(name) for name in [*names, "label"])
    lines = [f"{'label':{width}}  reviews  precision  recall     F1"]
    columns = result.confusion.sum(1), result.precision, result.recall, result.f1
    for name, n, precision, recall, f1 in zip(names, *columns, strict=True):
        lines.append(f"{name:{width}} {n:8,} {precision:10.3f} {recall:7.3f} {f1:6.3f}")
    lines.append(f"accuracy {result.accuracy:.2%} (always the most frequent label: {result.majority_accuracy:.2%}), "
                 f"macro F1 {result.macro_f1:.3f}")
    return "\n".join(lines)


def write_errors(path: Path, reviews: list[Review], labels: list[str], probabilities: np.ndarray) -> None:
    """Write the misclassified reviews as CSV, with the predicted label and its probability. Raises UserError."""
    rows = []
    for review, true, row in zip(reviews, label_ids(reviews, labels), probabilities, strict=True):
        predicted = row.argmax()
        if predicted != true:
            rows.append([review.place, review.label, labels[predicted], f"{row[predicted]:.4f}", review.text])
    write_csv(path, ["place", "label", "predicted", "probability", "text"], rows)
