"""Repairs images whose upload died, and deletes files that no record wants any more.

Level-triggered: reads the record, looks whether a process holds the file, takes one step. Each replica runs a Reconciler, for
its own directory; it needs no leadership, because nobody else touches these files. Uploads to a replica that is gone for good
are ended by a leader, Abandoned; should that replica come back, it finds what it is to delete.
"""
import asyncio
import logging
from collections.abc import Iterable, Sequence

from control.image import model
from control.image.files import Directory
from control.image.model import GARBAGE, IMAGE
from control.kernel import clock
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.reconcile import Controller
from control.kernel.replicas import REPLICA
from control.kernel.store import Guard
from protos.image.v1.images_pb2 import Image
from protos.image.v1.records_pb2 import ImageRecord

log = logging.getLogger(__name__)

#: Seconds that a replica must be gone before the uploads that it was taking are ended for it: more than a restart takes, after
#: which it does that itself.
GONE_FOR = 120.0


class Reconciler:
    """Keeps one directory and the records that name its files in agreement."""

    def __init__(self, database: Database, directory: Directory):
        self._database = database
        self._directory = directory

    async def run(self) -> None:
        """Repair and collect until cancelled."""
        await self._directory.sweep()
        await Controller("image.data", self._database.cache, kinds=(IMAGE, GARBAGE), keys_of=self._keys_of,
                         all_keys=self._all_keys, reconcile=self.reconcile, workers=1).run()

    async def reconcile(self, key: str) -> float | None:
        """One step for an image or a file to delete; the seconds after which to look again, if at all."""
        if key.startswith(GARBAGE.prefix):
            await collect(self._database, self._directory, key)
            return None
        record = self._database.cache.at(IMAGE, key)[1]
        if record is None or not self._mine(record) or not arriving(record):
            return None
        if await self._directory.held(record.file):
            return 10.0            # its process may die without a word
        await settle(self._database, self._directory, record.image.id)
        return None

    def _mine(self, record: ImageRecord) -> bool:
        return record.directory_id == self._directory.id

    def _keys_of(self, change: Change) -> Iterable[str]:
        if change.after is None:
            return ()
        if change.kind is GARBAGE:
            return (change.key,) if change.after.directory_id == self._directory.id else ()
        return (change.key,) if change.kind is IMAGE and self._mine(change.after) and arriving(change.after) else ()

    def _all_keys(self) -> Iterable[str]:
        cache = self._database.cache
        yield from (GARBAGE.key_of(garbage) for garbage in cache.all(GARBAGE) if garbage.directory_id == self._directory.id)
        yield from (IMAGE.key_of(record) for record in cache.all(IMAGE) if self._mine(record) and arriving(record))


class Abandoned:
    """Ends the uploads of replicas that do not come back. Runs as leader; `fence` is added to every commit."""

    def __init__(self, database: Database, fence: Sequence[Guard] = ()):
        self._database = database
        self._fence = fence
        self._since: dict[str, float] = {}

    async def run(self) -> None:
        """Look after arriving images until cancelled."""
        await Controller("image.abandoned", self._database.cache, kinds=(IMAGE, REPLICA), keys_of=self._keys_of,
                         all_keys=self._all_keys, reconcile=self.reconcile, workers=1).run()

    async def reconcile(self, key: str) -> float | None:
        """One step for an image; the seconds after which to look again, if at all."""
        record = self._database.cache.at(IMAGE, key)[1]
        if record is None or not arriving(record) or record.directory_id in self._directories():
            self._since.pop(key, None)
            return None
        now = asyncio.get_running_loop().time()
        left = self._since.setdefault(key, now) + GONE_FOR - now
        if left > 0:
            return left
        await requeue(self._database, record.image.id, record.file, self._fence)
        return None

    def _directories(self) -> set[str]:
        """Those of the replicas that live."""
        return {replica.image_directory for replica in self._database.cache.all(REPLICA)}

    def _keys_of(self, change: Change) -> Iterable[str]:
        if change.kind is IMAGE and change.after is not None and arriving(change.after):
            return (change.key,)
        return self._all_keys() if change.kind is REPLICA else ()

    def _all_keys(self) -> list[str]:
        return [IMAGE.key_of(record) for record in self._database.cache.all(IMAGE) if arriving(record)]


def arriving(record: ImageRecord) -> bool:
    """Whether the record says that an upload is under way."""
    return record.image.status == Image.SAVING or (record.image.status == Image.UPLOADING and not record.HasField("staged"))


async def settle(database: Database, directory: Directory, image_id: str) -> None:
    """Return an image whose upload has ended without data to queued, and delete the file. Repeatable.

    Does nothing while a process holds the file, or where the upload was committed after all.
    """
    record = database.get(IMAGE, image_id)
    if record is None or not arriving(record) or await directory.held(record.file):
        return
    if await requeue(database, image_id, record.file):
        await collect(database, directory, GARBAGE.key(record.file))


async def requeue(database: Database, image_id: str, name: str, guards: Sequence[Guard] = ()) -> bool:
    """Return an image whose data was to arrive in a file to queued, and let go of the file; whether it was so still."""
    def decide(tx: Transaction) -> bool:
        record = tx.get(IMAGE, image_id)
        if record is None or record.file != name or not arriving(record):
            return False
        record.image.status = Image.QUEUED
        record.image.updated_at.CopyFrom(clock.now())
        model.let_go(tx.put, record)
        tx.put(IMAGE, record)
        return True

    requeued = await database.transact(decide, guards=guards)
    if requeued:
        log.info("image %s: its upload ended without data, it is queued again", image_id)
    return requeued


async def collect(database: Database, directory: Directory, key: str) -> None:
    """Delete a file that was let go of, then the record that says so. Repeatable."""
    garbage = database.cache.at(GARBAGE, key)[1]
    if garbage is None or garbage.directory_id != directory.id:
        return
    await directory.remove(garbage.id)
    await database.transact(lambda tx: tx.delete(GARBAGE, garbage.id))
    log.info("image data %s: deleted", garbage.id)
