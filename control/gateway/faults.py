"""Error bodies: what each family of APIs makes of a kernel.errors.Error.

One error has one meaning; the family decides the status of a few and the shape of all.
"""
import html
from collections.abc import Callable, Collection
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import grpc
import orjson

from control.gateway.apis import Family
from control.kernel.errors import Conflict, Denied, Error, Exhausted, Invalid, NotFound, Stale, Unauthenticated

JSON = "application/json"


class WrongMethod(Error):
    """The path exists, the verb on it does not."""

    status = grpc.StatusCode.UNIMPLEMENTED
    http = 405

    def __init__(self, verb: str, allowed: Collection[str]):
        self.allowed = ", ".join(sorted(allowed))
        super().__init__("request.method", f"The method {verb} is not allowed for this resource; it takes {self.allowed}.")


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as it goes to the client."""

    status: int
    content_type: str
    body: bytes


_NOVA_NAMES = {400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 405: "badMethod",
               409: "conflictingRequest", 413: "overLimit", 415: "badMediaType", 429: "overLimit", 501: "notImplemented",
               503: "serviceUnavailable"}

#: Families whose answer to a quota or a pool that has nothing left is not 403.
_EXHAUSTED: dict[int, int] = {Family.NEUTRON: 409, Family.GLANCE: 413, Family.CINDER: 413, Family.PLACEMENT: 409}

_NEUTRON_TYPES: tuple[tuple[type[Error], str], ...] = (
    (Invalid, "InvalidInput"), (Unauthenticated, "HTTPUnauthorized"), (Denied, "PolicyNotAuthorized"),
    (Exhausted, "OverQuota"), (Stale, "RevisionNumberConstraintFailed"), (Conflict, "Conflict"))


def fault(family: int, error: Error, request_id: str, accept: str = "") -> Fault:
    """The status and body of an error.

    Args:
      accept: the request's Accept header, for families that have more than JSON.
    """
    if error.document is not None:
        return Fault(error.http, JSON, orjson.dumps(error.document))
    status = _EXHAUSTED.get(family, error.http) if isinstance(error, Exhausted) else error.http
    if family == Family.GLANCE and JSON not in accept:
        return Fault(status, "text/html; charset=UTF-8", _glance_page(status, str(error)))
    shape = _SHAPES.get(family, _keystone)
    return Fault(status, JSON, orjson.dumps(shape(status, error, request_id)))


def title_of(status: int) -> str:
    """The reason phrase of a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def _nova(status: int, error: Error, request_id: str) -> dict[str, Any]:
    return {_NOVA_NAMES.get(status, "computeFault"): {"code": status, "message": str(error)}}


def _keystone(status: int, error: Error, request_id: str) -> dict[str, Any]:
    return {"error": {"code": status, "message": str(error), "title": title_of(status)}}


def _neutron(status: int, error: Error, request_id: str) -> dict[str, Any]:
    kind = next((name for of, name in _NEUTRON_TYPES if isinstance(error, of)), "HTTP" + title_of(status).replace(" ", ""))
    if isinstance(error, NotFound) and error.reason.startswith("network."):
        noun = error.reason.removesuffix(".missing").rsplit(".", 1)[-1].rstrip("s")
        kind = "".join(part.capitalize() for part in noun.replace("-", "_").split("_")) + "NotFound"
    return {"NeutronError": {"type": kind, "message": str(error), "detail": ""}}


def _glance(status: int, error: Error, request_id: str) -> dict[str, Any]:
    return {"message": str(error), "code": f"{status} {title_of(status)}", "title": title_of(status)}


def _glance_page(status: int, text: str) -> bytes:
    title = f"{status} {title_of(status)}"
    return (f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n"
            f"  {html.escape(text, quote=False)}<br /><br />\n </body>\n</html>\n").encode()


def _placement(status: int, error: Error, request_id: str) -> dict[str, Any]:
    code = error.reason if error.reason.startswith(("placement.", "watch.")) else "placement.undefined_code"
    if isinstance(error, Stale):
        code = "placement.concurrent_update"
    return {"errors": [{"status": status, "title": title_of(status), "detail": str(error), "code": code,
                        "request_id": request_id}]}


_SHAPES: dict[int, Callable[[int, Error, str], dict[str, Any]]] = {
    Family.NOVA: _nova, Family.CINDER: _nova, Family.KEYSTONE: _keystone, Family.NEUTRON: _neutron,
    Family.GLANCE: _glance, Family.PLACEMENT: _placement,
}
