"""From a servicer to something that can be called: caller, policy, deadline, errors and one log line, in one place.

The gRPC listener and the REST gateway both call methods through a Dispatcher, so a call means the same on either way in.
A servicer's method is `async def Name(self, request, call)`, where `call` is a Call and never a transport's context.
Streams: a client-streaming method gets an async iterator of requests, a server-streaming one is an async generator.
"""
import asyncio
import contextlib
import logging
import random
import re
import time
import types
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import grpc
from google.api import annotations_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message

from agents.telemetry import traces
from agents.telemetry.logs import request_id
from agents.telemetry.timing import Timings
from control.kernel.acting import NOBODY, Author, Effects, author, effects
from control.kernel.caller import Caller
from control.kernel.errors import Conflict, Denied, Error, Exhausted, Invalid, NotFound, Unauthenticated, Unavailable
from control.kernel.idempotency import HEADER, REPLAYED, IdempotencyKeys, parse
from control.kernel.naming import api_options
from control.kernel.policy import Finder, Policy, RequestTarget, rule_name
from control.kernel.rules import NO_TARGET
from protos.brume.v1 import options_pb2
from protos.internal.v1.idempotency_pb2 import IdempotentAnswer

__all__ = ["Authenticator", "Call", "Dispatcher", "Method", "add_to_grpc", "new_request_id", "request_id", "within"]

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a unary call may take where the client gives no deadline. Handlers never wait for machines.
DEFAULT_DEADLINE = 60.0

#: A request's bytes at most, on the gRPC listener; the gateway has its own limit for JSON.
MAX_MESSAGE = 4 * 1024 * 1024

#: Seconds that a client may take to read what fills its connection. Too low cuts off slow networks; too high lets idle ones hold
#: what is meant for them.
WRITE_TIMEOUT = 60.0

#: In a read's answer: the revision of what it shows, from which changes can be watched.
REVISION = "X-Brume-Revision"


def new_request_id() -> str:
    """ "req-" and a random UUID, which tells calls apart and is no secret."""
    made = f"{random.getrandbits(128):032x}"
    return f"req-{made[:8]}-{made[8:12]}-4{made[13:16]}-{'89ab'[int(made[16], 16) & 3]}{made[17:20]}-{made[20:]}"


_REQUEST_ID = re.compile(r"req-[0-9a-fA-F-]{36}\Z")


def valid_request_id(text: str) -> str:
    """A request id as a client sent it; "" where it is none."""
    return text if _REQUEST_ID.match(text) else ""


@dataclass(slots=True)
class Call:
    """One call in progress: what it came with, and what the answer carries beside its message."""

    token: str = ""
    request_id: str = field(default_factory=new_request_id)
    microversion: tuple[int, int] | None = None    # None: the native API, which has everything
    remote: str = ""
    #: What the client calls the work that this call is a part of, in its own X-Openstack-Request-Id; "" for nothing.
    global_request_id: str = ""
    traceparent: str = ""                          # W3C's: the client's span
    base_url: str = ""                             # "http://host:5000" as the client wrote it; "" for gRPC
    peer: str = ""                                 # common name of the client's certificate; "" without one
    timeout: float = DEFAULT_DEADLINE
    #: Of REST: the catalog type of the API, the verb, and the path with and without the API's mount; empty for gRPC.
    service: str = ""
    verb: str = ""
    paths: tuple[str, ...] = ()
    #: Set by the dispatcher before the handler runs; on a public rpc without a token it stays None.
    caller_or_none: Caller | None = None
    #: Whether the rpc's rule has said all that there is to say of who may: then the handler asks no more.
    decided: bool = False
    #: As the client gave it; "" for none. It says nothing where nobody is logged in, or where the client streams: those calls are
    #: logins, which make nothing, and uploads, which are taken once. The dispatcher says whether the answer was given before.
    idempotency_key: str = ""
    is_replay: bool = False
    #: HTTP status of the answer, where a handler chooses at run time; None: the rpc's own.
    status: int | None = None
    #: Set by the dispatcher before the handler runs: what the answer shows has all that was committed up to there.
    revision: int = 0
    #: Of REST, for a call that shows other APIs' resources: the microversions that were asked of them, by proto package.
    microversions: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)

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
    policy: str                      # as the option says: a rule's name, or an expression
    rule: str = ""                   # the name of its own rule
    find: Finder | None = None       # what its service knows of a request's target
    reads: bool = field(init=False)
    client_streaming: bool = field(init=False)
    server_streaming: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", self.descriptor.name.startswith(("List", "Get", "Show")))
        object.__setattr__(self, "client_streaming", self.descriptor.client_streaming)
        object.__setattr__(self, "server_streaming", self.descriptor.server_streaming)


