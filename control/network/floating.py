"""Where floating IPs lead: the way from a fixed address to an external network, inside somebody's transaction.

A floating IP that leads somewhere uses the router's interface and its gateway port, so that neither goes below it, and
replaces the record of the port that it leads to.
"""

import ipaddress

from control.kernel.database import Transaction
from control.kernel.errors import Conflict, Invalid, NotFound
from control.network.attributes import address, stamp
from control.network.model import FLOATING_IP, INTERFACE, PORT, ROUTER, SUBNET, USE, role
from protos.network.v1.floatingips_pb2 import FloatingIp
from protos.network.v1.ports_pb2 import Port
from protos.network.v1.records_pb2 import UseRecord
from protos.network.v1.routers_pb2 import Router


def lead(tx: Transaction, floating: FloatingIp, port: Port, fixed_ip: str) -> None:
    """Lead a floating IP, which leads nowhere now, to an address of a port ("": its first IPv4 one). The caller puts the record.

    Raises Invalid where the port has no such address, Conflict where that has a floating IP of the network, NotFound where no
    router leads from it to the external network.
    """
    fours = [fixed for fixed in port.fixed_ips if ipaddress.ip_address(fixed.ip_address).version == 4]
    wished = str(address(fixed_ip, "fixed_ip_address")) if fixed_ip else ""
    fixed = next((fixed for fixed in fours if wished in ("", fixed.ip_address)), None)
    if fixed is None:
        raise Invalid(
            "network.floatingip.fixed",
            f"Port {port.id} does not have fixed ip {wished}."
            if wished
            else f"Cannot add floating IP to port {port.id} that has no fixed IPv4 addresses.",
        )
    for other in tx.rows(FLOATING_IP, "port", port.id):
        if (
            other.id != floating.id
            and other.fixed_ip_address == fixed.ip_address
            and other.floating_network_id == floating.floating_network_id
        ):
            raise Conflict(
                "network.floatingip.in_use",
                f"Cannot associate floating IP {floating.floating_ip_address} with port {port.id} "
                f"using fixed IP {fixed.ip_address}, as that fixed IP already has a floating IP "
                f"on external network {floating.floating_network_id}.",
            )
    router, interface = _way(tx, port, fixed.subnet_id, floating.floating_network_id)
    for through in (interface.id, router.gateway_port_id):
        tx.put(USE, UseRecord(thing=through, user=floating.id))
        tx.guard_exists(PORT, through)
    floating.port_id = port.id
    floating.fixed_ip_address = fixed.ip_address
    floating.router_id = router.id
    floating.interface_port_id, floating.gateway_port_id = interface.id, router.gateway_port_id
    floating.status = "ACTIVE"
    _touch(tx, port.id)


def release(tx: Transaction, floating: FloatingIp) -> None:
    """Lead a floating IP nowhere. The caller puts the record."""
    for through in (floating.interface_port_id, floating.gateway_port_id):
        if through:
            tx.delete(USE, through, floating.id)
    if floating.port_id:
        _touch(tx, floating.port_id)
    for name in ("port_id", "fixed_ip_address", "router_id", "interface_port_id", "gateway_port_id", "port_details"):
        floating.ClearField(name)
    floating.status = "DOWN"


def free(tx: Transaction, floating_id: str) -> None:
    """Lead a floating IP nowhere and write it, because the port that it leads to goes."""
    floating = tx.require(FLOATING_IP, floating_id)
    release(tx, floating)
    stamp(floating)
    tx.put(FLOATING_IP, floating)


def _way(tx: Transaction, port: Port, subnet_id: str, external_id: str) -> tuple[Router, Port]:
    """The router that leads from a port's subnet to an external network, and its interface on the port's network.

    Where several do, the one on the subnet's gateway address is taken, as that is where the answers go.
    """
    subnet = tx.require(SUBNET, subnet_id)
    found: list[tuple[bool, str, Router, Port]] = []
    for interface in tx.rows(PORT, "role", role(port.network_id, INTERFACE)):
        addresses = [fixed.ip_address for fixed in interface.fixed_ips if fixed.subnet_id == subnet_id]
        router = tx.get(ROUTER, interface.device_id)
        if addresses and router is not None and router.gateway_port_id and router.external_gateway_info.network_id == external_id:
            found.append((subnet.gateway_ip not in addresses, interface.id, router, interface))
    if not found:
        raise NotFound(
            "network.floatingip.unreachable",
            f"External network {external_id} is not reachable from subnet {subnet_id}. "
            f"Therefore, cannot associate Port {port.id} with a Floating IP.",
        )
    _, _, router, interface = min(found, key=lambda item: item[:2])
    return router, interface


def _touch(tx: Transaction, port_id: str) -> None:
    """Write the port's record, so that a deletion at the same time is refused and decided anew."""
    port = tx.get(PORT, port_id)
    if port is not None:
        stamp(port)
        tx.put(PORT, port)
