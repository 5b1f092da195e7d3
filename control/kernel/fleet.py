"""The hosts there are and what is claimed of them: read by whoever lists, places or serves hosts.

A host's record is written by the hosts service (inventory, up) and by compute (disabled); a claim only in the commit that
binds a server to its host or lets it go; aggregates by compute (control/compute/aggregates.py), each commit of them together with
their sequence.
"""
from dataclasses import dataclass

from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from protos.internal.v1.fleet_pb2 import AggregateSequence, Claim, HostAggregate, HostRecord
from scheduler.types import Choice, Refusal, Request, ServerGroup

HOST = Kind("/fleet/hosts/", HostRecord, id_of=lambda host: (host.name,))
CLAIM = Kind("/fleet/claims/", Claim, id_of=lambda claim: (claim.server_id,), indexes={"host": lambda claim: (claim.host,)})
AGGREGATE = Kind("/fleet/aggregates/", HostAggregate, indexes={"host": lambda aggregate: tuple(aggregate.hosts)})
AGGREGATE_SEQUENCE = Kind("/fleet/aggregate-sequence/", AggregateSequence, id_of=lambda _: ("last",))
KINDS = (HOST, CLAIM, AGGREGATE, AGGREGATE_SEQUENCE)

DEFAULT_ZONE = "nova"


#: The metadata of an aggregate that is the zone of its hosts.
ZONE = "availability_zone"


def zone_of(reads: Database | Transaction, host: HostRecord) -> str:
    """The availability zone that a host belongs to: an aggregate's, else what its agent was told, else the default."""
    given = (aggregate.metadata[ZONE] for aggregate in reads.rows(AGGREGATE, "host", host.name) if ZONE in aggregate.metadata)
    return next(given, "") or host.inventory.availability_zone or DEFAULT_ZONE


def guard_aggregates(transaction: Transaction) -> None:
    """The commit is refused if any aggregate changes meanwhile."""
    transaction.guard_unchanged(AGGREGATE_SEQUENCE, "last")


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
