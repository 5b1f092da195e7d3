"""A call means the same on every way in: who may, what an error becomes, what ends when, one log line."""
import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.wrappers_pb2 import StringValue

from control.kernel import acting, errors
from control.kernel.caller import Caller
from control.kernel.rpc import Call, Dispatcher, add_to_grpc
from protos.brume.v1 import options_pb2

METHODS = {"Open": "public", "Known": "authenticated", "Read": "reader", "Write": "member", "Rule": "admin"}
STREAMS = {"Upload": (True, False), "Download": (False, True), "Both": (True, True)}


def toy_service():
    """A service of strings: one unary method for each policy, one of each kind of stream."""
    file = descriptor_pb2.FileDescriptorProto(name="tests/toy.proto", package="toy.v1", syntax="proto3",
                                              dependency=["google/protobuf/wrappers.proto"])
    service = file.service.add(name="Toys")
    for name in (*METHODS, *STREAMS):
        client, server = STREAMS.get(name, (False, False))
        method = service.method.add(name=name, input_type=".google.protobuf.StringValue", client_streaming=client,
                                    output_type=".google.protobuf.StringValue", server_streaming=server)
        method.options.Extensions[options_pb2.policy] = METHODS.get(name, "member")
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return pool.FindServiceByName("toy.v1.Toys")


SERVICE = toy_service()

CALLERS = {
    "admin": Caller("u-admin", project_id="p", roles=frozenset({"admin", "member", "reader"})),
    "member": Caller("u-member", project_id="p", roles=frozenset({"member", "reader"})),
    "reader": Caller("u-reader", project_id="p", roles=frozenset({"reader"})),
    "unscoped": Caller("u-unscoped", roles=frozenset()),
    "domain": Caller("u-domain", domain_id="d", roles=frozenset({"member"})),
}


class Tokens:
    async def authenticate(self, token: str) -> Caller:
        if token not in CALLERS:
            raise errors.Unauthenticated("token.invalid", "The token is not valid.")
        return CALLERS[token]


async def broken() -> None:
    await asyncio.sleep(0)
    raise RuntimeError("broken")


class Toys:
    """Does what the request says."""

    def __init__(self):
        self.closed = asyncio.Event()

    async def act(self, request: StringValue, call: Call) -> StringValue:
        match request.value:
            case "bug":
                raise RuntimeError("the password is swordfish")
            case "hang":
                await asyncio.Event().wait()
            case "wait":
                await asyncio.sleep(0)
                with pytest.raises(RuntimeError, match="broken"):
                    await asyncio.gather(asyncio.sleep(0.001), broken())
                async with asyncio.timeout(5):
                    await asyncio.sleep(0.001)
            case "close":
                try:
                    await asyncio.sleep(0)
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0)
                    self.closed.set()
            case name if hasattr(errors, name):
                raise getattr(errors, name)(f"toy.{name}", f"said {name}")
        return StringValue(value=f"{call.caller_or_none.user_id if call.caller_or_none else 'nobody'}:{request.value}")

    Open = Known = Read = Write = Rule = act

    async def Upload(self, requests: AsyncIterator[StringValue], call: Call) -> StringValue:
        return StringValue(value="".join([request.value async for request in requests]))

    async def Download(self, request: StringValue, call: Call) -> AsyncIterator[StringValue]:
        try:
            for letter in request.value:
                if letter == "!":
                    raise errors.Conflict("toy.bang", "bang")
                yield StringValue(value=letter)
            if request.value == "endless":
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def Both(self, requests: AsyncIterator[StringValue], call: Call) -> AsyncIterator[StringValue]:
        async for request in requests:
            yield StringValue(value=request.value.upper())


@pytest.fixture
def toys() -> Toys:
    return Toys()


@pytest.fixture
def dispatcher(toys: Toys) -> Dispatcher:
    dispatcher = Dispatcher(Tokens())
    dispatcher.add(toys, SERVICE)
    return dispatcher


async def ask(dispatcher: Dispatcher, method: str, value: str = "x", **call) -> str:
    answer = await dispatcher.unary(dispatcher.methods[f"/toy.v1.Toys/{method}"], StringValue(value=value), Call(**call))
    return answer.value


MAY = {"Open": {"", *CALLERS}, "Known": set(CALLERS), "Read": {"admin", "member", "reader"}, "Write": {"admin", "member"},
       "Rule": {"admin"}}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("token", ["", "forged", *CALLERS])
