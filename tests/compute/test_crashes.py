"""Wherever the reconciler dies, its successor ends in the same world; and quotas equal a recount after any sequence of calls."""
import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.compute.model import ACTION, SERVER
from control.kernel import fleet
from control.kernel.errors import Stale
from control.kernel.store import Guard, MemoryStore, Record
from tests.compute.fakes import PORT, World, make, world


class Crash(Exception):
    """The process ends here."""


class MortalStore(MemoryStore):
    """Lets so many commits through and then crashes: before a commit, or after it and before its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.left: int | None = None       # commits until the crash; None: immortal
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


async def story(cloud: World, store: MortalStore, crash: int | None, after: bool) -> dict:
    """Servers that fit, one that does not, one that is deleted unplaced and one whose host is gone; what is left at the end."""
    demo, admin = cloud.client(), cloud.client("admin")
    await make(demo, "one")
    await make(demo, "two", min_count=2)
    for _ in range(2):
        await make(demo, "big", flavorRef="big")
    doomed = await make(demo, "doomed")
    await demo("DELETE", f"/servers/{doomed}")
    lost = await make(admin, "lost", availability_zone="nova:node-2")
    await cloud.placing().reconcile(lost)
    await admin("DELETE", f"/servers/{lost}")
    leaving = {server.id for server in cloud.database.cache.by(SERVER, "host", "node-2")}
    await cloud.database.transact(lambda tx: fleet.delete_host(tx, tx.require(fleet.HOST, "node-2"), leaving))

    store.left, store.after = crash, after
    try:
        await cloud.reconcile()
    except Crash:
        store.left = None
        await cloud.database.cache.wait((await store.scan("/"))[1])
        await cloud.reconcile()
    store.left = None
    await cloud.settle()
    cloud.check()
    return {
        "states": sorted((server.name, cloud.database.require(SERVER, server.id).fault.message[:27], bool(server.host))
                         for server in cloud.database.cache.all(SERVER)),
        "allocations": len(cloud.database.cache.all(fleet.ALLOCATION)), "ports": len(cloud.database.cache.all(PORT)),
        "orphaned history": sum(cloud.database.get(SERVER, row.server_id) is None for row in cloud.database.cache.all(ACTION)),
        "open history": sum(not row.result for row in cloud.database.cache.all(ACTION))}


async def run_story(crash: int | None, after: bool = False) -> dict:
    store = MortalStore()
    async with world(store, hosts=2) as cloud:
        admin = cloud.client("admin")
        unlimited = {"quota_set": {"instances": -1, "cores": -1, "ram": -1}}
        await admin("PUT", "/os-quota-sets/demo-project", json_body=unlimited)
        return await story(cloud, store, crash, after)


async def test_a_reconciler_that_dies_at_any_commit_leaves_what_the_next_one_finishes():
    whole = await run_story(None)
    assert whole["orphaned history"] == 0 and whole["open history"] == 0
    assert [state[0] for state in whole["states"]] == ["big", "big", "one", "two-1", "two-2"]
    for crash in range(12):
        for after in (False, True):
            assert await run_story(crash, after) == whole, (crash, after)


async def test_a_leader_whose_fence_fell_changes_nothing():
    store = MemoryStore()
    async with world(store) as cloud:
        server_id = await make(cloud.client())
        revision = await store.commit(Record("/election/servers", b"me"))
        await store.commit(Record("/election/servers", None, revision))
        await store.commit(Record("/election/servers", b"you"))
        with pytest.raises(Stale):
            await cloud.placing(fence=[Guard.created("/election/servers", revision)]).reconcile(server_id)
        assert not cloud.database.get(SERVER, server_id).host and not cloud.database.cache.all(fleet.ALLOCATION)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6),
       steps=st.lists(st.sampled_from(["create", "many", "delete", "settle", "reconcile"]), max_size=12))
def test_the_ledger_equals_a_recount_after_any_sequence(seed, steps):
    asyncio.run(sequence(random.Random(seed), steps))


async def sequence(dice: random.Random, steps: list[str]) -> None:
    async with world() as cloud:
        for step in steps:
            client = cloud.client(dice.choice(("demo", "other")))
            path = "/servers"
            body = {"name": "vm", "imageRef": "img", "flavorRef": dice.choice(("1", "big")),
                    "networks": dice.choice(("auto", "none"))}
            match step:
                case "create":
                    await client("POST", path, json_body={"server": body})
                case "many":
                    await asyncio.gather(*(client("POST", path, json_body={"server": {
                        **body, "min_count": dice.randint(1, 3), "max_count": dice.randint(3, 6)}}) for _ in range(3)))
                case "delete":
                    for server in (await client("GET", path)).json["servers"]:
                        if dice.random() < 0.5:
                            assert (await client("DELETE", f"{path}/{server['id']}")).status == 204
                case "reconcile":
                    await cloud.reconcile()
                case "settle":
                    await cloud.settle()
            cloud.check()
        for who in ("demo", "other"):
            usage = (await cloud.client(who)("GET", "/limits")).json["limits"]["absolute"]
            assert usage["totalInstancesUsed"] <= 10 and usage["totalCoresUsed"] <= 20


async def test_parallel_creates_at_the_edge_of_the_quota_admit_exactly_what_fits():
    async with world() as cloud:
        demo = cloud.client()
        await make(demo, min_count=9)
        replies = await asyncio.gather(*(demo("POST", "/servers", json_body={"server": {
            "name": "race", "imageRef": "img", "flavorRef": "1", "networks": "none"}}) for _ in range(30)))
        assert sorted(reply.status for reply in replies) == [202] + [403] * 29
        cloud.check()
