"""What clients asked and were answered, and when: one operation each, appended as it ends.

Times are of one process's monotonic clock, so an operation that ended before another began did so in truth.
"""
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO


class Outcome(StrEnum):
    OK = "ok"                   # it took effect
    REFUSED = "refused"         # it did not, for a reason that the state gives: there already, not there
    FAILED = "failed"           # it did not take effect, whatever the state: over quota, no answer before it was sent
    UNKNOWN = "unknown"         # nobody told: it may have taken effect, or may do so later


@dataclass(frozen=True, slots=True)
class Operation:
    """One call as its client saw it, retries and all."""

    client: str
    verb: str                   # "create", "delete", ...
    thing: str                  # what it is about: "keypair/shared-1"
    began: float                # seconds
    ended: float                # infinity where it is unknown
    outcome: Outcome
    detail: str = ""            # an id, a status
    tries: int = 1
    via: str = ""               # endpoint that answered

    @property
    def repeated(self) -> bool:
        return self.tries > 1


class History:
    """Operations in the order of their ends, in memory and, line by line, in a file."""

    def __init__(self, file: IO[str] | None = None):
        self.operations: list[Operation] = []
        self._file = file

    def add(self, operation: Operation) -> None:
        self.operations.append(operation)
        if self._file is not None:
            self._file.write(json.dumps(asdict(operation)) + "\n")

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __len__(self) -> int:
        return len(self.operations)

    def by_thing(self, prefix: str) -> dict[str, list[Operation]]:
        """The operations about each thing whose name starts with a prefix."""
        found: dict[str, list[Operation]] = {}
        for operation in self.operations:
            if operation.thing.startswith(prefix):
                found.setdefault(operation.thing, []).append(operation)
        return found


def read(file: Path) -> Iterable[Operation]:
    """A history that an earlier run has written."""
    for line in file.read_text().splitlines():
        values = json.loads(line)
        yield Operation(**values | {"outcome": Outcome(values["outcome"])})
