"""The CLI's own way to the REST API: a token, the catalog, JSON in and out, over one kept connection per service.

What was not answered is sent again for a while: what changes something has an idempotency key, so it takes effect once.
"""
import http.client
import json
import ssl
import time
import uuid
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

from control.kernel.config import Config

#: Seconds that one answer may take.
TIMEOUT = 60.0

#: Seconds for which a request is sent again that was not answered, or answered 503; and those between two tries, at first and at
#: most. Long enough for another replica to take over; longer keeps a user waiting for a cloud that is down.
RETRY_FOR = 8.0
PAUSE, LONGEST_PAUSE = 0.1, 2.0


class RestError(Exception):
    """An answer of 400 or more, or none at all. `status` is 0 when the cloud did not answer.

    `retry_after`: seconds after which the same may be answered otherwise, where the answer says so.
    """

    def __init__(self, status: int, text: str, retry_after: float | None = None):
        super().__init__(text)
        self.status = status
        self.retry_after = retry_after

    @property
    def may_pass(self) -> bool:
        """Whether it is worth while to send the same again."""
        return self.status in (0, 503) or (self.status == 409 and self.retry_after is not None)


class Session:
    """A user of the cloud in one project. Logs in at the first request, and again when its token is refused.

    Raises RestError from every request; a service that the catalog lacks is one, too.
    """

    def __init__(self, config: Config, user: str, password: str, project: str):
        self._auth = {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": user, "domain": {"id": "default"}, "password": password}}},
            "scope": {"project": {"name": project, "domain": {"id": "default"}}}}
        self._auth_url = config.auth_url
        self._certificate = config.certificate
        self._token = ""
        self._endpoints: dict[str, str] = {}
        self._connections: dict[str, http.client.HTTPConnection] = {}

    def request(self, method: str, service: str, path: str, body: Any = None, *,
                headers: dict[str, str] | None = None) -> Any:
        """One call of a service by its catalog type; the decoded answer, None when it is empty.

        `body` is sent as JSON; bytes, or an iterable of them, as they are.
        """
        headers = dict(headers or {})
        if method not in ("GET", "HEAD") and not _is_stream(body):
            headers.setdefault("Idempotency-Key", str(uuid.uuid4()))
        if not self._token:
            self._log_in()
        try:
            return self._persist(method, self._url(service, path), body, headers)[1]
        except RestError as error:
            if error.status != 401:
                raise
        self._log_in()
        return self._persist(method, self._url(service, path), body, headers)[1]

    def open(self, service: str, path: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
        """The answer to a GET, to be read as it arrives, on a connection of its own that ends with it."""
        for again in (False, True):
            if again or not self._token:
                self._log_in()
            parts = urlsplit(self._url(service, path))
            connection = self._new(parts.scheme, parts.netloc)
            try:
                connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""),
                                   headers={"X-Auth-Token": self._token, **(headers or {})})
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise RestError(0, f"{parts.scheme}://{parts.netloc} does not answer: {error}") from error
            if answer.status == 200:
                return answer
            refused = RestError(answer.status, f"GET {parts.path}: {answer.status} {message_of(answer.read())}")
            connection.close()
            if answer.status != 401:
                break
        raise refused

    def _url(self, service: str, path: str) -> str:
        if service not in self._endpoints:
            raise RestError(404, f"the catalog has no service of type {service}")
        return self._endpoints[service].rstrip("/") + path

    def _log_in(self) -> None:
        headers, body = self._persist("POST", f"{self._auth_url}/auth/tokens", {"auth": self._auth}, {}, token=False)
        self._token = headers["X-Subject-Token"]
        self._endpoints = {service["type"]: endpoint["url"] for service in body["token"]["catalog"]
                           for endpoint in service["endpoints"] if endpoint["interface"] == "public"}

    def _persist(self, method: str, url: str, body: Any, headers: dict[str, str], *, token: bool = True) -> tuple[Any, Any]:
        """Send until there is an answer that stands. A stream of bytes can be sent only once."""
        limit, pause = time.monotonic() + RETRY_FOR, PAUSE
        while True:
            try:
                return self._send(method, url, body, headers, token=token)
            except RestError as error:
                wait = max(pause, error.retry_after or 0)
                if not error.may_pass or _is_stream(body) or time.monotonic() + wait > limit:
                    raise
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _send(self, method: str, url: str, body: Any, headers: dict[str, str], *, token: bool = True) -> tuple[Any, Any]:
        parts = urlsplit(url)
        headers = {"Accept": "application/json", **headers}
        if token:
            headers["X-Auth-Token"] = self._token
        if body is not None and not isinstance(body, bytes) and not _is_stream(body):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        for fresh in (False, True):
            connection = self._connect(parts.scheme, parts.netloc, fresh=fresh)
            try:
                connection.request(method, target, body=body, headers=headers, encode_chunked=not isinstance(body, bytes | None))
                answer = connection.getresponse()
                if answer.length is None and not answer.chunked:        # the cloud says how long: the headers were cut off
                    raise http.client.IncompleteRead(b"")
                data = answer.read()
                break
            except (OSError, http.client.HTTPException) as error:
                # A kept connection may have been closed meanwhile; a stream of bytes can be sent only once.
                if fresh or not isinstance(body, bytes | None):
                    raise RestError(0, f"{parts.scheme}://{parts.netloc} does not answer: {error}") from error
        if answer.status >= 400:
            after = answer.headers.get("Retry-After", "")
            raise RestError(answer.status, f"{method} {target}: {answer.status} {message_of(data)}",
                            float(after) if after.isdecimal() else None)
        return answer.headers, json.loads(data) if data and "json" in answer.headers.get("Content-Type", "") else None

    def _connect(self, scheme: str, netloc: str, *, fresh: bool) -> http.client.HTTPConnection:
        if fresh and netloc in self._connections:
            self._connections.pop(netloc).close()
        if netloc not in self._connections:
            self._connections[netloc] = self._new(scheme, netloc)
        return self._connections[netloc]

    def _new(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        if scheme == "https":
            context = ssl.create_default_context(cafile=self._certificate or None)
            return http.client.HTTPSConnection(netloc, timeout=TIMEOUT, context=context)
        return http.client.HTTPConnection(netloc, timeout=TIMEOUT)


def _is_stream(body: Any) -> bool:
    """Whether a body is bytes in pieces, which are gone when they are sent."""
    return isinstance(body, Iterable) and not isinstance(body, bytes | dict | list)


def message_of(data: bytes) -> str:
    """The human part of an error body, whichever service wrote it."""
    try:
        body = json.loads(data)
        inner = next(iter(body.values())) if isinstance(body, dict) and body else body
        if isinstance(inner, dict):
            return str(inner.get("message", inner))
        return str(inner)
    except ValueError:
        return data[:300].decode("utf-8", "replace")
