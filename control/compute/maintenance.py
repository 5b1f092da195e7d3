"""Drains hosts: closes one, has its servers leave a few at a time in the order of the scheduler's plan, and tells how far it is.

The record says what was asked for; how far it is, is counted from the servers. The plan is worked out by whoever leads, and anew
by the next leader: it is advice, since each server's target is decided when its turn comes.
"""
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import history, limits, model
from control.compute.model import MAINTENANCE, MIGRATE, SERVER
from control.compute.neighbours import Placer
from control.kernel import clock, fleet
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, NotFound
from control.kernel.reconcile import Controller
from control.kernel.rpc import Call
from control.kernel.store import Guard
from protos.compute.v1 import maintenance_pb2 as pb
from protos.compute.v1.records_pb2 import MaintenanceRecord, Relocation, ServerRecord

log = logging.getLogger(__name__)

#: Servers on their way at a time, unless somebody says otherwise, and at most. More load the network and the hosts.
AT_ONCE, MOST_AT_ONCE = 4, 100

#: Servers that one answer names at most.
MOST_NAMED = 1000


def remaining(reads: Database | Transaction, host: str) -> list[ServerRecord]:
    """The servers that a host still has, or that are on their way from it."""
    there = {server.id: server for server in reads.rows(SERVER, "host", host) if not server.desired.deleted}
    on_the_way = {server.id: server for server in reads.rows(SERVER, "relocating", host) if not server.desired.deleted}
    return sorted((there | on_the_way).values(), key=lambda server: server.id)


