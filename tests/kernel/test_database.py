"""Decisions: on one snapshot, committed whole, made again when the world moved, and never starved."""
import asyncio
import time

import pytest

from control.kernel.database import ATTEMPTS, Database
from control.kernel.errors import Conflict, NotFound, Stale, Unavailable
from control.kernel.store import Guard, MemoryStore, Record
from tests.kernel.conftest import PART, THING, part, thing


def add(name: str, amount: int = 1):
    """A decision that counts up."""
    def decide(tx) -> int:
        row = tx.get(THING, name) or thing(name)
        row.used["n"] += amount
        tx.put(THING, row)
        return row.used["n"]
    return decide


async def test_a_decision_is_answered_once_its_reads_show_it(db: Database):
    assert await db.transact(add("x")) == 1
    assert db.require(THING, "x").used["n"] == 1
    assert await db.transact(add("x")) == 2
    assert db.get(THING, "x").used["n"] == 2


async def test_a_decision_sees_its_own_writes(db: Database):
    await db.transact(lambda tx: (tx.put(THING, thing("old", "s")), tx.put(THING, thing("goes", "s"))))

    def decide(tx):
        tx.put(THING, thing("new", "s"))
        tx.put(THING, thing("old", "t"))
        tx.delete(THING, "goes")
        assert tx.get(THING, "new").service == "s"
        assert tx.get(THING, "goes") is None
        return [sorted(row.project_id for row in rows)
                for rows in (tx.rows(THING), tx.rows(THING, "service", "s"), tx.rows(THING, "service", "t"))]

    assert await db.transact(decide) == [["new", "old"], ["new"], ["old"]]


async def test_what_a_decision_gets_is_a_copy(db: Database):
    await db.transact(add("x"))
    await db.transact(lambda tx: tx.require(THING, "x").used.clear())
    assert db.get(THING, "x").used["n"] == 1


async def test_a_decision_that_raises_changes_nothing(db: Database):
    def decide(tx):
        tx.put(THING, thing("x"))
        raise Conflict("test.no", "no")

    with pytest.raises(Conflict):
        await db.transact(decide)
    assert db.get(THING, "x") is None


async def test_deleting_and_creating_again_within_a_decision_is_an_update(db: Database):
    await db.transact(add("x"))
    before = (await db.store.get(THING.key("x"))).created

    def decide(tx):
        tx.delete(THING, "x")
        tx.put(THING, thing("x", "again"))

    await db.transact(decide)
    record = await db.store.get(THING.key("x"))
    assert record.created == before
    assert db.get(THING, "x").service == "again"


async def test_creating_and_deleting_within_a_decision_is_nothing(db: Database):
    revision = db.cache.revision

    def decide(tx):
        tx.put(THING, thing("x"))
        tx.delete(THING, "x")

    await db.transact(decide)
    assert (await db.store.scan("/test/"))[0] == []
    assert db.cache.revision == revision


async def test_a_missing_thing_is_named(db: Database):
    with pytest.raises(NotFound, match="QuotaLedger nope could not be found") as error:
        db.require(THING, "nope")
    assert error.value.reason == "test.things.missing"
    with pytest.raises(NotFound):
        await db.transact(lambda tx: tx.require(THING, "nope"))


@pytest.mark.parametrize("serial", ["", "one"])
async def test_200_concurrent_decisions_on_one_key_all_count(db: Database, serial: str):
    answers = await asyncio.gather(*(db.transact(add("x"), serial=serial) for _ in range(200)))
    assert sorted(answers) == list(range(1, 201))
    assert db.get(THING, "x").used["n"] == 200
    assert db._locks == {}


async def test_decisions_on_two_contended_keys_in_either_order_do_not_lock_each_other_out(db: Database):
    def both(first: str, second: str):
        def decide(tx) -> None:
            add(first)(tx)
            add(second)(tx)
        return decide

    async with asyncio.timeout(60):
        await asyncio.gather(*(db.transact(both(*pair)) for pair in (("x", "y"), ("y", "x")) * 40),
                             *(db.transact(add(name)) for name in "xy" * 20))
    assert db.get(THING, "x").used["n"] == db.get(THING, "y").used["n"] == 100


async def test_two_replicas_on_one_key_both_get_through(db: Database):
    other = Database(db.store, [THING])
    follow = asyncio.create_task(other.cache.run())
    await other.cache.ready.wait()
    await asyncio.gather(*(replica.transact(add("x")) for replica in (db, other) * 60))
    follow.cancel()
    assert THING.message.FromString((await db.store.get(THING.key("x"))).value).used["n"] == 120