class Dispatcher:
    """The table of methods, and the one way to call them."""

    def __init__(self, authenticator: Authenticator, policy: Policy | None = None, keys: IdempotencyKeys | None = None,
                 revision: Callable[[], int] = lambda: 0, caught_up: Callable[[int], Awaitable[bool]] | None = None):
        """`keys` are those that calls come with; without, a key says nothing. `revision`: up to which the state is that handlers
        read. `caught_up`: whether the store is ahead of a revision; handlers read then what it has, or it raises Unavailable."""
        self._authenticator = authenticator
        self._keys = keys
        self._revision = revision
        self._caught_up = caught_up
        #: Of calls that answer once, by method and outcome.
        self.timings = Timings()
        self.policy = policy or Policy()
        self.methods: dict[str, Method] = {}
        self.services: list[ServiceDescriptor] = []

    def add(self, servicer: object, service: ServiceDescriptor) -> None:
        """Serve a servicer's methods. Raises ValueError where one is missing or has no policy that means anything.

        A servicer that knows more of what a request is about than its fields say has a `policy_target`, a Finder.
        """
        self.services.append(service)
        for descriptor in service.methods:
            policy = descriptor.GetOptions().Extensions[options_pb2.policy]
            if policy != "peer":
                try:
                    self.policy.add(rule_name(descriptor), policy)
                except Invalid as error:
                    raise ValueError(f"{descriptor.full_name} has the policy {policy!r}: {error}") from error
            name = f"/{service.full_name}/{descriptor.name}"
            self.methods[name] = Method(
                name, getattr(servicer, descriptor.name), descriptor,
                message_factory.GetMessageClass(descriptor.input_type),
                message_factory.GetMessageClass(descriptor.output_type), policy, rule_name(descriptor),
                getattr(servicer, "policy_target", None))

    async def unary(self, method: Method, request: Any, call: Call) -> Message:
        """Call a method that answers once. `request` is an async iterator where the client streams.

        Raises kernel.errors only: what else a handler raises is logged with its trace and becomes an Error without text.
        """
        started = time.perf_counter()
        token, acting = request_id.set(call.request_id), author.set(NOBODY)
        outcome = "ok"
        try:
            if traces.tracer is not None:
                with traces.span(method.name, parent=call.traceparent, server=True, request_id=call.request_id):
                    return await self._call(method, request, call)
            return await self._call(method, request, call)
        except BaseException as error:
            outcome = type(error).__name__
            known = _known(method, error)
            if known is error:
                raise
            raise known from error
        finally:
            seconds, outcome = time.perf_counter() - started, "replayed" if call.is_replay else outcome
            self.timings.add((method.name, outcome), seconds)
            _log_call(method, call, outcome, seconds)
            author.reset(acting)
            request_id.reset(token)

    async def _call(self, method: Method, request: Any, call: Call) -> Message:
        await self._enter(method, request, call)
        author.set(_author(method, call))
        call.revision = self._revision()
        if method.client_streaming:
            return await method.handler(request, call)
        if call.idempotency_key and self._keys is not None and call.caller_or_none is not None and request is not None:
            return await within(self._once(self._keys, method, request, call), call.timeout)
        return await self._fresh(method, request, call)

    async def _fresh(self, method: Method, request: Any, call: Call) -> Message:
        """What a call answers; where it is refused for what this replica knows, it is judged by what the store knew when it came.

        A replica that is cut off would refuse for what is long over. One that has caught up judges the call anew, unless it has
        had effects. Raises Unavailable where that cannot be known.
        """
        if self._caught_up is None or not isinstance(request, Message):
            return await within(method.handler(request, call), call.timeout)
        again = request if method.reads else _copy(request)
        noted = Effects()
        token = effects.set(noted)
        try:
            return await within(method.handler(request, call), call.timeout)
        except (NotFound, Conflict, Exhausted) as error:
            if method.reads and not isinstance(error, NotFound):
                raise
            if not await self._caught_up(call.revision) or noted.any:
                raise
        finally:
            effects.reset(token)
        call.status, call.revision = None, self._revision()
        return await within(method.handler(again, call), call.timeout)

    async def _once(self, keys: IdempotencyKeys, method: Method, request: Message, call: Call) -> Message:
        """What a call with an idempotency key answers: what it answered before, if it did."""
        async def run() -> IdempotentAnswer:
            call.status = None
            response = await method.handler(_copy(request), call)
            return IdempotentAnswer(response=response.SerializeToString(), status=call.status or 0, request_id=call.request_id)

        content = b"\0".join((method.name.encode(), repr(call.microversion).encode(),
                              request.SerializeToString(deterministic=True)))
        kept, call.is_replay = await keys.once(call.caller, call.idempotency_key, content, run)
        call.status = kept.status or None
        if call.is_replay:
            log.info("%s is answered as %s was", method.name, kept.request_id)
        return method.response_type.FromString(kept.response)

    async def stream(self, method: Method, request: Any, call: Call) -> AsyncGenerator[Message, None]:
        """Call a method that answers with a stream; errors as in unary()."""
        started = time.perf_counter()
        request_id.set(call.request_id)
        outcome = "ok"
        try:
            await self._enter(method, request, call)
            author.set(_author(method, call))
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
            _log_call(method, call, outcome, time.perf_counter() - started)

    async def admit(self, name: str, call: Call) -> None:
        """Judge a call's token anew, and raise unless its caller may also make another call, asking for nothing in particular."""
        method = self.methods[name]
        await self._enter(method, method.request_type(), call)

    async def _enter(self, method: Method, request: Any, call: Call) -> None:
        if method.policy == "peer":
            if not call.peer:
                raise Unauthenticated("peer", "This call needs a client certificate of this cloud.")
            return
        if method.policy == "public" and not self.policy.is_override(method.rule):
            if call.token:
                call.caller_or_none = await self._authenticator.authenticate(call.token)
            return
        if not call.token:
            raise Unauthenticated("token.missing", "The request you have made requires authentication.")
        call.caller_or_none = caller = await self._authenticator.authenticate(call.token)
        if caller.access_rules is not None:
            _check_access(caller, method, request, call)
        rule = self.policy.rule(method.rule)
        if request is None and rule.part.needs_target:
            return                    # a request that was not understood: it has no target, and reaches no handler
        target = RequestTarget(request, caller, method.find) if rule.part.needs_target else NO_TARGET
        if not rule.allows(caller, target):
            raise Denied("policy", f"You are not authorized to perform the requested action: {method.rule}"
                                   f"{_HINTS.get(method.policy, '')}.")
        call.decided = method.policy != "authenticated" or self.policy.is_override(method.rule)


