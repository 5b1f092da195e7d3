"""Which address comes next, and which subnets and pools there may be.

An address is given by writing its key in the commit of the port that gets it; what is here only proposes. Proposals go
round: each continues after the last, so that callers at the same time are offered different addresses and a free one is
found at once while the subnet is not nearly full.
"""

import ipaddress
import itertools
import socket
from collections.abc import Iterable, Iterator, Sequence

from control.kernel.database import Transaction
from control.kernel.errors import Conflict, Invalid
from control.kernel.store import Guard
from control.network.attributes import Address, Prefix, address
from control.network.model import ALLOCATION, SUBNET, VNI
from protos.network.v1.records_pb2 import AllocationRecord, VniRecord
from protos.network.v1.subnets_pb2 import AllocationPool, Subnet

MAX_VNI = 2**24 - 1

#: Cursors that are remembered at most; forgetting one costs one search from the start.
_REMEMBERED = 100_000

_REFUSED = tuple(
    ipaddress.ip_network(text)
    for text in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/128", "::1/128", "ff00::/8", "fe80::/10")
)


class Proposals:
    """Proposes free addresses and VNIs. One for a process; it may forget anything at any time."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}

    def take(self, tx: Transaction, subnet: Subnet, port_id: str, wished: str = "") -> str:
        """Give a port an address of a subnet, the wished one or any that is free, and write its key.

        Raises Invalid for a wish outside the subnet, Conflict where it is taken or none is left.
        """
        if wished:
            ip = str(inside(subnet, wished))
            if ip == subnet.dhcp_ip or tx.get(ALLOCATION, subnet.id, ip) is not None:
                raise Conflict("network.address.in_use", f"IP address {ip} already allocated in subnet {subnet.id}.")
        else:
            ip = self.free(tx, subnet)
        tx.put(ALLOCATION, AllocationRecord(subnet_id=subnet.id, ip=ip, port_id=port_id))
        tx.guard_unchanged(SUBNET, subnet.id)
        return ip

    def reserve(self, tx: Transaction, subnet: Subnet) -> str:
        """A free address for what stands in the subnet's own record, which the caller writes in the same commit."""
        ip = self.free(tx, subnet)
        tx.guard(Guard.unchanged(ALLOCATION.key(subnet.id, ip), 0))
        return ip

    def free(self, tx: Transaction, subnet: Subnet) -> str:
        """An address of the pools that nobody has. Raises Conflict when there is none."""
        ranges = [
            (int(ipaddress.ip_address(pool.start)), int(ipaddress.ip_address(pool.end))) for pool in subnet.allocation_pools
        ]
        kind = ipaddress.IPv4Address if subnet.ip_version == 4 else ipaddress.IPv6Address
        for number in _around(ranges, self._next.get(subnet.id, 0)):
            ip = str(kind(number))
            if ip not in (subnet.gateway_ip, subnet.dhcp_ip) and tx.get(ALLOCATION, subnet.id, ip) is None:
                self._remember(subnet.id, number + 1)
                return ip
        raise Conflict(
            "network.address.exhausted",
            f"No more IP addresses available on network {subnet.network_id}: "
            f"every address of subnet {subnet.id} ({subnet.cidr}) is in use.",
        )

    def vni(self, tx: Transaction, network_id: str, wished: int = 0) -> int:
        """Give a network its VNI and write its key. Raises Conflict where the wished one is taken or none is left."""
        if wished:
            if tx.get(VNI, str(wished)) is not None:
                raise Conflict("network.vni.in_use", f"The VNI {wished} is in use by another network.")
            number = wished
        else:
            number = next((n for n in _around([(1, MAX_VNI)], self._next.get("", 1)) if tx.get(VNI, str(n)) is None), 0)
            if not number:
                raise Conflict("network.vni.exhausted", "No VNI is left for another network.")
            self._remember("", number + 1)
        tx.put(VNI, VniRecord(vni=number, network_id=network_id))
        return number

    def _remember(self, key: str, number: int) -> None:
        if len(self._next) >= _REMEMBERED:
            self._next.clear()
        self._next[key] = number


def _around(ranges: Sequence[tuple[int, int]], start: int) -> Iterator[int]:
    """Every number of the ranges once, those from `start` on first."""
    for low, high in ranges:
        yield from range(max(low, start), high + 1)
    for low, high in ranges:
        yield from range(low, min(high, start - 1) + 1)


