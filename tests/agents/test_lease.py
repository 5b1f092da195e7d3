"""The agent's lease: what it counts from, what it outlives, and that no guest is touched without it."""
import asyncio

import pytest

from agents.hypervisor.model import Seen
from agents.hypervisor.simulated import SimulatedHypervisor
from agents.lease import Lease
from agents.link import Link
from protos.internal.v1 import hosts_pb2 as pb
from tests.agents.control_plane import Control
from tests.agents.test_agent import RUNNING, Host, running, wish


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def running_lease(clock):
    """A lease that was granted just now."""
    lease = Lease(now=clock)
    lease.said(0)
    granted(lease)
    return lease


async def slowly(verb, server_id):
    """What a simulated hypervisor does takes its time."""
    await asyncio.sleep(0.2)


def granted(lease, number=0, seconds=12.0, epoch=0):
    lease.granted(pb.Lease(heartbeat=number, seconds=seconds, epoch=epoch))


def test_without_a_lease_guests_may_run_for_ever(clock):
    lease = Lease(now=clock)
    lease.said(0)
    granted(lease, seconds=0)
    clock.now += 1e6
    assert lease.holds() and not lease.bound


def test_a_lease_counts_from_when_its_heartbeat_was_said_not_from_when_it_was_acknowledged(clock):
    lease = Lease(now=clock)
    lease.said(1)
    clock.now += 11
    granted(lease, 1)
    assert lease.holds() and lease.bound
    clock.now += 1
    assert not lease.holds()


def test_an_acknowledgement_that_comes_too_late_or_of_another_stream_gives_nothing(clock):
    lease = running_lease(clock)
    clock.now += 6
    lease.said(1)
    clock.now += 6
    granted(lease, 1)
    assert not lease.holds(), "it had run out, and the guests are to be stopped first"
    lease.ended()
    assert lease.holds()
    lease.attaching()
    granted(lease, 1)
    granted(lease, 7)
    assert lease.granted_epoch == 0 and lease.waiting() == 0


def test_acknowledgements_out_of_order_never_shorten_a_lease(clock):
    lease = Lease(now=clock)
    for number in (1, 2, 3):
        lease.said(number)
        clock.now += 4
    granted(lease, 3)
    granted(lease, 1)
    clock.now += 7
    assert lease.holds()
    clock.now += 1
    assert not lease.holds()


def test_a_lease_outlives_the_agents_process_and_not_the_machines_run(clock, tmp_path, monkeypatch):
    lease = Lease(tmp_path / "lease.json", clock)
    lease.said(0)
    granted(lease, epoch=3)
    lease.readmitted(3)
    again = Lease(tmp_path / "lease.json", clock)
    assert again.holds() and again.bound and again.epoch == 3
    clock.now += 12
    assert not Lease(tmp_path / "lease.json", clock).holds()
    monkeypatch.setattr("agents.lease._boot", lambda: "another")
    rebooted = Lease(tmp_path / "lease.json", clock)
    assert rebooted.holds() and rebooted.epoch == 3


def test_a_file_that_cannot_be_read_holds_nothing(clock, tmp_path):
    (tmp_path / "lease.json").write_text("{")
    assert not Lease(tmp_path / "lease.json", clock).holds()


@pytest.fixture
async def leased(clock, monkeypatch):
    """(host, lease) with a server that runs."""
    monkeypatch.setattr("agents.lease.LOOK_EVERY", 0.01)
    monkeypatch.setattr("agents.agent.FENCE_EVERY", 0.01)
    lease = running_lease(clock)
    async with running(Host(lease=lease)) as host:
        yield host, lease


async def until(done):
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.005)


async def test_guests_are_cut_off_when_the_lease_runs_out_and_their_wishes_forgotten(leased, clock):
    host, lease = leased
    thing, other = wish(), wish()
    host.snapshot(thing, other)
    for each in (thing, other):
        await host.until_at_rest(each, pb.ObservedServer.RUNNING)
    host.hypervisor.deaf.add(other.server.id)
    said = len(host.history)
    clock.now += 12
    await until(lambda: lease.lapses == 1)
    assert {domain.seen for domain in host.hypervisor.domains.values()} == {Seen.OFF}
    assert {domain.generation for domain in host.hypervisor.domains.values()} == {1}, "what was carried out stays noted"
    await asyncio.sleep(0.05)
    assert len(host.history) == said, "nothing is said of it"
    lease.attaching()
    lease.said(0)
    granted(lease)
    host.snapshot(thing, other)
    await host.until_at_rest(thing, pb.ObservedServer.RUNNING)


async def test_nothing_is_taken_in_while_the_lease_is_over(leased, clock):
    host, lease = leased
    clock.now += 12
    thing = wish()
    host.snapshot(thing)
    await until(lambda: lease.lapses == 1)
    await asyncio.sleep(0.05)
    assert not host.hypervisor.domains


