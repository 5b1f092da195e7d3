"""The hosts there are, the providers of resources that they and others are, and what is allocated of those.

A host's record is written by the hosts service (inventory, up) and by compute (disabled); its root provider goes with it in the
same commit. An allocation is written together with the usage of every provider that it touches (control/placement/ledger.py), a
server's in the commit that binds the server to its host or lets it go.
"""
from collections.abc import Collection
from dataclasses import dataclass

from control.kernel.cache import Kind
from control.kernel.database import Transaction
from control.kernel.errors import Conflict
from protos.internal.v1.fleet_pb2 import Allocation, CustomName, HostRecord, Provider, ProviderName, Usage

HOST = Kind("/fleet/hosts/", HostRecord, id_of=lambda host: (host.name,), indexes={"id": lambda host: (host.id,)})


def _custom(names) -> list[str]:
    return [name for name in names if name.startswith("CUSTOM_")]


PROVIDER = Kind("/fleet/providers/", Provider, id_of=lambda provider: (provider.uuid,), indexes={
    "root": lambda provider: (provider.root_uuid,),
    "parent": lambda provider: (provider.parent_uuid,) if provider.parent_uuid else (),
    "custom": lambda provider: _custom([*provider.inventories, *provider.traits])})
PROVIDER_NAME = Kind("/fleet/provider-names/", ProviderName, id_of=lambda name: (name.name,))
USAGE = Kind("/fleet/usages/", Usage, id_of=lambda usage: (usage.provider_uuid,))
ALLOCATION = Kind("/fleet/allocations/", Allocation, id_of=lambda allocation: (allocation.consumer_uuid,), indexes={
    "provider": lambda allocation: list(allocation.providers), "project": lambda allocation: (allocation.project_id,)})
RESOURCE_CLASS = Kind("/fleet/resource-classes/", CustomName, id_of=lambda name: (name.name,))
TRAIT = Kind("/fleet/traits/", CustomName, id_of=lambda name: (name.name,))
KINDS = (HOST, PROVIDER, PROVIDER_NAME, USAGE, ALLOCATION, RESOURCE_CLASS, TRAIT)

DEFAULT_ZONE = "nova"

#: The resource classes that every host has some of, as the scheduler orders amounts.
VCPU, MEMORY_MB, DISK_GB = HOST_CLASSES = ("VCPU", "MEMORY_MB", "DISK_GB")


def zone_of(host: HostRecord) -> str:
    """The availability zone that a host belongs to."""
    return host.inventory.availability_zone or DEFAULT_ZONE


def delete_host(transaction: Transaction, host: HostRecord, leaving: Collection[str]) -> None:
    """Forget a host, with its tree of providers.

    Args:
      leaving: the servers whose allocations there may be left; they are given back with the servers.

    Raises Conflict while another consumer holds something of it.
    """
    transaction.delete(HOST, host.name)
    for provider in transaction.rows(PROVIDER, "root", host.id):
        for allocation in transaction.rows(ALLOCATION, "provider", provider.uuid):
            if allocation.consumer_uuid not in leaving:
                raise Conflict("fleet.provider.in_use", f"{allocation.consumer_uuid} holds an allocation of {provider.name}, "
                                                        f"which goes with host {host.name}: give it back first.")
        transaction.delete(PROVIDER, provider.uuid)
        transaction.delete(PROVIDER_NAME, provider.name)
        transaction.guard_unchanged(USAGE, provider.uuid)
        transaction.delete(USAGE, provider.uuid)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What one server needs of a host."""

    server_id: str
    project_id: str
    vcpus: int
    ram_mib: int
    disk_gib: int
    zone: str = ""             # "" for any
    host: str = ""             # only this one
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class Placed:
    host: str


@dataclass(frozen=True, slots=True)
class Refused:
    """No host fits. `reason` counts hosts per constraint and names the nearest miss; safe to show to the project."""

    reason: str
