"""Serves agents: each gets its host's objects as they change, and what it observes reaches the services it concerns.

An agent's objects are recomputed from the cache when a change touches its host, and the difference to what it was last
sent goes out; nothing else is kept, so a lost stream costs one snapshot. A stream stands on the commit by which its host came to
this replica: when another commit takes the host away, or this replica may have been taken for gone, it ends.
"""
import asyncio
import hashlib
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence

from control.hosts import leases, records
from control.hosts.disks import Disks
from control.hosts.leases import Leases
from control.hosts.liveness import Fencing, Liveness
from control.hosts.neighbours import DiskMoves, ImageBytes, Inventories, Membership, Observer, OtherReplicas, Projection
from control.kernel import fleet, pki
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.errors import Denied, Error, Invalid, NotFound, Unavailable
from control.kernel.rpc import Call
from protos.internal.v1 import hosts_pb2 as pb

log = logging.getLogger(__name__)

#: Seconds between an agent's heartbeats where there are no leases, and how many a second this replica takes in all: with more
#: hosts each is heard of less often. More cost CPU at rest (200 us each), fewer show later that an agent hangs.
HEARTBEAT, HEARTBEATS = 5.0, 500

#: Seconds after which hosts hear of what many share, and how many are told at once, 20 times in such a while. Shorter, and more:
#: a large security group is sent to its hosts more often; longer, and fewer: a group's other members know a new one later.
LATER, AT_ONCE = 1.0, 25

#: Times by which this replica's own lateness is added to what counts as an agent's silence.
BEHIND = 4

#: Agents that are attached at a time; others wait. More make thousands that come back at once hold up all else.
ATTACHING = 50

#: Ports, and servers, that are taken in by one commit: with their history they fit into one.
TOGETHER = 20

#: Servers that nobody knows, as many as are written down of a host.
MOST_STRANGERS = 1000

#: Seconds that an agent has to answer a question.
ANSWER_WITHIN = 10.0

#: Bytes that a certificate signing request may have.
MAX_REQUEST = 16 << 10


