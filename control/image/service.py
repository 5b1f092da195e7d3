"""The image service put together: its kinds, its servicers over one database and one data directory, and what others may ask."""
from collections.abc import AsyncIterator
from pathlib import Path

from google.protobuf.descriptor import ServiceDescriptor

from control.image import access
from control.image.checks import Checks
from control.image.data import MAX_SIZE, ImageData
from control.image.discovery import Discovery
from control.image.files import Directory
from control.image.images import Images
from control.image.members import Members
from control.image.model import GARBAGE, IMAGE, MEMBER
from control.image.reconciler import Reconciler
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import NotFound, Unavailable
from protos.image.v1 import data_pb2, discovery_pb2, images_pb2, members_pb2
from protos.image.v1.images_pb2 import Image

KINDS = (IMAGE, MEMBER, GARBAGE)


class ImageService:
    """The service of one replica. It is also what compute and hosts ask: `bootable` and `read` of their neighbours' Protocols."""

    def __init__(self, database: Database, data_directory: Path, max_size: int = MAX_SIZE):
        """`max_size`: bytes that one image may have. Raises OSError where the directory cannot be made or used."""
        self._database = database
        self._directory = Directory(data_directory)
        self._max_size = max_size

    def servicers(self) -> list[tuple[object, ServiceDescriptor]]:
        """What the dispatcher shall serve."""
        return [
            (Images(self._database), images_pb2.DESCRIPTOR.services_by_name["Images"]),
            (ImageData(self._database, self._directory, self._max_size), data_pb2.DESCRIPTOR.services_by_name["ImageData"]),
            (Members(self._database), members_pb2.DESCRIPTOR.services_by_name["Members"]),
            (Discovery(), discovery_pb2.DESCRIPTOR.services_by_name["Discovery"]),
        ]

    def checks(self) -> Checks:
        """What can be out of step with images."""
        return Checks(self._database, self._directory)

    async def run(self) -> None:
        """Repair what crashes left and delete what is let go of, until cancelled. Runs on every replica."""
        await Reconciler(self._database, self._directory).run()

    def bootable(self, caller: Caller, image_id: str) -> Image:
        """An image that the caller may boot. Raises Invalid if it is not there for them, or not active."""
        return access.bootable(self._database, caller, image_id)

    async def read(self, sha512: str) -> AsyncIterator[bytes]:
        """An active image's bytes in chunks of at most 1 MiB.

        Raises NotFound where no active image has that hash, Unavailable where another replica's directory has its data.
        """
        records = self._database.cache.by(IMAGE, "sha512", sha512) if sha512 else []
        if not records:
            raise NotFound("image.data.hash", f"No active image has the SHA-512 {sha512[:16]}...")
        here = next((record for record in records if record.directory_id == self._directory.id), None)
        if here is None:
            raise Unavailable("image.data.elsewhere", f"The data of image {records[0].image.id} is with another replica.")
        async for data in self._directory.read(here.file):
            yield data
