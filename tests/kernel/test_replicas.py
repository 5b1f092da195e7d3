"""A replica is listed while it lives, once, and begins anew when it was forgotten."""
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest

from control.kernel import lease_keeper, replicas
from control.kernel.database import Database
from control.kernel.errors import Unavailable
from control.kernel.etcd_store import EtcdStore
from control.kernel.replicas import LEADERSHIP, REPLICA, Membership
from tests.conftest import Etcd
from tests.kernel.conftest import etcd_leader


@pytest.fixture
async def db(store) -> AsyncIterator[Database]:
    database = Database(store, [REPLICA, LEADERSHIP])
    task = asyncio.create_task(database.cache.run())
    async with asyncio.timeout(10):
        await database.cache.ready.wait()
    yield database
    await stop(task)


async def stop(*tasks: asyncio.Task) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def listed(db: Database) -> set[str]:
    return {record.id for record in db.cache.all(REPLICA)}


class CutOff:
    """A store whose leases can be neither renewed nor ended from here: the process was killed, or lost its network."""

    def __init__(self, store):
        self._store = store

    def __getattr__(self, name: str):
        return getattr(self._store, name)

    def renewer(self) -> Callable[[int], bool]:
        def renew(lease: int) -> bool:
            raise Unavailable("store.unavailable", "no network")
        return renew

    async def revoke(self, lease: int) -> None:
        raise Unavailable("store.unavailable", "no network")


async def test_replicas_see_each_other_and_one_that_is_stopped_is_gone_at_once(db, store):
    members = [Membership(store, replicas.new_record(f"host-{number}", f"10.0.0.{number}:5002")) for number in range(3)]
    tasks = [asyncio.create_task(member.run()) for member in members]
    await until(lambda: listed(db) == {member.id for member in members})
    record = db.get(REPLICA, members[1].id)
    assert (record.host_name, record.address, bool(record.version)) == ("host-1", "10.0.0.1:5002", True)
    await stop(tasks[0])
    await until(lambda: listed(db) == {member.id for member in members[1:]}, 1)
    await stop(*tasks)
    await until(lambda: not listed(db), 1)


async def test_a_replica_that_vanishes_is_gone_when_its_lease_ends(db, store):
    member = Membership(CutOff(store), replicas.new_record("one", "one:1"))
    task = asyncio.create_task(member.run())
    await until(lambda: listed(db) == {member.id})
    await until(lambda: not listed(db), 10)
    await stop(task)


async def test_it_stays_listed_for_longer_than_its_lease_lasts(db, store):
    member = Membership(store, replicas.new_record("one", "one:1"))
    task = asyncio.create_task(member.run())
    term = await member.term()
    await until(lambda: listed(db) == {member.id})
    await asyncio.sleep(2 * replicas.TTL + 1)
    assert listed(db) == {member.id} and not term.over.is_set()
    await stop(task)


async def test_one_whose_lease_was_lost_ends_its_term_and_is_listed_again_with_a_new_lease(db, store):
    member = Membership(store, replicas.new_record("one", "one:1"))
    task = asyncio.create_task(member.run())
    term = await member.term()
    await store.revoke(term.lease)
    async with asyncio.timeout(20):
        await term.over.wait()
        again = await member.term()
    assert again.lease != term.lease
    await until(lambda: listed(db) == {member.id})
    with contextlib.suppress(asyncio.CancelledError):
        await stop(task)
    assert again.over.is_set()


@pytest.mark.etcd
async def test_a_loop_that_is_busy_for_longer_than_its_lease_lasts_loses_nothing(etcd_store: EtcdStore):
    member = Membership(etcd_store, replicas.new_record("one", "one:1"))
    task = asyncio.create_task(member.run())
    term = await member.term()
    started = time.monotonic()
    while time.monotonic() < started + 2 * replicas.TTL:      # nothing else runs in this loop meanwhile
        sum(range(10_000))
    assert member.sure() == term.lease, "the thread renewed it all the time, and it is known here at once"
    assert (await etcd_store.get(REPLICA.key(member.id))).lease == term.lease
    assert not term.over.is_set()
    await stop(task)


@pytest.mark.etcd
async def test_a_loop_that_does_nothing_any_more_loses_its_lease(etcd_store: EtcdStore, monkeypatch):
    monkeypatch.setattr(lease_keeper, "STALL", 0.7)
    member = Membership(etcd_store, replicas.new_record("one", "one:1"))
    task = asyncio.create_task(member.run())
    term = await member.term()
    time.sleep(replicas.TTL + 3)
    assert member.sure() == 0
    async with asyncio.timeout(10):
        await term.over.wait()
        assert (await member.term()).lease != term.lease
    await stop(task)


@pytest.mark.etcd
async def test_a_lease_is_renewed_by_the_members_that_are_left(cluster: list[Etcd]):
    for each in cluster:
        await each.ready()
    store = EtcdStore([each.endpoint for each in cluster], cluster[0].credentials)
    lease, leader = await store.grant(60), await etcd_leader(store, cluster)
    renew = store.renewer()
    for each in cluster:
        if each is not leader:
            each.kill()
            break
    for _ in range(3):
        assert await asyncio.to_thread(renew, lease)
    await store.revoke(lease)
    assert not await asyncio.to_thread(renew, lease)
    await store.close()
    with pytest.raises(Unavailable):
        await asyncio.to_thread(renew, lease)


@pytest.mark.etcd
async def test_an_etcd_that_elects_another_leader_ends_no_term(cluster: list[Etcd]):
    for each in cluster:
        await each.ready()
    store = EtcdStore([each.endpoint for each in cluster], cluster[0].credentials)
    member = Membership(store, replicas.new_record("one", "one:1"))
    task = asyncio.create_task(member.run())
    term = await member.term()
    (await etcd_leader(store, cluster)).kill()
    await asyncio.sleep(2 * replicas.SILENCE)
    assert not term.over.is_set()
    assert (await store.get(REPLICA.key(member.id))).lease == term.lease
    await stop(task)
    await store.close()
