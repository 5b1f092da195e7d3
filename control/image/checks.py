"""What must agree between images, their members, their owners' ledgers and the files of this replica's data directory."""
from collections.abc import Callable, Iterable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from control.image import model, reconciler
from control.image.files import Directory
from control.image.model import GARBAGE, IMAGE, MEMBER
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.findings import ERROR, WARNING, Check, Finding, Probe, ledgers
from protos.image.v1.images_pb2 import Image

#: Seconds that an upload may take: the largest image at 8 Mbit/s. One whose replica runs and sees it end ends sooner by itself.
ARRIVING = 24 * 3600


class Checks:
    """The checks of one replica's image service. `now` is the clock, to be replaced in tests."""

    def __init__(self, database: Database, directory: Directory, now: Callable[[], Timestamp] = clock.now):
        self._database = database
        self._directory = directory
        self._now = now

    def all(self) -> list[Check]:
        return [Check("image.members", "Members are of images that there are.", members),
                Check("image.arriving", "Uploads end.", self.arriving),
                Check("image.quota", "Each project's ledger is what a recount of its images says.", recount)]

    def probes(self) -> list[Probe]:
        return [Probe("image.files", "Each image's data is in its directory, and nothing else is there.", self.files)]

    def arriving(self, tx: Transaction) -> Iterator[Finding]:
        now = self._now()
        for record in tx.rows(IMAGE):
            seconds = now.seconds - record.image.updated_at.seconds
            if reconciler.arriving(record) and seconds > ARRIVING:
                def mend(tx: Transaction, image_id: str = record.image.id) -> None:
                    late = tx.require(IMAGE, image_id)
                    late.image.status = Image.QUEUED
                    late.image.updated_at.CopyFrom(now)
                    model.let_go(tx.put, late)
                    tx.put(IMAGE, late)

                yield Finding(f"image {record.image.id}", f"its data is arriving for {seconds} s",
                              f"The replica with directory {record.directory_id} is gone, or the client feeds it drop by drop.",
                              remedy="Queue it again, so that its data can be uploaded anew.", mend=mend)

    async def files(self) -> Iterable[Finding]:
        """What is wrong with this replica's directory."""
        held = await self._directory.names()
        records = {record.file: record for record in self._database.rows(IMAGE) if record.file}
        let_go = {garbage.id for garbage in self._database.rows(GARBAGE)}
        found = [Finding(f"image {record.image.id}", f"its data, {name}, is not in {self._directory.path}",
                         "It is fetched from a replica that has it; where none has, nobody can boot or download it.",
                         severity=ERROR if record.directory_id == self._directory.id else WARNING,
                         remedy="If it stays so, restore the file from a backup, or delete the image.")
                 for name, record in sorted(records.items()) if name not in held and not reconciler.arriving(record)]
        for name in sorted(held - records.keys() - let_go):
            if not await self._directory.held(name):
                found.append(Finding(f"file {name}", f"is in {self._directory.path}, and no image has it", "It takes room.",
                                     severity=WARNING, remedy="Delete it.", cure=lambda name=name: self._drop(name)))  # type: ignore[misc]
        return found

    async def _drop(self, name: str) -> None:
        if not any(record.file == name for record in self._database.rows(IMAGE)) and not await self._directory.held(name):
            await self._directory.remove(name)


def members(tx: Transaction) -> Iterator[Finding]:
    for member in tx.rows(MEMBER):
        if tx.get(IMAGE, member.image_id) is None:
            def mend(tx: Transaction, image_id: str = member.image_id, member_id: str = member.member_id) -> None:
                tx.guard_unchanged(IMAGE, image_id)
                tx.delete(MEMBER, image_id, member_id)

            yield Finding(f"member {member.member_id} of image {member.image_id}", "the image is gone",
                          "It would be shared again if an image came with this id.", severity=WARNING,
                          remedy="Delete it.", mend=mend)


def recount(tx: Transaction) -> Iterator[Finding]:
    used: dict[str, dict[str, int]] = {}
    for record in tx.rows(IMAGE):
        mine = used.setdefault(record.image.owner, {"image_count_total": 0, "image_size_total": 0})
        mine["image_count_total"] += 1
        mine["image_size_total"] += model.charged(record)
    yield from ledgers(tx, model.QUOTA, used)
