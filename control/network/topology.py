"""The network, subnet and router that a project gets when it asks for any ("auto"), made on the default external network."""

from control.kernel.caller import Caller
from control.kernel.database import Transaction
from control.kernel.errors import Conflict
from control.network.addressing import Proposals
from control.network.attributes import in_use
from control.network.model import NETWORK, ROUTER, TOPOLOGY, USE
from control.network.networks import drop_network, new_network
from control.network.plugging import unplug
from control.network.routers import connect, drop_router, interfaces, new_router, set_gateway
from control.network.subnets import new_subnet
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.records_pb2 import TopologyRecord
from protos.network.v1.routers_pb2 import ExternalGatewayInfo, Router
from protos.network.v1.subnets_pb2 import Subnet

#: Networks are isolated, so every project may have the same prefix.
CIDR = "10.64.0.0/24"


def default_external(tx: Transaction) -> Network:
    """The external network that automatic topologies use. Raises Conflict where there is none."""
    for network in tx.rows(NETWORK, "public", "external"):
        if network.is_default:
            return network
    raise Conflict("network.topology.external", "Deployment error: No default router:external network.")


def ensure(tx: Transaction, proposals: Proposals, caller: Caller, project_id: str) -> TopologyRecord:
    """A project's topology, which is made if it is not there. Raises Conflict where it cannot be, Exhausted over quota."""
    record = tx.get(TOPOLOGY, project_id)
    if record is not None and tx.get(NETWORK, record.network_id) is not None:
        return record
    external = default_external(tx)
    made = build(tx, proposals, caller, project_id, external, "auto_allocated_network", "auto_allocated_router", CIDR)
    tx.put(TOPOLOGY, made)
    return made


def build(
    tx: Transaction,
    proposals: Proposals,
    caller: Caller,
    project_id: str,
    external: Network,
    network_name: str,
    router_name: str,
    cidr: str,
) -> TopologyRecord:
    """Make a network with a subnet and a router that leads out of it."""
    network = new_network(tx, proposals, Network(name=network_name), project_id)
    subnet = new_subnet(tx, proposals, network, Subnet(name=f"{network_name}-subnet", cidr=cidr), gateway_named=False)
    router = new_router(tx, Router(name=router_name), project_id)
    set_gateway(tx, proposals, caller, router, ExternalGatewayInfo(network_id=external.id))
    connect(tx, proposals, router, subnet)
    return TopologyRecord(project_id=project_id, network_id=network.id, subnet_id=subnet.id, router_id=router.id)


def disconnect(tx: Transaction, record: TopologyRecord) -> None:
    """Delete a topology's router, if it is still there. Raises Conflict while a port beside its own is on the network."""
    router = tx.get(ROUTER, record.router_id)
    if router is None:
        return
    ports = interfaces(tx, router.id)
    if len(tx.rows(USE, "thing", record.network_id)) > len([port for port in ports if port.network_id == record.network_id]):
        raise in_use("network", record.network_id, "There are one or more ports still in use on it.")
    for port in ports:
        unplug(tx, port)
    drop_router(tx, router, check=False)


def drop(tx: Transaction, record: TopologyRecord) -> None:
    """Delete a topology whose router is gone. Raises Conflict while a port is on the network."""
    network = tx.get(NETWORK, record.network_id)
    if network is not None:
        drop_network(tx, network)
    tx.delete(TOPOLOGY, record.project_id)
