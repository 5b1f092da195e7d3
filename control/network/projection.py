"""What each host shall have of the network, computed from the cache alone (the hosts service's Projection protocol).

A host has the networks of the ports that are bound to it, and the routers on these networks. A router that leads outside is on
one host, its gateway host, with every network that it joins; the others reach it through the network. One that does not is on
every host with a port behind it. Which hosts a change may touch is asked of the same relations.

Of a network's ports a host knows those that are on it, and the network's own. So what a host holds, and what a new port costs,
does not grow with the network: in one of 100,000 ports on 10,000 hosts, all members everywhere would be a billion. What does grow
is a security group that another names as its remote: its members' addresses are in the rules of every host that it is on. These
hosts hear of a new member later, many changes at a time, and all are given the same message.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from control.kernel.cache import Change, Kind
from control.kernel.database import Database
from control.network.addressing import collapsed
from control.network.attributes import prefix
from control.network.model import (
    DHCP,
    DOMAIN,
    FLOATING_IP,
    GATEWAY,
    GROUP,
    INTERFACE,
    NETWORK,
    PORT,
    ROUTER,
    SUBNET,
    role,
)
from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1.hosts_pb2 import HostObject
from protos.network.v1.floatingips_pb2 import FloatingIp
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.ports_pb2 import Port
from protos.network.v1.routers_pb2 import Router
from protos.network.v1.security_groups_pb2 import SecurityGroup, SecurityGroupRule

#: Fields of records that no host sees: a change of nothing else touches none.
_UNSEEN = frozenset(
    {
        "revision_number",
        "updated_at",
        "created_at",
        "tags",
        "description",
        "name",
        "status",
        "ip_allocation",
        "binding_profile",
        "charged",
        "made_for_server",
        "port_details",
    }
)


#: Messages about groups, and networks, that are kept for other hosts at most.
_REMEMBERED = 10_000

#: device_owner of a network's own ports: every host of the network knows them.
_OWN = (DHCP, INTERFACE, GATEWAY)


class _Base(NamedTuple):
    """A network with its own ports, by id, which every host of it has."""

    network: pb.HostNetwork
    members: list[tuple[str, pb.NetworkMember]]


class Projection:
    """control.hosts.neighbours.Projection, by shape."""

    def __init__(self, database: Database):
        self._database = database
        self._cache = database.cache
        self._changes: Counter[str] = Counter()       # of the members of groups
        self._made: dict[tuple[str, bool, bool], tuple[int, HostObject]] = {}
        self._bases: dict[str, _Base] = {}            # of networks, as every host has them
        self._listening = self._cache.listening(self._note, NETWORK, SUBNET, PORT, ROUTER)
        self._listening.__enter__()

    # Which hosts

    def hosts_of(self, change: Change) -> Iterable[str]:
        kind = change.kind
        if kind not in (PORT, NETWORK, SUBNET, ROUTER, FLOATING_IP, GROUP) or not _seen_change(change):
            return ()
        hosts: set[str] = set()
        for record in (change.before, change.after):
            if record is None:
                continue
            if kind is PORT:
                if record.binding_host_id:
                    hosts.add(record.binding_host_id)
                if record.device_owner in _OWN:
                    hosts |= self._hosts_of_own_port(record)
            elif kind is NETWORK:
                hosts |= self._hosts_of_network(record.id)
            elif kind is SUBNET:
                hosts |= self._hosts_of_network(record.network_id)
            elif kind is ROUTER:
                hosts |= self._hosts_of_router(record)
            elif kind is FLOATING_IP:
                hosts |= self._hosts_of_floating(record)
            else:
                hosts |= self._hosts_of_group(record.id)
        return hosts

    def shared_by(self, change: Change) -> Iterable[str]:
        """The groups whose members a change is of, as far as rules name them."""
        return [group_id for group_id in _groups_of(change) if self._cache.count(GROUP, "remote", group_id)]

    def _note(self, change: Change) -> None:
        self._changes.update(_groups_of(change))
        if change.kind is ROUTER:
            self._bases.clear()
        else:
            for record in (change.before, change.after):
                if record is not None and (change.kind is not PORT or record.device_owner in _OWN):
                    self._bases.pop(record.id if change.kind is NETWORK else record.network_id, None)

    def hosts_sharing(self, name: str) -> Iterable[str]:
        """The hosts whose rules name a group."""
        return {host for naming in self._cache.by(GROUP, "remote", name) for host in self._hosts_of_group(naming.id)}

    def _hosts_of_own_port(self, port: Port) -> set[str]:
        hosts = self._hosts_of_network(port.network_id)
        if port.device_owner == INTERFACE and (router := self._database.get(ROUTER, port.device_id)) is not None:
            hosts |= self._hosts_of_router(router)
        return hosts

    def _hosts_of_network(self, network_id: str) -> set[str]:
        hosts = {port.binding_host_id for port in self._cache.by(PORT, "network", network_id) if port.binding_host_id}
        for interface in self._cache.by(PORT, "role", role(network_id, INTERFACE)):
            router = self._database.get(ROUTER, interface.device_id)
            if router is not None:
                hosts |= self._hosts_of_router(router)
        hosts |= {router.gateway_host for router in self._cache.by(ROUTER, "external", network_id) if router.gateway_host}
        return hosts

    def _hosts_of_router(self, router: Router) -> set[str]:
        """The host of its gateway, and every host with a port behind it (for what it shall not have any more, too)."""
        hosts = {router.gateway_host} if router.gateway_host else set()
        for interface in self._interfaces(router.id):
            hosts |= {
                port.binding_host_id for port in self._cache.by(PORT, "network", interface.network_id) if port.binding_host_id
            }
        return hosts

    def _hosts_of_floating(self, floating: FloatingIp) -> set[str]:
        router = self._database.get(ROUTER, floating.router_id) if floating.router_id else None
        return {router.gateway_host} if router is not None and router.gateway_host else set()

    def _hosts_of_group(self, group_id: str) -> set[str]:
        return {port.binding_host_id for port in self._cache.by(PORT, "group", group_id) if port.binding_host_id}

    # What a host has

    def objects_for(self, host: str) -> list[HostObject]:
        """Every object that the host shall have now."""
        return [make() for _, _, make in self.parts_for(host)]

    def parts_for(self, host: str) -> Iterable[tuple[str, int | None, Callable[[], HostObject]]]:
        ports = [port for port in self._cache.by(PORT, "host", host) if port.position]
        network_ids = {port.network_id for port in ports}
        routers = self._routers(host, network_ids)
        for router in routers:
            network_ids |= {interface.network_id for interface in self._interfaces(router.id)}
            if router.gateway_host == host:
                network_ids.add(router.external_gateway_info.network_id)
        networks = {
            network_id: network
            for network_id in sorted(network_ids)
            if (network := self._database.get(NETWORK, network_id)) is not None
        }
        for network in networks.values():
            here = [port for port in ports if port.network_id == network.id]
            yield f"network/{network.id}", None, functools.partial(self._network_object, network, here)
        for port in sorted(ports, key=lambda port: port.id):
            if port.network_id in networks:
                network = networks[port.network_id]
                version = hash((self._revision(PORT, port.id), self._revision(NETWORK, network.id)))
                yield f"port/{port.id}", version, functools.partial(_port_object, port, network)
        yield from self._groups(ports)
        for router in routers:
            yield f"router/{router.id}", None, functools.partial(self._router_object, router)

    def _revision(self, kind: Kind, identifier: str) -> int:
        return self._cache.at(kind, kind.key(identifier))[0]

    def _network_object(self, network: Network, here: Iterable[Port]) -> HostObject:
        return HostObject(key=f"network/{network.id}", network=self._network(network, here))

    def _router_object(self, router: Router) -> HostObject:
        return HostObject(key=f"router/{router.id}", router=self._router(router))

    def _routers(self, host: str, network_ids: Iterable[str]) -> list[Router]:
        """The routers that are on a host, by id."""
        found = {router.id: router for router in self._cache.by(ROUTER, "gateway_host", host)}
        for network_id in network_ids:
            for interface in self._cache.by(PORT, "role", role(network_id, INTERFACE)):
                router = self._database.get(ROUTER, interface.device_id)
                if router is not None and not router.gateway_host:
                    found[router.id] = router
        return [found[router_id] for router_id in sorted(found)]

    def _interfaces(self, router_id: str) -> list[Port]:
        return sorted(
            (port for port in self._cache.by(PORT, "device", router_id) if port.device_owner == INTERFACE),
            key=lambda port: port.id,
        )

    def _network(self, network: Network, here: Iterable[Port]) -> pb.HostNetwork:
        base = self._bases.get(network.id)
        if base is None:
            if len(self._bases) >= _REMEMBERED:
                self._bases.clear()
            base = self._bases[network.id] = self._base(network)
        shown = pb.HostNetwork()
        shown.CopyFrom(base.network)
        members = [*base.members, *((port.id, self._member(port)) for port in here if port.fixed_ips)]
        shown.members.extend(member for _, member in sorted(members, key=lambda member: member[0]))
        return shown

    def _base(self, network: Network) -> _Base:
        shown = pb.HostNetwork(
            id=network.id,
            vni=network.provider_segmentation_id,
            mtu=network.mtu,
            external=network.router_external,
            dns_domain=(network.dns_domain or DOMAIN).rstrip("."),
        )
        for subnet in sorted(self._cache.by(SUBNET, "network", network.id), key=lambda subnet: subnet.id):
            shown.subnets.append(
                pb.HostSubnet(
                    id=subnet.id,
                    cidr=subnet.cidr,
                    gateway_ip=subnet.gateway_ip,
                    dhcp=bool(subnet.dhcp_ip),
                    dhcp_ip=subnet.dhcp_ip,
                    dns_nameservers=subnet.dns_nameservers,
                    routes=[pb.Route(destination=route.destination, next_hop=route.nexthop) for route in subnet.host_routes],
                )
            )
        own = [port for owner in _OWN for port in self._cache.by(PORT, "role", role(network.id, owner)) if port.fixed_ips]
        return _Base(shown, [(port.id, self._member(port)) for port in own])

    def _member(self, port: Port) -> pb.NetworkMember:
        return pb.NetworkMember(
            port_id=port.id,
            mac=port.mac_address,
            addresses=_addresses(port),
            hostname=port.dns_name,
            host=port.binding_host_id or self._router_host(port),
            device_id=port.device_id,
            dhcp_agent=port.device_owner == DHCP,
        )

    def _router_host(self, port: Port) -> str:
        """The one host that a router's port is on; "" where it is on many, or is no router's."""
        if not port.device_owner.startswith("network:router"):
            return ""
        router = self._database.get(ROUTER, port.device_id)
        return router.gateway_host if router is not None else ""

    def _groups(self, ports: Iterable[Port]) -> Iterable[tuple[str, int, Callable[[], HostObject]]]:
        """The groups of a host's ports with their rules, and those that the rules name with their members."""
        used = {group_id for port in ports for group_id in port.security_groups}
        groups = {group_id: group for group_id in used if (group := self._database.get(GROUP, group_id)) is not None}
        remotes = {
            rule.remote_group_id for group in groups.values() for rule in group.security_group_rules if rule.remote_group_id
        }
        for group_id in sorted({*groups, *remotes}):
            used_here, named_here = group_id in groups, group_id in remotes
            version = hash((self._revision(GROUP, group_id), self._changes.get(group_id, 0), used_here, named_here))
            yield f"security-group/{group_id}", version, functools.partial(
                self._group_object, group_id, version, used_here, named_here
            )

    def _group_object(self, group_id: str, version: int, used_here: bool, named_here: bool) -> HostObject:
        """A group for hosts: its rules where a port is in it, its members where a rule names it; made once for all hosts."""
        known = self._made.get((group_id, used_here, named_here))
        if known is not None and known[0] == version:
            return known[1]
        group = self._database.get(GROUP, group_id) if used_here else None
        shown = pb.HostSecurityGroup(
            id=group_id, rules=_rules(group) if group else (), members=self._members(group_id) if named_here else ()
        )
        made = HostObject(key=f"security-group/{group_id}", security_group=shown)
        if len(self._made) >= _REMEMBERED:
            self._made.clear()
        self._made[group_id, used_here, named_here] = version, made
        return made

    def _members(self, group_id: str) -> list[str]:
        members = set()
        for port in self._cache.by(PORT, "group", group_id):
            members |= {fixed.ip_address for fixed in port.fixed_ips} | {pair.ip_address for pair in port.allowed_address_pairs}
        return collapsed(members)

    def _router(self, router: Router) -> pb.HostRouter:
        shown = pb.HostRouter(
            id=router.id,
            admin_up=router.admin_state_up,
            routes=[pb.Route(destination=route.destination, next_hop=route.nexthop) for route in router.routes],
        )
        for port in self._interfaces(router.id):
            for text in self._prefixed(port):
                shown.interfaces.append(
                    pb.RouterInterface(port_id=port.id, network_id=port.network_id, mac=port.mac_address, address=text)
                )
        gateway = self._database.get(PORT, router.gateway_port_id) if router.gateway_port_id and router.gateway_host else None
        if gateway is not None:
            shown.gateway.CopyFrom(
                pb.ExternalGateway(
                    port_id=gateway.id,
                    network_id=gateway.network_id,
                    mac=gateway.mac_address,
                    addresses=self._prefixed(gateway),
                    gateway_ip=self._next_hop(gateway),
                    snat=router.external_gateway_info.enable_snat,
                )
            )
            for floating in sorted(self._cache.by(FLOATING_IP, "router", router.id), key=lambda floating: floating.id):
                shown.floating.append(
                    pb.FloatingAddress(
                        id=floating.id, floating_ip=floating.floating_ip_address, fixed_ip=floating.fixed_ip_address
                    )
                )
        return shown

    def _prefixed(self, port: Port) -> list[str]:
        """A port's addresses with the prefix lengths of their subnets."""
        texts = []
        for fixed in port.fixed_ips:
            subnet = self._database.get(SUBNET, fixed.subnet_id)
            if subnet is not None:
                texts.append(f"{fixed.ip_address}/{prefix(subnet.cidr, 'cidr').prefixlen}")
        return texts

    def _next_hop(self, gateway: Port) -> str:
        """The IPv4 gateway of the external network, else its IPv6 one."""
        subnets = [subnet for fixed in gateway.fixed_ips if (subnet := self._database.get(SUBNET, fixed.subnet_id)) is not None]
        return next(
            (subnet.gateway_ip for subnet in sorted(subnets, key=lambda subnet: subnet.ip_version) if subnet.gateway_ip), ""
        )


