"""Two replicas over one etcd give no unit away twice, and none of what they share is lost between them."""
import asyncio
import uuid

import pytest

from control.gateway.app import Gateway
from control.kernel import fleet
from control.kernel.database import Database
from control.kernel.rpc import Dispatcher
from control.placement import service
from control.placement.live import LiveFleet
from control.placement.neighbours import NoServers
from tests.api.client import Client
from tests.conftest import empty
from tests.placement.conftest import Tokens

pytestmark = pytest.mark.etcd


@pytest.fixture
async def replicas(etcd):
    """(databases, clients) of two replicas, each with its own connection."""
    await etcd.ready()
    await empty(etcd)
    stores = [etcd.store(), etcd.store()]
    databases = [Database(store, fleet.KINDS) for store in stores]
    following = [asyncio.create_task(database.cache.run()) for database in databases]
    clients = []
    for database in databases:
        await database.cache.ready.wait()
        dispatcher = Dispatcher(Tokens())
        for servicer, descriptor in service.servicers(database, LiveFleet(database, NoServers())):
            dispatcher.add(servicer, descriptor)
        clients.append(Client(Gateway(dispatcher), {"x-auth-token": "admin", "openstack-api-version": "placement 1.39"}))
    yield databases, clients
    for task in following:
        task.cancel()
    await asyncio.gather(*following, return_exceptions=True)
    for store in stores:
        await store.close()


async def provider_with(databases: list[Database], client: Client, **totals: int) -> str:
    made = await client("POST", "/placement/resource_providers", json_body={"name": uuid.uuid4().hex})
    identifier = made.json["uuid"]
    answer = await client("PUT", f"/placement/resource_providers/{identifier}/inventories", json_body={
        "resource_provider_generation": 0, "inventories": {name: {"total": total} for name, total in totals.items()}})
    assert answer.status == 200, answer.body
    for database in databases:
        await database.cache.wait(max(each.cache.revision for each in databases))
    return identifier


def allocation(provider: str, **resources: int) -> dict:
    return {"allocations": {provider: {"resources": resources}}, "project_id": "p", "user_id": "u", "consumer_generation": None,
            "consumer_type": "INSTANCE"}


async def test_of_two_hundred_who_want_the_last_unit_at_once_one_gets_it(replicas):
    databases, clients = replicas
    provider = await provider_with(databases, clients[0], VCPU=1)
    answers = await asyncio.gather(*(
        clients[number % 2]("PUT", f"/placement/allocations/{uuid.uuid4()}", json_body=allocation(provider, VCPU=1))
        for number in range(200)))
    assert sorted(answer.status for answer in answers) == [204] + [409] * 199
    await same(databases)
    for database in databases:
        assert database.require(fleet.USAGE, provider).used["VCPU"] == 1
        assert len(database.cache.all(fleet.ALLOCATION)) == 1


async def test_units_that_many_want_are_all_given_away_once(replicas):
    databases, clients = replicas
    provider = await provider_with(databases, clients[0], VCPU=40)
    answers = await asyncio.gather(*(
        clients[number % 2]("PUT", f"/placement/allocations/{uuid.uuid4()}", json_body=allocation(provider, VCPU=1))
        for number in range(100)))
    assert sorted(answer.status for answer in answers) == [204] * 40 + [409] * 60
    await same(databases)
    assert databases[1].require(fleet.USAGE, provider).used["VCPU"] == 40
    assert len(databases[1].cache.all(fleet.ALLOCATION)) == 40


@pytest.mark.parametrize("rival", ["delete the provider", "take the inventory away", "make it less"])
async def test_an_allocation_and_what_would_leave_it_without_ground_do_not_both_happen(replicas, rival):
    databases, clients = replicas
    for _ in range(10):
        provider = await provider_with(databases, clients[0], VCPU=2)
        path = f"/placement/resource_providers/{provider}"
        change = {
            "delete the provider": lambda: clients[1]("DELETE", path),  # noqa: B023
            "take the inventory away": lambda: clients[1]("DELETE", f"{path}/inventories"),  # noqa: B023
            "make it less": lambda: clients[1]("PUT", f"{path}/inventories", json_body={  # noqa: B023
                "resource_provider_generation": 1, "inventories": {"VCPU": {"total": 1}}})}[rival]
        put, changed = await asyncio.gather(
            clients[0]("PUT", f"/placement/allocations/{uuid.uuid4()}", json_body=allocation(provider, VCPU=2)), change())
        assert (put.status == 204) != (changed.status in (200, 204)), (put.body, changed.body)
        await same(databases)
        left = databases[0].get(fleet.USAGE, provider)
        assert bool(left and left.used) == (put.status == 204)


async def test_a_trait_that_a_provider_takes_up_is_not_deleted_at_the_same_moment(replicas):
    databases, clients = replicas
    for number in range(10):
        provider, trait = await provider_with(databases, clients[0], VCPU=2), f"CUSTOM_T{number}"
        assert (await clients[0]("PUT", f"/placement/traits/{trait}")).status == 201
        await same(databases)
        put, deleted = await asyncio.gather(
            clients[0]("PUT", f"/placement/resource_providers/{provider}/traits", json_body={
                "resource_provider_generation": 1, "traits": [trait]}),
            clients[1]("DELETE", f"/placement/traits/{trait}"))
        assert (put.status, deleted.status) in ((200, 409), (400, 204))
        await same(databases)
        assert (databases[0].get(fleet.TRAIT, trait) is not None) == (put.status == 200)


async def same(databases: list[Database]) -> None:
    """Until both replicas show the same revision."""
    for database in databases:
        await database.cache.wait(max(each.cache.revision for each in databases))
