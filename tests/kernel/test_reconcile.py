"""Each key by one worker at a time, never forgotten, backed off when it fails."""
import asyncio
import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.kernel import reconcile
from control.kernel.database import Database
from control.kernel.errors import Conflict
from control.kernel.reconcile import Controller, WorkQueue
from tests.kernel.conftest import THING, thing


async def drain(queue: WorkQueue) -> list[str]:
    """The keys that can be taken now."""
    taken = []
    with contextlib.suppress(TimeoutError):
        while True:
            taken.append(await asyncio.wait_for(queue.take(), 0.01))
    return taken


async def test_a_key_added_twice_is_taken_once():
    queue = WorkQueue()
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert await drain(queue) == ["a", "b"]


async def test_a_key_added_while_in_work_is_taken_once_more_and_only_when_done():
    queue = WorkQueue()
    queue.add("a")
    await queue.take()
    queue.add("a")
    queue.add("a")
    assert await drain(queue) == []
    queue.done("a")
    assert await drain(queue) == ["a"]


async def test_an_addition_overtakes_a_delayed_one():
    queue = WorkQueue()
    queue.add_later("a", 0.05)
    queue.add("a")
    assert await drain(queue) == ["a"]
    queue.done("a")
    await asyncio.sleep(0.1)
    assert await drain(queue) == []


async def test_a_delayed_addition_does_not_put_off_a_waiting_key():
    queue = WorkQueue()
    queue.add("a")
    queue.add_later("a", 60)
    assert await drain(queue) == ["a"]
    assert not queue._timers


async def test_the_sooner_of_two_delayed_additions_counts():
    queue = WorkQueue()
    queue.add_later("a", 60)
    queue.add_later("a", 0.01)
    queue.add_later("a", 60)
    async with asyncio.timeout(5):
        assert await queue.take() == "a"
    queue.close()


async def test_back_off_doubles_up_to_its_limit_and_success_ends_it(monkeypatch):
    delays = []
    queue = WorkQueue()
    monkeypatch.setattr(queue, "add_later", lambda key, seconds: delays.append(seconds))
    for _ in range(30):
        queue.failed("a")
    for number, delay in enumerate(delays):
        wanted = min(reconcile.FIRST_BACKOFF * 2 ** number, reconcile.MAX_BACKOFF)
        assert 0.75 * wanted <= delay <= 1.25 * wanted
    queue.succeeded("a")
    queue.failed("a")
    assert delays[-1] <= 1.25 * reconcile.FIRST_BACKOFF


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "take", "done"]), st.sampled_from("abc")), max_size=60))
def test_after_any_steps_each_key_added_since_it_was_taken_is_taken_again_and_none_twice_at_once(steps):
    async def play() -> None:
        queue, working, wanted = WorkQueue(), set(), set()

        def try_take() -> None:
            waiting = [key for key in wanted if key not in working]
            assert queue._queue.qsize() == len(waiting)
            if waiting:
                taking = queue.take()
                with contextlib.suppress(StopIteration):
                    taking.send(None)
                    raise AssertionError("a key is due and take() waits")
                [key] = queue._working - working
                assert key in waiting
                working.add(key)
                wanted.discard(key)

        for what, key in steps:
            if what == "add":
                queue.add(key)
                wanted.add(key)
            elif what == "take":
                try_take()
            elif key in working:
                queue.done(key)
                working.discard(key)
        for key in list(working):
            queue.done(key)
            working.discard(key)
        while wanted:
            try_take()
            for key in list(working):
                queue.done(key)
                working.discard(key)

    asyncio.run(play())


# The controller

@contextlib.asynccontextmanager
async def running(controller: Controller):
    task = asyncio.create_task(controller.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def controller(db: Database, step, **options) -> Controller:
    return Controller("test", db.cache, kinds=[THING], keys_of=lambda change: [change.key], all_keys=lambda: db.cache.keys(THING),
                      reconcile=step, **options)


async def until(condition, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_it_looks_at_what_was_there_and_at_what_changes(db: Database):
    seen = []

    async def step(key: str) -> None:
        seen.append(key)

    await db.transact(lambda tx: tx.put(THING, thing("old")))
    async with running(controller(db, step)):
        await until(lambda: seen == [THING.key("old")])
        await db.transact(lambda tx: tx.put(THING, thing("new")))
        await until(lambda: seen == [THING.key("old"), THING.key("new")])


async def test_a_step_that_wants_to_be_called_again_is(db: Database):
    answers = [0, 0.01, 0, None]
    called = []

    async def step(key: str) -> float | None:
        called.append(key)
        return answers[len(called) - 1]

    await db.transact(lambda tx: tx.put(THING, thing("x")))
    async with running(controller(db, step)):
        await until(lambda: len(called) == 4)


@pytest.mark.parametrize("error", [Conflict("test.not_yet", "not yet"), RuntimeError("a bug")])
async def test_a_step_that_fails_is_tried_again_and_others_go_on(db: Database, error: Exception, caplog):
    tries, others = [], []

    async def step(key: str) -> None:
        if key == THING.key("bad"):
            tries.append(key)
            if len(tries) < 3:
                raise error
        else:
            others.append(key)

    await db.transact(lambda tx: (tx.put(THING, thing("bad")), tx.put(THING, thing("good"))))
    async with running(controller(db, step)):
        await until(lambda: len(tries) == 3 and others)
    assert str(error) in caplog.text


async def test_one_key_is_never_in_two_hands(db: Database):
    inside: set[str] = set()
    steps = 0

    async def step(key: str) -> None:
        nonlocal steps
        assert key not in inside
        inside.add(key)
        await asyncio.sleep(0.002)
        inside.discard(key)
        steps += 1

    async with running(controller(db, step, workers=8)):
        for round in range(20):
            await db.transact(lambda tx, round=round: [tx.put(THING, thing(name, str(round))) for name in "abc"])
        await until(lambda: steps >= 3 and not inside)


async def test_a_resync_repairs_what_no_change_announced(db: Database):
    seen = []

    async def step(key: str) -> None:
        seen.append(key)

    await db.transact(lambda tx: tx.put(THING, thing("x")))
    async with running(controller(db, step, resync=0.02)):
        await until(lambda: len(seen) >= 3)
