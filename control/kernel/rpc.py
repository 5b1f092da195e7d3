"""From a servicer to something that can be called: caller, policy, deadline, errors and one log line, in one place.

The gRPC listener and the REST gateway both call methods through a Dispatcher, so a call means the same on either way in.
A servicer's method is `async def Name(self, request, call)`, where `call` is a Call and never a transport's context.
Streams: a client-streaming method gets an async iterator of requests, a server-streaming one is an async generator.
"""
import asyncio
import contextlib
import contextvars
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from control.kernel.caller import Caller
from control.kernel.errors import Denied, Error, Unauthenticated, Unavailable
from protos.brume.v1 import options_pb2

log = logging.getLogger(__name__)

#: Seconds that a unary call may take where the client gives no deadline. Handlers never wait for machines.
DEFAULT_DEADLINE = 60.0

#: A request's bytes at most, on the gRPC listener; the gateway has its own limit for JSON.
MAX_MESSAGE = 4 * 1024 * 1024

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")


@dataclass(slots=True)
class Call:
    """One call in progress: what it came with, and what the answer carries beside its message."""

    token: str = ""
    request_id: str = field(default_factory=lambda: f"req-{uuid.uuid4()}")
    microversion: tuple[int, int] | None = None    # None: the native API, which has everything
    remote: str = ""
    base_url: str = ""                             # "http://host:5000" as the client wrote it; "" for gRPC
    peer: str = ""                                 # common name of the client's certificate; "" without one
    timeout: float = DEFAULT_DEADLINE
    #: Set by the dispatcher before the handler runs; on a public rpc without a token it stays None.
    caller_or_none: Caller | None = None
    #: HTTP status of the answer, where a handler chooses at run time; None: the rpc's own.
    status: int | None = None

    @property
    def caller(self) -> Caller:
        """Who calls. Raises Unauthenticated on a public rpc that was called without a token."""
        if self.caller_or_none is None:
            raise Unauthenticated("token.missing", "The request you have made requires authentication.")
        return self.caller_or_none


class Authenticator(Protocol):
    async def authenticate(self, token: str) -> Caller:
        """Who a token speaks for. Raises Unauthenticated if it is malformed, expired or revoked."""


@dataclass(frozen=True, slots=True)
class Method:
    """One rpc: its handler and what its descriptor says."""

    name: str                        # "/compute.v1.Servers/CreateServer"
    handler: Callable[[Any, Call], Any]
    descriptor: Any                  # google.protobuf.descriptor.MethodDescriptor
    request_type: type[Message]
    response_type: type[Message]
    policy: str

    @property
    def client_streaming(self) -> bool:
        return self.descriptor.client_streaming

    @property
    def server_streaming(self) -> bool:
        return self.descriptor.server_streaming


POLICIES: dict[str, Callable[[Caller], bool]] = {
    "authenticated": lambda caller: True,
    "reader": lambda caller: caller.is_admin or bool(caller.project_id and caller.roles & {"reader", "member"}),
    "member": lambda caller: caller.is_admin or bool(caller.project_id and "member" in caller.roles),
    "admin": lambda caller: caller.is_admin,
}


class Dispatcher:
    """The table of methods, and the one way to call them."""

    def __init__(self, authenticator: Authenticator):
        self._authenticator = authenticator
        self.methods: dict[str, Method] = {}
        self.services: list[ServiceDescriptor] = []

    def add(self, servicer: object, service: ServiceDescriptor) -> None:
        """Serve a servicer's methods. Raises ValueError where one is missing or has no policy."""
        self.services.append(service)
        for descriptor in service.methods:
            policy = descriptor.GetOptions().Extensions[options_pb2.policy]
            if policy not in POLICIES and policy not in ("public", "peer"):
                raise ValueError(f"{descriptor.full_name} has policy {policy!r}, not public, peer or one of "
                                 f"{', '.join(POLICIES)}")
            name = f"/{service.full_name}/{descriptor.name}"
            self.methods[name] = Method(
                name, getattr(servicer, descriptor.name), descriptor,
                message_factory.GetMessageClass(descriptor.input_type),
                message_factory.GetMessageClass(descriptor.output_type), policy)

    async def unary(self, method: Method, request: Any, call: Call) -> Message:
        """Call a method that answers once. `request` is an async iterator where the client streams.

        Raises kernel.errors only: what else a handler raises is logged with its trace and becomes an Error without text.
        """
        started = time.perf_counter()
        token = request_id.set(call.request_id)
        outcome = "ok"
        try:
            await self._enter(method, call)
            if method.client_streaming:
                return await method.handler(request, call)
            async with asyncio.timeout(call.timeout):
                return await method.handler(request, call)
        except BaseException as error:
            outcome = type(error).__name__
            known = _known(method, error)
            if known is error:
                raise
            raise known from error
        finally:
            _log_call(method, call, outcome, started)
            request_id.reset(token)

    async def stream(self, method: Method, request: Any, call: Call) -> AsyncGenerator[Message, None]:
        """Call a method that answers with a stream; errors as in unary()."""
        started = time.perf_counter()
        request_id.set(call.request_id)
        outcome = "ok"
        try:
            await self._enter(method, call)
            async with contextlib.aclosing(method.handler(request, call)) as messages:
                async for message in messages:
                    yield message
        except BaseException as error:
            outcome = type(error).__name__
            known = _known(method, error)
            if known is error:
                raise
            raise known from error
        finally:
            _log_call(method, call, outcome, started)

    async def _enter(self, method: Method, call: Call) -> None:
        if method.policy == "peer":
            if not call.peer:
                raise Unauthenticated("peer", "This call needs a client certificate of this cloud.")
            return
        if method.policy == "public":
            if call.token:
                call.caller_or_none = await self._authenticator.authenticate(call.token)
            return
        if not call.token:
            raise Unauthenticated("token.missing", "The request you have made requires authentication.")
        call.caller_or_none = await self._authenticator.authenticate(call.token)
        if not POLICIES[method.policy](call.caller):
            raise Denied("policy", f"You are not authorized to perform the requested action: "
                                   f"{method.descriptor.name} needs the role {method.policy}"
                                   f"{'' if method.policy == 'admin' else ' in a project'}.")


