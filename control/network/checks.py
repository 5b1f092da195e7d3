"""What must agree among ports, the keys that make their addresses and MACs unique, floating IPs, VNIs and ledgers."""
from collections.abc import Iterator

from control.kernel.cache import Kind
from control.kernel.database import Transaction
from control.kernel.findings import Check, Finding, ledgers
from control.network import floating
from control.network.model import (
    ALLOCATION,
    DEFAULT_GROUP,
    DHCP,
    FLOATING_IP,
    GROUP,
    NETWORK,
    PORT,
    ROUTER,
    SERVICE,
    SUBNET,
    USE,
    VNI,
)
from protos.network.v1.records_pb2 import AllocationRecord, UseRecord, VniRecord


def checks() -> list[Check]:
    return [Check("network.addresses", "Each address of a port is its own, and each that is taken has its port.", addresses),
            Check("network.uses", "MACs, security groups and router interfaces are kept by those who use them.", uses),
            Check("network.vnis", "Each network has its VNI, and each VNI its network.", vnis),
            Check("network.floating_ips", "Floating IPs lead to ports that there are.", floating_ips),
            Check("network.ports", "Ports are on networks that there are.", ports),
            Check("network.default_groups", "The default security group of each project is there.", default_groups),
            Check("network.quota", "Each project's ledger is what a recount of its networks says.", recount)]


def addresses(tx: Transaction) -> Iterator[Finding]:
    taken = {(record.subnet_id, record.ip): record.port_id for record in tx.rows(ALLOCATION)}
    wanted: dict[tuple[str, str], str] = {}
    for port in tx.rows(PORT):
        if port.device_owner == DHCP:           # its addresses stand in the subnets
            continue
        for fixed in port.fixed_ips:
            where = (fixed.subnet_id, fixed.ip_address)
            if where in wanted:
                yield Finding(f"port {port.id}", f"has the address {fixed.ip_address}, and so has port {wanted[where]}",
                              "Two guests with one address disturb each other.",
                              remedy="Delete one of the ports, or give it another address.")
                continue
            wanted[where] = port.id
            if taken.get(where) != port.id:
                def mend(tx: Transaction, where: tuple[str, str] = where, port_id: str = port.id) -> None:
                    tx.guard_unchanged(PORT, port_id)
                    tx.put(ALLOCATION, AllocationRecord(subnet_id=where[0], ip=where[1], port_id=port_id))

                yield Finding(f"port {port.id}", f"its address {fixed.ip_address} is written to {taken.get(where) or 'nobody'}",
                              "Another port could get the same address.", remedy="Write the address down for it.", mend=mend)
    for where, port_id in taken.items():
        if where not in wanted:
            def free(tx: Transaction, where: tuple[str, str] = where, port_id: str = port_id) -> None:
                tx.guard_unchanged(PORT, port_id)
                tx.delete(ALLOCATION, *where)

            yield Finding(f"address {where[1]} of subnet {where[0]}", f"is taken by port {port_id}, which is gone or has others",
                          "Nobody can have the address, and the subnet cannot be deleted.", remedy="Free the address.", mend=free)


def uses(tx: Transaction) -> Iterator[Finding]:
    there = {(record.thing, record.user) for record in tx.rows(USE)}
    wanted: dict[tuple[str, str], tuple[str, str]] = {}        # (thing, user) -> what wants it: (kind of thing, id)
    for port in tx.rows(PORT):
        if port.device_owner != DHCP:
            wanted[port.network_id, port.mac_address] = ("port", port.id)
            wanted.update({(group_id, port.id): ("port", port.id) for group_id in port.security_groups})
    for group in tx.rows(GROUP):
        for rule in group.security_group_rules:
            if rule.remote_group_id and rule.remote_group_id != group.id:
                wanted[rule.remote_group_id, group.id] = ("group", group.id)
    for leading in tx.rows(FLOATING_IP):
        for through in (leading.interface_port_id, leading.gateway_port_id):
            if through:
                wanted[through, leading.id] = ("floating", leading.id)
    kinds: dict[str, Kind] = {"port": PORT, "group": GROUP, "floating": FLOATING_IP}
    for pair in sorted(wanted.keys() - there):
        kind, identifier = wanted[pair]

        def mend(tx: Transaction, pair: tuple[str, str] = pair, kind: str = kind, identifier: str = identifier) -> None:
            tx.guard_unchanged(kinds[kind], identifier)
            tx.put(USE, UseRecord(thing=pair[0], user=pair[1]))

        yield Finding(f"{kind} {identifier}", f"its use of {pair[0]} ({pair[1]}) is not written down",
                      "What it uses could be deleted under it, or given to another.", remedy="Write it down.", mend=mend)
    for pair in sorted(there - wanted.keys()):
        def drop(tx: Transaction, pair: tuple[str, str] = pair) -> None:
            for kind in kinds.values():            # its user, but for MACs, is one of these or nothing
                tx.guard_unchanged(kind, pair[1])
            tx.delete(USE, *pair)

        yield Finding(f"use of {pair[0]} by {pair[1]}", "nothing uses it so", "What is used cannot be deleted.",
                      remedy="Delete the note.", mend=drop)


