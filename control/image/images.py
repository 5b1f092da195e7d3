"""The servicer of images' records: create, list, show, change, delete, tags, and in or out of use."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.image import access, model, patch, query
from control.image.model import IMAGE, MEMBER
from control.kernel import clock, listing, quota
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, NotFound
from control.kernel.rpc import Call
from protos.image.v1 import images_pb2 as pb
from protos.image.v1.images_pb2 import Image
from protos.image.v1.records_pb2 import ImageRecord


class Images:
    """Serves image.v1.Images."""

    def __init__(self, database: Database):
        self._database = database

    async def CreateImage(self, request: pb.CreateImageRequest, call: Call) -> Image:
        caller, given = call.caller, frozenset(path.partition(".")[0] for path in request.update_mask.paths)
        image = model.new_image(request.image, given, str(uuid.uuid4()), caller.project_id, caller.is_admin, clock.now())

        def decide(tx: Transaction) -> Image:
            if tx.get(IMAGE, image.id) is not None:
                raise Conflict("image.images.id", f"Image ID {image.id} already exists!")
            quota.charge(tx, model.QUOTA, image.owner, model.QUOTAS, image_count_total=1)
            record = ImageRecord(image=image)
            tx.put(IMAGE, record)
            return model.shown(record)

        return await self._database.transact(decide, serial=quota.serial(model.QUOTA, image.owner))

    async def ListImages(self, request: pb.ListImagesRequest, call: Call) -> pb.ListImagesResponse:
        caller, cache = call.caller, self._database.cache
        memberships = {member.image_id: member.status for member in cache.by(MEMBER, "project", caller.project_id)}
        filters: dict[str, list[str]] = {}
        for parameter in request.filters:
            filters.setdefault(parameter.key, []).extend(parameter.values)
        rows = query.select(cache.all(IMAGE), caller, memberships, filters)
        page, marker = listing.page(rows, limit=request.limit, marker=request.marker, id_of=lambda record: record.image.id,
                                    sort=query.order(request.sort, request.sort_key, request.sort_dir))
        return pb.ListImagesResponse(images=map(model.shown, page), next_page_marker=marker, schema="/v2/schemas/images")

    async def GetImage(self, request: pb.GetImageRequest, call: Call) -> Image:
        return model.shown(access.seen(self._database, call.caller, request.image_id))

    async def UpdateImage(self, request: pb.UpdateImageRequest, call: Call) -> Image:
        now = clock.now()

        def decide(tx: Transaction) -> Image:
            record = access.owned(tx, call.caller, request.image_id)
            visibility, owner = record.image.visibility, record.image.owner
            patch.apply(record.image, request.operations, call.caller.is_admin)
            model.check(record.image, call.caller.is_admin, was=visibility)
            if record.image.owner != owner:
                _change_owner(tx, record, owner)
            record.image.updated_at.CopyFrom(now)
            tx.put(IMAGE, record)
            return model.shown(record)

        return await self._database.transact(decide)

    async def DeleteImage(self, request: pb.DeleteImageRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            record = access.owned(tx, call.caller, request.image_id)
            model.check_deletable(record.image)
            quota.charge(tx, model.QUOTA, record.image.owner, model.QUOTAS,
                         image_count_total=-1, image_size_total=-model.charged(record))
            for member in tx.rows(MEMBER, "image", record.image.id):
                tx.delete(MEMBER, member.image_id, member.member_id)
            tx.delete(IMAGE, record.image.id)
            model.let_go(tx.put, record)

        owner = access.owned(self._database, call.caller, request.image_id).image.owner
        await self._database.transact(decide, serial=quota.serial(model.QUOTA, owner))
        return Empty()

    async def AddImageTag(self, request: pb.AddImageTagRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            record = access.owned(tx, call.caller, request.image_id)
            if request.tag not in record.image.tags:
                record.image.tags.append(request.tag)
                self._put_changed(tx, record, call)

        await self._database.transact(decide)
        return Empty()

    async def RemoveImageTag(self, request: pb.RemoveImageTagRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            record = access.owned(tx, call.caller, request.image_id)
            if request.tag not in record.image.tags:
                raise NotFound("image.tags.missing", f"Image {request.image_id} does not have the tag {request.tag[:255]}.")
            record.image.tags.remove(request.tag)
            self._put_changed(tx, record, call)

        await self._database.transact(decide)
        return Empty()

    async def DeactivateImage(self, request: pb.DeactivateImageRequest, call: Call) -> Empty:
        return await self._set_status(request.image_id, Image.DEACTIVATED, call)

    async def ReactivateImage(self, request: pb.ReactivateImageRequest, call: Call) -> Empty:
        return await self._set_status(request.image_id, Image.ACTIVE, call)

    async def _set_status(self, image_id: str, status: int, call: Call) -> Empty:
        now = clock.now()

        def decide(tx: Transaction) -> None:
            record = access.owned(tx, call.caller, image_id)
            if model.change_status(record.image, status, now):
                tx.put(IMAGE, record)

        await self._database.transact(decide)
        return Empty()

    def _put_changed(self, tx: Transaction, record: ImageRecord, call: Call) -> None:
        model.tidy_tags(record.image)
        model.check(record.image, call.caller.is_admin, was=record.image.visibility)
        record.image.updated_at.CopyFrom(clock.now())
        tx.put(IMAGE, record)


def _change_owner(tx: Transaction, record: ImageRecord, before: str) -> None:
    """Move what the image uses of the quota to its new owner."""
    size = model.charged(record)
    quota.charge(tx, model.QUOTA, before, model.QUOTAS, image_count_total=-1, image_size_total=-size)
    quota.charge(tx, model.QUOTA, record.image.owner, model.QUOTAS, image_count_total=1, image_size_total=size)
