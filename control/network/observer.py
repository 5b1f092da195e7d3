"""What agents see of ports, kept in the ports' status; the rest of what they report is others' business."""

from control.kernel.database import Database, Transaction
from control.network.model import PORT
from protos.internal.v1.hosts_pb2 import Gone, ObservedPort, ObservedServer


class Observer:
    """control.hosts.neighbours.Observer, by shape."""

    def __init__(self, database: Database):
        self._database = database

    async def observed_server(self, host: str, server: ObservedServer) -> None:
        return None

    async def observed_port(self, host: str, port: ObservedPort) -> None:
        """Write a port's status when it changed; a report from a host that the port is not on any more says nothing."""
        status = "ACTIVE" if port.up else "DOWN"

        def decide(tx: Transaction) -> None:
            record = tx.get(PORT, port.id)
            if record is not None and record.binding_host_id == host and record.status != status:
                record.status = status
                tx.put(PORT, record)

        await self._database.transact(decide)

    async def gone(self, host: str, gone: Gone) -> None:
        return None
