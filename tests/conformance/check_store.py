"""What every Store does: the sentences of its Protocol, as a suite that both kinds must pass.

A test module makes a class of StoreContract and provides the fixture `store`, an empty store of its kind.
"""
import asyncio
import contextlib

import pytest

from control.kernel.errors import Stale, Unavailable
from control.kernel.store import MAX_BYTES, MAX_OPERATIONS, Batch, Guard, Record, Store


async def take(store: Store, prefix: str, after: int, records: int, seconds: float = 10.0) -> list[Batch]:
    """The batches of a watch until it brought so many records."""
    batches: list[Batch] = []
    async with asyncio.timeout(seconds), contextlib.aclosing(store.watch(prefix, after)) as watch:
        async for batch in watch:
            if batch.records or batch.compacted:
                batches.append(batch)
            if batch.compacted or sum(len(batch.records) for batch in batches) >= records:
                break
    return batches


class StoreContract:
    # Reading

    async def test_an_absent_key_reads_as_revision_zero(self, store: Store):
        assert await store.get("/a/none") == Record("/a/none", None, 0, 0, 0)

    async def test_a_record_reads_as_it_was_written_with_its_revisions(self, store: Store):
        first = await store.commit(Record("/a/x", b"1"))
        second = await store.commit(Record("/a/x", b"2", first))
        assert await store.get("/a/x") == Record("/a/x", b"2", second, first)
        assert second > first > 0

    @pytest.mark.parametrize("value", [b"", b"\x00", bytes(range(256)), b"x" * 1_000_000], ids=["empty", "nul", "binary", "1MB"])
    async def test_any_bytes_are_a_value(self, store: Store, value: bytes):
        await store.commit(Record("/a/x", value))
        assert (await store.get("/a/x")).value == value

    @pytest.mark.parametrize("key", ["/a/é", "/a/名前", "/a/%2F", "/a/ ", "/a/\U0001f32b", "/a/" + "k" * 1000])
    async def test_any_text_is_a_key(self, store: Store, key: str):
        revision = await store.commit(Record(key, b"1"))
        assert (await store.get(key)).revision == revision
        assert [record.key for record in (await store.scan("/a/"))[0]] == [key]
        assert [record.key for batch in await take(store, "/a/", revision - 1, 1) for record in batch.records] == [key]

    async def test_a_scan_has_what_is_below_the_prefix_in_key_order(self, store: Store):
        for key in ("/b/2", "/b/10", "/b/1", "/b0", "/b", "/a/1", "/c/1"):
            revision = await store.commit(Record(key, key.encode()))
        records, at = await store.scan("/b/")
        assert [record.key for record in records] == ["/b/1", "/b/10", "/b/2"]
        assert all(record.value == record.key.encode() and record.revision == record.created > 0 for record in records)
        assert at == revision

    async def test_a_scan_of_an_empty_prefix_or_of_nothing_tells_the_revision_too(self, store: Store):
        revision = await store.commit(Record("/a/x", b"1"))
        assert await store.scan("/none/") == ([], revision)

    async def test_a_scan_over_many_pages_is_of_one_revision(self, store: Store):
        for start in range(0, 2400, 120):
            await store.commit(*(Record(f"/many/{i:05}", b"0") for i in range(start, start + 120)))

        async def scribble() -> None:
            for i in range(2399, -1, -97):
                await store.commit(Record(f"/many/{i:05}", b"1", (await store.get(f"/many/{i:05}")).revision))

        task = asyncio.create_task(scribble())
        for _ in range(5):
            records, revision = await store.scan("/many/")
            assert len(records) == 2400
            assert max(record.revision for record in records) <= revision
            changed = [int(record.key[-5:]) for record in records if record.value == b"1"]
            assert changed == sorted(range(2399, -1, -97)[:len(changed)])       # a prefix of the scribbles, none later
        await task

    # Committing

    async def test_a_write_over_another_revision_than_the_last_is_stale(self, store: Store):
        first = await store.commit(Record("/a/x", b"1"))
        second = await store.commit(Record("/a/x", b"2", first))
        for wrong in (0, first, second + 1):
            with pytest.raises(Stale) as stale:
                await store.commit(Record("/a/x", b"3", wrong))
            assert stale.value.revision == second
            assert stale.value.key == "/a/x"
        assert (await store.get("/a/x")).value == b"2"

    async def test_a_write_over_an_absent_key_with_a_revision_is_stale(self, store: Store):
        revision = await store.commit(Record("/a/x", b"1"))
        await store.commit(Record("/a/x", None, revision))
        with pytest.raises(Stale):
            await store.commit(Record("/a/x", b"2", revision))
        assert (await store.get("/a/x")).value is None

    async def test_a_stale_commit_tells_the_revision_at_which_it_was_refused(self, store: Store):
        await store.commit(Record("/a/x", b"1"))
        other = await store.commit(Record("/a/y", b"1"))
        with pytest.raises(Stale) as stale:
            await store.commit(Record("/a/x", b"2"))
        assert stale.value.revision == other

    async def test_a_commit_applies_all_at_one_revision(self, store: Store):
        gone = await store.commit(Record("/a/gone", b"1"))
        revision = await store.commit(Record("/a/x", b"1"), Record("/a/y", b"2"), Record("/a/gone", None, gone))
        records, _ = await store.scan("/a/")
        assert [(record.key, record.revision) for record in records] == [("/a/x", revision), ("/a/y", revision)]

    async def test_a_commit_applies_none_when_one_is_stale(self, store: Store):
        before = await store.commit(Record("/a/x", b"1"))
        with pytest.raises(Stale):
            await store.commit(Record("/a/new", b"1"), Record("/a/x", b"2", before + 7), Record("/a/z", b"1"))
        assert await store.scan("/a/") == ([Record("/a/x", b"1", before, before)], before)

    async def test_a_key_made_again_after_its_deletion_is_created_anew(self, store: Store):
        first = await store.commit(Record("/a/x", b"1"))
        await store.commit(Record("/a/x", None, first))
        second = await store.commit(Record("/a/x", b"2"))
        assert (await store.get("/a/x")).created == second > first

    async def test_deleting_what_is_not_there_changes_nothing(self, store: Store):
        before = await store.commit(Record("/a/x", b"1"))
        assert await store.commit(Record("/a/none", None)) == before
        assert await take(store, "/a/", before - 1, 1) == [Batch([Record("/a/x", b"1", before, before)], before)]

    async def test_a_commit_of_nothing_only_compares(self, store: Store):
        revision = await store.commit(Record("/a/x", b"1"))
        assert await store.commit(guards=[Guard.exists("/a/x")]) == revision
        with pytest.raises(Stale):
            await store.commit(guards=[Guard.exists("/a/y")])

    # Guards

    async def test_unchanged_holds_at_that_revision_only(self, store: Store):
        revision = await store.commit(Record("/g/x", b"1"))
        await store.commit(Record("/a/1", b""), guards=[Guard.unchanged("/g/x", revision), Guard.unchanged("/g/none", 0)])
        later = await store.commit(Record("/g/x", b"1", revision))
        for guard in (Guard.unchanged("/g/x", revision), Guard.unchanged("/g/x", 0), Guard.unchanged("/g/none", later)):
            with pytest.raises(Stale) as stale:
                await store.commit(Record("/a/2", b""), guards=[guard])
            assert stale.value.key == guard.key
        assert (await store.get("/a/2")).revision == 0

    async def test_exists_holds_at_any_revision(self, store: Store):
        revision = await store.commit(Record("/g/x", b"1"))
        await store.commit(Record("/a/1", b""), guards=[Guard.exists("/g/x")])
        revision = await store.commit(Record("/g/x", b"2", revision))
        await store.commit(Record("/a/2", b""), guards=[Guard.exists("/g/x")])
        await store.commit(Record("/g/x", None, revision))
        with pytest.raises(Stale):
            await store.commit(Record("/a/3", b""), guards=[Guard.exists("/g/x")])

    async def test_created_outlives_changes_and_not_a_new_creation(self, store: Store):
        created = await store.commit(Record("/g/x", b"1"))
        changed = await store.commit(Record("/g/x", b"2", created))
        await store.commit(Record("/a/1", b""), guards=[Guard.created("/g/x", created)])
        with pytest.raises(Stale):
            await store.commit(Record("/a/2", b""), guards=[Guard.created("/g/x", changed)])
        await store.commit(Record("/g/x", None, changed))
        with pytest.raises(Stale):
            await store.commit(Record("/a/2", b""), guards=[Guard.created("/g/x", created)])
        await store.commit(Record("/g/x", b"3"))
        with pytest.raises(Stale):
            await store.commit(Record("/a/2", b""), guards=[Guard.created("/g/x", created)])

    async def test_empty_holds_while_no_key_starts_with_the_prefix(self, store: Store):
        await store.commit(Record("/g/ports/1", b""), Record("/g/portsx", b""))
        await store.commit(Record("/a/1", b""), guards=[Guard.empty("/g/ports/2"), Guard.empty("/g/none/")])
        with pytest.raises(Stale):
            await store.commit(Record("/a/2", b""), guards=[Guard.empty("/g/ports/")])
        await store.commit(Record("/g/ports/1", None, (await store.get("/g/ports/1")).revision))
        await store.commit(Record("/a/2", b""), guards=[Guard.empty("/g/ports/")])

    async def test_a_commit_may_write_below_the_prefix_that_it_guards_empty(self, store: Store):
        await store.commit(Record("/g/1", b""), guards=[Guard.empty("/g/")])
        with pytest.raises(Stale):
            await store.commit(Record("/g/2", b""), guards=[Guard.empty("/g/")])

    # Sizes

    async def test_the_largest_commit_is_applied_whole(self, store: Store):
        revision = await store.commit(*(Record(f"/a/{i:03}", b"x") for i in range(MAX_OPERATIONS)))
        records, _ = await store.scan("/a/")
        assert {record.revision for record in records} == {revision}
        assert len(records) == MAX_OPERATIONS
        value = b"x" * ((MAX_BYTES - 300 * MAX_OPERATIONS) // MAX_OPERATIONS)
        await store.commit(*(Record(f"/b/{i:03}{'k' * 94}", value) for i in range(MAX_OPERATIONS)))

    async def test_too_many_operations_or_bytes_are_a_value_error(self, store: Store):
        with pytest.raises(ValueError, match="operations"):
            await store.commit(*(Record(f"/a/{i}", b"") for i in range(MAX_OPERATIONS)), guards=[Guard.exists("/a/x")])
        with pytest.raises(ValueError, match="bytes"):
            await store.commit(Record("/a/x", b"x" * (MAX_BYTES + 1)))
        assert (await store.scan("/a/"))[0] == []

    async def test_two_writes_of_one_key_are_a_value_error(self, store: Store):
        with pytest.raises(ValueError, match="twice"):
            await store.commit(Record("/a/x", b"1"), Record("/a/x", b"2"))

    # Races

    async def test_of_many_writers_of_one_key_one_wins(self, store: Store):
        results = await asyncio.gather(*(store.commit(Record("/a/x", str(i).encode())) for i in range(50)),
                                       return_exceptions=True)
        won = [i for i, result in enumerate(results) if isinstance(result, int)]
        assert len(won) == 1
        assert all(isinstance(result, Stale) for i, result in enumerate(results) if i not in won)
        assert (await store.get("/a/x")).value == str(won[0]).encode()

    async def test_a_counter_raised_by_many_counts_each(self, store: Store):
        async def raise_it() -> None:
            while True:
                record = await store.get("/a/count")
                try:
                    await store.commit(Record("/a/count", str(int(record.value or b"0") + 1).encode(), record.revision))
                    return
                except Stale:
                    continue

        await asyncio.gather(*(raise_it() for _ in range(12)))
        assert (await store.get("/a/count")).value == b"12"

    async def test_concurrent_commits_of_different_keys_all_win(self, store: Store):
        revisions = await asyncio.gather(*(store.commit(Record(f"/a/{i:04}", b"x")) for i in range(500)))
        records, _ = await store.scan("/a/")
        assert [record.revision for record in records] == revisions

    async def test_one_stale_commit_among_many_fails_alone(self, store: Store):
        taken = await store.commit(Record("/a/0013", b"taken"))
        results = await asyncio.gather(*(store.commit(Record(f"/a/{i:04}", b"x")) for i in range(100)), return_exceptions=True)
        assert [i for i, result in enumerate(results) if not isinstance(result, int)] == [13]
        assert isinstance(results[13], Stale)
        assert results[13].revision >= taken
        assert len((await store.scan("/a/"))[0]) == 100

    async def test_child_made_while_its_parent_is_deleted_never_is_an_orphan(self, store: Store):
        for round in range(20):
            parent, children = f"/parents/{round}", f"/children/{round}/"
            revision = await store.commit(Record(parent, b""))
            made, deleted = await asyncio.gather(
                store.commit(Record(children + "1", b""), guards=[Guard.exists(parent)]),
                store.commit(Record(parent, None, revision), guards=[Guard.empty(children)]), return_exceptions=True)
            assert isinstance(made, Stale) != isinstance(deleted, Stale)
            assert ((await store.get(parent)).value is None) == ((await store.get(children + "1")).value is None)

    # Watching

    async def test_a_watch_brings_every_change_after_its_revision_in_order(self, store: Store):
        start = await store.commit(Record("/w/before", b""))
        first = await store.commit(Record("/w/x", b"1"))
        await store.commit(Record("/other/x", b"1"), Record("/w", b"1"), Record("/w0", b"1"))
        second = await store.commit(Record("/w/x", b"2", first), Record("/w/y", b"1"))
        third = await store.commit(Record("/w/x", None, second))
        batches = await take(store, "/w/", start, 4)
        assert [batch.revision for batch in batches] == sorted({batch.revision for batch in batches})
        records = [record for batch in batches for record in batch.records]
        assert records[0] == Record("/w/x", b"1", first, first)
        assert sorted(records[1:3], key=lambda record: record.key) == [Record("/w/x", b"2", second, first),
                                                                       Record("/w/y", b"1", second, second)]
        assert records[3] == Record("/w/x", None, third)

    async def test_a_batch_holds_whole_revisions_and_names_the_last(self, store: Store):
        start = await store.commit(Record("/w/a", b""))
        for i in range(30):
            await store.commit(*(Record(f"/w/{i}/{j}", b"x" * 2000) for j in range(40)))
        batches = await take(store, "/w/", start, 1200)
        owners: dict[int, int] = {}
        for number, batch in enumerate(batches):
            assert batch.revision == batch.records[-1].revision
            for record in batch.records:
                assert owners.setdefault(record.revision, number) == number
        assert len(owners) == 30

    async def test_a_running_watch_brings_what_comes(self, store: Store):
        start = await store.commit(Record("/w/a", b""))
        task = asyncio.create_task(take(store, "/w/", start, 50))
        for i in range(50):
            await store.commit(Record(f"/w/{i:02}", b""))
        records = [record for batch in await task for record in batch.records]
        assert [record.key for record in records] == [f"/w/{i:02}" for i in range(50)]

    async def test_a_watch_resumed_from_a_batch_has_no_gap_and_no_repeat(self, store: Store):
        start = await store.commit(Record("/w/a", b""))
        revisions = [await store.commit(Record(f"/w/{i:02}", b"")) for i in range(20)]
        seen, keys = start, []
        while len(keys) < 20:
            for batch in await take(store, "/w/", seen, 1):
                keys += [record.key for record in batch.records]
                seen = batch.revision
        assert keys == [f"/w/{i:02}" for i in range(20)]
        assert seen == revisions[-1]

    async def test_many_watches_see_the_same(self, store: Store):
        start = await store.commit(Record("/w/a", b""))
        tasks = [asyncio.create_task(take(store, "/w/", start, 20)) for _ in range(10)]
        await asyncio.gather(*(store.commit(Record(f"/w/{i:02}", b"")) for i in range(20)))
        seen = [[(record.key, record.revision) for batch in await task for record in batch.records] for task in tasks]
        assert all(each == seen[0] for each in seen)

    async def test_a_watch_may_be_cancelled(self, store: Store):
        revision = await store.commit(Record("/w/a", b""))
        task = asyncio.create_task(take(store, "/w/", revision, 1))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    # Leases

    async def test_a_key_dies_with_its_lease_when_it_is_revoked(self, store: Store):
        lease = await store.grant(60)
        revision = await store.commit(Record("/l/x", b"1", lease=lease), Record("/l/y", b"1"))
        assert (await store.get("/l/x")).lease == lease
        await store.revoke(lease)
        assert (await store.get("/l/x")).value is None
        assert (await store.get("/l/y")).value == b"1"
        [batch] = await take(store, "/l/", revision, 1)
        assert [(record.key, record.value) for record in batch.records] == [("/l/x", None)]

    async def test_a_key_dies_when_its_lease_expires(self, store: Store):
        lease = await store.grant(1)
        revision = await store.commit(Record("/l/x", b"1", lease=lease))
        [batch] = await take(store, "/l/", revision, 1)
        assert batch.records == [Record("/l/x", None, batch.revision)]
        assert await asyncio.to_thread(store.renewer(), lease) is False

    async def test_a_lease_that_is_kept_alive_lives(self, store: Store):
        lease = await store.grant(60)
        assert await asyncio.to_thread(store.renewer(), lease) is True
        await store.revoke(lease)
        assert await asyncio.to_thread(store.renewer(), lease) is False

    async def test_revoking_twice_is_no_error(self, store: Store):
        lease = await store.grant(60)
        await store.revoke(lease)
        await store.revoke(lease)

    async def test_a_commit_with_an_expired_lease_is_stale_and_applies_nothing(self, store: Store):
        lease = await store.grant(60)
        await store.revoke(lease)
        with pytest.raises(Stale):
            await store.commit(Record("/l/x", b"1", lease=lease), Record("/l/y", b"1"))
        assert (await store.scan("/l/"))[0] == []

    async def test_a_write_without_the_lease_takes_the_key_out_of_it(self, store: Store):
        lease = await store.grant(60)
        revision = await store.commit(Record("/l/x", b"1", lease=lease))
        await store.commit(Record("/l/x", b"2", revision))
        await store.revoke(lease)
        assert (await store.get("/l/x")).value == b"2"

    # The end

    async def test_a_closed_store_is_unavailable_and_ends_its_watches(self, store: Store):
        revision = await store.commit(Record("/a/x", b"1"))
        task = asyncio.create_task(take(store, "/a/", revision, 1))
        await asyncio.sleep(0.2)
        await store.close()
        with pytest.raises(Unavailable):
            await task
        with pytest.raises(Unavailable):
            await store.get("/a/x")
        with pytest.raises(Unavailable):
            await store.commit(Record("/a/y", b"1"))
