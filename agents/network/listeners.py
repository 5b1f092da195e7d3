"""What the agent itself serves in the namespaces: metadata in each, the questions of dnsmasq where there is one.

A listening socket belongs to the namespace that it was made in, whoever serves it: the worker makes it there, the event loop
serves it here. So no namespace costs a process of its own.
"""
import asyncio
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass

from agents.network import dhcp, resolver, responder
from agents.network.wish import Wish

#: Name and inode of a namespace: the name alone may come to mean another one.
Where = tuple[str, int]


@dataclass(slots=True)
class Sockets:
    """Made in one namespace and not yet served."""

    place: responder.Place
    http: socket.socket
    relay: tuple[socket.socket, socket.socket] | None    # UDP, TCP


def open_sockets(place: responder.Place) -> Sockets:
    """Make them in the calling thread's namespace, which has the address of metadata. Raises OSError, leaving none open."""
    http = responder.listening_socket(dhcp.METADATA_IP)
    try:
        return Sockets(place, http, resolver.sockets(dhcp.RESOLVER_PORT) if place.network_id else None)
    except OSError:
        http.close()
        raise


class Listeners:
    """For the event loop."""

    def __init__(self, wish: Callable[[], Wish], upstream: resolver.Upstream):
        self._wish = wish
        self._upstream = upstream
        self._serving: dict[Where, list[asyncio.Server | asyncio.DatagramTransport]] = {}

    async def serve(self, where: Where, sockets: Sockets) -> None:
        self._stop(where)
        guests = responder.Responder(sockets.place, self._wish)
        serving: list[asyncio.Server | asyncio.DatagramTransport] = [
            await asyncio.start_server(guests.connected, sock=sockets.http, limit=responder.HEAD)]
        if sockets.relay:
            udp, tcp = sockets.relay
            transport, relay = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: resolver.Relay(self._upstream.servers), sock=udp)
            serving += [transport, await asyncio.start_server(relay.connected, sock=tcp)]
        self._serving[where] = serving

    def stop_others(self, wanted: Collection[Where]) -> None:
        for where in self._serving.keys() - set(wanted):
            self._stop(where)

    def _stop(self, where: Where) -> None:
        for served in self._serving.pop(where, []):
            served.close()
