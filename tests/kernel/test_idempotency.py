"""A call and its repetitions take effect once: whatever is lost, whoever is asked, and whatever the call does."""
import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.kernel import idempotency
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Conflict, Error, Exhausted, Invalid, NotFound, Unavailable
from control.kernel.idempotency import MARKS, PREFIX, SLICES, IdempotencyKeys, InProgress, parse, sweep
from control.kernel.overlay import outside
from control.kernel.quota import LEDGER
from control.kernel.store import MAX_OPERATIONS, MemoryStore, Record, Store
from protos.internal.v1.idempotency_pb2 import IdempotentAnswer
from tests.kernel.conftest import PART, THING, part, thing

ME, OTHER = Caller("me", project_id="p"), Caller("other", project_id="p")

KEPT = timedelta(hours=24)

NUMBERS = itertools.count()


@contextlib.asynccontextmanager
async def replica(store: Store) -> AsyncIterator[Database]:
    database = Database(store, [THING, PART, LEDGER])
    task = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    try:
        yield database
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


class Maker:
    """A call that makes a thing with a name of its own, counts it, and answers its name."""

    def __init__(self, database: Database):
        self.database = database

    async def __call__(self) -> IdempotentAnswer:
        name = f"thing-{next(NUMBERS)}"

        def decide(tx) -> None:
            tx.put(THING, thing(name, "made"))
            count = tx.get(THING, "count") or thing("count")
            count.used["n"] += 1
            tx.put(THING, count)

        await self.database.transact(decide, serial="count")
        assert self.database.require(THING, name).service == "made"        # a call reads what it wrote
        return IdempotentAnswer(response=name.encode(), status=202)


def made(database: Database) -> list[str]:
    return sorted(row.project_id for row in database.rows(THING, "service", "made"))


def nothing() -> Callable:
    async def run() -> IdempotentAnswer:
        raise AssertionError("this call was made before")
    return run


async def test_a_call_that_is_repeated_is_answered_again_and_takes_effect_once(db: Database):
    keys = IdempotencyKeys(db)
    first, replayed = await keys.once(ME, "key", b"make", Maker(db))
    assert not replayed
    again = await keys.once(ME, "key", b"make", nothing())
    assert again == (first, True)
    assert made(db) == [first.response.decode()]


async def test_another_call_with_a_used_key_is_refused_and_does_nothing(db: Database):
    keys = IdempotencyKeys(db)
    await keys.once(ME, "key", b"make", Maker(db))
    with pytest.raises(Conflict, match="another request"):
        await keys.once(ME, "key", b"make it red", nothing())
    assert len(made(db)) == 1


async def test_keys_of_others_are_other_keys(db: Database):
    keys = IdempotencyKeys(db)
    callers = [ME, OTHER, Caller("me", project_id="q"), Caller("me", domain_id="p"), Caller("me"), Caller("me", system=True)]
    answers = {(await keys.once(caller, "key", b"make", Maker(db)))[0].response for caller in callers}
    assert len(answers) == len(callers) == len(made(db))


async def test_the_store_has_neither_key_nor_answer_in_the_clear(db: Database):
    secret = b"the-password-of-the-new-credential"

    async def run() -> IdempotentAnswer:
        await db.transact(lambda tx: tx.put(THING, thing("x")))
        return IdempotentAnswer(response=secret)

    keys = IdempotencyKeys(db)
    await keys.once(ME, "my-idempotency-key", b"a-request-with-a-pin-1234", run)
    records, _ = await db.store.scan("")
    mine = [record for record in records if record.key.startswith(PREFIX)]
    assert len(mine) == 1
    for record in records:
        whole = record.key.encode() + (record.value or b"")
        for hidden in (secret, b"my-idempotency-key", b"1234", b"make"):
            assert hidden not in whole
    assert (await keys.once(ME, "my-idempotency-key", b"a-request-with-a-pin-1234", nothing()))[0].response == secret


