"""Routers: each change of gateway, interface or route replaces the router's record, so that its parts always fit together."""

import uuid
from collections.abc import Iterable, Sequence

from google.protobuf.empty_pb2 import Empty

from control.kernel import fleet, quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Denied, Invalid
from control.kernel.rpc import Call
from control.network.access import network_of, owner_of, port_of, router_of, subnet_of
from control.network.addressing import Proposals
from control.network.attributes import address, body, check_count, check_texts, given, in_use, prefix, stamp, tags
from control.network.model import GATEWAY, INTERFACE, MAX_ROUTES, PORT, QUOTA, ROUTER, SERVICE, SUBNET, USE, absent
from control.network.pages import listed
from control.network.plugging import address_port, plug, unplug
from protos.network.v1 import routers_pb2 as pb
from protos.network.v1.ports_pb2 import FixedIp, Port
from protos.network.v1.routers_pb2 import ExternalGatewayInfo, Router
from protos.network.v1.subnets_pb2 import HostRoute, Subnet

_CHANGEABLE = ("name", "description", "admin_state_up", "external_gateway_info", "routes")
_SETTABLE = (*_CHANGEABLE[:-1], "project_id", "tenant_id", "availability_zone_hints", "tags")


class Routers:
    def __init__(self, database: Database, proposals: Proposals):
        self._database = database
        self._proposals = proposals

    async def CreateRouter(self, request: pb.CreateRouterRequest, call: Call) -> pb.CreateRouterResponse:
        wish = body(request, "router")
        given(wish, request.update_mask, settable=_SETTABLE, verb="POST")
        check_texts(wish, "name", "description")
        check_count("availability_zone_hints", wish.availability_zone_hints, 10)
        project_id = owner_of(call.caller, wish)

        def decide(tx: Transaction) -> Router:
            router = new_router(tx, wish, project_id)
            if wish.external_gateway_info.network_id:
                set_gateway(tx, self._proposals, call.caller, router, wish.external_gateway_info)
            return router

        router = await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return pb.CreateRouterResponse(router=seen(router, call.caller))

    async def ShowRouter(self, request: pb.ShowRouterRequest, call: Call) -> pb.ShowRouterResponse:
        return pb.ShowRouterResponse(router=seen(router_of(self._database, call.caller, request.id), call.caller))

    async def ListRouters(self, request: pb.ListRoutersRequest, call: Call) -> pb.ListRoutersResponse:
        cache, caller = self._database.cache, call.caller
        rows = (
            cache.all(ROUTER) if caller.is_admin else cache.by(ROUTER, "project", caller.project_id) if caller.project_id else []
        )
        routers, marker = listed(rows, request, lambda router: seen(router, caller))
        return pb.ListRoutersResponse(routers=routers, next_page_marker=marker)

    async def UpdateRouter(self, request: pb.UpdateRouterRequest, call: Call) -> pb.UpdateRouterResponse:
        wish = body(request, "router")
        names = given(wish, request.update_mask, settable=_CHANGEABLE, verb="PUT")
        check_texts(wish, "name", "description")

        def decide(tx: Transaction) -> Router:
            router = router_of(tx, call.caller, request.id)
            for name in names & {"name", "description"}:
                setattr(router, name, getattr(wish, name))
            if "admin_state_up" in names:
                router.admin_state_up = not wish.HasField("admin_state_up") or wish.admin_state_up
            if "external_gateway_info" in names:
                if wish.external_gateway_info.network_id:
                    set_gateway(tx, self._proposals, call.caller, router, wish.external_gateway_info)
                else:
                    clear_gateway(tx, router)
            if "routes" in names:
                _set_routes(tx, router, wish.routes)
            _save(tx, router)
            return router

        return pb.UpdateRouterResponse(router=seen(await self._database.transact(decide), call.caller))

    async def DeleteRouter(self, request: pb.DeleteRouterRequest, call: Call) -> Empty:
        project_id = router_of(self._database, call.caller, request.id).project_id
        await self._database.transact(
            lambda tx: drop_router(tx, router_of(tx, call.caller, request.id)), serial=quota.serial(SERVICE, project_id)
        )
        return Empty()

    async def AddRouterInterface(self, request: pb.RouterInterfaceRequest, call: Call) -> pb.RouterInterfaceResponse:
        def decide(tx: Transaction) -> pb.RouterInterfaceResponse:
            router = router_of(tx, call.caller, request.id)
            if bool(request.subnet_id) == bool(request.port_id):
                raise Invalid("network.router.interface", "Either subnet_id or port_id must be specified, and not both.")
            if request.subnet_id:
                port = connect(tx, self._proposals, router, subnet_of(tx, call.caller, request.subnet_id))
            else:
                port = _adopt(tx, call.caller, router, request.port_id)
            return _interface(router, port, request.subnet_id)

        project_id = router_of(self._database, call.caller, request.id).project_id
        return await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))

    async def RemoveRouterInterface(self, request: pb.RouterInterfaceRequest, call: Call) -> pb.RouterInterfaceResponse:
        def decide(tx: Transaction) -> pb.RouterInterfaceResponse:
            router = router_of(tx, call.caller, request.id)
            port = _named_interface(tx, router, request)
            _disconnect(tx, router, port)
            return _interface(router, port, request.subnet_id)

        project_id = router_of(self._database, call.caller, request.id).project_id
        return await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))

    async def AddExtraRoutes(self, request: pb.UpdateRouterRequest, call: Call) -> pb.UpdateRouterResponse:
        return await self._change_routes(request, call, add=True)

    async def RemoveExtraRoutes(self, request: pb.UpdateRouterRequest, call: Call) -> pb.UpdateRouterResponse:
        return await self._change_routes(request, call, add=False)

    async def _change_routes(self, request: pb.UpdateRouterRequest, call: Call, *, add: bool) -> pb.UpdateRouterResponse:
        given(request.router, request.update_mask, settable=("routes",), verb="PUT")
        named = [_route(route) for route in request.router.routes]

        def decide(tx: Transaction) -> Router:
            router = router_of(tx, call.caller, request.id)
            routes = [route for route in router.routes if route not in named]
            _set_routes(tx, router, routes + named if add else routes)
            _save(tx, router)
            return router

        return pb.UpdateRouterResponse(router=seen(await self._database.transact(decide), call.caller))


