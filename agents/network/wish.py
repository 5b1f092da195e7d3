"""The host's objects, sorted out and checked: what the rest of this package works from.

Pure. An object that cannot be right (an id that is no UUID, a MAC that is none, a port whose network is not here) is left out
and named in `refused`, so that one bad record never takes the host's other networks down with it. Everything that gets
through can be written into rules and configuration files without quoting.
"""
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from agents.network import names
from protos.internal.v1.hosts_pb2 import (
    FixedAddress,
    HostNetwork,
    HostObject,
    HostPort,
    HostRouter,
    HostSecurityGroup,
    HostServer,
    HostSubnet,
    NetworkMember,
    RouterInterface,
)

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(slots=True)
class Wish:
    networks: dict[str, HostNetwork] = field(default_factory=dict)
    ports: dict[str, HostPort] = field(default_factory=dict)
    groups: dict[str, HostSecurityGroup] = field(default_factory=dict)
    routers: dict[str, HostRouter] = field(default_factory=dict)
    servers: dict[str, HostServer] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)    # key -> why

    def router_links(self) -> Iterable[tuple[str, str]]:
        """(network id, port id) of each end that a router has in a network of this host."""
        for router in self.routers.values():
            if router.admin_up:
                for interface in router.interfaces:
                    if interface.network_id in self.networks:
                        yield interface.network_id, interface.port_id
                if router.HasField("gateway") and router.gateway.network_id in self.networks:
                    yield router.gateway.network_id, router.gateway.port_id


def sort_out(objects: Mapping[str, HostObject]) -> Wish:
    wish = Wish()
    for key, item in sorted(objects.items()):
        try:
            match item.WhichOneof("object"):
                case "network":
                    wish.networks[_id(item.network.id)] = _network(item.network)
                case "port":
                    wish.ports[_id(item.port.id)] = _port(item.port)
                case "security_group":
                    wish.groups[_id(item.security_group.id)] = item.security_group
                case "router":
                    wish.routers[_id(item.router.id)] = _router(item.router)
                case "server":
                    wish.servers[_id(item.server.id)] = item.server
        except ValueError as error:
            wish.refused[key] = str(error)
    for port in list(wish.ports.values()):
        if port.network_id not in wish.networks:
            wish.refused[f"port/{port.id}"] = f"its network {port.network_id} is not among this host's"
            del wish.ports[port.id]
    return wish


def service(network: HostNetwork) -> NetworkMember | None:
    """The port of DHCP itself; None where the network has no service to give."""
    if not any(subnet.dhcp_ip for subnet in network.subnets):
        return None
    return next((member for member in network.members if member.dhcp_agent and MAC.fullmatch(member.mac)), None)


def dhcp_subnets(network: HostNetwork) -> list[HostSubnet]:
    """Subnets that DHCP serves; version 4 only."""
    return [subnet for subnet in network.subnets if subnet.dhcp and subnet.dhcp_ip and ":" not in subnet.dhcp_ip]


def interface_address(subnet: HostSubnet, ip: str) -> str:
    """`ip` with the subnet's prefix length: "10.0.0.2/24"."""
    return f"{ip}/{ipaddress.ip_network(subnet.cidr, strict=False).prefixlen}"


def _id(text: str) -> str:
    if not names.UUID.fullmatch(text):
        raise ValueError(f"its id {text!r} is no UUID")
    return text


def _mac(text: str) -> str:
    if not MAC.fullmatch(text):
        raise ValueError(f"{text!r} is no MAC address in small letters")
    return text


def _addresses(addresses: Iterable[FixedAddress]) -> None:
    for address in addresses:
        ipaddress.ip_address(address.ip)


def _network(network: HostNetwork) -> HostNetwork:
    for subnet in network.subnets:
        ipaddress.ip_network(subnet.cidr, strict=False)
        for ip in (subnet.gateway_ip, subnet.dhcp_ip, *subnet.dns_nameservers):
            if ip:
                ipaddress.ip_address(ip)
        for route in subnet.routes:
            ipaddress.ip_network(route.destination, strict=False)
            ipaddress.ip_address(route.next_hop)
    for member in network.members:
        _mac(member.mac)
        _addresses(member.addresses)
    if network.dns_domain and not DOMAIN.fullmatch(network.dns_domain):
        raise ValueError(f"{network.dns_domain!r} is no domain name in small letters")
    if network.mtu and not 68 <= network.mtu <= 65535:
        raise ValueError(f"an MTU of {network.mtu} is outside 68 to 65535")
    return network


def _port(port: HostPort) -> HostPort:
    _mac(port.mac)
    _addresses(port.addresses)
    for pair in port.allowed_pairs:
        ipaddress.ip_network(pair.ip, strict=False)
        if pair.mac:
            _mac(pair.mac)
    return port


def _router(router: HostRouter) -> HostRouter:
    def check(link: RouterInterface, address: str) -> None:
        _id(link.port_id)
        _mac(link.mac)
        ipaddress.ip_interface(address)

    for interface in router.interfaces:
        check(interface, interface.address)
    for address in router.gateway.addresses:
        ipaddress.ip_interface(address)
    if router.HasField("gateway"):
        _id(router.gateway.port_id)
        _mac(router.gateway.mac)
        if router.gateway.gateway_ip:
            ipaddress.ip_address(router.gateway.gateway_ip)
    for floating in router.floating:
        ipaddress.ip_address(floating.floating_ip)
        ipaddress.ip_address(floating.fixed_ip)
    for route in router.routes:
        ipaddress.ip_network(route.destination, strict=False)
        ipaddress.ip_address(route.next_hop)
    return router
