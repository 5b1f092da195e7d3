"""Subnets: each commit replaces the network's record too, so that those of one network never overlap."""

import uuid

from google.protobuf.empty_pb2 import Empty

from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Exhausted, Invalid
from control.kernel.rpc import Call
from control.kernel.store import Guard
from control.network.access import network_of, owner_of, require_owner, subnet_of
from control.network.addressing import Proposals, check_cidr, checked_pools, default_pools
from control.network.attributes import (
    Address,
    Prefix,
    address,
    body,
    check_count,
    check_texts,
    given,
    in_use,
    prefix,
    stamp,
    tags,
)
from control.network.batch import Plan, make
from control.network.model import (
    ALLOCATION,
    MAX_HOST_ROUTES,
    MAX_NAMESERVERS,
    MAX_POOLS,
    MAX_SUBNETS,
    NETWORK,
    QUOTA,
    SERVICE,
    SUBNET,
)
from control.network.networks import visible
from control.network.pages import listed
from control.network.plugging import settle_dhcp
from protos.network.v1 import subnets_pb2 as pb
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.subnets_pb2 import HostRoute, Subnet

_CHANGEABLE = ("name", "description", "gateway_ip", "allocation_pools", "dns_nameservers", "host_routes", "enable_dhcp")
_SETTABLE = (*_CHANGEABLE, "project_id", "tenant_id", "network_id", "ip_version", "cidr", "tags")


