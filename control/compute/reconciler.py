"""Carries servers on where no agent does: settles those that run, lets deleted ones go, forgets their history. Runs as leader.

One step a call, each one commit with the leader's fence: a crash between steps leaves a state that the next call goes on from.
Servers are shared out among the leaders of shards; placing.py gives them their hosts.
"""
import logging
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import deadlines, history, model
from control.compute.model import ACTION, SERVER
from control.compute.neighbours import Placer, Ports
from control.compute.removal import abandon, remove
from control.kernel import clock, fleet, quota
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.reconcile import Controller
from control.kernel.store import Guard
from protos.compute.v1.records_pb2 import ServerRecord
from protos.internal.v1.hosts_pb2 import ObservedServer

log = logging.getLogger(__name__)

#: Seconds between looks at a server that runs but whose ports are not reported up yet. A look costs microseconds.
#: The second where its time is over.
WIRING_PAUSE, LATE_PAUSE = 0.1, 5.0

#: Rows of history that are deleted in one commit.
HISTORY_BATCH = 100


class Settling:
    """The reconciler of servers that have a host, or are to go. `fence` is added to every commit; `now` is the clock."""

    def __init__(self, database: Database, ports: Ports, placer: Placer, fence: Sequence[Guard] = (),
                 now: Callable[[], Timestamp] = clock.now):
        self._database = database
        self._ports = ports
        self._placer = placer
        self._fence = fence
        self._now = now

    def controller(self, mine: Callable[[str], bool] = lambda server_id: True) -> Controller:
        """This reconciler over the servers that are its own; `await controller().run()` until leadership ends."""
        return Controller("compute.settling", self._database.cache, kinds=(SERVER, fleet.HOST), keys_of=self.keys_of,
                          all_keys=self.all_keys, reconcile=self.reconcile, mine=mine)

    def keys_of(self, change: Change) -> Iterable[str]:
        """The servers that a change concerns: itself, or those of a host that is gone, for good or for now."""
        if change.kind is SERVER and change.after is not None:
            return [change.after.id] if _due(change.after) else ()  # type: ignore[attr-defined]
        if change.kind is SERVER:
            return [change.before.id] if self._database.cache.count(ACTION, "server", change.before.id) else ()  # type: ignore[union-attr]
        if change.kind is fleet.HOST and (change.after is None or fleet.lost_for_good(change.after)):  # type: ignore[arg-type]
            name = (change.after or change.before).name  # type: ignore[union-attr]
            return [server.id for index in ("host", "visited") for server in self._database.cache.by(SERVER, index, name)]
        return ()

    def all_keys(self) -> list[str]:
        """Every server that is on its way, and every one that has left history behind."""
        cache = self._database.cache
        there = {key.removeprefix(SERVER.prefix) for key in cache.keys(SERVER)}
        left = [server_id for server_id in cache.values(ACTION, "server") if server_id not in there]
        return [server.id for server in cache.by(SERVER, "passing", "")] + left

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
        again = await self._settle(server) if server.host else None
        return again if left is None or (again is not None and again < left) else left

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

    async def _settle(self, server: ServerRecord) -> float | None:
        """Bring a server whose guest runs to ACTIVE once its ports are wired; the agent's reports do all else."""
        if server.seen.domain != ObservedServer.RUNNING or (server.HasField("launched_at") and not server.HasField("relocation")):
            return None
        if model.leaving(server) or server.host == server.relocation.source:
            return None
        if not self._ports.wired(server.id):
            return LATE_PAUSE if server.HasField("fault") else WIRING_PAUSE

        def decide(tx: Transaction) -> None:
            current = tx.get(SERVER, server.id)
            if current is None:
                return
            before = model.derive(current), current.HasField("relocation")
            model.settle(current, self._ports.wired(current.id), now := self._now())
            if (model.derive(current), current.HasField("relocation")) != before:
                current.updated_at.CopyFrom(now)
                tx.put(SERVER, current)
                history.closed(tx, current, now)

        await self._database.transact(decide, guards=self._fence)
        return None

    async def _remove(self, server: ServerRecord) -> float | None:
        """Let a deleted server go that has no host, or one that is no more. Otherwise its agent says when it is gone.

        What a fenced host has of it goes before that host is let in again.
        """
        def decide(tx: Transaction) -> bool:
            current = tx.get(SERVER, server.id)
            if current is None:
                return False
            for name in filter(None, (current.host, *model.visited(current))):
                host = tx.get(fleet.HOST, name)
                if host is not None and not fleet.lost_for_good(host):
                    return False
                tx.guard_unchanged(fleet.HOST, name)     # gone, and not back meanwhile
            abandon(tx, current, self._placer)
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


def _due(server: ServerRecord) -> bool:
    """Whether a step may be due for a server: most are at rest, and where an agent has its part to do there is none."""
    return server.desired.deleted or (server.seen.domain == ObservedServer.RUNNING and (
        not server.HasField("launched_at") or server.HasField("relocation")))