async def test_who_may_call_what(dispatcher, method, token):
    if token in MAY[method]:
        assert await ask(dispatcher, method, token=token) == f"{CALLERS[token].user_id if token else 'nobody'}:x"
    else:
        expected = errors.Denied if token in CALLERS else errors.Unauthenticated
        with pytest.raises(expected):
            await ask(dispatcher, method, token=token)


async def test_a_call_without_a_caller_has_none_to_give(dispatcher):
    with pytest.raises(errors.Unauthenticated):
        _ = Call().caller


async def test_a_bug_is_logged_with_its_trace_and_answered_without_its_text(dispatcher, caplog):
    with pytest.raises(errors.Error) as error:
        await ask(dispatcher, "Open", "bug")
    assert type(error.value) is errors.Error
    assert "swordfish" not in str(error.value)
    assert "swordfish" in caplog.text


@pytest.mark.parametrize(("verb", "error", "ahead", "effect", "runs"), [
    ("Write", errors.NotFound, True, False, 2), ("Write", errors.Conflict, True, False, 2),
    ("Write", errors.Exhausted, True, False, 2), ("Write", errors.NotFound, False, False, 1),
    ("Write", errors.NotFound, True, True, 1), ("Write", errors.Invalid, True, False, 1),
    ("GetToy", errors.NotFound, True, False, 2), ("GetToy", errors.Conflict, True, False, 1),
])
async def test_a_refusal_of_a_replica_that_was_behind_is_judged_anew(verb, error, ahead, effect, runs):
    revision, seen = 5, []

    async def caught_up(asked: int) -> bool:
        nonlocal revision
        assert asked == 5
        revision = 9 if ahead else 5
        return ahead

    async def handler(request: StringValue, call: Call) -> StringValue:
        seen.append(request.value)
        request.value = "changed"
        if effect:
            acting.has_effect()
        if revision < 9:
            raise error("toy", "refused")
        return StringValue(value=f"at {call.revision}")

    dispatcher = Dispatcher(Tokens(), revision=lambda: revision, caught_up=caught_up)
    dispatcher.add(Toys(), SERVICE)
    method = dataclasses.replace(dispatcher.methods["/toy.v1.Toys/Write"], handler=handler)
    object.__setattr__(method, "reads", verb.startswith("Get"))
    asking = dispatcher.unary(method, StringValue(value="asked"), Call(token="member"))
    if runs == 2:
        assert (await asking).value == "at 9" and seen == ["asked", "changed" if verb.startswith("Get") else "asked"]
    else:
        with pytest.raises(error):
            await asking
        assert seen == ["asked"]


async def test_what_a_replica_that_stays_behind_would_refuse_is_not_known():
    async def caught_up(asked: int) -> bool:
        raise errors.Unavailable("store.behind", "this replica is behind")

    dispatcher = Dispatcher(Tokens(), caught_up=caught_up)
    dispatcher.add(Toys(), SERVICE)

    async def handler(request: StringValue, call: Call) -> StringValue:
        raise errors.NotFound("toy", "refused")

    method = dataclasses.replace(dispatcher.methods["/toy.v1.Toys/Write"], handler=handler)
    with pytest.raises(errors.Unavailable):
        await dispatcher.unary(method, StringValue(), Call(token="member"))


async def test_a_known_error_keeps_its_cause_and_is_not_its_own(dispatcher):
    with pytest.raises(errors.Conflict) as error:
        await ask(dispatcher, "Open", "Conflict")
    assert error.value.__cause__ is None
    assert error.value.reason == "toy.Conflict"


async def test_a_call_ends_at_its_deadline(dispatcher):
    with pytest.raises(errors.Unavailable, match="deadline"):
        await ask(dispatcher, "Open", "hang", timeout=0.01)


async def test_a_handler_may_wait_for_several_things_and_catch_what_they_raise(dispatcher):
    assert await ask(dispatcher, "Open", "wait") == "nobody:wait"


async def test_a_handler_cleans_up_at_its_deadline_and_when_its_call_is_cancelled(dispatcher, toys):
    with pytest.raises(errors.Unavailable, match="deadline"):
        await ask(dispatcher, "Open", "close", timeout=0.01)
    assert toys.closed.is_set()
    toys.closed.clear()
    task = asyncio.ensure_future(ask(dispatcher, "Open", "close"))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert toys.closed.is_set()


