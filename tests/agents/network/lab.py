"""Pieces for tests of the host's networking: objects as the control plane sends them, guests made of namespaces.

A guest is a namespace with one end of a pair of veth; the other end has the tap's name, so that the agent takes it for the
port's. Nothing here reaches beyond the machine: all addresses are the test's own.
"""
import asyncio
import contextlib
import ipaddress
import os
import socket
import struct
import subprocess
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from agents.network import dhcp as dnsmasq
from agents.network import kernel, names
from agents.network.host import LinuxNetworking
from protos.internal.v1.hosts_pb2 import (
    AddressPair,
    ExternalGateway,
    FixedAddress,
    FloatingAddress,
    GuestData,
    HostNetwork,
    HostObject,
    HostPort,
    HostRouter,
    HostRule,
    HostSecurityGroup,
    HostServer,
    HostSubnet,
    NetworkMember,
    PublicKey,
    RouterInterface,
)

T = TypeVar("T")

#: A prefix for external networks that no cloud of a user's has.
OUTSIDE = "100.64.77.0/24"


def new_id() -> str:
    return str(uuid.uuid4())


def new_mac() -> str:
    return "fa:16:3e:" + os.urandom(3).hex(":")


def allow(ingress: bool = True, protocol: str = "", low: int = -1, high: int = -1, cidr: str = "", group: str = "",
          ethertype: str = "IPv4") -> HostRule:
    return HostRule(id=new_id(), ingress=ingress, ethertype=ethertype, protocol=protocol, port_min=low, port_max=high,
                    remote_cidr=cidr, remote_group_id=group)


class World:
    """The host's objects, with the means to change them."""

    def __init__(self) -> None:
        self.objects: dict[str, HostObject] = {}

    def put(self, kind: str, message: object) -> None:
        key = f"{kind.replace('_', '-')}/{message.id}"
        item = HostObject(key=key)
        getattr(item, kind).CopyFrom(message)
        self.objects[key] = item

    def remove(self, kind: str, object_id: str) -> None:
        del self.objects[f"{kind}/{object_id}"]

    def network(self, cidr: str = "10.0.0.0/24", mtu: int = 1450, external: bool = False) -> HostNetwork:
        prefix = ipaddress.ip_network(cidr)
        subnet = HostSubnet(id=new_id(), cidr=cidr, gateway_ip=str(prefix[1]), dhcp=not external,
                            dhcp_ip="" if external else str(prefix[2]))
        network = HostNetwork(id=new_id(), vni=1, mtu=mtu, external=external, dns_domain="brume.internal", subnets=[subnet])
        if not external:
            network.members.append(NetworkMember(port_id=new_id(), mac=new_mac(), dhcp_agent=True, addresses=[
                FixedAddress(subnet_id=subnet.id, ip=subnet.dhcp_ip)]))
        self.put("network", network)
        return network

    def group(self, *rules: HostRule) -> HostSecurityGroup:
        group = HostSecurityGroup(id=new_id(), rules=[allow(False), allow(False, ethertype="IPv6"), *rules])
        self.put("security_group", group)
        return group

    def server(self, network: HostNetwork, ip: str, groups: Iterable[HostSecurityGroup] = (), name: str = "vm", *,
               port_security: bool = True, pairs: Iterable[AddressPair] = ()) -> HostPort:
        """A server with one port, and the network's member for it."""
        port = HostPort(id=new_id(), network_id=network.id, mac=new_mac(), device_id=new_id(), admin_up=True, mtu=network.mtu,
                        port_security=port_security, security_group_ids=[group.id for group in groups], allowed_pairs=pairs,
                        addresses=[FixedAddress(subnet_id=network.subnets[0].id, ip=ip)])
        network.members.append(NetworkMember(port_id=port.id, mac=port.mac, hostname=name, device_id=port.device_id,
                                             addresses=port.addresses))
        self.put("network", network)
        self.put("port", port)
        self.put("server", HostServer(id=port.device_id, name=name, port_ids=[port.id], guest=GuestData(
            uuid=port.device_id, name=name, hostname=f"{name}.brume.internal", availability_zone="nova",
            keys=[PublicKey(name="key", type="ssh", data="ssh-ed25519 AAAA test")], user_data=b"#!/bin/sh\n")))
        return port

    def router(self, inside: Iterable[HostNetwork], outside: HostNetwork | None = None, address: str = "") -> HostRouter:
        router = HostRouter(id=new_id(), admin_up=True)
        for network in inside:
            length = network.subnets[0].cidr.partition("/")[2]
            router.interfaces.append(RouterInterface(port_id=new_id(), network_id=network.id, mac=new_mac(),
                                                     address=f"{network.subnets[0].gateway_ip}/{length}"))
        if outside is not None:
            length = outside.subnets[0].cidr.partition("/")[2]
            router.gateway.CopyFrom(ExternalGateway(port_id=new_id(), network_id=outside.id, mac=new_mac(), snat=True,
                                                    addresses=[f"{address}/{length}"], gateway_ip=outside.subnets[0].gateway_ip))
        self.put("router", router)
        return router

    def float_address(self, router: HostRouter, floating_ip: str, port: HostPort) -> None:
        router.floating.append(FloatingAddress(id=new_id(), floating_ip=floating_ip, fixed_ip=port.addresses[0].ip))
        self.put("router", router)


