"""What images are: their kinds, the bounds of their fields, new records and changes of status, without I/O."""
import re
from collections.abc import Callable, Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from control.image.formats import CONTAINER_FORMATS, DISK_FORMATS
from control.kernel.cache import Kind
from control.kernel.errors import Conflict, Denied, Invalid
from protos.image.v1.images_pb2 import Image
from protos.image.v1.members_pb2 import Member
from protos.image.v1.records_pb2 import Garbage, ImageRecord

IMAGE: Kind[ImageRecord] = Kind("/image/images/", ImageRecord, id_of=lambda record: (record.image.id,), indexes={
    "owner": lambda record: [record.image.owner],
    "file": lambda record: [record.file] if record.file else [],
    "sha512": lambda record: [record.image.os_hash_value] if record.image.status == Image.ACTIVE else [],
})
MEMBER: Kind[Member] = Kind("/image/members/", Member, id_of=lambda member: (member.image_id, member.member_id), indexes={
    "image": lambda member: [member.image_id],
    "project": lambda member: [member.member_id],
})
GARBAGE: Kind[Garbage] = Kind("/image/garbage/", Garbage)
KINDS = (IMAGE, MEMBER, GARBAGE)

QUOTA = "image"
#: Limits of a project without its own: images, and bytes of data.
QUOTAS: Mapping[str, int] = {"image_count_total": 1000, "image_size_total": 2**40}

#: Bounds of what one record may hold; together with MAX_RECORD they keep it well below what the store takes.
MAX_NAME, MAX_TAG, MAX_TAGS, MAX_PROPERTIES, MAX_VALUE, MAX_MEMBERS = 255, 255, 128, 128, 65_535, 100
MAX_RECORD = 256 * 1024
MAX_NUMBER = 2**31 - 1

_UUID = re.compile(r"[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")

#: Fields that a request may set; every other one is the service's.
SETTABLE = frozenset({"id", "name", "visibility", "protected", "disk_format", "container_format", "owner", "min_disk", "min_ram",
                      "tags", "os_hidden", "properties"})
#: Names that no property may have: they mean, or meant, something else in the API.
RESERVED = frozenset({"locations", "direct_url", "stores", "deleted", "deleted_at", "links", "update_mask", "properties"})


def new_image(asked: Image, given: frozenset[str], image_id: str, project_id: str, is_admin: bool, now: Timestamp) -> Image:
    """The image that a request asks for, queued. Raises Invalid or Denied.

    Args:
      given: names of the fields that the request had, null ones too.
      image_id: the id, where the request does not choose it.
      project_id, is_admin: the caller's.
    """
    for field in sorted(given | {field.name for field, _ in asked.ListFields()}):
        if field not in SETTABLE:
            raise Denied("image.images.read_only", f"Attribute '{field}' is read-only.")
    image = Image()
    image.CopyFrom(asked)
    image.id = asked.id or image_id
    image.status = Image.QUEUED
    image.visibility = asked.visibility or Image.SHARED
    if not image.owner and project_id:
        image.owner = project_id
    if not is_admin and image.owner != project_id:
        raise Denied("image.images.owner", "You are not permitted to create images owned by another project.")
    for name in [name for name, value in image.properties.items() if value.HasField("null_value")]:
        del image.properties[name]
    tidy_tags(image)
    image.created_at.CopyFrom(now)
    image.updated_at.CopyFrom(now)
    check(image, is_admin, was=Image.SHARED)
    return image


