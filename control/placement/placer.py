"""Chooses hosts for servers from the present state, and keeps the claims: the scheduler's door to the store.

The fleet is made inside the transaction, so a placement stands on the state that its commit is compared with.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from control.kernel import fleet
from control.kernel.database import Transaction
from control.kernel.fleet import Placed, Refused, Wanted
from control.placement.neighbours import Demands
from protos.internal.v1.fleet_pb2 import Claim, HostRecord
from scheduler.fleet import Fleet, single_row
from scheduler.types import Held, Host, Inventory, Placement, Refusal, Request, Shape, amounts

#: Over-commit where the configuration says nothing, as Nova has it.
RATIOS: Mapping[str, float] = {"vcpus": 4.0, "ram_mib": 1.0, "disk_gib": 1.0}

#: What is kept back of each host for itself.
RESERVED: Mapping[str, int] = {"vcpus": 0, "ram_mib": 512, "disk_gib": 0}

CLASSES: Mapping[str, str] = {"VCPU": "vcpus", "MEMORY_MB": "ram_mib", "DISK_GB": "disk_gib"}


@dataclass(frozen=True)
class FleetPlacer:
    """Placement over kernel.fleet (control.compute.neighbours.Placer, by shape)."""

    demands: Demands
    ratios: Mapping[str, float] = field(default_factory=lambda: RATIOS)
    reserved: Mapping[str, int] = field(default_factory=lambda: RESERVED)

    def place(self, transaction: Transaction, wanted: Sequence[Wanted]) -> list[Placed | Refused]:
        """A host for each, in order, each seeing the claims of those before it; claimed in the transaction."""
        answers = self._answers(transaction, wanted)
        fleet.guard_aggregates(transaction)
        for need, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, Placement):
                transaction.put(fleet.CLAIM, _claim(need, answer))
                transaction.guard_exists(fleet.HOST, answer.host)
        return list(map(_said, answers))

    def dry_run(self, transaction: Transaction, wanted: Sequence[Wanted]) -> list[Placed | Refused]:
        """What `place` would answer. Nothing is claimed."""
        return list(map(_said, self._answers(transaction, wanted)))

    def release(self, transaction: Transaction, server_id: str) -> None:
        """Give a server's claim back; nothing where it has none."""
        transaction.delete(fleet.CLAIM, server_id)

    def _answers(self, transaction: Transaction, wanted: Sequence[Wanted]) -> list[Placement | Refusal]:
        groups = {need.group.id: need.group for need in wanted if need.group}
        records = sorted(transaction.rows(fleet.HOST), key=lambda record: record.name)
        hosts = Fleet((self.host(transaction, record) for record in records), groups=groups.values())
        for claim in transaction.rows(fleet.CLAIM):
            if claim.host in hosts.hosts:
                demand = self.demands.demand_of(claim.server_id) if groups else None
                group = demand[0].group if demand and demand[0].group in groups else ""
                hosts.hold(Request(claim.server_id, Shape(()), group), claim.host,
                           [Held(part.row, amounts(part.amounts)) for part in claim.parts])
        return [hosts.place(need.request, explain=True) for need in wanted]

    def host(self, transaction: Transaction, record: HostRecord) -> Host:
        """A host as the scheduler sees it."""
        inventories = {name: Inventory(getattr(record.inventory, item), self.reserved[item], self.ratios[item])
                       for name, item in CLASSES.items()}
        return single_row(record.name, inventories, zone=fleet.zone_of(transaction, record),
                          aggregates=frozenset(row.id for row in transaction.rows(fleet.AGGREGATE, "host", record.name)),
                          closed="disabled" if record.disabled else "" if record.up else "down")


def _said(answer: Placement | Refusal) -> Placed | Refused:
    if isinstance(answer, Refusal):
        return Refused(answer)
    assert answer.choice is not None, "it was asked to explain"
    return Placed(answer.host, answer.choice)


def _claim(need: Wanted, placement: Placement) -> Claim:
    held: dict[str, int] = {}
    for part in placement.held:
        for name, amount in part.amounts:
            held[name] = held.get(name, 0) + amount
    return Claim(
        server_id=need.request.id, host=placement.host, project_id=need.project_id,
        vcpus=held.get("VCPU", 0) + held.get("PCPU", 0), ram_mib=held.get("MEMORY_MB", 0), disk_gib=held.get("DISK_GB", 0),
        parts=[Claim.Part(row=part.row, amounts=dict(part.amounts)) for part in placement.held])
