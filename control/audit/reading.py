"""Reads journals: entry by entry, checking the chain, or beside another one.

What a check can show: a line that was changed, removed or put in breaks the chain. Whoever rewrites a journal from some line
to its end leaves a whole chain: only a hash that was kept elsewhere (`--anchor`) or another replica's journal shows that.
"""
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from control.audit.chain import FIRST, files, hash_of, split
from control.kernel.errors import Invalid

#: Problems that a check names; it counts the rest.
MOST_PROBLEMS = 20

#: Is told how many bytes were read.
Progress = Callable[[int], object]


@dataclass
class Verdict:
    """What a check of one journal found. It holds if there are no problems."""

    files: int = 0
    entries: int = 0
    first: int = -1                  # sequence of the first entry: more than 0 where retention, or somebody, removed files
    head: str = FIRST
    gaps: int = 0                    # which the journal itself admits
    missing_anchors: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    more_problems: int = 0

    @property
    def holds(self) -> bool:
        return not self.problems and not self.missing_anchors

    def problem(self, text: str) -> None:
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(text)
        else:
            self.more_problems += 1


def entries(directory: Path, progress: Progress = lambda size: None) -> Iterator[dict[str, Any]]:
    """Every entry of a journal in order, without checking the chain. Raises Invalid where a line is no entry."""
    for path, number, line in _lines(directory):
        progress(len(line) + 1)
        try:
            yield orjson.loads(line)
        except ValueError as error:
            raise Invalid("audit.line", f"{path}:{number} is not JSON: `brume audit verify` says more") from error


def verify(directory: Path, anchors: Sequence[str] = (), progress: Progress = lambda size: None) -> Verdict:
    """Check a journal's whole chain. `anchors`: hashes that it must have."""
    verdict = Verdict(files=len(files(directory)))
    wanted = set(anchors)
    expected = 0
    for path, number, line in _lines(directory):
        progress(len(line) + 1)
        place = f"{path.name}:{number}"
        try:
            body, own = split(line)
            entry = orjson.loads(body)
            sequence, kind = int(entry["sequence"]), entry["type"]
        except (ValueError, KeyError, TypeError):
            verdict.problem(f"{place}: not a line of a journal")
            continue
        if verdict.first < 0:
            verdict.first = expected = sequence
            verdict.head = str(entry.get("previous", FIRST)) if kind == "file" else FIRST
        if (number == 1) != (kind == "file"):
            verdict.problem(f"{place}: a file begins with an entry of type file, and has no other one")
        if sequence != expected:
            verdict.problem(f"{place}: entry {expected} is expected here, this is {sequence}")
        elif hash_of(verdict.head, body) != own:
            verdict.problem(f"{place}: entry {sequence} is not what it was, or what is before it is not")
        if kind == "file" and entry.get("previous") != verdict.head:
            verdict.problem(f"{place}: the file before it ends otherwise than it says")
        verdict.gaps += kind == "gap" and bool(entry.get("records") or entry.get("went_back_from")) and entry["revision"] > 0
        verdict.entries += 1
        verdict.head, expected = own, sequence + 1
        wanted.discard(own)
    verdict.missing_anchors = sorted(wanted - ({verdict.head} if verdict.entries == 0 else set()))
    return verdict


@dataclass
class Comparison:
    """What two journals say of the revisions that both hold."""

    compared: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def agrees(self) -> bool:
        return self.compared > 0 and not self.differences


def compare(directory: Path, other: Path, progress: Progress = lambda size: None) -> Comparison:
    """Compare what two journals of one cloud say of each change that both should have."""
    result = Comparison()
    holes = _holes(directory) + _holes(other)
    one, two = _changes(directory, holes, progress), _changes(other, holes, progress)
    eras, firsts = _beginnings(directory), _beginnings(other)
    common = [(era, max(eras[era], firsts[era])) for era in eras if era in firsts]
    starts = dict(common)
    left, right = _next(one, starts), _next(two, starts)
    while left and right and len(result.differences) < MOST_PROBLEMS:
        if _position(left, common) == _position(right, common):
            result.compared += 1
            if (fields := _different(left, right)):
                result.differences.append(f"{left['key']} at revision {left['revision']}: {', '.join(fields)}")
            left, right = _next(one, starts), _next(two, starts)
        elif _position(left, common) < _position(right, common):
            result.differences.append(f"{left['key']} at revision {left['revision']}: only in {directory}")
            left = _next(one, starts)
        else:
            result.differences.append(f"{right['key']} at revision {right['revision']}: only in {other}")
            right = _next(two, starts)
    return result


def alive(directory: Path, era: str) -> set[str]:
    """The keys that exist as far as a journal tells."""
    keys: set[str] = set()
    for entry in entries(directory):
        if entry["type"] == "change" and entry["era"] == era:
            if entry["after"] is None:
                keys.discard(entry["key"])
            else:
                keys.add(entry["key"])
    return keys


def size(directory: Path) -> int:
    """Bytes of all of a journal's files. Raises Invalid where there are none."""
    found = files(directory)
    if not found:
        raise Invalid("audit.none", f"there is no audit journal in {directory}: `brume up` begins one")
    return sum(path.stat().st_size for path in found)


def _lines(directory: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Whole lines without their newlines; a last one without one is being written."""
    for path in files(directory):
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.endswith(b"\n"):
                    yield path, number, line[:-1]


def _changes(directory: Path, holes: list[tuple[str, int, int]], progress: Progress) -> Iterator[dict[str, Any]]:
    """Changes that journals can be compared by: none that either knows from a listing alone."""
    for entry in entries(directory, progress):
        if entry["type"] == "change" and "since" not in entry and not any(
                era == entry["era"] and start < entry["revision"] <= end for era, start, end in holes):
            yield entry


def _holes(directory: Path) -> list[tuple[str, int, int]]:
    return [(entry["era"], entry["revision"], entry["to"]) for entry in entries(directory) if entry["type"] == "gap"]


def _beginnings(directory: Path) -> dict[str, int]:
    """The first whole revision of each era that a journal has."""
    found: dict[str, int] = {}
    for entry in entries(directory):
        if entry["type"] == "change" and "since" not in entry and entry["era"] not in found:
            found[entry["era"]] = entry["revision"] + (entry["index"] != 1)
    return found


def _next(changes: Iterator[dict[str, Any]], starts: dict[str, int]) -> dict[str, Any] | None:
    return next((entry for entry in changes if entry["era"] in starts and entry["revision"] >= starts[entry["era"]]), None)


def _position(entry: dict[str, Any], common: list[tuple[str, int]]) -> tuple[int, int, int]:
    order = [era for era, _ in common]
    return order.index(entry["era"]), entry["revision"], entry["index"]


def _different(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """The fields in which two accounts of one change differ. Its time is the journal's own where no transaction says it."""
    own = {"sequence", "hash"} | ({"time"} if left["actor"] in ("lease", "outside", "unknown") else set())
    return [name for name in left.keys() | right.keys() if name not in own and left.get(name) != right.get(name)]
