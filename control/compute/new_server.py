"""From a create request to the record that its servers start from, with every field checked.

Nothing is written here: what comes out is a draft, whose servers differ by id, name and launch index only.
"""
import base64
import binascii
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.struct_pb2 import Value

from control.compute import access, hints, limits, model
from control.compute.demand import Settings
from control.compute.neighbours import Images, PortRequest, Ports
from control.compute.wanted import wanted as wanted_place
from control.kernel import fleet
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Denied, Invalid
from protos.compute.v1.records_pb2 import FlavorRecord, ServerRecord
from protos.compute.v1.servers_pb2 import CreateServerRequest, NewServer
from protos.image.v1.images_pb2 import Image
from protos.internal.v1.hosts_pb2 import BootImage

#: Properties of an image that a host acts on, or that say which host may.
HOST_PROPERTIES = ("hw_", "os_type", "os_distro", "os_command_line", "img_", "trait:")


@dataclass(frozen=True)
class Draft:
    """What every server of one request has in common, and how many are wanted."""

    server: ServerRecord
    ports: list[PortRequest]
    security_groups: list[str]
    least: int
    most: int
    password: str

    def nth(self, index: int, server_id: str) -> ServerRecord:
        """The server of a launch index."""
        server = ServerRecord()
        server.CopyFrom(self.server)
        server.id = server_id
        server.launch_index = index
        if self.most > 1:
            server.name = f"{self.server.name[:limits.MAX_TEXT - 5]}-{index + 1}"
            if server.hostname:
                server.hostname = limits.hostname(f"{server.hostname}-{index + 1}")
        server.hostname = server.hostname or limits.hostname_of(server.name, server_id)
        return server


def draft(request: CreateServerRequest, caller: Caller, database: Database, images: Images, ports: Ports,
          settings: Settings) -> Draft:
    """Check a create request. Raises Invalid, NotFound, Denied, Conflict or Exhausted where it cannot be carried out."""
    new = request.server
    if not caller.project_id:
        raise Invalid("compute.server.project", "A server belongs to a project: use a token that is scoped to one.")
    group, scheduler_hints = hints.read(request, caller, database)
    least, most = _counts(new)
    flavor = flavor_for(database, caller, new.flavor)
    server = ServerRecord(
        project_id=caller.project_id, user_id=caller.user_id, name=limits.name(new.name, "server"),
        hostname=limits.hostname(new.hostname) if new.HasField("hostname") else "",
        image=boot_image(images, caller, _image_id(new), flavor), flavor=flavor,
        metadata=limits.metadata(new.metadata, access.limit(database, caller.project_id, "metadata_items")),
        tags=limits.tags(new.tags), user_data=_user_data(new),
        config_drive=new.config_drive, disk_config=limits.disk_config(new.disk_config),
        access_ip_v4=limits.address(new.access_ip_v4, 4), access_ip_v6=limits.address(new.access_ip_v6, 6),
        reservation_id=f"r-{secrets.token_hex(4)}", server_group=group, hints=scheduler_hints)
    if new.HasField("description"):
        server.description = limits.text(new.description, "description")
    if new.HasField("key_name") and new.key_name:
        pair = database.get(model.KEYPAIR, caller.user_id, new.key_name)
        if pair is None:
            raise Invalid("compute.server.key_name", f"Invalid key_name provided: you have no key pair {new.key_name[:80]!r}.")
        server.key.name, server.key.type, server.key.data = pair.name, pair.type, pair.public_key
    _refuse_unsupported(new)
    _set_place(server, new, caller, database)
    wanted_place(database, server, settings)             # refused here rather than when it is placed
    wanted = port_requests(new.networks) if new.HasField("networks") else None
    if wanted is None:
        wanted = ports.automatic(caller)
    if most > 1 and any(port.port_id or port.fixed_ip for port in wanted):
        raise Invalid("compute.server.networks", "Several servers cannot share a port or an address: ask for one server, or "
                                                 "name networks.")
    groups = [limits.text(group.name, "security_groups.name") for group in new.security_groups]
    return Draft(server, wanted, groups, least, most, limits.text(new.password, "adminPass") or secrets.token_urlsafe(9))


