"""What became of the records of a file: printed before the first step, as it explains most models that do not learn."""

import itertools
import sys
from pathlib import Path

import numpy as np

from data.examples import IGNORED
from utils.printable import escape_controls, one_line


class DataReport:
    """Counts the records that were kept, skipped and changed, each with the reason and the first place.

    A place is where a record is, such as `line 12` or `chat.txt, line 12`.
    """

    def __init__(self, path, noun="records"):
        self.path, self.noun = path, noun
        self.kept, self.skipped, self.changed = 0, {}, {}

    def keep(self):
        self.kept += 1

    def skip(self, reason, place):
        count, first = self.skipped.get(reason, (0, place))
        self.skipped[reason] = count + 1, first

    def change(self, what, place):
        """Note that a record is used, but not as it is in the file: `what` is a phrase such as "cut to the context"."""
        count, first = self.changed.get(what, (0, place))
        self.changed[what] = count + 1, first

    def place_in(self, file, place):
        """A place in a file, with the name of the file unless the report is on it alone."""
        alone = not isinstance(self.path, list) and Path(self.path) == Path(file)
        return place if alone else f"{file}, {place}"

    def print(self):
        n_skipped = sum(count for count, _ in self.skipped.values())
        print(one_line(f"data: {self.path}: {self.kept:,} {self.noun} kept, {n_skipped:,} skipped"))
        for title, found in (("skipped", self.skipped), ("changed", self.changed)):
            for reason, (count, first) in found.items():
                print(one_line(f"    {title} {count:,}: {reason} (first: {first})"))

    def first_skipped(self):
        """Why the first record was skipped, for an error message; "" if none was."""
        for reason, (_, first) in self.skipped.items():
            return f"{first}: {reason}"
        return ""


def print_examples(name, examples):
    """Print the size of a split of `Examples`: number, tokens, how many of them are supervised, and lengths."""
    if not len(examples):
        print(f"    {name}: no example")
        return
    share = examples.n_supervised / len(examples.tokens)
    low, median, high, longest = np.percentile(examples.lengths, (10, 50, 90, 100), method="nearest")
    print(f"    {name}: {len(examples):,} examples, {len(examples.tokens):,} tokens, {examples.n_supervised:,} of them "
          f"supervised ({share:.0%}); length {low} (10%), {median} (median), {high} (90%), {longest} (longest)")


def highlight(example, tokenizer):
    """The text of an `Example` of a language model, with the tokens that are predicted in green; where output is not a
    terminal, between ⟦ and ⟧."""
    start, end = ("\033[32m", "\033[0m") if sys.stdout.isatty() else ("⟦", "⟧")
    ids = [*example.tokens, example.targets[-1]]
    supervised = [False, *(target != IGNORED for target in example.targets)]  # the first token is no target
    parts = []
    for is_target, group in itertools.groupby(zip(ids, supervised, strict=True), key=lambda pair: pair[1]):
        text = escape_controls(tokenizer.decode([i for i, _ in group if i != IGNORED]))
        parts.append(f"{start}{text}{end}" if is_target else text)
    return "".join(parts)
