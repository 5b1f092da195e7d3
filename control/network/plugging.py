"""Making ports and taking them away, inside somebody's transaction: the one place where addresses, MACs and uses are written.

Every port is made and dropped here, be it a user's, a server's, a router's, DHCP's or a floating IP's holder, so that what a port
holds is taken and given back by one pair of functions.
"""

import random
import uuid
from collections.abc import Iterable, Sequence

from control.kernel import quota
from control.kernel.database import Transaction
from control.kernel.errors import Conflict, Invalid
from control.network import floating
from control.network.addressing import Proposals, usable
from control.network.attributes import address, check_count, prefix, stamp
from control.network.model import (
    ALLOCATION,
    DHCP,
    FLOATING_IP,
    GROUP,
    MAX_FIXED_IPS,
    NETWORK,
    PORT,
    QUOTA,
    SERVICE,
    SUBNET,
    USE,
    absent,
    role,
)
from protos.network.v1.networks_pb2 import Network
from protos.network.v1.ports_pb2 import FixedIp, Port
from protos.network.v1.records_pb2 import UseRecord
from protos.network.v1.subnets_pb2 import Subnet


def plug(tx: Transaction, proposals: Proposals, port: Port, wanted: Sequence[FixedIp] | None, *, charged: bool = False) -> Port:
    """Make a port of what is set in `port` (network, owner, device, MAC if wished, groups); it is in the transaction when done.

    Args:
      wanted: its addresses; None: one of each version that the network has; []: none.
      charged: count it in its project's quota.

    Raises NotFound for the network, Invalid and Conflict for a MAC or an address, Exhausted over quota.
    """
    network = tx.get(NETWORK, port.network_id)
    if network is None:
        raise absent("network", port.network_id)
    port.id = port.id or str(uuid.uuid4())
    port.tenant_id = port.project_id
    port.charged = charged
    if not port.HasField("admin_state_up"):
        port.admin_state_up = True
    port.status = port.status or "DOWN"
    port.binding_vnic_type = "normal"
    unbind(port)
    _take_mac(tx, port)
    address_port(tx, proposals, port, wanted)
    for group_id in port.security_groups:
        _use_group(tx, group_id, port.id)
    tx.guard_exists(NETWORK, network.id)
    stamp(port)
    tx.put(PORT, port)
    if charged:
        quota.charge(tx, SERVICE, port.project_id, QUOTA, port=1)
    return port


def unplug(tx: Transaction, port: Port) -> None:
    """Take a port away with all that it holds; floating IPs on it become free."""
    for leading in tx.rows(FLOATING_IP, "port", port.id):
        floating.free(tx, leading.id)
    for fixed in port.fixed_ips:
        tx.delete(ALLOCATION, fixed.subnet_id, fixed.ip_address)
    for group_id in port.security_groups:
        tx.delete(USE, group_id, port.id)
    tx.delete(USE, port.network_id, port.mac_address)
    tx.delete(PORT, port.id)
    if port.charged:
        quota.charge(tx, SERVICE, port.project_id, QUOTA, port=-1)


def unbind(port: Port) -> None:
    """Say that a port is on no host."""
    bind(port, "")


def bind(port: Port, host: str) -> None:
    """Say which host a port is on; "" for none."""
    port.binding_host_id = host
    port.binding_vif_type = "bridge" if host else "unbound"


def change_mac(tx: Transaction, port: Port, mac: str) -> None:
    """Give a port another MAC. Raises Conflict where the network has it."""
    if mac != port.mac_address:
        tx.delete(USE, port.network_id, port.mac_address)
        port.mac_address = mac
        _take_mac(tx, port)


def change_groups(tx: Transaction, port: Port, group_ids: Iterable[str]) -> None:
    """Put a port into other security groups, which the caller has found to be the owner's."""
    wanted = list(dict.fromkeys(group_ids))
    for group_id in set(port.security_groups) - set(wanted):
        tx.delete(USE, group_id, port.id)
    for group_id in set(wanted) - set(port.security_groups):
        _use_group(tx, group_id, port.id)
    port.security_groups[:] = wanted


def address_port(tx: Transaction, proposals: Proposals, port: Port, wanted: Sequence[FixedIp] | None) -> None:
    """Give a port exactly these addresses; what it has and keeps is left alone.

    Raises Invalid for a bad wish, Conflict where an address is taken, none is left, or a floating IP leads to one that would go.
    """
    if wanted is not None:
        check_count("fixed_ips", wanted, MAX_FIXED_IPS)
    subnets = sorted(tx.rows(SUBNET, "network", port.network_id), key=lambda subnet: subnet.created_at.ToNanoseconds())
    before = [(fixed.subnet_id, fixed.ip_address) for fixed in port.fixed_ips]
    if wanted is None:
        _set_addresses(port, _one_each(tx, proposals, subnets, port.id))
        return
    placed = [_placed(subnets, port.network_id, wish) for wish in wanted]
    named = {(subnet.id, ip) for subnet, ip in placed if ip}
    kept = [pair for pair in before if pair in named]
    spare = [pair for pair in before if pair not in named]
    after = []
    for subnet, ip in placed:
        if not ip:  # "any of this subnet": one that the port has will do
            ip = next((have for of, have in spare if of == subnet.id), "")
            if ip:
                spare.remove((subnet.id, ip))
            else:
                ip = proposals.take(tx, subnet, port.id)
        elif (subnet.id, ip) not in kept:
            ip = proposals.take(tx, subnet, port.id, ip)
        if (subnet.id, ip) in after:
            raise Invalid("network.fixed_ips", f"Invalid input for fixed_ips: {ip} is named twice.")
        after.append((subnet.id, ip))
    gone = [pair for pair in before if pair not in after]
    led = {leading.fixed_ip_address for leading in tx.rows(FLOATING_IP, "port", port.id)} if gone else set()
    for subnet_id, ip in gone:
        if ip in led:
            raise Conflict(
                "network.port.floating", f"The address {ip} of port {port.id} has a floating IP: take that away first."
            )
        tx.delete(ALLOCATION, subnet_id, ip)
    _set_addresses(port, after)


