"""The hub's difference between two revisions is the difference of the lists at them, whatever lies between."""
import asyncio
import contextlib
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Error
from control.kernel.rpc import Call
from control.kernel.store import MemoryStore, Record
from control.kernel.watchable import EVERYBODY, Related, Watchable, project
from control.watch.errors import TooOld
from control.watch.history import History
from control.watch.hub import Hub
from protos.internal.v1.quota_pb2 import QuotaLedger
from protos.watch.v1.watches_pb2 import WatchEvent
from tests.kernel.conftest import PART, THING, thing

PROJECTS = ["a", "b"]


def audience(reader, record: QuotaLedger):
    """A thing is its service's; its part "open" makes it everybody's, and its part "hidden" nobody's."""
    parts = {part.name for part in map(_Part, reader.rows(PART)) if part.thing == record.project_id}
    if "hidden" in parts:
        return None
    return [project(record.service), *([EVERYBODY] if "open" in parts else [])]


class _Part:
    def __init__(self, struct):
        self.thing, self.name = struct["thing"], struct["name"]


WATCHABLE = Watchable("things", THING, "/none.v1.Things/ListThings", lambda record, call: record, audience=audience,
                      related=[Related(PART, lambda reader, part: [THING.key(part["thing"])])])

#: (what, thing, its project)
CHANGES = st.lists(st.tuples(st.sampled_from(["put", "delete", "open", "close", "hide", "show"]),
                             st.sampled_from(["x", "y", "z"]), st.sampled_from(PROJECTS)), min_size=1, max_size=25)


def part(name: str, of: str) -> Any:
    message = PART.message()
    message.update({"thing": of, "name": name})
    return message


async def commit(database: Database, changes: list[tuple[str, str, str]]) -> None:
    """Apply changes in one commit each, or two at once."""
    for index in range(0, len(changes), 2):
        pair = changes[index:index + 1 + index % 4 // 2]

        def decide(tx, pair=pair, index=index):
            for what, name, owner in pair:
                match what:
                    case "put":
                        message = thing(name, owner, cores=len(changes) + index)
                        message.project_id, message.service = name, owner
                        tx.put(THING, message)
                    case "delete":
                        tx.delete(THING, name)
                    case "open" | "hide":
                        tx.put(PART, part({"open": "open", "hide": "hidden"}[what], name))
                    case _:
                        tx.delete(PART, name, {"close": "open", "show": "hidden"}[what])

        await database.transact(decide)


@contextlib.asynccontextmanager
async def running(store):
    database = Database(store, [THING, PART])
    hub = Hub(database, [WATCHABLE])
    task = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    try:
        yield database, hub
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def rows(database: Database, caller: str) -> dict[str, QuotaLedger]:
    """What a project's list would show."""
    return {THING.key_of(record): record for record in database.rows(THING)
            if (names := audience(database, record)) is not None and {EVERYBODY, project(caller)} & set(names)}


def call_of(name: str) -> Call:
    return Call(caller_or_none=Caller(user_id=name, project_id=name))


def apply(copy: dict[str, QuotaLedger], events) -> None:
    for event in events:
        message = QuotaLedger()
        assert event.object.Unpack(message)
        key = THING.key_of(message)
        if event.type == WatchEvent.DELETED:
            copy.pop(key, None)
        else:
            copy[key] = message


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(CHANGES, CHANGES, st.integers(0, 30))
def test_a_list_and_the_events_since_it_are_the_list_now(before, after, cut):
    async def scenario() -> None:
        store = MemoryStore()
        async with running(store) as (database, hub):
            await commit(database, before)
            lists = {name: rows(database, name) for name in PROJECTS}
            revision = database.cache.revision
            listens = {name: frozenset({EVERYBODY, project(name)}) for name in PROJECTS}
            with contextlib.ExitStack() as stack:
                live = {name: stack.enter_context(hub.reading(WATCHABLE, listens[name], call_of(name))) for name in PROJECTS}
                shown: dict[str, set[str]] = {name: set(lists[name]) for name in PROJECTS}
                for index in range(0, len(after), 2):
                    await commit(database, after[index:index + 2])
                    for name in PROJECTS:
                        shown[name] |= set(rows(database, name))
                for name, reader in live.items():
                    copy = dict(lists[name])
                    while (told := await reader.take(0.001)) is not None:
                        apply(copy, told.events)
                        assert [event.revision for event in told.events[:-1]] == [0] * (len(told.events) - 1)
                        assert told.events[-1].revision == told.revision
                    assert copy == rows(database, name)
            async with running(store) as (fresh, another):
                for other in (hub, another):
                    await other.history.reach(revision)
                    for name in PROJECTS:
                        with other.reading(WATCHABLE, listens[name], call_of(name)) as reader:
                            events = list(other.begin(reader, revision, name))
                        copy = dict(lists[name])
                        apply(copy, events[:cut])          # a part of it, and then all of it
                        apply(copy, events)
                        assert copy == rows(fresh, name)
                        for event in events:
                            message = QuotaLedger()
                            event.object.Unpack(message)
                            assert THING.key_of(message) in shown[name]
        await store.close()

    asyncio.run(scenario())


async def test_memory_keeps_so_many_changes_and_the_store_has_the_rest(store):
    database = Database(store, [THING, PART])
    task = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    history = History(database, [THING], changes=5)
    with database.cache.following(lambda changes, revision, listed: history.append(history.mine(changes))):
        start = database.cache.revision
        await commit(database, [("put", "x", "a")] * 20)
        assert history.start > start and len(history.since(history.start)) <= 5
        oldest = history.start
        try:
            await history.reach(start)
            raise AssertionError("more changes than may be kept")
        except TooOld as error:
            assert error.http == 410 and isinstance(error, Error)
        assert history.start >= oldest
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_watch_says_what_a_record_replaced(store):
    first = await store.commit(Record("/t/a", b"1"))
    second = await store.commit(Record("/t/a", b"2", first))
    await store.commit(Record("/t/a", None, second))
    found = []
    watch = store.watch("/t/", first - 1, previous=True)
    async for batch in watch:
        found += [(record.previous, record.value) for record in batch.records]
        if len(found) == 3:
            break
    await watch.aclose()
    assert found == [(None, b"1"), (b"1", b"2"), (b"2", None)]
