"""One HTTP exchange of the ASGI interface: what the client sent, its body as it arrives, and what goes back."""
import asyncio
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, MutableMapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from control.gateway.answers import Answer
from control.gateway.codec import MAX_BODY
from control.kernel.errors import Invalid, TooLarge
from control.kernel.rpc import within

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

#: Seconds between two pieces of a body. Too low cuts off slow clients; too high lets idle ones hold what an upload holds.
BODY_TIMEOUT = 120.0

#: Seconds that a client of a stream without end may take to read what fills its connection. Too low cuts off slow networks; too
#: high lets idle ones hold what is written for them.
READ_TIMEOUT = 30.0

#: Parameters in a query at most.
MAX_PARAMETERS = 1000

#: Characters of a host with its port at most.
MAX_HOST = 260

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:\d{1,5})?\Z", re.ASCII)


class Exchange:
    """One request and the way to answer it. Header names are in lower case; the values of a repeated one joined by commas."""

    def __init__(self, scope: Scope, receive: Receive, send: Send):
        self._scope, self._receive, self._send = scope, receive, send
        self.verb: str = scope["method"].upper()
        raw = scope.get("raw_path")
        path: str = raw.decode("latin-1") if raw is not None else scope["path"]
        self.path = path if path.startswith("/") else "/" + path       # "OPTIONS *"
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1").lower()
            try:
                text = value.decode()
            except UnicodeDecodeError:
                text = value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        self.headers = headers
        self.started = False

    @property
    def remote(self) -> str:
        """The address that the request came from."""
        client = self._scope.get("client")
        return client[0] if client else ""

    def base_url(self, configured: str | None, trusted_proxies: Collection[str]) -> str:
        """ "http://host:5000" as the client knows it. What a proxy says of it counts only from a trusted one."""
        if configured:
            return configured.rstrip("/")
        scheme, host = str(self._scope.get("scheme", "http")), self.headers.get("host", "")
        if self.remote in trusted_proxies:
            scheme = self.headers.get("x-forwarded-proto", scheme).split(",")[0].strip().lower()
            host = self.headers.get("x-forwarded-host", host).split(",")[0].strip()
        if len(host) > MAX_HOST or (base := _base(scheme, host)) is None:
            name, port = self._scope.get("server") or ("localhost", None)
            name = f"[{name}]" if ":" in name else name
            base = _base(scheme, name if port is None else f"{name}:{port}")
        return base or "http://localhost"

    def query(self) -> list[tuple[str, str]]:
        """The query's parameters in their order. Raises Invalid where it cannot be read."""
        written = self._scope.get("query_string", b"")
        if not written:
            return []
        try:
            return parse_qsl(written.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_PARAMETERS)
        except ValueError:
            raise Invalid("query", f"The query is not percent-encoded UTF-8 with at most {MAX_PARAMETERS} parameters.") from None

    async def body(self) -> bytes:
        """The whole body. Raises TooLarge where it is over the limit of JSON, Invalid where it was cut off."""
        length = self.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > MAX_BODY:
            raise TooLarge("body.size", f"The request body is larger than {MAX_BODY} bytes.")
        pieces, size = [], 0
        async for piece in self.pieces():
            size += len(piece)
            if size > MAX_BODY:
                raise TooLarge("body.size", f"The request body is larger than {MAX_BODY} bytes.")
            pieces.append(piece)
        return b"".join(pieces)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives; the next piece is asked for when the last one is done with.

        Raises Invalid where the client goes away or falls silent before the end, so that nobody takes half for the whole.
        """
        size = 0
        while True:
            try:
                async with asyncio.timeout(BODY_TIMEOUT):
                    event = await self._receive()
            except TimeoutError:
                raise Invalid("body.silent", f"The request body stopped for {BODY_TIMEOUT:.0f} s after {size} bytes.") from None
            if event["type"] == "http.disconnect":
                raise Invalid("body.cut", f"The request body was cut off after {size} bytes.")
            piece = event.get("body", b"")
            size += len(piece)
            if piece:
                yield piece
            if not event.get("more_body", False):
                return

    async def gone(self) -> None:
        """Returns when the client has closed the connection. To be awaited only when the body has been read or is not wanted."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def start(self, status: int, headers: Sequence[tuple[str, str]]) -> None:
        """Send the status line and headers."""
        self.started = True
        await self._send({"type": "http.response.start", "status": status,
                          "headers": [(name.lower().encode(), value.encode()) for name, value in headers]})

    async def write(self, data: bytes, more: bool) -> None:
        """Send a piece of the body; waits while the client is slow to take it."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def tell(self, data: bytes) -> None:
        """Send a piece of a body that has no end. Raises TimeoutError where the client takes none of what it was sent before."""
        await within(self.write(data, more=True), READ_TIMEOUT)

    async def answer(self, answer: Answer) -> None:
        """Send a whole answer; to HEAD all but its body."""
        headers = list(answer.headers)
        if answer.body is not None:
            headers.append(("Content-Length", str(len(answer.body))))
        await self.start(answer.status, headers)
        await self.write(b"" if self.verb == "HEAD" else answer.body or b"", more=False)


@functools.lru_cache(maxsize=1000)
def _base(scheme: str, host: str) -> str | None:
    """What URLs begin with; None where the host is none."""
    return f"{scheme if scheme in ('http', 'https') else 'http'}://{host}" if _HOST.match(host) else None
