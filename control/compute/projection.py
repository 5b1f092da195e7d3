"""What hosts shall have of servers: one HostServer for each that is placed there, its deletion included.

Computed from the cache alone. What changes an object is the server's generation or its host, so only these wake hosts up.
"""
from collections.abc import Iterable

from control.compute.model import ABSENT, SERVER
from control.compute.neighbours import Ports
from control.kernel import fleet
from control.kernel.cache import Change
from control.kernel.database import Database
from protos.compute.v1.records_pb2 import ServerRecord
from protos.internal.v1.hosts_pb2 import GuestData, HostObject, HostServer


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

    def objects_for(self, host: str) -> Iterable[HostObject]:
        return [HostObject(key=f"server/{server.id}", server=self._host_server(server))
                for server in self._database.cache.by(SERVER, "host", host)]

    def _host_server(self, server: ServerRecord) -> HostServer:
        wanted = server.desired
        return HostServer(
            id=server.id, generation=wanted.generation, power=ABSENT if wanted.deleted else wanted.power, reboots=wanted.reboots,
            reboot_soft=wanted.reboot_soft, vcpus=server.flavor.vcpus, ram_mib=server.flavor.ram_mib,
            disk_gib=server.flavor.disk_gib, image=server.image, port_ids=self._ports.ids(server.id),
            config_drive=server.config_drive, guest=self._guest(server), name=server.name,
            request_ids=wanted.request_ids, traceparent=wanted.traceparent)

    def _guest(self, server: ServerRecord) -> GuestData:
        host = self._database.get(fleet.HOST, server.host)
        return GuestData(
            uuid=server.id, name=server.name, hostname=server.hostname, project_id=server.project_id,
            availability_zone=fleet.zone_of(self._database, host) if host is not None else server.availability_zone,
            launch_index=server.launch_index, metadata=server.metadata, user_data=server.user_data,
            keys=[server.key] if server.HasField("key") else [], instance_type=server.flavor.name,
            reservation_id=server.reservation_id, security_groups="\n".join(self._ports.security_groups(server.id)),
            created=server.created_at.ToJsonString())
