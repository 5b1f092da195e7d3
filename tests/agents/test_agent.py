"""One agent over a simulated host: what it does with wishes, and what it says. Over a real stream where the stream matters."""
import asyncio
import contextlib
import hashlib
import logging
import uuid

import pytest

from agents import agent as agents_agent
from agents import link as link_module
from agents import main
from agents.agent import Agent
from agents.hypervisor.driver import Domain, Fault
from agents.hypervisor.model import Seen
from agents.hypervisor.simulated import SimulatedHypervisor
from agents.link import TOGETHER, Link, Outbox, _together
from agents.network.driver import SimulatedNetworking
from agents.telemetry.logs import request_id
from protos.internal.v1 import hosts_pb2 as pb
from tests.agents.control_plane import Control

RUNNING, STOPPED, ABSENT = pb.HostServer.RUNNING, pb.HostServer.STOPPED, pb.HostServer.ABSENT
NETWORK = pb.HostObject(key="network/n", network=pb.HostNetwork(id="n", vni=1))


def wish(power=RUNNING, generation=1, server_id="", **fields):
    server_id = server_id or str(uuid.uuid4())
    return pb.HostObject(key=f"server/{server_id}", server=pb.HostServer(
        id=server_id, generation=generation, power=power, vcpus=1, ram_mib=64, disk_gib=1, **fields))


def port(port_id="p"):
    return pb.HostObject(key=f"port/{port_id}", port=pb.HostPort(id=port_id, network_id="n", mac="fa:16:3e:00:00:01"))


class Host:
    """An agent with its simulated host, and what it said last about each thing."""

    def __init__(self, hypervisor=None, networking=None, **options):
        self.hypervisor = hypervisor or SimulatedHypervisor()
        self.networking = networking or SimulatedNetworking()
        self.said: dict[str, pb.AgentMessage] = {}
        self.history: list[pb.AgentMessage] = []
        self._news = asyncio.Condition()
        self.agent = Agent(self.hypervisor, self.networking, self._report, **options)

    def _report(self, key, message):
        self.said[key] = message
        self.history.append(message)

    def snapshot(self, *objects):
        self.agent.desired(pb.Desired(snapshot=True, upserts=objects))

    def change(self, *objects, removed=()):
        self.agent.desired(pb.Desired(upserts=objects, removed=removed))

    async def until(self, thing, **fields):
        """Wait until what was said last about a server has these fields."""
        async with asyncio.timeout(10):
            while True:
                if message := self.said.get(thing.key):
                    server = message.server
                    if all(getattr(server, name) == value for name, value in fields.items()):
                        return server
                await asyncio.sleep(0.005)

    async def until_at_rest(self, thing, domain):
        return await self.until(thing, domain=domain, step="", generation=thing.server.generation, fault="")

    async def until_gone(self, thing):
        async with asyncio.timeout(10):
            while not self.said.get(thing.key, pb.AgentMessage()).HasField("gone"):
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(host):
    task = asyncio.create_task(host.agent.run())
    try:
        yield host
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def host(monkeypatch):
    monkeypatch.setattr("agents.work.FIRST_BACKOFF", 0.005)
    async with running(Host()) as host:
        yield host


