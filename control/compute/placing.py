"""Gives servers that wait a host: one batch for all of them, placed and allocated in one commit. Runs as leader, on one replica.

What a commit of it takes effect on is what it was decided on; a crash leaves servers waiting, and the next leader begins there.
"""
import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import history
from control.compute.decisions import decision_of
from control.compute.demand import Settings
from control.compute.model import DECISION, SERVER, waits
from control.compute.neighbours import Placed, Placer, Ports, Refused, Wanted
from control.compute.wanted import wanted
from control.kernel import clock, fleet
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.reconcile import Controller
from control.kernel.store import Guard
from protos.compute.v1.records_pb2 import ServerFault, ServerRecord
from protos.internal.v1.fleet_pb2 import HostRecord

log = logging.getLogger(__name__)

#: Operations that one placement commit is filled to, by an estimate; the store's limit is 128.
BATCH_OPERATIONS = 100

#: Waiting servers that are looked at for one placement commit, which takes a tenth of them.
LOOK_AT = 150

#: Seconds that a new server waits where no host is up at all, as after a restart of everything, before it is refused.
#: Longer leaves users in doubt, shorter fails servers that an agent about to return would have run.
PATIENCE = 30

#: Seconds between looks at a server while no host is up, and at one that waits for another's place.
HOST_PAUSE, ORDER_PAUSE = 1.0, 0.05


class Placing:
    """The reconciler of servers without a host. `fence` is added to every commit; `now` is the clock, to be replaced in tests."""

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
        """This reconciler over all servers that wait; `await controller().run()` until leadership ends."""
        return Controller("compute.placing", self._database.cache, kinds=(SERVER, fleet.HOST), keys_of=self.keys_of,
                          all_keys=self.all_keys, reconcile=self.reconcile)

    def keys_of(self, change: Change) -> Iterable[str]:
        """The servers that a change concerns: itself, or all that wait when a host came up."""
        if change.kind is SERVER:
            return [change.after.id] if change.after is not None and waits(change.after) else ()
        if change.kind is fleet.HOST and _up(change.after) and not _up(change.before):
            return self.all_keys()
        return ()

    def all_keys(self) -> list[str]:
        """Every server that waits for a host."""
        return [server.id for server in self._database.cache.by(SERVER, "waiting", "")]

    async def reconcile(self, server_id: str) -> float | None:
        """Choose hosts for this server and for the others that wait, in one commit."""
        async with self._placing:
            server = self._database.get(SERVER, server_id)
            if server is None or not waits(server):
                return None
            return await self._database.transact(lambda tx: self._decide_places(tx, server_id), guards=self._fence)

    def _decide_places(self, tx: Transaction, first: str) -> float | None:
        """Give waiting servers hosts, or the fault that says why not; seconds to the next look where `first` waits on."""
        waiting = self._batch(tx, first)
        pause = None if any(server.id == first for server in waiting) else ORDER_PAUSE
        needs, refused = self._needs(tx, waiting)
        answers = iter(self._placer.place(tx, list(needs.values())))
        decisions = [refused.get(server.id) or next(answers) for server in waiting]
        hosts = self._database.cache.size(fleet.HOST)
        patient = not all(isinstance(decision, Placed) for decision in decisions) and not any(
            host.up and not host.disabled for host in tx.rows(fleet.HOST))
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
                server.fault.CopyFrom(fault_of(decision, now))
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

        Those that shall be away from others that wait, or beside them, are left for when these have a host. Only the first ones
        that wait are looked at, so that a burst of thousands does not look at thousands for each commit.
        """
        waiting = [server.id for server in self._database.cache.by(SERVER, "waiting", "", LOOK_AT)]
        servers = (self._database.get(SERVER, server_id) for server_id in dict.fromkeys((first, *waiting)))
        return first_of(self._ports, (server for server in servers if server is not None and not any(
            _waits(tx.get(SERVER, other)) for other in (*server.hints.different_host, *server.hints.same_host))), 7)


def first_of(ports: Ports, servers: Iterable[ServerRecord], operations: int) -> list[ServerRecord]:
    """Copies of the first of some servers, as many as one commit holds; one at least, where there are any.

    Args:
      operations: what each needs of the commit, beside two for each of its ports.
    """
    batch: list[ServerRecord] = []
    needed = 0
    for server in servers:
        needed += operations + 2 * len(ports.ids(server.id))
        if batch and needed > BATCH_OPERATIONS:
            break
        copy = ServerRecord()
        copy.CopyFrom(server)
        batch.append(copy)
    return batch


def _up(host: HostRecord | None) -> bool:
    return host is not None and host.up


def _waits(server: ServerRecord | None) -> bool:
    return server is not None and waits(server)


def fault_of(decision: Refused | Invalid, now: Timestamp) -> ServerFault:
    """What a server's owner is told where it gets no host; with the names of hosts what admins are."""
    if isinstance(decision, Invalid):
        return ServerFault(code=400, message=f"No valid host was found. {decision}", details=str(decision), created_at=now)
    refusal = decision.refusal
    return ServerFault(code=500, message=f"No valid host was found. {refusal.reason()}", created_at=now,
                       details=f"No valid host was found. {refusal.reason(name_hosts=True)}")
