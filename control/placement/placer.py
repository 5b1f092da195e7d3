"""Chooses hosts for servers from the present state, and keeps what they hold: the scheduler's door to the store.

The snapshot is taken inside the transaction, so a placement stands on the state that its commit is compared with.
"""
from collections.abc import Sequence
from dataclasses import dataclass

from control.kernel import fleet
from control.kernel.database import Transaction
from control.kernel.fleet import DISK_GB, HOST_CLASSES, MEMORY_MB, PROVIDER, USAGE, VCPU, Placed, Refused, Wanted
from control.placement import ledger
from control.placement.model import capacity
from protos.internal.v1.fleet_pb2 import HostRecord, Provider, Usage
from scheduler.planner import Snapshot
from scheduler.types import Amounts, Host, Placement, Request

#: What a server is as a consumer.
INSTANCE = "INSTANCE"


@dataclass(frozen=True)
class FleetPlacer:
    """Placement over kernel.fleet (control.compute.neighbours.Placer, by shape)."""

    policy: str = "spread"

    def place(self, transaction: Transaction, wanted: Sequence[Wanted]) -> list[Placed | Refused]:
        """A host for each, in order, each seeing the allocations of those before it; allocated in the transaction."""
        hosts = {host.name: host for host in transaction.rows(fleet.HOST)}
        providers = {provider.uuid: provider for provider in transaction.rows(PROVIDER)}
        usages = {usage.provider_uuid: usage for usage in transaction.rows(USAGE)}
        snapshot = Snapshot(as_host(host, providers[host.id], usages.get(host.id))
                            for host in hosts.values() if host.id in providers)
        requests = [Request(need.server_id, (need.vcpus, need.ram_mib, need.disk_gib), need.zone, need.host, self.policy)
                    for need in wanted]
        decisions: list[Placed | Refused] = []
        for need, decision in zip(wanted, snapshot.plan(requests), strict=True):
            if isinstance(decision, Placement):
                amounts = {VCPU: need.vcpus, MEMORY_MB: need.ram_mib, DISK_GB: need.disk_gib}
                ledger.replace(transaction, [ledger.allocation(
                    need.server_id, need.project_id, need.user_id, INSTANCE,
                    {hosts[decision.host].id: {name: amount for name, amount in amounts.items() if amount}})], checked=False)
                transaction.guard_exists(fleet.HOST, decision.host)
                decisions.append(Placed(decision.host))
            else:
                decisions.append(Refused(decision.reason()))
        return decisions

    def release(self, transaction: Transaction, server_id: str) -> None:
        """Give back what a server holds; nothing where it holds nothing."""
        ledger.release(transaction, server_id)


def as_host(record: HostRecord, provider: Provider, usage: Usage | None) -> Host:
    """A host as the scheduler sees it: of its root provider, what every server takes."""
    def amounts(of) -> Amounts:
        vcpus, ram, disk = (of(name) for name in HOST_CLASSES)
        return vcpus, ram, disk

    return Host(
        record.name, capacity=amounts(lambda name: capacity(provider.inventories[name]) if name in provider.inventories else 0),
        used=amounts(lambda name: usage.used.get(name, 0) if usage is not None else 0), zone=fleet.zone_of(record),
        open=record.up and not record.disabled, closed_because="disabled" if record.disabled else "down")