def _copy(request: Message) -> Message:
    """What a handler that may run again is given: it may change it."""
    copy = type(request)()
    copy.CopyFrom(request)
    return copy


async def within(handler: Coroutine[Any, Any, T], seconds: float) -> T:
    """What a coroutine returns. Raises TimeoutError where it has to wait for longer than that.

    Most handlers never wait: a timer is set up only when one does.
    """
    try:
        awaited = handler.send(None)
    except StopIteration as done:
        return done.value
    async with asyncio.timeout(seconds):
        return await _resumed(handler, awaited)


@types.coroutine
def _resumed(handler: Coroutine[Any, Any, T], awaited: Any) -> Generator[Any, Any, T]:
    """The rest of a coroutine that has begun and waits for something: what `await` would do from here on."""
    while True:
        try:
            try:
                sent = yield awaited
            except GeneratorExit:
                handler.close()
                raise
            except BaseException as error:
                awaited = handler.throw(error)
            else:
                awaited = handler.send(sent)
        except StopIteration as done:
            return done.value


_HINTS = {"reader": " needs the role reader in a project", "member": " needs the role member in a project",
          "admin": " needs the role admin"}


def _check_access(caller: Caller, method: Method, request: Any, call: Call) -> None:
    """Raises Unauthenticated, as Keystone's middleware does, for a request that none of the caller's access rules has."""
    service, verb, paths = (call.service, call.verb, call.paths) if call.paths else _as_rest(method, request)
    if not any(rule.matches(service, verb, paths) for rule in caller.access_rules or ()):
        raise Unauthenticated("token.access_rules", "The request you have made requires authentication.")


