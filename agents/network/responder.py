"""HTTP at 169.254.169.254: tells each guest about itself, and nobody about anyone else.

A guest is known by the namespace that its question comes into and by its address, which anti-spoofing vouches for. Only
what was made for this is understood: GET and HEAD, no bodies, short heads, few connections at a time.
"""
import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from agents import metadata
from agents.network.wish import Wish

log = logging.getLogger(__name__)

#: Bytes of a request's head, and seconds that one may take to come.
HEAD, PATIENCE = 8192, 15.0
#: Connections of one namespace and of one guest at a time, and requests on one connection.
CONNECTIONS, PER_GUEST, REQUESTS = 512, 16, 100

REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 413: "Content Too Large",
           431: "Request Header Fields Too Large", 503: "Service Unavailable"}


@dataclass(frozen=True, slots=True)
class Place:
    """Where a question comes in: a network's own namespace, or a router's."""

    network_id: str = ""
    router_id: str = ""


def find_port(wish: Wish, place: Place, ip: str) -> str | None:
    """Return the id of the server's port that has this address there; None when it is not for us to say."""
    networks = {place.network_id}
    if place.router_id:
        router = wish.routers.get(place.router_id)
        networks = {interface.network_id for interface in router.interfaces} if router else set()
    found = [port.id for port in wish.ports.values()
             if port.network_id in networks and any(address.ip == ip for address in port.addresses)]
    return found[0] if len(found) == 1 else None


def answer(wish: Wish, place: Place, ip: str, path: str) -> bytes | None:
    """Return what the guest at `ip` gets for a path, already without its query; None for 404."""
    port_id = find_port(wish, place, ip)
    server = wish.servers.get(wish.ports[port_id].device_id) if port_id else None
    if server is None:
        return None
    ports = [wish.ports[own] for own in server.port_ids if own in wish.ports]
    tree = metadata.tree(server, ports, wish.networks, public_ip=_public_ip(wish, {port.id for port in ports}),
                         random_seed=os.urandom(512))
    path = path.strip("/")
    if path in tree:
        return tree[path]
    return metadata.listing(tree, path, [key.name for key in server.guest.keys])


def _public_ip(wish: Wish, port_ids: set[str]) -> str:
    """The first floating address of these ports: a router's, for an address of theirs in a network that it joins."""
    for router in wish.routers.values():
        networks = {interface.network_id for interface in router.interfaces}
        own = {address.ip for port_id in port_ids for address in wish.ports[port_id].addresses
               if wish.ports[port_id].network_id in networks}
        for floating in router.floating:
            if floating.fixed_ip in own:
                return floating.floating_ip
    return ""


class Responder:
    """Serves one namespace's listening socket."""

    def __init__(self, place: Place, wish: Callable[[], Wish]):
        self._place = place
        self._wish = wish
        self._guests: dict[str, int] = {}

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        ip = peer[0] if peer else ""
        self._guests[ip] = self._guests.get(ip, 0) + 1
        try:
            if sum(self._guests.values()) > CONNECTIONS or self._guests[ip] > PER_GUEST:
                _write(writer, 503, b"too many connections\n", False, True)
                await writer.drain()
                return
            for count in range(REQUESTS):
                if not await asyncio.wait_for(self._exchange(reader, writer, ip, count == REQUESTS - 1), PATIENCE):
                    break
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            self._guests[ip] -= 1
            if not self._guests[ip]:
                del self._guests[ip]
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ip: str, last: bool) -> bool:
        """Answer one request; return whether the connection may go on."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            _write(writer, 431, b"the request's head is too long\n", False, True)
            await writer.drain()
            return False
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            _write(writer, 400, b"this is not HTTP/1.1\n", False, True)
            await writer.drain()
            return False
        method, target, protocol = words
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)}
        wants = headers.get("connection", "").lower()
        close = last or wants == "close" or (protocol == "HTTP/1.0" and wants != "keep-alive")
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            code, body, close = 413, b"no body is taken here\n", True
        elif method not in ("GET", "HEAD"):
            code, body, close = 405, b"only GET and HEAD are answered here\n", True
        else:
            started = time.monotonic()
            path = target.partition("?")[0]
            found = answer(self._wish(), self._place, ip, path)
            code, body = (200, found) if found is not None else (404, b"404 Not Found: there is nothing here\n")
            log.info("metadata: %s GET %.200s: %d, %.1f ms", ip, path, code, (time.monotonic() - started) * 1000)
        _write(writer, code, body, method == "HEAD", close, _content_type(target))
        await writer.drain()
        return not close


def _content_type(target: str) -> str:
    return "application/json" if target.partition("?")[0].endswith(".json") else "text/plain; charset=UTF-8"


def _write(writer: asyncio.StreamWriter, code: int, body: bytes, head_only: bool, close: bool, kind: str = "text/plain") -> None:
    head = (f"HTTP/1.1 {code} {REASONS[code]}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
            + ("Allow: GET, HEAD\r\n" if code == 405 else "") + f"Connection: {'close' if close else 'keep-alive'}\r\n\r\n")
    writer.write(head.encode() + (b"" if head_only else body))


def listening_socket(ip: str) -> socket.socket:
    """Return a socket that listens at port 80 of `ip` in the calling thread's namespace."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((ip, 80))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener
