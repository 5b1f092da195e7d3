"""Claims never exceed a host, are made with the server and given back with it."""
import asyncio

import pytest

from control.kernel import fleet
from control.kernel.database import Database
from control.kernel.fleet import Placed, Refused, Wanted
from control.kernel.rpc import Call
from control.kernel.store import Guard, MemoryStore
from control.placement.placer import FleetPlacer
from control.placement.service import ResourceProviders
from protos.internal.v1.fleet_pb2 import HostAggregate, HostRecord
from protos.internal.v1.hosts_pb2 import Inventory
from protos.placement.v1 import providers_pb2 as pb
from scheduler.types import Request, ServerGroup, Shape, amounts


@pytest.fixture
async def database():
    database = Database(MemoryStore(), fleet.KINDS)
    task = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    yield database
    task.cancel()


async def add_host(database: Database, name: str, *, ram: int = 4096, up: bool = True, disabled: bool = False) -> None:
    await database.transact(lambda tx: tx.put(fleet.HOST, HostRecord(
        name=name, id=f"id-{name}", up=up, disabled=disabled, inventory=Inventory(vcpus=2, ram_mib=ram, disk_gib=50))))


def wanted(server_id: str, ram: int = 1024, group: ServerGroup | None = None, **more) -> Wanted:
    shape = Shape(amounts({"VCPU": 1, "MEMORY_MB": ram, "DISK_GB": 1}), **more)
    return Wanted(Request(server_id, shape, group.id if group else ""), group, "p", "u")


class NoDemands:
    """Nothing that is held belongs to a server."""

    def demand_of(self, server_id: str) -> None:
        return None


def hosts_of(answers: list[Placed | Refused]) -> list[str]:
    return [answer.host if isinstance(answer, Placed) else "" for answer in answers]


async def test_a_placement_claims_what_it_takes_and_release_gives_it_back(database):
    placer = FleetPlacer(NoDemands(), reserved={"vcpus": 0, "ram_mib": 0, "disk_gib": 0})
    await add_host(database, "a", ram=1024)
    assert hosts_of(await database.transact(lambda tx: placer.place(tx, [wanted("s1")]))) == ["a"]
    assert database.get(fleet.CLAIM, "s1").ram_mib == 1024
    [refused] = await database.transact(lambda tx: placer.place(tx, [wanted("s2")]))
    assert isinstance(refused, Refused) and "RAM" in refused.refusal.reason()
    await database.transact(lambda tx: placer.release(tx, "s1"))
    assert hosts_of(await database.transact(lambda tx: placer.place(tx, [wanted("s2")]))) == ["a"]


async def test_a_dry_run_says_the_same_and_claims_nothing(database):
    placer = FleetPlacer(NoDemands())
    await add_host(database, "a", ram=2560)
    needs = [wanted("s1"), wanted("s2"), wanted("s3")]
    tried = await database.transact(lambda tx: placer.dry_run(tx, needs))
    assert hosts_of(tried) == ["a", "a", ""] and not database.cache.all(fleet.CLAIM)
    assert await database.transact(lambda tx: placer.place(tx, needs)) == tried


async def test_a_group_counts_the_servers_that_are_held_already(database):
    group = ServerGroup("g", "anti-affinity")

    class Grouped:
        def demand_of(self, server_id: str) -> tuple[Request, ServerGroup]:
            return Request(server_id, Shape(()), "g"), group

    placer = FleetPlacer(Grouped())
    await add_host(database, "a")
    await add_host(database, "b")
    for expected in (["a"], ["b"], [""]):
        server_id = f"s{len(database.cache.all(fleet.CLAIM))}"
        assert hosts_of(await database.transact(lambda tx, i=server_id: placer.place(tx, [wanted(i, group=group)]))) == expected


async def test_aggregates_give_hosts_their_zone_and_a_change_of_them_refuses_the_commit(database):
    await add_host(database, "a")
    await add_host(database, "b")
    aggregate = HostAggregate(id="id-ssd", number=1, name="ssd", hosts=["b"], metadata={"availability_zone": "east"})
    await database.transact(lambda tx: tx.put(fleet.AGGREGATE, aggregate))
    placer = FleetPlacer(NoDemands())
    for more in ({"zone": "east"}, {"aggregates": (frozenset({"id-ssd"}),)}):
        assert hosts_of(await database.transact(lambda tx, more=more: placer.dry_run(tx, [wanted("s", **more)]))) == ["b"]

    def decide(tx):
        tries.append(placer.place(tx, [wanted("s", zone="east")]))
        if len(tries) == 1:
            tx.guard(Guard.unchanged(fleet.AGGREGATE_SEQUENCE.key("last"), 99))      # as it were after another's change
        return tries[-1]

    tries: list[list[Placed | Refused]] = []
    assert hosts_of(await database.transact(decide)) == ["b"] and len(tries) == 2


async def test_fifty_placements_at_once_never_exceed_the_host(database):
    placer = FleetPlacer(NoDemands(), reserved={"vcpus": 0, "ram_mib": 0, "disk_gib": 0},
                         ratios={"vcpus": 16.0, "ram_mib": 1.0, "disk_gib": 1.0})
    await add_host(database, "a", ram=8 * 1024)
    answers = await asyncio.gather(*(
        database.transact(lambda tx, i=i: placer.place(tx, [wanted(f"s{i}")]), serial="placement") for i in range(50)))
    assert sum(isinstance(answer[0], Placed) for answer in answers) == 8
    assert sum(claim.ram_mib for claim in database.cache.all(fleet.CLAIM)) == 8 * 1024


@pytest.mark.parametrize("host, reason", [({"up": False}, "down"), ({"disabled": True}, "disabled")])
async def test_a_closed_host_gets_nothing_and_the_refusal_says_why(database, host, reason):
    await add_host(database, "a", **host)
    [refused] = await database.transact(lambda tx: FleetPlacer(NoDemands()).place(tx, [wanted("s1")]))
    assert reason in refused.refusal.reason()


async def test_the_placement_api_shows_inventory_use_and_allocations(database):
    placer = FleetPlacer(NoDemands())
    await add_host(database, "a")
    await database.transact(lambda tx: placer.place(tx, [wanted("s1")]))
    service, call = ResourceProviders(database, placer), Call()
    [provider] = (await service.ListResourceProviders(pb.ListResourceProvidersRequest(), call)).resource_providers
    assert (provider.uuid, provider.name) == ("id-a", "a")
    inventories = (await service.ListInventories(pb.ListInventoriesRequest(uuid="id-a"), call)).inventories
    assert inventories["MEMORY_MB"].total == 4096 and inventories["VCPU"].allocation_ratio == 4.0
    usages = (await service.ListUsages(pb.ListUsagesRequest(uuid="id-a"), call)).usages
    assert dict(usages) == {"VCPU": 1, "MEMORY_MB": 1024, "DISK_GB": 1}
    allocations = (await service.ListAllocations(pb.ListAllocationsRequest(consumer="s1"), call)).allocations
    assert allocations["id-a"].resources["MEMORY_MB"] == 1024
