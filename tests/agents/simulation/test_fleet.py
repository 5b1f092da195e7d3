"""Simulated hosts over real streams: many on few connections, as they were drawn, and back after what happens to them."""
import asyncio
import contextlib
import uuid
from collections import defaultdict

import pytest

from agents.hypervisor.model import Seen
from agents.simulation import channels
from agents.simulation.fleet import Fleet, Plan
from agents.simulation.host import Shape
from agents.simulation.run import running
from protos.internal.v1 import hosts_pb2 as pb
from tests.agents.control_plane import Control


class Hosts(Control):
    """A control plane that tells hosts apart: `wishes` by host; `seen` and `peers` are what arrived and whence."""

    def __init__(self):
        super().__init__()
        self.wishes = defaultdict(list)
        self.seen = defaultdict(dict)
        self.peers = defaultdict(list)

    async def Attach(self, requests, context):
        hello = (await anext(aiter(requests))).hello
        self.peers[hello.host].append(context.peer())

        async def read():
            async for message in requests:
                for server in (*message.observations.servers, *([message.server] if message.HasField("server") else [])):
                    self.seen[hello.host][server.id] = server

        reader = asyncio.create_task(read())
        try:
            yield pb.ControlMessage(welcome=pb.Welcome(heartbeat_seconds=30), desired=pb.Desired(
                snapshot=True, upserts=self.wishes[hello.host]))
            await asyncio.Event().wait()
        finally:
            reader.cancel()


@pytest.fixture
async def control():
    control = Hosts()
    await control.start()
    yield control
    await control.server.stop(0)


@contextlib.asynccontextmanager
async def fleet_of(control, **plan):
    fleet = Fleet(Plan(endpoints=(f"127.0.0.1:{control.port}",), **plan))
    task = asyncio.create_task(fleet.run())
    try:
        yield fleet
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(done):
    async with asyncio.timeout(20):
        while not done():
            await asyncio.sleep(0.01)


def wish(server_id=""):
    server_id = server_id or str(uuid.uuid4())
    return pb.HostObject(key=f"server/{server_id}", server=pb.HostServer(
        id=server_id, generation=1, power=pb.HostServer.RUNNING, vcpus=1, ram_mib=64))


async def test_many_hosts_attach_over_few_connections_and_start_their_servers(control, monkeypatch):
    monkeypatch.setattr(channels, "STREAMS", 500)
    for number in range(60):
        control.wishes[f"host-{number:05d}.sim"] = [wish(), wish()]
    async with fleet_of(control, count=60, zones=("a", "b")) as fleet:
        await until(lambda: fleet.totals()["settled"] == 60 and fleet.totals()["running"] == 120)
        assert fleet.totals()["starts"] == 120 and fleet.totals()["attaches"] == 60
        assert len({peers[0] for peers in control.peers.values()}) == 1, "one connection carries them all"
        await until(lambda: sum(server.domain == pb.ObservedServer.RUNNING for seen in control.seen.values()
                                for server in seen.values()) == 120)


async def test_a_connection_carries_no_more_streams_than_it_may(control):
    pool = channels.Channels(None, streams=2)
    async with contextlib.AsyncExitStack() as stack:
        lent = [await stack.enter_async_context(pool.connect("127.0.0.1:1")) for _ in range(5)]
        assert len(set(map(id, lent))) == 3
    async with pool.connect("127.0.0.1:1") as again:
        assert again in lent, "what is free is lent again"
    await pool.close()


async def test_the_same_seed_gives_the_same_shapes_and_fails_the_same_starts(control):
    shapes = ((Shape(64, 1 << 18, 1000), 1), (Shape(8, 1 << 14, 100), 1))
    for number in range(20):
        control.wishes[f"host-{number:05d}.sim"] = [wish(), wish()]

    async def run(seed):
        async with fleet_of(control, count=20, seed=seed, shapes=shapes, failures="start=0.3") as fleet:
            await until(lambda: fleet.totals()["running"] == 40)
            return [(await host.hypervisor.inventory()).vcpus for host in fleet.hosts], fleet.totals()["failures"]

    first, again, other = await run(3), await run(3), await run(4)
    assert first == again and first[1] > 0 and set(first[0]) == {8, 64}
    assert other != first


async def test_a_restarted_agent_finds_its_servers_running_and_a_cut_stream_comes_back(control):
    control.wishes["host-00000.sim"] = [wish()]
    async with fleet_of(control, count=1) as fleet:
        await until(lambda: fleet.totals()["settled"] == 1 and fleet.totals()["running"] == 1)
        before = fleet.hosts[0].agent
        fleet.restart_agents()
        await until(lambda: fleet.totals()["attaches"] == 2 and fleet.totals()["settled"] == 1)
        assert fleet.hosts[0].agent is not before and fleet.totals()["starts"] == 1
        await control.server.stop(0)
        await until(lambda: fleet.totals()["attached"] == 0)
        await control.start()
        await until(lambda: fleet.totals()["attached"] == 1)
        assert fleet.totals()["starts"] == 1


async def test_a_servers_process_dies_as_often_as_was_said_and_its_agent_starts_it_again(control):
    thing = wish()
    control.wishes["host-00000.sim"] = [thing]
    async with fleet_of(control, count=1, failures="crash=3600/h") as fleet:
        await until(lambda: fleet.totals()["crashes"] >= 1)
        await until(lambda: fleet.totals()["starts"] >= 2)
        assert fleet.hosts[0].hypervisor.domains[thing.server.id].seen in (Seen.RUNNING, Seen.OFF)


async def test_processes_share_the_hosts_and_end_when_they_are_told(control):
    plan = Plan(endpoints=(f"127.0.0.1:{control.port}",), count=7)

    def simulate():
        with running(plan, processes=2) as fleet:
            for _ in range(200):
                if fleet.totals()["attached"] == 7:
                    break
                fleet._children[0][1].poll(0.1)
            assert len(fleet.pids) == 2
            return fleet.totals(), [child for child, _ in fleet._children]

    totals, children = await asyncio.to_thread(simulate)
    assert totals["hosts"] == totals["attached"] == 7 and set(control.peers) == {f"host-{number:05d}.sim" for number in range(7)}
    assert [child.exitcode for child in children] == [0, 0]
