"""The ASGI application: every REST call of the cloud, from scope to answer.

A handler runs only for a request that was understood whole; what is wrong with one is told to those who may make it.
"""
import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import Any

from google.protobuf.message import Message

from control.gateway.answers import Answer
from control.gateway.apis import Api, Family
from control.gateway.codec import parse
from control.gateway.context import Context
from control.gateway.events import HEADERS, RETRY, failure
from control.gateway.exchange import Exchange, Receive, Scope, Send
from control.gateway.faults import WrongMethod, fault
from control.gateway.microversions import negotiate
from control.gateway.reference import Reference
from control.gateway.routes import Endpoint, Match, Routes, Rule
from control.kernel.errors import Error, NotFound
from control.kernel.idempotency import HEADER, REPLAYED
from control.kernel.idempotency import parse as parse_key
from control.kernel.rpc import REVISION, Call, Dispatcher, valid_request_id

log = logging.getLogger(__name__)

Query = list[tuple[str, str]]

#: In place of a body that nobody has read yet; JSON's null is a body, too.
_UNREAD = object()


class Gateway:
    """The application. It owns nothing and may be called by any number of listeners."""

    def __init__(self, dispatcher: Dispatcher, base_url: str | None = None, trusted_proxies: Collection[str] = (),
                 ready: Callable[[], Awaitable[Sequence[str]]] | None = None):
        """
        Args:
          base_url: what links begin with; None: what the client wrote to reach us.
          trusted_proxies: addresses whose X-Forwarded-Proto and -Host are believed.
          ready: what keeps this replica from serving now, in words; None: nothing ever does.
        """
        self._dispatcher = dispatcher
        self._base_url = base_url
        self._ready = ready or _always
        self._trusted_proxies = frozenset(trusted_proxies)
        self.routes = Routes(dispatcher)
        self._reference = Reference(self.routes)
        self._identity = next((api for api in self.routes.apis if api.is_keystone), None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            await self._exchange(Exchange(scope, receive, send))

    async def _exchange(self, exchange: Exchange) -> None:
        if exchange.path == "/healthz":
            await exchange.answer(Answer(200, [("Content-Type", "text/plain; charset=utf-8")], b"OK\n"))
            return
        if exchange.path == "/readyz":
            wrong = await self._ready()
            body = ("\n".join(wrong or ["OK"]) + "\n").encode()
            await exchange.answer(Answer(503 if wrong else 200, [("Content-Type", "text/plain; charset=utf-8")], body))
            return
        if exchange.verb in ("GET", "HEAD") and (page := self._reference.answer(exchange.path, exchange.headers)) is not None:
            await exchange.answer(page)
            return
        base = exchange.base_url(self._base_url, self._trusted_proxies)
        headers = exchange.headers
        call = Call(token=headers.get("x-auth-token", ""), remote=exchange.remote, base_url=base,
                    traceparent=headers.get("traceparent", ""),
                    global_request_id=valid_request_id(headers.get("x-openstack-request-id", "")))
        api = self.routes.api_at(exchange.path)
        common = [("x-openstack-request-id", call.request_id)]
        if api is not None and api.is_nova:
            common.append(("x-compute-request-id", call.request_id))
        try:
            await self._answer(exchange, call, common)
        except Error as error:
            await self._fail(exchange, api, error, call, common)
        except Exception:
            log.exception("%s %s %s failed outside its handler", call.request_id, exchange.verb, exchange.path)
            bug = Error("internal", "An unexpected error happened; the log has it under this request id.")
            await self._fail(exchange, api, bug, call, common)

    async def _answer(self, exchange: Exchange, call: Call, common: Query) -> None:
        """Answer a request; `common` grows by headers that an error's answer must have too."""
        match = self._match(exchange)
        if match is None:
            document = self.routes.document(exchange.path, call.base_url)
            if document is None:
                raise NotFound("path", "The resource could not be found.")
            _, status, body = document
            await exchange.answer(Answer(status, [*common, ("Content-Type", "application/json")], body))
            return
        endpoint = match.endpoint
        api = endpoint.rules[0].api
        path = exchange.path.rstrip("/")
        call.service, call.verb, call.paths = api.type, exchange.verb, (path.removeprefix(api.mount), path)
        chosen = negotiate(api, endpoint.rules[0].path, endpoint.is_alias, exchange.headers)
        call.microversion = chosen.pair
        common += chosen.headers
        if api.is_keystone:
            common.append(("Vary", "X-Auth-Token"))
        context = Context(version=chosen.number, base=call.base_url, mount=api.mount, prefix=endpoint.prefix)
        rule, body = await self._choose(exchange, endpoint, call, context)
        try:
            query = exchange.query()
            request = await self._request(exchange, match, rule, body, query, context)
            if (key := exchange.headers.get(HEADER.lower())) is not None and exchange.verb not in ("GET", "HEAD"):
                call.idempotency_key = parse_key(key)
        except Error as error:
            await self._refuse(rule, error, call)
        if rule.answering.events is not None:
            await self._tell(exchange, rule, request, call, common)
            return
        if rule.method.server_streaming:
            await self._stream(exchange, rule, request, call, context, common)
            return
        message = await self._dispatcher.unary(rule.method, request, call)
        answer = rule.answering.answer(message, call, context, exchange.path, query)
        if rule.method.reads:
            common.append((REVISION, str(call.revision)))
        answer.headers += common
        if call.is_replay:
            answer.headers.append((REPLAYED, "true"))
        await exchange.answer(answer)

    def _match(self, exchange: Exchange) -> Match | None:
        """What answers the request; None where only a version document can."""
        try:
            return self.routes.find(exchange.verb, exchange.path)
        except NotFound:
            if exchange.verb in ("GET", "HEAD"):
                return None
            if self.routes.document(exchange.path, "") is not None:
                raise WrongMethod(exchange.verb, ("GET", "HEAD")) from None
            raise

    async def _choose(self, exchange: Exchange, endpoint: Endpoint, call: Call, context: Context) -> tuple[Rule, Any]:
        """The rule among an endpoint's, and the parsed body where it takes one to choose."""
        body: Any = _UNREAD
        try:
            if not endpoint.has_actions:
                return endpoint.choose(context.version), body
            body = parse(await exchange.body())
            return endpoint.choose(context.version, endpoint.action(body)), body
        except Error as error:
            await self._refuse(endpoint.rules[0], error, call, any_role=True)
            raise AssertionError("a refusal raises") from error

    async def _refuse(self, rule: Rule, error: Error, call: Call, any_role: bool = False) -> None:
        """Raise an error of a request that no handler will see, but first whatever the caller's token is refused for."""
        async def fail(request: Any, call: Call) -> Message:
            raise error

        policy = "authenticated" if any_role and rule.method.policy != "public" else rule.method.policy
        name = "authenticated" if any_role else rule.method.rule
        await self._dispatcher.unary(dataclasses.replace(rule.method, handler=fail, policy=policy, rule=name), None, call)

    async def _request(self, exchange: Exchange, match: Match, rule: Rule, body: Any, query: Query, context: Context) -> Any:
        """What the handler gets: a message, or an iterator of them where the client streams."""
        binding = rule.binding
        parameters: dict[str, list[str]] = {}
        for key, value in query:
            parameters.setdefault(key, []).append(value)
        if "fields" in parameters and rule.verb == "GET" and rule.api.is_neutron:
            context.fields = frozenset(parameters["fields"])
        binding.check_media(exchange.headers.get("content-type", ""))
        if rule.method.client_streaming:
            return _upload(exchange, rule, binding.request(match.values, parameters, exchange.headers, b"", context))
        if body is _UNREAD and binding.body:
            body = await exchange.body()
            if not binding.is_raw:
                body = parse(body)
        return binding.request(match.values, parameters, exchange.headers, body, context)

    async def _stream(self, exchange: Exchange, rule: Rule, request: Any, call: Call, context: Context, common: Query) -> None:
        """Answer with a body of bytes as the handler yields it; the first message gives the headers."""
        async with contextlib.aclosing(self._dispatcher.stream(rule.method, request, call)) as messages:  # type: ignore[type-var]
            first = await anext(messages, None)
            headers = rule.answering.headers(first, context) if first is not None else []
            if first is None:
                await exchange.answer(Answer(call.status or 204, headers + common))
                return
            rule.answering.add_type(headers)
            await exchange.start(rule.answering.status(call, context), headers + common)
            if exchange.verb == "HEAD":
                await exchange.write(b"", more=False)
                return
            gone = asyncio.ensure_future(exchange.gone())
            try:
                await exchange.write(getattr(first, rule.answering.data_field), more=True)
                async for message in messages:
                    if gone.done():
                        return
                    await exchange.write(getattr(message, rule.answering.data_field), more=True)
                await exchange.write(b"", more=False)
            finally:
                gone.cancel()

    async def _tell(self, exchange: Exchange, rule: Rule, request: Any, call: Call, common: Query) -> None:
        """Answer with server-sent events, one for each message; an error after the first is one, too, and the last."""
        events = rule.answering.events
        assert events is not None
        writing = events.writing(exchange.headers, call)
        async with contextlib.aclosing(self._dispatcher.stream(rule.method, request, call)) as messages:  # type: ignore[type-var]
            first = await anext(messages, None)
            await exchange.start(rule.answering.success, [*HEADERS, *common])
            if exchange.verb == "HEAD" or first is None:
                await exchange.write(b"", more=False)
                return
            task = asyncio.current_task()
            assert task is not None
            gone = asyncio.ensure_future(exchange.gone())
            gone.add_done_callback(lambda done: None if done.cancelled() else task.cancel())
            try:
                await exchange.tell(RETRY + writing.event(first))
                try:
                    async for message in messages:
                        await exchange.tell(writing.event(message))
                except Error as error:
                    await exchange.tell(failure(error))
                await exchange.write(b"", more=False)
            except asyncio.CancelledError:
                if not (gone.done() and task.uncancel() == 0):
                    raise               # somebody else wants this to end, not the client who has gone
            except TimeoutError:
                log.info("%s: the client reads nothing: cut off", call.request_id)
            finally:
                gone.cancel()

    async def _fail(self, exchange: Exchange, api: Api | None, error: Error, call: Call, common: Query) -> None:
        if exchange.started:
            # The status is sent: the only way left to say so is to break the connection before the body's end.
            log.warning("%s broke off its answer: %s", call.request_id, error)
            return
        family = api.family if api is not None else Family.KEYSTONE
        made = fault(family, error, call.request_id, exchange.headers.get("accept", ""))
        headers = [*common, ("Content-Type", made.content_type), *error.headers]
        if made.status == 401:
            root = self._identity.mount + self._identity.endpoint if self._identity is not None else ""
            headers.append(("WWW-Authenticate", f'Keystone uri="{call.base_url}{root}"'))
        if isinstance(error, WrongMethod):
            headers.append(("Allow", error.allowed))
        await exchange.answer(Answer(made.status, headers, made.body))


async def _upload(exchange: Exchange, rule: Rule, first: Any) -> AsyncIterator[Any]:
    """The requests of a client-streaming call: the first has what path, query and headers say, each a piece of the body."""
    message = first
    async for piece in exchange.pieces():
        rule.binding.set_data(message, piece)
        yield message
        message = rule.method.request_type()
    if message is first:
        yield first


async def _always() -> Sequence[str]:
    return ()


async def _live(receive: Receive, send: Send) -> None:
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return
