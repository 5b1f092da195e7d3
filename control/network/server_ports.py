"""The ports of servers, as compute makes, binds and gives them back inside its own decisions (its Ports protocol)."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound
from control.kernel.interfaces import Address, PortRequest
from control.kernel.watchable import Related
from control.network import topology
from control.network.access import owns, port_of
from control.network.addressing import Proposals
from control.network.attributes import stamp
from control.network.groups import ensure_default, named_groups
from control.network.model import FLOATING_IP, GROUP, MAX_GROUPS, NETWORK, PORT, SERVER, SUBNET
from control.network.networks import visible
from control.network.plugging import bind, plug, unplug
from control.network.ports import usable_network
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.ports_pb2 import FixedIp, Port

#: Records of one server's ports at most, so that they fit into a commit beside the server's own and, on the way out, their
#: floating IPs.
MAX_WRITES = 72


class ServerPorts:
    """control.compute.neighbours.Ports, by shape, over the cache and the caller's transactions."""

    def __init__(self, database: Database):
        self._database = database
        self._proposals = Proposals()

    def create(
        self,
        transaction: Transaction,
        caller: Caller,
        server_id: str,
        hostname: str,
        wanted: Sequence[PortRequest],
        security_groups: Sequence[str],
    ) -> list[str]:
        """Make or adopt a new server's ports; a request that names nothing is for the project's automatic network."""
        if len(security_groups) > MAX_GROUPS:
            raise Invalid("network.security_groups", f"A server has at most {MAX_GROUPS} security groups.")
        if len(wanted) * (4 + len(security_groups)) > MAX_WRITES:
            raise Invalid(
                "network.interfaces", f"{len(wanted)} interfaces with {len(security_groups)} security groups each are too many."
            )
        ids: list[str] = []
        for position, request in enumerate(wanted, start=1):
            if request.port_id:
                port = _adopt(transaction, caller, request.port_id, hostname)
            else:
                port = self._make(transaction, caller, request, hostname, security_groups, server_id, position)
            port.device_id, port.device_owner, port.position = server_id, SERVER, position
            stamp(port)
            transaction.put(PORT, port)
            ids.append(port.id)
        return ids

    def automatic(self, caller: Caller) -> list[PortRequest]:
        """The one network that the caller can use; where there is none, a request for one that create() makes."""
        networks = [
            network
            for network in visible(self._database, caller)
            if not network.router_external and (network.shared or network.project_id == caller.project_id)
        ]
        if len(networks) > 1:
            raise Conflict(
                "network.automatic",
                f"Multiple possible networks found ({', '.join(sorted(n.name or n.id for n in networks))}), "
                "use a Network ID to be more specific.",
            )
        if networks:
            return [PortRequest(network_id=networks[0].id)]
        topology.default_external(Transaction(self._database.cache))
        return [PortRequest()]

    def bind(self, transaction: Transaction, server_id: str, host: str) -> None:
        for port in _ports_of(transaction, server_id):
            if port.binding_host_id != host:
                bind(port, host)
                port.status = "DOWN"
                stamp(port)
                transaction.put(PORT, port)

    def release(self, transaction: Transaction, server_id: str) -> None:
        for port in _ports_of(transaction, server_id):
            if port.made_for_server:
                unplug(transaction, port)
                continue
            bind(port, "")
            port.status = "DOWN"
            for name in ("device_id", "device_owner", "position"):
                port.ClearField(name)
            stamp(port)
            transaction.put(PORT, port)

    def ids(self, server_id: str) -> list[str]:
        return [port.id for port in self._of(server_id)]

    def addresses(self, server_id: str) -> list[Address]:
        found = []
        for port in self._of(server_id):
            network = self._database.get(NETWORK, port.network_id)
            name = network.name if network else port.network_id
            floating = {
                leading.fixed_ip_address: leading.floating_ip_address
                for leading in self._database.cache.by(FLOATING_IP, "port", port.id)
            }
            for fixed in port.fixed_ips:
                version = 6 if ":" in fixed.ip_address else 4
                found.append(
                    Address(
                        name,
                        fixed.ip_address,
                        version,
                        port.mac_address,
                        "fixed",
                        port.id,
                        port.network_id,
                        fixed.subnet_id,
                        port.status,
                    )
                )
                if fixed.ip_address in floating:
                    found.append(Address(name, floating[fixed.ip_address], 4, port.mac_address, "floating", port.id))
        return found

    def security_groups(self, server_id: str) -> list[str]:
        groups = [self._database.get(GROUP, group_id) for port in self._of(server_id) for group_id in port.security_groups]
        return list(dict.fromkeys(group.name for group in groups if group is not None))

    def shown_with_servers(self) -> Sequence[Related]:
        return [
            Related(PORT, lambda reader, port: _servers([port]), _shown_of_port),
            Related(
                FLOATING_IP,
                lambda reader, floating: _servers([reader.get(PORT, floating.port_id)] if floating.port_id else []),
                lambda floating: (floating.port_id, floating.fixed_ip_address, floating.floating_ip_address),
            ),
            Related(
                NETWORK,
                lambda reader, network: _servers(reader.rows(PORT, "network", network.id)),
                lambda network: network.name,
            ),
            Related(GROUP, lambda reader, group: _servers(reader.rows(PORT, "group", group.id)), lambda group: group.name),
        ]

    def wired(self, server_id: str, reads: Transaction | None = None) -> bool:
        return all(port.status == "ACTIVE" for port in (reads or self._database).rows(PORT, "device", server_id) if port.position)

    def bound(self, transaction: Transaction) -> Iterator[tuple[str, str, str]]:
        for port in transaction.rows(PORT):
            if port.device_owner == SERVER and port.position:
                yield port.id, port.device_id, port.binding_host_id

    def _of(self, server_id: str) -> list[Port]:
        ports = [port for port in self._database.cache.by(PORT, "device", server_id) if port.position]
        return sorted(ports, key=lambda port: port.position) if len(ports) > 1 else ports

    def _make(
        self,
        tx: Transaction,
        caller: Caller,
        request: PortRequest,
        hostname: str,
        names: Sequence[str],
        server_id: str,
        position: int,
    ) -> Port:
        network = self._network(tx, caller, request)
        if not tx.rows(SUBNET, "network", network.id):
            raise Invalid("network.server.subnet", f"Network {network.id} requires a subnet in order to boot instances on.")
        port = Port(
            project_id=caller.project_id,
            network_id=network.id,
            device_id=server_id,
            device_owner=SERVER,
            dns_name=hostname,
            port_security_enabled=network.port_security_enabled,
            made_for_server=True,
            position=position,
        )
        if network.port_security_enabled:
            port.security_groups.extend(
                named_groups(tx, caller.project_id, names) if names else [ensure_default(tx, caller.project_id)]
            )
        return plug(tx, self._proposals, port, [FixedIp(ip_address=request.fixed_ip)] if request.fixed_ip else None, charged=True)

    def _network(self, tx: Transaction, caller: Caller, request: PortRequest) -> Network:
        network_id = request.network_id or topology.ensure(tx, self._proposals, caller, caller.project_id).network_id
        try:
            return usable_network(tx, caller, network_id)
        except NotFound as error:
            raise Invalid("network.server.network", f"Network {network_id[:80]} could not be found.") from error


