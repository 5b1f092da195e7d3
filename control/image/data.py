"""The servicer of images' data: uploads and downloads as streams, staging and import.

An upload is two commits with the file between them. The first names the file in the record; the second makes the image
active. Whatever stops it in between, here or by a crash, ends in reconciler.settle: queued again, without a file.
"""
import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from control.image import access, model, reconciler
from control.image.copies import Copies
from control.image.files import Directory, Incoming
from control.image.formats import WRAPPED
from control.image.model import IMAGE
from control.kernel import clock, quota
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Denied, Error, Invalid, TooLarge, Unavailable
from control.kernel.rpc import Call
from protos.image.v1 import data_pb2 as pb
from protos.image.v1.images_pb2 import Image
from protos.image.v1.records_pb2 import ImageRecord, StoredData

log = logging.getLogger(__name__)

#: Bytes that an image may have, where the operator sets no other limit.
MAX_SIZE = 64 * 2**30

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class ImageData:
    """Serves image.v1.ImageData."""

    def __init__(self, database: Database, directory: Directory, copies: Copies, max_size: int = MAX_SIZE):
        self._database = database
        self._directory = directory
        self._copies = copies
        self._max_size = max_size

    async def UploadImageData(self, requests: AsyncIterator[pb.UploadImageDataRequest], call: Call) -> Empty:
        return await self._receive(requests, call, Image.SAVING)

    async def StageImageData(self, requests: AsyncIterator[pb.UploadImageDataRequest], call: Call) -> Empty:
        return await self._receive(requests, call, Image.UPLOADING)

    async def ImportImage(self, request: pb.ImportImageRequest, call: Call) -> Empty:
        if request.method.name != "glance-direct":
            raise Invalid("image.import.method", f"Unknown import method '{request.method.name[:80]}':"
                                                 " only glance-direct is offered.")

        def decide(tx: Transaction) -> None:
            record = access.owned(tx, call.caller, request.image_id)
            if not record.HasField("staged"):
                raise Conflict("image.import.staged", f"Image {request.image_id} has no staged data to import: stage it first.")
            _activate(record, record.staged)
            record.ClearField("staged")
            tx.put(IMAGE, record)

        await self._database.transact(decide)
        return Empty()

    async def DownloadImageData(self, request: pb.DownloadImageDataRequest,
                                call: Call) -> AsyncIterator[pb.DownloadImageDataResponse]:
        record = access.seen(self._database, call.caller, request.image_id)
        image = record.image
        if image.status == Image.DEACTIVATED and not call.caller.is_admin:
            raise Denied("image.data.deactivated", f"Image {image.id} has been deactivated: it cannot be downloaded.")
        if image.status not in (Image.ACTIVE, Image.DEACTIVATED):
            call.status = 204
            yield pb.DownloadImageDataResponse()
            return
        start, length = _range(request.range, image.size)
        answer = pb.DownloadImageDataResponse(content_length=length)
        if length < image.size:
            call.status = 206
            answer.content_range = f"bytes {start}-{start + length - 1}/{image.size}"
        else:
            answer.checksum = image.checksum
        async for data in self._copies.read(record.file, start, length):
            answer.data = data
            yield answer
            answer = pb.DownloadImageDataResponse()
        if not length:
            yield answer

    async def _receive(self, requests: AsyncIterator[pb.UploadImageDataRequest], call: Call, status: int) -> Empty:
        first = await anext(requests, None)
        if first is None:
            raise Invalid("image.data.empty", "An upload must name its image.")
        name = f"{first.image_id}.{uuid.uuid4().hex[:12]}"
        expected = await self._check_room(first, call)
        incoming = await self._directory.begin(name)
        image_id = first.image_id
        committed = False
        try:
            record = await self._database.transact(lambda tx: self._claim(tx, call, image_id, name, status))
            inspected = "" if record.image.container_format in WRAPPED else record.image.disk_format
            stored = await incoming.receive(_pieces(first, requests), disk_format=inspected, limit=self._max_size,
                                            expected=expected)
            await self._database.transact(lambda tx: _keep(tx, image_id, name, stored),
                                          serial=quota.serial(model.QUOTA, record.image.owner))
            committed = True
        finally:
            # also when the call was cancelled: what follows must not be
            await asyncio.shield(self._end(incoming, image_id, name, committed))
        return Empty()

    async def _check_room(self, first: pb.UploadImageDataRequest, call: Call) -> int | None:
        """Bytes that will come, where the client says. Refuses what cannot be stored before any of it is taken."""
        _check_uploadable(access.owned(self._database, call.caller, first.image_id))
        sizes = {getattr(first, field) for field in ("size", "content_length") if first.HasField(field)}
        if len(sizes) > 1 or any(size < 0 for size in sizes):
            raise Invalid("image.data.size", "X-OpenStack-Image-Size is not the size of the body.")
        expected = sizes.pop() if sizes else None
        if expected is not None and expected > self._max_size:
            raise TooLarge("image.data.limit", f"The image has {expected} bytes, at most {self._max_size} are taken.")
        if expected is not None and expected > (free := await self._directory.free()):
            raise TooLarge("image.data.full", f"There is no room for the image data: it has {expected} bytes, and {free} are "
                                              "free on the disk that keeps images.")
        return expected

    def _claim(self, tx: Transaction, call: Call, image_id: str, name: str, status: int) -> ImageRecord:
        """Take a queued image for one upload."""
        record = access.owned(tx, call.caller, image_id)
        _check_uploadable(record)
        record.image.status = status  # type: ignore[assignment]
        record.image.updated_at.CopyFrom(clock.now())
        record.directory_id, record.file = self._directory.id, name
        tx.put(IMAGE, record)
        return record

    async def _end(self, incoming: Incoming, image_id: str, name: str, committed: bool) -> None:
        """Close the file; where the upload failed, return the image to queued and delete what came, now or when it can be."""
        await incoming.close()
        if committed:
            return
        try:
            await reconciler.settle(self._database, self._directory, image_id)
            if (record := self._database.get(IMAGE, image_id)) is None or record.file != name:
                await self._directory.remove(name)
        except Unavailable as error:
            log.warning("image %s: the upload failed and its image stays as it is until the store answers: %s", image_id, error)


