"""What goes into the scheduler and what comes out of it, by name. Values: two that are equal are the same thing."""
from collections.abc import Mapping
from dataclasses import dataclass, field

from scheduler.reference import AFFINITY, ANTI_AFFINITY, FIRST, MOST, PACK, SOFT_AFFINITY, SOFT_ANTI_AFFINITY, SPREAD

POLICIES = {"pack": PACK, "spread": SPREAD, "first": FIRST}
GROUP_POLICIES = {"anti-affinity": ANTI_AFFINITY, "affinity": AFFINITY, "soft-anti-affinity": SOFT_ANTI_AFFINITY,
                  "soft-affinity": SOFT_AFFINITY}

#: How people call a unit of a class; others go by the class's name.
UNITS = {"VCPU": "vCPU", "PCPU": "dedicated CPU", "MEMORY_MB": "MiB of RAM", "DISK_GB": "GiB of disk"}
_THINGS = {"MEMORY_MB": "RAM", "DISK_GB": "disk"}

Amounts = tuple[tuple[str, int], ...]          # (class, amount above 0), by class


def amounts(given: Mapping[str, int]) -> Amounts:
    """Amounts by class as a value. Raises ValueError outside 0 to 2**40."""
    if any(not isinstance(amount, int) or not 0 <= amount <= MOST for amount in given.values()):
        raise ValueError("an amount is outside 0 to 2**40")
    return tuple(sorted((name, amount) for name, amount in given.items() if amount))


def thing(resource: str) -> str:
    """A class as people call it: RAM, disk, vCPU."""
    return _THINGS.get(resource) or UNITS.get(resource, resource)


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a row has of one class. An amount is served in one piece of min_unit to max_unit, in steps of step_size."""

    total: int
    reserved: int = 0
    allocation_ratio: float = 1.0
    min_unit: int = 1
    max_unit: int = MOST
    step_size: int = 1

    def __post_init__(self) -> None:
        if not (0 <= self.total <= MOST and 0 <= self.reserved <= MOST and 1 <= self.min_unit <= MOST
                and self.max_unit >= 1 and self.step_size >= 1 and 0 < self.allocation_ratio <= 1e6):
            raise ValueError("an inventory's amount is outside 0 to 2**40, or its ratio not above 0")

    @property
    def capacity(self) -> int:
        """What may be claimed in all: 0 to 2**40."""
        return min(int(max(self.total - self.reserved, 0) * self.allocation_ratio), MOST)


@dataclass(frozen=True, slots=True)
class Row:
    """A host itself, or a part of it: a NUMA cell, a device. `parent` is the place of an earlier row of the host."""

    name: str
    inventories: tuple[tuple[str, Inventory], ...]
    traits: frozenset[str] = frozenset()
    parent: int = 0


@dataclass(frozen=True, slots=True)
class Host:
    """One host; its first row is itself. `closed` says why it takes nothing new: "down", "disabled"; "" where it does."""

    name: str
    rows: tuple[Row, ...]
    zone: str = ""
    aggregates: frozenset[str] = frozenset()
    closed: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Amounts that one row of a host must serve together, as a guest's NUMA cell or a device."""

    amounts: Amounts
    required: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    any_of: tuple[frozenset[str], ...] = ()

    def __post_init__(self) -> None:
        check_traits(self.required, self.forbidden)


@dataclass(frozen=True, slots=True)
class Shape:
    """What many requests have in common: an equivalence class. Equal shapes share one index.

    `amounts` are served by any row of the host, each class by one; `groups` each by one row, by different ones where
    `isolate`. Of the groups that a subtree names, one's row holds all others'. Traits are asked of the host's first row.
    An element of `aggregates` names some of which the host must be in one; `not_aggregates` those it must not be in.
    `weights` by class: 0 to 100; without any, pack weighs every class alike, spread those that are asked for.
    """

    amounts: Amounts
    required: frozenset[str] = frozenset()
    forbidden: frozenset[str] = frozenset()
    any_of: tuple[frozenset[str], ...] = ()
    zone: str = ""
    aggregates: tuple[frozenset[str], ...] = ()
    not_aggregates: frozenset[str] = frozenset()
    groups: tuple[Group, ...] = ()
    isolate: bool = False
    subtrees: tuple[tuple[int, ...], ...] = ()
    policy: str = "pack"
    weights: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        check_traits(self.required, self.forbidden)
        if self.policy not in POLICIES:
            raise ValueError(f"unknown policy {self.policy!r}, not one of {', '.join(POLICIES)}")
        if any(not 0 <= weight <= 100 for _, weight in self.weights):
            raise ValueError("a weight is outside 0 to 100")
        if len(self.amounts) + len(self.groups) > 32:
            raise ValueError("a request has at most 32 amounts and groups")


