"""Names that a network's dnsmasq does not know, asked for it by the agent outside the namespace.

dnsmasq lives in a namespace without a way out, so that nothing a tenant sends to it can travel on. Its questions come to two
sockets on the namespace's loopback device, which were made there and are served here; they are asked again in the root
namespace, as the host itself would ask. So guests get names resolved and never exchange a packet with the host's network.
Local names need no agent, and dnsmasq keeps the others' answers.
"""
import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

log = logging.getLogger(__name__)

#: Questions of one network under way at a time; more are dropped, and asked again by who asked.
LIMIT = 256
#: Seconds that one name server is waited for before the next is tried, and that a connection may be idle.
PATIENCE, IDLE = 2.0, 10.0


class Upstream:
    """The host's own name servers: those given, else those of resolv.conf as it is now."""

    def __init__(self, servers: Sequence[str] = (), resolv_conf: Path = Path("/etc/resolv.conf")):
        self._given = list(servers)
        self._path = resolv_conf
        self._read: tuple[float, list[str]] = (-1.0, [])

    def servers(self) -> list[str]:
        if self._given:
            return self._given
        try:
            changed = self._path.stat().st_mtime
            if changed != self._read[0]:
                self._read = changed, parse(self._path.read_text())
        except OSError:
            return []
        return self._read[1]


def parse(resolv_conf: str) -> list[str]:
    servers = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            with contextlib.suppress(ValueError):
                ipaddress.ip_address(words[1].partition("%")[0])
                servers.append(words[1])
    return servers[:3]


class _Question(asyncio.DatagramProtocol):
    """One question's socket: the first answer with the question's number."""

    def __init__(self, question: bytes, answer: "asyncio.Future[bytes]"):
        self._question = question
        self._answer = answer

    def datagram_received(self, data: bytes, addr: object) -> None:
        if data[:2] == self._question[:2] and not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, exc: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(exc)


class Relay(asyncio.DatagramProtocol):
    """Serves one network's dnsmasq, by UDP; `connected` by TCP."""

    def __init__(self, servers: Callable[[], list[str]]):
        self._servers = servers
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport    # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if 12 <= len(data) <= 4096 and len(self._tasks) < LIMIT:
            task = asyncio.get_running_loop().create_task(self._forward(data, addr))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _forward(self, question: bytes, asker: tuple[str, int]) -> None:
        for server in self._servers():
            with contextlib.suppress(OSError, TimeoutError):
                answer = await _ask(server, question)
                if self._transport and not self._transport.is_closing():
                    self._transport.sendto(answer, asker)
                return
        log.debug("no name server answered")

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection's bytes both ways until either side ends or is silent."""
        other = None
        try:
            for server in self._servers():
                with contextlib.suppress(OSError, TimeoutError):
                    other = await asyncio.wait_for(asyncio.open_connection(server, 53), PATIENCE)
                    break
            if other:
                await asyncio.gather(_pour(reader, other[1]), _pour(other[0], writer))
        except (OSError, TimeoutError):
            pass
        finally:
            for end in (writer, other[1] if other else None):
                if end:
                    end.close()


async def _ask(server: str, question: bytes) -> bytes:
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[bytes] = loop.create_future()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Question(question, answer), remote_addr=(server, 53))
    try:
        transport.sendto(question)
        return await asyncio.wait_for(answer, PATIENCE)
    finally:
        transport.close()


async def _pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await asyncio.wait_for(reader.read(65536), IDLE):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


def sockets(port: int) -> tuple[socket.socket, socket.socket]:
    """Return the relay's (UDP, TCP) sockets on the loopback device of the calling thread's namespace."""
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        udp.bind(("127.0.0.1", port))
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", port))
        tcp.listen(16)
    except OSError:
        udp.close()
        tcp.close()
        raise
    return udp, tcp
