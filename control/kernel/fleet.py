"""The hosts there are and what is claimed of them: read by whoever lists, places or serves hosts.

A host's record is written by the hosts service (inventory, up) and by compute (disabled); a claim only in the commit that
binds a server to its host or lets it go.
"""
from control.kernel.cache import Kind
from protos.internal.v1.fleet_pb2 import Claim, HostRecord

HOST = Kind("/fleet/hosts/", HostRecord, id_of=lambda host: (host.name,))
CLAIM = Kind("/fleet/claims/", Claim, id_of=lambda claim: (claim.server_id,), indexes={"host": lambda claim: (claim.host,)})
KINDS = (HOST, CLAIM)

DEFAULT_ZONE = "nova"


def zone_of(host: HostRecord) -> str:
    """The availability zone that a host belongs to."""
    return host.inventory.availability_zone or DEFAULT_ZONE