class Guest:
    """A namespace that plays a virtual machine: `link` in it is its network card."""

    link = "eth0"

    def __init__(self, cloud: str, port: HostPort):
        self.port = port
        self.tap = names.tap(port.id)
        self.namespace = f"{cloud}-guest-{port.id[:8]}"
        self.ip = port.addresses[0].ip
        kernel.ensure_namespace(self.namespace)
        ip("link", "add", self.tap, "type", "veth", "peer", "name", self.link, "netns", self.namespace)
        ip("-n", self.namespace, "link", "set", "lo", "up")
        ip("-n", self.namespace, "link", "set", self.link, "address", port.mac, "mtu", str(port.mtu), "up")

    def configure(self, length: int = 24, gateway: str = "") -> None:
        ip("-n", self.namespace, "addr", "add", f"{self.ip}/{length}", "dev", self.link)
        if gateway:
            ip("-n", self.namespace, "route", "add", "default", "via", gateway)

    def remove(self) -> None:
        subprocess.run(["ip", "link", "del", self.tap], check=False, capture_output=True)
        kernel.remove_namespace(self.namespace)

    async def pings(self, target: str, tries: int = 2) -> bool:
        return await succeeds("ip", "netns", "exec", self.namespace, "ping", "-c1", "-W1", target, tries=tries)

    async def get(self, path: str, host: str = "169.254.169.254", port: int = 80) -> tuple[int, bytes]:
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        data = await self.do(lambda: talk(host, port, request))
        head, _, body = data.partition(b"\r\n\r\n")
        return int(head.split()[1]), body

    async def do(self, what: Callable[[], T]) -> T:
        return await within(self.namespace, what)


async def within(namespace: str, what: Callable[[], T]) -> T:
    """Run a blocking function in a thread that is in the namespace."""
    def run() -> T:
        with kernel.inside(namespace):
            return what()
    return await asyncio.to_thread(run)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


async def succeeds(*command: str, tries: int = 1) -> bool:
    for _ in range(tries):
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if await process.wait() == 0:
            return True
    return False