def vnis(tx: Transaction) -> Iterator[Finding]:
    known = {record.vni: record.network_id for record in tx.rows(VNI)}
    owners = {}
    for network in tx.rows(NETWORK):
        number = network.provider_segmentation_id
        owners[number] = network.id
        if known.get(number) != network.id:
            def mend(tx: Transaction, number: int = number, network_id: str = network.id) -> None:
                tx.guard_unchanged(NETWORK, network_id)
                tx.put(VNI, VniRecord(vni=number, network_id=network_id))

            yield Finding(f"network {network.id}", f"its VNI {number} is written to {known.get(number) or 'nobody'}",
                          "Another network could get the same VNI.", remedy="Write the VNI down for it.", mend=mend)
    for number, network_id in known.items():
        if number not in owners:
            def free(tx: Transaction, number: int = number, network_id: str = network_id) -> None:
                tx.guard_unchanged(NETWORK, network_id)
                tx.delete(VNI, str(number))

            yield Finding(f"VNI {number}", f"belongs to network {network_id}, which is gone", "No network can have it.",
                          remedy="Free the VNI.", mend=free)


def floating_ips(tx: Transaction) -> Iterator[Finding]:
    for leading in tx.rows(FLOATING_IP):
        through: list[tuple[str, Kind, str]] = [
            ("port", PORT, leading.port_id), ("router", ROUTER, leading.router_id),
            ("interface", PORT, leading.interface_port_id), ("gateway", PORT, leading.gateway_port_id)]
        gone = [f"{noun} {identifier}" for noun, kind, identifier in through if identifier and tx.get(kind, identifier) is None]
        if gone:
            def mend(tx: Transaction, identifier: str = leading.id) -> None:
                floating.free(tx, identifier)

            yield Finding(f"floating IP {leading.floating_ip_address} ({leading.id})",
                          f"leads through {', '.join(gone)}, which is not there", "It says ACTIVE and reaches nothing.",
                          remedy="Lead it nowhere, so that its owner can use it again.", mend=mend)


def ports(tx: Transaction) -> Iterator[Finding]:
    networks = {network.id for network in tx.rows(NETWORK)}
    subnets = {subnet.id for subnet in tx.rows(SUBNET)}
    for port in tx.rows(PORT):
        if port.network_id not in networks:
            yield Finding(f"port {port.id}", f"its network {port.network_id} is gone", "It can never be wired.",
                          remedy="Delete the port, or the server that has it.")
        for fixed in port.fixed_ips:
            if fixed.subnet_id not in subnets:
                yield Finding(f"port {port.id}", f"its address {fixed.ip_address} is of subnet {fixed.subnet_id}, which is gone",
                              "Nothing routes or serves the address.", remedy="Give the port another address, or delete it.")


def default_groups(tx: Transaction) -> Iterator[Finding]:
    for record in tx.rows(DEFAULT_GROUP):
        if tx.get(GROUP, record.security_group_id) is None:
            def mend(tx: Transaction, project_id: str = record.project_id, group_id: str = record.security_group_id) -> None:
                tx.guard_unchanged(GROUP, group_id)
                tx.delete(DEFAULT_GROUP, project_id)

            yield Finding(f"project {record.project_id}", f"its default security group {record.security_group_id} is gone",
                          "New ports of the project name a group that is not there.",
                          remedy="Forget it; the next port makes a new one.", mend=mend)


def recount(tx: Transaction) -> Iterator[Finding]:
    used: dict[str, dict[str, int]] = {}

    def count(project_id: str, resource: str, amount: int = 1) -> None:
        mine = used.setdefault(project_id, {})
        mine[resource] = mine.get(resource, 0) + amount

    owner = {}
    for network in tx.rows(NETWORK):
        owner[network.id] = network.project_id
        count(network.project_id, "network")
    for subnet in tx.rows(SUBNET):
        count(owner.get(subnet.network_id, subnet.project_id), "subnet")
    for port in tx.rows(PORT):
        if port.charged:
            count(port.project_id, "port")
    for router in tx.rows(ROUTER):
        count(router.project_id, "router")
    for leading in tx.rows(FLOATING_IP):
        count(leading.project_id, "floatingip")
    for group in tx.rows(GROUP):
        count(group.project_id, "security_group")
        count(group.project_id, "security_group_rule", len(group.security_group_rules))
    yield from ledgers(tx, SERVICE, used)
