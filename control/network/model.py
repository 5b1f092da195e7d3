"""Where the network's records stand, how they are found, and what a project may have of them: no I/O, no clock."""

from collections.abc import Mapping

from control.kernel.cache import Kind
from control.kernel.errors import NotFound
from protos.network.v1.floatingips_pb2 import FloatingIp
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.ports_pb2 import Port
from protos.network.v1.records_pb2 import (
    AllocationRecord,
    DefaultGroupRecord,
    FoundationRecord,
    TopologyRecord,
    UseRecord,
    VniRecord,
)
from protos.network.v1.routers_pb2 import Router
from protos.network.v1.security_groups_pb2 import SecurityGroup
from protos.network.v1.subnets_pb2 import Subnet

#: device_owner of the ports that the cloud holds itself.
DHCP, INTERFACE, GATEWAY, FLOATING = "network:dhcp", "network:router_interface", "network:router_gateway", "network:floatingip"
#: device_owner of servers' ports.
SERVER = "compute:nova"


def role(network_id: str, device_owner: str) -> str:
    """The value under which PORT's index "role" has a network's ports of one kind."""
    return f"{network_id}/{device_owner}"


NETWORK: Kind[Network] = Kind(
    "/network/networks/",
    Network,
    indexes={
        "project": lambda network: (network.project_id,),
        "public": lambda network: (["shared"] if network.shared else []) + (["external"] if network.router_external else []),
    },
)
VNI: Kind[VniRecord] = Kind("/network/vnis/", VniRecord, id_of=lambda record: (str(record.vni),))
SUBNET: Kind[Subnet] = Kind("/network/subnets/", Subnet, indexes={"network": lambda subnet: (subnet.network_id,)})
ALLOCATION: Kind[AllocationRecord] = Kind(
    "/network/allocations/",
    AllocationRecord,
    id_of=lambda record: (record.subnet_id, record.ip),
    indexes={"subnet": lambda record: (record.subnet_id,)},
    packed=True,
)
PORT: Kind[Port] = Kind(
    "/network/ports/",
    Port,
    indexes={
        "project": lambda port: (port.project_id,),
        "network": lambda port: (port.network_id,),
        "device": lambda port: (port.device_id,) if port.device_id else (),
        "role": lambda port: (role(port.network_id, port.device_owner),),
        "host": lambda port: (port.binding_host_id,) if port.binding_host_id else (),
        "group": lambda port: port.security_groups,
    },
)
ROUTER: Kind[Router] = Kind(
    "/network/routers/",
    Router,
    indexes={
        "project": lambda router: (router.project_id,),
        "gateway_host": lambda router: (router.gateway_host,) if router.gateway_host else (),
        "external": lambda router: (router.external_gateway_info.network_id,) if router.gateway_port_id else (),
    },
)
FLOATING_IP: Kind[FloatingIp] = Kind(
    "/network/floatingips/",
    FloatingIp,
    indexes={
        "project": lambda floating: (floating.project_id,),
        "port": lambda floating: (floating.port_id,) if floating.port_id else (),
        "router": lambda floating: (floating.router_id,) if floating.router_id else (),
    },
)
GROUP: Kind[SecurityGroup] = Kind(
    "/network/groups/",
    SecurityGroup,
    indexes={
        "project": lambda group: (group.project_id,),
        "rule": lambda group: [rule.id for rule in group.security_group_rules],
        "remote": lambda group: sorted({rule.remote_group_id for rule in group.security_group_rules if rule.remote_group_id}),
    },
)
DEFAULT_GROUP: Kind[DefaultGroupRecord] = Kind(
    "/network/default-groups/", DefaultGroupRecord, id_of=lambda record: (record.project_id,)
)
USE: Kind[UseRecord] = Kind(
    "/network/uses/",
    UseRecord,
    id_of=lambda record: (record.thing, record.user),
    indexes={"thing": lambda record: (record.thing,)},
    packed=True,
)
TOPOLOGY: Kind[TopologyRecord] = Kind("/network/topologies/", TopologyRecord, id_of=lambda record: (record.project_id,))

FOUNDATION: Kind[FoundationRecord] = Kind("/network/foundations/", FoundationRecord, id_of=lambda record: (record.name,))

KINDS = (NETWORK, VNI, SUBNET, ALLOCATION, PORT, ROUTER, FLOATING_IP, GROUP, DEFAULT_GROUP, USE, TOPOLOGY, FOUNDATION)

#: Service name of the quota ledgers, and what a project may have unless an operator says otherwise.
SERVICE = "network"
QUOTA: Mapping[str, int] = {
    "network": 100,
    "subnet": 100,
    "port": 500,
    "router": 10,
    "floatingip": 50,
    "security_group": 10,
    "security_group_rule": 100,
}

#: Bounds of one record and of one commit (a network is deleted with its subnets, a group with its rules, in one).
MAX_SUBNETS, MAX_FIXED_IPS, MAX_GROUPS, MAX_PAIRS, MAX_ROUTES, MAX_HOST_ROUTES, MAX_NAMESERVERS, MAX_POOLS = (
    24,
    16,
    16,
    10,
    30,
    20,
    5,
    20,
)
MAX_RULES, MAX_REMOTES, MAX_TAGS = 200, 50, 50

#: Resources that one call may make: with all that belongs to them they fit into one commit.
MAX_BATCH = 16

#: The domain of a network that names none.
DOMAIN = "brume.internal"


def absent(noun: str, identifier: str) -> NotFound:
    """The NotFound of a noun ("network"): the same whether the thing is not there or not to be seen."""
    return NotFound(f"network.{noun}.missing", f"{noun.replace('_', ' ').capitalize()} {identifier[:80]} could not be found.")
