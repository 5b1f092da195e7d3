"""What everything on the host is called, so that it is found again by whoever looks, after any crash.

The kernel allows 15 characters for a link: two to four say what it is, eleven are the beginning of its object's id. The whole
truth is the ifalias, "<cloud>/<kind>/<id>"; namespaces and tables carry the cloud's name in front.
"""
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

CLOUD = re.compile(r"[a-z][a-z0-9-]{0,30}")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

#: Name of a namespace's own end of a veth pair to its network.
SERVICE_LINK = "service"


def bridge(network_id: str) -> str:
    return "br" + network_id[:11]


def tap(port_id: str) -> str:
    return "tap" + port_id[:11]


def service_veth(network_id: str) -> str:
    """The bridge's end of the pair to the network's DHCP namespace."""
    return "vd" + network_id[:11]


def router_veth(port_id: str) -> str:
    """The bridge's end of the pair to a router, for an interface or gateway port."""
    return "vr" + port_id[:11]


def router_link(port_id: str) -> str:
    """The router's end of the pair of an interface."""
    return "in" + port_id[:11]


def gateway_link(port_id: str) -> str:
    """The router's end of the pair of its external gateway."""
    return "gw" + port_id[:11]


@dataclass(frozen=True, slots=True)
class Names:
    """The names that carry the cloud's. Raises ValueError for a cloud's name that could not be told apart or quoted."""

    cloud: str

    def __post_init__(self) -> None:
        if not CLOUD.fullmatch(self.cloud):
            raise ValueError(f"cloud name {self.cloud!r}: a small letter, then at most 30 small letters, digits and hyphens")

    @property
    def table(self) -> str:
        """nftables knows no hyphens, clouds' names no underscores: the two cannot meet."""
        return self.cloud.replace("-", "_")

    def alias(self, kind: str, object_id: str) -> str:
        return f"{self.cloud}/{kind}/{object_id}"

    def owns_alias(self, alias: str | None) -> bool:
        return bool(alias) and str(alias).startswith(self.cloud + "/")

    def dhcp_namespace(self, network_id: str) -> str:
        return f"{self.cloud}-dhcp-{network_id}"

    def router_namespace(self, router_id: str) -> str:
        return f"{self.cloud}-router-{router_id}"

    def owns_namespace(self, name: str) -> bool:
        head = f"{self.cloud}-"
        kind, _, object_id = name[len(head):].partition("-") if name.startswith(head) else ("", "", "")
        return kind in ("dhcp", "router") and bool(UUID.fullmatch(object_id))


def numbers(ids: Iterable[str], limit: int, seed: str = "") -> dict[str, int]:
    """Return a number from 1 to limit - 1 for each id, none twice: each keeps its own while ids come and go, but for collisions.

    Derived and not remembered, so that a restarted agent counts as the one before it did.
    """
    taken: dict[int, str] = {}
    for object_id in sorted(ids):
        number = zlib.crc32(f"{seed}{object_id}".encode()) % (limit - 1) + 1
        while number in taken:
            number = number % (limit - 1) + 1
        taken[number] = object_id
    return {object_id: number for number, object_id in taken.items()}
