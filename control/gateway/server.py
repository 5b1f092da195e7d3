"""The HTTP listener: uvicorn in the running event loop, in the clear or with TLS.

It takes no signals and writes no access log: both belong to the process around it.
"""
import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from control.kernel import tls
from control.kernel.listeners import owner

log = logging.getLogger(__name__)

#: Seconds that calls in progress have to end when the listener stops. Too low cuts uploads; too high keeps `brume down` waiting.
GRACE = 10


class CannotListen(Exception):
    """The address cannot be listened on; the text says why and what to do."""


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, begun: asyncio.Event):
        super().__init__(config)
        self._begun = begun

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._begun.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


class _Joined:
    """A connection's transport that sends the head of an answer together with what follows it.

    Where nothing follows in the same turn of the event loop, the head goes alone.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport = transport
        self._soon = loop.call_soon
        self._held = b""
        self.get_extra_info = transport.get_extra_info
        self.is_closing = transport.is_closing
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(b"HTTP/1.1 ") and data.endswith(b"\r\n\r\n"):
            self._held = data
            self._soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)


class _Protocol(HttpToolsProtocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(_Joined(transport, self.loop))  # type: ignore[arg-type]


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotListen."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise CannotListen(f"{host} is no address to listen on: {error.strerror}") from error
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            pid = owner(port)
            by = f" by {pid}" if pid else ""
            raise CannotListen(f"port {port} on {host} is in use{by}: stop it or choose another with --port") from error
        raise CannotListen(f"cannot listen on port {port} of {host}: {error.strerror}") from error
    return listener


async def serve(app: Any, host: str, port: int, certificate: str | None = None, key: str | None = None, *,
                listener: socket.socket | None = None, started: asyncio.Event | None = None) -> None:
    """Serve until cancelled; calls in progress then have GRACE seconds to end.

    Args:
      app: the ASGI application.
      certificate, key: paths of PEM files; with them the listener speaks TLS, and follows them when they change.
      listener: a socket of listen(), to be used in place of a new one; closed at the end.
      started: set when requests are taken.

    Raises:
      CannotListen: the port is in use, or the address is not ours.
    """
    listener = listener or listen(host, port)
    config = uvicorn.Config(app, http=_Protocol, ws="none", lifespan="off", access_log=False, log_config=None,
                            log_level="warning", server_header=False, proxy_headers=False, timeout_keep_alive=75,
                            ssl_certfile=certificate, ssl_keyfile=key, timeout_graceful_shutdown=GRACE)
    server = _Server(config, started or asyncio.Event())
    following = None
    if certificate and key:
        config.load()
        following = asyncio.ensure_future(tls.follow(cast(ssl.SSLContext, config.ssl), Path(certificate), Path(key)))
    serving = asyncio.ensure_future(server.serve(sockets=[listener]))
    try:
        log.info("listening on %s://%s:%d", "https" if certificate else "http", *listener.getsockname()[:2])
        await asyncio.shield(serving)
    except asyncio.CancelledError:
        server.should_exit = True
        await serving
        raise
    finally:
        if following:
            following.cancel()
        listener.close()
