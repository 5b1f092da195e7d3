"""The hosts there are and what is claimed of them: read by whoever lists, places or serves hosts.

A host's record is written by the hosts service (inventory, up) and by compute (disabled); a claim only in the commit that
binds a server to its host or lets it go.
"""
from dataclasses import dataclass

from control.kernel.cache import Kind
from protos.internal.v1.fleet_pb2 import Claim, HostRecord

HOST = Kind("/fleet/hosts/", HostRecord, id_of=lambda host: (host.name,))
CLAIM = Kind("/fleet/claims/", Claim, id_of=lambda claim: (claim.server_id,), indexes={"host": lambda claim: (claim.host,)})
KINDS = (HOST, CLAIM)

DEFAULT_ZONE = "nova"


def zone_of(host: HostRecord) -> str:
    """The availability zone that a host belongs to."""
    return host.inventory.availability_zone or DEFAULT_ZONE


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


@dataclass(frozen=True, slots=True)
class Placed:
    host: str


@dataclass(frozen=True, slots=True)
class Refused:
    """No host fits. `reason` counts hosts per constraint and names the nearest miss; safe to show to the project."""

    reason: str
