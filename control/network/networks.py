"""Networks: created with a VNI of their own, deleted with their subnets when no port is left."""

import uuid

from google.protobuf.empty_pb2 import Empty

from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid
from control.kernel.rpc import Call
from control.network.access import network_of, owner_of, require_owner
from control.network.addressing import MAX_VNI, Proposals
from control.network.attributes import admin_only, body, check_count, check_texts, given, in_use, stamp, tags
from control.network.batch import Plan, make
from control.network.groups import ensure_default
from control.network.model import NETWORK, PORT, QUOTA, ROUTER, SERVICE, SUBNET, USE, VNI
from control.network.pages import listed
from control.network.plugging import dhcp_port
from protos.network.v1 import networks_pb2 as pb
from protos.network.v1.networks_pb2 import Network

#: Bytes: what is left of Ethernet's 1500 inside VXLAN over IPv4, and all of it outside.
OVERLAY_MTU, EXTERNAL_MTU = 1450, 1500

_ADMINS = ("shared", "router_external", "is_default", "provider_network_type", "provider_segmentation_id")
_CHANGEABLE = (
    "name",
    "description",
    "admin_state_up",
    "mtu",
    "port_security_enabled",
    "dns_domain",
    "shared",
    "router_external",
    "is_default",
)
_SETTABLE = (
    *_CHANGEABLE,
    "project_id",
    "tenant_id",
    "availability_zone_hints",
    "tags",
    "provider_network_type",
    "provider_segmentation_id",
)


