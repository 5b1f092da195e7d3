"""The cache is the store, decoded: at every revision, after every gap, in every index."""
import asyncio
import contextlib
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.kernel.cache import Cache, Change, Kind
from control.kernel.errors import Unavailable
from control.kernel.overlay import Overlay
from control.kernel.store import MemoryStore, Record
from protos.internal.v1.quota_pb2 import QuotaLedger
from tests.kernel.conftest import PART, THING, part, thing


@contextlib.asynccontextmanager
async def following(cache: Cache):
    task = asyncio.create_task(cache.run())
    async with asyncio.timeout(10):
        await cache.ready.wait()
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def put(store, message: QuotaLedger, revision: int = 0) -> int:
    return await store.commit(Record(THING.key_of(message), message.SerializeToString(), revision))


async def test_it_has_what_was_there_before_and_what_came_after(store):
    await put(store, thing("old", "a"))
    cache = Cache(store, [THING])
    async with following(cache):
        assert cache.get(THING, "old") == thing("old", "a")
        revision = await put(store, thing("new", "b"))
        await cache.wait(revision)
        assert cache.at(THING, THING.key("new")) == (revision, thing("new", "b"))
        await cache.wait(await store.commit(Record(THING.key("new"), None, revision)))
        assert cache.get(THING, "new") is None
        assert cache.keys(THING) == [THING.key("old")]


async def test_an_index_follows_changes_of_its_value(store):
    cache = Cache(store, [THING])
    async with following(cache):
        revision = await put(store, thing("x", "a", cores=1, ram=2))
        await cache.wait(revision)
        assert cache.by(THING, "service", "a") == cache.by(THING, "resource", "ram") == [thing("x", "a", cores=1, ram=2)]
        revision = await put(store, thing("x", "b", cores=1), revision)
        await cache.wait(revision)
        assert cache.by(THING, "service", "a") == cache.by(THING, "resource", "ram") == []
        assert cache.count(THING, "service", "b") == cache.count(THING, "resource", "cores") == 1
        await cache.wait(await store.commit(Record(THING.key("x"), None, revision)))
        assert cache.count(THING, "service", "b") == 0


async def test_two_kinds_written_in_one_commit_appear_together(store):
    cache = Cache(store, [THING, PART])
    seen = []
    async with following(cache):
        with cache.listening(lambda change: seen.append((cache.get(THING, "x"), cache.get(PART, "x", "1")))):
            message = PART.message()
            message.update({"thing": "x", "name": "1"})
            revision = await store.commit(Record(THING.key("x"), thing("x").SerializeToString()),
                                          Record(PART.key("x", "1"), message.SerializeToString()))
            await cache.wait(revision)
    assert len(seen) == 2
    assert all(all(pair) for pair in seen)


async def test_listeners_get_each_change_with_before_and_after(store):
    cache = Cache(store, [THING])
    changes: list[Change] = []
    async with following(cache):
        with cache.listening(changes.append):
            first = await put(store, thing("x", "a"))
            second = await put(store, thing("x", "b"), first)
            third = await store.commit(Record(THING.key("x"), None, second))
            await cache.wait(third)
        await cache.wait(await put(store, thing("after")))
    key = THING.key("x")
    assert changes == [Change(THING, key, None, thing("x", "a"), first),
                       Change(THING, key, thing("x", "a"), thing("x", "b"), second),
                       Change(THING, key, thing("x", "b"), None, third)]


async def test_a_listener_that_fails_stops_neither_the_cache_nor_the_others(store, caplog):
    cache = Cache(store, [THING])
    seen = []

    def broken(change: Change) -> None:
        raise RuntimeError("a bug")

    async with following(cache):
        with cache.listening(broken), cache.listening(seen.append):
            await cache.wait(await put(store, thing("x")))
    assert len(seen) == 1
    assert "a bug" in caplog.text


async def test_a_record_that_is_no_such_message_is_passed_over(store, caplog):
    cache = Cache(store, [THING])
    async with following(cache):
        await cache.wait(await store.commit(Record(THING.key("bad"), b"\xff\xff\xff")))
        await cache.wait(await put(store, thing("good")))
        assert cache.keys(THING) == [THING.key("good")]
    assert THING.key("bad") in caplog.text


async def test_waiting_for_a_revision_that_does_not_come_is_unavailable(store):
    cache = Cache(store, [THING])
    async with following(cache):
        with pytest.raises(Unavailable, match="behind"):
            await cache.wait(cache.revision + 1000, timeout=0.05)


async def test_listeners_to_some_kinds_hear_of_no_others_and_of_nothing_once_they_have_left(store):
    cache, things, parts, all_ = Cache(store, [THING, PART]), [], [], []
    async with following(cache):
        with cache.listening(lambda change: all_.append(change.key)):
            with cache.listening(lambda change: things.append(change.key), THING), \
                    cache.listening(lambda change: parts.append(change.key), PART):
                await put(store, thing("x"))
                child = part("x", "y")
                await cache.wait(await store.commit(Record(PART.key_of(child), child.SerializeToString())))
            await cache.wait(await put(store, thing("z")))
    assert (things, parts) == ([THING.key("x")], [PART.key("x", "y")])
    assert all_ == [THING.key("x"), PART.key("x", "y"), THING.key("z")]