async def test_a_damaged_record_is_no_leave_to_do_it_again(db: Database):
    keys = IdempotencyKeys(db)
    await keys.once(ME, "key", b"make", Maker(db))
    record = (await db.store.scan(PREFIX))[0][0]
    content = idempotency.IdempotencyRecord.FromString(record.value)
    content.sealed_answer = content.sealed_answer[:-1] + bytes([content.sealed_answer[-1] ^ 1])
    await db.store.commit(Record(record.key, content.SerializeToString(), record.revision))
    with pytest.raises(Conflict, match="was carried out"):
        await keys.once(ME, "key", b"make", nothing())


@pytest.mark.parametrize("error", [
    NotFound("thing", "not yet"), Conflict("thing.state", "not now"), Exhausted("quota", "no room"),
    Invalid("thing.name", "not so"),
], ids=lambda error: type(error).__name__)
async def test_a_refusal_is_kept_so_that_a_copy_that_comes_late_does_nothing(db: Database, error: Error):
    async def refused() -> IdempotentAnswer:
        raise error

    keys = IdempotencyKeys(db)
    for run in refused, nothing(), Maker(db):
        with pytest.raises(type(error), match=str(error)) as told:
            await keys.once(ME, "key", b"make", run)
        assert told.value.reason == error.reason
    assert ("Idempotency-Replayed", "true") in told.value.headers and made(db) == []
    assert not (await keys.once(ME, "another key", b"make", Maker(db)))[1]
    await sweep(db.store, 0, KEPT)
    for slice_ in range(SLICES):
        await sweep(db.store, slice_, timedelta(0))
    assert (await db.store.scan(PREFIX))[0] == (await db.store.scan(MARKS))[0] == []


async def test_what_is_no_answer_is_not_kept(db: Database):
    async def silent() -> IdempotentAnswer:
        raise Unavailable("store", "silent")

    keys, maker = IdempotencyKeys(db), Maker(db)
    with pytest.raises(Unavailable):
        await keys.once(ME, "key", b"make", silent)
    answer, replayed = await keys.once(ME, "key", b"make", maker)
    assert not replayed and made(db) == [answer.response.decode()]


async def test_what_a_failed_call_wrote_is_committed_all_the_same(db: Database):
    async def wrong_password() -> IdempotentAnswer:
        await db.transact(lambda tx: tx.put(THING, thing("failures", n=1)))
        raise NotFound("user", "no")

    for _ in range(2):
        with pytest.raises(NotFound):
            await IdempotencyKeys(db).once(ME, "key", b"log in", wrong_password)
    assert db.require(THING, "failures").used["n"] == 1


async def test_a_call_that_writes_nothing_leaves_nothing(db: Database):
    async def run() -> IdempotentAnswer:
        return IdempotentAnswer(response=b"dry")

    assert await IdempotencyKeys(db).once(ME, "key", b"try", run) == (IdempotentAnswer(response=b"dry"), False)
    assert (await db.store.scan(PREFIX))[0] == []


async def test_a_bug_leaves_nothing(db: Database):
    async def bug() -> IdempotentAnswer:
        await db.transact(lambda tx: tx.put(THING, thing("half")))
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError):
        await IdempotencyKeys(db).once(ME, "key", b"make", bug)
    assert db.get(THING, "half") is None and (await db.store.scan(PREFIX))[0] == []


async def test_the_same_key_many_times_at_once_at_two_replicas_takes_effect_once(store: Store):
    async with replica(store) as one, replica(store) as two:
        makers = [Maker(database) for database in (one, two)]
        calls = [IdempotencyKeys(maker.database).once(ME, "key", b"make", maker) for _ in range(25) for maker in makers]
        answers = await asyncio.gather(*calls)
        assert len({answer.response for answer, _ in answers}) == 1
        assert sum(not replayed for _, replayed in answers) == 1
        await one.cache.wait(two.cache.revision)
        assert made(one) == [answers[0][0].response.decode()] and one.require(THING, "count").used["n"] == 1


