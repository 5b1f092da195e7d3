"""The stream to the control plane: hello, wishes in, observations out; opened again, elsewhere, whenever it ends.

What is to be said is kept by what it is about, the last word only, so that a long silence costs no memory; what was said on a
stream is not said twice on it, and all of it is said again on the next.
"""
import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from agents.hypervisor.driver import Fault
from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1.hosts_pb2_grpc import HostsStub

log = logging.getLogger(__name__)

#: Seconds. The control plane takes an agent for dead after 20 s of silence.
HEARTBEAT = 5.0

#: Seconds between two tries to attach, doubling from the first to the second. A shorter maximum has a thousand agents knock
#: at a control plane that is down; a longer one leaves the hosts of one that is back without instructions.
FIRST_BACKOFF, MAX_BACKOFF = 0.2, 2.0

#: Seconds between two complaints about the same trouble.
COMPLAIN_EVERY = 60.0

#: Seconds without an answer to a ping after which a connection counts as lost, and between pings.
PING_TIMEOUT, PING_EVERY = 5, 10

_OPTIONS = [
    ("grpc.keepalive_time_ms", PING_EVERY * 1000), ("grpc.keepalive_timeout_ms", PING_TIMEOUT * 1000),
    ("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),     # a new attempt is a new connection, and waits for nobody's back-off
]

_GONE_ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM files of mutual TLS; read at each attempt, so that renewed ones are taken up."""

    ca: Path
    certificate: Path
    key: Path

    def channel(self, endpoint: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(endpoint, grpc.ssl_channel_credentials(
            self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()), options=_OPTIONS)


class Outbox:
    """What is to be said, by key; an entry replaces an older one about the same."""

    def __init__(self) -> None:
        self._waiting: dict[str, pb.AgentMessage] = {}
        self._said: dict[str, pb.AgentMessage] = {}
        self._filled = asyncio.Event()

    def put(self, key: str, message: pb.AgentMessage) -> None:
        if self._said.get(key) == message:
            self._waiting.pop(key, None)
        else:
            self._waiting[key] = message
            self._filled.set()

    def forget_said(self) -> None:
        """A new stream knows nothing, and asked nothing."""
        self._said.clear()
        self._waiting = {key: message for key, message in self._waiting.items() if not message.HasField("reply")}

    async def take(self) -> list[pb.AgentMessage]:
        """All that is to be said, once there is any; it counts as said."""
        while not self._waiting:
            self._filled.clear()
            await self._filled.wait()
        messages, self._waiting = self._waiting, {}
        for key, message in messages.items():
            if message.WhichOneof("message") in ("gone", "reply"):
                self._said.pop(key, None)
            else:
                self._said[key] = message
        return list(messages.values())


class Link:
    """The agent's end of internal.v1.Hosts.

    Args:
      endpoints: "host:port" of the control plane's replicas; tried in turn.
      credentials: None for a connection in the clear, in tests.
      hello: what to say first; may raise Fault while the host cannot say it.
      on_desired, on_query: what to do with what arrives.
    """

    def __init__(self, endpoints: Sequence[str], credentials: Credentials | None, *, hello: Callable[[], Awaitable[pb.Hello]],
                 on_desired: Callable[[pb.Desired], None], on_query: Callable[[pb.Query], Awaitable[pb.Reply]]):
        if not endpoints:
            raise ValueError("an agent needs at least one endpoint of the control plane")
        self._endpoints = list(endpoints)
        self._credentials = credentials
        self._hello = hello
        self._on_desired = on_desired
        self._on_query = on_query
        self._outbox = Outbox()
        self._stub: HostsStub | None = None
        self.attaches = 0
        self._answering: set[asyncio.Task[None]] = set()

    @property
    def attached(self) -> bool:
        """Whether there is a stream, and the control plane has answered on it."""
        return self._stub is not None

    def report(self, key: str, message: pb.AgentMessage) -> None:
        """Say something about one thing, now or when there is a stream; only the last about each counts."""
        self._outbox.put(key, message)

    async def fetch_image(self, sha512: str) -> AsyncIterator[bytes]:
        """An image's bytes. Raises Fault when they cannot be had now, or (final) when there is no such image."""
        if self._stub is None:
            raise Fault("The host is not connected to the control plane at the moment, so it cannot fetch the image.")
        try:
            async for chunk in self._stub.FetchImage(pb.FetchImageRequest(sha512=sha512)):
                yield chunk.data
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise Fault("The image is not in the image service any more.", final=True) from error
            raise Fault(f"Fetching the image was cut off: {error.details()}") from error

    async def run(self) -> None:
        """Stay attached until cancelled."""
        backoff, attempt = FIRST_BACKOFF, 0
        complaint, complained = "", 0.0
        while True:
            endpoint = self._endpoints[attempt % len(self._endpoints)]
            attempt += 1
            try:
                async with self._channel(endpoint) as channel:
                    reason = "the control plane ended the stream"
                    if await self._attach(endpoint, channel):
                        backoff = FIRST_BACKOFF
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
                if error.code() not in _GONE_ELSEWHERE:
                    backoff = max(backoff, 1.0)        # refused: the same will happen to the next attempt
            except (Fault, OSError, ValueError) as error:
                reason = str(error)
            delay = backoff * random.uniform(0.5, 1.0)  # noqa: S311 - spreads agents, no secret
            now = asyncio.get_running_loop().time()
            if reason != complaint or now - complained > COMPLAIN_EVERY:
                log.warning("not attached to the control plane at %s: %s; trying until it answers", endpoint, reason)
                complaint, complained = reason, now
            await asyncio.sleep(delay)
            backoff = min(backoff * 2, MAX_BACKOFF)

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        return self._credentials.channel(endpoint) if self._credentials else grpc.aio.insecure_channel(endpoint, options=_OPTIONS)

    async def _attach(self, endpoint: str, channel: grpc.aio.Channel) -> bool:
        """One stream, from hello to its end; whether any wish came by it."""
        hello = await self._hello()
        stub = HostsStub(channel)
        stream = stub.Attach()
        await stream.write(pb.AgentMessage(hello=hello))
        self._outbox.forget_said()
        writer: asyncio.Task[None] | None = None
        try:
            async for message in stream:
                if writer is None:
                    log.info("attached to the control plane at %s", endpoint)
                    self._stub = stub
                    self.attaches += 1
                    writer = asyncio.create_task(self._write(stream))
                if message.HasField("desired"):
                    self._on_desired(message.desired)
                else:
                    self._answer(message.query)
            return writer is not None
        finally:
            self._stub = None
            for task in (writer, *self._answering):
                if task:
                    task.cancel()
            stream.cancel()

    async def _write(self, stream: grpc.aio.StreamStreamCall) -> None:
        """Say what there is to say, and that we live, until the stream ends."""
        try:
            while True:
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        messages = await self._outbox.take()
                except TimeoutError:
                    messages = [pb.AgentMessage(heartbeat=pb.Heartbeat())]
                for message in messages:
                    await stream.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            stream.cancel()            # the reader learns why

    def _answer(self, query: pb.Query) -> None:
        async def answer() -> None:
            self._outbox.put(f"reply/{query.id}", pb.AgentMessage(reply=await self._on_query(query)))

        task = asyncio.create_task(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