class Networks:
    def __init__(self, database: Database, proposals: Proposals):
        self._database = database
        self._proposals = proposals

    async def CreateNetwork(self, request: pb.CreateNetworkRequest, call: Call) -> pb.CreateNetworkResponse:
        [network] = await make(self._database, [self._plan(request, call)])
        return pb.CreateNetworkResponse(network=seen(network, call.caller))

    async def BatchCreateNetworks(self, request: pb.BatchCreateNetworksRequest, call: Call) -> pb.BatchCreateNetworksResponse:
        made = await make(self._database, [self._plan(each, call) for each in request.requests])
        return pb.BatchCreateNetworksResponse(networks=[seen(network, call.caller) for network in made])

    def _plan(self, request: pb.CreateNetworkRequest, call: Call) -> Plan:
        wish = body(request, "network")
        names = given(wish, request.update_mask, settable=_SETTABLE, verb="POST")
        admin_only(call.caller, _ADMINS, (name for name in names if getattr(wish, name)), "network")
        _check(wish)
        project_id = owner_of(call.caller, wish)

        def decide(tx: Transaction) -> Network:
            ensure_default(tx, project_id)
            return new_network(tx, self._proposals, wish, project_id)

        return Plan(project_id, decide)

    async def ShowNetwork(self, request: pb.ShowNetworkRequest, call: Call) -> pb.ShowNetworkResponse:
        return pb.ShowNetworkResponse(network=seen(network_of(self._database, call.caller, request.id), call.caller))

    async def ListNetworks(self, request: pb.ListNetworksRequest, call: Call) -> pb.ListNetworksResponse:
        networks, marker = listed(visible(self._database, call.caller), request, lambda network: seen(network, call.caller))
        return pb.ListNetworksResponse(networks=networks, next_page_marker=marker)

    async def UpdateNetwork(self, request: pb.UpdateNetworkRequest, call: Call) -> pb.UpdateNetworkResponse:
        wish = body(request, "network")
        names = given(wish, request.update_mask, settable=_CHANGEABLE, verb="PUT")
        admin_only(call.caller, _ADMINS, names, "network")
        _check(wish)

        def decide(tx: Transaction) -> Network:
            network = network_of(tx, call.caller, request.id)
            require_owner(call.caller, "network", network)
            _check_change(tx, network, wish, names)
            for name in names:
                if name in ("admin_state_up", "port_security_enabled"):
                    setattr(network, name, not wish.HasField(name) or getattr(wish, name))
                elif name != "mtu" or wish.mtu:
                    setattr(network, name, getattr(wish, name))
            _one_default(tx, network)
            stamp(network)
            tx.put(NETWORK, network)
            return network

        return pb.UpdateNetworkResponse(network=seen(await self._database.transact(decide), call.caller))

    async def DeleteNetwork(self, request: pb.DeleteNetworkRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            network = network_of(tx, call.caller, request.id)
            require_owner(call.caller, "network", network)
            drop_network(tx, network)

        project_id = network_of(self._database, call.caller, request.id).project_id
        await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return Empty()


def new_network(tx: Transaction, proposals: Proposals, wish: Network, project_id: str) -> Network:
    """Make a network as wished for, with its VNI, and charge it."""
    network = Network()
    network.CopyFrom(wish)
    network.id = str(uuid.uuid4())
    network.project_id = network.tenant_id = project_id
    network.status = "ACTIVE"
    network.admin_state_up = not wish.HasField("admin_state_up") or wish.admin_state_up
    network.port_security_enabled = not wish.HasField("port_security_enabled") or wish.port_security_enabled
    network.mtu = wish.mtu or (EXTERNAL_MTU if wish.router_external else OVERLAY_MTU)
    network.availability_zones[:] = []
    network.tags[:] = tags(wish.tags)
    network.provider_network_type = "vxlan"
    network.provider_segmentation_id = proposals.vni(tx, network.id, wish.provider_segmentation_id)
    network.ClearField("provider_physical_network")
    network.ClearField("vlan_transparent")
    _one_default(tx, network)
    stamp(network)
    tx.put(NETWORK, network)
    quota.charge(tx, SERVICE, project_id, QUOTA, network=1)
    return network


def drop_network(tx: Transaction, network: Network) -> None:
    """Delete a network with its subnets and its DHCP port. Raises Conflict while it has another port."""
    if tx.rows(USE, "thing", network.id):
        raise in_use("network", network.id, f"There are one or more ports still in use on the network {network.id}.")
    tx.guard_empty(USE, network.id)
    port = dhcp_port(tx, network)
    if port is not None:
        tx.delete(PORT, port.id)
    subnets = tx.rows(SUBNET, "network", network.id)
    for subnet in subnets:
        tx.delete(SUBNET, subnet.id)
    tx.delete(VNI, str(network.provider_segmentation_id))
    tx.delete(NETWORK, network.id)
    quota.charge(tx, SERVICE, network.project_id, QUOTA, network=-1, subnet=-len(subnets))


def visible(database: Database, caller: Caller) -> list[Network]:
    """Every network that the caller may see, once."""
    if caller.is_admin:
        return database.cache.all(NETWORK)
    found = {network.id: network for where in ("shared", "external") for network in database.cache.by(NETWORK, "public", where)}
    if caller.project_id:
        found.update((network.id, network) for network in database.cache.by(NETWORK, "project", caller.project_id))
    return list(found.values())


def seen(network: Network, caller: Caller) -> Network:
    """A network as the caller may see it."""
    if caller.is_admin:
        return network
    shown = Network()
    shown.CopyFrom(network)
    for name in ("provider_network_type", "provider_physical_network", "provider_segmentation_id"):
        shown.ClearField(name)
    return shown


def _check(wish: Network) -> None:
    check_texts(wish, "name", "description", "dns_domain")
    check_count("availability_zone_hints", wish.availability_zone_hints, 10)
    for hint in wish.availability_zone_hints:
        if len(hint) > 255:
            raise Invalid("network.availability_zone_hints", "An availability zone's name has at most 255 characters.")
    if wish.mtu and not 68 <= wish.mtu <= 9166:
        raise Invalid("network.mtu", f"Invalid input for mtu: {wish.mtu} is not 68 to 9166.")
    if wish.provider_network_type not in ("", "vxlan"):
        raise Invalid(
            "network.provider",
            f"The network type '{wish.provider_network_type[:40]}' is not offered: networks are vxlan; "
            "an external network is one with router:external.",
        )
    if wish.HasField("provider_segmentation_id") and not 1 <= wish.provider_segmentation_id <= MAX_VNI:
        raise Invalid("network.provider", f"provider:segmentation_id {wish.provider_segmentation_id} is not 1 to {MAX_VNI}.")


def _check_change(tx: Transaction, network: Network, wish: Network, names: set[str]) -> None:
    if (
        "router_external" in names
        and network.router_external
        and not wish.router_external
        and tx.rows(ROUTER, "external", network.id)
    ):
        raise in_use("network", network.id, "External network is used by routers as their gateway.")
    if "shared" in names and network.shared and not wish.shared:
        strangers = [port for port in tx.rows(PORT, "network", network.id) if port.project_id not in ("", network.project_id)]
        if strangers:
            raise Conflict(
                "network.network.shared",
                f"Unable to reconfigure sharing settings for network {network.name}. Multiple tenants are using it.",
            )


def _one_default(tx: Transaction, network: Network) -> None:
    if network.is_default and not network.router_external:
        raise Invalid("network.is_default", "Only an external network can be the default one.")
    others = [other for other in tx.rows(NETWORK, "public", "external") if other.is_default and other.id != network.id]
    if network.is_default and others:
        raise Conflict("network.is_default", f"A default external network already exists: {others[0].id}.")
