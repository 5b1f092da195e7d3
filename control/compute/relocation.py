"""Moves servers between hosts: off those that are fenced, with new disks, and off those that they are to leave, with their disks.

Runs as leader; each step is one commit. A server is evacuated only while its host is fenced and nobody of it has come back: the
commit stands on the host's record, which an agent that comes back rewrites before it is told anything. A server that migrates is
at its source until its disk is whole at the target, and from one commit on at the target: at no revision at both. What the other
one has of it is on the list of leftovers, and goes from there when that host has said so.
"""
import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import history, model
from control.compute.decisions import decision_of
from control.compute.demand import Settings
from control.compute.model import DECISION, EVACUATE, MIGRATE, SERVER
from control.compute.neighbours import Placed, Placer, Ports, Refused, Wanted
from control.compute.placing import fault_of, first_of
from control.compute.removal import abandon
from control.compute.wanted import wanted
from control.kernel import clock, fleet
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.reconcile import Controller
from control.kernel.store import Guard
from protos.compute.v1.records_pb2 import Relocation, ServerRecord
from protos.internal.v1.hosts_pb2 import ObservedServer

log = logging.getLogger(__name__)

#: Seconds between two tries to find a place for a server that fits nowhere. Shorter costs the scheduler time while a cloud is
#: full, longer lets servers wait for room that there is.
RETRY = 10.0