async def test_keyed_and_plain_calls_that_want_the_same_record_all_get_their_turn(store: Store):
    async with replica(store) as one, replica(store) as two:
        keyed = [IdempotencyKeys(database).once(ME, f"{number}-{database is one}", b"make", Maker(database))
                 for number in range(40) for database in (one, two)]
        plain = [Maker(database)() for _ in range(40) for database in (one, two)]
        await asyncio.gather(*keyed, *plain)
        await one.cache.wait(two.cache.revision)
        await two.cache.wait(one.cache.revision)
        assert one.require(THING, "count").used["n"] == 160 == len(made(two))


async def test_who_loses_to_its_twin_answers_as_the_twin_even_where_it_would_fail_now(store: Store):
    """The other replica's call has made the name; this one would be told that the name is taken."""
    async with replica(store) as one, replica(store) as two:
        async def taken_meanwhile() -> IdempotentAnswer:
            await IdempotencyKeys(two).once(ME, "key", b"make", Maker(two))
            raise Conflict("name", "taken")

        answer, replayed = await IdempotencyKeys(one).once(ME, "key", b"make", taken_meanwhile)
        assert replayed and made(two) == [answer.response.decode()]


class Crash(BaseException):
    pass


class MortalStore(MemoryStore):
    """Crashes at a commit: before it takes effect, or after it and before its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None
        self.after = False

    async def commit(self, *writes, guards=()):
        if self.left == 0 and not self.after:
            raise Crash
        revision = await super().commit(*writes, guards=guards)
        if self.left == 0:
            raise Crash
        if self.left is not None:
            self.left -= 1
        return revision


@pytest.mark.parametrize("after", [False, True])
async def test_a_call_that_dies_anywhere_is_made_once_when_it_is_repeated(after: bool):
    store = MortalStore()
    async with replica(store) as database:
        store.left, store.after = 0, after
        with pytest.raises(Crash):
            await IdempotencyKeys(database).once(ME, "key", b"make", Maker(database))
    store.left = None
    async with replica(store) as database:
        assert len(made(database)) == after
        answer, replayed = await IdempotencyKeys(database).once(ME, "key", b"make", Maker(database))
        assert replayed == after and made(database) == [answer.response.decode()]


# Calls that are more than one commit

class Many:
    """A call that makes more than one commit holds, in portions; after a number of them it may fail."""

    def __init__(self, database: Database, fails: Exception | None = None):
        self._database, self._fails = database, fails

    async def __call__(self) -> IdempotentAnswer:
        for portion in range(3):
            if self._fails is not None and portion == 2:
                raise self._fails
            await self._database.transact(lambda tx, portion=portion: [
                tx.put(THING, thing(f"{portion}-{number}", "made")) for number in range(MAX_OPERATIONS - 10)])
        return IdempotentAnswer(response=b"many")


async def test_a_call_of_many_commits_is_answered_again(db: Database):
    keys = IdempotencyKeys(db)
    answer, replayed = await keys.once(ME, "key", b"many", Many(db))
    assert not replayed and len(made(db)) == 3 * (MAX_OPERATIONS - 10)
    assert await keys.once(ME, "key", b"many", nothing()) == (answer, True)
    assert (await db.store.scan(MARKS))[0] == []


async def test_a_call_with_other_effects_is_run_apart_even_where_its_refusal_is_swallowed(db: Database):
    effects = []

    async def run() -> IdempotentAnswer:
        await db.transact(lambda tx: tx.put(THING, thing("x")))
        with contextlib.suppress(Exception):
            db.apart()
            effects.append(db.get(THING, "x") is not None)
        return IdempotentAnswer(response=b"done")

    assert not (await IdempotencyKeys(db).once(ME, "key", b"x", run))[1]
    assert effects == [True]
    assert (await IdempotencyKeys(db).once(ME, "key", b"x", nothing()))[1]


async def test_while_a_call_of_many_commits_runs_elsewhere_its_repetition_is_told_to_wait(store: Store):
    async with replica(store) as one, replica(store) as two:
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> IdempotentAnswer:
            one.apart()
            reached.set()
            await go_on.wait()
            return await Many(one)()

        running = asyncio.create_task(IdempotencyKeys(one).once(ME, "key", b"many", slow))
        await reached.wait()
        with pytest.raises(InProgress) as told:
            await IdempotencyKeys(two).once(ME, "key", b"many", nothing())
        assert dict(told.value.headers)["Retry-After"].isdecimal() and told.value.http == 409
        go_on.set()
        answer, _ = await running
        assert await IdempotencyKeys(two).once(ME, "key", b"many", nothing()) == (answer, True)


@pytest.mark.parametrize("crash", [1, 2, 3, 4])
async def test_a_call_of_many_commits_that_dies_says_that_its_end_is_not_known(crash: int, monkeypatch):
    store = MortalStore()
    async with replica(store) as database:
        store.left = crash
        with pytest.raises(Crash):
            await IdempotencyKeys(database).once(ME, "key", b"many", Many(database))
    store.left = None
    async with replica(store) as database:
        count = len(made(database))
        with pytest.raises(InProgress):
            await IdempotencyKeys(database).once(ME, "key", b"many", nothing())
        monkeypatch.setattr(idempotency, "RUNNING", timedelta(0))
        with pytest.raises(Conflict, match="cut off"):
            await IdempotencyKeys(database).once(ME, "key", b"many", nothing())
        assert len(made(database)) == count


async def test_a_call_of_many_commits_that_is_refused_stays_refused(db: Database):
    keys = IdempotencyKeys(db)
    for run in Many(db, fails=Conflict("quota", "no room")), nothing():
        with pytest.raises(Conflict, match="no room"):
            await keys.once(ME, "key", b"many", run)
    assert (await db.store.scan(MARKS))[0] == []


async def test_a_call_of_many_commits_whose_end_the_store_did_not_tell_is_not_made_again(db: Database):
    keys = IdempotencyKeys(db)
    with pytest.raises(Unavailable):
        await keys.once(ME, "key", b"many", Many(db, fails=Unavailable("store", "silent")))
    with pytest.raises(InProgress):
        await keys.once(ME, "key", b"many", nothing())


async def test_an_answer_too_large_to_be_kept_is_not_made_twice(db: Database):
    async def large() -> IdempotentAnswer:
        await db.transact(lambda tx: tx.put(THING, thing("large")))
        return IdempotentAnswer(response=bytes(1_000_000))

    keys = IdempotencyKeys(db)
    assert len((await keys.once(ME, "key", b"large", large))[0].response) == 1_000_000
    with pytest.raises(Conflict, match="too large"):
        await keys.once(ME, "key", b"large", nothing())


# With and without a key

OPERATIONS = st.tuples(st.sampled_from(["put", "delete", "move", "part", "unpart", "remove", "count", "refuse", "keep"]),
                       st.sampled_from("abc"), st.sampled_from("st"))


def decision(operations) -> Callable:
    """A decision as handlers make them: what it reads decides what it writes, compares and answers."""
    def decide(tx) -> list:
        seen: list = []
        for verb, name, service in operations:
            row = tx.get(THING, name)
            seen.append((row is not None, sorted(each.project_id for each in tx.rows(THING, "service", service)),
                         len(tx.rows(PART))))
            match verb:
                case "put":
                    tx.put(THING, row or thing(name, service))
                case "move" if row is not None:
                    row.service = service
                    tx.put(THING, row)
                case "count" if row is not None:
                    row.used["n"] += 1
                    tx.put(THING, row)
                case "delete":
                    tx.delete(THING, name)
                case "part" if row is not None:
                    tx.guard_exists(THING, name)
                    tx.put(PART, part(name, service))
                case "unpart":
                    tx.delete(PART, name, service)
                case "remove" if not [each for each in tx.rows(PART) if each["thing"] == name]:
                    tx.guard_empty(PART, name)
                    tx.delete(THING, name)
                case "keep":
                    tx.guard_unchanged(THING, name)
                case "refuse" if row is not None and row.used["n"] > 1:
                    raise Conflict("test", f"{name} counts")
        return seen
    return decide


async def carry_out(database: Database, program, keyed: bool) -> tuple:
    """What a program answers or fails with, and the state that it leaves."""
    async def run() -> IdempotentAnswer:
        seen = []
        for operations in program:
            seen.append(await database.transact(decision(operations)))
            seen.append((sorted(database.cache.keys(THING)), database.cache.count(THING, "service", "t"),
                         database.get(THING, "a"), sorted(row.project_id for row in database.rows(THING, "service", "s"))))
        return IdempotentAnswer(response=repr(seen).encode())

    try:
        answer = (await IdempotencyKeys(database).once(ME, "key", b"", run))[0] if keyed else await run()
        outcome = answer.response
    except Error as error:
        outcome = repr(error)
    return outcome, {record.key: record.value for record in (await database.store.scan("/test/"))[0]}


@settings(max_examples=300, deadline=None)
@given(before=st.lists(OPERATIONS, max_size=5), program=st.lists(st.lists(OPERATIONS, max_size=4), max_size=4))
def test_a_call_with_a_key_does_what_it_does_without(before, program):
    async def both() -> None:
        outcomes = []
        for keyed in (False, True):
            store = MemoryStore()
            async with replica(store) as database:
                with contextlib.suppress(Conflict):
                    await database.transact(decision(before))
                outcomes.append(await carry_out(database, program, keyed))
        assert outcomes[0] == outcomes[1]
    asyncio.run(both())


async def test_what_a_call_starts_and_leaves_behind_writes_on_its_own(db: Database):
    ended = asyncio.Event()

    async def later() -> None:
        await ended.wait()
        await db.transact(lambda tx: tx.put(THING, thing("later")))

    async def run() -> IdempotentAnswer:
        await db.transact(lambda tx: tx.put(THING, thing("now")))
        tasks.append(asyncio.create_task(later()))
        with outside():
            tasks.append(asyncio.create_task(db.transact(lambda tx: tx.put(THING, thing("beside")))))
        await tasks[1]
        assert (await db.store.get(THING.key("beside"))).revision and not (await db.store.get(THING.key("now"))).revision
        return IdempotentAnswer()

    tasks: list = []
    await IdempotencyKeys(db).once(ME, "key", b"x", run)
    ended.set()
    await tasks[0]
    assert all(db.get(THING, name) for name in ("now", "beside", "later"))


# Keys and their records

@pytest.mark.parametrize(("text", "key"), [("", ""), ("abc", "abc"), ('"abc"', "abc"), (' a b ', "a b"), ('"', '"'),
                                           ("x" * 255, "x" * 255)])
def test_keys_are_read_as_headers_give_them(text: str, key: str):
    assert parse(text) == key


@pytest.mark.parametrize("text", ['""', "x" * 256, "é", "a\tb", " ", "\x00"])
def test_what_is_no_key_is_refused(text: str):
    with pytest.raises(Invalid):
        parse(text)


async def test_old_records_are_swept_and_young_ones_kept(store: Store, monkeypatch):
    async with replica(store) as database:
        keys = IdempotencyKeys(database)
        for number in range(20):
            await keys.once(ME, f"key-{number}", b"make", Maker(database))
        with pytest.raises(Unavailable):
            await keys.once(ME, "unfinished", b"many", Many(database, fails=Unavailable("store", "silent")))
        monkeypatch.setattr(idempotency, "BATCH", 1)
        assert sum([await sweep(store, part, KEPT) for part in range(SLICES)]) == 0
        assert (await keys.once(ME, "key-0", b"make", nothing()))[1]
        assert sum([await sweep(store, part, timedelta(0)) for part in range(SLICES)]) == 21
        assert (await store.scan(PREFIX))[0] == [] == (await store.scan(MARKS))[0]
        await database.cache.wait((await store.get("/kernel/idempotency-swept")).revision, timeout=2)     # watches have seen it
        assert not (await keys.once(ME, "key-0", b"make", Maker(database)))[1]