async def test_a_decision_whose_caller_goes_away_frees_its_place_in_the_queue(db: Database):
    tasks = [asyncio.create_task(db.transact(add("x"), serial="one")) for _ in range(20)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(result, int) for result in results) == 10
    assert db._locks == {}


async def test_a_race_that_is_never_won_ends_and_names_the_key():
    class Racing(MemoryStore):
        async def commit(self, *writes, guards=()):
            raise Stale("store.stale", "always", key=writes[0].key)

    db = Database(Racing(), [THING])
    calls = []
    with pytest.raises(Unavailable, match="/test/things/x"):
        await db.transact(lambda tx: (calls.append(1), tx.put(THING, thing("x"))))
    assert len(calls) == ATTEMPTS


async def test_a_commit_that_this_replica_does_not_see_in_time_is_answered_all_the_same(monkeypatch, caplog):
    db = Database(MemoryStore(), [THING])
    wait = db.cache.wait
    monkeypatch.setattr(db.cache, "wait", lambda revision: wait(revision, timeout=0.01))
    assert await db.transact(add("x")) == 1      # its cache does not run at all
    assert "behind" in caplog.text


async def test_a_fallen_fence_ends_a_leaders_decision_at_once(db: Database):
    fence = Guard.created("/election/job", await db.store.commit(Record("/election/job", b"me")))
    await db.transact(add("x"), guards=[fence])
    revision = (await db.store.get("/election/job")).revision
    await db.store.commit(Record("/election/job", None, revision))
    started = time.monotonic()
    with pytest.raises(Stale):
        await db.transact(add("x"), guards=[fence])
    assert time.monotonic() - started < 4
    assert db.get(THING, "x").used["n"] == 1


async def test_a_leader_with_a_standing_fence_tries_again_after_a_race(db: Database):
    fence = Guard.created("/election/job", await db.store.commit(Record("/election/job", b"me")))
    await asyncio.gather(*(db.transact(add("x"), guards=[fence]) for _ in range(20)))
    assert db.get(THING, "x").used["n"] == 20


async def test_of_a_parents_deletion_and_a_childs_creation_one_is_refused(db: Database):
    def create(name: str):
        def decide(tx) -> None:
            tx.require(THING, name)
            tx.guard_exists(THING, name)
            tx.put(PART, part(name, "1"))
        return decide

    def delete(name: str):
        def decide(tx) -> None:
            if any(row["thing"] == name for row in tx.rows(PART)):
                raise Conflict("test.used", "in use")
            tx.guard_empty(PART, name)
            tx.delete(THING, name)
        return decide

    for i in range(15):
        name = f"{i}"
        await db.transact(add(name))
        results = await asyncio.gather(db.transact(create(name)), db.transact(delete(name)), return_exceptions=True)
        assert sum(isinstance(result, NotFound | Conflict) for result in results) == 1
        assert (db.get(THING, name) is None) == (db.get(PART, name, "1") is None)


async def test_a_guard_on_what_did_not_change_lets_the_commit_through(db: Database):
    await db.transact(add("x"))

    def decide(tx) -> None:
        tx.guard_unchanged(THING, "x")
        tx.guard_unchanged(THING, "none")
        tx.put(THING, thing("y"))

    await db.transact(decide)
    assert db.get(THING, "y") is not None


async def test_a_guard_on_what_changed_makes_the_decision_anew(db: Database):
    await db.transact(add("x"))
    seen = []

    def decide(tx) -> None:
        seen.append(tx.get(THING, "x").used["n"])
        tx.guard_unchanged(THING, "x")
        tx.put(THING, thing("y", str(seen[-1])))

    await asyncio.gather(db.transact(add("x")), db.transact(decide))
    assert db.get(THING, "y").service == str(seen[-1])
    assert db.get(THING, "x").used["n"] == 2


async def test_a_decision_that_writes_nothing_is_confirmed_where_that_is_asked_for(db: Database):
    await db.transact(add("x"))
    seen: list[int] = []

    def look(tx) -> int:
        tx.guard_unchanged(THING, "x")
        seen.append(tx.require(THING, "x").used["n"])
        return seen[-1]

    changed = thing("x")
    changed.used["n"] = 7
    record = Record(THING.key("x"), changed.SerializeToString(), db.cache.at(THING, THING.key("x"))[0])
    revision = await db.store.commit(record)             # by somebody else: this replica's reads may not show it yet
    assert await db.transact(look, confirm=True) == 7
    assert seen == [1, 7] or not isinstance(db.store, MemoryStore)
    assert await db.transact(look, confirm=True) == 7
    assert (await db.store.get(record.key)).revision == revision, "looking writes nothing"
