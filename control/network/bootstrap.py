"""What a new cloud's network begins with: a public network, and the demo project's own behind a router."""

from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.network import topology
from control.network.addressing import Proposals
from control.network.groups import ensure_default
from control.network.model import FOUNDATION, SERVICE
from control.network.networks import new_network
from control.network.subnets import new_subnet
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.records_pb2 import FoundationRecord
from protos.network.v1.subnets_pb2 import Subnet

PUBLIC_CIDR, PRIVATE_CIDR = "172.24.4.0/24", "10.0.0.0/24"


async def bootstrap(
    database: Database,
    *,
    admin_project_id: str = "",
    demo_project_id: str = "",
    public_cidr: str = PUBLIC_CIDR,
    private_cidr: str = PRIVATE_CIDR,
) -> None:
    """Make the external network "public", and for the demo project the network "private" behind the router "router".

    Each is made once in a cloud's life: what was taken away stays away. Safe to repeat.
    The public network belongs to the admin project; without one, to the admins alone. Raises Invalid for a bad CIDR.
    """
    proposals = Proposals()
    await database.transact(lambda tx: _public(tx, proposals, admin_project_id, public_cidr))
    if demo_project_id:
        await database.transact(
            lambda tx: _private(tx, proposals, demo_project_id, private_cidr), serial=quota.serial(SERVICE, demo_project_id)
        )


def _public(tx: Transaction, proposals: Proposals, project_id: str, cidr: str) -> None:
    if not _begin(tx, "public"):
        return
    network = new_network(tx, proposals, Network(name="public", router_external=True, is_default=True), project_id)
    new_subnet(tx, proposals, network, Subnet(name="public-subnet", cidr=cidr, enable_dhcp=False), gateway_named=False)


def _private(tx: Transaction, proposals: Proposals, project_id: str, cidr: str) -> None:
    if not _begin(tx, f"private {project_id}"):
        return
    ensure_default(tx, project_id)
    caller = Caller(user_id="", project_id=project_id)
    topology.build(tx, proposals, caller, project_id, topology.default_external(tx), "private", "router", cidr)


def _begin(tx: Transaction, name: str) -> bool:
    """Whether a part is still to be made; says in the transaction that it was."""
    if tx.get(FOUNDATION, name) is not None:
        return False
    tx.put(FOUNDATION, FoundationRecord(name=name))
    return True
