"""Servers never hold more than a host has, and give it back when they go; the providers of hosts follow what is reported."""
import asyncio

import pytest

from control.kernel import fleet
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict
from control.kernel.fleet import Placed, Refused, Wanted
from control.kernel.store import Guard, MemoryStore
from control.placement import ledger, trees
from control.placement.host_providers import HostProviders
from control.placement.live import LiveFleet
from control.placement.neighbours import NoServers
from control.placement.placer import FleetPlacer
from protos.internal.v1.fleet_pb2 import HostAggregate, HostRecord
from protos.internal.v1.hosts_pb2 import Inventory
from scheduler.types import Request, ServerGroup, Shape, amounts

ALL_OF_IT = HostProviders(reserved=dict.fromkeys(fleet.HOST_CLASSES, 0), ratios={"VCPU": 16.0, "MEMORY_MB": 1.0, "DISK_GB": 1.0})


@pytest.fixture
async def database():
    database = Database(MemoryStore(), fleet.KINDS)
    task = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    yield database
    task.cancel()


async def add_host(database: Database, name: str, providers: HostProviders = ALL_OF_IT, *, ram: int = 4096, disk: int = 50,
                   up: bool = True, disabled: bool = False) -> HostRecord:
    """A host as it reports itself; again for one that is there already."""
    def attach(tx: Transaction) -> HostRecord:
        host = tx.get(fleet.HOST, name) or HostRecord(name=name, id=providers.new_id(tx, name))
        host.up, host.disabled = up, disabled
        host.inventory.CopyFrom(Inventory(vcpus=2, ram_mib=ram, disk_gib=disk))
        tx.put(fleet.HOST, host)
        providers.refresh(tx, host)
        return host

    return await database.transact(attach)


def wanted(server_id: str, ram: int = 1024, group: ServerGroup | None = None, **more) -> Wanted:
    shape = Shape(amounts({"VCPU": 1, "MEMORY_MB": ram, "DISK_GB": 1}), **more)
    return Wanted(Request(server_id, shape, group.id if group else ""), group, "p", "u")


def placer_of(database: Database, demands=None) -> FleetPlacer:
    return FleetPlacer(LiveFleet(database, demands or NoServers()))


def hosts_of(answers: list[Placed | Refused]) -> list[str]:
    return [answer.host if isinstance(answer, Placed) else "" for answer in answers]


async def test_a_placement_takes_what_it_needs_and_release_gives_it_back(database):
    placer = placer_of(database)
    host = await add_host(database, "a", ram=1024)
    assert hosts_of(await database.transact(lambda tx: placer.place(tx, [wanted("s1")]))) == ["a"]
    held = database.require(fleet.ALLOCATION, "s1")
    assert dict(held.providers[host.id].resources) == {"VCPU": 1, "MEMORY_MB": 1024, "DISK_GB": 1}
    assert (held.project_id, held.user_id, held.consumer_type, held.generation) == ("p", "u", "INSTANCE", 1)
    [refused] = await database.transact(lambda tx: placer.place(tx, [wanted("s2")]))
    assert isinstance(refused, Refused) and "RAM" in refused.refusal.reason()
    await database.transact(lambda tx: placer.release(tx, "s1"))
    assert not database.require(fleet.USAGE, host.id).used
    assert hosts_of(await database.transact(lambda tx: placer.place(tx, [wanted("s2")]))) == ["a"]


async def test_a_dry_run_says_the_same_and_claims_nothing(database):
    placer = placer_of(database)
    await add_host(database, "a", ram=2048)
    needs = [wanted("s1"), wanted("s2"), wanted("s3")]
    tried = placer.dry_run(needs)
    assert hosts_of(tried) == ["a", "a", ""] and not database.cache.all(fleet.ALLOCATION)
    assert await database.transact(lambda tx: placer.place(tx, needs)) == tried


async def test_a_group_counts_the_servers_that_are_held_already(database):
    group = ServerGroup("g", "anti-affinity")

    class Grouped:
        def demand_of(self, server_id: str) -> tuple[Request, ServerGroup]:
            return Request(server_id, Shape(()), "g"), group

        def group_of(self, server_id: str) -> ServerGroup:
            return group

        def groups(self) -> dict[str, ServerGroup]:
            return {"s0": group, "s1": group}

    placer = placer_of(database, Grouped())
    await add_host(database, "a")
    await add_host(database, "b")
    for expected in (["a"], ["b"], [""]):
        server_id = f"s{len(database.cache.all(fleet.ALLOCATION))}"
        assert hosts_of(await database.transact(lambda tx, i=server_id: placer.place(tx, [wanted(i, group=group)]))) == expected
    assert hosts_of(placer_of(database, Grouped()).dry_run([wanted("s2", group=group)])) == [""], "read in, too"


async def test_aggregates_give_hosts_their_zone_and_a_change_of_them_refuses_the_commit(database):
    await add_host(database, "a")
    await add_host(database, "b")
    aggregate = HostAggregate(id="id-ssd", number=1, name="ssd", hosts=["b"], metadata={"availability_zone": "east"})
    await database.transact(lambda tx: tx.put(fleet.AGGREGATE, aggregate))
    placer = placer_of(database)
    for more in ({"zone": "east"}, {"aggregates": (frozenset({"id-ssd"}),)}):
        assert hosts_of(placer.dry_run([wanted("s", **more)])) == ["b"]

    def decide(tx):
        tries.append(placer.place(tx, [wanted("s", zone="east")]))
        if len(tries) == 1:
            tx.guard(Guard.unchanged(fleet.AGGREGATE_SEQUENCE.key("last"), 99))      # as it were after another's change
        return tries[-1]

    tries: list[list[Placed | Refused]] = []
    assert hosts_of(await database.transact(decide)) == ["b"] and len(tries) == 2


