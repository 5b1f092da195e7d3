"""The reconciler as it runs: woken by changes, several workers, over each kind of store."""
import asyncio
import contextlib

from control.compute.model import ACTION, SERVER, derive
from control.kernel import fleet
from tests.compute.fakes import PORT, World, make, world


async def until(cloud: World, holds) -> None:
    """Agents take steps until something holds."""
    async with asyncio.timeout(30):
        while not holds():
            for agent in cloud.agents.values():
                await agent.step()
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(cloud: World):
    task = asyncio.create_task(cloud.lead())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_servers_come_up_and_go_with_nothing_left(store):
    async with world(store, hosts=2) as cloud, running(cloud):
        demo, other = cloud.client(), cloud.client("other")
        await asyncio.gather(make(demo, "many", min_count=10), *(make(other, f"one-{index}") for index in range(10)))
        await until(cloud, lambda: len(cloud.database.cache.all(SERVER)) == 20 and all(
            derive(server).status == "ACTIVE" for server in cloud.database.cache.all(SERVER)))
        assert {server.host for server in cloud.database.cache.all(SERVER)} == {"node-1", "node-2"}
        cloud.check()

        for client in (demo, other):
            servers = (await client("GET", "/servers")).json["servers"]
            await asyncio.gather(*(client("DELETE", f"/servers/{server['id']}") for server in servers))
        await until(cloud, lambda: not cloud.database.cache.all(SERVER) and not cloud.database.cache.all(ACTION))
        assert not cloud.database.cache.all(PORT) and not cloud.database.cache.all(fleet.ALLOCATION)
        cloud.check()


async def test_a_server_is_active_soon_after_its_ports_are_wired_without_any_other_change(store):
    async with world(store) as cloud, running(cloud):
        server_id = await make(cloud.client())
        cloud.ports.down.add(server_id)
        await until(cloud, lambda: derive(cloud.database.require(SERVER, server_id)).task_state == "networking")
        cloud.ports.down.clear()
        async with asyncio.timeout(30):
            while derive(cloud.database.require(SERVER, server_id)).status != "ACTIVE":
                await asyncio.sleep(0.01)


async def test_servers_that_wait_are_placed_when_a_host_comes_up(store):
    async with world(store, hosts=0) as cloud, running(cloud):
        await cloud.add_host("node-1", up=False)
        server_id = await make(cloud.client())

        def up(tx):
            host = tx.require(fleet.HOST, "node-1")
            host.up = True
            tx.put(fleet.HOST, host)

        await cloud.database.transact(up)
        await until(cloud, lambda: derive(cloud.database.require(SERVER, server_id)).status == "ACTIVE")