class Relocating:
    """The reconciler of servers that are on their way, and of those whose host is fenced."""

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
        """This reconciler; `await controller().run()` until leadership ends."""
        return Controller("compute.relocating", self._database.cache, kinds=(SERVER, fleet.HOST), keys_of=self.keys_of,
                          all_keys=self.all_keys, reconcile=self.reconcile)

    def keys_of(self, change: Change) -> Iterable[str]:
        """The servers that a change concerns: itself; those of a host that was fenced, came or went; those that wait for room."""
        if change.kind is SERVER and change.after is not None:
            return (change.after.id,) if self._concerns(change.after) else ()  # type: ignore[arg-type, attr-defined]
        if change.kind is fleet.HOST:
            before, after = change.before, change.after
            standing = [host is not None and (host.up, bool(host.replica), fleet.lost_for_good(host))  # type: ignore[arg-type, attr-defined]
                        for host in (before, after)]
            if standing[0] != standing[1]:
                cache, name = self._database.cache, (after or before).name  # type: ignore[union-attr]
                return {server.id for server in (*cache.by(SERVER, "host", name), *cache.by(SERVER, "visited", name),
                                                 *cache.by(SERVER, "relocating", "")) if self._concerns(server)}
        return ()

    def all_keys(self) -> list[str]:
        """Every server that is on its way, has left something behind, or whose host is lost."""
        cache = self._database.cache
        lost = [host.name for host in cache.all(fleet.HOST) if fleet.lost_for_good(host)]
        found = [cache.by(SERVER, "relocating", ""), *(cache.by(SERVER, "host", name) for name in lost),
                 *(cache.by(SERVER, "visited", name) for name in cache.values(SERVER, "visited"))]
        return list({server.id for servers in found for server in servers})

    def _concerns(self, server: ServerRecord) -> bool:
        return server.HasField("relocation") or bool(server.leftovers) or self._lost(server.host)

    def _lost(self, name: str) -> bool:
        host = self._database.get(fleet.HOST, name) if name else None
        return host is not None and fleet.lost_for_good(host)

    async def reconcile(self, server_id: str) -> float | None:
        """One step for one server."""
        server = self._database.get(SERVER, server_id)
        if server is None:
            return None
        if any(self._database.get(fleet.HOST, name) is None for name in server.leftovers):
            await self._change(server_id, self._tidy)
        if server.desired.deleted:
            if model.leaving(server):
                await self._change(server_id, self._abandon)
            return None
        move = server.relocation
        if self._lost(server.host):
            return await self._evacuate(server) if self._evacuable(server) else None
        if move.verb == EVACUATE and server.host == move.source:
            await self._change(server_id, self._stay)
        elif move.verb == MIGRATE and not move.target and not move.failed:
            return await self._begin(server_id)
        elif move.failed and not move.drained:
            await self._change(server_id, self._give_up)
        elif model.leaving(server):
            target = self._database.get(fleet.HOST, move.target)
            if target is None or not target.up:
                await self._change(server_id, self._turn_back)
        return None

    async def _change(self, server_id: str, decide: Callable[[Transaction, ServerRecord], bool]) -> None:
        """Make one change of a server's record, if it still has to be made."""
        def whole(tx: Transaction) -> None:
            server = tx.get(SERVER, server_id)
            if server is not None and decide(tx, server):
                server.updated_at.CopyFrom(self._now())
                tx.put(SERVER, server)

        await self._database.transact(whole, guards=self._fence)

    def _tidy(self, tx: Transaction, server: ServerRecord) -> bool:
        """Hosts that were forgotten have nothing left."""
        kept = [name for name in server.leftovers if tx.get(fleet.HOST, name) is not None]
        changed = kept != list(server.leftovers)
        server.leftovers[:] = kept
        return changed

    def _abandon(self, tx: Transaction, server: ServerRecord) -> bool:
        return server.desired.deleted and abandon(tx, server, self._placer)

    # Off a fenced host

    def _evacuable(self, server: ServerRecord) -> bool:
        """Whether a server of a fenced host is to be started elsewhere: somebody asked, or it is the cloud's way."""
        if server.relocation.verb == EVACUATE:
            return True
        return self._settings.automatic_evacuation and not server.HasField("fault")

    async def _evacuate(self, server: ServerRecord) -> float | None:
        async with self._placing:
            return await self._database.transact(lambda tx: self._decide_evacuation(tx, server.host, server.id),
                                                 guards=self._fence)

    def _decide_evacuation(self, tx: Transaction, name: str, first: str) -> float | None:
        """Give servers of a fenced host others, as many as one commit holds; seconds to the next try where `first` got none."""
        host = tx.get(fleet.HOST, name)
        if host is None or not fleet.lost_for_good(host):
            return None
        tx.guard_unchanged(fleet.HOST, name)
        now, pause = self._now(), None
        batch = self._batch(tx, name, first)
        needs: dict[str, Wanted] = {}
        refused: dict[str, Invalid] = {}
        for server in batch:
            if model.leaving(server):
                abandon(tx, server, self._placer)
            try:
                needs[server.id] = self._need(tx, server, server.relocation.requested_host)
            except Invalid as error:
                refused[server.id] = error
        lost = [each.name for each in tx.rows(fleet.HOST) if fleet.lost_for_good(each)]
        answers = iter(self._placer.place(tx, list(needs.values()), lost))
        hosts = self._database.cache.size(fleet.HOST)
        for server in batch:
            decision = refused.get(server.id) or next(answers)
            move = server.relocation
            if move.verb != EVACUATE:
                move.CopyFrom(Relocation(id=str(uuid.uuid4()), verb=EVACUATE, source=name, started_at=now))
                history.noted(tx, server, "evacuate", now)
            if isinstance(decision, Placed):
                move.refused = ""
                server.ClearField("fault")
                server.host = decision.host
                server.desired.generation += 1
                server.seen.domain = ObservedServer.DOMAIN_UNSPECIFIED
                self._ports.bind(tx, server.id, decision.host)
                log.info("server %s: evacuated from %s to %s", server.id, name, decision.host)
            else:
                fault = fault_of(decision, now)
                pause = RETRY if server.id == first else pause
                if move.refused == fault.message:
                    continue
                move.refused = fault.message
                server.fault.CopyFrom(fault)
                log.warning("server %s: not evacuated from %s: %s", server.id, name, fault.details)
            if isinstance(decision, Placed | Refused):
                tx.put(DECISION, decision_of(decision, hosts=hosts, revision=self._database.cache.revision, now=now,
                                             server_id=server.id))
            server.updated_at.CopyFrom(now)
            tx.put(SERVER, server)
            history.closed(tx, server, now)
        return pause

    def _batch(self, tx: Transaction, name: str, first: str) -> list[ServerRecord]:
        """Copies of a fenced host's servers, `first` before others, and those that got no place before only if it is they."""
        waiting = [server for server in tx.rows(SERVER, "host", name) if not server.desired.deleted and self._evacuable(server)
                   and (server.id == first or not server.relocation.refused)]
        waiting.sort(key=lambda server: (server.id != first, server.server_group, server.created_at.seconds))
        return first_of(self._ports, waiting, 13)

    def _stay(self, tx: Transaction, server: ServerRecord) -> bool:
        """A host came back before there was another one for its server: it has the disk, and goes on."""
        if server.relocation.verb != EVACUATE or server.host != server.relocation.source:
            return False
        host = tx.get(fleet.HOST, server.host)
        if host is None or fleet.lost_for_good(host):
            return False
        if server.relocation.refused:
            server.ClearField("fault")
        server.ClearField("relocation")
        history.closed(tx, server, self._now())
        return True

    # Off a host that it is to leave

    async def _begin(self, server_id: str) -> float | None:
        """Take room for a server elsewhere, and have it stop where it is."""
        async with self._placing:
            return await self._database.transact(lambda tx: self._decide_target(tx, server_id), guards=self._fence)

    def _decide_target(self, tx: Transaction, server_id: str) -> float | None:
        server = tx.get(SERVER, server_id)
        if server is None or server.relocation.verb != MIGRATE or server.relocation.target or server.desired.deleted:
            return None
        host = tx.get(fleet.HOST, server.host)
        if host is None or not host.up:
            return None                     # nobody could send its disk
        now, move = self._now(), server.relocation
        try:
            decision = self._target(tx, server)
        except Invalid as error:
            return self._refuse(tx, server, str(error))
        if isinstance(decision, Refused):
            return self._refuse(tx, server, decision.refusal.reason(name_hosts=True))
        move.target, move.refused = decision.host, ""
        server.desired.generation += 1
        server.updated_at.CopyFrom(now)
        tx.put(SERVER, server)
        log.info("server %s: leaves %s for %s", server.id, server.host, move.target)
        return None

    def _target(self, tx: Transaction, server: ServerRecord) -> Placed | Refused:
        """The host that was asked for; else the one that the plan has for it, where it still fits, or any other."""
        move = server.relocation
        left = [server.host] if move.drained else []
        decision: Placed | Refused | None = None
        for only in dict.fromkeys([move.requested_host or move.planned, move.requested_host]):
            need = self._need(tx, server, only)
            (decision,) = self._placer.place(tx, [replace(need, request=replace(need.request, id=move.id))], left)
            if isinstance(decision, Placed):
                break
        assert decision is not None
        return decision

    def _refuse(self, tx: Transaction, server: ServerRecord, why: str) -> float:
        """A drained host's servers wait for room; what somebody asked for once is given up."""
        if not server.relocation.drained:
            server.ClearField("relocation")
            history.failed(tx, server, f"No valid host was found. {why}", self._now())
            tx.put(SERVER, server)
        elif server.relocation.refused != why:
            server.relocation.refused = why
            tx.put(SERVER, server)
        else:
            return RETRY
        log.warning("server %s: does not leave %s: %s", server.id, server.host, why)
        return RETRY

    def _give_up(self, tx: Transaction, server: ServerRecord) -> bool:
        """The disk cannot go where it was to go, and nobody drains the host."""
        if not server.relocation.failed or server.relocation.drained:
            return False
        history.failed(tx, server, server.relocation.refused, self._now())
        server.ClearField("relocation")
        return True

    def _turn_back(self, tx: Transaction, server: ServerRecord) -> bool:
        """The target is down before it has the disk: back to where it is, and another one is looked for."""
        target = tx.get(fleet.HOST, server.relocation.target)
        if not model.leaving(server) or (target is not None and target.up):
            return False
        self._placer.release(tx, server.relocation.id)
        model.turn_back(server, str(uuid.uuid4()), f"host {server.relocation.target} went down")
        return True

    def _need(self, tx: Transaction, server: ServerRecord, only: str) -> Wanted:
        """What a server needs of another host. What an admin forced it to at first does not bind it now."""
        free = ServerRecord()
        free.CopyFrom(server)
        free.forced_host = only
        need = wanted(tx, free, self._settings)
        away = need.request.avoid | {server.host, *model.visited(server)}
        return replace(need, request=replace(need.request, avoid=away))
