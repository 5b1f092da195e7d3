"""Carries servers on where no agent does: chooses their hosts, settles them, and lets deleted ones go. Runs as leader.

One step a call, each one commit with the leader's fence: a crash between steps leaves a state that the next call goes on from.
"""
import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import deadlines, history, model
from control.compute.decisions import decision_of
from control.compute.demand import Settings
from control.compute.model import ACTION, DECISION, SERVER
from control.compute.neighbours import Placed, Placer, Ports, Refused, Wanted
from control.compute.removal import remove
from control.compute.wanted import wanted
from control.kernel import clock, fleet, quota
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.reconcile import Controller
from control.kernel.store import Guard
from protos.compute.v1.records_pb2 import ServerFault, ServerRecord
from protos.internal.v1.hosts_pb2 import ObservedServer

log = logging.getLogger(__name__)

#: Operations that one placement commit is filled to, by an estimate; the store's limit is 128.
BATCH_OPERATIONS = 100

#: Seconds that a new server waits where no host is up at all, as after a restart of everything, before it is refused.
#: Longer leaves users in doubt, shorter fails servers that an agent about to return would have run.
PATIENCE = 30

#: Seconds between looks at a server while no host is up, and at one that waits for another's place.
HOST_PAUSE, ORDER_PAUSE = 1.0, 0.05

#: Seconds between looks at a server that runs but whose ports are not reported up yet. A look costs microseconds.
#: The second where its time is over.
WIRING_PAUSE, LATE_PAUSE = 0.1, 5.0

#: Rows of history that are deleted in one commit.
HISTORY_BATCH = 100


