"""The errors that a handler may raise; kernel.rpc and the gateway turn each into a status, once.

Anything else that escapes a handler is a bug: it is logged with its trace and answered without text.
"""
from typing import Any

import grpc


class Error(Exception):
    """A failure that the caller can understand; `reason` is stable ("compute.server.name"), the text is for people."""

    status = grpc.StatusCode.INTERNAL
    http = 500

    #: What REST answers in place of the API's usual envelope, and headers beside it.
    document: dict[str, Any] | None = None
    headers: tuple[tuple[str, str], ...] = ()

    def __init__(self, reason: str, text: str):
        super().__init__(text)
        self.reason = reason


class Invalid(Error):
    """The request can never succeed as it is."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    http = 400


class Unauthenticated(Error):
    """No token, or one that is not valid (any more)."""

    status = grpc.StatusCode.UNAUTHENTICATED
    http = 401


class Denied(Error):
    """The caller is known and may not do this."""

    status = grpc.StatusCode.PERMISSION_DENIED
    http = 403


class NotFound(Error):
    """There is no such thing, or none that the caller may see."""

    status = grpc.StatusCode.NOT_FOUND
    http = 404


class NotAcceptable(Error):
    """A microversion that the API does not have."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    http = 406


class Conflict(Error):
    """The state of the thing does not allow the request now."""

    status = grpc.StatusCode.FAILED_PRECONDITION
    http = 409


class Stale(Conflict):
    """A commit lost the race: a guarded record changed. `revision` is the store's when it refused, `key` the record's."""

    status = grpc.StatusCode.ABORTED

    def __init__(self, reason: str, text: str, revision: int = 0, *, key: str = ""):
        super().__init__(reason, text)
        self.revision = revision
        self.key = key


class TooLarge(Error):
    """The input is over a limit of size."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    http = 413


class UnsupportedMedia(Error):
    """The body's media type is none that the call takes."""

    status = grpc.StatusCode.INVALID_ARGUMENT
    http = 415


class Exhausted(Error):
    """A quota or a pool has nothing left to give."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http = 403


class Unavailable(Error):
    """A part that is needed does not answer now; the same call may succeed later."""

    status = grpc.StatusCode.UNAVAILABLE
    http = 503