def seen(router: Router, caller: Caller) -> Router:
    """A router as the caller may see it."""
    if caller.is_admin:
        return router
    shown = Router()
    shown.CopyFrom(router)
    shown.ClearField("gateway_host")
    return shown


def new_router(tx: Transaction, wish: Router, project_id: str) -> Router:
    """Make a router without a gateway and charge it."""
    router = Router(
        id=str(uuid.uuid4()),
        name=wish.name,
        description=wish.description,
        project_id=project_id,
        tenant_id=project_id,
        status="ACTIVE",
        admin_state_up=not wish.HasField("admin_state_up") or wish.admin_state_up,
        availability_zone_hints=wish.availability_zone_hints,
        tags=tags(wish.tags),
    )
    _save(tx, router)
    quota.charge(tx, SERVICE, project_id, QUOTA, router=1)
    return router


def drop_router(tx: Transaction, router: Router, *, check: bool = True) -> None:
    """Delete a router and its gateway. Raises Conflict while it has interfaces, unless the caller has taken them away."""
    if check and interfaces(tx, router.id):
        raise in_use("router", router.id, f"Router {router.id} still has ports")
    clear_gateway(tx, router)
    tx.delete(ROUTER, router.id)
    quota.charge(tx, SERVICE, router.project_id, QUOTA, router=-1)


def interfaces(tx: Transaction, router_id: str) -> list[Port]:
    return [port for port in tx.rows(PORT, "device", router_id) if port.device_owner == INTERFACE]


def connect(tx: Transaction, proposals: Proposals, router: Router, subnet: Subnet) -> Port:
    """Give a router an interface on a subnet's gateway address."""
    if not subnet.gateway_ip:
        raise Invalid(
            "network.router.interface", f"Bad router request: Subnet {subnet.id} for router interface must have a gateway IP."
        )
    _check_connected(tx, router, [subnet])
    port = Port(
        project_id=router.project_id,
        network_id=subnet.network_id,
        device_id=router.id,
        device_owner=INTERFACE,
        status="ACTIVE",
        port_security_enabled=False,
    )
    plug(tx, proposals, port, [FixedIp(subnet_id=subnet.id, ip_address=subnet.gateway_ip)], charged=True)
    _save(tx, router)
    return port


