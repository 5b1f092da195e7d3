"""The hosts there are, the providers of resources that they and others are, and what is allocated of those.

A host's record is written by the hosts service (inventory, up, who holds its stream, when it is fenced) and by compute (disabled,
forced down); its root provider goes with it in the
same commit. An allocation is written together with the usage of every provider that it touches (control/placement/ledger.py), a
server's in the commit that binds the server to its host or lets it go. Aggregates are
written by compute (control/compute/aggregates.py), each commit of them together with their sequence.
"""
from collections.abc import Collection
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict
from protos.internal.v1.fleet_pb2 import (
    AggregateSequence,
    Allocation,
    CustomName,
    HostAggregate,
    HostRecord,
    Provider,
    ProviderName,
    Usage,
)
from scheduler.types import Choice, Refusal, Request, ServerGroup

HOST = Kind("/fleet/hosts/", HostRecord, id_of=lambda host: (host.name,), indexes={
    "id": lambda host: (host.id,), "replica": lambda host: (host.replica,)})


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
AGGREGATE = Kind("/fleet/aggregates/", HostAggregate, indexes={"host": lambda aggregate: tuple(aggregate.hosts)})
AGGREGATE_SEQUENCE = Kind("/fleet/aggregate-sequence/", AggregateSequence, id_of=lambda _: ("last",))
KINDS = (HOST, PROVIDER, PROVIDER_NAME, USAGE, ALLOCATION, RESOURCE_CLASS, TRAIT, AGGREGATE, AGGREGATE_SEQUENCE)

DEFAULT_ZONE = "nova"

#: The resource classes that every host has some of, as the scheduler orders amounts.
VCPU, MEMORY_MB, DISK_GB = HOST_CLASSES = ("VCPU", "MEMORY_MB", "DISK_GB")


#: The metadata of an aggregate that is the zone of its hosts.
ZONE = "availability_zone"


def zone_of(reads: Database | Transaction, host: HostRecord) -> str:
    """The availability zone that a host belongs to: an aggregate's, else what its agent was told, else the default."""
    given = (aggregate.metadata[ZONE] for aggregate in reads.rows(AGGREGATE, "host", host.name) if ZONE in aggregate.metadata)
    return next(given, "") or host.inventory.availability_zone or DEFAULT_ZONE


def fence(host: HostRecord, now: Timestamp) -> None:
    """Note that nothing of a host's runs any more: what it ran may be started elsewhere."""
    host.up, host.replica, host.leased = False, "", False
    host.epoch += 1
    host.fenced_at.CopyFrom(now)
    host.updated_at.CopyFrom(now)


def lost_for_good(host: HostRecord) -> bool:
    """Whether a host is fenced, and no agent of it has come back yet."""
    return host.HasField("fenced_at") and not host.replica


def guard_aggregates(transaction: Transaction) -> None:
    """The commit is refused if any aggregate changes meanwhile."""
    transaction.guard_unchanged(AGGREGATE_SEQUENCE, "last")


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
    """What one server needs of a host. The request's id is the server's; `group` is the one that it names."""

    request: Request
    group: ServerGroup | None
    project_id: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Placed:
    """The host taken, and why."""

    host: str
    choice: Choice


@dataclass(frozen=True, slots=True)
class Refused:
    """No host fits. Without host names its reason is safe to show to the project."""

    refusal: Refusal
