"""What hosts shall have of servers: one HostServer for each that is placed there, its deletion included.

Computed from the cache alone. What changes an object is the server's generation or its host, so only these wake hosts up.
"""
import functools
from collections.abc import Callable, Iterable, Sequence

from control.compute.model import ABSENT, SERVER
from control.compute.neighbours import Ports
from control.kernel import fleet
from control.kernel.cache import Change
from control.kernel.database import Database
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
                and before.desired.generation == after.desired.generation):  # type: ignore[attr-defined]
            return ()
        return {server.host for server in (before, after) if server is not None and server.host}  # type: ignore[attr-defined]

    def shared_by(self, change: Change) -> Iterable[str]:
        return ()

    def hosts_sharing(self, name: str) -> Iterable[str]:
        return ()

    def parts_for(self, host: str) -> Sequence[tuple[str, int, Callable[[], HostObject]]]:
        cache = self._database.cache
        record = cache.get(fleet.HOST, host)
        place = cache.at(fleet.HOST, fleet.HOST.key(host))[0], cache.at(fleet.AGGREGATE_SEQUENCE, _SEQUENCE)[0]
        zone = fleet.zone_of(self._database, record) if record is not None else ""
        parts = []
        for server in cache.by(SERVER, "host", host):
            ports, groups = self._ports.ids(server.id), self._ports.security_groups(server.id)
            version = hash((cache.at(SERVER, SERVER.key(server.id))[0], place, *ports, *groups))
            parts.append((f"server/{server.id}", version, functools.partial(_object, server, ports, groups, zone)))
        return parts

    def objects_for(self, host: str) -> list[HostObject]:
        """Every object that the host shall have now."""
        return [make() for _, _, make in self.parts_for(host)]


def _object(server: ServerRecord, ports: Sequence[str], groups: Sequence[str], zone: str) -> HostObject:
    wanted = server.desired
    return HostObject(key=f"server/{server.id}", server=HostServer(
        id=server.id, generation=wanted.generation, power=ABSENT if wanted.deleted else wanted.power, reboots=wanted.reboots,
        reboot_soft=wanted.reboot_soft, vcpus=server.flavor.vcpus, ram_mib=server.flavor.ram_mib,
        disk_gib=server.flavor.disk_gib, image=server.image, port_ids=ports, config_drive=server.config_drive, name=server.name,
        guest=GuestData(
            uuid=server.id, name=server.name, hostname=server.hostname, project_id=server.project_id,
            availability_zone=zone or server.availability_zone, launch_index=server.launch_index, metadata=server.metadata,
            user_data=server.user_data, keys=[server.key] if server.HasField("key") else [],
            instance_type=server.flavor.name, reservation_id=server.reservation_id, security_groups="\n".join(groups),
            created=server.created_at.ToJsonString())))