def _seen_change(change: Change) -> bool:
    """Whether a change is of anything that hosts see."""
    if change.before is None or change.after is None:
        return True
    before, after = change.before, change.after
    return any(getattr(before, name) != getattr(after, name) for name in _seen(change.kind))


@functools.cache
def _seen(kind: Kind) -> list[str]:
    """The fields of a kind's records that hosts see something of."""
    return [field.name for field in kind.message.DESCRIPTOR.fields if field.name not in _UNSEEN]


def _groups_of(change: Change) -> Iterable[str]:
    """The groups that a port joined, left, or is in with another address."""
    if change.kind is not PORT:
        return ()
    before, after = change.before, change.after
    if before is not None and after is not None and _membership(before) == _membership(after):
        return ()
    return {group_id for port in (before, after) if port is not None for group_id in port.security_groups}


def _membership(port: Port) -> tuple[list[str], list[str], list[str]]:
    """What a port is to the security groups that it is in."""
    return (
        list(port.security_groups),
        [fixed.ip_address for fixed in port.fixed_ips],
        [pair.ip_address for pair in port.allowed_address_pairs],
    )


def _addresses(port: Port) -> list[pb.FixedAddress]:
    return [pb.FixedAddress(subnet_id=fixed.subnet_id, ip=fixed.ip_address) for fixed in port.fixed_ips]