async def test_each_call_leaves_one_line_with_who_and_how_it_ended(dispatcher, caplog):
    caplog.set_level(logging.INFO, "control.kernel.rpc")
    await ask(dispatcher, "Write", token="member", remote="10.0.0.9")
    with pytest.raises(errors.Denied):
        await ask(dispatcher, "Rule", token="member")
    first, second = [record.getMessage() for record in caplog.records]
    assert first.startswith("/toy.v1.Toys/Write ok ")
    assert "user=u-member project=p from=10.0.0.9" in first
    assert second.startswith("/toy.v1.Toys/Rule Denied ")


async def test_a_stream_whose_reader_goes_away_is_closed_at_once(dispatcher, toys):
    stream = dispatcher.stream(dispatcher.methods["/toy.v1.Toys/Download"], StringValue(value="endless"), Call(token="member"))
    assert (await anext(stream)).value == "e"
    await stream.aclose()
    assert toys.closed.is_set()


def test_a_method_without_a_policy_or_a_handler_is_refused_at_start(toys):
    with pytest.raises(AttributeError):
        Dispatcher(Tokens()).add(object(), SERVICE)
    file = descriptor_pb2.FileDescriptorProto(name="tests/bare.proto", package="bare.v1", syntax="proto3",
                                              dependency=["google/protobuf/wrappers.proto"])
    file.service.add(name="Bare").method.add(name="Open", input_type=".google.protobuf.StringValue",
                                             output_type=".google.protobuf.StringValue")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(descriptor_pool.Default().FindFileByName("google/protobuf/wrappers.proto").serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    with pytest.raises(ValueError, match="policy"):
        Dispatcher(Tokens()).add(toys, pool.FindServiceByName("bare.v1.Bare"))


# Over gRPC

@pytest.fixture
async def channel(dispatcher) -> AsyncIterator[grpc.aio.Channel]:
    server = grpc.aio.server()
    add_to_grpc(dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


def method(channel: grpc.aio.Channel, name: str):
    client, server = STREAMS.get(name, (False, False))
    make = {(False, False): channel.unary_unary, (True, False): channel.stream_unary, (False, True): channel.unary_stream,
            (True, True): channel.stream_stream}[client, server]
    return make(f"/toy.v1.Toys/{name}", request_serializer=StringValue.SerializeToString,
                response_deserializer=StringValue.FromString)


MEMBER = (("x-auth-token", "member"),)


@pytest.mark.parametrize("metadata", [MEMBER, (("authorization", "Bearer member"),)])
async def test_a_token_is_taken_from_either_header(channel, metadata):
    assert (await method(channel, "Write")(StringValue(value="x"), metadata=metadata)).value == "u-member:x"


@pytest.mark.parametrize("name", ["Invalid", "Unauthenticated", "Denied", "NotFound", "Conflict", "Stale", "TooLarge",
                                  "Exhausted", "Unavailable"])
async def test_an_error_becomes_its_status_with_its_text_and_reason(channel, name):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await method(channel, "Open")(StringValue(value=name))
    assert error.value.code() == getattr(errors, name).status
    assert error.value.details() == f"said {name}"
    trailers = dict(error.value.trailing_metadata())
    assert trailers["reason"] == f"toy.{name}"
    assert trailers["x-request-id"].startswith("req-")


async def test_a_bug_is_internal_without_text(channel):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await method(channel, "Open")(StringValue(value="bug"))
    assert error.value.code() == grpc.StatusCode.INTERNAL
    assert "swordfish" not in str(error.value)


async def test_no_token_is_unauthenticated(channel):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await method(channel, "Write")(StringValue(value="x"))
    assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_streams_work_in_each_direction(channel):
    async def letters():
        for letter in "abc":
            yield StringValue(value=letter)

    assert (await method(channel, "Upload")(letters(), metadata=MEMBER)).value == "abc"
    download = method(channel, "Download")(StringValue(value="xyz"), metadata=MEMBER)
    assert [answer.value async for answer in download] == list("xyz")
    assert [answer.value async for answer in method(channel, "Both")(letters(), metadata=MEMBER)] == list("ABC")


async def test_an_error_in_a_stream_comes_after_what_was_sent_before_it(channel):
    seen = []
    with pytest.raises(grpc.aio.AioRpcError) as error:
        async for answer in method(channel, "Download")(StringValue(value="ab!c"), metadata=MEMBER):
            seen.append(answer.value)
    assert seen == ["a", "b"]
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "bang")


async def test_a_client_that_hangs_up_ends_the_handlers_stream(channel, toys):
    stream = method(channel, "Download")(StringValue(value="endless"), metadata=MEMBER)
    assert (await stream.read()).value == "e"
    stream.cancel()
    async with asyncio.timeout(5):
        await toys.closed.wait()
