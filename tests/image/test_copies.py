"""Each replica gets its own copy of every active image's data, whole or not at all, and keeps none that no image has."""
import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control.image import model, reconciler, service
from control.image.files import Directory
from control.image.model import GARBAGE, IMAGE
from control.image.service import ImageService
from control.kernel import quota, replicas
from control.kernel.database import Database
from control.kernel.errors import Unavailable
from control.kernel.store import Guard, Record
from protos.image.v1.images_pb2 import Image
from protos.image.v1.records_pb2 import Garbage, ImageRecord
from protos.internal.v1.replicas_pb2 import ReplicaRecord
from tests.upgrade.later_store import LaterStore

DATA = b"an image's data" * 200_000


class Others:
    """The other replicas: what they have of each file. Missing is what nobody has."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.read = 0

    async def read_image_data(self, file: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        self.read += 1
        if file not in self.files:
            raise Unavailable("image.data.elsewhere", "nobody has it")
        yield self.files[file][start:][:length]


class Replica:
    def __init__(self, folder: Path):
        self.folder = folder
        self.others = Others()
        self.database = Database(LaterStore(), (*service.KINDS, *quota.KINDS, *replicas.KINDS))
        self.images = ImageService(self.database, folder, peers=self.others)

    async def active(self, data: bytes = DATA) -> ImageRecord:
        """An image that another replica took."""
        identifier = str(uuid.uuid4())
        record = ImageRecord(directory_id="another", file=f"{identifier}.abc", image=Image(
            id=identifier, status=Image.ACTIVE, size=len(data), os_hash_algo="sha512",
            os_hash_value=hashlib.sha512(data).hexdigest()))
        await self.database.transact(lambda tx: tx.put(IMAGE, record))
        return record

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir() if path.name != "directory-id"}

    async def until(self, condition) -> None:
        async with asyncio.timeout(20):
            while not condition():
                await asyncio.sleep(0.01)

    @contextlib.asynccontextmanager
    async def running(self):
        tasks = [asyncio.create_task(self.database.cache.run()), asyncio.create_task(self.images.run())]
        await self.database.cache.ready.wait()
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
def replica(tmp_path: Path) -> Replica:
    return Replica(tmp_path / "images")


async def test_what_another_replica_took_comes_here_and_goes_with_its_image(replica: Replica):
    async with replica.running():
        record = await replica.active()
        await replica.until(lambda: replica.others.read)
        assert record.file not in replica.files(), "nobody has it yet"
        replica.others.files[record.file] = DATA
        await replica.until(lambda: replica.files() == {record.file: DATA})
        replica.others.files.clear()
        assert b"".join([data async for data in replica.images.read(record.image.os_hash_value)]) == DATA

        def delete(tx):
            model.let_go(tx.put, gone := tx.require(IMAGE, record.image.id))
            tx.delete(IMAGE, gone.image.id)

        await replica.database.transact(delete)
        await replica.until(lambda: not replica.files())
        assert replica.database.cache.all(GARBAGE), "what another directory has is for its own replica to delete"


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA + b"x", b"X" + DATA[1:]], ids=["shorter", "longer", "other bytes"])
async def test_data_that_is_not_the_images_is_not_kept_and_is_asked_for_again(replica: Replica, wrong: bytes):
    async with replica.running():
        record = await replica.active()
        replica.others.files[record.file] = wrong
        await replica.until(lambda: replica.others.read >= 2)
        assert record.file not in replica.files()
        replica.others.files[record.file] = DATA
        await replica.until(lambda: replica.files() == {record.file: DATA})


async def test_until_a_copy_is_here_reads_are_passed_through(replica: Replica):
    async with replica.running():
        record = await replica.active()
        replica.others.files[record.file] = DATA
        (replica.folder / record.file).unlink(missing_ok=True)
        copies = replica.images._copies
        assert b"".join([data async for data in copies.read(record.file, 7, 9)]) == DATA[7:16]
        assert b"".join([data async for data in replica.images.read(record.image.os_hash_value)]) == DATA


async def test_a_file_that_no_image_has_goes_and_one_that_is_being_written_stays(replica: Replica):
    (replica.folder / "left-behind").write_bytes(b"of an image that was deleted while this replica was down")
    (replica.folder / "mine").write_bytes(b"let go of")
    directory = Directory(replica.folder)
    writing = await directory.begin("being-written")
    async with replica.running():
        await replica.until(lambda: replica.files().keys() == {"mine", "being-written.part"}
                            or replica.files().keys() == {"being-written.part"})
        await replica.database.transact(lambda tx: tx.put(GARBAGE, Garbage(id="mine", directory_id=directory.id)))
        await replica.until(lambda: replica.files().keys() == {"being-written.part"})
        await replica.until(lambda: not replica.database.cache.all(GARBAGE))
        await writing.close()


async def test_an_upload_to_a_replica_that_does_not_come_back_is_ended_and_one_to_a_living_replica_is_not(replica: Replica,
                                                                                                           monkeypatch):
    monkeypatch.setattr(reconciler, "GONE_FOR", 0.2)
    async with replica.running():
        fence = await replica.database.store.commit(Record("/leaders/keeper/0-of-1", b""))
        await replica.database.transact(lambda tx: tx.put(replicas.REPLICA, ReplicaRecord(id="r", image_directory="lives")))
        for directory in ("gone", "lives"):
            await replica.database.transact(lambda tx, directory=directory: tx.put(IMAGE, ImageRecord(
                directory_id=directory, file=f"{directory}.abc", image=Image(id=directory, status=Image.SAVING))))
        leading = asyncio.create_task(replica.images.end_abandoned(Guard.created("/leaders/keeper/0-of-1", fence)))

        def status(image: str) -> int:
            return replica.database.require(IMAGE, image).image.status

        await replica.until(lambda: status("gone") == Image.QUEUED)
        assert replica.database.require(GARBAGE, "gone.abc").directory_id == "gone", "should it come back, it deletes the file"
        assert status("lives") == Image.SAVING
        await replica.database.transact(lambda tx: tx.delete(replicas.REPLICA, "r"))
        await replica.until(lambda: status("lives") == Image.QUEUED)
        leading.cancel()