def collapsed(texts: Iterable[str]) -> list[str]:
    """The fewest prefixes that have exactly these addresses and prefixes, an address without its "/32"; IPv4 first, in order.

    Addresses are given out in order, so a group of thousands comes to a few. (As ipaddress.collapse_addresses, 50 times as fast.)
    """
    spans: dict[socket.AddressFamily, list[tuple[int, int]]] = {socket.AF_INET: [], socket.AF_INET6: []}
    for text in texts:
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        ip, _, length = text.partition("/")
        low, bits = int.from_bytes(socket.inet_pton(family, ip), "big"), _BITS[family]
        size = 1 << (bits - int(length)) if length else 1
        low &= -size
        spans[family].append((low, low + size))
    return [prefix for family, found in spans.items() for low, high in _merged(found) for prefix in _prefixes(family, low, high)]


_BITS: dict[int, int] = {socket.AF_INET: 32, socket.AF_INET6: 128}


def _merged(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Half-open spans in order, those that touch made one."""
    spans.sort()
    first, last = -1, -1
    for low, high in spans:
        if low <= last:
            last = max(last, high)
            continue
        if first >= 0:
            yield first, last
        first, last = low, high
    if first >= 0:
        yield first, last


def _prefixes(family: socket.AddressFamily, low: int, high: int) -> Iterator[str]:
    bits = _BITS[family]
    while low < high:
        size = min(low & -low or 1 << bits, 1 << (high - low).bit_length() - 1)
        text = socket.inet_ntop(family, low.to_bytes(bits // 8, "big"))
        yield text if size == 1 else f"{text}/{bits - size.bit_length() + 1}"
        low += size


def inside(subnet: Subnet, text: str) -> Address:
    """An address that a port may have in a subnet. Raises Invalid where it is none of the subnet's hosts."""
    ip, cidr = address(text, "ip_address"), ipaddress.ip_network(subnet.cidr)
    if not usable(ip, cidr):
        raise Invalid("network.ip_address", f"IP address {ip} is not a valid IP for the specified subnet {subnet.cidr}.")
    return ip


def usable(ip: Address, cidr: Prefix) -> bool:
    """Whether a host may have the address."""
    if ip.version != cidr.version or ip not in cidr:
        return False
    return ip != cidr.network_address and (ip.version == 6 or ip != cidr.broadcast_address)


def check_cidr(cidr: Prefix) -> None:
    """Raise Invalid for a prefix that no subnet can have."""
    if cidr.prefixlen > (30 if cidr.version == 4 else 126):
        raise Invalid(
            "network.cidr",
            f"The subnet {cidr} has no room for hosts: its prefix length is at most {30 if cidr.version == 4 else 126}.",
        )
    if cidr.prefixlen == 0 or any(cidr.version == refused.version and cidr.overlaps(refused) for refused in _REFUSED):  # type: ignore[arg-type]
        raise Invalid(
            "network.cidr", f"The subnet {cidr} holds addresses that are not for hosts (loopback, link-local or multicast)."
        )


def default_pools(cidr: Prefix, gateway: Address | None) -> list[AllocationPool]:
    """All hosts of a prefix but the gateway."""
    first = int(cidr.network_address) + 1
    last = int(cidr.broadcast_address) - (1 if cidr.version == 4 else 0)
    cut = int(gateway) if gateway is not None and gateway in cidr else first - 1
    kind = type(cidr.network_address)
    return [
        AllocationPool(start=str(kind(low)), end=str(kind(high)))
        for low, high in ((first, min(cut - 1, last)), (max(cut + 1, first), last))
        if low <= high
    ]


def checked_pools(pools: Iterable[AllocationPool], cidr: Prefix, gateway: Address | None) -> list[AllocationPool]:
    """Pools in canonical form, in order. Raises Invalid for one outside the prefix, Conflict for overlaps or a gateway inside."""
    ranges = []
    for pool in pools:
        start, end = address(pool.start, "allocation_pools"), address(pool.end, "allocation_pools")
        if start.version != cidr.version or end.version != cidr.version or int(start) > int(end):
            raise Invalid("network.allocation_pools", f"The allocation pool {pool.start}-{pool.end} is not valid.")
        if not (usable(start, cidr) and usable(end, cidr)):
            raise Invalid("network.allocation_pools", f"The allocation pool {start}-{end} spans beyond the subnet cidr {cidr}.")
        if gateway is not None and int(start) <= int(gateway) <= int(end):
            raise Conflict("network.allocation_pools", f"Gateway ip {gateway} conflicts with allocation pool {start}-{end}.")
        ranges.append((int(start), int(end), start, end))
    ranges.sort(key=lambda item: item[:2])
    for (_, high, start, end), (low, _, other_start, other_end) in itertools.pairwise(ranges):
        if low <= high:
            raise Conflict(
                "network.allocation_pools",
                f"Found overlapping allocation pools: {start}-{end} {other_start}-{other_end} for subnet {cidr}.",
            )
    return [AllocationPool(start=str(start), end=str(end)) for _, _, start, end in ranges]
