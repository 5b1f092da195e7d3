"""Records of earlier versions mean the same to this one, and this one's to those: both may run on one store."""
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from control import main
from control.kernel.cache import Kind
from control.kernel.database import Database
from control.kernel.store import MemoryStore, Record
from tests.upgrade.keep import KEPT
from tests.upgrade.later_store import LATER
from tests.upgrade.messages import filled, known, plain

VERSIONS = sorted(path.name for path in KEPT.iterdir())
KINDS = {kind.prefix: kind for kind in main.KINDS}


def pool_of(directory: Path) -> descriptor_pool.DescriptorPool:
    """The protos as an earlier version had them, apart from those of this process."""
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString((directory / "descriptors.binpb").read_bytes()).file:
        pool.Add(file)
    return pool


POOLS = {version: pool_of(KEPT / version) for version in VERSIONS}
RECORDS = [(version, prefix) for version in VERSIONS
           for prefix in json.loads((KEPT / version / "records.json").read_text())]


class Old:
    """A record of an earlier version, and what that version makes of records."""

    def __init__(self, version: str, prefix: str):
        kept: dict[str, Any] = json.loads((KEPT / version / "records.json").read_text())[prefix]
        self.bytes = base64.b64decode(kept["bytes"])
        self.says, self.key = kept["says"], kept["key"]
        self.descriptor = POOLS[version].FindMessageTypeByName(kept["type"])
        self.message: type[Message] = message_factory.GetMessageClass(self.descriptor)
        self.kind: Kind = KINDS[prefix]


@pytest.fixture(params=RECORDS, ids=lambda param: " ".join(param))
def old(request: pytest.FixtureRequest) -> Old:
    return Old(*request.param)


def test_what_an_earlier_version_wrote_says_the_same_here_under_the_same_key(old: Old):
    read = old.kind.message.FromString(old.bytes)
    assert plain(read) == old.says
    assert old.kind.key_of(read) == old.key
    for values_of in old.kind.indexes.values():
        assert list(values_of(read)) is not None        # every index can be made of it


def test_what_this_version_writes_is_read_by_an_earlier_one_as_far_as_that_knows(old: Old):
    written = filled(old.kind.message)
    read = old.message.FromString(written.SerializeToString())
    assert plain(read) == known(plain(written), old.descriptor)


def test_an_earlier_version_that_changes_a_record_keeps_what_only_this_one_knows(old: Old):
    written = filled(old.kind.message)
    read = old.message.FromString(written.SerializeToString())
    cleared = old.descriptor.fields[-1].name
    read.ClearField(cleared)
    again = old.kind.message.FromString(read.SerializeToString())
    written.ClearField(cleared)
    assert plain(again) == plain(written)


@pytest.mark.parametrize("made_of_parts", [False, True])
async def test_a_transaction_keeps_what_only_a_later_version_knows(old: Old, made_of_parts: bool):
    store = MemoryStore()
    database = Database(store, [old.kind])
    await store.commit(Record(old.key, old.bytes + LATER))
    database.cache._replace(*await store.scan("/"))
    identifier = old.kind.id_of(database.cache.all(old.kind)[0])

    async def shown(revision: int) -> None:
        database.cache._replace(*await store.scan("/"))

    database.cache.wait = shown                  # nothing follows the store in this test

    def change(tx) -> None:
        message = tx.require(old.kind, *identifier)
        assert plain(message) == old.says
        tx.put(old.kind, old.kind.message.FromString(old.bytes) if made_of_parts else message)

    await database.transact(change)
    value = (await store.get(old.key)).value
    assert LATER in value and plain(old.kind.message.FromString(value)) == old.says


def test_every_kind_of_the_last_version_is_still_there():
    for version in VERSIONS:
        assert json.loads((KEPT / version / "records.json").read_text()).keys() <= KINDS.keys()
