"""A server's record as clients see it, with what its network, host and image add."""
import base64
from collections.abc import Callable, Iterable

from google.protobuf.struct_pb2 import ListValue

from control.compute import model
from control.compute.neighbours import Address, Ports
from control.kernel import fleet
from control.kernel.database import Database
from control.kernel.rpc import Call
from protos.compute.v1 import servers_pb2 as pb
from protos.compute.v1.records_pb2 import ServerRecord

#: Statuses that are shown with a progress.
_PROGRESSING = frozenset({"ACTIVE", "BUILD"})


def by_network(addresses: Iterable[Address], extended: bool) -> dict[str, ListValue]:
    """Addresses by the name of their network; `extended` with type and MAC."""
    networks: dict[str, ListValue] = {}
    for address in addresses:
        row = networks.setdefault(address.network, ListValue()).values.add().struct_value.fields
        row["version"].number_value, row["addr"].string_value = address.version, address.ip
        if extended:
            row["OS-EXT-IPS:type"].string_value, row["OS-EXT-IPS-MAC:mac_addr"].string_value = address.type, address.mac
    return networks


class Views:
    """Makes answers from records. Reads the cache only."""

    def __init__(self, database: Database, ports: Ports):
        self._database = database
        self._ports = ports

    def state(self, server: ServerRecord) -> model.State:
        return model.derive(server, self.host_is_up(server))

    def host_is_up(self, server: ServerRecord) -> bool:
        host = self._database.get(fleet.HOST, server.host) if server.host else None
        return host is not None and host.up

    def zone(self, server: ServerRecord) -> str:
        """The zone of a server's host; without a host the one it asked for."""
        host = self._database.get(fleet.HOST, server.host) if server.host else None
        return fleet.zone_of(self._database, host) if host is not None else server.availability_zone

    def _groups(self, server: ServerRecord) -> list[str]:
        """The group that a server is in, while there is that group."""
        group = self._database.get(model.SERVER_GROUP, server.server_group) if server.server_group else None
        return [group.id] if group is not None else []

    def server(self, server: ServerRecord, call: Call, make: Callable[..., pb.Server] = pb.Server) -> pb.Server:
        """Everything that the caller may see of a server; `make` may be the `add` of a list that it is to be in."""
        host = self._database.get(fleet.HOST, server.host) if server.host else None
        host_up = host is not None and host.up
        state = model.derive(server, host_up)
        view = make(
            id=server.id, name=server.name, status=state.status, tenant_id=server.project_id, user_id=server.user_id,
            created=server.created_at, updated=server.updated_at, metadata=server.metadata, host_hash=model.host_hash(server),
            image=pb.ServerImage(id=server.image.id), flavor=self._flavor(server),
            addresses=by_network(self._ports.addresses(server.id), extended=True), access_ip_v4=server.access_ip_v4,
            access_ip_v6=server.access_ip_v6, disk_config=server.disk_config,
            availability_zone=fleet.zone_of(self._database, host) if host is not None else server.availability_zone,
            config_drive="True" if server.config_drive else "", key_name=server.key.name or None,
            launched_at=server.launched_at if server.HasField("launched_at") else None,
            security_groups=[pb.GroupName(name=name) for name in self._ports.security_groups(server.id)],
            task_state=state.task_state or None, vm_state=state.vm_state, power_state=state.power_state, locked=server.locked,
            locked_reason=server.locked_reason or None, tags=server.tags,
            description=server.description if server.HasField("description") else None,
            pinned_availability_zone=server.availability_zone or None, server_groups=self._groups(server))
        if state.status in _PROGRESSING:
            view.progress = 0
        if server.HasField("fault"):
            view.fault.code, view.fault.message = server.fault.code, server.fault.message
            view.fault.created.CopyFrom(server.fault.created_at)
        if call.caller.is_admin:
            self._add_for_admin(view, server, host_up)
        if call.caller.is_admin or call.microversion is None or call.microversion >= (2, 90):
            view.hostname = server.hostname
        return view

    def _add_for_admin(self, view: pb.Server, server: ServerRecord, host_up: bool) -> None:
        if server.host:
            view.host = view.hypervisor_hostname = server.host
        view.host_status = ("UP" if host_up else "DOWN") if server.host else ""
        view.instance_name = f"instance-{server.id[:8]}"
        view.reservation_id, view.launch_index = server.reservation_id, server.launch_index
        view.kernel_id, view.ramdisk_id = server.image.kernel.id, server.image.ramdisk.id
        view.root_device_name = "/dev/vda"
        if server.user_data:
            view.user_data = base64.b64encode(server.user_data).decode()
        if server.HasField("fault"):
            view.fault.details = server.fault.details

    @staticmethod
    def _flavor(server: ServerRecord) -> pb.ServerFlavor:
        flavor = server.flavor
        return pb.ServerFlavor(
            id=flavor.id, links=[pb.Link(rel="bookmark", href=f"/flavors/{flavor.id}")], original_name=flavor.name,
            vcpus=flavor.vcpus, ram=flavor.ram_mib, disk=flavor.disk_gib, ephemeral=flavor.ephemeral_gib, swap=flavor.swap_mib,
            extra_specs=flavor.extra_specs)