def set_gateway(tx: Transaction, proposals: Proposals, caller: Caller, router: Router, wish: ExternalGatewayInfo) -> None:
    """Lead a router out through an external network.

    Raises NotFound for the network, Invalid where it is not external or overlaps an interface, Denied where someone who is
    no admin chooses the address, Conflict where floating IPs use the present gateway and it would move.
    """
    network = network_of(tx, caller, wish.network_id)
    if not network.router_external:
        raise Invalid("network.router.gateway", f"Bad router request: Network {network.id} is not an external network.")
    now = router.external_gateway_info
    same = bool(router.gateway_port_id) and now.network_id == network.id
    wanted = [pair for pair in wish.external_fixed_ips] if wish.external_fixed_ips else None
    if wanted is not None and same and list(now.external_fixed_ips) == wanted:
        wanted = None
    if wanted is not None and not caller.is_admin:
        raise Denied("network.router.gateway", "Only an admin may choose a router's addresses on an external network.")
    if same:
        port = tx.require(PORT, router.gateway_port_id)
        if wanted is not None:
            address_port(tx, proposals, port, wanted)
            stamp(port)
            tx.put(PORT, port)
    else:
        clear_gateway(tx, router)
        port = plug(
            tx,
            proposals,
            Port(network_id=network.id, device_id=router.id, device_owner=GATEWAY, status="ACTIVE", port_security_enabled=False),
            wanted,
        )
        _check_overlap(
            [tx.require(SUBNET, fixed.subnet_id) for fixed in port.fixed_ips], _subnets_of(tx, interfaces(tx, router.id))
        )
        router.gateway_port_id = port.id
        router.gateway_host = choose_host(tx)
    info = ExternalGatewayInfo(
        network_id=network.id, external_fixed_ips=port.fixed_ips, enable_snat=not wish.HasField("enable_snat") or wish.enable_snat
    )
    router.external_gateway_info.CopyFrom(info)
    _save(tx, router)


def clear_gateway(tx: Transaction, router: Router) -> None:
    """Take a router's way out. Raises Conflict while a floating IP goes through it."""
    if not router.gateway_port_id:
        return
    if tx.rows(USE, "thing", router.gateway_port_id):
        raise Conflict(
            "network.router.gateway",
            f"Gateway cannot be updated for router {router.id}, since a gateway to external network "
            f"{router.external_gateway_info.network_id} is required by one or more floating IPs.",
        )
    tx.guard_empty(USE, router.gateway_port_id)
    unplug(tx, tx.require(PORT, router.gateway_port_id))
    for name in ("external_gateway_info", "gateway_port_id", "gateway_host"):
        router.ClearField(name)


def choose_host(tx: Transaction) -> str:
    """The host for one more router's external addresses: of those that are up the one with the fewest; "" where none is."""
    hosts = [host for host in tx.rows(fleet.HOST) if host.up]
    best = min(hosts, key=lambda host: (host.disabled, len(tx.rows(ROUTER, "gateway_host", host.name)), host.name), default=None)
    return best.name if best else ""


def _adopt(tx: Transaction, caller: Caller, router: Router, port_id: str) -> Port:
    """Make a port of the caller's a router's interface."""
    port = port_of(tx, caller, port_id)
    if port.device_id or port.device_owner:
        raise Conflict("network.port.in_use", f"Port {port.id} is already used by device {port.device_id or port.device_owner}.")
    if not port.fixed_ips:
        raise Invalid("network.router.interface", f"Bad router request: Router port {port.id} has no IP address.")
    _check_connected(tx, router, _subnets_of(tx, [port]))
    port.device_id, port.device_owner, port.status = router.id, INTERFACE, "ACTIVE"
    stamp(port)
    tx.put(PORT, port)
    _save(tx, router)
    return port


def _disconnect(tx: Transaction, router: Router, port: Port) -> None:
    """Take an interface away. Raises Conflict while a floating IP or a route needs it."""
    if tx.rows(USE, "thing", port.id):
        raise Conflict(
            "network.router.interface",
            f"Router interface for subnet {port.fixed_ips[0].subnet_id} on router {router.id} cannot be "
            "deleted, as it is required by one or more floating IPs.",
        )
    tx.guard_empty(USE, port.id)
    left = [
        prefix(subnet.cidr, "cidr")
        for subnet in _connected(tx, router)
        if subnet.id not in {one.subnet_id for one in port.fixed_ips}
    ]
    for route in router.routes:
        if not any(address(route.nexthop, "nexthop") in cidr for cidr in left):
            raise Conflict(
                "network.router.interface",
                f"Router interface on router {router.id} cannot be deleted, as it is required by one "
                f"or more routes: {route.destination} via {route.nexthop}.",
            )
    unplug(tx, port)
    _save(tx, router)


