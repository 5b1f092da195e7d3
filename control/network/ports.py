"""Ports as users make and change them; what a port takes and gives back is plugging's."""

from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty

from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Denied, Invalid
from control.kernel.rpc import Call
from control.network.access import group_of, network_of, owner_of, owns, port_of
from control.network.addressing import Proposals
from control.network.attributes import admin_only, body, check_count, check_texts, given, hostname, mac, prefix, stamp, tags
from control.network.batch import Plan, make
from control.network.groups import ensure_default
from control.network.model import (
    DHCP,
    DOMAIN,
    FLOATING,
    GATEWAY,
    INTERFACE,
    MAX_GROUPS,
    MAX_PAIRS,
    NETWORK,
    PORT,
    SERVICE,
    absent,
)
from control.network.pages import listed
from control.network.plugging import address_port, change_groups, change_mac, plug, unplug
from protos.brume.v1.options_pb2 import QueryParameter
from protos.network.v1 import ports_pb2 as pb
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.ports_pb2 import AllowedAddressPair, DnsAssignment, Port

_CHANGEABLE = (
    "name",
    "description",
    "admin_state_up",
    "fixed_ips",
    "device_id",
    "device_owner",
    "port_security_enabled",
    "security_groups",
    "allowed_address_pairs",
    "mac_address",
    "dns_name",
    "dns_domain",
    "binding_profile",
)
_SETTABLE = (*_CHANGEABLE, "project_id", "tenant_id", "network_id", "tags")


