"""How long things took, counted by labels and by buckets: what a call pays for its histogram."""
from bisect import bisect_left

#: Upper bounds of the buckets, in seconds. A read from the cache takes 0.1 ms, a commit some ms, a guest's start seconds.
BOUNDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Row:
    """One combination of labels: a count for each bucket and one beyond, and the seconds of all."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.total = 0.0


class Timings:
    """A histogram. Labels are few and known: never what a client sends. For one thread."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: dict[tuple[str, ...], Row] = {}

    def add(self, labels: tuple[str, ...], seconds: float) -> None:
        row = self.rows.get(labels)
        if row is None:
            row = self.rows[labels] = Row()
        row.counts[bisect_left(BOUNDS, seconds)] += 1
        row.total += seconds

    def count(self, *labels: str) -> int:
        """How many there were of some labels."""
        row = self.rows.get(labels)
        return sum(row.counts) if row is not None else 0