async def test_after_compaction_it_lists_again_and_tells_listeners_the_difference():
    store = MemoryStore()
    first = await put(store, thing("stays"))
    gone = await put(store, thing("goes"))
    changed = await put(store, thing("changes", "a"))
    cache = Cache(store, [THING])
    changes: list[Change] = []
    watch, hold = store.watch, asyncio.Event()

    async def late_watch(prefix: str, after: int):
        await hold.wait()
        async for batch in watch(prefix, after):
            yield batch

    store.watch = late_watch
    async with following(cache):
        with cache.listening(changes.append):
            await store.commit(Record(THING.key("goes"), None, gone))
            await put(store, thing("changes", "b"), changed)
            await put(store, thing("comes"))
            store.compact()
            hold.set()
            await cache.wait(await put(store, thing("last")))
    assert cache.at(THING, THING.key("stays"))[0] == first
    assert [(change.key.rsplit("/", 1)[1], change.before is None, change.after is None) for change in changes] == [
        ("goes", False, True), ("changes", False, False), ("comes", True, False), ("last", True, False)]


async def test_the_longest_prefix_decides_the_kind():
    outer, inner, single = (Kind(prefix, QuotaLedger, id_of=lambda row: (row.project_id,))
                            for prefix in ("/a/b/", "/a/b/c/", "/one/"))
    store = MemoryStore()
    cache = Cache(store, [outer, inner, single])
    async with following(cache):
        for key in ("/a/b/x", "/a/b/c/x", "/one/x", "/a/x", "/x", "none"):
            await store.commit(Record(key, thing("x").SerializeToString()))
        await cache.wait((await store.scan("/"))[1] - 1)
        assert [cache.keys(kind) for kind in (outer, inner, single)] == [["/a/b/x"], ["/a/b/c/x"], ["/one/x"]]


def test_a_prefix_is_used_once_and_ends_in_a_slash():
    with pytest.raises(ValueError, match="slash"):
        Cache(MemoryStore(), [Kind("/a", QuotaLedger)])
    with pytest.raises(ValueError, match="once"):
        Cache(MemoryStore(), [Kind("/a/", QuotaLedger), Kind("/a/", QuotaLedger)])


@given(st.lists(st.text(max_size=5), min_size=1, max_size=3), st.lists(st.text(max_size=5), min_size=1, max_size=3))
def test_different_ids_have_different_keys_of_as_many_segments(one, other):
    assert (THING.key(*one) == THING.key(*other)) == (one == other)
    assert THING.key(*one).count("/") == THING.prefix.count("/") + len(one) - 1


names = st.sampled_from("abcd")
steps = st.lists(st.one_of(
    st.tuples(st.just("put"), names, st.sampled_from("st"), st.integers(0, 3)),
    st.tuples(st.just("delete"), names),
    st.tuples(st.just("compact")),
    st.tuples(st.just("pause"))), max_size=40)


@settings(deadline=None)
@given(steps, st.booleans())
def test_whatever_happens_it_equals_the_store_and_its_indexes_a_recount(script, packed):
    async def play() -> None:
        kind = replace(THING, packed=packed)
        store = MemoryStore()
        cache = Cache(store, [kind])
        replayed: dict[str, QuotaLedger | None] = {}

        def replay(change: Change) -> None:
            assert replayed.get(change.key) == change.before
            replayed[change.key] = change.after

        with cache.listening(replay):
            async with following(cache):
                for what, *arguments in script:
                    if what == "put":
                        message = thing(arguments[0], arguments[1], **{f"r{arguments[2]}": 1})
                        await put(store, message, (await store.get(THING.key_of(message))).revision)
                    elif what == "delete":
                        key = THING.key(arguments[0])
                        await store.commit(Record(key, None, (await store.get(key)).revision))
                    elif what == "compact":
                        store.compact()
                    else:
                        await asyncio.sleep(0)
                records, revision = await store.scan("/")
                await cache.wait(revision)
        expected = {record.key: QuotaLedger.FromString(record.value) for record in records}
        assert {key: cache.at(kind, key)[1] for key in cache.keys(kind)} == expected
        assert {key: message for key, message in replayed.items() if message is not None} == expected
        for index, values_of in THING.indexes.items():
            for value in "s", "t", "r0", "r1", "r2", "r3":
                found = sorted(message.project_id for message in cache.by(kind, index, value))
                assert found == sorted(message.project_id for message in expected.values() if value in values_of(message))
        assert THING.order is not None
        ordered = sorted(expected, key=lambda key: (THING.order(expected[key]), key))
        for view in cache, Overlay(cache, queue=lambda name: asyncio.sleep(0)):
            assert list(view.in_order(kind)) == [expected[key] for key in ordered]
            for place, key in enumerate(ordered):
                assert list(view.in_order(kind, key)) == [expected[key] for key in ordered[place + 1:]]

    asyncio.run(play())