def flavor_for(database: Database, caller: Caller, flavor_id: str) -> FlavorRecord:
    """A flavor that the caller's project may use. Raises Invalid without."""
    flavor = database.get(model.FLAVOR, flavor_id)
    if flavor is None or not (flavor.is_public or caller.is_admin or caller.project_id in flavor.projects):
        raise Invalid("compute.server.flavorRef", f"Flavor {flavor_id[:80]!r} could not be found.")
    return flavor


def boot_image(images: Images, caller: Caller, image_id: str, flavor: FlavorRecord) -> BootImage:
    """An image as hosts boot it, with its kernel and ramdisk. Raises Invalid where it is none, or too big for the flavor."""
    image = images.bootable(caller, image_id)
    if flavor.ram_mib < image.min_ram:
        raise Invalid("compute.server.flavorRef", f"Flavor's memory is too small for requested image: {flavor.name} has "
                                                  f"{flavor.ram_mib} MiB, {image.name} needs {image.min_ram}.")
    if flavor.disk_gib and max(image.min_disk * 2**30, image.size, image.virtual_size) > flavor.disk_gib * 2**30:
        needed = max(image.min_disk, -(-max(image.size, image.virtual_size) // 2**30))
        raise Invalid("compute.server.flavorRef", f"Flavor's disk is too small for requested image: {flavor.name} has "
                                                  f"{flavor.disk_gib} GiB, {image.name} needs {needed}.")
    texts = {key: value.string_value for key, value in image.properties.items() if value.WhichOneof("kind") == "string_value"}
    if image.disk_format == "aki":
        boot = BootImage(id=image.id, kernel=_bytes_of(image))
    elif image.disk_format in ("qcow2", "raw", "ami"):
        boot = _bytes_of(image)
    else:
        raise Invalid("compute.server.imageRef", f"Image {image.id} has the disk format {image.disk_format}: servers boot from "
                                                 "qcow2, raw, ami and aki images. Convert it with qemu-img.")
    if texts.get("kernel_id"):
        boot.kernel.CopyFrom(_bytes_of(images.bootable(caller, texts["kernel_id"])))
    if texts.get("ramdisk_id"):
        boot.ramdisk.CopyFrom(_bytes_of(images.bootable(caller, texts["ramdisk_id"])))
    boot.kernel_arguments = texts.get("os_command_line", "")
    boot.properties.update({key: value for key, value in texts.items() if key.startswith(HOST_PROPERTIES)})
    return boot


def _bytes_of(image: Image) -> BootImage:
    disk_format = "raw" if image.disk_format in ("ami", "aki", "ari") else image.disk_format
    return BootImage(id=image.id, disk_format=disk_format, sha512=image.os_hash_value, size=image.size)


def port_requests(networks: Value) -> list[PortRequest] | None:
    """The interfaces that a `networks` asks for; None for "auto". Raises Invalid for any other shape than the API's."""
    match networks.WhichOneof("kind"):
        case "string_value" if networks.string_value in ("auto", "none"):
            return None if networks.string_value == "auto" else []
        case "null_value":
            return None
        case "list_value":
            pass
        case _:
            raise Invalid("compute.server.networks", "server.networks: expected 'auto', 'none' or a list of networks and ports.")
    rows = networks.list_value.values
    if len(rows) > limits.MAX_NETWORKS:
        raise Invalid("compute.server.networks", f"A server has at most {limits.MAX_NETWORKS} interfaces; {len(rows)} were "
                                                 "asked for.")
    wanted = [_port_request(index, row) for index, row in enumerate(rows)]
    named = [port.port_id for port in wanted if port.port_id]
    if len(named) != len(set(named)):
        raise Invalid("compute.server.networks", "server.networks names a port twice.")
    return wanted


def _port_request(index: int, row: Value) -> PortRequest:
    where = f"server.networks[{index}]"
    if row.WhichOneof("kind") != "struct_value":
        raise Invalid("compute.server.networks", f"{where}: expected an object with 'uuid' or 'port'.")
    items: dict[str, str] = {}
    for key, value in row.struct_value.fields.items():
        if key not in ("uuid", "port", "fixed_ip"):
            raise Invalid("compute.server.networks", f"{where}.{key}: unknown key; there are uuid, port and fixed_ip.")
        if value.WhichOneof("kind") == "null_value":
            continue
        if value.WhichOneof("kind") != "string_value":
            raise Invalid("compute.server.networks", f"{where}.{key}: expected a string.")
        items[key] = limits.text(value.string_value, f"{where}.{key}")
    if bool(items.get("uuid")) == bool(items.get("port")) and not items.get("port"):
        raise Invalid("compute.server.networks", f"{where}: name a network with 'uuid' or a port with 'port'.")
    if items.get("port") and items.get("fixed_ip"):
        raise Invalid("compute.server.networks", f"{where}: a port has its addresses already; leave out fixed_ip.")
    return PortRequest("" if items.get("port") else items["uuid"], items.get("port", ""), items.get("fixed_ip", ""))


def _counts(new: NewServer) -> tuple[int, int]:
    least = new.min_count if new.HasField("min_count") else 1
    most = new.max_count if new.HasField("max_count") else least
    if not 1 <= least <= most <= limits.MAX_SERVERS:
        raise Invalid("compute.server.count", f"min_count must be from 1 to max_count, and max_count at most "
                                              f"{limits.MAX_SERVERS}; not {least} and {most}.")
    return least, most


def _image_id(new: NewServer) -> str:
    """The image to boot: imageRef, or what the one block device that is taken names."""
    image_id = new.image
    for device in new.block_device_mapping_v2:
        fields: Mapping[str, object] = dict(device.items())
        index = fields.get("boot_index", 0)
        if (fields.get("source_type") != "image" or fields.get("destination_type", "local") != "local" or index not in (0, "0")
                or (image_id and fields.get("uuid") not in (None, image_id))):
            raise Invalid("compute.server.block_device_mapping_v2",
                          "Servers boot from an image's copy on their host; volumes cannot be attached yet. Leave out "
                          "block_device_mapping_v2, or give {boot_index: 0, source_type: image, destination_type: local, uuid}.")
        image_id = image_id or str(fields.get("uuid") or "")
    if not image_id:
        raise Invalid("compute.server.imageRef", "server.imageRef: name the image to boot from.")
    return limits.text(image_id, "imageRef")


def _user_data(new: NewServer) -> bytes:
    if not new.HasField("user_data"):
        return b""
    if len(new.user_data) > limits.MAX_USER_DATA:
        raise Invalid("compute.server.user_data", f"user_data must have at most {limits.MAX_USER_DATA} characters of base64, "
                                                  f"not {len(new.user_data)}.")
    try:
        return base64.b64decode("".join(new.user_data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Invalid("compute.server.user_data", "user_data must be base64.") from error


def _refuse_unsupported(new: NewServer) -> None:
    if new.personality:
        raise Invalid("compute.server.personality", "Files cannot be injected into servers: use user_data.")
    if new.trusted_image_certificates:
        raise Invalid("compute.server.certificates", "Images are not certified here: leave out trusted_image_certificates.")


def _set_place(server: ServerRecord, new: NewServer, caller: Caller, database: Database) -> None:
    """Note zone and host that were asked for. Raises Invalid for unknown ones, Denied for a host that a user names."""
    zone, *forced = new.availability_zone.split(":")
    if len(forced) > 2:
        raise Invalid("compute.server.availability_zone", "availability_zone is ZONE or ZONE:HOST:NODE, not "
                                                          f"{new.availability_zone[:80]!r}.")
    named = {name for name in (*forced, new.host, new.hypervisor_hostname) if name}
    if named and not caller.is_admin:
        raise Denied("compute.server.host", "Only an admin may choose the host of a server: leave it out.")
    if missing := sorted(name for name in named if database.get(fleet.HOST, name) is None):
        raise Invalid("compute.server.host", f"Compute host {missing[0][:80]!r} could not be found.")
    if len(named) > 1:
        raise Invalid("compute.server.host", f"A server is on one host, not on {' and '.join(sorted(named))}: a host is its own "
                                             "node.")
    if zone not in ("", fleet.DEFAULT_ZONE) and all(
            zone != fleet.zone_of(database, record) for record in database.rows(fleet.HOST)):
        raise Invalid("compute.server.availability_zone", f"The requested availability zone {zone[:80]!r} is not available.")
    server.availability_zone, server.forced_host = zone, next(iter(named), "")