def _as_rest(method: Method, request: Any) -> tuple[str, str, tuple[str, ...]]:
    """What a native call would be in REST; no path where it has no such form, or its fields do not fill one."""
    options = method.descriptor.GetOptions()
    if not options.HasExtension(annotations_pb2.http) or not isinstance(request, Message):
        return "", "", ()
    api = api_options(method.descriptor.containing_service.file)
    rule = options.Extensions[annotations_pb2.http]
    kind = rule.WhichOneof("pattern")
    verb, path = (rule.custom.kind, rule.custom.path) if kind == "custom" else (kind.upper(), getattr(rule, kind))
    for name in _PARAMETER.findall(path):
        value = getattr(request, name, "")
        if not isinstance(value, str) or not value or "/" in value:
            return "", "", ()
        path = _PARAMETER.sub(value.replace("\\", "\\\\"), path, count=1)
    return (api.type, verb, (path, api.mount + path)) if api is not None else ("", "", ())


_PARAMETER = re.compile(r"\{([a-z_0-9]+)(?:=[^}]*)?\}")


def _author(method: Method, call: Call) -> Author:
    caller = call.caller_or_none
    actor = f"user:{caller.user_id}" if caller else f"agent:{call.peer}" if method.policy == "peer" else "anonymous"
    return Author(actor, call.request_id, caller.project_id if caller else "", method.name)


def _known(method: Method, error: BaseException) -> BaseException:
    """The error that the caller gets: its own, or INTERNAL without text for what is a bug."""
    if isinstance(error, Error | asyncio.CancelledError | GeneratorExit):
        return error
    if isinstance(error, TimeoutError):
        return Unavailable("deadline", "The call did not end within its deadline; it may still take effect.")
    log.error("%s failed", method.name, exc_info=error)
    return Error("internal", "An unexpected error happened; the log has it under this request id.")


def _log_call(method: Method, call: Call, outcome: str, seconds: float) -> None:
    if not log.isEnabledFor(logging.INFO):
        return
    caller = call.caller_or_none
    log.info("%s %s %.1f ms user=%s project=%s from=%s%s", method.name, outcome, seconds * 1000,
             caller.user_id if caller else "-", (caller.project_id if caller else "") or "-", call.remote or "-",
             f" part of {call.global_request_id}" if call.global_request_id else "")


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
            call.idempotency_key = parse(dict(context.invocation_metadata() or ()).get(HEADER.lower(), ""))
            answer = await dispatcher.unary(method, request, call)
            if call.is_replay:
                context.set_trailing_metadata(((REPLAYED.lower(), "true"),))
            elif method.reads:
                context.set_trailing_metadata(((REVISION.lower(), str(call.revision)),))
            return answer
        except Error as error:
            await _abort(context, call, error)
            raise AssertionError("abort raises") from error

    async def stream(request: Any, context: grpc.aio.ServicerContext) -> None:
        call = _call_of(context)
        try:
            async with contextlib.aclosing(dispatcher.stream(method, request, call)) as messages:
                async for message in messages:
                    await within(context.write(message), WRITE_TIMEOUT)
        except Error as error:
            await _abort(context, call, error)
        except TimeoutError:
            log.info("%s: the client reads nothing: cut off", call.request_id)
            slow = Unavailable("stream.slow", f"Nothing was read for {WRITE_TIMEOUT:.0f} s.")
            with contextlib.suppress(TimeoutError):
                await within(_abort(context, call, slow), 1.0)     # it may wait for the reader, too

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
    call = Call(token=token, remote=context.peer(), peer=names[0].decode() if names else "",
                traceparent=metadata.get("traceparent", ""),
                global_request_id=valid_request_id(metadata.get("x-openstack-request-id", "")))
    remaining = context.time_remaining()
    if remaining is not None:
        call.timeout = min(remaining, DEFAULT_DEADLINE)
    return call


async def _abort(context: grpc.aio.ServicerContext, call: Call, error: Error) -> None:
    await context.abort(error.status, str(error), (
        ("reason", error.reason), ("x-request-id", call.request_id), *((key.lower(), value) for key, value in error.headers)))


