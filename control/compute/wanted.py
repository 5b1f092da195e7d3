"""What servers need of hosts, from the state as it is: where `demand` gets its aggregates, groups and hosts from."""
import logging

from control.compute import model
from control.compute.demand import Settings, demand, server_group
from control.kernel import fleet
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.fleet import Wanted
from protos.compute.v1.records_pb2 import ServerRecord
from scheduler.types import Request, ServerGroup, Shape

log = logging.getLogger(__name__)


def wanted(reads: Database | Transaction, server: ServerRecord, settings: Settings) -> Wanted:
    """What a server needs. Raises Invalid as `demand` does."""
    def host_of(server_id: str) -> str:
        other = reads.get(model.SERVER, server_id)
        return other.host if other is not None else ""

    request, group = demand(
        server, settings=settings, aggregates=reads.rows(fleet.AGGREGATE), host_of=host_of,
        group=reads.get(model.SERVER_GROUP, server.server_group) if server.server_group else None)
    return Wanted(request, group, server.project_id, server.user_id)


class Demands:
    """What placement asks of compute (control.placement.neighbours.Demands, by shape)."""

    def __init__(self, database: Database, settings: Settings | None = None):
        self._database = database
        self._settings = settings or Settings()

    def demand_of(self, server_id: str) -> tuple[Request, ServerGroup | None] | None:
        """What a server needs and its group; None for what is no server, or asks for what this cloud no longer has."""
        server = self._database.get(model.SERVER, server_id)
        if server is None:
            return None
        try:
            need = wanted(self._database, server, self._settings)
        except Invalid as error:
            log.warning("server %s: %s", server_id, error)
            return None
        return need.request, need.group

    def group_of(self, server_id: str) -> ServerGroup | None:
        """The group of a server; None for one without, and for what is no server."""
        server = self._database.get(model.SERVER, server_id)
        if server is None or not server.server_group:
            return None
        group = self._database.get(model.SERVER_GROUP, server.server_group)
        return server_group(group) if group is not None else None

    def groups(self) -> dict[str, ServerGroup]:
        """The group of every server that has one, by the server's id."""
        return {server.id: group for record in self._database.rows(model.SERVER_GROUP) for group in (server_group(record),)
                for server in self._database.rows(model.SERVER, "group", record.id)}

    def life_of(self, server_id: str) -> tuple[str, str, int, int] | None:
        """Of a server flavor, project, when it was made and when its hint says that it ends, 0 where it says none."""
        server = self._database.get(model.SERVER, server_id)
        if server is None:
            return None
        born, lifetime = server.created_at.seconds, server.hints.lifetime_seconds
        return server.flavor.id, server.project_id, born, born + lifetime if lifetime else 0

    def shape_of(self, flavor: str) -> Shape | None:
        """What a server of a flavor, by id or name, asks for, image and hints aside; None where there is no such flavor.

        Raises Invalid where the flavor asks for what cannot be.
        """
        named = self._database.get(model.FLAVOR_NAME, flavor)
        record = self._database.get(model.FLAVOR, named.flavor_id if named is not None else flavor)
        if record is None:
            return None
        return wanted(self._database, ServerRecord(flavor=record), self._settings).request.shape