def dhcp_port(tx: Transaction, network: Network) -> Port | None:
    """A network's DHCP port, if it has one; a copy."""
    found = tx.rows(PORT, "role", role(network.id, DHCP))
    return tx.get(PORT, found[0].id) if found else None


def settle_dhcp(tx: Transaction, network: Network, subnets: Iterable[Subnet]) -> None:
    """Make the network's DHCP port have what its subnets say: an address in each that has DHCP, and no port without any."""
    fixed = [FixedIp(subnet_id=subnet.id, ip_address=subnet.dhcp_ip) for subnet in subnets if subnet.dhcp_ip]
    port = dhcp_port(tx, network)
    if not fixed:
        if port is not None:
            tx.delete(PORT, port.id)
        return
    if port is None:
        port = Port(
            id=str(uuid.uuid4()),
            project_id=network.project_id,
            tenant_id=network.project_id,
            network_id=network.id,
            device_id=f"dhcp-{network.id}",
            device_owner=DHCP,
            status="ACTIVE",
            admin_state_up=True,
            port_security_enabled=False,
            binding_vnic_type="normal",
            mac_address=_free_mac(tx, network.id),
        )
        unbind(port)
    _set_addresses(port, [(one.subnet_id, one.ip_address) for one in fixed])
    stamp(port)
    tx.put(PORT, port)


def _one_each(tx: Transaction, proposals: Proposals, subnets: Sequence[Subnet], port_id: str) -> list[tuple[str, str]]:
    """A new address in the first subnet of each version that has one left, as (subnet, address).

    Raises Conflict where a version has subnets and none has one.
    """
    taken = []
    for version in (4, 6):
        candidates = [subnet for subnet in subnets if subnet.ip_version == version]
        for subnet in candidates:
            try:
                taken.append((subnet.id, proposals.take(tx, subnet, port_id)))
                break
            except Conflict:
                if subnet is candidates[-1]:
                    raise
    return taken


def _set_addresses(port: Port, pairs: Iterable[tuple[str, str]]) -> None:
    del port.fixed_ips[:]
    port.fixed_ips.extend(FixedIp(subnet_id=subnet_id, ip_address=ip) for subnet_id, ip in pairs)
    port.ip_allocation = "immediate" if port.fixed_ips else "none"


def _placed(subnets: Sequence[Subnet], network_id: str, wish: FixedIp) -> tuple[Subnet, str]:
    """The subnet that a wish means, and its address in canonical form ("" for any)."""
    ip = str(address(wish.ip_address, "ip_address")) if wish.ip_address else ""
    if wish.subnet_id:
        for subnet in subnets:
            if subnet.id == wish.subnet_id:
                if ip and not usable(address(ip, "ip_address"), prefix(subnet.cidr, "cidr")):
                    raise Invalid(
                        "network.fixed_ips", f"IP address {ip} is not a valid IP for the specified subnet {subnet.cidr}."
                    )
                return subnet, ip
        raise Invalid(
            "network.fixed_ips",
            f"Failed to create port on network {network_id}, because fixed_ips included invalid subnet {wish.subnet_id[:80]}",
        )
    if not ip:
        raise Invalid("network.fixed_ips", "Invalid input for fixed_ips: each item names a subnet_id, an ip_address or both.")
    for subnet in subnets:
        if usable(address(ip, "ip_address"), prefix(subnet.cidr, "cidr")):
            return subnet, ip
    raise Invalid("network.fixed_ips", f"IP address {ip} is not a valid IP for any of the subnets on the specified network.")


def _take_mac(tx: Transaction, port: Port) -> None:
    if not port.mac_address:
        port.mac_address = _free_mac(tx, port.network_id)
    elif not _mac_is_free(tx, port.network_id, port.mac_address):
        raise Conflict(
            "network.mac_address.in_use",
            f"Unable to complete operation for network {port.network_id}. The mac address {port.mac_address} is in use.",
        )
    tx.put(USE, UseRecord(thing=port.network_id, user=port.mac_address))


def _free_mac(tx: Transaction, network_id: str) -> str:
    for _ in range(64):
        octets = random.getrandbits(24).to_bytes(3, "big")
        mac = "fa:16:3e:" + octets.hex(":")
        if _mac_is_free(tx, network_id, mac):
            return mac
    raise Conflict("network.mac_address.exhausted", f"No MAC address is left on network {network_id}.")


def _mac_is_free(tx: Transaction, network_id: str, mac: str) -> bool:
    if tx.get(USE, network_id, mac) is not None:
        return False
    return all(port.mac_address != mac for port in tx.rows(PORT, "role", role(network_id, DHCP)))


def _use_group(tx: Transaction, group_id: str, user: str) -> None:
    tx.put(USE, UseRecord(thing=group_id, user=user))
    tx.guard_exists(GROUP, group_id)
