"""A client that calls an ASGI application in process: what a test sends and sees is plain HTTP, without a socket."""
import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.log_secrets import WATCH


@dataclass
class Reply:
    status: int
    headers: dict[str, str]      # names in lower case
    body: bytes
    complete: bool               # whether the application ended its answer

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Requests to one application. `headers` are sent with every request."""

    def __init__(self, app, headers: dict[str, str] | None = None, host: str = "cloud.example:5000"):
        self._app = app
        self._headers = headers or {}
        self._host = host

    async def __call__(self, verb: str, target: str, *, json_body: Any = None, body: bytes | Iterable[bytes] = b"",
                       headers: dict[str, str] | None = None, cut: bool = False, peer: str = "192.0.2.7") -> Reply:
        """One exchange.

        Args:
          body: bytes, or pieces that arrive one by one.
          cut: the client goes away instead of sending the end of the body.
        """
        all_headers = {"host": self._host}
        all_headers |= {name.lower(): value for each in (self._headers, headers or {}) for name, value in each.items()}
        if json_body is not None:
            body = json.dumps(json_body).encode()
            all_headers.setdefault("content-type", "application/json")
        pieces = [body] if isinstance(body, bytes) else list(body)
        if isinstance(body, bytes):
            WATCH.note_message(all_headers, body)
        events = [{"type": "http.request", "body": piece, "more_body": cut or position < len(pieces) - 1}
                  for position, piece in enumerate(pieces)]
        if cut:
            events.append({"type": "http.disconnect"})
        path, _, query = target.partition("?")
        scope = {"type": "http", "method": verb, "path": path, "raw_path": path.encode(), "query_string": query.encode(),
                 "scheme": "http", "client": (peer, 1234), "server": ("127.0.0.1", 5000), "http_version": "1.1",
                 "headers": [(name.encode(), value.encode()) for name, value in all_headers.items() if value is not None]}
        sent: list[dict[str, Any]] = []

        async def receive():
            if events:
                return events.pop(0)
            await asyncio.Event().wait()

        async def send(event):
            sent.append(event)

        await self._app(scope, receive, send)
        start, *rest = sent
        answered = {name.decode(): value.decode() for name, value in start["headers"]}
        content = b"".join(event.get("body", b"") for event in rest)
        WATCH.note_message(answered, content)
        return Reply(start["status"], answered, content, bool(rest) and not rest[-1].get("more_body", False))
