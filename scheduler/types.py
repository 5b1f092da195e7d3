"""What goes into the scheduler and what comes out of it."""
from collections.abc import Mapping
from dataclasses import dataclass, field

#: The resource classes, in the order of every amounts tuple: virtual CPUs, MiB of memory, GiB of disk.
RESOURCES = ("vcpus", "ram_mib", "disk_gib")
UNITS = {"vcpus": "vCPU", "ram_mib": "MiB of RAM", "disk_gib": "GiB of disk"}

Amounts = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Host:
    """One host as it is now. Amounts are 0 to 2**40; `used` may be over capacity after a ratio was lowered."""

    name: str
    capacity: Amounts              # total times the allocation ratio, floored
    used: Amounts
    zone: str = ""
    open: bool = True              # up, and not closed by an operator
    closed_because: str = ""       # shown in refusals: "down", "disabled"


@dataclass(frozen=True, slots=True)
class Request:
    """One server to be placed."""

    id: str
    amounts: Amounts
    zone: str = ""                 # "" for any
    host: str = ""                 # only this one; "" for any
    policy: str = "pack"           # "pack": the fullest host that fits; "spread": the emptiest


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes. `slack` is the host's free share afterwards, summed over resources, in parts per million."""

    request: Request
    host: str
    slack: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why no host takes a request.

    `ruled_out` counts hosts by the first constraint that they fail, in the order in which constraints are looked at, so
    the counts add up to the number of hosts. `nearest` is the host that lacks least, and what it lacks.
    """

    request: Request
    hosts: int
    ruled_out: Mapping[str, int] = field(default_factory=dict)
    nearest: str = ""
    lacks: Mapping[str, int] = field(default_factory=dict)

    def reason(self, *, name_hosts: bool = False) -> str:
        """A sentence for people; host names are for admins only."""
        if not self.hosts:
            return "There is no host yet."
        parts = [f"{count} {constraint}" for constraint, count in self.ruled_out.items()]
        text = f"{self.hosts} host{'s' if self.hosts > 1 else ''}: {', '.join(parts)}."
        if self.lacks:
            short = ", ".join(f"{amount} {UNITS[resource]}" for resource, amount in self.lacks.items())
            text += f" The nearest miss{f', {self.nearest},' if name_hosts else ''} lacks {short}."
        return text
