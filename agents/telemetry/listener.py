"""A small HTTP listener for whoever looks after a process: /metrics, /healthz, /readyz. GET only, one answer per connection.

It is for the machine's own loopback address, or a network that only operators reach: it asks nobody who they are.
"""
import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)

#: Bytes of a request at most, seconds that one exchange may take, and exchanges at a time.
MAX_REQUEST, SECONDS, AT_ONCE = 8192, 10.0, 16

#: What is wrong, in words; nothing: the process does its work.
Ready = Callable[[], Awaitable[Sequence[str]]]

_TEXT = "text/plain; charset=utf-8"


async def serve(host: str, port: int, *, metrics: Callable[[], tuple[str, bytes]], ready: Ready) -> None:
    """Answer until cancelled. Where the port is taken, say so and answer nobody: a process does its work without.

    Args:
      metrics: the media type and text of all metrics.
    """
    slots = asyncio.Semaphore(AT_ONCE)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(SECONDS), slots:
                status, kind, body = await _answer(await reader.readuntil(b"\r\n\r\n"), metrics, ready)
                writer.write(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
                             f"Connection: close\r\n\r\n".encode() + body)
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(answer, host, port, limit=MAX_REQUEST)
    except OSError as error:
        log.warning("no metrics and health on %s:%d: %s", host, port, error.strerror or error)
        return
    async with server:
        await server.serve_forever()


async def _answer(head: bytes, metrics: Callable[[], tuple[str, bytes]], ready: Ready) -> tuple[str, str, bytes]:
    verb, path, *_ = [*head.decode("latin-1").split("\r\n", 1)[0].split(" "), "", ""]
    if verb != "GET":
        return "405 Method Not Allowed", _TEXT, b"GET only\n"
    match path.partition("?")[0]:
        case "/metrics":
            return "200 OK", *metrics()
        case "/healthz":
            return "200 OK", _TEXT, b"OK\n"
        case "/readyz":
            wrong = await ready()
            return ("503 Service Unavailable" if wrong else "200 OK"), _TEXT, ("\n".join(wrong or ["OK"]) + "\n").encode()
    return "404 Not Found", _TEXT, b"/metrics, /healthz, /readyz\n"
