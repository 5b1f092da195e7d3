"""Every active image's data on every replica: each one fetches for itself what it lacks and deletes what no record names.

Level-triggered, and without a leader: a replica looks after its own directory alone. Until a copy is here, reads are passed
through from a replica that has the data. A copy gets its name only when its hash is the record's.
"""
import logging
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

from control.image.files import Directory
from control.image.model import GARBAGE, IMAGE
from control.kernel.cache import Change
from control.kernel.database import Database
from control.kernel.errors import TooLarge, Unavailable
from control.kernel.reconcile import Controller
from control.kernel.store import Guard
from protos.image.v1.images_pb2 import Image
from protos.image.v1.records_pb2 import ImageRecord

log = logging.getLogger(__name__)

#: The key that stands for all files that no record names; no file has this name.
REST = "."


class Peers(Protocol):
    """The other replicas (control.kernel.peers.Peers, by shape)."""

    def read_image_data(self, file: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """A file's bytes, or a range, from those who have it. Raises Unavailable where none can be reached that does."""


class Copies:
    """The data of all images, as one replica has or gets it."""

    def __init__(self, database: Database, directory: Directory, peers: Peers | None = None):
        """`peers`: None where this replica is the only one."""
        self._database = database
        self._directory = directory
        self._peers = peers

    async def read(self, file: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """A file's bytes, or a range, in chunks of at most 1 MiB: from here, else from another replica. Raises Unavailable."""
        if await self._directory.has(file):
            async for data in self._directory.read(file, start, length):
                yield data
        else:
            async for data in self._elsewhere().read_image_data(file, start, length):
                yield data

    async def run(self) -> None:
        """Fetch and delete until cancelled."""
        await Controller("image.copies", self._database.cache, kinds=(IMAGE,), keys_of=self._keys_of,
                         all_keys=self._all_keys, reconcile=self.reconcile, workers=2).run()

    async def reconcile(self, file: str) -> float | None:
        """One step for a file, or for all that no record names."""
        if file == REST:
            for name in await self._directory.names():
                await self._drop(name)
        elif (record := self._record(file)) is None:
            await self._drop(file)
        elif _complete(record) and not await self._directory.has(file):
            await self._fetch(record)
        return None

    async def _fetch(self, record: ImageRecord) -> None:
        image = record.image
        if image.size > (free := await self._directory.free()):
            raise TooLarge("image.data.full", f"no room for the data of image {image.id}: {image.size} bytes, {free} are free")
        incoming = await self._directory.begin(record.file)
        try:
            await incoming.receive(self._elsewhere().read_image_data(record.file), disk_format="", limit=image.size,
                                   expected=image.size, sha512=image.os_hash_value)
        except Exception:
            await incoming.close()
            await self._directory.remove(record.file)
            raise
        finally:
            await incoming.close()
        log.info("image %s: its data is here now", image.id)

    async def _drop(self, file: str) -> None:
        """Delete a file that no record names, as far as the store says now, and nobody writes."""
        if self._record(file) is not None or not await self._directory.has(file) or await self._directory.held(file):
            return
        now = await self._database.store.commit(guards=[Guard.unchanged(IMAGE.key(REST), 0)])     # writes nothing
        await self._database.cache.wait(now)
        garbage = self._database.get(GARBAGE, file)
        if self._record(file) is None and (garbage is None or garbage.directory_id != self._directory.id):
            await self._directory.remove(file)
            log.info("image data %s: deleted", file)

    def _record(self, file: str) -> ImageRecord | None:
        return next(iter(self._database.cache.by(IMAGE, "file", file)), None)

    def _elsewhere(self) -> Peers:
        if self._peers is None:
            raise Unavailable("image.data.elsewhere", "The image's data is not on this replica, and there is no other.")
        return self._peers

    def _keys_of(self, change: Change) -> Iterable[str]:
        return {record.file for record in (change.before, change.after) if record is not None and record.file}

    def _all_keys(self) -> Iterable[str]:
        yield REST
        yield from (record.file for record in self._database.cache.all(IMAGE) if _complete(record))


def _complete(record: ImageRecord) -> bool:
    return bool(record.file) and record.image.status in (Image.ACTIVE, Image.DEACTIVATED)