def _adopt(tx: Transaction, caller: Caller, port_id: str, hostname: str) -> Port:
    """A port that is the caller's and free."""
    try:
        port = port_of(tx, caller, port_id)
    except NotFound as error:
        raise Invalid("network.server.port", f"Port {port_id[:80]} could not be found.") from error
    if not owns(caller, port):
        raise Invalid("network.server.port", f"Port {port_id} could not be found.")
    if port.device_id or port.device_owner:
        raise Conflict("network.port.in_use", f"Port {port_id} is still in use.")
    if not port.fixed_ips:
        raise Invalid("network.server.port", f"Port {port_id} requires a FixedIP in order to be used.")
    port.dns_name = port.dns_name or hostname
    return port


def _ports_of(tx: Transaction, server_id: str) -> list[Port]:
    """Copies of a server's ports, in the order of its interfaces."""
    ports = [tx.require(PORT, port.id) for port in tx.rows(PORT, "device", server_id) if port.position]
    return sorted(ports, key=lambda port: port.position)


def _servers(ports: Iterable[Any]) -> list[str]:
    """The servers that ports are of; None among them is passed over."""
    return [port.device_id for port in ports if port is not None and port.position]


def _shown_of_port(port: Port) -> tuple:
    """What servers show of a port, and how it is found."""
    fixed = [(each.ip_address, each.subnet_id) for each in port.fixed_ips]
    return port.device_id, port.position, port.network_id, port.mac_address, fixed, list(port.security_groups)
