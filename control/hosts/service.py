"""Serves agents: each gets its host's objects as they change, and what it observes reaches the services it concerns.

An agent's objects are recomputed from the cache when a change touches its host, and the difference to what it was last
sent goes out; nothing else is kept, so a lost stream costs one snapshot.
"""
import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence

from control.hosts.neighbours import ImageBytes, Inventories, Observer, Projection
from control.kernel import clock, fleet
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.errors import Denied, Error, Invalid, NotFound, Unavailable
from control.kernel.rpc import Call
from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1.fleet_pb2 import HostRecord

log = logging.getLogger(__name__)

#: Seconds without a heartbeat (sent every 5) after which a stream counts as dead, and seconds that a host may be without
#: a stream before it is written down. Shorter: a loaded agent looks dead; longer: servers are placed on a dead host.
SILENCE, GRACE = 20.0, 15.0

#: Servers that nobody knows, as many as are written down of a host.
MOST_STRANGERS = 1000

#: Seconds that an agent has to answer a question.
ANSWER_WITHIN = 10.0

#: Bytes that a certificate signing request may have.
MAX_REQUEST = 16 << 10


class Session:
    """One attached agent: what it was sent last, and the questions that it has not answered."""

    def __init__(self, host: str):
        self.host = host
        self.sent: dict[str, bytes] = {}
        self.snapshot_due = True
        self.dirty = True
        self.closed: str = ""                       # why
        self.wake = asyncio.Event()
        self.queries: list[pb.Query] = []
        self.answers: dict[int, asyncio.Future[pb.Reply]] = {}

    def touch(self) -> None:
        self.dirty = True
        self.wake.set()

    def close(self, reason: str) -> None:
        self.closed = self.closed or reason
        self.wake.set()
        for answer in self.answers.values():
            if not answer.done():
                answer.set_exception(Unavailable("host.gone", f"Host {self.host} is not attached: {reason}."))


def _no_authority(name: str, request: bytes) -> bytes:
    raise LookupError("there is no authority")


