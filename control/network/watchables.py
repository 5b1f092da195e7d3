"""The network's kinds that can be watched: who has them in their lists, and what else is shown with them."""

from collections.abc import Iterable

from control.kernel.database import Database
from control.kernel.watchable import EVERYBODY, Reader, Related, Watchable, project
from control.network import floating_ips, networks, ports, routers, subnets
from control.network.model import FLOATING_IP, GROUP, NETWORK, PORT, ROUTER, SUBNET
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.ports_pb2 import Port
from protos.network.v1.subnets_pb2 import Subnet


def watchables(database: Database) -> list[Watchable]:
    """What users of the network can watch."""
    return [
        Watchable(
            "networks",
            NETWORK,
            "/network.v1.Networks/ListNetworks",
            lambda network, call: networks.seen(network, call.caller),
            audience=lambda reader, network: _sees_network(network),
        ),
        Watchable(
            "subnets",
            SUBNET,
            "/network.v1.Subnets/ListSubnets",
            lambda subnet, call: subnets.seen(database, subnet),
            audience=_sees_subnet,
            related=[
                Related(
                    NETWORK,
                    lambda reader, network: map(SUBNET.key_of, reader.rows(SUBNET, "network", network.id)),
                    lambda network: (network.project_id, network.shared, network.router_external),
                )
            ],
        ),
        Watchable(
            "ports",
            PORT,
            "/network.v1.Ports/ListPorts",
            lambda port, call: ports.seen(database, port, call.caller),
            audience=_sees_port,
            candidates=_ports_of,
            related=[
                Related(
                    NETWORK,
                    lambda reader, network: map(PORT.key_of, reader.rows(PORT, "network", network.id)),
                    lambda network: (network.project_id, network.dns_domain),
                )
            ],
        ),
        Watchable(
            "routers",
            ROUTER,
            "/network.v1.Routers/ListRouters",
            lambda router, call: routers.seen(router, call.caller),
            audience=lambda reader, router: [project(router.project_id)],
            candidates=lambda reader, project_id: reader.rows(ROUTER, "project", project_id),
        ),
        Watchable(
            "floatingips",
            FLOATING_IP,
            "/network.v1.FloatingIps/ListFloatingIps",
            lambda floating, call: floating_ips.seen(database, floating),
            audience=lambda reader, floating: [project(floating.project_id)],
            candidates=lambda reader, project_id: reader.rows(FLOATING_IP, "project", project_id),
            related=[
                Related(
                    PORT,
                    lambda reader, port: map(FLOATING_IP.key_of, reader.rows(FLOATING_IP, "port", port.id)),
                    lambda port: floating_ips.details(port),
                )
            ],
        ),
        Watchable(
            "security-groups",
            GROUP,
            "/network.v1.SecurityGroups/ListSecurityGroups",
            lambda group, call: group,
            audience=lambda reader, group: [project(group.project_id)],
            candidates=lambda reader, project_id: reader.rows(GROUP, "project", project_id),
        ),
    ]


def _sees_network(network: Network) -> list[str]:
    own = project(network.project_id)
    return [EVERYBODY, own] if network.shared or network.router_external else [own]


def _sees_subnet(reader: Reader, subnet: Subnet) -> list[str]:
    network = reader.get(NETWORK, subnet.network_id)
    return _sees_network(network) if network is not None else []


def _sees_port(reader: Reader, port: Port) -> list[str]:
    network = reader.get(NETWORK, port.network_id)
    owners = [port.project_id] if network is None else [port.project_id, network.project_id]
    return [project(owner) for owner in owners if owner]


def _ports_of(reader: Reader, project_id: str) -> Iterable[Port]:
    yield from reader.rows(PORT, "project", project_id)
    for network in reader.rows(NETWORK, "project", project_id):
        yield from reader.rows(PORT, "network", network.id)