def _port(port: Port, network: Network) -> pb.HostPort:
    return pb.HostPort(
        id=port.id,
        network_id=port.network_id,
        mac=port.mac_address,
        addresses=_addresses(port),
        device_id=port.device_id,
        port_security=port.port_security_enabled,
        security_group_ids=port.security_groups,
        mtu=network.mtu,
        allowed_pairs=[
            pb.AddressPair(ip=pair.ip_address, mac=pair.mac_address or port.mac_address) for pair in port.allowed_address_pairs
        ],
        admin_up=port.admin_state_up and network.admin_state_up,
    )


def _port_object(port: Port, network: Network) -> HostObject:
    return HostObject(key=f"port/{port.id}", port=_port(port, network))


def _rules(group: SecurityGroup) -> list[pb.HostRule]:
    return [_rule(rule) for rule in group.security_group_rules]


def _rule(rule: SecurityGroupRule) -> pb.HostRule:
    low, high = rule.HasField("port_range_min"), rule.HasField("port_range_max")
    return pb.HostRule(
        id=rule.id,
        ingress=rule.direction == "ingress",
        ethertype=rule.ethertype,
        protocol=rule.protocol.string_value,
        port_min=rule.port_range_min if low else -1,
        port_max=rule.port_range_max if high else -1,
        remote_cidr=rule.normalized_cidr,
        remote_group_id=rule.remote_group_id,
    )
