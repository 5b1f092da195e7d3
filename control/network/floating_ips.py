"""Floating IPs as users take, lead and give them back. A port on the external network holds each one's address."""

import uuid

from google.protobuf.empty_pb2 import Empty

from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Denied, Invalid
from control.kernel.rpc import Call
from control.network.access import floating_of, network_of, owner_of, owns, port_of
from control.network.addressing import Proposals
from control.network.attributes import body, check_texts, given, stamp, tags
from control.network.floating import lead, release
from control.network.model import FLOATING, FLOATING_IP, PORT, QUOTA, SERVICE, absent
from control.network.pages import listed
from control.network.plugging import plug, unplug
from protos.network.v1 import floatingips_pb2 as pb
from protos.network.v1.floatingips_pb2 import FloatingIp, PortDetails
from protos.network.v1.ports_pb2 import FixedIp, Port

_CHANGEABLE = ("description", "port_id", "fixed_ip_address")
_SETTABLE = (
    *_CHANGEABLE,
    "project_id",
    "tenant_id",
    "floating_network_id",
    "floating_ip_address",
    "subnet_id",
    "dns_name",
    "dns_domain",
    "tags",
)


class FloatingIps:
    def __init__(self, database: Database, proposals: Proposals):
        self._database = database
        self._proposals = proposals

    async def CreateFloatingIp(self, request: pb.CreateFloatingIpRequest, call: Call) -> pb.CreateFloatingIpResponse:
        wish = body(request, "floatingip")
        given(wish, request.update_mask, settable=_SETTABLE, verb="POST")
        check_texts(wish, "description", "dns_domain")
        check_texts(wish, "dns_name", limit=63)
        if wish.floating_ip_address and not call.caller.is_admin:
            raise Denied("network.floatingip.address", "Only an admin may choose the address of a floating IP.")
        if wish.fixed_ip_address and not wish.port_id:
            raise Invalid("network.floatingip.port", "fixed_ip_address cannot be specified without a port_id")
        project_id = owner_of(call.caller, wish)

        def decide(tx: Transaction) -> FloatingIp:
            floating = self._take(tx, call.caller, wish, project_id)
            if wish.port_id:
                lead(tx, floating, _target(tx, call.caller, wish.port_id), wish.fixed_ip_address)
            stamp(floating)
            tx.put(FLOATING_IP, floating)
            quota.charge(tx, SERVICE, project_id, QUOTA, floatingip=1)
            return floating

        floating = await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return pb.CreateFloatingIpResponse(floatingip=seen(self._database, floating))

    async def ShowFloatingIp(self, request: pb.ShowFloatingIpRequest, call: Call) -> pb.ShowFloatingIpResponse:
        floating = floating_of(self._database, call.caller, request.id)
        return pb.ShowFloatingIpResponse(floatingip=seen(self._database, floating))

    async def ListFloatingIps(self, request: pb.ListFloatingIpsRequest, call: Call) -> pb.ListFloatingIpsResponse:
        cache, caller = self._database.cache, call.caller
        rows = (
            cache.all(FLOATING_IP)
            if caller.is_admin
            else cache.by(FLOATING_IP, "project", caller.project_id)
            if caller.project_id
            else []
        )
        page, marker = listed(rows, request, lambda floating: seen(self._database, floating))
        return pb.ListFloatingIpsResponse(floatingips=page, next_page_marker=marker)

    async def UpdateFloatingIp(self, request: pb.UpdateFloatingIpRequest, call: Call) -> pb.UpdateFloatingIpResponse:
        wish = body(request, "floatingip")
        names = given(wish, request.update_mask, settable=_CHANGEABLE, verb="PUT")
        check_texts(wish, "description")

        def decide(tx: Transaction) -> FloatingIp:
            floating = floating_of(tx, call.caller, request.id)
            if "description" in names:
                floating.description = wish.description
            port_id = wish.port_id if "port_id" in names else floating.port_id if "fixed_ip_address" in names else ""
            if wish.fixed_ip_address and not port_id:
                raise Invalid("network.floatingip.port", "fixed_ip_address cannot be specified without a port_id")
            if names & {"port_id", "fixed_ip_address"}:
                release(tx, floating)
                if port_id:
                    lead(tx, floating, _target(tx, call.caller, port_id), wish.fixed_ip_address)
            stamp(floating)
            tx.put(FLOATING_IP, floating)
            return floating

        return pb.UpdateFloatingIpResponse(floatingip=seen(self._database, await self._database.transact(decide)))

    async def DeleteFloatingIp(self, request: pb.DeleteFloatingIpRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            floating = floating_of(tx, call.caller, request.id)
            release(tx, floating)
            unplug(tx, tx.require(PORT, floating.holder_port_id))
            tx.delete(FLOATING_IP, floating.id)
            quota.charge(tx, SERVICE, floating.project_id, QUOTA, floatingip=-1)

        project_id = floating_of(self._database, call.caller, request.id).project_id
        await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return Empty()

    def _take(self, tx: Transaction, caller: Caller, wish: FloatingIp, project_id: str) -> FloatingIp:
        """A floating IP that leads nowhere, with the port that holds its address."""
        if not wish.floating_network_id:
            raise Invalid(
                "network.floatingip.network", "Failed to parse request. Required attribute 'floating_network_id' not specified"
            )
        network = network_of(tx, caller, wish.floating_network_id)
        if not network.router_external:
            raise Invalid("network.floatingip.network", f"Network {network.id} is not a valid external network")
        floating = FloatingIp(
            id=str(uuid.uuid4()),
            description=wish.description,
            project_id=project_id,
            tenant_id=project_id,
            floating_network_id=network.id,
            status="DOWN",
            dns_name=wish.dns_name,
            dns_domain=wish.dns_domain,
            tags=tags(wish.tags),
        )
        wanted = (
            [FixedIp(subnet_id=wish.subnet_id, ip_address=wish.floating_ip_address)]
            if wish.subnet_id or wish.floating_ip_address
            else None
        )
        port = plug(
            tx,
            self._proposals,
            Port(network_id=network.id, device_id=floating.id, device_owner=FLOATING, status="N/A", port_security_enabled=False),
            wanted,
        )
        fours = [fixed.ip_address for fixed in port.fixed_ips if "." in fixed.ip_address]
        if not fours:
            raise Invalid("network.floatingip.network", f"Network {network.id} does not contain any IPv4 subnet")
        floating.floating_ip_address = fours[0]
        floating.holder_port_id = port.id
        return floating


def seen(database: Database, floating: FloatingIp) -> FloatingIp:
    """A floating IP with what is told of its port."""
    shown = FloatingIp()
    shown.CopyFrom(floating)
    shown.ClearField("subnet_id")
    port = database.get(PORT, floating.port_id) if floating.port_id else None
    if port is not None:
        shown.port_details.CopyFrom(details(port))
    return shown


def details(port: Port) -> PortDetails:
    """What a floating IP tells of its port."""
    return PortDetails(
        name=port.name,
        network_id=port.network_id,
        mac_address=port.mac_address,
        admin_state_up=port.admin_state_up,
        status=port.status,
        device_id=port.device_id,
        device_owner=port.device_owner,
    )


def _target(tx: Transaction, caller: Caller, port_id: str) -> Port:
    """A port of the caller's own."""
    port = port_of(tx, caller, port_id)
    if not owns(caller, port):
        raise absent("port", port_id)
    return port
