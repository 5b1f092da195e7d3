"""The two doors of the scheduler: a snapshot of hosts in, a plan out.

A plan never exceeds a host's capacity: each placement is taken off the snapshot before the next request is looked at.
"""
from collections.abc import Iterable, Sequence

import numpy as np

from scheduler import _pack
from scheduler.reference import PACK, SPREAD
from scheduler.types import RESOURCES, UNITS, Host, Placement, Refusal, Request

POLICIES = {"pack": PACK, "spread": SPREAD}


class Snapshot:
    """Hosts as arrays. `plan` takes placements off it; make a new one, or a copy(), for a what-if.

    Raises ValueError for an amount outside 0 to 2**40 or a name used twice.
    """

    def __init__(self, hosts: Iterable[Host]):
        self.hosts = sorted(hosts, key=lambda host: host.name)
        if len({host.name for host in self.hosts}) < len(self.hosts):
            raise ValueError("two hosts have one name")
        if any(not 0 <= amount <= 2**40 for host in self.hosts for amount in (*host.capacity, *host.used)):
            raise ValueError("a capacity or a use is outside 0 to 2**40")
        shape = (len(self.hosts), len(RESOURCES))
        self._capacity = np.array([host.capacity for host in self.hosts], np.int64).reshape(shape)
        self._free = self._capacity - np.array([host.used for host in self.hosts], np.int64).reshape(shape)

    def copy(self) -> "Snapshot":
        """The same hosts, free to be planned on."""
        twin = Snapshot(())
        twin.hosts, twin._capacity, twin._free = self.hosts, self._capacity, self._free.copy()
        return twin

    def plan(self, requests: Sequence[Request]) -> list[Placement | Refusal]:
        """A decision for each request, in order, each seeing the placements of those before it.

        Raises ValueError for an amount outside 0 to 2**40 or an unknown policy.
        """
        return [self._decide(request) for request in requests]

    def _decide(self, request: Request) -> Placement | Refusal:
        if any(not 0 <= amount <= 2**40 for amount in request.amounts):
            raise ValueError(f"request {request.id}: an amount is outside 0 to 2**40")
        if request.policy not in POLICIES:
            raise ValueError(f"request {request.id}: unknown policy {request.policy!r}, not one of {', '.join(POLICIES)}")
        if not self.hosts:
            return Refusal(request, 0)
        demand = np.array(request.amounts, np.int64)
        verdicts = [self._filter(host, request) for host in self.hosts]
        eligible = np.array([not verdict for verdict in verdicts], np.uint8)
        best, slack = _pack.pick(self._free, self._capacity, demand, eligible, POLICIES[request.policy])
        if best >= 0:
            self._free[best] -= demand
            return Placement(request, self.hosts[best].name, slack)
        return self._refuse(request, demand, verdicts, eligible)

    @staticmethod
    def _filter(host: Host, request: Request) -> str:
        """The constraint that rules a host out whatever it has free, "" if none does."""
        if request.host and host.name != request.host:
            return "not the host asked for"
        if not host.open:
            return host.closed_because or "closed"
        if request.zone and host.zone != request.zone:
            return f"not in zone {request.zone}"
        return ""

    def _refuse(self, request: Request, demand: np.ndarray, verdicts: list[str], eligible: np.ndarray) -> Refusal:
        ruled_out: dict[str, int] = {}
        for verdict in filter(None, verdicts):
            ruled_out[verdict] = ruled_out.get(verdict, 0) + 1
        counts, nearest = _pack.misses(self._free, self._capacity, demand, eligible)
        for resource, count in zip(RESOURCES, counts, strict=True):
            if count:
                ruled_out[f"without enough {UNITS[resource].removeprefix('MiB of ').removeprefix('GiB of ')}"] = count
        if nearest < 0:
            return Refusal(request, len(self.hosts), ruled_out)
        short = np.maximum(demand - self._free[nearest], 0)
        lacks = {resource: int(amount) for resource, amount in zip(RESOURCES, short, strict=True) if amount}
        return Refusal(request, len(self.hosts), ruled_out, self.hosts[nearest].name, lacks)
