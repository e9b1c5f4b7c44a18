"""Labeled texts for classification, such as reviews: tables with a label and a text column.

    python -m records.reviews split reviews.csv --seed 0 --out reviews

writes train.csv, val.csv and test.csv, so that a language model can be trained on the training reviews alone.
"""

import csv
import hashlib
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reading.options import ReadOptions, add_read_options, read_options
from reading.tables import clean_text, json_kind, list_columns, open_table, refuse_poems, text_column
from records.duplicates import groups_of
from records.examples import IGNORED, Example, Examples
from records.parsing import parse_records
from records.report import DataReport
from tokenization.base import Tokenizer
from utils.errors import Parser, UserError, command
from utils.files import replacing
from utils.printable import one_line
from utils.quantities import quantity

TEXT_COLUMNS = ("text", "review")
SPLITS = ("train", "val", "test")
VALIDATION, TEST = 0.05, 0.1  # shares of the reviews


class Review(NamedTuple):
    """A text with its label."""

    label: str
    text: str
    place: str
    """Where the row is, such as `line 12` or `more.csv, line 12`."""


# ---- Files -----------------------------------------------------------------------------------------------------------


def read_reviews(path: Path, options: ReadOptions, label_column: str | None, report: DataReport) -> list[Review]:
    """Return the Reviews in a table.

    The label column is the one given or `label`; the text column is the one given, `text`, `review` or the only other
    one. Labels are kept as text. A review without a text is kept with an empty one, and counted; a row without a label
    is skipped. Raises UserError if a column or all reviews are missing.
    """
    table = open_table(path, options)
    if not table.names:
        raise UserError(f"{path} contains no reviews: it is empty")
    if options.column is None:
        refuse_poems(table)
    label_column = label_column or "label"
    if not any(label_column in row for row in table.names):
        raise UserError(f"{table.where} has no column {label_column}: pass the one with the labels as "
                        f"--data.label_column, of {list_columns(table.names)}")
    others = [[name for name in row if name != label_column] for row in table.names]
    column = text_column(others, options.column, table.where, TEXT_COLUMNS)

    def parse(record: dict, place: str) -> Review:
        review = as_review(record.get(label_column), record.get(column), place)
        if not review.text:
            report.change("empty text, classified by the start token alone", place)
        return review

    return parse_records([path], lambda _: table.read([column, label_column]), parse, report)


def as_review(label: Any, text: Any, place: str) -> Review:
    """Return the Review of a row. Raises UserError, which says what is wrong with it."""
    if label is None or not str(label).strip():
        raise UserError("its label is missing")
    if not isinstance(label, str | int | float):
        raise UserError(f"its label is {json_kind(label)}, not text or a number")
    if not isinstance(text, str | None):
        raise UserError(f"its text is {json_kind(text)}, not text")
    if text is None or not text.strip():
        text = ""
    return Review(clean_text(str(label)).strip(), clean_text(text), place)


