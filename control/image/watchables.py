"""Images can be watched: who has one in their list."""
from collections.abc import Iterable

from control.image import model
from control.image.model import IMAGE, MEMBER
from control.kernel.watchable import EVERYBODY, Reader, Related, Watchable, project
from protos.image.v1.images_pb2 import Image
from protos.image.v1.members_pb2 import Member
from protos.image.v1.records_pb2 import ImageRecord


def watchables() -> list[Watchable]:
    """What users of images can watch."""
    members = Related(MEMBER, lambda reader, member: [IMAGE.key(member.image_id)], lambda member: member.status)
    return [Watchable("images", IMAGE, "/image.v1.Images/ListImages", lambda record, call: model.shown(record), audience=_listed,
                      related=[members])]


def _listed(reader: Reader, record: ImageRecord) -> Iterable[str] | None:
    """As query.select without filters: a community's image is in its owner's list alone, a hidden one in nobody's."""
    image = record.image
    if image.os_hidden:
        return None
    own = [project(image.owner)] if image.owner else []
    if image.visibility == Image.PUBLIC:
        return [EVERYBODY, *own]
    if image.visibility == Image.SHARED:
        return [*own, *(project(member.member_id) for member in reader.rows(MEMBER, "image", image.id)
                        if member.status == Member.ACCEPTED)]
    return own