class Session:
    """One attached agent: what it was sent last, and the questions that it has not answered."""

    __slots__ = ("answers", "closed", "dirty", "epoch", "heard", "heard_at", "heartbeat", "host", "queries", "sent",
                 "silent", "snapshot_due", "term", "wake")

    def __init__(self, host: str, epoch: int, term: int, heartbeat: float):
        self.host = host
        self.epoch = epoch
        self.term = term                            # of this replica, in which the host came to it
        self.heard: int | None = 0                  # number of the heartbeat to acknowledge; 0: the hello; None: none
        self.heard_at = time.monotonic()            # infinite while what was heard is taken in
        self.silent = False                         # it was closed for that
        self.heartbeat = heartbeat                  # seconds, as the agent was told
        self.sent: dict[str, tuple[int | None, bytes]] = {}    # version and digest of each object, by key
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
                 inventories: Inventories, membership: Membership, moves: DiskMoves, fencing: Fencing | None = None,
                 peers: OtherReplicas | None = None, certify: Callable[[str, bytes], bytes] = _no_authority):
        """`peers`: the other replicas; None where there are none. `certify` signs a certificate: (common name, request)."""
        self._db = database
        self._membership = membership
        self._fencing = fencing or Fencing()
        self._leases = Leases()
        self._sessions: dict[str, Session] = {}
        self._coming: dict[str, int] = {}                     # hosts whose streams wait to be attached, how many
        self._slots = asyncio.Semaphore(ATTACHING)
        self.liveness = Liveness(database, membership, self._leases, self._fencing, self._sessions, self._coming)
        self._projections = projections
        self._observers = observers
        self._images = images
        self._inventories = inventories
        self._disks = Disks(database, membership.id, moves, lambda host, query: self.ask_here(host, query, None))
        self._peers = peers
        self._leaving = False
        self._certify = certify
        self._shared: set[tuple[Projection, str]] = set()     # what has changed that many hosts share
        self._query_ids = itertools.count(1)

    # The rpcs

    async def Attach(self, requests: AsyncIterator[pb.AgentMessage], call: Call) -> AsyncIterator[pb.ControlMessage]:
        hello = await self._hello(requests, call)
        self._coming[hello.host] = self._coming.get(hello.host, 0) + 1
        try:
            async with self._slots:
                session = await self._attach(hello)
        finally:
            if left := self._coming.pop(hello.host) - 1:
                self._coming[hello.host] = left
        reader = asyncio.create_task(self._read(session, requests))
        first = True
        try:
            while not session.closed and (session.answers or not self._leaving):
                session.wake.clear()
                lease = self._lease(session) if session.heard is not None else None
                if lease or not session.snapshot_due:
                    desired = self._difference(session) if session.dirty else None
                    if lease or desired:
                        yield pb.ControlMessage(lease=lease, desired=desired, welcome=pb.Welcome(
                            heartbeat_seconds=session.heartbeat) if first else None)
                        first = False
                    queries, session.queries = session.queries, []
                    for query in queries:
                        yield pb.ControlMessage(query=query)
                await session.wake.wait()
            if self._leaving:
                yield pb.ControlMessage(farewell=pb.Farewell())
        finally:
            reader.cancel()
            session.close("this replica stops" if self._leaving else "its stream ended")
            if not (self._fencing.automatic or session.silent):
                self._leases.acknowledge(hello.host)        # no lease counts on when it was heard of: it was there until now
            if self._sessions.get(hello.host) is session:
                del self._sessions[hello.host]
            log.info("host %s: detached (%s)", hello.host, session.closed)

    async def _attach(self, hello: pb.Hello) -> Session:
        """Have the host come to this replica. Whatever ran of it here before has ended."""
        term = self._membership.sure()
        if not term:
            raise Unavailable("host.replica", "This replica is not listed at the moment: try another one.")
        if older := self._sessions.pop(hello.host, None):
            older.close("a newer stream of the same host took over")
        self._leases.acknowledge(hello.host)                 # before the commit, for a look for missed hosts that goes on now
        host = await self._db.transact(lambda tx: records.attach(
            tx, hello, self._inventories, self._membership.id, self._fencing.automatic), confirm=True)
        session = Session(hello.host, host.epoch, term, self._heartbeat())
        if older := self._sessions.get(hello.host):
            older.close("a newer stream of the same host took over")
        self._sessions[hello.host] = session
        self._check(session)
        log.info("host %s: attached (%s)%s", hello.host, hello.inventory.hypervisor_type,
                 "" if host.up else ", to be readmitted when it holds nothing of older epochs")
        return session

    def _lease(self, session: Session) -> pb.Lease | None:
        """The acknowledgement that is due; None while this replica may not give it."""
        term = self._membership.sure()
        if term != session.term:
            if term:
                session.close("this replica was not listed for a moment")
            return None
        number, session.heard = session.heard, None
        self._leases.acknowledge(session.host)
        lease = pb.Lease(heartbeat=number, seconds=leases.LEASE if self._fencing.automatic else 0, epoch=session.epoch)
        every = self._heartbeat()
        if not 0.75 < every / session.heartbeat < 1.33:
            session.heartbeat = lease.heartbeat_seconds = every
        return lease

    def _heartbeat(self) -> float:
        """Seconds between an agent's heartbeats now."""
        return leases.LEASE / 3 if self._fencing.automatic else max(HEARTBEAT, len(self._sessions) / HEARTBEATS)

    def _check(self, session: Session) -> None:
        """End a stream whose host is not this replica's any more."""
        host = self._db.get(fleet.HOST, session.host)
        if host is None or host.replica != self._membership.id or host.epoch != session.epoch:
            session.close("the host was taken from this replica")

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

    async def FetchDisk(self, request: pb.FetchDiskRequest, call: Call) -> AsyncIterator[pb.DiskChunk]:
        async for chunk in self._disks.fetch(request, call):
            yield chunk

    async def SendDisk(self, requests: AsyncIterator[pb.DiskChunk], call: Call) -> pb.SendDiskResponse:
        return await self._disks.send(requests, call)

    # For other services

    async def console_log(self, host: str, server_id: str, lines: int) -> bytes:
        """The last lines of a server's console (0: all that is kept). Raises Unavailable or NotFound."""
        reply = await self._ask(host, pb.Query(console_log=pb.ConsoleLog(server_id=server_id, lines=lines)))
        if reply.error:
            raise NotFound("console.log", reply.error)
        return reply.data

    async def ask_here(self, host: str, query: pb.Query, within: float | None = ANSWER_WITHIN) -> pb.Reply:
        """The answer of a host that is attached to this replica, `within` so many seconds. Raises Unavailable."""
        session = self._sessions.get(host)
        if session is None:
            raise _not_attached(host)
        query.id = next(self._query_ids)
        answer: asyncio.Future[pb.Reply] = asyncio.get_running_loop().create_future()
        session.answers[query.id] = answer
        session.queries.append(query)
        session.wake.set()
        try:
            async with asyncio.timeout(within):
                return await answer
        except TimeoutError as error:
            raise Unavailable("host.slow", f"Host {host} did not answer within {within:.0f} s.") from error
        finally:
            session.answers.pop(query.id, None)
            session.wake.set()

    # Running

    def leave(self) -> None:
        """End all streams with a farewell, which sends their agents to another replica at once; new ones get the same.

        A stream on which an answer is due ends when that has come.
        """
        self._leaving = True
        for session in self._sessions.values():
            session.wake.set()

    async def run(self) -> None:
        """Tell sessions what changes touch them, and write down the hosts that fall silent; until cancelled."""
        await self._db.cache.ready.wait()
        with self._db.cache.listening(self._on_change):
            async with asyncio.TaskGroup() as group:
                group.create_task(self.liveness.watch_own())
                group.create_task(self._look_after_sessions())
                group.create_task(self._tell_later())

    async def _look_after_sessions(self) -> None:
        """Have acknowledgements sent that this replica could not give when they were due, and end streams that fell silent.

        What came while this replica had no time to read it is not silence: how late it is now is added several times over.
        """
        lag = 0.0
        while True:
            due = time.monotonic() + leases.LOOK_EVERY
            await asyncio.sleep(leases.LOOK_EVERY)
            now = time.monotonic()
            lag = max(now - due, lag * 0.9)
            for session in list(self._sessions.values()):
                if session.heard is not None:
                    session.wake.set()
                if now - session.heard_at > leases.MISSED * session.heartbeat + BEHIND * lag:
                    session.silent = True
                    session.close(f"silent for {now - session.heard_at:.0f} s")

    def _on_change(self, change: Change) -> None:
        if not self._sessions:
            return
        if change.kind is fleet.HOST and (session := self._sessions.get((change.after or change.before).name)):  # type: ignore[union-attr]
            self._check(session)
        for projection in self._projections:
            for host in projection.hosts_of(change):
                if session := self._sessions.get(host):
                    session.touch()
            self._shared.update((projection, name) for name in projection.shared_by(change))

    async def _tell_later(self) -> None:
        """Tell the hosts that share what has changed, a few at a time: what others wait for goes between."""
        while True:
            await asyncio.sleep(LATER)
            shared, self._shared = self._shared, set()
            hosts = {host for projection, name in shared for host in projection.hosts_sharing(name)}
            for number, host in enumerate(hosts, 1):
                if session := self._sessions.get(host):
                    session.touch()
                if number % AT_ONCE == 0:
                    await asyncio.sleep(LATER / 20)

    def _difference(self, session: Session) -> pb.Desired | None:
        session.dirty = False
        before, after = session.sent, {}
        desired = pb.Desired(revision=self._db.cache.revision, snapshot=session.snapshot_due)
        for projection in self._projections:
            for key, version, make in projection.parts_for(session.host):
                known = before.get(key)
                if known is not None and version is not None and known[0] == version:
                    after[key] = known
                    continue
                thing = make()
                digest = hashlib.blake2b(thing.SerializeToString(deterministic=True), digest_size=16).digest()
                after[key] = version, digest
                if session.snapshot_due or known is None or known[1] != digest:
                    desired.upserts.append(thing)
        desired.removed.extend(key for key in before if key not in after)
        session.sent = after
        if not (desired.snapshot or desired.upserts or desired.removed):
            return None
        session.snapshot_due = False
        return desired

    async def _hello(self, requests: AsyncIterator[pb.AgentMessage], call: Call) -> pb.Hello:
        async for message in requests:
            if message.WhichOneof("message") != "hello" or not 1 <= len(message.hello.host) <= 255:
                break
            if not pki.speaks_for(call.peer, message.hello.host):
                raise Denied("host.name", f"The certificate is for {call.peer!r}, not for host {message.hello.host!r}.")
            return message.hello
        raise Invalid("host.hello", "An agent's first message must be its hello with a host name of 1 to 255 characters.")

    async def _read(self, session: Session, requests: AsyncIterator[pb.AgentMessage]) -> None:
        reason = "the agent ended its stream"
        try:
            async for message in requests:
                session.heard_at = math.inf
                await self._observe(session, message)
                session.heard_at = time.monotonic()
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
        if kind in ("heartbeat", "readmit"):
            await self._alive(session, message)
            return
        if kind == "strangers":
            found = sorted(message.strangers.server_ids)[:MOST_STRANGERS]
            await self._db.transact(lambda tx: records.strangers(tx, session.host, found))
            return
        try:
            match kind:
                case "server":
                    await self._take_in(session.host, [], [message.server])
                case "port":
                    await self._take_in(session.host, [message.port], [])
                case "gone":
                    await self._gone(session.host, message.gone)
                case "observations":
                    seen = message.observations
                    for first in range(0, max(len(seen.ports), len(seen.servers)), TOGETHER):
                        last = first + TOGETHER
                        await self._take_in(session.host, seen.ports[first:last], seen.servers[first:last])
                    await asyncio.gather(*(self._gone(session.host, gone) for gone in seen.gone))
        except Error as error:
            # The agent says it again with its next snapshot; its stream is the place to fail, so that it does.
            log.warning("host %s: could not take its %s: %s", session.host, kind, error)
            raise

    async def _take_in(self, host: str, ports: Sequence[pb.ObservedPort], servers: Sequence[pb.ObservedServer]) -> None:
        """Write down what an agent saw of some ports and servers, in one commit."""
        def decide(tx: Transaction) -> list[str]:
            said = [observer.observed_port(tx, host, port) for port in ports for observer in self._observers]
            return said + [observer.observed_server(tx, host, server) for server in servers for observer in self._observers]

        try:
            said = await self._db.transact(decide)
        except ValueError:                 # more than one commit holds
            if len(ports) + len(servers) < 2:
                raise
            for port in ports:
                await self._take_in(host, [port], [])
            for server in servers:
                await self._take_in(host, [], [server])
            return
        for text in filter(None, said):
            log.info("%s", text)

    async def _gone(self, host: str, gone: pb.Gone) -> None:
        for observer in self._observers:
            await observer.gone(host, gone)

    async def _alive(self, session: Session, message: pb.AgentMessage) -> None:
        """A heartbeat is acknowledged; an agent that removed what was not its host's is readmitted."""
        own = self._membership.id
        if message.HasField("readmit"):
            if await self._db.transact(lambda tx: records.readmit(tx, session.host, own, message.readmit.epoch)):
                log.info("host %s: readmitted with epoch %d", session.host, message.readmit.epoch)
            return
        session.heard = message.heartbeat.number
        session.wake.set()
        host = self._db.get(fleet.HOST, session.host)
        if message.heartbeat.leased and self._fencing.automatic and host is not None and not host.leased:
            await self._db.transact(lambda tx: records.leased(tx, session.host, own))

    async def _ask(self, host: str, query: pb.Query) -> pb.Reply:
        """A host's answer, wherever its agent is attached."""
        if host in self._sessions or self._peers is None:
            return await self.ask_here(host, query)
        record = self._db.get(fleet.HOST, host)
        if record is None or not record.replica:
            raise _not_attached(host)
        return await self._peers.ask_host(record.replica, host, query)


def _not_attached(host: str) -> Unavailable:
    return Unavailable("host.gone", f"Host {host} is not attached at the moment: try again later.")