class Reconciler:
    """The leader's part of servers. `fence` is added to every commit; `now` is the clock, to be replaced in tests."""

    def __init__(self, database: Database, ports: Ports, placer: Placer, fence: Sequence[Guard] = (),
                 now: Callable[[], Timestamp] = clock.now, settings: Settings | None = None):
        self._database = database
        self._ports = ports
        self._placer = placer
        self._fence = fence
        self._now = now
        self._settings = settings or Settings()
        self._placing = asyncio.Lock()

    def controller(self) -> Controller:
        """This reconciler over all servers; `await controller().run()` until leadership ends."""
        return Controller("compute.servers", self._database.cache, keys_of=self.keys_of, all_keys=self.all_keys,
                          reconcile=self.reconcile)

    def keys_of(self, change: Change) -> Iterable[str]:
        """The servers that a change concerns: itself, or those of a host that is gone or came up."""
        if change.kind is SERVER:
            return [(change.after or change.before).id]  # type: ignore[union-attr]
        if change.kind is fleet.HOST and change.after is None:
            return [server.id for server in self._database.cache.by(SERVER, "host", change.before.name)]  # type: ignore[union-attr]
        if change.kind is fleet.HOST and change.after.up and not (change.before and change.before.up):  # type: ignore[union-attr]
            return [server.id for server in self._database.cache.by(SERVER, "host", "")]
        return ()

    def all_keys(self) -> list[str]:
        """Every server, and every one that has left history behind."""
        ids = {server.id for server in self._database.cache.all(SERVER)}
        return list(ids | {row.server_id for row in self._database.cache.all(ACTION)})

    async def reconcile(self, server_id: str) -> float | None:
        """One step for one server."""
        server = self._database.get(SERVER, server_id)
        if server is None:
            return await self._forget(server_id)
        if server.desired.deleted:
            return await self._remove(server)
        left = deadlines.left(server, self._now())
        if left is not None and left <= 0:
            return await self._give_up(server_id)
        if server.host:
            again = await self._settle(server)
        else:
            again = None if server.HasField("fault") else await self._place(server_id)
        return again if left is None or (again is not None and again < left) else left

    # Placement

    async def _place(self, server_id: str) -> float | None:
        """Choose hosts for this server and for the others that wait, in one commit."""
        async with self._placing:
            server = self._database.get(SERVER, server_id)
            if server is None or not _waits(server):
                return None
            return await self._database.transact(lambda tx: self._decide_places(tx, server_id), guards=self._fence)

    def _decide_places(self, tx: Transaction, first: str) -> float | None:
        """Give waiting servers hosts, or the fault that says why not; seconds to the next look where `first` waits on."""
        waiting = self._batch(tx, first)
        pause = None if any(server.id == first for server in waiting) else ORDER_PAUSE
        needs, refused = self._needs(tx, waiting)
        answers = iter(self._placer.place(tx, list(needs.values())))
        decisions = [refused.get(server.id) or next(answers) for server in waiting]
        hosts = len(tx.rows(fleet.HOST))
        patient = not any(host.up and not host.disabled for host in tx.rows(fleet.HOST))
        now = self._now()
        for server, decision in zip(waiting, decisions, strict=True):
            if isinstance(decision, Placed):
                server.host = decision.host
                self._ports.bind(tx, server.id, decision.host)
                log.info("server %s: placed on %s", server.id, decision.host)
            elif patient and now.seconds - server.created_at.seconds < PATIENCE:
                pause = HOST_PAUSE if server.id == first else pause
                continue
            else:
                server.fault.CopyFrom(_fault(decision, now))
                log.info("server %s: %s", server.id, server.fault.details)
            if isinstance(decision, Placed | Refused):
                tx.put(DECISION, decision_of(decision, hosts=hosts, revision=self._database.cache.revision, now=now,
                                             server_id=server.id))
            server.updated_at.CopyFrom(now)
            tx.put(SERVER, server)
            history.closed(tx, server, now)
        return pause

    def _needs(self, tx: Transaction, waiting: Sequence[ServerRecord]) -> tuple[dict[str, Wanted], dict[str, Invalid]]:
        """What servers need, by id; or why that cannot be said any more, where the cloud's settings have changed."""
        needs, refused = {}, {}
        for server in waiting:
            try:
                needs[server.id] = wanted(tx, server, self._settings)
            except Invalid as error:
                refused[server.id] = error
        return needs, refused

    def _batch(self, tx: Transaction, first: str) -> list[ServerRecord]:
        """Copies of servers that wait for a host, `first` and then the oldest before others, as many as one commit holds.

        Those that shall be away from others that wait, or beside them, are left for when these have a host.
        """
        waiting = sorted((server for server in tx.rows(SERVER, "host", "") if _waits(server)),
                         key=lambda server: (server.id != first, server.created_at.seconds, server.created_at.nanos))
        ids = {server.id for server in waiting}
        batch: list[ServerRecord] = []
        operations = 0
        for server in waiting:
            if not ids.isdisjoint((*server.hints.different_host, *server.hints.same_host)):
                continue
            operations += 7 + 2 * len(self._ports.ids(server.id))
            if batch and operations > BATCH_OPERATIONS:
                break
            copy = ServerRecord()
            copy.CopyFrom(server)
            batch.append(copy)
        return batch

    # Deadlines

    async def _give_up(self, server_id: str) -> float | None:
        """End a passing state that is over in a fault."""
        def decide(tx: Transaction) -> str:
            server, now = tx.get(SERVER, server_id), self._now()
            if server is None or (left := deadlines.left(server, now)) is None or left > 0:
                return ""
            server.fault.CopyFrom(deadlines.fault(server, tx.get(fleet.HOST, server.host) if server.host else None, now))
            server.updated_at.CopyFrom(now)
            tx.put(SERVER, server)
            history.closed(tx, server, now)
            return server.fault.details

        if details := await self._database.transact(decide, guards=self._fence):
            log.warning("server %s: %s", server_id, details)
        return None

    # After the host

    async def _settle(self, server: ServerRecord) -> float | None:
        """Bring a server whose guest runs to ACTIVE once its ports are wired; the agent's reports do all else."""
        if server.HasField("launched_at") or server.seen.domain != ObservedServer.RUNNING:
            return None
        if not self._ports.wired(server.id):
            return LATE_PAUSE if server.HasField("fault") else WIRING_PAUSE

        def decide(tx: Transaction) -> None:
            current = tx.get(SERVER, server.id)
            if current is None:
                return
            before = model.derive(current)
            model.settle(current, self._ports.wired(current.id), now := self._now())
            if model.derive(current) != before:
                current.updated_at.CopyFrom(now)
                tx.put(SERVER, current)
                history.closed(tx, current, now)

        await self._database.transact(decide, guards=self._fence)
        return None

    async def _remove(self, server: ServerRecord) -> float | None:
        """Let a deleted server go that has no host, or one that is no more. Otherwise its agent says when it is gone."""
        def decide(tx: Transaction) -> bool:
            current = tx.get(SERVER, server.id)
            if current is None or (current.host and tx.get(fleet.HOST, current.host) is not None):
                return False
            if current.host:
                tx.guard_unchanged(fleet.HOST, current.host)     # gone, and not back meanwhile
            remove(tx, current, self._ports, self._placer)
            return True

        if await self._database.transact(decide, guards=self._fence, serial=quota.serial(model.QUOTA, server.project_id)):
            log.info("server %s: removed", server.id)
        return None

    async def _forget(self, server_id: str) -> float | None:
        """Delete what is left of the history of a server that is no more."""
        rows = self._database.cache.by(ACTION, "server", server_id)[:HISTORY_BATCH]
        if not rows:
            return None

        def decide(tx: Transaction) -> None:
            for row in rows:
                tx.delete(ACTION, row.server_id, row.request_id)

        await self._database.transact(decide, guards=self._fence)
        return 0


def _waits(server: ServerRecord) -> bool:
    return not server.host and not server.desired.deleted and not server.HasField("fault")


def _fault(decision: Refused | Invalid, now: Timestamp) -> ServerFault:
    """What a server's owner is told where it gets no host; with the names of hosts what admins are."""
    if isinstance(decision, Invalid):
        return ServerFault(code=400, message=f"No valid host was found. {decision}", details=str(decision), created_at=now)
    refusal = decision.refusal
    return ServerFault(code=500, message=f"No valid host was found. {refusal.reason()}", created_at=now,
                       details=f"No valid host was found. {refusal.reason(name_hosts=True)}")