def _known(method: Method, error: BaseException) -> BaseException:
    """The error that the caller gets: its own, or INTERNAL without text for what is a bug."""
    if isinstance(error, Error | asyncio.CancelledError | GeneratorExit):
        return error
    if isinstance(error, TimeoutError):
        return Unavailable("deadline", "The call did not end within its deadline; it may still take effect.")
    log.error("%s failed", method.name, exc_info=error)
    return Error("internal", "An unexpected error happened; the log has it under this request id.")


def _log_call(method: Method, call: Call, outcome: str, started: float) -> None:
    caller = call.caller_or_none
    log.info("%s %s %.1f ms user=%s project=%s from=%s", method.name, outcome, (time.perf_counter() - started) * 1000,
             caller.user_id if caller else "-", (caller.project_id if caller else "") or "-", call.remote or "-")


# gRPC

def add_to_grpc(dispatcher: Dispatcher, server: grpc.aio.Server) -> None:
    """Register every method of the dispatcher with a grpc.aio server."""
    by_service: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for method in dispatcher.methods.values():
        _, service, name = method.name.split("/")
        by_service.setdefault(service, {})[name] = _handler(dispatcher, method)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, handlers)
                                     for service, handlers in by_service.items()])


def _handler(dispatcher: Dispatcher, method: Method) -> grpc.RpcMethodHandler:
    async def unary(request: Any, context: grpc.aio.ServicerContext) -> Message:
        call = _call_of(context)
        try:
            return await dispatcher.unary(method, request, call)
        except Error as error:
            await _abort(context, call, error)
            raise AssertionError("abort raises") from error

    async def stream(request: Any, context: grpc.aio.ServicerContext) -> AsyncGenerator[Message, None]:
        call = _call_of(context)
        try:
            async with contextlib.aclosing(dispatcher.stream(method, request, call)) as messages:
                async for message in messages:
                    yield message
        except Error as error:
            await _abort(context, call, error)

    make: Callable[..., grpc.RpcMethodHandler]
    match method.client_streaming, method.server_streaming:
        case False, False:
            make = grpc.unary_unary_rpc_method_handler
        case True, False:
            make = grpc.stream_unary_rpc_method_handler
        case False, True:
            make = grpc.unary_stream_rpc_method_handler
        case _:
            make = grpc.stream_stream_rpc_method_handler
    return make(stream if method.server_streaming else unary, request_deserializer=method.request_type.FromString,
                response_serializer=method.response_type.SerializeToString)


def _call_of(context: grpc.aio.ServicerContext) -> Call:
    metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
    token = metadata.get("x-auth-token") or metadata.get("authorization", "").removeprefix("Bearer ")
    names = context.auth_context().get("x509_common_name", [])
    call = Call(token=token, remote=context.peer(), peer=names[0].decode() if names else "")
    remaining = context.time_remaining()
    if remaining is not None:
        call.timeout = min(remaining, DEFAULT_DEADLINE)
    return call


async def _abort(context: grpc.aio.ServicerContext, call: Call, error: Error) -> None:
    await context.abort(error.status, str(error), (("reason", error.reason), ("x-request-id", call.request_id)))


