"""Both stores under the suite of the contract, and what compaction does to each."""
import asyncio
import random

import pytest

from control.kernel.errors import Stale
from control.kernel.etcd_client import rpc_pb2
from control.kernel.etcd_store import EtcdStore
from control.kernel.store import Guard, MemoryStore, Record
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


@pytest.mark.etcd
async def test_both_stores_take_and_refuse_the_same_commits(etcd_store):
    """Random scripts over few keys; revisions differ between the two, so each store's are numbered as they come."""
    memory = MemoryStore()
    draw = random.Random(20261122)
    keys = [f"/r/{name}" for name in ("a", "b", "ab", "b/c")]
    history: list[tuple[int, int]] = [(0, 0)]       # revisions of the same moment in both
    outcomes = set()
    for step in range(400):
        written = draw.sample(keys, draw.randint(0, 3))
        current = {key: (await memory.get(key)).revision for key in keys}
        moments = dict(history)
        at = {key: current[key] if draw.random() < 0.8 else draw.choice(history)[0] for key in keys}
        values = {key: draw.choice([None, b"", b"%d" % step]) for key in written}
        guards = []
        for key in draw.sample(keys, draw.randint(0, 2)):
            match draw.choice(["unchanged", "exists", "created", "empty"]):
                case "unchanged":
                    guards.append(("unchanged", key, at[key]))
                case "created":
                    guards.append(("created", key, (await memory.get(key)).created or draw.choice(history[1:] or [(1, 1)])[0]))
                case what:
                    guards.append((what, key, 0))
        results = []
        for store, same in ((memory, {moment: moment for moment in moments}), (etcd_store, moments)):
            try:
                results.append(await store.commit(
                    *(Record(key, values[key], same[at[key]]) for key in written),
                    guards=[Guard(key, what, same.get(revision, 1)) for what, key, revision in guards]))
            except Stale:
                results.append(None)
        assert (results[0] is None) == (results[1] is None), (written, guards)
        outcomes.add(results[0] is None)
        if results[0] is not None and results[0] not in moments:
            history.append((results[0], results[1]))
        for ours, theirs in zip((await memory.scan("/r/"))[0], (await etcd_store.scan("/r/"))[0], strict=True):
            moments = dict(history)
            assert (ours.key, ours.value, moments[ours.revision], moments[ours.created]) == (
                theirs.key, theirs.value, theirs.revision, theirs.created)
    assert outcomes == {True, False}
