"""State read from a real etcd and written into another one: the same records, and none of what belongs to processes."""
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.backup.state import LOADING, NOT_HEARD, adjusted, dump, load, pack
from control.compute.model import SERVER
from control.identity.model import TOKEN_KEY, VAULT_KEY
from control.image.model import GARBAGE, IMAGE
from control.kernel.errors import Conflict
from control.kernel.etcd_store import EtcdStore
from control.kernel.fleet import HOST
from control.kernel.store import Record
from protos.compute.v1.records_pb2 import DesiredServer, ServerRecord
from protos.identity.v1.records_pb2 import TokenKey, VaultKey
from protos.image.v1.records_pb2 import Garbage, ImageRecord
from protos.internal.v1.fleet_pb2 import HostRecord
from tests.conftest import Etcd

pytestmark = pytest.mark.etcd

NOW = 1_800_000_000_000


@pytest.fixture
def second_etcd(tmp_path: Path) -> Iterator[Etcd]:
    server = Etcd(tmp_path / "second")
    server.start()
    yield server
    server.kill()


async def everything(store: EtcdStore) -> dict[str, bytes]:
    return {entry.key: entry.value async for _, chunk in dump(store) for entry in chunk.entries}


async def test_all_records_are_the_same_in_another_etcd_while_the_first_goes_on(etcd_store: EtcdStore, second_etcd: Etcd) -> None:
    values = {f"/test/things/{number:05d}": f"value {number}".encode() * 20 for number in range(2500)}
    for start in range(0, 2500, 100):
        await etcd_store.commit(*(Record(key, value) for key, value in list(values.items())[start:start + 100]))
    lease = await etcd_store.grant(60)
    await etcd_store.commit(Record("/election/control", b"me", lease=lease))
    await etcd_store.commit(Record("/test/leased", b"mine", lease=lease))
    _, at = await etcd_store.scan("/nothing")
    chunks, revisions = [], set()
    async for revision, chunk in dump(etcd_store):
        revisions.add(revision)
        chunks.append(pack(chunk))
        # What is written meanwhile is none of the backup's.
        await etcd_store.commit(Record(f"/test/things/99{len(chunks)}", b"later"))
        await etcd_store.commit(Record("/test/things/00000", None, (await etcd_store.get("/test/things/00000")).revision)
                                if len(chunks) == 1 else Record(f"/test/other/{len(chunks)}", b""))
    assert revisions == {at} and len(chunks) > 2
    await second_etcd.ready()
    target = second_etcd.store()
    counts = await load(target, chunks, NOW, "here")
    assert await everything(target) == values and counts == {"test/things": 2500}
    assert (await target.get(LOADING)).value is None
    with pytest.raises(Conflict, match="has a state already"):
        await load(target, chunks, NOW, "here")
    await target.close()


async def test_a_load_that_was_cut_off_begins_anew(etcd_store: EtcdStore, second_etcd: Etcd) -> None:
    await etcd_store.commit(*(Record(f"/test/things/{number}", b"x" * 1000) for number in range(100)))
    chunks = [pack(chunk) async for _, chunk in dump(etcd_store)]
    await second_etcd.ready()
    target = second_etcd.store()

    def cut():
        yield chunks[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await load(target, cut(), NOW, "here")
    await target.commit(Record("/test/half", b""))
    await load(target, chunks, NOW, "here")
    assert len(await everything(target)) == 100
    await target.close()


def test_a_restored_server_is_newer_than_any_wish_that_an_agent_has_seen() -> None:
    server = ServerRecord(id="a", desired=DesiredServer(generation=5, reboots=2))
    once = adjusted(SERVER.key("a"), server.SerializeToString(), NOW, "here")
    assert once is not None
    restored = ServerRecord.FromString(once)
    assert restored.desired.generation == NOW and restored.desired.reboots == 2
    # Restored from the same backup again later, after changes; and a backup of the restored cloud within the same second.
    again = adjusted(SERVER.key("a"), server.SerializeToString(), NOW + 60_000, "here")
    assert again and ServerRecord.FromString(again).desired.generation > NOW + 1000
    restored.desired.generation += 3
    later = adjusted(SERVER.key("a"), restored.SerializeToString(), NOW + 1, "here")
    assert later and ServerRecord.FromString(later).desired.generation == NOW + 4


def test_image_data_is_in_one_directory_afterwards() -> None:
    image = adjusted(IMAGE.key("i"), ImageRecord(directory_id="there", file="f").SerializeToString(), NOW, "here")
    assert image and ImageRecord.FromString(image) == ImageRecord(directory_id="here", file="f")
    assert adjusted(GARBAGE.key("f"), Garbage(id="f", directory_id="there").SerializeToString(), NOW, "here") is None


def test_what_a_host_runs_that_the_state_does_not_know_is_open_until_its_agent_says_so() -> None:
    host = adjusted(HOST.key("h"), HostRecord(name="h", up=True, strangers=["old"]).SerializeToString(), NOW, "here")
    assert host and HostRecord.FromString(host) == HostRecord(name="h", up=True, strangers=[NOT_HEARD])


def test_keys_of_tokens_are_left_out_and_those_of_stored_secrets_are_not() -> None:
    assert adjusted(TOKEN_KEY.key("k"), TokenKey(id="k", key=b"k").SerializeToString(), NOW, "here") is None
    vault = VaultKey(id="k", key=b"k").SerializeToString()
    assert adjusted(VAULT_KEY.key("k"), vault, NOW, "here") == vault