def check(image: Image, is_admin: bool, was: int) -> None:
    """Raise Invalid or Denied where a field is out of its bounds. `was`: the visibility before."""
    if not _UUID.fullmatch(image.id):
        raise Invalid("image.images.id", f"An image's id must be a UUID, not {image.id[:80]!r}.")
    if image.visibility == Image.PUBLIC != was and not is_admin:
        raise Denied("image.images.public", "You are not permitted to make an image public: that is for admins. "
                                            "Use visibility shared or community.")
    _at_most("name", len(image.name), MAX_NAME, "characters")
    _at_most("owner", len(image.owner), MAX_NAME, "characters")
    _one_of("disk_format", image.disk_format, DISK_FORMATS)
    _one_of("container_format", image.container_format, CONTAINER_FORMATS)
    formats = {image.disk_format, image.container_format} - {""}
    if len(formats) == 2 and formats & {"ami", "aki", "ari"}:
        raise Invalid("image.images.format", f"disk_format {image.disk_format} and container_format {image.container_format} "
                                             "must be the same where one is ami, aki or ari.")
    for name in ("min_disk", "min_ram"):
        if not 0 <= getattr(image, name) <= MAX_NUMBER:
            raise Invalid(f"image.images.{name}", f"{name} must be from 0 to {MAX_NUMBER}.")
    _at_most("tags", len(image.tags), MAX_TAGS, "tags")
    for tag in image.tags:
        _at_most("tag", len(tag), MAX_TAG, "characters")
        if not tag:
            raise Invalid("image.images.tag", "A tag must not be empty.")
    _at_most("properties", len(image.properties), MAX_PROPERTIES, "properties")
    for name, value in image.properties.items():
        check_property_name(name)
        if not value.HasField("string_value"):
            raise Invalid("image.images.property", f"Property {name!r} must be a string.")
        _at_most(name, len(value.string_value), MAX_VALUE, "characters")
    if image.ByteSize() > MAX_RECORD:
        raise Invalid("image.images.size", f"The image's properties take {image.ByteSize()} bytes; {MAX_RECORD} are allowed.")


def check_property_name(name: str) -> None:
    if not name or len(name) > MAX_NAME:
        raise Invalid("image.images.property", f"A property's name must have 1 to {MAX_NAME} characters.")
    if name in RESERVED or name in Image.DESCRIPTOR.fields_by_name or name in ("self",) or name.startswith("os_glance"):
        raise Denied("image.images.reserved", f"Attribute '{name}' is reserved.")


def tidy_tags(image: Image) -> None:
    tags = sorted(set(image.tags))
    del image.tags[:]
    image.tags.extend(tags)


def check_deletable(image: Image) -> None:
    if image.protected:
        raise Denied("image.images.protected", f"Image {image.id} is protected and cannot be deleted: unprotect it first.")


def change_status(image: Image, wanted: int, now: Timestamp) -> bool:
    """Deactivate or reactivate; whether anything changed. Raises Conflict for an image without data."""
    if image.status not in (Image.ACTIVE, Image.DEACTIVATED):
        raise Conflict("image.images.status", f"Image {image.id} has no data: it is {Image.Status.Name(image.status).lower()}.")
    if image.status == wanted:
        return False
    image.status = wanted  # type: ignore[assignment]
    image.updated_at.CopyFrom(now)
    return True


def shown(record: ImageRecord) -> Image:
    """The image as it is answered."""
    image = Image()
    image.CopyFrom(record.image)
    image.self_path = f"/v2/images/{image.id}"
    image.file = f"/v2/images/{image.id}/file"
    image.schema = "/v2/schemas/image"
    return image


def let_go(put: Callable[[Kind[Garbage], Garbage], None], record: ImageRecord) -> None:
    """Leave a record's file, if it has one, to the reconciler of its directory."""
    if record.file:
        put(GARBAGE, Garbage(id=record.file, directory_id=record.directory_id))
        record.file = record.directory_id = ""


def charged(record: ImageRecord) -> int:
    """Bytes of the record's data that its owner's ledger counts: complete ones, staged or in use."""
    return record.staged.size if record.HasField("staged") else record.image.size


def _at_most(name: str, number: int, limit: int, unit: str) -> None:
    if number > limit:
        raise Invalid(f"image.images.{name}", f"{name} has {number} {unit}, at most {limit} are allowed.")


def _one_of(name: str, value: str, values: tuple[str, ...]) -> None:
    if value and value not in values:
        raise Invalid(f"image.images.{name}", f"Invalid value '{value[:80]}' for {name}: it must be one of {', '.join(values)}.")