class Hosts:
    """The servicer of internal.v1.Hosts, and the way to ask an agent something (neighbours.Console of compute)."""

    def __init__(self, database: Database, projections: Sequence[Projection], observers: Sequence[Observer], images: ImageBytes,
                 inventories: Inventories, certify: Callable[[str, bytes], bytes] = _no_authority):
        self._db = database
        self._projections = projections
        self._observers = observers
        self._images = images
        self._inventories = inventories
        self._certify = certify                     # (common name, certificate signing request) -> certificate
        self._sessions: dict[str, Session] = {}
        self._query_ids = itertools.count(1)

    # The rpcs

    async def Attach(self, requests: AsyncIterator[pb.AgentMessage], call: Call) -> AsyncIterator[pb.ControlMessage]:
        hello = await self._hello(requests, call)
        session = Session(hello.host)
        if older := self._sessions.get(hello.host):
            older.close("a newer stream of the same host took over")
        self._sessions[hello.host] = session
        await self._db.transact(lambda tx: _write_up(tx, hello, self._inventories))
        log.info("host %s: attached (%s)", hello.host, hello.inventory.hypervisor_type)
        reader = asyncio.create_task(self._read(session, requests))
        try:
            while not session.closed:
                session.wake.clear()
                for query in session.queries:
                    yield pb.ControlMessage(query=query)
                session.queries.clear()
                if session.dirty and (desired := self._difference(session)):
                    yield pb.ControlMessage(desired=desired)
                await session.wake.wait()
        finally:
            reader.cancel()
            session.close("its stream ended")
            if self._sessions.get(hello.host) is session:
                del self._sessions[hello.host]
            log.info("host %s: detached (%s)", hello.host, session.closed)

    async def FetchImage(self, request: pb.FetchImageRequest, call: Call) -> AsyncIterator[pb.FetchImageResponse]:
        async for data in self._images.read(request.sha512):
            yield pb.FetchImageResponse(data=data)

    async def Renew(self, request: pb.RenewRequest, call: Call) -> pb.RenewResponse:
        if len(request.request) > MAX_REQUEST:
            raise Invalid("host.renew", f"A certificate signing request has {MAX_REQUEST} bytes at most.")
        try:
            certificate = await asyncio.to_thread(self._certify, call.peer, request.request)
        except ValueError as error:
            raise Invalid("host.renew", f"The certificate of {call.peer!r} cannot be renewed: {error}.") from error
        except LookupError as error:
            raise Unavailable("host.renew", "This replica has not the key of the cloud's authority: ask another.") from error
        log.info("host %s: its certificate is renewed", call.peer)
        return pb.RenewResponse(certificate=certificate)

    # For other services

    async def console_log(self, host: str, server_id: str, lines: int) -> bytes:
        """The last lines of a server's console (0: all that is kept). Raises Unavailable or NotFound."""
        reply = await self._ask(host, pb.Query(console_log=pb.ConsoleLog(server_id=server_id, lines=lines)))
        if reply.error:
            raise NotFound("console.log", reply.error)
        return reply.data

    # Running

    async def run(self) -> None:
        """Tell sessions what changes touch them, and write down the hosts that fall silent; until cancelled."""
        await self._db.cache.ready.wait()
        with self._db.cache.listening(self._on_change):
            missed: dict[str, float] = {}
            while True:
                await asyncio.sleep(GRACE / 5)
                now = asyncio.get_running_loop().time()
                silent = [host.name for host in self._db.cache.all(fleet.HOST) if host.up and host.name not in self._sessions]
                missed = {name: missed.get(name, now) for name in silent}
                for name, since in missed.items():
                    if now - since >= GRACE:
                        log.warning("host %s is silent since %.0f s: down", name, now - since)
                        with contextlib.suppress(Error):
                            await self._db.transact(lambda tx, name=name: _write_down(tx, name))  # type: ignore[misc]

    def _on_change(self, change: Change) -> None:
        if not self._sessions:
            return
        for projection in self._projections:
            for host in projection.hosts_of(change):
                if session := self._sessions.get(host):
                    session.touch()

    def _difference(self, session: Session) -> pb.Desired | None:
        session.dirty = False
        objects = [thing for projection in self._projections for thing in projection.objects_for(session.host)]
        wanted = {thing.key: thing.SerializeToString(deterministic=True) for thing in objects}
        desired = pb.Desired(
            revision=self._db.cache.revision, snapshot=session.snapshot_due,
            upserts=[thing for thing in objects if session.snapshot_due or session.sent.get(thing.key) != wanted[thing.key]],
            removed=[key for key in session.sent if key not in wanted])
        session.sent = wanted
        if not (desired.snapshot or desired.upserts or desired.removed):
            return None
        session.snapshot_due = False
        return desired

    async def _hello(self, requests: AsyncIterator[pb.AgentMessage], call: Call) -> pb.Hello:
        async for message in requests:
            if message.WhichOneof("message") != "hello" or not 1 <= len(message.hello.host) <= 255:
                break
            if message.hello.host != call.peer:
                raise Denied("host.name", f"The certificate is for {call.peer!r}, not for host {message.hello.host!r}.")
            return message.hello
        raise Invalid("host.hello", "An agent's first message must be its hello with a host name of 1 to 255 characters.")

    async def _read(self, session: Session, requests: AsyncIterator[pb.AgentMessage]) -> None:
        reason = "the agent ended its stream"
        try:
            while True:
                async with asyncio.timeout(SILENCE):
                    message = await anext(requests)
                await self._observe(session, message)
        except StopAsyncIteration:
            pass
        except TimeoutError:
            reason = f"silent for {SILENCE:.0f} s"
        except Exception as error:      # a broken stream raises what the transport likes
            reason = f"its stream broke: {type(error).__name__}"
        finally:
            session.close(reason)

    async def _observe(self, session: Session, message: pb.AgentMessage) -> None:
        kind = message.WhichOneof("message")
        if kind == "reply":
            answer = session.answers.pop(message.reply.id, None)
            if answer and not answer.done():
                answer.set_result(message.reply)
            return
        if kind == "strangers":
            found = sorted(message.strangers.server_ids)[:MOST_STRANGERS]
            await self._db.transact(lambda tx: _write_strangers(tx, session.host, found))
            return
        for observer in self._observers:
            try:
                match kind:
                    case "server":
                        await observer.observed_server(session.host, message.server)
                    case "port":
                        await observer.observed_port(session.host, message.port)
                    case "gone":
                        await observer.gone(session.host, message.gone)
            except Error as error:
                # The agent says it again with its next snapshot; its stream is the place to fail, so that it does.
                log.warning("host %s: could not take its %s: %s", session.host, kind, error)
                raise

    async def _ask(self, host: str, query: pb.Query) -> pb.Reply:
        session = self._sessions.get(host)
        if session is None:
            raise Unavailable("host.gone", f"Host {host} is not attached at the moment: try again later.")
        query.id = next(self._query_ids)
        answer: asyncio.Future[pb.Reply] = asyncio.get_running_loop().create_future()
        session.answers[query.id] = answer
        session.queries.append(query)
        session.wake.set()
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                return await answer
        except TimeoutError as error:
            raise Unavailable("host.slow", f"Host {host} did not answer within {ANSWER_WITHIN:.0f} s.") from error
        finally:
            session.answers.pop(query.id, None)


def _write_up(transaction: Transaction, hello: pb.Hello, inventories: Inventories) -> None:
    host = transaction.get(fleet.HOST, hello.host)
    if host and host.up and host.inventory == hello.inventory:
        inventories.refresh(transaction, host)
        return
    if host is None:
        host = HostRecord(name=hello.host, id=inventories.new_id(transaction, hello.host), created_at=clock.now())
    host.inventory.CopyFrom(hello.inventory)
    host.up = True
    host.updated_at.CopyFrom(clock.now())
    transaction.put(fleet.HOST, host)
    inventories.refresh(transaction, host)


def _write_strangers(transaction: Transaction, name: str, server_ids: list[str]) -> None:
    host = transaction.get(fleet.HOST, name)
    if host and list(host.strangers) != server_ids:
        if server_ids:
            log.warning("host %s: runs servers that the state does not know, and leaves them alone: %s", name,
                        ", ".join(server_ids))
        host.strangers[:] = server_ids
        transaction.put(fleet.HOST, host)


def _write_down(transaction: Transaction, name: str) -> None:
    host = transaction.get(fleet.HOST, name)
    if host and host.up:
        host.up = False
        host.updated_at.CopyFrom(clock.now())
        transaction.put(fleet.HOST, host)


