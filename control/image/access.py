"""Who may see, use and change which image.

A caller sees an image that is public, a community's, its project's own, or shared with its project; only the owner's project
and admins change it. What a caller may not see is not there for it.
"""
from control.image.formats import WRAPPED
from control.image.model import IMAGE, MEMBER
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Denied, Invalid, NotFound
from protos.image.v1.images_pb2 import Image
from protos.image.v1.members_pb2 import Member
from protos.image.v1.records_pb2 import ImageRecord


def missing(image_id: str) -> NotFound:
    return NotFound("image.images.missing", f"No image found with ID {image_id}")


def owns(caller: Caller, image: Image) -> bool:
    """Whether the caller may change the image."""
    return caller.is_admin or (bool(caller.project_id) and image.owner == caller.project_id)


def membership(source: Database | Transaction, caller: Caller, image_id: str) -> Member | None:
    return source.get(MEMBER, image_id, caller.project_id) if caller.project_id else None


def visible(source: Database | Transaction, caller: Caller, image: Image) -> bool:
    """Whether the caller may see and use the image when it names it."""
    if owns(caller, image) or image.visibility in (Image.PUBLIC, Image.COMMUNITY):
        return True
    return image.visibility == Image.SHARED and membership(source, caller, image.id) is not None


def seen(source: Database | Transaction, caller: Caller, image_id: str) -> ImageRecord:
    """The record of an image that the caller may see; a copy, if the source is a transaction. Raises NotFound."""
    record = source.get(IMAGE, image_id)
    if record is None or not visible(source, caller, record.image):
        raise missing(image_id)
    return record


def owned(source: Database | Transaction, caller: Caller, image_id: str) -> ImageRecord:
    """As seen(), for one who will change it. Raises Denied where the caller may see it, but not that."""
    record = seen(source, caller, image_id)
    if not owns(caller, record.image):
        raise Denied("image.images.owner", f"You are not permitted to change image {image_id}: it is another project's.")
    return record


def bootable(source: Database | Transaction, caller: Caller, image_id: str) -> Image:
    """The image, if the caller may boot from it now. Raises Invalid."""
    record = source.get(IMAGE, image_id)
    if record is None or not visible(source, caller, record.image):
        raise Invalid("image.images.missing", f"Image {image_id} could not be found.")
    if record.image.status != Image.ACTIVE:
        status = Image.Status.Name(record.image.status).lower()
        raise Invalid("image.images.status", f"Image {image_id} is not active: it is {status}.")
    if record.image.container_format in WRAPPED:
        raise Invalid("image.images.container", f"Image {image_id} is in a container of format {record.image.container_format}, "
                                                "from which no server can be made.")
    return record.image