def talk(host: str, port: int, data: bytes, timeout: float = 3.0) -> bytes:
    with socket.create_connection((host, port), timeout) as connection:
        connection.sendall(data)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def dhcp(link: str, mac: str, wait: float = 3.0) -> dict[int, bytes] | None:
    """Exchange discover, offer, request and acknowledgement; return the options, the address as option 0; None unanswered."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, link.encode())
        client.bind(("0.0.0.0", 68))
        client.settimeout(wait)
        number = os.urandom(4)
        offer = _dhcp_exchange(client, number, mac, bytes([53, 1, 1, 55, 5, 1, 3, 6, 121, 26]))
        if offer is None:
            return None
        return _dhcp_exchange(client, number, mac, bytes([53, 1, 3, 50, 4]) + offer[0] + bytes([54, 4]) + offer[54]
                              + bytes([55, 5, 1, 3, 6, 121, 26]))


def _dhcp_exchange(client: socket.socket, number: bytes, mac: str, options: bytes) -> dict[int, bytes] | None:
    packet = (struct.pack("!BBBB4sHH16x", 1, 1, 6, 0, number, 0, 0x8000) + bytes.fromhex(mac.replace(":", "")) + bytes(202)
              + b"\x63\x82\x53\x63" + options + b"\xff")
    client.sendto(packet, ("255.255.255.255", 67))
    try:
        while True:
            reply = client.recv(2048)
            if reply[4:8] == number and reply[0] == 2:
                break
    except TimeoutError:
        return None
    found, rest = {0: reply[16:20]}, reply[240:]
    while rest and rest[0] != 255:
        if rest[0] == 0:
            rest = rest[1:]
            continue
        found[rest[0]] = rest[2:2 + rest[1]]
        rest = rest[2 + rest[1]:]
    return found


def dns_question(name: str) -> bytes:
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return os.urandom(2) + bytes.fromhex("01000001000000000000") + labels + b"\0" + bytes.fromhex("00010001")


def resolve(server: str, name: str, wait: float = 3.0) -> list[str]:
    """Return the addresses that a name server gives for a name."""
    question = dns_question(name)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(wait)
        client.connect((server, 53))
        client.send(question)
        reply = client.recv(4096)
    return [socket.inet_ntoa(reply[at + 12:at + 16]) for at in range(len(question), len(reply) - 15)
            if reply[at:at + 6] == bytes.fromhex("c00c00010001") and reply[at + 10:at + 12] == b"\0\4"]


class Lab:
    """One cloud on the host: its wishes, its agent's networking, its guests."""

    def __init__(self, run_dir: Path):
        self.cloud = f"bt{uuid.uuid4().hex[:6]}"
        self.run_dir = run_dir
        self.world = World()
        self.guests: list[Guest] = []
        self.networking = self.fresh()
        self.undo: list[Callable[[], object]] = []

    def fresh(self, **options: object) -> LinuxNetworking:
        """The networking of a process that has just started."""
        return LinuxNetworking(self.cloud, "host", self.run_dir, **options)

    async def apply(self) -> set[str]:
        return await self.networking.apply(self.world.objects)

    def guest(self, port: HostPort) -> Guest:
        guest = Guest(self.cloud, port)
        self.guests.append(guest)
        return guest


def leftovers(cloud: str) -> list[str]:
    """What can be found on the host of a cloud."""
    found = [name for name in kernel.namespace_names() if name.startswith(cloud)]
    found += [line for line in ip("-d", "link").splitlines() if f"alias {cloud}/" in line]
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    found += [f"process {process.pid}" for process in dnsmasq.processes() if f"/{cloud}-" in process.configuration]
    return found + [line for line in tables.splitlines() if cloud in line]


class Listener:
    """Answers "hello" to each TCP connection in a namespace ("" for the root one), until closed."""

    def __init__(self, namespace: str, port: int):
        def make() -> socket.socket:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(("0.0.0.0", port))
            made.listen(8)
            return made
        with kernel.inside(namespace) if namespace else contextlib.nullcontext():
            self._socket = make()
        self._server: asyncio.Server | None = None
        self.peers: list[str] = []

    async def start(self) -> "Listener":
        self._server = await asyncio.start_server(self._serve, sock=self._socket)
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peers.append(writer.get_extra_info("peername")[0])
        writer.write(b"hello")
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                writer.write(data)
        writer.close()

    def close(self) -> None:
        if self._server:
            self._server.close()


async def reaches(namespace: str, host: str, port: int, wait: float = 1.5) -> bool:
    """Whether a TCP connection from the namespace ("" for the root one) is greeted."""
    def attempt() -> bool:
        with socket.create_connection((host, port), wait) as connection:
            connection.settimeout(wait)
            return connection.recv(5) == b"hello"
    try:
        return bool(await (within(namespace, attempt) if namespace else asyncio.to_thread(attempt)))
    except OSError:
        return False
