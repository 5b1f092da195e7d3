"""Who may see and change what of the network.

A caller sees what its project owns; networks also when they are shared or external; ports also on networks that it owns.
What a caller may not see does not exist for it.
"""

from typing import Any

from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Denied, Invalid
from control.network.model import FLOATING_IP, GROUP, NETWORK, PORT, ROUTER, SUBNET, absent
from protos.network.v1.floatingips_pb2 import FloatingIp
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.ports_pb2 import Port
from protos.network.v1.routers_pb2 import Router
from protos.network.v1.security_groups_pb2 import SecurityGroup
from protos.network.v1.subnets_pb2 import Subnet

Reader = Database | Transaction


def owns(caller: Caller, resource: Any) -> bool:
    """Whether the caller may change a resource."""
    return caller.is_admin or (bool(caller.project_id) and resource.project_id == caller.project_id)


def sees_network(caller: Caller, network: Network) -> bool:
    return owns(caller, network) or network.shared or network.router_external


def sees_port(reader: Reader, caller: Caller, port: Port) -> bool:
    if owns(caller, port):
        return True
    network = reader.get(NETWORK, port.network_id)
    return network is not None and owns(caller, network)


def network_of(reader: Reader, caller: Caller, network_id: str) -> Network:
    """A network that the caller may see, or NotFound."""
    network = reader.get(NETWORK, network_id)
    if network is None or not sees_network(caller, network):
        raise absent("network", network_id)
    return network


def subnet_of(reader: Reader, caller: Caller, subnet_id: str) -> Subnet:
    """A subnet of a network that the caller may see, or NotFound."""
    subnet = reader.get(SUBNET, subnet_id)
    network = reader.get(NETWORK, subnet.network_id) if subnet else None
    if subnet is None or network is None or not sees_network(caller, network):
        raise absent("subnet", subnet_id)
    return subnet


def port_of(reader: Reader, caller: Caller, port_id: str) -> Port:
    """A port that the caller may see, or NotFound."""
    port = reader.get(PORT, port_id)
    if port is None or not sees_port(reader, caller, port):
        raise absent("port", port_id)
    return port


def router_of(reader: Reader, caller: Caller, router_id: str) -> Router:
    router = reader.get(ROUTER, router_id)
    if router is None or not owns(caller, router):
        raise absent("router", router_id)
    return router


def floating_of(reader: Reader, caller: Caller, floating_id: str) -> FloatingIp:
    floating = reader.get(FLOATING_IP, floating_id)
    if floating is None or not owns(caller, floating):
        raise absent("floatingip", floating_id)
    return floating


def group_of(reader: Reader, caller: Caller, group_id: str) -> SecurityGroup:
    group = reader.get(GROUP, group_id)
    if group is None or not owns(caller, group):
        raise absent("security_group", group_id)
    return group


def require_owner(caller: Caller, noun: str, resource: Any) -> None:
    """Raise Denied where the caller may see a resource but not change it."""
    if not owns(caller, resource):
        raise Denied(
            f"network.{noun}.owner",
            f"The {noun} {resource.id} belongs to another project: only that project or an admin may change it.",
        )


def owner_of(caller: Caller, resource: Any) -> str:
    """The project that a new resource is to belong to: the one that it names, else the caller's."""
    wished = resource.project_id or resource.tenant_id
    if wished and resource.tenant_id and resource.tenant_id != wished:
        raise Invalid("network.project", "project_id and tenant_id name different projects; send one of them.")
    if wished and wished != caller.project_id and not caller.is_admin:
        raise Denied("network.project", "Only an admin may create resources for another project.")
    if len(wished) > 64:
        raise Invalid("network.project", "project_id has more than 64 characters.")
    if not (wished or caller.project_id):
        raise Invalid("network.project", "The token is not scoped to a project: name one with project_id.")
    return wished or caller.project_id