class Subnets:
    def __init__(self, database: Database, proposals: Proposals):
        self._database = database
        self._proposals = proposals

    async def CreateSubnet(self, request: pb.CreateSubnetRequest, call: Call) -> pb.CreateSubnetResponse:
        [subnet] = await make(self._database, [self._plan(request, call)])
        return pb.CreateSubnetResponse(subnet=seen(self._database, subnet))

    async def BatchCreateSubnets(self, request: pb.BatchCreateSubnetsRequest, call: Call) -> pb.BatchCreateSubnetsResponse:
        made = await make(self._database, [self._plan(each, call) for each in request.requests])
        return pb.BatchCreateSubnetsResponse(subnets=[seen(self._database, subnet) for subnet in made])

    def _plan(self, request: pb.CreateSubnetRequest, call: Call) -> Plan:
        wish = body(request, "subnet")
        names = given(wish, request.update_mask, settable=_SETTABLE, verb="POST")
        _check(wish)
        owner_of(call.caller, wish)
        project_id = _parent(self._database, call.caller, wish.network_id).project_id

        def decide(tx: Transaction) -> Subnet:
            network = _parent(tx, call.caller, wish.network_id)
            return new_subnet(tx, self._proposals, network, wish, gateway_named="gateway_ip" in names)

        return Plan(project_id, decide)

    async def ShowSubnet(self, request: pb.ShowSubnetRequest, call: Call) -> pb.ShowSubnetResponse:
        return pb.ShowSubnetResponse(subnet=seen(self._database, subnet_of(self._database, call.caller, request.id)))

    async def ListSubnets(self, request: pb.ListSubnetsRequest, call: Call) -> pb.ListSubnetsResponse:
        cache = self._database.cache
        rows = (
            cache.all(SUBNET)
            if call.caller.is_admin
            else [
                subnet for network in visible(self._database, call.caller) for subnet in cache.by(SUBNET, "network", network.id)
            ]
        )
        subnets, marker = listed(rows, request, lambda subnet: seen(self._database, subnet))
        return pb.ListSubnetsResponse(subnets=subnets, next_page_marker=marker)

    async def UpdateSubnet(self, request: pb.UpdateSubnetRequest, call: Call) -> pb.UpdateSubnetResponse:
        wish = body(request, "subnet")
        names = given(wish, request.update_mask, settable=_CHANGEABLE, verb="PUT")
        _check(wish)

        def decide(tx: Transaction) -> Subnet:
            subnet = subnet_of(tx, call.caller, request.id)
            network = tx.require(NETWORK, subnet.network_id)
            require_owner(call.caller, "network", network)
            for name in names & {"name", "description"}:
                setattr(subnet, name, getattr(wish, name))
            if "enable_dhcp" in names:
                subnet.enable_dhcp = not wish.HasField("enable_dhcp") or wish.enable_dhcp
            _replace(tx, subnet, wish, names)
            self._settle(tx, network, subnet)
            stamp(subnet)
            tx.put(SUBNET, subnet)
            return subnet

        return pb.UpdateSubnetResponse(subnet=seen(self._database, await self._database.transact(decide)))

    def _settle(self, tx: Transaction, network: Network, subnet: Subnet) -> None:
        """Give a subnet DHCP's address or take it away, as it says."""
        wanted = subnet.enable_dhcp and subnet.ip_version == 4
        if wanted == bool(subnet.dhcp_ip):
            return
        subnet.dhcp_ip = self._proposals.reserve(tx, subnet) if wanted else ""
        others = [other for other in tx.rows(SUBNET, "network", network.id) if other.id != subnet.id]
        settle_dhcp(tx, network, [*others, subnet])
        stamp(network)
        tx.put(NETWORK, network)

    async def DeleteSubnet(self, request: pb.DeleteSubnetRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            subnet = subnet_of(tx, call.caller, request.id)
            network = tx.require(NETWORK, subnet.network_id)
            require_owner(call.caller, "network", network)
            drop_subnet(tx, network, subnet)

        project_id = subnet_of(self._database, call.caller, request.id).project_id
        await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return Empty()


def seen(database: Database, subnet: Subnet) -> Subnet:
    """A subnet as users see it."""
    network = database.get(NETWORK, subnet.network_id)
    if network is None or not network.router_external:
        return subnet
    shown = Subnet()
    shown.CopyFrom(subnet)
    shown.router_external = True
    return shown


def new_subnet(tx: Transaction, proposals: Proposals, network: Network, wish: Subnet, *, gateway_named: bool) -> Subnet:
    """Make a subnet as wished for, with DHCP's address, and charge it. `gateway_named`: an absent gateway means none."""
    cidr = prefix(wish.cidr, "cidr")
    check_cidr(cidr)
    if wish.ip_version and wish.ip_version != cidr.version:
        raise Invalid("network.ip_version", f"The ip_version {wish.ip_version} and the cidr {cidr} do not agree.")
    siblings = tx.rows(SUBNET, "network", network.id)
    if len(siblings) >= MAX_SUBNETS:
        raise Exhausted("network.subnet.many", f"Network {network.id} has {MAX_SUBNETS} subnets, the most that one can have.")
    for other in siblings:
        if prefix(other.cidr, "cidr").overlaps(cidr):
            raise Invalid(
                "network.subnet.overlap",
                f"Invalid input for operation: Requested subnet with cidr: {cidr} for network: "
                f"{network.id} overlaps with another subnet: {other.cidr} ({other.id}).",
            )
    subnet = Subnet(
        id=str(uuid.uuid4()),
        name=wish.name,
        description=wish.description,
        project_id=network.project_id,
        tenant_id=network.project_id,
        network_id=network.id,
        ip_version=cidr.version,
        cidr=str(cidr),
        enable_dhcp=not wish.HasField("enable_dhcp") or wish.enable_dhcp,
        dns_nameservers=_nameservers(wish),
        host_routes=_routes(wish, cidr),
        tags=tags(wish.tags),
    )
    gateway = _gateway(wish, cidr) if gateway_named else cidr[1]
    if gateway is not None:
        subnet.gateway_ip = str(gateway)
    pools = checked_pools(wish.allocation_pools, cidr, gateway) if wish.allocation_pools else default_pools(cidr, gateway)
    subnet.allocation_pools.extend(pools)
    if subnet.enable_dhcp and cidr.version == 4:
        subnet.dhcp_ip = proposals.reserve(tx, subnet)
    stamp(subnet)
    tx.put(SUBNET, subnet)
    if subnet.dhcp_ip:
        settle_dhcp(tx, network, [*siblings, subnet])
    network.subnets.append(subnet.id)
    stamp(network)
    tx.put(NETWORK, network)
    quota.charge(tx, SERVICE, network.project_id, QUOTA, subnet=1)
    return subnet


def drop_subnet(tx: Transaction, network: Network, subnet: Subnet) -> None:
    """Delete a subnet. Raises Conflict while a port other than DHCP's has an address of it."""
    if tx.rows(ALLOCATION, "subnet", subnet.id):
        raise in_use("subnet", subnet.id, "One or more ports have an IP allocation from this subnet.")
    tx.guard_empty(ALLOCATION, subnet.id)
    tx.delete(SUBNET, subnet.id)
    if subnet.dhcp_ip:
        settle_dhcp(tx, network, [other for other in tx.rows(SUBNET, "network", network.id) if other.id != subnet.id])
    network.subnets.remove(subnet.id)
    stamp(network)
    tx.put(NETWORK, network)
    quota.charge(tx, SERVICE, network.project_id, QUOTA, subnet=-1)


def _parent(reader: Database | Transaction, caller: Caller, network_id: str) -> Network:
    """The network that a new subnet is for; it must be the caller's."""
    if not network_id:
        raise Invalid("network.network_id", "Failed to parse request. Required attribute 'network_id' not specified")
    network = network_of(reader, caller, network_id)
    require_owner(caller, "network", network)
    return network


def _check(wish: Subnet) -> None:
    check_texts(wish, "name", "description")
    check_count("allocation_pools", wish.allocation_pools, MAX_POOLS)
    check_count("dns_nameservers", wish.dns_nameservers, MAX_NAMESERVERS)
    check_count("host_routes", wish.host_routes, MAX_HOST_ROUTES)
    if wish.ip_version not in (0, 4, 6):
        raise Invalid("network.ip_version", f"Invalid input for ip_version: {wish.ip_version} is not 4 or 6.")


def _gateway(wish: Subnet, cidr: Prefix) -> Address | None:
    if not wish.gateway_ip:
        return None
    gateway = address(wish.gateway_ip, "gateway_ip")
    outside = gateway not in cidr and not (gateway.version == 6 and gateway.is_link_local)
    if (
        gateway.version != cidr.version
        or outside
        or (gateway in (cidr.network_address, cidr.broadcast_address) and cidr.version == 4)
    ):
        raise Invalid("network.gateway_ip", f"Gateway {gateway} is not a host address of the subnet {cidr}.")
    return gateway


def _nameservers(wish: Subnet) -> list[str]:
    return [str(address(text, "dns_nameservers")) for text in dict.fromkeys(wish.dns_nameservers)]


def _routes(wish: Subnet, cidr: Prefix) -> list[HostRoute]:
    routes = []
    for route in wish.host_routes:
        destination, nexthop = prefix(route.destination, "host_routes"), address(route.nexthop, "host_routes")
        if destination.version != cidr.version or nexthop.version != cidr.version:
            raise Invalid(
                "network.host_routes", f"The route to {destination} through {nexthop} is not of the subnet's IP version."
            )
        routes.append(HostRoute(destination=str(destination), nexthop=str(nexthop)))
    return routes


def _replace(tx: Transaction, subnet: Subnet, wish: Subnet, names: set[str]) -> None:
    """Replace the addresses that a subnet names, as far as the request names them."""
    cidr = prefix(subnet.cidr, "cidr")
    if "dns_nameservers" in names:
        subnet.dns_nameservers[:] = _nameservers(wish)
    if "host_routes" in names:
        del subnet.host_routes[:]
        subnet.host_routes.extend(_routes(wish, cidr))
    gateway = (
        _gateway(wish, cidr) if "gateway_ip" in names else address(subnet.gateway_ip, "gateway_ip") if subnet.gateway_ip else None
    )
    text = str(gateway) if gateway is not None else ""
    if text != subnet.gateway_ip:
        for ip in (subnet.gateway_ip, text):
            taken = tx.get(ALLOCATION, subnet.id, ip) if ip else None
            if taken is not None or (ip and ip == subnet.dhcp_ip):
                raise Conflict(
                    "network.gateway_ip.in_use",
                    f"Current gateway ip {ip} already in use by port {taken.port_id if taken else 'of DHCP'}. Unable to update.",
                )
        if text:
            tx.guard(Guard.unchanged(ALLOCATION.key(subnet.id, text), 0))
            subnet.gateway_ip = text
        else:
            subnet.ClearField("gateway_ip")
    if "allocation_pools" in names:
        pools = checked_pools(wish.allocation_pools, cidr, gateway)
        del subnet.allocation_pools[:]
        subnet.allocation_pools.extend(pools)
    elif "gateway_ip" in names:
        checked_pools(subnet.allocation_pools, cidr, gateway)
