"""A record of simulated memory."""

from collections import Counter
from collections.abc import Callable


class Ledger:
    """The bytes that are allocated during a simulated step, by part, and their peak."""

    def __init__(self):
        self.live, self.total = Counter(), 0
        self.phase, self.phases = "", Counter()  # the current phase, and the peak of each
        self.peak, self.parts = 0, {}

    def add(self, part: str, size: int) -> None:
        self.live[part] += size
        self.total += size
        self.phases[self.phase] = max(self.phases[self.phase], self.total)
        if self.total > self.peak:
            self.peak, self.parts = self.total, dict(self.live)

    def drop(self, part: str, size: int) -> None:
        self.live[part] -= size
        self.total -= size

    def add_temporary(self, part: str, size: int) -> None:
        """Add a tensor that is freed before anything else is allocated."""
        self.add(part, size)
        self.drop(part, size)

    def repeat(self, times: int, simulate: Callable[[], None]) -> None:
        """Call `simulate`, which always adds and drops the same sizes, `times` times.

        Each call changes the live bytes by the same amounts, so the peak is in the first or the last call. Calls in
        between are not simulated: their number is user input and may be huge.
        """
        before = Counter(self.live)
        simulate()
        for part, size in self.live.items():
            skipped = max(0, times - 2) * (size - before[part])
            self.live[part] += skipped
            self.total += skipped
        if times > 1:
            simulate()
