"""Takes in what agents report of servers; writes only what changed, so a report may come any number of times."""
import logging
import uuid
from collections.abc import Callable

from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import history, model
from control.compute.model import SERVER
from control.compute.neighbours import Placer, Ports
from control.compute.removal import abandon, remove
from control.kernel import clock, quota
from control.kernel.database import Database, Transaction
from protos.compute.v1.records_pb2 import SeenServer, ServerRecord
from protos.internal.v1.hosts_pb2 import Gone, ObservedPort, ObservedServer

log = logging.getLogger(__name__)


class Observer:
    """control.hosts.neighbours.Observer for servers.

    A report counts only from the host that the server is on; from the one that it is to move to, that its disk is there or cannot
    be; from one that it has left, that nothing is left.
    """

    def __init__(self, database: Database, ports: Ports, placer: Placer, now: Callable[[], Timestamp] = clock.now):
        self._database = database
        self._ports = ports
        self._placer = placer
        self._now = now

    def observed_server(self, tx: Transaction, host: str, server: ObservedServer) -> str:
        known = self._database.get(SERVER, server.id)
        if known is None or (known.host == host and _is_known(known, server)):
            return ""
        record = tx.require(SERVER, server.id)
        if record.host != host:
            return self._observe_arrival(tx, record, host, server)
        before, now = model.derive(record), self._now()
        if not model.observe(record, server, self._ports.wired(server.id, tx), now):
            return ""
        after = model.derive(record)
        if after != before:
            record.updated_at.CopyFrom(now)
        tx.put(SERVER, record)
        history.closed(tx, record, now)
        if after.status == before.status:
            return ""
        return f"server {server.id}: {before.status} -> {after.status}{f': {server.fault}' if server.fault else ''}"

    def _observe_arrival(self, tx: Transaction, record: ServerRecord, host: str, seen: ObservedServer) -> str:
        """A server that leaves is at its target from the moment that its disk is whole there."""
        move = record.relocation
        if not model.disk_waits(record) or host != move.target:
            return ""
        if seen.arrived == move.id:
            self._placer.take_over(tx, record.id, move.id)
            model.arrive(record)
            self._ports.bind(tx, record.id, record.host)
            said = f"server {record.id}: its disk is on {record.host}"
        elif seen.fault and seen.fault_final:
            self._placer.release(tx, move.id)
            model.turn_back(record, str(uuid.uuid4()), seen.fault[:1024], failed=True)
            said = f"server {record.id}: stays on {record.host}: {seen.fault}"
        else:
            return ""
        record.updated_at.CopyFrom(self._now())
        tx.put(SERVER, record)
        return said

    def observed_port(self, tx: Transaction, host: str, port: ObservedPort) -> str:
        """Ports are the network's; the reconciler looks at them when a server waits for one."""
        return ""

    async def gone(self, host: str, gone: Gone) -> None:
        collection, _, server_id = gone.key.partition("/")
        record = self._database.get(SERVER, server_id) if collection == "server" else None
        if record is None:
            return

        def decide(tx: Transaction) -> bool:
            current = tx.get(SERVER, server_id)
            if current is None or not (host in current.leftovers or (current.host == host and current.desired.deleted)):
                return False
            if current.desired.deleted:
                abandon(tx, current, self._placer)
            if host in current.leftovers:
                current.leftovers.remove(host)
            else:
                current.host = ""
            if current.desired.deleted and not current.host and not current.leftovers:
                remove(tx, current, self._ports, self._placer)
                return True
            if not current.host:
                self._placer.release(tx, server_id)
                self._ports.bind(tx, server_id, "")
            tx.put(SERVER, current)
            return False

        if await self._database.transact(decide, serial=quota.serial(model.QUOTA, record.project_id)):
            log.info("server %s: gone from %s and removed", server_id, host)


def _is_known(record: ServerRecord, seen: ObservedServer) -> bool:
    """Whether a report says once more that a server runs as it did: most of what agents say when they come back."""
    before = record.seen
    return (before.settled == SeenServer.ACTIVE and seen.domain == before.domain == ObservedServer.RUNNING
            and (seen.generation, seen.reboots) == (before.generation, before.reboots)
            and not (seen.fault or before.fault or record.HasField("fault")) and record.HasField("launched_at"))