@dataclass(frozen=True, slots=True)
class ServerGroup:
    """Servers that belong together, or apart. anti-affinity allows `most` of them a host; the soft ones prefer only."""

    id: str
    policy: str
    most: int = 1

    def __post_init__(self) -> None:
        if self.policy not in GROUP_POLICIES:
            raise ValueError(f"server group {self.id}: unknown policy {self.policy!r}, not one of {', '.join(GROUP_POLICIES)}")
        if self.most < 1:
            raise ValueError(f"server group {self.id}: fewer than one member a host")


@dataclass(frozen=True, slots=True)
class Request:
    """One consumer to be placed. `only` and `avoid` name hosts; `group` is a server group's id; `until` is when it is
    expected to end, in seconds on the fleet's clock, 0 where nobody knows."""

    id: str
    shape: Shape
    group: str = ""
    only: frozenset[str] | None = None
    avoid: frozenset[str] = frozenset()
    until: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """What a consumer holds of one row."""

    row: str
    amounts: Amounts


@dataclass(frozen=True, slots=True)
class Term:
    """A class's part in a host's score: what would be left of it, in parts per million of its capacity, and its weight."""

    resource: str
    left_ppm: int
    weight: int


@dataclass(frozen=True, slots=True)
class Scored:
    host: str
    score: int
    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Why a host was taken: how it and the next best scored (less is better), and how many would have done."""

    policy: str
    candidates: int
    winner: Scored
    runner_up: Scored | None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes, and what it holds there."""

    request: Request
    host: str
    held: tuple[Held, ...]
    choice: Choice | None = None


@dataclass(frozen=True, slots=True)
class Fix:
    """A change that would make a refused request fit: constraints to leave out, and amounts to lower to those given."""

    drop: tuple[str, ...] = ()
    lower: Amounts = ()

    def __str__(self) -> str:
        parts = [f"without {constraint}" for constraint in self.drop]
        parts += [f"with at most {amount} {UNITS.get(name, name)}" for name, amount in self.lower]
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no host takes a request.

    `ruled_out` counts hosts by the first constraint that they fail, in the order in which constraints are looked at, so
    the counts add up to the number of hosts. `nearest` is the host that lacks least, and what it lacks. Each of `fixes`
    alone makes the request fit, in the fleet as it was.
    """

    request: Request
    hosts: int
    ruled_out: Mapping[str, int] = field(default_factory=dict)
    nearest: str = ""
    lacks: Mapping[str, int] = field(default_factory=dict)
    fixes: tuple[Fix, ...] = ()

    def reason(self, *, name_hosts: bool = False) -> str:
        """A sentence for people; host names are for admins only."""
        if not self.hosts:
            return "There is no host yet."
        parts = [f"{count} {constraint}" for constraint, count in self.ruled_out.items()]
        text = f"{self.hosts} host{'s' if self.hosts > 1 else ''}: {', '.join(parts)}."
        if self.lacks:
            short = ", ".join(f"{amount} {UNITS.get(resource, resource)}" for resource, amount in self.lacks.items())
            text += f" The nearest miss{f', {self.nearest},' if name_hosts else ''} lacks {short}."
        if self.fixes:
            text += f" It would fit {' or '.join(map(str, self.fixes))}."
        return text


def check_traits(required: frozenset[str], forbidden: frozenset[str]) -> None:
    """Raises ValueError where a trait is both."""
    if both := sorted(required & forbidden):
        raise ValueError(f"trait {both[0]} is both required and forbidden")
