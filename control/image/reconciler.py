"""What a data directory's own replica repairs: images whose upload died, and files that no record wants any more.

Level-triggered: reads the record, looks whether a process holds the file, takes one step. Each replica runs one, for its
own directory; it needs no leadership, because nobody else touches these files.
"""
import logging
from collections.abc import Iterable

from control.image import model
from control.image.files import Directory
from control.image.model import GARBAGE, IMAGE
from control.kernel import clock
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.reconcile import Controller
from protos.image.v1.images_pb2 import Image
from protos.image.v1.records_pb2 import ImageRecord

log = logging.getLogger(__name__)


class Reconciler:
    """Keeps one directory and the records that name its files in agreement."""

    def __init__(self, database: Database, directory: Directory):
        self._database = database
        self._directory = directory

    async def run(self) -> None:
        """Repair and collect until cancelled."""
        await self._directory.sweep()
        await Controller("image.data", self._database.cache, keys_of=self._keys_of, all_keys=self._all_keys,
                         reconcile=self.reconcile, workers=1).run()

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
    name = record.file

    def decide(tx: Transaction) -> bool:
        record = tx.get(IMAGE, image_id)
        if record is None or record.file != name or not arriving(record):
            return False
        record.image.status = Image.QUEUED
        record.image.updated_at.CopyFrom(clock.now())
        model.let_go(tx.put, record)
        tx.put(IMAGE, record)
        return True

    if await database.transact(decide):
        log.info("image %s: its upload ended without data, it is queued again", image_id)
        await collect(database, directory, GARBAGE.key(name))


async def collect(database: Database, directory: Directory, key: str) -> None:
    """Delete a file that was let go of, then the record that says so. Repeatable."""
    garbage = database.cache.at(GARBAGE, key)[1]
    if garbage is None or garbage.directory_id != directory.id:
        return
    await directory.remove(garbage.id)
    await database.transact(lambda tx: tx.delete(GARBAGE, garbage.id))
    log.info("image data %s: deleted", garbage.id)
