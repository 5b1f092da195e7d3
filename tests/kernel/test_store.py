"""Both stores under the suite of the contract, and what compaction does to each."""
import asyncio

from control.kernel.etcd_client import rpc_pb2
from control.kernel.etcd_store import EtcdStore
from control.kernel.store import MemoryStore, Record
from tests.conformance.check_store import StoreContract, take


class TestStore(StoreContract):
    """Runs once on each kind that the `store` fixture makes."""


async def compact(store: MemoryStore | EtcdStore) -> None:
    """Forget all history but the present."""
    if isinstance(store, MemoryStore):
        store.compact()
    else:
        _, revision = await store.scan("/none")
        await store.client.call(lambda member: member.kv.Compact, rpc_pb2.CompactionRequest(revision=revision, physical=True))


async def test_a_watch_from_before_compaction_says_so_and_ends(store):
    start = await store.commit(Record("/w/a", b""))
    for i in range(5):
        await store.commit(Record(f"/w/{i}", b""))
    await compact(store)
    [batch] = await take(store, "/w/", start, 1)
    assert batch.compacted
    assert not batch.records


async def test_a_watch_from_the_compacted_revision_goes_on(store):
    await store.commit(Record("/w/a", b""))
    now = await store.commit(Record("/w/b", b""))
    await compact(store)
    later = await store.commit(Record("/w/c", b""))
    [batch] = await take(store, "/w/", now, 1)
    assert batch.revision == later


async def test_a_deletion_that_compaction_forgot_is_not_passed_over_in_silence(store):
    before = await store.commit(Record("/w/a", b""))
    await store.commit(Record("/w/a", None, before))
    await compact(store)
    await store.commit(Record("/w/b", b""))
    [batch] = await take(store, "/w/", before, 1)
    assert batch.compacted


async def test_a_running_watch_outlives_compaction(store):
    start = await store.commit(Record("/w/a", b""))
    task = asyncio.create_task(take(store, "/w/", start, 2))
    await store.commit(Record("/w/b", b""))
    await asyncio.sleep(0.3)
    await compact(store)
    await store.commit(Record("/w/c", b""))
    assert [record.key for batch in await task for record in batch.records] == ["/w/b", "/w/c"]
