"""The root providers of hosts: made and refreshed from what agents report (control.hosts.neighbours.Inventories, by shape).

A report says totals; what is reserved and over-committed is the operator's, from the first report on.
"""
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from control.kernel.database import Transaction
from control.kernel.errors import Conflict
from control.kernel.fleet import DISK_GB, MEMORY_MB, PROVIDER, PROVIDER_NAME, USAGE, VCPU
from control.placement import trees
from protos.internal.v1.fleet_pb2 import HostRecord, Provider, ProviderInventory

#: Over-commit where the configuration says nothing, as Nova has it.
RATIOS: Mapping[str, float] = {VCPU: 4.0, MEMORY_MB: 1.0, DISK_GB: 1.0}

#: What is kept back of each host for itself.
RESERVED: Mapping[str, int] = {VCPU: 0, MEMORY_MB: 512, DISK_GB: 0}


@dataclass(frozen=True)
class HostProviders:
    """`ratios` and `reserved`: what new inventories get, by resource class."""

    ratios: Mapping[str, float] = field(default_factory=lambda: RATIOS)
    reserved: Mapping[str, int] = field(default_factory=lambda: RESERVED)

    def new_id(self, transaction: Transaction, name: str) -> str:
        """The id of a host that was not there before: that of the root provider which bears its name already, else a new one.

        Raises Conflict where a provider below another one bears the name.
        """
        taken = transaction.get(PROVIDER_NAME, name)
        if taken is None:
            return str(uuid.uuid4())
        if trees.require(transaction, taken.uuid).parent_uuid:
            raise Conflict("host.name", f"The resource provider {taken.uuid} has the name of host {name} and is a part of "
                                        "another one: rename it.")
        return taken.uuid

    def refresh(self, transaction: Transaction, host: HostRecord) -> None:
        """Make or change a host's root provider after the host's own report; nothing where it is like that."""
        provider = transaction.get(PROVIDER, host.id) or trees.create(transaction, host.id, host.name)
        before = Provider()
        before.CopyFrom(provider)
        usage = transaction.get(USAGE, host.id)
        reported = {VCPU: host.inventory.vcpus, MEMORY_MB: host.inventory.ram_mib, DISK_GB: host.inventory.disk_gib}
        for name, total in reported.items():
            if total > 0:
                self._set_total(provider, name, total)
            elif usage is None or not usage.used.get(name):
                provider.inventories.pop(name, None)
        if provider != before:
            trees.changed(transaction, provider)
            transaction.guard_unchanged(USAGE, host.id)

    def _set_total(self, provider: Provider, name: str, total: int) -> None:
        if name not in provider.inventories:
            provider.inventories[name].CopyFrom(ProviderInventory(
                reserved=min(self.reserved[name], total), min_unit=1, step_size=1, allocation_ratio=self.ratios[name]))
            provider.inventories[name].max_unit = total
        inventory = provider.inventories[name]
        if inventory.max_unit == inventory.total:      # as the last report said, not as an operator did
            inventory.max_unit = total
        inventory.total = total
