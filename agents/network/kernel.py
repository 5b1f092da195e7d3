"""Links, addresses, routes and namespaces by netlink: what is there, and how to change it.

Blocking, and for one thread: `inside` moves the calling thread into a namespace and back, and a Netlink belongs to the
namespace that its thread was in when it was made. A name in /run/netns is a namespace as `ip netns` knows it.
"""
import contextlib
import ctypes
import errno
import fcntl
import ipaddress
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

NAMESPACES = Path("/run/netns")

CLONE_NEWNET = 0x40000000
MS_BIND, MS_REC, MS_SHARED, MNT_DETACH = 0x1000, 0x4000, 0x100000, 2

TUNSETIFF, TUNSETPERSIST, TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x1000, 0x4000

SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17

#: Marks the routes that are ours to remove (RTPROT_STATIC); the kernel's own are of another protocol.
ROUTE_PROTOCOL = 4

_libc = ctypes.CDLL(None, use_errno=True)


def _call(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


# Namespaces.

def namespace_names() -> list[str]:
    return sorted(os.listdir(NAMESPACES)) if NAMESPACES.is_dir() else []


def namespace_inode(name: str) -> int:
    """What tells one namespace from another that had its name before."""
    return (NAMESPACES / name).stat().st_ino


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Have the calling thread in the namespace. OSError EINVAL: the name is a file that is no namespace."""
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(NAMESPACES / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _call(_libc.setns(there, CLONE_NEWNET), f"entering namespace {name}")
        finally:
            os.close(there)
        try:
            yield
        finally:
            _call(_libc.setns(own, CLONE_NEWNET), "returning from a namespace")
    finally:
        os.close(own)


def ensure_namespace(name: str) -> None:
    path = NAMESPACES / name
    if path.exists():
        try:
            with inside(name):
                return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    _share_namespaces()
    path.touch(mode=0o444)
    failure: list[OSError] = []

    def make() -> None:
        try:
            _call(_libc.unshare(CLONE_NEWNET), f"making namespace {name}")
            _call(_libc.mount(b"/proc/thread-self/ns/net", os.fsencode(path), b"none", MS_BIND, None), f"naming namespace {name}")
        except OSError as error:
            failure.append(error)

    maker = threading.Thread(target=make)
    maker.start()
    maker.join()
    if failure:
        path.unlink(missing_ok=True)
        raise failure[0]


def _share_namespaces() -> None:
    """Make /run/netns a mount whose changes other mount namespaces see, as `ip netns` does: a removal must reach them too."""
    NAMESPACES.mkdir(mode=0o755, exist_ok=True)
    target = os.fsencode(NAMESPACES)
    if _libc.mount(b"", target, b"none", MS_SHARED | MS_REC, None) != 0:
        _call(_libc.mount(target, target, b"none", MS_BIND | MS_REC, None), f"mounting {NAMESPACES}")
        _call(_libc.mount(b"", target, b"none", MS_SHARED | MS_REC, None), f"sharing {NAMESPACES}")


def remove_namespace(name: str) -> None:
    path = NAMESPACES / name
    # a name that was mounted twice, by a maker that was killed, goes twice
    while _libc.umount2(os.fsencode(path), MNT_DETACH) == 0:
        pass
    path.unlink(missing_ok=True)


def set_parameter(name: str, value: int) -> None:
    """Write a parameter of the calling thread's namespace, "ipv4/ip_forward"; unchanged ones are left alone."""
    path = Path("/proc/sys/net") / name
    if path.read_text().strip() != str(value):
        path.write_text(str(value))


# Links.

@dataclass(slots=True)
class Link:
    name: str
    index: int
    kind: str
    alias: str
    master: int      # index, 0 without one
    mtu: int
    mac: str
    up: bool


class Netlink:
    """One handle of the namespace that the thread is in."""

    def __init__(self) -> None:
        self._route: Any = IPRoute()

    def __enter__(self) -> "Netlink":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._route.close()

    def links(self) -> dict[str, Link]:
        return {link.name: link for link in map(_link, self._route.get_links())}

    def link(self, name: str) -> Link | None:
        try:
            # get_links with a name dumps them all and sorts out here
            return next((_link(message) for message in self._route.link("get", ifname=name)), None)
        except NetlinkError as error:
            if error.code == errno.ENODEV:
                return None
            raise

    def the_link(self, name: str) -> Link:
        """The link of that name. Raises LookupError where there is none."""
        if (link := self.link(name)) is None:
            raise LookupError(f"there is no link {name}")
        return link

    def add_bridge(self, name: str, mac: str, mtu: int, *, filtered: bool = True) -> None:
        """A bridge that hands what it forwards to the filters, asks nobody for multicast, and starts at once."""
        self._route.link("add", ifname=name, kind="bridge", address=mac, mtu=mtu, br_stp_state=0, br_forward_delay=0,
                         br_mcast_snooping=0, br_nf_call_iptables=int(filtered), br_nf_call_ip6tables=int(filtered))

    def add_veth(self, name: str, mtu: int, namespace: str, peer: str, mac: str) -> None:
        there = os.open(NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._route.link("add", ifname=name, kind="veth", mtu=mtu,
                             peer={"ifname": peer, "address": mac, "mtu": mtu, "net_ns_fd": there})
        finally:
            os.close(there)

    def change(self, link: Link, *, alias: str | None = None, master: int | None = None, mtu: int | None = None,
               mac: str | None = None, up: bool | None = None) -> None:
        """Change what differs, and remember it in `link`."""
        wanted: dict[str, Any] = {}
        if alias is not None and alias != link.alias:
            wanted["ifalias"] = link.alias = alias
        if master is not None and master != link.master:
            wanted["master"] = link.master = master
        if mtu and mtu != link.mtu:
            wanted["mtu"] = link.mtu = mtu
        if mac and mac != link.mac:
            wanted["address"] = link.mac = mac
        if wanted:
            self._route.link("set", index=link.index, **wanted)
        if up is not None and up != link.up:
            self._route.link("set", index=link.index, state="up" if up else "down")
            link.up = up

    def remove(self, name: str) -> None:
        """Remove the link, and with an end of a pair the other; one that is gone already is fine."""
        try:
            if link := self.link(name):
                self._route.link("del", index=link.index)
        except NetlinkError as error:
            if error.code != errno.ENODEV:
                raise

    # Addresses and routes. Of version 6, link-local addresses and the loopback's are the kernel's own and no business of ours.

    def addresses(self, link: Link) -> set[str]:
        found = set()
        for message in self._route.get_addr(index=link.index):
            ip = ipaddress.ip_address(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"))
            if ip.version == 4 or not (ip.is_link_local or ip.is_loopback):
                found.add(f"{ip}/{message['prefixlen']}")
        return found

    def ensure_addresses(self, link: Link, wanted: set[str]) -> set[str]:
        """Make these all the addresses that the link has; return those that are new."""
        have = self.addresses(link)
        # the long prefixes last: a /32 added first would become primary
        for address in sorted(wanted - have, key=lambda text: int(text.split("/")[1])):
            self._change_address("add", link, address)
        for address in sorted(have - wanted):
            self._change_address("del", link, address)
        return wanted - have

    def _change_address(self, verb: str, link: Link, address: str) -> None:
        ip, _, length = address.partition("/")
        extra: dict[str, Any] = {}
        if ":" in ip:
            extra["flags"] = 2    # IFA_F_NODAD: the control plane knows that nobody else has it
        elif int(length) < 31:
            extra["broadcast"] = str(ipaddress.ip_interface(address).network.broadcast_address)
        try:
            self._route.addr(verb, index=link.index, address=ip, prefixlen=int(length), **({} if verb == "del" else extra))
        except NetlinkError as error:
            # removing a primary address takes its secondaries along
            if error.code not in ((errno.EEXIST,) if verb == "add" else (errno.EADDRNOTAVAIL,)):
                raise

    def ensure_routes(self, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], str]:
        """Make these, (prefix, next hop), all the routes that are not the kernel's; return why one could not be."""
        have = set()
        for family, everything in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
            for message in self._route.get_routes(family=family, table=254):
                hop = message.get_attr("RTA_GATEWAY")
                if message["proto"] == ROUTE_PROTOCOL and hop:
                    target = message.get_attr("RTA_DST")
                    have.add((f"{target}/{message['dst_len']}" if target else everything, hop))
        for target, hop in sorted(have - wanted):
            with contextlib.suppress(NetlinkError):
                self._route.route("del", dst=target, gateway=hop, proto=ROUTE_PROTOCOL)
        refused = {}
        for target, hop in sorted(wanted - have, reverse=True):
            try:
                self._route.route("replace", dst=target, gateway=hop, proto=ROUTE_PROTOCOL)
            except NetlinkError as error:
                refused[target, hop] = str(error)
        return refused


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    return Link(name=message.get_attr("IFLA_IFNAME"), index=message["index"],
                kind=(info.get_attr("IFLA_INFO_KIND") or "") if info else "",
                alias=message.get_attr("IFLA_IFALIAS") or "", master=message.get_attr("IFLA_MASTER") or 0,
                mtu=message.get_attr("IFLA_MTU") or 0, mac=message.get_attr("IFLA_ADDRESS") or "", up=bool(message["flags"] & 1))


def add_tap(name: str, owner: int | None) -> None:
    """A tap that stays when nobody has it open, of the kind that libvirt's unmanaged interfaces of type ethernet expect."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
        if owner is not None:
            fcntl.ioctl(device, TUNSETOWNER, owner)
        fcntl.ioctl(device, TUNSETPERSIST, 1)
    finally:
        os.close(device)


def fill_in_checksums(name: str) -> None:
    """Have packets leave a link of the calling thread's namespace with their checksums in place.

    Between namespaces the kernel leaves them out, and some DHCP clients, which read packets raw, throw such answers away.
    """
    wish = struct.pack("II", ETHTOOL_STXCSUM, 0)
    buffer = ctypes.create_string_buffer(wish, len(wish))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(buffer)))


def announce(link: Link, ip: str) -> None:
    """Tell the link's network that `ip`, version 4, is at this MAC now (gratuitous ARP); in the namespace of the link."""
    mac = bytes.fromhex(link.mac.replace(":", ""))
    address = ipaddress.IPv4Address(ip).packed
    frame = b"\xff" * 6 + mac + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806)) as raw:
        raw.bind((link.name, 0x0806))
        raw.send(frame)