async def test_a_start_that_goes_on_when_the_lease_runs_out_leaves_no_guest(clock, monkeypatch):
    monkeypatch.setattr("agents.lease.LOOK_EVERY", 0.01)
    monkeypatch.setattr("agents.agent.FENCE_EVERY", 0.01)
    lease = running_lease(clock)
    async with running(Host(SimulatedHypervisor(before=slowly), lease=lease)) as host:
        host.snapshot(thing := wish())
        await host.until(thing, step="starting")
        clock.now += 12
        await until(lambda: lease.lapses == 1)
        await asyncio.sleep(0.3)
        assert all(domain.seen is not Seen.RUNNING for domain in host.hypervisor.domains.values())


async def test_what_an_older_epoch_left_goes_before_the_host_asks_to_be_let_in(leased):
    host, lease = leased
    stays, went = wish(), wish()
    host.snapshot(stays, went)
    for each in (stays, went):
        await host.until_at_rest(each, pb.ObservedServer.RUNNING)
    lease.attaching()
    lease.said(0)
    granted(lease, epoch=2)
    host.snapshot(stays)
    await until(lambda: "readmit" in host.said)
    assert host.said["readmit"].readmit.epoch == 2 and lease.epoch == 2
    assert list(host.hypervisor.domains) == [stays.server.id]
    assert host.hypervisor.domains[stays.server.id].seen is Seen.RUNNING


async def test_a_start_that_goes_on_when_the_host_is_to_be_let_in_leaves_nothing(clock):
    lease = running_lease(clock)

    async with running(Host(SimulatedHypervisor(before=slowly), lease=lease)) as host:
        stays, went = wish(), wish()
        host.snapshot(stays, went)
        for each in (stays, went):
            await host.until(each, step="starting")
        lease.attaching()
        lease.said(0)
        granted(lease, epoch=2)
        host.snapshot(stays)
        await until(lambda: "readmit" in host.said)
        await host.until_at_rest(stays, pb.ObservedServer.RUNNING)
        await asyncio.sleep(0.3)
        assert list(host.hypervisor.domains) == [stays.server.id]


@pytest.mark.parametrize("speaks", [True, False])
async def test_a_stream_does_not_outlive_the_lease_that_it_began_with(clock, speaks, monkeypatch):
    monkeypatch.setattr("agents.link.DEAF", 6.0)           # so it looks every 2 s, and gives up for another reason after 6

    async def hello():
        return pb.Hello(host="host")

    control, taken, lease = Control(), [], Lease(now=clock)
    await control.start()
    link = Link([f"127.0.0.1:{control.port}"], None, hello=hello, on_desired=taken.append, on_query=None, lease=lease)
    running_link = asyncio.create_task(link.run())
    try:
        await until(lambda: taken)
        lease.ended()              # at once, as where no guest ran: nobody saw that it had run out
        if speaks:
            control.change(wish())
        async with asyncio.timeout(4):
            while link.attaches < 2 or len(taken) < 2:
                await asyncio.sleep(0.01)
        assert [desired.snapshot for desired in taken] == [True, True], "what was wished before came by the old stream"
    finally:
        running_link.cancel()
        await asyncio.gather(running_link, return_exceptions=True)
        await control.server.stop(0)


async def test_a_disk_arrives_is_reported_and_its_server_starts_from_it():
    class Movers:
        async def fetch_disk(self, server_id, move_id):
            yield b"the disk of " + move_id.encode()

        async def send_disk(self, move_id, chunks):
            self.sent = move_id, b"".join([data async for data in chunks])

    async with running(Host()) as host:
        host.agent.movers = movers = Movers()
        thing = wish(pb.HostServer.STOPPED)
        thing.server.arriving.id = "m1"
        host.snapshot(thing)
        await host.until(thing, arrived="m1")
        assert not host.hypervisor.domains and host.hypervisor.disks[thing.server.id] == b"the disk of m1"
        thing.server.ClearField("arriving")
        thing.server.power, thing.server.generation = RUNNING, 2
        host.change(thing)
        await host.until_at_rest(thing, pb.ObservedServer.RUNNING)
        assert host.hypervisor.disks[thing.server.id] == b"the disk of m1"
        query = pb.Query(id=1, disk=pb.DiskQuery(server_id=thing.server.id, move_id="m2"))
        assert "not about to leave" in (await host.agent.answer(query)).error
        thing.server.power, thing.server.generation = pb.HostServer.STOPPED, 3
        host.change(thing)
        await host.until_at_rest(thing, pb.ObservedServer.SHUTOFF)
        assert not (await host.agent.answer(query)).error
        assert movers.sent == ("m2", b"the disk of m1")
