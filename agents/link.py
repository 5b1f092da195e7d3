"""The stream to the control plane: hello, wishes in, observations out; opened again, elsewhere, whenever it ends.

What is to be said is kept by what it is about, the last word only, so that a long silence costs no memory; what was said on a
stream is not said twice on it, and all of it is said again on the next. Nothing is heard or said while the host's lease has run
out: first its guests stop.
"""
import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio

from agents.hypervisor.driver import Fault
from agents.lease import Lease
from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1.hosts_pb2_grpc import HostsStub

log = logging.getLogger(__name__)

#: Seconds between two heartbeats, unless the control plane says otherwise. A lease lasts three of them
#: (control/hosts/leases.py).
HEARTBEAT = 4.0

#: Without an acknowledgement for this part of its lease, the agent tries another endpoint, though the connection may stand: on
#: a stream that worked, and on one that is being made. What is left must do for two that do not answer. Without a lease there is
#: no hurry: seconds.
DEAF_PART, CONNECT_PART, DEAF = 0.25, 0.17, 30.0

#: Seconds that what was seen waits for more of it, so that a port and its server are written down by one commit; and that a mere
#: step waits, which soon is over. Longer shows users later what is done, shorter has the control plane read what nobody will see.
LINGER, STEP_LINGER = 0.005, 0.3

#: Observations in one message at most. More save messages, and hold up what comes after them on the stream.
TOGETHER = 500

#: Seconds between two tries to attach, doubling from the first to the second. A shorter maximum has a thousand agents knock
#: at a control plane that is down; a longer one leaves the hosts of one that is back without instructions.
FIRST_BACKOFF, MAX_BACKOFF = 0.2, 2.0

#: Seconds between two complaints about the same trouble.
COMPLAIN_EVERY = 60.0

#: Seconds without an answer to a ping after which a connection counts as lost, and between pings.
PING_TIMEOUT, PING_EVERY = 5, 10

#: Seconds that the renewal of a certificate may take.
RENEW_WITHIN = 10.0

#: What a replica's certificate holds for, beside its addresses: a balancer's address may be before it.
CONTROL_PLANE = "agents"

