"""The image service put together: its kinds, its servicers over one database and one data directory, and what others may ask."""
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

from control.image import access
from control.image.checks import Checks
from control.image.copies import Copies, Peers
from control.image.data import MAX_SIZE, ImageData
from control.image.discovery import Discovery
from control.image.files import Directory
from control.image.images import Images
from control.image.members import Members
from control.image.model import IMAGE, KINDS
from control.image.reconciler import Abandoned, Reconciler
from control.image.watchables import watchables
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import NotFound
from control.kernel.store import Guard
from protos.image.v1 import data_pb2, discovery_pb2, images_pb2, members_pb2
from protos.image.v1.images_pb2 import Image

__all__ = ["KINDS", "ImageService", "watchables"]


class ImageService:
    """The service of one replica. It is also what compute and hosts ask: `bootable`, `read` and `read_file` of their neighbours'
    Protocols."""

    def __init__(self, database: Database, data_directory: Path, max_size: int = MAX_SIZE, peers: Peers | None = None):
        """`max_size`: bytes that one image may have. `peers`: the other replicas; None where there are none.

        Raises OSError where the directory cannot be made or used.
        """
        self._database = database
        self._directory = Directory(data_directory)
        self._copies = Copies(database, self._directory, peers)
        self._max_size = max_size

    def servicers(self) -> list[tuple[object, ServiceDescriptor]]:
        """What the dispatcher shall serve."""
        return [
            (Images(self._database), images_pb2.DESCRIPTOR.services_by_name["Images"]),
            (ImageData(self._database, self._directory, self._copies, self._max_size),
             data_pb2.DESCRIPTOR.services_by_name["ImageData"]),
            (Members(self._database), members_pb2.DESCRIPTOR.services_by_name["Members"]),
            (Discovery(), discovery_pb2.DESCRIPTOR.services_by_name["Discovery"]),
        ]

    def checks(self) -> Checks:
        """What can be out of step with images."""
        return Checks(self._database, self._directory)

    async def run(self) -> None:
        """Repair what crashes left, fetch what others took, delete what is let go of; until cancelled. Runs on every replica."""
        async with asyncio.TaskGroup() as group:
            group.create_task(Reconciler(self._database, self._directory).run())
            group.create_task(self._copies.run())

    @property
    def directory_id(self) -> str:
        return self._directory.id

    async def end_abandoned(self, fence: Guard) -> None:
        """End the uploads of replicas that do not come back, until cancelled: a part of a leader's work."""
        await Abandoned(self._database, [fence]).run()

    def bootable(self, caller: Caller, image_id: str) -> Image:
        """An image that the caller may boot. Raises Invalid if it is not there for them, or not active."""
        return access.bootable(self._database, caller, image_id)

    async def read(self, sha512: str) -> AsyncIterator[bytes]:
        """An active image's bytes in chunks of at most 1 MiB.

        Raises NotFound where no active image has that hash, Unavailable where its data cannot be had from any replica now.
        """
        records = self._database.cache.by(IMAGE, "sha512", sha512) if sha512 else []
        if not records:
            raise NotFound("image.data.hash", f"No active image has the SHA-512 {sha512[:16]}...")
        async for data in self._copies.read(records[0].file):
            yield data

    async def read_file(self, file: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of a file that an image's record names, if it lies here: for other replicas. Raises NotFound."""
        if not self._database.cache.by(IMAGE, "file", file):
            raise NotFound("image.data.missing", "No image has this file.")
        async for data in self._directory.read(file, start, length):
            yield data
