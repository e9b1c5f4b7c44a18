"""The data report, printed before the first step: it explains most models that do not learn."""

import itertools
import sys

import numpy as np

from reading.paths import Paths
from records.examples import IGNORED, Example, Examples
from tokenization.base import Tokenizer
from utils.printable import escape_controls, one_line
from utils.quantities import quantity


class DataReport:
    """The number of records that were kept, skipped and changed, with the first place of each reason.

    A place is where a record is, such as `line 12` or `chat.txt, line 12`.
    """

    def __init__(self, path: Paths, noun: str = "records", n_records: int = 0):
        """`n_records` is the number of records that were read before; those that `parse_records` reads are added."""
        self.path, self.noun, self.n_records = path, noun, n_records
        self.skipped, self.changed = {}, {}

    @property
    def n_skipped(self) -> int:
        """Number of records that were skipped."""
        return sum(count for count, _ in self.skipped.values())

    @property
    def kept(self) -> int:
        """Number of records that were not skipped."""
        return self.n_records - self.n_skipped

    def skip(self, reason: str, place: str) -> None:
        count_at(self.skipped, reason, place)

    def change(self, what: str, place: str) -> None:
        """Count a record that is used, but not as it is in the file: `what` is such as "cut to the context"."""
        count_at(self.changed, what, place)

    def first_skipped(self) -> str:
        """Return why the first record was skipped, for an error message; "" if none was."""
        for reason, (_, first) in self.skipped.items():
            return f"{first}: {reason}"
        return ""

    def print(self) -> None:
        print(one_line(f"data: {self.path}: {quantity(self.kept, self.noun)} kept, {self.n_skipped:,} skipped"))
        for title, found in (("skipped", self.skipped), ("changed", self.changed)):
            for reason, (count, first) in found.items():
                print(one_line(f"    {title} {count:,}: {reason} (first: {first})"))


def count_at(found: dict[str, tuple[int, str]], what: str, place: str) -> None:
    """Count something that was found, and remember its first place."""
    count, first = found.get(what, (0, place))
    found[what] = count + 1, first


def print_examples(name: str, examples: Examples) -> None:
    """Print the size of a split: the number of examples and of tokens, the supervised share, and the lengths."""
    if not len(examples):
        print(f"    {name}: no example")
        return
    share = examples.n_supervised / len(examples.tokens)
    low, median, high, longest = np.percentile(examples.lengths, (10, 50, 90, 100), method="nearest")
    size = f"{quantity(len(examples), 'examples')}, {quantity(len(examples.tokens), 'tokens')}"
    print(f"    {name}: {size}, {examples.n_supervised:,} of them supervised ({share:.0%}); length {low} (10%), "
          f"{median} (median), {high} (90%), {longest} (longest)")


def highlight(example: Example, tokenizer: Tokenizer) -> str:
    """Return the text of an Example of a language model, with the tokens that are predicted in green.

    Where the output is not a terminal, they are between ⟦ and ⟧.
    """
    start, end = ("\033[32m", "\033[0m") if sys.stdout.isatty() else ("⟦", "⟧")
    ids = [*example.tokens, example.targets[-1]]
    supervised = [False, *(target != IGNORED for target in example.targets)]  # the first token is no target
    parts = []
    for is_target, group in itertools.groupby(zip(ids, supervised, strict=True), key=lambda pair: pair[1]):
        text = escape_controls(tokenizer.decode([i for i, _ in group if i != IGNORED]))
        parts.append(f"{start}{text}{end}" if is_target else text)
    return "".join(parts)