async def test_a_server_is_started_stopped_started_rebooted_and_removed_as_wished(host):
    thing = wish(port_ids=["p"])
    host.snapshot(NETWORK, port(), thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    assert host.said["port/p"].port.up
    thing.server.power, thing.server.generation = STOPPED, 2
    host.change(thing)
    await host.until_at_rest(thing, pb.ObservedServer.SHUTOFF)
    thing.server.power, thing.server.generation = RUNNING, 3
    host.change(thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    thing.server.reboots, thing.server.generation = 1, 4
    host.change(thing)
    assert (await host.until_at_rest(thing, pb.ObservedServer.RUNNING)).reboots == 1
    thing.server.power, thing.server.generation = ABSENT, 5
    host.change(thing)
    await host.until_gone(thing)
    assert host.hypervisor.domains == {}


async def test_nothing_is_said_to_be_at_rest_before_it_is(host):
    thing = wish()
    host.snapshot(thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    for message in host.history:
        if message.HasField("server") and message.server.domain != pb.ObservedServer.RUNNING:
            assert message.server.step and message.server.generation == 0


async def test_an_agent_that_starts_anew_adopts_what_runs_and_says_so():
    hypervisor, thing = SimulatedHypervisor(), wish(generation=3)
    hypervisor.domains[thing.server.id] = Domain(Seen.RUNNING, 3)
    hypervisor.ensure_running = None           # whoever calls it fails
    async with running(Host(hypervisor)) as host:
        host.snapshot(thing)
        await host.until_at_rest(thing, pb.ObservedServer.RUNNING)


async def test_each_snapshot_is_answered_with_all_that_is_seen(host):
    thing = wish(port_ids=["p"])
    host.snapshot(NETWORK, port(), thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    host.said.clear()
    host.snapshot(NETWORK, port(), thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    assert host.said["port/p"].port.up


async def test_a_wish_that_is_older_than_one_that_was_seen_is_refused(host):
    thing = wish(STOPPED, generation=5)
    host.snapshot(thing)
    await host.until_at_rest(thing, pb.ObservedServer.SHUTOFF)
    host.change(wish(RUNNING, generation=4, server_id=thing.server.id))
    other = wish()
    host.change(other)
    await host.until_at_rest(other, pb.ObservedServer.RUNNING)
    assert thing.server.id not in host.hypervisor.domains


async def test_a_wish_older_than_what_the_domain_remembers_is_refused_after_a_restart_too():
    hypervisor, thing = SimulatedHypervisor(), wish(STOPPED, generation=4)
    hypervisor.domains[thing.server.id] = Domain(Seen.RUNNING, 5)
    async with running(Host(hypervisor)) as host:
        other = wish()
        host.snapshot(thing, other)
        await host.until_at_rest(other, pb.ObservedServer.RUNNING)
        assert hypervisor.domains[thing.server.id].seen is Seen.RUNNING


async def test_a_guest_that_leaves_is_reported_and_left_alone(host):
    thing = wish()
    host.snapshot(thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    host.hypervisor.guest_leaves(thing.server.id)
    await host.until_at_rest(thing, pb.ObservedServer.SHUTOFF)
    assert host.hypervisor.domains[thing.server.id].seen is Seen.LEFT


async def test_a_domain_that_was_killed_is_started_again_and_never_reported_as_off(host):
    thing = wish()
    host.snapshot(thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    host.history.clear()
    host.agent._starts.clear()                 # it ran for a long time
    host.hypervisor.kill(thing.server.id)
    async with asyncio.timeout(10):
        while host.hypervisor.domains[thing.server.id].seen is not Seen.RUNNING:
            await asyncio.sleep(0.005)
    assert all(message.server.step for message in host.history if message.server.domain == pb.ObservedServer.SHUTOFF)


async def test_a_domain_that_dies_soon_after_each_start_waits_longer_each_time(host):
    thing = wish()
    host.snapshot(thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    host.hypervisor.kill(thing.server.id)
    await host.until(thing, step="waiting to start again")
    assert host.hypervisor.domains[thing.server.id].seen is Seen.OFF


async def test_a_server_waits_for_its_ports_and_says_why(host):
    thing = wish(port_ids=["p"])
    host.snapshot(port(), thing)
    await host.until(thing, step="waiting to try again", fault_final=False)
    assert "port p" in host.said[thing.key].server.fault
    host.change(NETWORK)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)


async def test_what_cannot_be_is_a_final_fault_at_once_and_not_tried_until_the_wish_changes(host):
    thing = wish(image=pb.BootImage(size=2 << 30))
    host.snapshot(thing)
    assert "flavor" in (await host.until(thing, fault_final=True)).fault
    host.history.clear()
    host.change(thing)
    await asyncio.sleep(0.05)
    assert all(message.server.fault_final for message in host.history if message.HasField("server"))
    thing.server.disk_gib, thing.server.generation = 2, 2
    host.change(thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)


async def test_what_keeps_failing_becomes_a_final_fault(host, monkeypatch):
    monkeypatch.setattr(agents_agent, "TRIES", 3)
    tries = []

    async def ensure_running(*_):
        tries.append(1)
        raise Fault("The moon is in the wrong phase.")

    monkeypatch.setattr(host.hypervisor, "ensure_running", ensure_running)
    thing = wish()
    host.snapshot(thing)
    assert (await host.until(thing, fault_final=True)).fault == "The moon is in the wrong phase."
    assert len(tries) == 3


async def test_a_full_disk_of_the_host_is_the_servers_fault_in_words_and_passes(host, monkeypatch):
    full = [True]
    run = host.hypervisor.ensure_running

    async def ensure_running(*arguments):
        if full[0]:
            raise OSError(28, "No space left on device", "/a/file")
        await run(*arguments)

    monkeypatch.setattr(host.hypervisor, "ensure_running", ensure_running)
    thing = wish()
    host.snapshot(thing)
    said = await host.until(thing, step="waiting to try again")
    assert said.fault == "The host's disk does not take what the server needs: No space left on device."
    full[0] = False
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)


async def test_a_server_is_removed_at_once_though_its_guest_is_being_waited_for(host):
    thing = wish()
    host.snapshot(thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    host.hypervisor.deaf.add(thing.server.id)
    thing.server.power, thing.server.generation = STOPPED, 2
    host.change(thing)
    await host.until(thing, step="stopping")
    thing.server.power, thing.server.generation = ABSENT, 3
    host.change(thing)
    await host.until_gone(thing)


async def test_a_domain_that_nobody_wishes_is_left_alone(host):
    thing = wish()
    host.snapshot(thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    other = wish()
    host.snapshot(other)
    await host.until_at_rest(other, pb.ObservedServer.RUNNING)
    assert host.hypervisor.domains[thing.server.id].seen is Seen.RUNNING


async def test_domains_that_nobody_wishes_are_named_after_each_snapshot(host):
    async def named(*server_ids):
        async with asyncio.timeout(10):
            while "strangers" not in host.said or list(host.said["strangers"].strangers.server_ids) != sorted(server_ids):
                await asyncio.sleep(0.005)

    known, unknown = wish(), wish()
    host.snapshot(known, unknown)
    await host.until_at_rest(known, pb.ObservedServer.RUNNING)
    await host.until_at_rest(unknown, pb.ObservedServer.RUNNING)
    await named()
    host.snapshot(known)                    # the control plane was restored from before it was made
    await named(unknown.server.id)
    assert host.hypervisor.domains[unknown.server.id].seen is Seen.RUNNING
    host.snapshot()
    await named(known.server.id, unknown.server.id)
    host.snapshot(known, unknown)
    await named()


async def test_a_wish_of_a_restored_state_is_taken_and_touches_no_guest(host):
    thing = wish(generation=7, reboots=3)
    host.snapshot(thing)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
    restored = wish(server_id=thing.server.id, generation=1_800_000_000_000, reboots=1)     # of before two of the reboots
    host.snapshot(restored)
    await host.until_at_rest(restored, pb.ObservedServer.RUNNING)
    domain = host.hypervisor.domains[thing.server.id]
    assert domain.generation == 1_800_000_000_000 and domain.reboots == 1, "so that the next reboot is one more again"
    assert not any(message.server.step == "rebooting" for message in host.history)


async def test_networking_is_not_touched_before_the_first_snapshot(monkeypatch):
    networking, applied = SimulatedNetworking(), []
    apply = networking.apply

    async def counting(objects):
        applied.append(set(objects))
        return await apply(objects)

    monkeypatch.setattr(networking, "apply", counting)
    async with running(Host(networking=networking)) as host:
        await asyncio.sleep(0.05)
        assert applied == []
        host.snapshot(NETWORK, port())
        host.change(port("q"))
        async with asyncio.timeout(10):
            while "port/q" not in host.said:
                await asyncio.sleep(0.005)
        assert applied == [{"network/n", "port/p", "port/q"}]


async def test_a_question_about_a_server_that_is_not_here_is_answered_so(host):
    reply = await host.agent.answer(pb.Query(id=7, console_log=pb.ConsoleLog(server_id="nobody")))
    assert reply.id == 7 and "nobody" in reply.error


# The stream


@pytest.fixture
async def control():
    control = Control()
    await control.start()
    yield control
    await control.server.stop(None)


@contextlib.asynccontextmanager
async def attached(*controls):
    """An agent over a simulated host, on a real stream to the first of some replicas."""
    async def hello():
        return pb.Hello(host="host", inventory=await host.hypervisor.inventory())

    link = None
    host = Host()
    host.agent = Agent(host.hypervisor, host.networking, lambda key, message: link.report(key, message))
    endpoints = [f"127.0.0.1:{control.port}" for control in controls]
    link = Link(endpoints, None, hello=hello, on_desired=host.agent.desired, on_query=host.agent.answer)
    async with running(host):
        task = asyncio.create_task(link.run())
        try:
            yield host, link
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_an_agent_says_hello_and_makes_what_it_is_sent(control):
    control.objects = [thing := wish()]
    async with attached(control):
        await control.until(lambda said: said.server.domain == pb.ObservedServer.RUNNING and said.server.generation == 1)
        assert control.hellos[0].host == "host" and control.hellos[0].inventory.vcpus
        control.queries.put_nowait(pb.ControlMessage(query=pb.Query(id=3, console_log=pb.ConsoleLog(server_id=thing.server.id))))
        assert (await control.until(lambda said: said.HasField("reply"))).reply == pb.Reply(id=3, data=b"guest ready\r\n")


async def test_servers_run_on_without_a_control_plane_and_all_is_said_again_when_it_is_back(control, monkeypatch):
    control.objects = [thing := wish()]
    async with attached(control) as (host, _):
        await control.until(lambda said: said.server.domain == pb.ObservedServer.RUNNING)
        await control.server.stop(None)
        assert host.hypervisor.domains[thing.server.id].seen is Seen.RUNNING
        await control.start()
        await control.until(lambda said: said.server.domain == pb.ObservedServer.RUNNING and said.server.generation == 1)
        assert len(control.hellos) == 2


async def test_a_farewell_sends_an_agent_to_the_next_replica_at_once(control, monkeypatch):
    monkeypatch.setattr(link_module, "FIRST_BACKOFF", 3600.0)
    other = Control(wish())
    await other.start()
    try:
        async with attached(control, other):
            async with asyncio.timeout(10):
                while not control.hellos:
                    await asyncio.sleep(0.01)
            control.farewell()
            await other.until(lambda said: said.server.domain == pb.ObservedServer.RUNNING)
            assert (len(control.hellos), len(other.hellos)) == (1, 1)
    finally:
        await other.server.stop(None)


async def test_an_image_is_fetched_over_the_stream_or_the_reason_said(control):
    data = b"an image's bytes"
    sha512 = hashlib.sha512(data).hexdigest()
    control.objects = [wish()]
    control.images[sha512] = data
    async with attached(control) as (_, link):
        await control.until(lambda said: said.server.domain == pb.ObservedServer.RUNNING)
        assert b"".join([chunk async for chunk in link.fetch_image(sha512)]) == data
        control.cut = 1
        with pytest.raises(Fault, match="cut") as caught:
            [chunk async for chunk in link.fetch_image(sha512)]
        assert not caught.value.final
        with pytest.raises(Fault, match="not in the image service") as caught:
            [chunk async for chunk in link.fetch_image("0" * 128)]
        assert caught.value.final


async def test_an_agent_of_a_simulated_host_runs_as_it_is_configured(control, tmp_path):
    control.objects = [NETWORK, port(), thing := wish(port_ids=["p"])]
    config = main.AgentConfig(
        host="pretender", directory=tmp_path / "agent", libvirt_directory=tmp_path / "libvirt", run_directory=tmp_path / "run",
        endpoints=("127.0.0.1:1", f"127.0.0.1:{control.port}"), hypervisor="simulated", availability_zone="east")
    task = asyncio.create_task(main.run(config))
    try:
        await control.until(lambda said: said.server.id == thing.server.id and said.server.domain == pb.ObservedServer.RUNNING)
        assert control.hellos[0].host == "pretender" and control.hellos[0].inventory.availability_zone == "east"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await main.teardown(config, purge=True)
    assert list(tmp_path.iterdir()) == []


async def test_only_the_last_word_about_a_thing_is_kept_and_none_is_said_twice():
    outbox = Outbox()
    running, off = (pb.AgentMessage(server=pb.ObservedServer(id="s", domain=domain)) for domain in (1, 3))
    outbox.put("s", running)
    outbox.put("s", off)
    assert await outbox.take() == [off]
    outbox.put("s", off)
    outbox.put("t", running)
    assert await outbox.take() == [running]
    outbox.put("s", running)
    outbox.put("s", off)
    outbox.forget_said()
    outbox.put("s", off)
    assert await outbox.take() == [off]


async def test_a_port_that_goes_and_comes_back_on_one_stream_is_reported_again(monkeypatch):
    monkeypatch.setattr("agents.work.FIRST_BACKOFF", 0.005)
    control = Control(NETWORK, port())
    await control.start()
    hypervisor, networking = SimulatedHypervisor(), SimulatedNetworking()
    agent = Agent(hypervisor, networking, lambda key, message: link.report(key, message))

    async def hello():
        return pb.Hello(host="h")

    link = Link([f"127.0.0.1:{control.port}"], None, hello=hello, on_desired=agent.desired, on_query=agent.answer)
    tasks = [asyncio.create_task(agent.run()), asyncio.create_task(link.run())]
    try:
        await control.until(lambda said: said.port.id == "p" and said.port.up)
        control.change(removed=["port/p"])
        async with asyncio.timeout(5):
            while networking.wired:
                await asyncio.sleep(0.01)
        control.change(port())
        await control.until(lambda said: said.port.id == "p" and said.port.up)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await control.server.stop(None)


async def test_what_is_seen_together_is_taken_together_and_a_mere_step_waits_for_its_end():
    outbox = Outbox()
    step, running = (pb.AgentMessage(server=pb.ObservedServer(id="s", step=step)) for step in ("starting", ""))
    port = pb.AgentMessage(port=pb.ObservedPort(id="p", up=True))
    outbox.put("s", step)
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0.05)
    assert not taking.done()
    outbox.put("p", port)
    outbox.put("s", running)
    assert await taking == [running, port]


async def test_a_step_that_does_not_end_is_said_and_a_reply_does_not_wait():
    outbox = Outbox()
    step = pb.AgentMessage(server=pb.ObservedServer(id="s", step="starting"))
    outbox.put("s", step)
    async with asyncio.timeout(5):
        assert await outbox.take() == [step]
    reply = pb.AgentMessage(reply=pb.Reply(id=1))
    outbox.put("s", pb.AgentMessage(server=pb.ObservedServer(id="s", step="waiting")))
    outbox.put("reply/1", reply)
    assert reply in await outbox.take()


def test_many_observations_go_in_few_messages_and_all_else_as_it_is():
    servers = [pb.AgentMessage(server=pb.ObservedServer(id=str(number))) for number in range(TOGETHER + 1)]
    reply = pb.AgentMessage(reply=pb.Reply(id=1))
    said = list(_together([*servers, reply, pb.AgentMessage(gone=pb.Gone(key="server/g"))]))
    assert reply in said and len(said) == 3
    seen = [message.observations for message in said if message.HasField("observations")]
    assert [server.id for each in seen for server in each.servers] == [str(number) for number in range(TOGETHER + 1)]
    assert [gone.key for each in seen for gone in each.gone] == ["server/g"]
    assert list(_together(servers[:1])) == servers[:1]


async def test_a_port_that_nobody_wishes_any_more_is_not_reported_down():
    async with running(Host()) as host:
        host.snapshot(NETWORK, port())
        async with asyncio.timeout(5):
            while "port/p" not in host.said:
                await asyncio.sleep(0.01)
        reports = len(host.history)
        host.change(removed=["port/p"])
        await asyncio.sleep(0.2)
        assert not host.networking.wired and len(host.history) == reports


async def test_what_is_done_for_a_server_is_logged_under_the_request_that_wished_for_it():
    lines: list[tuple[str, str]] = []

    class Noting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append((request_id.get(), record.getMessage()))

    logger, handler = logging.getLogger("agents.agent"), Noting()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        one, other = wish(request_ids=["req-one", "req-theirs"]), wish()
        async with running(Host()) as host:
            host.snapshot(one, other)
            for thing in (one, other):
                await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
            assert host.agent.timings.count("start", "ok") == 2 and host.agent.counts()["servers"] == 2
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert ("req-one req-theirs", f"server {one.server.id}: start (missing)") in lines
    assert ("-", f"server {other.server.id}: start (missing)") in lines
    assert request_id.get() == "-"