class Ports:
    def __init__(self, database: Database, proposals: Proposals):
        self._database = database
        self._proposals = proposals

    async def CreatePort(self, request: pb.CreatePortRequest, call: Call) -> pb.CreatePortResponse:
        [port] = await make(self._database, [self._plan(request, call)])
        return pb.CreatePortResponse(port=seen(self._database, port, call.caller))

    async def BatchCreatePorts(self, request: pb.BatchCreatePortsRequest, call: Call) -> pb.BatchCreatePortsResponse:
        made = await make(self._database, [self._plan(each, call) for each in request.requests])
        return pb.BatchCreatePortsResponse(ports=[seen(self._database, port, call.caller) for port in made])

    def _plan(self, request: pb.CreatePortRequest, call: Call) -> Plan:
        wish = body(request, "port")
        names = given(wish, request.update_mask, settable=_SETTABLE, verb="POST")
        admin_only(call.caller, ("binding_profile",), names, "port")
        _check(call.caller, wish)
        project_id = owner_of(call.caller, wish)

        def decide(tx: Transaction) -> Port:
            if not wish.network_id:
                raise Invalid("network.network_id", "Failed to parse request. Required attribute 'network_id' not specified")
            network = usable_network(tx, call.caller, wish.network_id)
            port = Port(
                name=wish.name,
                description=wish.description,
                project_id=project_id,
                network_id=network.id,
                device_id=wish.device_id,
                device_owner=wish.device_owner,
                dns_name=hostname(wish.dns_name),
                dns_domain=wish.dns_domain,
                tags=tags(wish.tags),
                admin_state_up=not wish.HasField("admin_state_up") or wish.admin_state_up,
            )
            if wish.mac_address:
                port.mac_address = mac(wish.mac_address)
            port.port_security_enabled = (
                wish.port_security_enabled if wish.HasField("port_security_enabled") else network.port_security_enabled
            )
            port.binding_profile.CopyFrom(wish.binding_profile)
            port.allowed_address_pairs.extend(_pairs(wish, port.mac_address))
            if "security_groups" in names:
                port.security_groups.extend(_groups(tx, call.caller, project_id, wish.security_groups))
            elif port.port_security_enabled:
                port.security_groups.append(ensure_default(tx, project_id))
            _check_security(port)
            return plug(tx, self._proposals, port, wish.fixed_ips if "fixed_ips" in names else None, charged=True)

        return Plan(project_id, decide)

    async def ShowPort(self, request: pb.ShowPortRequest, call: Call) -> pb.ShowPortResponse:
        port = port_of(self._database, call.caller, request.id)
        return pb.ShowPortResponse(port=seen(self._database, port, call.caller))

    async def ListPorts(self, request: pb.ListPortsRequest, call: Call) -> pb.ListPortsResponse:
        rows = self._candidates(call.caller, request.filters)
        for parameter in request.filters:
            if parameter.key == "fixed_ips":
                rows = [port for port in rows if _has_address(port, parameter)]
        ports, marker = listed(rows, request, lambda port: seen(self._database, port, call.caller), skip=("fixed_ips",))
        return pb.ListPortsResponse(ports=ports, next_page_marker=marker)

    async def UpdatePort(self, request: pb.UpdatePortRequest, call: Call) -> pb.UpdatePortResponse:
        wish = body(request, "port")
        names = given(wish, request.update_mask, settable=_CHANGEABLE, verb="PUT")
        admin_only(call.caller, ("binding_profile",), names, "port")
        _check(call.caller, wish)

        def decide(tx: Transaction) -> Port:
            port = port_of(tx, call.caller, request.id)
            if not owns(call.caller, port):
                raise absent("port", request.id)
            self._change(tx, call.caller, port, wish, names)
            stamp(port)
            tx.put(PORT, port)
            return port

        port = await self._database.transact(decide)
        return pb.UpdatePortResponse(port=seen(self._database, port, call.caller))

    async def DeletePort(self, request: pb.DeletePortRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            port = port_of(tx, call.caller, request.id)
            network = tx.get(NETWORK, port.network_id)
            if port.device_owner in (INTERFACE, GATEWAY, FLOATING, DHCP):
                raise Conflict(
                    "network.port.held",
                    f"Port {port.id} cannot be deleted directly via the port API: has device owner {port.device_owner}.",
                )
            if not owns(call.caller, port) and (network is None or not owns(call.caller, network)):
                raise absent("port", request.id)
            unplug(tx, port)

        project_id = port_of(self._database, call.caller, request.id).project_id
        await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return Empty()

    def _change(self, tx: Transaction, caller: Caller, port: Port, wish: Port, names: set[str]) -> None:
        for name in names & {"name", "description", "dns_domain"}:
            setattr(port, name, getattr(wish, name))
        for name in names & {"admin_state_up", "port_security_enabled"}:
            setattr(port, name, not wish.HasField(name) or getattr(wish, name))
        if "dns_name" in names:
            port.dns_name = hostname(wish.dns_name)
        if "binding_profile" in names:
            port.binding_profile.CopyFrom(wish.binding_profile)
        if "device_id" in names or "device_owner" in names:
            _change_device(port, wish, names)
        if "mac_address" in names and wish.mac_address and mac(wish.mac_address) != port.mac_address:
            if port.binding_host_id or port.device_owner.startswith("network:"):
                raise Conflict(
                    "network.port.bound",
                    f"Unable to complete operation on port {port.id}, port is already bound, port type: "
                    f"{port.binding_vif_type}, old_mac {port.mac_address}.",
                )
            change_mac(tx, port, mac(wish.mac_address))
        if "allowed_address_pairs" in names:
            del port.allowed_address_pairs[:]
            port.allowed_address_pairs.extend(_pairs(wish, port.mac_address))
        if "security_groups" in names:
            change_groups(tx, port, _groups(tx, caller, port.project_id, wish.security_groups))
        _check_security(port)
        if "fixed_ips" in names:
            if port.device_owner.startswith("network:"):
                raise Conflict(
                    "network.port.held",
                    f"The addresses of port {port.id} are its {port.device_owner.partition(':')[2]}'s: change them there.",
                )
            address_port(tx, self._proposals, port, list(wish.fixed_ips))

    def _candidates(self, caller: Caller, filters: Iterable[QueryParameter]) -> list[Port]:
        """The ports that the caller may see, narrowed by an index where a filter has one."""
        cache = self._database.cache
        for parameter in filters:
            index = {"device_id": "device", "network_id": "network"}.get(parameter.key)
            if index and all(parameter.values):
                rows = [port for value in dict.fromkeys(parameter.values) for port in cache.by(PORT, index, value)]
                return rows if caller.is_admin else [port for port in rows if self._sees(caller, port)]
        if caller.is_admin:
            return cache.all(PORT)
        if not caller.project_id:
            return []
        found = {port.id: port for port in cache.by(PORT, "project", caller.project_id)}
        for network in cache.by(NETWORK, "project", caller.project_id):
            found.update((port.id, port) for port in cache.by(PORT, "network", network.id))
        return list(found.values())

    def _sees(self, caller: Caller, port: Port) -> bool:
        network = self._database.get(NETWORK, port.network_id)
        return owns(caller, port) or (network is not None and owns(caller, network))


def usable_network(tx: Transaction, caller: Caller, network_id: str) -> Network:
    """A network that the caller may put ports on. Raises NotFound, or Denied for an external one of others."""
    network = network_of(tx, caller, network_id)
    if not (owns(caller, network) or network.shared):
        raise Denied(
            "network.network.external",
            f"Tenant {caller.project_id} not allowed to create port on external network {network_id}: "
            "connect a router to it, or use a floating IP.",
        )
    return network


def seen(database: Database, port: Port, caller: Caller) -> Port:
    """A port as the caller may see it, with the names that follow from its dns_name."""
    shown = Port()
    shown.CopyFrom(port)
    if caller.is_admin:
        shown.binding_vif_details.SetInParent()
        shown.binding_profile.SetInParent()
    else:
        for name in ("binding_host_id", "binding_vif_type", "binding_vif_details", "binding_profile"):
            shown.ClearField(name)
    network = database.get(NETWORK, port.network_id)
    domain = port.dns_domain or (network.dns_domain if network else "") or DOMAIN
    del shown.dns_assignment[:]
    for fixed in port.fixed_ips:
        label = port.dns_name or "host-" + fixed.ip_address.replace(".", "-").replace(":", "-")
        shown.dns_assignment.append(
            DnsAssignment(hostname=label, ip_address=fixed.ip_address, fqdn=f"{label}.{domain.rstrip('.')}.")
        )
    return shown


def _check(caller: Caller, wish: Port) -> None:
    check_texts(wish, "name", "description", "device_id", "device_owner", "dns_domain")
    if wish.device_owner.startswith("network:") and not caller.is_admin:
        raise Denied("network.device_owner", "Only the cloud itself has ports with a device_owner of network:...")
    if wish.binding_profile.ByteSize() > 4096:
        raise Invalid("network.binding_profile", "binding:profile has more than 4096 bytes.")


def _change_device(port: Port, wish: Port, names: set[str]) -> None:
    device_id = wish.device_id if "device_id" in names else port.device_id
    owner = wish.device_owner if "device_owner" in names else port.device_owner
    if (device_id, owner) == (port.device_id, port.device_owner):
        return
    if port.position or port.device_owner.startswith("network:"):
        raise Conflict("network.port.held", f"Port {port.id} is in use by {port.device_owner} {port.device_id}: detach it there.")
    port.device_id, port.device_owner = device_id, owner


def _groups(tx: Transaction, caller: Caller, project_id: str, wanted: Iterable[str]) -> list[str]:
    """Groups that a port of a project may have. Raises NotFound for a foreign one."""
    ids = list(dict.fromkeys(wanted))
    check_count("security_groups", ids, MAX_GROUPS)
    for group_id in ids:
        group = group_of(tx, caller, group_id)
        if group.project_id != project_id:
            raise absent("security_group", group_id)
    return ids


def _pairs(wish: Port, own_mac: str) -> list[AllowedAddressPair]:
    check_count("allowed_address_pairs", wish.allowed_address_pairs, MAX_PAIRS)
    pairs = []
    for pair in wish.allowed_address_pairs:
        cidr = prefix(pair.ip_address, "allowed_address_pairs", strict=False)
        ip = pair.ip_address if "/" in pair.ip_address else str(cidr.network_address)
        pairs.append(AllowedAddressPair(ip_address=ip, mac_address=mac(pair.mac_address) if pair.mac_address else own_mac))
    return pairs


def _check_security(port: Port) -> None:
    if not port.port_security_enabled and (port.security_groups or port.allowed_address_pairs):
        raise Conflict(
            "network.port_security",
            "Port security must be enabled in order to have allowed address pairs or security groups "
            "on a port: take them off it.",
        )


def _has_address(port: Port, parameter: QueryParameter) -> bool:
    """Whether a port has what "ip_address=...", "subnet_id=..." and "ip_address_substr=..." ask for; each takes alternatives."""
    asked: dict[str, list[str]] = {}
    for value in parameter.values:
        key, _, text = value.partition("=")
        asked.setdefault(key, []).append(text)
    tests = {
        "ip_address": lambda texts: any(fixed.ip_address in texts for fixed in port.fixed_ips),
        "subnet_id": lambda texts: any(fixed.subnet_id in texts for fixed in port.fixed_ips),
        "ip_address_substr": lambda texts: any(text in fixed.ip_address for fixed in port.fixed_ips for text in texts),
    }
    return all(tests[key](texts) for key, texts in asked.items() if key in tests)