async def test_fifty_placements_at_once_never_exceed_the_host(database):
    placer = placer_of(database)
    host = await add_host(database, "a", ram=8 * 1024)
    answers = await asyncio.gather(*(
        database.transact(lambda tx, i=i: placer.place(tx, [wanted(f"s{i}")]), serial="placement") for i in range(50)))
    assert sum(isinstance(answer[0], Placed) for answer in answers) == 8
    assert database.require(fleet.USAGE, host.id).used["MEMORY_MB"] == 8 * 1024
    assert len(database.cache.by(fleet.ALLOCATION, "provider", host.id)) == 8


async def test_what_others_hold_of_a_host_counts_for_servers_too(database):
    host = await add_host(database, "a", ram=1024)
    other = ledger.allocation("other", "p", "u", "", {host.id: {"MEMORY_MB": 600}})
    await database.transact(lambda tx: ledger.replace(tx, [other]))
    [refused] = await database.transact(lambda tx: placer_of(database).place(tx, [wanted("s1")]))
    assert isinstance(refused, Refused) and "RAM" in refused.refusal.reason()


@pytest.mark.parametrize("host, reason", [({"up": False}, "down"), ({"disabled": True}, "disabled")])
async def test_a_closed_host_gets_nothing_and_the_refusal_says_why(database, host, reason):
    await add_host(database, "a", **host)
    [refused] = await database.transact(lambda tx: placer_of(database).place(tx, [wanted("s1")]))
    assert reason in refused.refusal.reason()


async def test_a_report_sets_totals_and_leaves_what_an_operator_set(database):
    host = await add_host(database, "a", HostProviders())
    provider = database.require(fleet.PROVIDER, host.id)
    assert (provider.name, provider.root_uuid, provider.parent_uuid) == ("a", host.id, "")
    memory = provider.inventories["MEMORY_MB"]
    assert (memory.total, memory.reserved, memory.allocation_ratio) == (4096, 512, 1.0)
    assert provider.inventories["VCPU"].allocation_ratio == 4.0

    def tune(tx: Transaction) -> None:
        mine = trees.require(tx, host.id)
        mine.inventories["MEMORY_MB"].reserved = 100
        mine.inventories["VCPU"].allocation_ratio = 2.0
        mine.inventories["VCPU"].max_unit = 1
        trees.changed(tx, mine)

    await database.transact(tune)
    generation = trees.generation(database, database.require(fleet.PROVIDER, host.id))
    await add_host(database, "a", HostProviders(), ram=8192)
    provider = database.require(fleet.PROVIDER, host.id)
    memory, cpu = provider.inventories["MEMORY_MB"], provider.inventories["VCPU"]
    assert (memory.total, memory.max_unit, memory.reserved) == (8192, 8192, 100)
    assert (cpu.total, cpu.max_unit, cpu.allocation_ratio) == (2, 1, 2.0)
    assert trees.generation(database, provider) == generation + 1
    await add_host(database, "a", HostProviders(), ram=8192, up=False)
    assert trees.generation(database, database.require(fleet.PROVIDER, host.id)) == generation + 1, "nothing new was reported"


async def test_a_class_that_a_host_has_no_more_stays_while_somebody_holds_some_of_it(database):
    host = await add_host(database, "a")
    await database.transact(lambda tx: placer_of(database).place(tx, [wanted("s1")]))
    await add_host(database, "a", disk=0)
    assert database.require(fleet.PROVIDER, host.id).inventories["DISK_GB"].total == 50
    await database.transact(lambda tx: placer_of(database).release(tx, "s1"))
    await add_host(database, "a", disk=0)
    assert "DISK_GB" not in database.require(fleet.PROVIDER, host.id).inventories


async def test_a_host_takes_over_the_root_provider_that_waits_under_its_name(database):
    await database.transact(lambda tx: trees.create(tx, "prepared", "a"))
    host = await add_host(database, "a")
    assert host.id == "prepared" and "VCPU" in database.require(fleet.PROVIDER, "prepared").inventories
    await database.transact(lambda tx: trees.create(tx, "part", "b", "prepared"))
    with pytest.raises(Conflict, match="rename it"):
        await add_host(database, "b")


async def test_a_host_is_forgotten_with_its_tree_but_not_while_somebody_else_holds_some_of_it(database):
    host = await add_host(database, "a")
    await database.transact(lambda tx: trees.create(tx, "part", "a-numa0", host.id))
    await database.transact(lambda tx: placer_of(database).place(tx, [wanted("s1")]))
    await database.transact(lambda tx: ledger.replace(tx, [ledger.allocation("other", "p", "u", "", {host.id: {"VCPU": 1}})]))
    with pytest.raises(Conflict, match="other holds an allocation of a"):
        await database.transact(lambda tx: fleet.delete_host(tx, host, leaving={"s1"}))
    assert database.get(fleet.HOST, "a") and database.get(fleet.PROVIDER, "part"), "a refused deletion changes nothing"
    await database.transact(lambda tx: ledger.release(tx, "other"))
    await database.transact(lambda tx: fleet.delete_host(tx, host, leaving={"s1"}))
    await database.transact(lambda tx: placer_of(database).release(tx, "s1"))
    assert not any(database.cache.all(kind) for kind in fleet.KINDS)