OPTIONS = [
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

    def channel(self, endpoint: str, options: Sequence[tuple[str, int]] = OPTIONS) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(endpoint, grpc.ssl_channel_credentials(
            self.ca.read_bytes(), self.key.read_bytes(), self.certificate.read_bytes()),
            options=[*options, ("grpc.ssl_target_name_override", CONTROL_PLANE)])


class Outbox:
    """What is to be said, by key; an entry replaces an older one about the same."""

    __slots__ = ("_filled", "_said", "_timer", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[str, pb.AgentMessage] = {}
        self._said: dict[str, pb.AgentMessage] = {}
        self._filled = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, key: str, message: pb.AgentMessage) -> None:
        if self._said.get(key) == message:
            self._waiting.pop(key, None)
            return
        self._waiting[key] = message
        if not self._filled.is_set():
            kind = message.WhichOneof("message")
            self._fill_in(0.0 if kind == "reply" else STEP_LINGER if kind == "server" and message.server.step else LINGER)

    def _fill_in(self, seconds: float) -> None:
        """Have what waits taken after a while, or sooner if something else is more urgent."""
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            if self._timer.when() <= loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = loop.call_later(seconds, self._fill)

    def _fill(self) -> None:
        self._timer = None
        if self._waiting:
            self._filled.set()

    def clear(self) -> None:
        """What was to be said was seen before the guests were stopped, and is true no more."""
        self._said.clear()
        self._waiting.clear()
        self._filled.clear()

    def __bool__(self) -> bool:
        """Whether there is anything to say."""
        return bool(self._waiting)

    def forget(self, keys: Iterable[str]) -> None:
        """These are no more: what comes back under such a key is another one, of which nothing was said."""
        for key in keys:
            self._said.pop(key, None)

    def forget_said(self) -> None:
        """A new stream knows nothing, and asked nothing."""
        self._said.clear()
        self._waiting = {key: message for key, message in self._waiting.items() if not message.HasField("reply")}
        if self._waiting:
            self._filled.set()

    async def take(self) -> list[pb.AgentMessage]:
        """All that is to be said, once there is any; it counts as said."""
        await self._filled.wait()
        self._filled.clear()
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
      connect: makes the channel to an endpoint, where many agents share one; None: a channel of its own, with `credentials`.
      hello: what to say first; may raise Fault while the host cannot say it.
      on_desired, on_query: what to do with what arrives.
      lease: the host's.
    """

    def __init__(self, endpoints: Sequence[str], credentials: Credentials | None, *, hello: Callable[[], Awaitable[pb.Hello]],
                 on_desired: Callable[[pb.Desired], None], on_query: Callable[[pb.Query], Awaitable[pb.Reply]],
                 lease: Lease | None = None,
                 connect: "Callable[[str], AbstractAsyncContextManager[grpc.aio.Channel]] | None" = None):
        if not endpoints:
            raise ValueError("an agent needs at least one endpoint of the control plane")
        self._endpoints = list(endpoints)
        self._credentials = credentials
        self._connect = connect or self._channel
        self._hello = hello
        self._on_desired = on_desired
        self._on_query = on_query
        self._lease = lease or Lease()
        self._lapses = 0
        self._attached = False                 # a wish came by the present stream
        self._cut = ""                         # why it was ended here
        self._every = HEARTBEAT                # seconds between heartbeats, as the control plane said last
        self._outbox = Outbox()
        self._stub: HostsStub | None = None
        self.attaches = 0
        self._answering: set[asyncio.Task[None]] = set()
        self._sent_on = False               # the replica said farewell: the next one is there

    @property
    def attached(self) -> bool:
        """Whether there is a stream, and something has come by it."""
        return self._stub is not None

    @property
    def silent(self) -> bool:
        """Whether all that there was to say has been said."""
        return not self._outbox

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

    async def renew(self, request: bytes) -> bytes:
        """A new certificate for a signing request. Raises Fault when there is none to be had now."""
        try:
            return (await self._connected().Renew(pb.RenewRequest(request=request), timeout=RENEW_WITHIN)).certificate
        except grpc.aio.AioRpcError as error:
            raise Fault(f"The control plane does not renew it: {error.details()}") from error

    async def fetch_disk(self, server_id: str, move_id: str) -> AsyncIterator[bytes]:
        """The disk of a server that comes here, from the host that it leaves. Raises Fault unless it comes whole."""
        asked = pb.FetchDiskRequest(server_id=server_id, move_id=move_id)
        digest, size = hashlib.sha256(), 0
        try:
            async with contextlib.AsyncExitStack() as stack:
                call = self._connected().FetchDisk(asked)
                stack.callback(call.cancel)
                answer = aiter(call)
                first = await anext(answer, pb.DiskChunk())
                if first.elsewhere:
                    channel = await stack.enter_async_context(self._channel(first.elsewhere))
                    call = HostsStub(channel).FetchDisk(asked)
                    stack.callback(call.cancel)
                    answer = aiter(call)
                    first = await anext(answer, pb.DiskChunk())
                if not first.HasField("head"):
                    raise Fault("The other host's disk does not begin as one should.")
                async for chunk in answer:
                    if chunk.HasField("tail"):
                        if (chunk.tail.size, chunk.tail.sha256) != (size, digest.hexdigest()):
                            raise Fault("The disk was damaged on its way from the other host.")
                        return
                    digest.update(chunk.data)
                    size += len(chunk.data)
                    yield chunk.data
                raise Fault("The disk was cut off on its way from the other host.")
        except grpc.aio.AioRpcError as error:
            raise Fault(f"The disk does not come from the other host: {error.details()}") from error

    async def send_disk(self, move_id: str, chunks: AsyncIterator[bytes]) -> None:
        """Send a disk to who waits for it. Raises Fault."""
        async def said() -> AsyncIterator[pb.DiskChunk]:
            digest, size = hashlib.sha256(), 0
            yield pb.DiskChunk(head=pb.DiskHead(move_id=move_id))
            async for data in chunks:
                digest.update(data)
                size += len(data)
                yield pb.DiskChunk(data=data)
            yield pb.DiskChunk(tail=pb.DiskTail(size=size, sha256=digest.hexdigest()))

        try:
            await self._connected().SendDisk(said())
        except grpc.aio.AioRpcError as error:
            raise Fault(f"The disk cannot be sent: {error.details()}") from error

    def _connected(self) -> HostsStub:
        if self._stub is None:
            raise Fault("The host is not connected to the control plane at the moment.")
        return self._stub

    async def run(self) -> None:
        """Stay attached until cancelled."""
        backoff, attempt = FIRST_BACKOFF, 0
        complaint, complained = "", 0.0
        while True:
            endpoint = self._endpoints[attempt % len(self._endpoints)]
            attempt += 1
            self._sent_on = False
            try:
                async with self._connect(endpoint) as channel:
                    reason = "the control plane ended the stream"
                    if await self._attach(endpoint, channel):
                        backoff = FIRST_BACKOFF
            except grpc.aio.AioRpcError as error:
                reason = f"{error.code().name}: {error.details()}"
                if error.code() not in _GONE_ELSEWHERE:
                    backoff = max(backoff, 1.0)        # refused: the same will happen to the next attempt
            except (Fault, OSError, ValueError) as error:
                reason = str(error)
            if self._sent_on and len(self._endpoints) > 1:
                log.info("sent on by the control plane at %s, which stops", endpoint)
                continue
            delay = backoff * random.uniform(0.5, 1.0)  # noqa: S311 - spreads agents, no secret
            now = asyncio.get_running_loop().time()
            if reason != complaint or now - complained > COMPLAIN_EVERY:
                log.warning("not attached to the control plane at %s: %s; trying until it answers", endpoint, reason)
                complaint, complained = reason, now
            await asyncio.sleep(delay)
            backoff = min(backoff * 2, MAX_BACKOFF)

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        return self._credentials.channel(endpoint) if self._credentials else grpc.aio.insecure_channel(endpoint, options=OPTIONS)

    async def _attach(self, endpoint: str, channel: grpc.aio.Channel) -> bool:
        """One stream, from hello to its end; whether any wish came by it."""
        lease = self._lease
        await lease.wait()
        if lease.lapses != self._lapses:
            self._lapses = lease.lapses
            self._outbox.clear()
        hello = await self._hello()
        hello.epoch, hello.leased = lease.epoch, lease.bound
        stub = HostsStub(channel)
        stream = stub.Attach()
        self._attached, self._cut = False, ""
        guard, writer = asyncio.create_task(self._guard(stream)), None
        lease.attaching()
        lease.said(0)
        try:
            saying = asyncio.ensure_future(stream.write(pb.AgentMessage(hello=hello)))
            await asyncio.wait({saying, guard}, return_when=asyncio.FIRST_COMPLETED)
            if not saying.done():
                saying.cancel()        # a stream that is cancelled while it connects does not end what is being written
                raise Fault(self._cut)
            saying.result()
            self._outbox.forget_said()
            async for message in stream:
                if self._outlived():
                    raise Fault("the lease has run out")
                if message.HasField("lease"):
                    lease.granted(message.lease)
                    self._every = message.lease.heartbeat_seconds or self._every
                match message.WhichOneof("message"):
                    case "desired":
                        if writer is None:
                            log.info("attached to the control plane at %s", endpoint)
                            self._attached, self._stub = True, stub
                            self.attaches += 1
                            self._every = message.welcome.heartbeat_seconds or HEARTBEAT
                            writer = asyncio.create_task(self._write(stream, message, at_once=lease.bound != hello.leased))
                        self._outbox.forget(message.desired.removed)
                        self._on_desired(message.desired)
                    case "query":
                        self._answer(message.query)
                    case "farewell":
                        self._sent_on = True
                        return True
            return self._attached
        except (asyncio.CancelledError, asyncio.InvalidStateError):
            task = asyncio.current_task()
            if self._cut and task is not None and not task.cancelling():
                raise Fault(self._cut) from None
            raise
        finally:
            self._stub = None
            for task in (guard, writer, *self._answering):
                if task:
                    task.cancel()
            stream.cancel()

    def _outlived(self) -> bool:
        """Whether the lease under which the stream began has run out: what comes by it was wished before the guests were stopped,
        though the host may hold no guest, and so need no lease, by now."""
        return not self._lease.holds() or self._lease.lapses != self._lapses

    async def _guard(self, stream: grpc.aio.StreamStreamCall) -> None:
        """End a stream that gives no lease any more, while there is time to get one elsewhere; at the latest when it is over."""
        lease = self._lease
        lapsed = asyncio.ensure_future(lease.lapse())
        try:
            while not self._cut:
                await asyncio.wait({lapsed}, timeout=HEARTBEAT / 8 if lease.seconds else DEAF / 3)
                patience = lease.seconds * (DEAF_PART if self._attached else CONNECT_PART) or DEAF
                if self._outlived():
                    self._cut = "the lease has run out"
                elif lease.waiting() > patience:
                    self._cut = f"nothing was acknowledged for {lease.waiting():.0f} s"
            stream.cancel()
        finally:
            lapsed.cancel()

    async def _write(self, stream: grpc.aio.StreamStreamCall, first: pb.ControlMessage, *, at_once: bool) -> None:
        """Say what there is to say, and that we live, until the stream ends.

        Args:
          first: the stream's first message.
          at_once: the control plane does not know yet that the guests are bound by a lease, and cannot count on it before.
        """
        loop = asyncio.get_running_loop()
        number, due = 0, loop.time() + (0.0 if at_once else self._every)
        try:
            while True:
                messages: list[pb.AgentMessage] = []
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout_at(due):
                        messages = await self._outbox.take()
                if loop.time() >= due:
                    number, due = number + 1, loop.time() + self._every
                    self._lease.said(number)
                    messages.append(pb.AgentMessage(heartbeat=pb.Heartbeat(number=number, leased=self._lease.bound)))
                for message in _together(messages) if first.HasField("welcome") else messages:
                    if self._outlived():
                        return             # _guard ends the stream
                    await stream.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            stream.cancel()            # the reader learns why

    def _answer(self, query: pb.Query) -> None:
        async def answer() -> None:
            self._outbox.put(f"reply/{query.id}", pb.AgentMessage(reply=await self._on_query(query)))

        task = asyncio.create_task(answer())
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)


def _together(messages: Sequence[pb.AgentMessage]) -> Iterator[pb.AgentMessage]:
    """The same in fewer messages: what was observed many at a time, all else as it is."""
    if len(messages) < 2:
        yield from messages
        return
    observed, count = pb.Observations(), 0
    for message in messages:
        match message.WhichOneof("message"):
            case "port":
                observed.ports.append(message.port)
            case "server":
                observed.servers.append(message.server)
            case "gone":
                observed.gone.append(message.gone)
            case _:
                yield message
                continue
        count += 1
        if count == TOGETHER:
            yield pb.AgentMessage(observations=observed)
            observed, count = pb.Observations(), 0
    if count:
        yield pb.AgentMessage(observations=observed)
