"""What hosts shall have of servers: one HostServer for each that is placed there, is on its way there, or has left something.

Computed from the cache alone. What changes an object is the server's generation, its host or its way to another one, so only
these wake hosts up.
"""
import functools
from collections.abc import Callable, Iterable, Sequence

from control.compute import model
from control.compute.model import ABSENT, SERVER, STOPPED
from control.compute.neighbours import Ports
from control.kernel import fleet
from control.kernel.cache import Change
from control.kernel.database import Database
from control.kernel.interfaces import DiskMove
from protos.compute.v1.records_pb2 import ServerRecord
from protos.internal.v1.hosts_pb2 import GuestData, HostObject, HostServer

#: The one record that changes with every aggregate, and with it the zones of hosts.
_SEQUENCE = fleet.AGGREGATE_SEQUENCE.key("last")


class Projection:
    """control.hosts.neighbours.Projection for servers."""

    def __init__(self, database: Database, ports: Ports):
        self._database = database
        self._ports = ports

    def hosts_of(self, change: Change) -> Iterable[str]:
        if change.kind is not SERVER:
            return ()
        before, after = change.before, change.after
        if (before is not None and after is not None and before.host == after.host  # type: ignore[attr-defined]
                and before.desired.generation == after.desired.generation  # type: ignore[attr-defined]
                and _elsewhere(before) == _elsewhere(after)):  # type: ignore[arg-type]
            return ()
        return {host for server in (before, after) if server is not None
                for host in (server.host, *model.visited(server)) if host}  # type: ignore[attr-defined, arg-type]

    def shared_by(self, change: Change) -> Iterable[str]:
        return ()

    def hosts_sharing(self, name: str) -> Iterable[str]:
        return ()

    def parts_for(self, host: str) -> Sequence[tuple[str, int | None, Callable[[], HostObject]]]:
        cache = self._database.cache
        record = cache.get(fleet.HOST, host)
        place = cache.at(fleet.HOST, fleet.HOST.key(host))[0], cache.at(fleet.AGGREGATE_SEQUENCE, _SEQUENCE)[0]
        zone = fleet.zone_of(self._database, record) if record is not None else ""
        parts: list[tuple[str, int | None, Callable[[], HostObject]]] = []
        for server in (*cache.by(SERVER, "host", host), *cache.by(SERVER, "visited", host)):
            ports, groups = self._ports.ids(server.id), self._ports.security_groups(server.id)
            version = hash((cache.at(SERVER, SERVER.key(server.id))[0], place, *ports, *groups))
            if server.host == host:
                make = functools.partial(_object, server, ports, groups, zone)
            elif host in server.leftovers:
                make = functools.partial(_leftover, server)
            elif model.disk_waits(server):
                make = functools.partial(_arrival, server, ports, groups, zone)
            else:
                continue
            parts.append((f"server/{server.id}", version, make))
        return parts

    def objects_for(self, host: str) -> list[HostObject]:
        """Every object that the host shall have now."""
        return [make() for _, _, make in self.parts_for(host)]

    def disk_move(self, server_id: str) -> DiskMove | None:
        """control.hosts.neighbours.DiskMoves, by shape."""
        server = self._database.get(SERVER, server_id)
        if server is None or not model.disk_waits(server):
            return None
        return DiskMove(server.relocation.id, server.host, server.relocation.target)


def _leftover(server: ServerRecord) -> HostObject:
    """What a host shall have of a server that left it: nothing."""
    return HostObject(key=f"server/{server.id}", server=HostServer(
        id=server.id, generation=server.desired.generation, power=ABSENT))


def _arrival(server: ServerRecord, ports: Sequence[str], groups: Sequence[str], zone: str) -> HostObject:
    """What the host shall have that a server moves to: its disk."""
    wish = _object(server, ports, groups, zone)
    wish.server.arriving.id = server.relocation.id
    return wish


def _object(server: ServerRecord, ports: Sequence[str], groups: Sequence[str], zone: str) -> HostObject:
    wanted = server.desired
    return HostObject(key=f"server/{server.id}", server=HostServer(
        id=server.id, generation=wanted.generation, power=_power(server), reboots=wanted.reboots,
        reboot_soft=wanted.reboot_soft, vcpus=server.flavor.vcpus, ram_mib=server.flavor.ram_mib,
        disk_gib=server.flavor.disk_gib, image=server.image, port_ids=ports, config_drive=server.config_drive, name=server.name,
        request_ids=wanted.request_ids, traceparent=wanted.traceparent, guest=GuestData(
            uuid=server.id, name=server.name, hostname=server.hostname, project_id=server.project_id,
            availability_zone=zone or server.availability_zone, launch_index=server.launch_index, metadata=server.metadata,
            user_data=server.user_data, keys=[server.key] if server.HasField("key") else [],
            instance_type=server.flavor.name, reservation_id=server.reservation_id, security_groups="\n".join(groups),
            created=server.created_at.ToJsonString())))


def _power(server: ServerRecord) -> HostServer.Power:
    if server.desired.deleted:
        return ABSENT
    return STOPPED if model.leaving(server) else server.desired.power


def _elsewhere(server: ServerRecord) -> tuple[object, ...]:
    """What a server's record says of hosts that are not its own."""
    if not server.HasField("relocation") and not server.leftovers:
        return ()
    return *server.leftovers, server.relocation.id, server.relocation.target, model.disk_waits(server)
