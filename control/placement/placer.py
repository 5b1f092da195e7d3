"""Chooses hosts for servers from the present state, and keeps the claims: the scheduler's door to the store.

The snapshot is taken inside the transaction, so a placement stands on the state that its commit is compared with.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from control.kernel import fleet
from control.kernel.database import Transaction
from control.kernel.fleet import Placed, Refused, Wanted
from protos.internal.v1.fleet_pb2 import Claim, HostRecord
from scheduler.types import Amounts, Host, Placement, Request

#: Over-commit where the configuration says nothing, as Nova has it.
RATIOS: Mapping[str, float] = {"vcpus": 4.0, "ram_mib": 1.0, "disk_gib": 1.0}

#: What is kept back of each host for itself.
RESERVED: Mapping[str, int] = {"vcpus": 0, "ram_mib": 512, "disk_gib": 0}


@dataclass(frozen=True)
class FleetPlacer:
    """Placement over kernel.fleet (control.compute.neighbours.Placer, by shape)."""

    ratios: Mapping[str, float] = field(default_factory=lambda: RATIOS)
    reserved: Mapping[str, int] = field(default_factory=lambda: RESERVED)
    policy: str = "spread"

    def place(self, transaction: Transaction, wanted: Sequence[Wanted]) -> list[Placed | Refused]:
        """A host for each, in order, each seeing the claims of those before it; claimed in the transaction."""
        from scheduler.planner import Snapshot  # with numpy, which only a cloud with servers needs
        snapshot = Snapshot(self.host(host, transaction.rows(fleet.CLAIM, "host", host.name))
                            for host in transaction.rows(fleet.HOST))
        requests = [Request(need.server_id, (need.vcpus, need.ram_mib, need.disk_gib), need.zone, need.host, self.policy)
                    for need in wanted]
        decisions: list[Placed | Refused] = []
        for need, decision in zip(wanted, snapshot.plan(requests), strict=True):
            if isinstance(decision, Placement):
                transaction.put(fleet.CLAIM, Claim(
                    server_id=need.server_id, host=decision.host, vcpus=need.vcpus, ram_mib=need.ram_mib,
                    disk_gib=need.disk_gib, project_id=need.project_id))
                transaction.guard_exists(fleet.HOST, decision.host)
                decisions.append(Placed(decision.host))
            else:
                decisions.append(Refused(decision.reason()))
        return decisions

    def release(self, transaction: Transaction, server_id: str) -> None:
        """Give a server's claim back; nothing where it has none."""
        transaction.delete(fleet.CLAIM, server_id)

    def host(self, record: HostRecord, claims: Sequence[Claim]) -> Host:
        """A host as the scheduler sees it."""
        inventory = record.inventory
        return Host(
            record.name, capacity=self.capacity(record),
            used=(sum(claim.vcpus for claim in claims), sum(claim.ram_mib for claim in claims),
                  sum(claim.disk_gib for claim in claims)),
            zone=inventory.availability_zone or fleet.DEFAULT_ZONE, open=record.up and not record.disabled,
            closed_because="disabled" if record.disabled else "down")

    def capacity(self, record: HostRecord) -> Amounts:
        """What may be claimed of a host in all."""
        total = {"vcpus": record.inventory.vcpus, "ram_mib": record.inventory.ram_mib, "disk_gib": record.inventory.disk_gib}
        vcpus, ram, disk = (int(max(total[name] - self.reserved[name], 0) * self.ratios[name])
                            for name in ("vcpus", "ram_mib", "disk_gib"))
        return vcpus, ram, disk
