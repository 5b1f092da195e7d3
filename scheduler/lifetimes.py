"""Learns how long consumers live from what was seen of others, and corrects itself while one outlives what was expected.

What is known of a consumer is a chain of keys from the general to the special, such as ("", flavor, (flavor, project)). For
each key there is a life table: by age, how many came that far and how many ended there (Kaplan and Meier 1958). A special key
with few cases leans on the one before it. To place by expected ends is from "Virtual Machine Allocation with Lifetime
Predictions", Barbalho et al. 2023; ours are learned from the fleet itself.
"""
from collections.abc import Hashable, Sequence

import numpy as np

#: Ages, in seconds, at which a life table's rows begin: five minutes apart in the first hour, then by factors of 2**0.5.
AGES = np.array([*(300 * i for i in range(13)), *(3600 * 2 ** (i / 2) for i in range(1, 16))])

#: Cases that the more general key counts for. Too few and the first cases of a flavor are believed; too many and it never
#: gets a life of its own.
PRIOR = 20.0

#: Ends after which tables are worked out anew, a look at each key that is asked for, some 50 us: of a twentieth of all that
#: were seen, from so few up to so many.
EVERY = range(10, 2_000)

#: What nobody lived longer than is said to last: a year of tables would add rows that few reach.
LONGEST = int(AGES[-1] * 1.2)

#: Keys that are kept; further ones lean on their more general ones.
MOST_KEYS = 50_000

Keys = Sequence[Hashable]


class Lifetimes:
    """Life tables by key. Times are seconds; ages count from the start of a consumer."""

    def __init__(self) -> None:
        self._lived: dict[Hashable, np.ndarray] = {}          # by row of the table: who lived to its end, or ended in it
        self._ended: dict[Hashable, np.ndarray] = {}
        self._expected: dict[Hashable, list[float]] = {}      # what remains at the beginning of each row
        self._hazards: dict[Hashable, np.ndarray] = {}
        self._since = self._cases = 0

    def remaining(self, keys: Keys, age: float) -> int:
        """Seconds that a consumer of this age is expected to live on, 300 or more: the mean over those that came so far."""
        key = next((key for key in reversed(keys) if key in self._lived), None)
        if key is None:
            return 3600
        table = self._expected.get(key)
        if table is None:
            known = [one for one in keys if one in self._lived]
            table = self._expected[key] = _expectations(self._hazard(known))
        return max(int(table[_row(age)]), 300)

    def outlived(self, keys: Keys, before: float, age: float) -> None:
        """Somebody who was last told of at the age `before` is alive at `age`."""
        self._count(keys, _row(before), _row(age), ended=False)

    def ended(self, keys: Keys, before: float, age: float) -> None:
        """Somebody who was last told of at the age `before` ended at `age`."""
        self._count(keys, _row(before), _row(age), ended=True)

    def _count(self, keys: Keys, first: int, last: int, *, ended: bool) -> None:
        for key in keys:
            if key not in self._lived:
                if len(self._lived) >= MOST_KEYS:
                    continue
                self._lived[key], self._ended[key] = np.zeros(len(AGES)), np.zeros(len(AGES))
            self._lived[key][first:last + ended] += 1
            if ended:
                self._ended[key][last] += 1
        self._since += ended
        self._cases += ended
        if self._since >= min(max(self._cases // 20, EVERY.start), EVERY.stop):
            self._since = 0
            self._expected.clear()
            self._hazards.clear()

    def _hazard(self, keys: Keys) -> np.ndarray:
        """By row, the share of those who begin it that end in it."""
        if keys[-1] not in self._hazards:
            general = self._hazard(keys[:-1]) if len(keys) > 1 else np.full(len(AGES), 0.5)
            weight = PRIOR if len(keys) > 1 else 1.0
            ended, lived = self._ended[keys[-1]], self._lived[keys[-1]]
            self._hazards[keys[-1]] = np.clip((ended + weight * general) / (lived + weight), 1e-4, 1)
        return self._hazards[keys[-1]]


def _row(age: float) -> int:
    return max(int(np.searchsorted(AGES, age, "right")) - 1, 0)


def _expectations(hazard: np.ndarray) -> list[float]:
    """The mean of what remains at the beginning of each row: within a row, those who end in it do so at its middle."""
    widths = np.diff(np.append(AGES, LONGEST))
    expected, after = np.empty(len(AGES)), 0.0
    for row in range(len(AGES) - 1, -1, -1):
        after = hazard[row] * widths[row] / 2 + (1 - hazard[row]) * (widths[row] + after)
        expected[row] = after
    return expected.tolist()
