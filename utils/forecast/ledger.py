"""The bytes that are alive during a simulated step."""

from collections import Counter


class Ledger:
    """The bytes that are alive during a simulated step, by part, and their peak."""

    def __init__(self):
        self.live, self.total = Counter(), 0
        self.phase, self.phases = None, Counter()
        self.peak, self.parts = 0, {}

    def add(self, part, size):
        self.live[part] += size
        self.total += size
        self.phases[self.phase] = max(self.phases[self.phase], self.total)
        if self.total > self.peak:
            self.peak, self.parts = self.total, dict(self.live)

    def drop(self, part, size):
        self.live[part] -= size
        self.total -= size

    def add_temporary(self, part, size):
        """Add what is dropped before anything else is added."""
        self.add(part, size)
        self.drop(part, size)

    def repeat(self, times, simulate):
        """Call `simulate` `times` times, for a function that always adds and drops the same sizes.

        Each call changes what is alive by the same amounts, so the peak is in the first or in the last one. Those
        between are not simulated: their number comes from the user and may be anything.
        """
        before = Counter(self.live)
        simulate()
        for part, size in self.live.items():
            skipped = max(0, times - 2) * (size - before[part])
            self.live[part] += skipped
            self.total += skipped
        if times > 1:
            simulate()