class Maintenance:
    """Servicer of compute.v1.Maintenance."""

    def __init__(self, database: Database):
        self._database = database

    async def StartDrain(self, request: pb.StartDrainRequest, call: Call) -> pb.DrainResponse:
        asked = request.drain
        reason = limits.text(asked.reason, "drain.reason") or "drained"
        if not 0 <= asked.at_once <= MOST_AT_ONCE:
            raise Invalid("compute.drain.at_once", f"drain.at_once must be 1 to {MOST_AT_ONCE}, not {asked.at_once}.")

        def decide(tx: Transaction) -> None:
            host = tx.get(fleet.HOST, request.host)
            if host is None:
                raise NotFound("compute.host", f"Host {request.host[:255]} could not be found.")
            host.disabled, host.disabled_reason = True, reason
            tx.put(fleet.HOST, host)
            record = tx.get(MAINTENANCE, host.name) or MaintenanceRecord(
                host=host.name, started_at=clock.now(), total=len(remaining(tx, host.name)), user_id=call.caller.user_id,
                project_id=call.caller.project_id, request_id=call.request_id)
            record.reason, record.at_once = reason, asked.at_once or record.at_once or AT_ONCE
            record.ClearField("finished_at")
            tx.put(MAINTENANCE, record)

        await self._database.transact(decide)
        return self._answer(request.host)

    async def GetDrain(self, request: pb.GetDrainRequest, call: Call) -> pb.DrainResponse:
        return self._answer(request.host)

    async def ListDrains(self, request: pb.ListDrainsRequest, call: Call) -> pb.ListDrainsResponse:
        records = sorted(self._database.rows(MAINTENANCE), key=lambda record: record.host)
        return pb.ListDrainsResponse(drains=[self._view(record) for record in records])

    async def EndDrain(self, request: pb.EndDrainRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            if tx.get(MAINTENANCE, request.host) is None:
                raise _absent(request.host)
            tx.delete(MAINTENANCE, request.host)
            if (host := tx.get(fleet.HOST, request.host)) is not None:
                host.disabled, host.disabled_reason = False, ""
                tx.put(fleet.HOST, host)

        await self._database.transact(decide)
        return Empty()

    def _answer(self, host: str) -> pb.DrainResponse:
        record = self._database.get(MAINTENANCE, host)
        if record is None:
            raise _absent(host)
        return pb.DrainResponse(drain=self._view(record))

    def _view(self, record: MaintenanceRecord) -> pb.Drain:
        left = remaining(self._database, record.host)
        servers = [_drained(server) for server in left[:MOST_NAMED]]
        idle = bool(servers) and all(server.step == "refused" for server in servers)
        return pb.Drain(
            host=record.host, reason=record.reason, at_once=record.at_once, total=max(record.total, len(left)),
            status="done" if record.HasField("finished_at") else "waiting" if idle else "running",
            done=max(0, record.total - len(left)), servers=servers, started_at=record.started_at,
            finished_at=record.finished_at if record.HasField("finished_at") else None)


class Draining:
    """The leader's part: has servers leave, and says when none is left. `fence` is added to every commit."""

    def __init__(self, database: Database, placer: Placer, fence: Sequence[Guard] = (),
                 now: Callable[[], Timestamp] = clock.now):
        self._database = database
        self._placer = placer
        self._fence = fence
        self._now = now
        self._plans: dict[str, dict[str, str]] = {}       # host -> server -> target, in order

    def controller(self) -> Controller:
        """This reconciler over all hosts that are drained; `await controller().run()` until leadership ends."""
        return Controller("compute.draining", self._database.cache, kinds=(MAINTENANCE, SERVER), keys_of=self.keys_of,
                          all_keys=self.all_keys, reconcile=self.reconcile)

    def keys_of(self, change: Change) -> Iterable[str]:
        if change.kind is MAINTENANCE:
            return [(change.after or change.before).host]  # type: ignore[union-attr]
        if change.kind is SERVER:
            names = {name for server in (change.before, change.after) if server is not None
                     for name in (server.host, server.relocation.source, *server.leftovers)}  # type: ignore[attr-defined]
            return [name for name in names if name and self._database.get(MAINTENANCE, name) is not None]
        return ()

    def all_keys(self) -> list[str]:
        """Every host that is drained, and those that were while servers still wait to leave."""
        hosts = {record.host for record in self._database.cache.all(MAINTENANCE)}
        return list(hosts | {server.relocation.source for server in self._database.cache.by(SERVER, "relocating", "")
                             if server.relocation.drained})

    async def reconcile(self, name: str) -> float | None:
        """Have as many more of a host's servers leave as there is room for on the way."""
        record = self._database.get(MAINTENANCE, name)
        if record is None:
            self._plans.pop(name, None)
            await self._let_stay(name)
            return None
        left = remaining(self._database, name)
        if not left and not self._database.rows(SERVER, "visited", name):
            await self._finish(name)
            return None
        waiting = [server for server in left if server.host == name and not server.HasField("relocation")]
        room = record.at_once - sum(1 for server in left if server.HasField("relocation") and not server.relocation.refused)
        if not waiting or room <= 0:
            return None
        plan = self._plans.get(name)
        if plan is None:
            plan = self._plans[name] = await self._placer.plan_drain(name)
        order = {server_id: number for number, server_id in enumerate(plan)}
        waiting.sort(key=lambda server: (order.get(server.id, len(order)), server.id))
        for server in waiting[:room]:
            await self._send_off(server.id, record, plan.get(server.id, ""))
        return None

    async def _send_off(self, server_id: str, record: MaintenanceRecord, planned: str) -> None:
        """Wish that a server leaves the host."""
        def decide(tx: Transaction) -> None:
            server = tx.get(SERVER, server_id)
            if (server is None or server.host != record.host or server.HasField("relocation") or server.desired.deleted
                    or tx.get(MAINTENANCE, record.host) is None):
                return
            now = self._now()
            server.relocation.CopyFrom(Relocation(
                id=str(uuid.uuid4()), verb=MIGRATE, source=record.host, drained=True, planned=planned, started_at=now))
            tx.put(SERVER, server)
            tx.guard_exists(MAINTENANCE, record.host)
            history.noted(tx, server, "migrate", now, record)

        await self._database.transact(decide, guards=self._fence)

    async def _let_stay(self, name: str) -> None:
        """The host is open again: servers that have not begun to leave stay."""
        for server in self._database.cache.by(SERVER, "relocating", name):
            if server.relocation.drained and not model.relocates(server):
                await self._database.transact(lambda tx, server_id=server.id: self._forget(tx, server_id),  # type: ignore[misc]
                                              guards=self._fence)

    def _forget(self, tx: Transaction, server_id: str) -> None:
        server = tx.get(SERVER, server_id)
        if server is not None and server.relocation.drained and not model.relocates(server):
            server.ClearField("relocation")
            tx.put(SERVER, server)
            history.closed(tx, server, self._now())

    async def _finish(self, name: str) -> None:
        def decide(tx: Transaction) -> bool:
            record = tx.get(MAINTENANCE, name)
            if record is None or record.HasField("finished_at") or remaining(tx, name):
                return False
            record.finished_at.CopyFrom(self._now())
            tx.put(MAINTENANCE, record)
            return True

        if await self._database.transact(decide, guards=self._fence):
            log.info("host %s: drained", name)


def _drained(server: ServerRecord) -> pb.DrainedServer:
    move = server.relocation
    if server.HasField("fault"):
        return pb.DrainedServer(server_id=server.id, step="refused" if not model.relocates(server) else "starting",
                                target=server.host if server.host != move.source else "", problem=server.fault.message)
    if not server.HasField("relocation"):
        step = "waiting"
    elif move.refused and not move.target:
        step = "refused"
    elif not move.target:
        step = "waiting"
    elif server.host == move.target:
        step = "starting"
    else:
        step = "copying" if model.disk_waits(server) else "stopping"
    return pb.DrainedServer(server_id=server.id, step=step, target=move.target, problem=move.refused or server.seen.fault)


def _absent(host: str) -> NotFound:
    return NotFound("compute.drain", f"Host {host[:255]} is not being drained.")