def write_csv(path: Path, columns: list[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a CSV file in UTF-8. Raises UserError."""
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows([columns, *rows])
    with replacing(path) as file:
        file.write(content.getvalue().encode())


# ---- Labels ----------------------------------------------------------------------------------------------------------


def labels_of(reviews: list[Review]) -> list[str]:
    """Return the distinct labels: in numeric order if all are numbers, else sorted as text.

    Raises UserError for fewer than two.

    >>> labels_of([Review("10", "", ""), Review("9", "", ""), Review("10", "", "")])
    ['9', '10']
    """
    labels = sorted({review.label for review in reviews})
    if len(labels) < 2:
        raise UserError(f"all reviews have the label {labels[0]}: classification requires at least two labels")
    try:
        numbers = {label: float(label) for label in labels}
    except ValueError:
        return labels
    if all(map(math.isfinite, numbers.values())):
        labels.sort(key=numbers.get)
    return labels


def label_ids(reviews: list[Review], labels: list[str]) -> np.ndarray:
    """Return the index in `labels` of each review's label, int64, (N). Raises UserError for another label."""
    id_of = {label: i for i, label in enumerate(labels)}
    for review in reviews:
        if review.label not in id_of:
            raise UserError(f"{review.place} has the label {one_line(review.label, 80)}, but the model knows only "
                            f"{one_line(', '.join(labels), 200)}: correct it or remove the row")
    return np.array([id_of[review.label] for review in reviews], np.int64)


# ---- Split -----------------------------------------------------------------------------------------------------------


def split_reviews(reviews: list[Review], seed: int) -> list[list[Review]]:
    """Split reviews into three lists: for training (85%), validation (5%) and test (10%).

    Near-duplicates are in one list, and each label has its share in each list, as far as near-duplicates permit. The
    lists depend on the seed and the reviews, not on their order. Raises UserError if a list would lack a label.
    """
    labels = labels_of(reviews)
    ids = label_ids(reviews, labels)
    groups, counts = {}, {}
    for review, i, key in zip(reviews, ids, groups_of(review.text for review in reviews), strict=True):
        groups.setdefault(key, []).append(review)
        counts.setdefault(key, np.zeros(len(labels), np.int64))[i] += 1  # (classes)

    def order(key: str) -> tuple[int, bytes]:  # large groups first: single reviews fill what they leave
        return -len(groups[key]), hashlib.sha256(f"{seed} {key}".encode()).digest()

    sizes = split_sizes(np.bincount(ids))
    room = sizes.copy()
    splits = [[] for _ in SPLITS]
    for key in sorted(groups, key=order):
        share_left = (room - counts[key]) / sizes  # (3, classes), if the group were there
        split = share_left[:, counts[key] > 0].min(1).argmax()
        room[split] -= counts[key]
        splits[split] += sorted(groups[key])
    for name, is_absent in zip(SPLITS, room == sizes, strict=True):
        if is_absent.any():
            label = one_line(labels[is_absent.argmax()], 80)
            raise UserError(f"the label {label} has too few reviews for a training, a validation and a test set, "
                            f"near-duplicates counted once ({name} would have none): add some, or remove the label")
    return splits


def split_sizes(counts: np.ndarray) -> np.ndarray:
    """Return how many of `counts` (classes) reviews of each label each split gets, (3, classes), at least 1."""
    val, test = (np.maximum(1, (share * counts).round().astype(np.int64)) for share in (VALIDATION, TEST))
    return np.stack([np.maximum(1, counts - val - test), val, test])


# ---- Examples --------------------------------------------------------------------------------------------------------


def review_examples(reviews: list[Review], labels: list[str], tokenizer: Tokenizer, block_size: int,
                    fixed_length: bool = False, report: DataReport | None = None) -> tuple[Examples, np.ndarray]:
    """Return the Examples of reviews, and the index of the review that each belongs to, int64, (number of examples).

    The tokens are the start token and the text; the only target is the label's index in `labels`, at the last token.
    With `fixed_length`, each example is padded to `block_size` with start tokens, of which the last has the target. A
    text that exceeds the context is split into chunks of equal length, an example each. Characters that the vocabulary
    lacks are removed, and counted if there is a report. Raises UserError for an unknown label.
    """
    if block_size < 2:
        raise UserError(f"block_size cannot be {block_size}: it must be >= 2, for the start token and a text")
    start, examples, review_of = tokenizer.start_id, [], []
    for i, (review, label) in enumerate(zip(reviews, label_ids(reviews, labels).tolist(), strict=True)):
        text, unknown = tokenizer.without_unknown(review.text)
        if report and unknown:
            report.change("removed characters that the tokenizer lacks", review.place)
        for chunk in chunks(tokenizer.encode(text), block_size - 1):
            tokens = [start, *chunk]
            if fixed_length:
                tokens += [start] * (block_size - len(tokens))
            examples.append(Example(tokens, [IGNORED] * (len(tokens) - 1) + [label]))
            review_of.append(i)
    return Examples(examples), np.array(review_of, np.int64)


def chunks(ids: list[int], longest: int) -> list[list[int]]:
    """Split a list into the fewest parts of at most `longest` items, all but the last of equal length.

    >>> chunks([1, 2, 3, 4, 5], longest=4)
    [[1, 2, 3], [4, 5]]
    >>> chunks([], longest=4)
    [[]]
    """
    if not ids:
        return [[]]
    size = math.ceil(len(ids) / math.ceil(len(ids) / longest))
    return [ids[i : i + size] for i in range(0, len(ids), size)]


# ---- Command line ----------------------------------------------------------------------------------------------------


@command
def main() -> None:
    parser = Parser(__doc__)
    commands = parser.add_subparsers(required=True)
    split = commands.add_parser("split", help="split a table into train.csv, val.csv and test.csv")
    split.add_argument("file", type=Path, help="a .csv, .tsv, .jsonl, .json or .parquet file")
    split.add_argument("--label_column", "--data.label_column", help="the column that contains the label (label)")
    add_read_options(split)
    split.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    split.add_argument("--out", type=Path, required=True, help="the folder for the three files")
    args = parser.parse_args()

    report = DataReport(args.file, "reviews")
    reviews = read_reviews(args.file, read_options(args), args.label_column, report)
    splits = split_reviews(reviews, args.seed)
    report.print()
    labels = labels_of(reviews)
    for name, part in zip(SPLITS, splits, strict=True):
        path = args.out / f"{name}.csv"
        write_csv(path, ["label", "text"], [(review.label, review.text) for review in part])
        counts = np.bincount(label_ids(part, labels))
        listed = ", ".join(f"{label}: {count:,}" for label, count in zip(labels, counts, strict=True))
        print(f"{path}: {quantity(len(part), 'reviews')} ({one_line(listed, 200)})")


if __name__ == "__main__":
    main()
