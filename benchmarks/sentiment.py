"""Accuracy of our classifiers on reviews, against logistic regression on character n-grams.

    python benchmarks/sentiment.py REVIEWS.csv
    python benchmarks/sentiment.py REVIEWS.csv --checkpoints checkpoints/seed0 checkpoints/seed1 ... checkpoints/seed5

Prints a Markdown table with a row for each split. The baseline is trained on the training and validation reviews; its
inverse regularization strength C is chosen by 5-fold cross-validation on them. The checkpoints are classifiers
trained with --data.split_seed 0 to 5, in this order. Accuracy is measured on the test reviews.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
from side_by_side import print_header, print_row  # noqa: E402
from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV, StratifiedKFold  # noqa: E402

from reading.options import ReadOptions  # noqa: E402
from records.report import DataReport  # noqa: E402
from records.reviews import Review, label_ids, labels_of, read_reviews, split_reviews  # noqa: E402
from tasks.classification import classify  # noqa: E402
from tasks.scores import Scores, scores  # noqa: E402
from training.checkpoint import load_checkpoint  # noqa: E402
from training.precision import pick_device  # noqa: E402
from utils.errors import Parser, UserError, command  # noqa: E402

SEEDS = range(6)
C = [10, 30, 100, 300, 1000]


def baseline_scores(reviews: list[Review], test: list[Review]) -> tuple[Scores, int]:
    """Train logistic regression on `reviews`; return its Scores on `test`, and the C that cross-validation chose."""
    labels = labels_of(reviews)
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2, sublinear_tf=True)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    search = GridSearchCV(LogisticRegression(max_iter=1000), {"C": C}, cv=folds)
    search.fit(vectorizer.fit_transform(review.text for review in reviews), label_ids(reviews, labels))
    probabilities = search.predict_proba(vectorizer.transform(review.text for review in test))
    return scores(labels, label_ids(test, labels), probabilities), search.best_params_["C"]


def checkpoint_scores(path: str, test: list[Review]) -> Scores:
    """Return the Scores of a checkpoint on test reviews. Raises UserError if it is not a classifier."""
    model, tokenizer, task, _ = load_checkpoint(path, pick_device("auto"))
    if task["kind"] != "classification":
        raise UserError(f"{path} is for the task {task['kind']}: pass a classifier, which train.py --task "
                        "classification trains")
    return scores(task["labels"], label_ids(test, task["labels"]), classify(model, tokenizer, task, test))


@command
def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("reviews", type=Path, help="a table with a label column and a text column")
    parser.add_argument("--label_column", help="the column that contains the label (label)")
    parser.add_argument("--checkpoints", nargs=len(SEEDS), metavar=tuple(f"SEED{seed}" for seed in SEEDS),
                        help="a classifier for each split")
    args = parser.parse_args()

    report = DataReport(args.reviews, "reviews")
    reviews = read_reviews(args.reviews, ReadOptions(), args.label_column, report)
    report.print()
    columns = ["split seed", "test reviews", "most frequent label", "n-grams", "C"]
    if args.checkpoints:
        columns.append("checkpoint")
    print_header(*columns)
    rows = []
    for i, seed in enumerate(SEEDS):
        train, val, test = split_reviews(reviews, seed)
        baseline, best_c = baseline_scores(train + val, test)
        accuracies = [baseline.majority_accuracy, baseline.accuracy]
        row = [seed, len(test), f"{accuracies[0]:.2%}", f"{accuracies[1]:.2%}", best_c]
        if args.checkpoints:
            accuracies.append(checkpoint_scores(args.checkpoints[i], test).accuracy)
            row.append(f"{accuracies[-1]:.2%}")
        print_row(*row)
        rows.append(accuracies)
    majority, baseline, *checkpoint = [f"{mean:.2%}" for mean in np.mean(rows, axis=0)]
    print_row("mean", "", majority, baseline, "", *checkpoint)


if __name__ == "__main__":
    main()
