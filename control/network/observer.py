"""What agents see of ports, kept in the ports' status; the rest of what they report is others' business."""

from control.kernel.database import Database, Transaction
from control.network.model import PORT
from protos.internal.v1.hosts_pb2 import Gone, ObservedPort, ObservedServer


class Observer:
    """control.hosts.neighbours.Observer, by shape."""

    def __init__(self, database: Database):
        self._database = database

    def observed_server(self, tx: Transaction, host: str, server: ObservedServer) -> str:
        return ""

    def observed_port(self, tx: Transaction, host: str, port: ObservedPort) -> str:
        """Write a port's status when it changed; a report from a host that the port is not on any more says nothing."""
        status = "ACTIVE" if port.up else "DOWN"
        known = self._database.get(PORT, port.id)
        if known is not None and known.binding_host_id == host and known.status != status:
            record = tx.require(PORT, port.id)
            record.status = status
            tx.put(PORT, record)
        return ""

    async def gone(self, host: str, gone: Gone) -> None:
        return None