def _named_interface(tx: Transaction, router: Router, request: pb.RouterInterfaceRequest) -> Port:
    if not (request.subnet_id or request.port_id):
        raise Invalid("network.router.interface", "Either subnet_id or port_id must be specified.")
    for port in interfaces(tx, router.id):
        has = {fixed.subnet_id for fixed in port.fixed_ips}
        if request.port_id in ("", port.id) and (not request.subnet_id or request.subnet_id in has):
            return tx.require(PORT, port.id)
    if request.port_id:
        raise absent("router_interface", request.port_id)
    raise absent("router_interface", request.subnet_id)


def _check_connected(tx: Transaction, router: Router, subnets: Sequence[Subnet]) -> None:
    """Raise Invalid where a router cannot have interfaces on these subnets beside those that it has."""
    there = _connected(tx, router)
    for subnet in subnets:
        if any(other.id == subnet.id for other in there):
            raise Invalid("network.router.interface", f"Bad router request: Router already has a port on subnet {subnet.id}.")
    _check_overlap(subnets, there)


def _check_overlap(subnets: Iterable[Subnet], there: Sequence[Subnet]) -> None:
    for subnet in subnets:
        for other in there:
            if prefix(subnet.cidr, "cidr").overlaps(prefix(other.cidr, "cidr")):
                raise Invalid(
                    "network.router.overlap",
                    f"Bad router request: Cidr {subnet.cidr} of subnet {subnet.id} overlaps with cidr "
                    f"{other.cidr} of subnet {other.id}.",
                )


def _connected(tx: Transaction, router: Router) -> list[Subnet]:
    """Every subnet that a router is on, the external ones too."""
    gateway = tx.get(PORT, router.gateway_port_id) if router.gateway_port_id else None
    return _subnets_of(tx, [*interfaces(tx, router.id), *([gateway] if gateway else [])])


def _subnets_of(tx: Transaction, ports: Iterable[Port]) -> list[Subnet]:
    return [tx.require(SUBNET, fixed.subnet_id) for port in ports for fixed in port.fixed_ips]


def _route(route: HostRoute) -> HostRoute:
    destination, nexthop = prefix(route.destination, "routes"), address(route.nexthop, "routes")
    if destination.version != nexthop.version:
        raise Invalid("network.routes", f"The route to {destination} through {nexthop} mixes IP versions.")
    return HostRoute(destination=str(destination), nexthop=str(nexthop))


def _set_routes(tx: Transaction, router: Router, routes: Iterable[HostRoute]) -> None:
    """Replace a router's routes. Raises Invalid for one whose next hop is on none of its subnets, or is the router itself."""
    kept: list[HostRoute] = []
    cidrs = [prefix(subnet.cidr, "cidr") for subnet in _connected(tx, router)]
    own = {fixed.ip_address for port in tx.rows(PORT, "device", router.id) for fixed in port.fixed_ips}
    for route in map(_route, routes):
        if not any(address(route.nexthop, "routes") in cidr for cidr in cidrs):
            raise Invalid(
                "network.routes", f"Invalid format for routes: the nexthop {route.nexthop} is not connected with router."
            )
        if route.nexthop in own:
            raise Invalid("network.routes", f"Invalid format for routes: the nexthop {route.nexthop} is used by router.")
        if route not in kept:
            kept.append(route)
    check_count("routes", kept, MAX_ROUTES)
    del router.routes[:]
    router.routes.extend(kept)


def _interface(router: Router, port: Port, subnet_id: str) -> pb.RouterInterfaceResponse:
    subnet_ids = [fixed.subnet_id for fixed in port.fixed_ips]
    return pb.RouterInterfaceResponse(
        id=router.id,
        tenant_id=router.project_id,
        project_id=router.project_id,
        port_id=port.id,
        network_id=port.network_id,
        subnet_id=subnet_id or subnet_ids[0],
        subnet_ids=subnet_ids,
        tags=router.tags,
    )


def _save(tx: Transaction, router: Router) -> None:
    stamp(router)
    tx.put(ROUTER, router)
