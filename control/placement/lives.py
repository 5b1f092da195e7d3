"""When servers are expected to end: learned from those that were here, and said anew for those that outlive it.

A server's own hint, brume:lifetime, is believed; else the tables of its flavor and project count (scheduler/lifetimes.py). They
begin empty with each replica, so the first hours place by size alone.
"""
import heapq
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

from control.placement.neighbours import Demands
from scheduler.lifetimes import Lifetimes

#: Seconds between the first and the second look at a server whose hint was wrong.
AFTER_HINT = 3600


@dataclass(slots=True)
class _Life:
    keys: tuple[Hashable, ...]
    born: int
    told: int                  # the age up to which the tables know of it
    until: int


class Lives:
    """Servers that hold something, by id. Times are seconds since 1970."""

    def __init__(self, demands: Demands, now: Callable[[], float] = time.time):
        self._demands = demands
        self._now = now
        self._tables = Lifetimes()
        self._lives: dict[str, _Life] = {}
        self._due: list[tuple[int, str]] = []

    @property
    def now(self) -> int:
        return int(self._now())

    def expected(self, server_id: str) -> int:
        """When a server that is to be placed would end; 0 for what is no server."""
        life = self._life(server_id)
        return life.until if life is not None else 0

    def began(self, server_id: str) -> int:
        """A server holds something; when it is expected to end, 0 for what is no server."""
        if server_id not in self._lives:
            life = self._life(server_id)
            if life is None:
                return 0
            self._lives[server_id] = life
            heapq.heappush(self._due, (life.until, server_id))
            if len(self._due) > 2 * len(self._lives) + 1000:       # most are gone: nobody asked `outlived` for long
                self._due = [(life.until, server_id) for server_id, life in self._lives.items()]
                heapq.heapify(self._due)
        return self._lives[server_id].until

    def ended(self, server_id: str) -> None:
        """A server holds nothing more."""
        life = self._lives.pop(server_id, None)
        if life is not None:
            self._tables.ended(life.keys, life.told, max(self.now - life.born, life.told))

    def outlived(self) -> Iterator[tuple[str, int]]:
        """Servers that have outlived what was expected since the last call, and what is expected now."""
        now = self.now
        while self._due and self._due[0][0] <= now:
            when, server_id = heapq.heappop(self._due)
            life = self._lives.get(server_id)
            if life is None or life.until != when:
                continue
            age = max(now - life.born, life.told)
            self._tables.outlived(life.keys, life.told, age)
            life.told, life.until = age, now + max(self._tables.remaining(life.keys, age), 1)
            heapq.heappush(self._due, (life.until, server_id))
            yield server_id, life.until

    def _life(self, server_id: str) -> _Life | None:
        known = self._demands.life_of(server_id)
        if known is None:
            return None
        flavor, project, born, hinted = known
        keys = ("", flavor, (flavor, project))
        age = max(self.now - born, 0)
        if hinted:
            return _Life(keys, born, 0, max(hinted, self.now + AFTER_HINT if hinted <= self.now else hinted))
        return _Life(keys, born, 0, self.now + self._tables.remaining(keys, age))
