"""One leader at a time, a quick hand-over, and a fence that stops a leader who does not know yet that it is none."""
import asyncio
import contextlib
import time

import pytest

from control.kernel import replicas
from control.kernel.election import Election
from control.kernel.errors import Stale, Unavailable
from control.kernel.replicas import LEADERSHIP, Membership
from control.kernel.store import Record


class Job:
    """A replica that is a candidate for one job, and notes when it leads; its work lasts until it is cancelled."""

    def __init__(self, store, ttl: int = 3, role: str = "job"):
        self.store = store
        self.membership = Membership(store, replicas.new_record("here", "here:1"), ttl)
        self.election = Election(store, self.membership, role)
        self.leading = asyncio.Event()
        self.fences: list = []
        self.ended = asyncio.Event()

    async def work(self, fence) -> None:
        self.fences.append(fence)
        self.leading.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.leading.clear()
            self.ended.set()

    async def run(self, work=None) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.membership.run())
            await self.election.lead(work or self.work)

    def start(self, work=None) -> asyncio.Task:
        return asyncio.create_task(self.run(work))


async def leader(store, role: str = "job") -> str:
    """The id of who leads; "" for nobody."""
    value = (await store.get(LEADERSHIP.key(role, "0-of-1"))).value
    return LEADERSHIP.message.FromString(value).replica_id if value else ""


async def stop(*tasks: asyncio.Task) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_of_two_candidates_one_leads_and_the_other_waits(store):
    jobs = [Job(store), Job(store)]
    tasks = [job.start() for job in jobs]
    async with asyncio.timeout(10):
        await asyncio.wait([asyncio.create_task(job.leading.wait()) for job in jobs], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.3)
    assert [job.leading.is_set() for job in jobs].count(True) == 1
    [one] = [job for job in jobs if job.leading.is_set()]
    assert await leader(store) == one.membership.id
    await stop(*tasks)
    assert await leader(store) == ""


async def test_a_leader_that_is_cancelled_ends_its_work_and_then_hands_over_at_once(store):
    one, other = Job(store, ttl=60), Job(store, ttl=60)
    first = one.start()
    async with asyncio.timeout(30):
        await one.leading.wait()
        second = other.start()
        await asyncio.sleep(0.3)
        started = time.monotonic()
        await stop(first)
        assert one.ended.is_set()
        await other.leading.wait()
    assert time.monotonic() - started < 5       # the aim is 0.5 s; the lease alone would take 60
    await stop(second)


class CutOff:
    """A store whose leases can be neither renewed nor ended from here: the candidate's machine lost its network."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def renewer(self):
        def renew(lease: int) -> bool:
            raise Unavailable("store.unavailable", "no network")
        return renew

    async def revoke(self, lease: int) -> None:
        raise Unavailable("store.unavailable", "no network")


async def test_a_leader_that_vanishes_is_followed_when_its_lease_ends(store):
    one, other = Job(CutOff(store), ttl=2), Job(store, ttl=2)
    first = one.start()
    async with asyncio.timeout(30):
        await one.leading.wait()
        second = other.start()
        await other.leading.wait()
        await one.ended.wait()
    await stop(first, second)


async def test_the_fence_refuses_a_deposed_leader(store):
    one, other = Job(store), Job(store)
    first = one.start()
    async with asyncio.timeout(30):
        await one.leading.wait()
        [fence] = one.fences
        revision = await store.commit(Record("/a/x", b"one"), guards=[fence])
        second = other.start()
        await store.revoke((await store.get(one.election.key)).lease)
        await other.leading.wait()
        with pytest.raises(Stale):
            await store.commit(Record("/a/x", b"deposed", revision), guards=[fence])
        await store.commit(Record("/a/x", b"other", revision), guards=other.fences)
        await one.ended.wait()          # it finds out by itself
    await stop(first, second)


async def test_work_that_fails_is_begun_again_in_a_new_term(store):
    fences = []
    again = asyncio.Event()

    async def work(fence) -> None:
        fences.append(fence)
        if len(fences) == 1:
            raise RuntimeError("a bug")
        again.set()
        await asyncio.Event().wait()

    task = Job(store).start(work)
    async with asyncio.timeout(20):
        await again.wait()
    assert fences[1].revision > fences[0].revision
    await stop(task)


async def test_candidates_of_different_jobs_do_not_meet(store):
    jobs = [Job(store), Job(store, role="job2")]
    tasks = [job.start() for job in jobs]
    async with asyncio.timeout(10):
        for job in jobs:
            await job.leading.wait()
    await stop(*tasks)


async def test_a_crowd_of_candidates_lead_one_after_the_other_and_never_two(store):
    leading: set[int] = set()
    terms: list[int] = []

    async def candidate(number: int) -> None:
        done = asyncio.Event()

        async def work(_) -> None:
            assert not leading
            leading.add(number)
            try:
                await asyncio.sleep(0.02)
                terms.append(number)
            finally:
                leading.discard(number)
            done.set()

        task = Job(store).start(work)
        await done.wait()
        await stop(task)

    async with asyncio.timeout(60):
        await asyncio.gather(*(candidate(number) for number in range(8)))
    assert set(terms) == set(range(8))


async def test_a_campaign_that_is_cancelled_leaves_nothing_behind(store):
    one = Job(store)
    first = one.start()
    async with asyncio.timeout(10):
        await one.leading.wait()
    second = Job(store).start()
    await asyncio.sleep(0.2)
    await stop(second)
    assert await leader(store) == one.membership.id
    with contextlib.suppress(asyncio.CancelledError):
        await stop(first)
    assert await leader(store) == ""