async def _pieces(first: pb.UploadImageDataRequest, rest: AsyncIterator[pb.UploadImageDataRequest]) -> AsyncIterator[bytes]:
    yield first.data
    async for piece in rest:
        yield piece.data


def _check_uploadable(record: ImageRecord) -> None:
    image = record.image
    if image.status != Image.QUEUED:
        raise Conflict("image.data.status", f"Image {image.id} takes no data now: it is "
                                            f"{Image.Status.Name(image.status).lower()}, and data goes only to a queued image.")
    unset = [name for name in ("disk_format", "container_format") if not image.HasField(name)]  # type: ignore[arg-type]
    if unset:
        raise Invalid("image.data.format", f"Properties {', '.join(unset)} must be set prior to saving data.")


def _keep(tx: Transaction, image_id: str, name: str, stored: StoredData) -> None:
    """Make a complete file the image's data, in use or staged. Raises Conflict where the image was deleted meanwhile."""
    record = tx.get(IMAGE, image_id)
    if record is None or record.file != name:
        raise Conflict("image.data.deleted", f"Image {image_id} was deleted during the upload.")
    quota.charge(tx, model.QUOTA, record.image.owner, model.QUOTAS, image_size_total=stored.size)
    if record.image.status == Image.SAVING:
        _activate(record, stored)
    else:
        record.staged.CopyFrom(stored)
    tx.put(IMAGE, record)


def _activate(record: ImageRecord, stored: StoredData) -> None:
    image = record.image
    image.status = Image.ACTIVE
    image.size = stored.size
    if stored.HasField("virtual_size"):
        image.virtual_size = stored.virtual_size
    image.checksum = stored.md5
    image.os_hash_algo, image.os_hash_value = "sha512", stored.sha512
    image.updated_at.CopyFrom(clock.now())


def _range(header: str, size: int) -> tuple[int, int]:
    """(start, length) of what a Range header asks for; all where it asks for nothing that is understood, as HTTP has it.

    Raises RangeNotSatisfiable where the range lies behind the end.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return 0, size
    if match[1]:
        start, end = int(match[1]), min(int(match[2]), size - 1) if match[2] else size - 1
    else:
        start, end = max(size - int(match[2]), 0), size - 1
    if match[1] and match[2] and int(match[2]) < int(match[1]):
        return 0, size
    if start >= size or start > end:
        raise RangeNotSatisfiable("image.data.range", f"The image has {size} bytes: there is no range {header[:80]}.")
    return start, end - start + 1


class RangeNotSatisfiable(Error):
    """A range of bytes that the data does not have."""

    status = Invalid.status
    http = 416
