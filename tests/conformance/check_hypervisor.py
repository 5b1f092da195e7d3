"""What every hypervisor does, whatever it is made of: the suite that a driver's own test file runs by subclassing.

A Bench is a driver with what happens to its domains from outside: a guest that leaves by itself, a process that is killed.
"""
import asyncio
import uuid
from typing import Protocol

import pytest

from agents.hypervisor.driver import Domain, Fault, Hypervisor, Wish
from agents.hypervisor.model import Seen
from protos.internal.v1.hosts_pb2 import BootImage, GuestData, HostServer

#: SHA-512 that the benches' images know; and the size of what they give.
IMAGE, IMAGE_SIZE = "a" * 128, 1 << 20


class Bench(Protocol):
    hypervisor: Hypervisor

    async def guest_leaves(self, server_id: str) -> None:
        """The guest shuts itself down; return when it has."""

    async def kill(self, server_id: str) -> None:
        """The domain's process dies; return when it has."""

    async def pause(self, server_id: str) -> None:
        """Somebody pauses the domain."""

    async def make_deaf(self, server_id: str) -> None:
        """The guest does not hear when it is asked to shut down."""


def server(**fields: object) -> HostServer:
    server_id = str(uuid.uuid4())
    return HostServer(**{
        "id": server_id, "generation": 1, "power": HostServer.RUNNING, "vcpus": 1, "ram_mib": 64, "disk_gib": 1,
        "image": BootImage(id="image", disk_format="raw", sha512=IMAGE, size=IMAGE_SIZE),
        "guest": GuestData(uuid=server_id, name="guest", hostname="guest"), "name": "guest", **fields})


def silent(_: str) -> None:
    """Say nothing."""


async def chunks(*data: bytes):
    for each in data:
        yield each


class CheckHypervisor:
    @pytest.fixture
    async def bench(self) -> Bench:
        raise AssertionError("a subclass makes the bench")

    @pytest.fixture
    async def running(self, bench):
        """A server that runs, and is gone afterwards."""
        wanted = server()
        await bench.hypervisor.ensure_running(Wish(wanted), silent)
        await self.until_ready(bench, wanted.id)
        yield wanted
        await bench.hypervisor.ensure_gone(wanted.id)

    async def until_ready(self, bench, server_id):
        async with asyncio.timeout(30):
            while b"guest ready" not in await bench.hypervisor.console_log(server_id, 0):
                await asyncio.sleep(0.02)

    async def look(self, bench, server_id):
        return (await bench.hypervisor.observe([server_id])).get(server_id)

    async def test_the_inventory_says_what_there_is(self, bench):
        inventory = await bench.hypervisor.inventory()
        assert inventory.vcpus > 0 and inventory.ram_mib > 0 and inventory.disk_gib > 0
        assert inventory.hypervisor_type in ("KVM", "QEMU", "simulated") and inventory.architecture
        assert inventory.hypervisor_type == "KVM" or inventory.notice

    async def test_a_server_that_never_was_is_not_seen_and_is_gone_and_stopped_already(self, bench):
        never = server()
        assert await bench.hypervisor.observe([never.id]) == {}
        await bench.hypervisor.ensure_gone(never.id)
        await bench.hypervisor.ensure_stopped(never, 0)
        assert await bench.hypervisor.console_log(never.id, 10) == b""

    async def test_a_server_starts_with_its_generation_and_reboots(self, bench):
        wanted, said = server(generation=7, reboots=3), []
        await bench.hypervisor.ensure_running(Wish(wanted), said.append)
        assert await self.look(bench, wanted.id) == Domain(Seen.RUNNING, 7, 3)
        assert "starting" in said
        await bench.hypervisor.ensure_gone(wanted.id)

    async def test_all_domains_are_seen_when_none_is_named(self, bench, running):
        other = server()
        await bench.hypervisor.ensure_running(Wish(other), silent)
        assert {running.id, other.id} <= (await bench.hypervisor.observe()).keys()
        await bench.hypervisor.ensure_gone(other.id)
        seen = await bench.hypervisor.observe()
        assert running.id in seen and other.id not in seen

    async def test_running_again_starts_nothing_and_notes_the_newer_generation(self, bench, running):
        said = []
        running.generation, running.reboots = 5, 2
        await bench.hypervisor.ensure_running(Wish(running), said.append)
        assert await self.look(bench, running.id) == Domain(Seen.RUNNING, 5, 2)
        assert said == []

    async def test_a_stop_asks_the_guest_which_leaves(self, bench, running):
        running.generation, running.power = 2, HostServer.STOPPED
        async with asyncio.timeout(20):
            await bench.hypervisor.ensure_stopped(running, 60)
        assert await self.look(bench, running.id) == Domain(Seen.LEFT, 2, 0)
        await bench.hypervisor.ensure_stopped(running, 60)
        assert await self.look(bench, running.id) == Domain(Seen.LEFT, 2, 0)

    async def test_a_stop_without_grace_cuts_the_power(self, bench, running):
        await bench.hypervisor.ensure_stopped(running, 0)
        assert (await self.look(bench, running.id)).seen is Seen.OFF

    async def test_a_guest_that_does_not_hear_is_off_when_its_grace_is_over(self, bench, running):
        await bench.make_deaf(running.id)
        await bench.hypervisor.ensure_stopped(running, 0.5)
        assert (await self.look(bench, running.id)).seen is Seen.OFF

    async def test_a_stopped_server_starts_again(self, bench, running):
        await bench.hypervisor.ensure_stopped(running, 0)
        running.generation = 3
        await bench.hypervisor.ensure_running(Wish(running), silent)
        assert await self.look(bench, running.id) == Domain(Seen.RUNNING, 3, 0)

    async def test_a_guest_that_left_by_itself_is_told_from_one_that_was_killed(self, bench, running):
        await bench.guest_leaves(running.id)
        assert (await self.look(bench, running.id)).seen is Seen.LEFT
        await bench.hypervisor.ensure_running(Wish(running), silent)
        await bench.kill(running.id)
        assert (await self.look(bench, running.id)).seen is Seen.OFF

    async def test_a_hard_reboot_counts(self, bench, running):
        running.reboots, running.generation = 1, 2
        await bench.hypervisor.reboot(Wish(running), 0)
        assert await self.look(bench, running.id) == Domain(Seen.RUNNING, 2, 1)

    async def test_a_soft_reboot_counts_and_ends_though_the_guest_does_not_hear(self, bench, running):
        await bench.make_deaf(running.id)
        running.reboots = 1
        await bench.hypervisor.reboot(Wish(running), 0.5)
        assert await self.look(bench, running.id) == Domain(Seen.RUNNING, 1, 1)

    async def test_a_paused_domain_runs_again(self, bench, running):
        await bench.pause(running.id)
        assert (await self.look(bench, running.id)).seen is Seen.PAUSED
        await bench.hypervisor.ensure_running(Wish(running), silent)
        assert (await self.look(bench, running.id)).seen is Seen.RUNNING

    async def test_the_console_keeps_its_last_lines(self, bench, running):
        assert (await bench.hypervisor.console_log(running.id, 1)).rstrip().endswith(b"guest ready")
        await bench.hypervisor.reboot(Wish(running), 0)
        async with asyncio.timeout(30):
            while (await bench.hypervisor.console_log(running.id, 0)).count(b"guest ready") < 2:
                await asyncio.sleep(0.02)
        assert (await bench.hypervisor.console_log(running.id, 1)).count(b"guest ready") == 1

    async def test_gone_leaves_nothing_and_may_be_said_again(self, bench, running):
        await bench.hypervisor.ensure_gone(running.id)
        assert await self.look(bench, running.id) is None
        assert await bench.hypervisor.console_log(running.id, 0) == b""
        await bench.hypervisor.ensure_gone(running.id)

    async def test_what_happens_from_outside_is_an_event(self, bench, running):
        events = bench.hypervisor.events()

        async def until_named():
            async for server_id in events:
                if server_id == running.id and (await self.look(bench, running.id)).seen is Seen.LEFT:
                    return

        async with asyncio.timeout(20):
            waiting = asyncio.create_task(until_named())
            await bench.guest_leaves(running.id)
            await waiting

    async def test_an_image_that_does_not_fit_is_a_final_fault_that_says_so(self, bench):
        big = server()
        big.image.sha512, big.image.size = "b" * 128, 3 << 30
        with pytest.raises(Fault, match="flavor") as caught:
            await bench.hypervisor.ensure_running(Wish(big), silent)
        assert caught.value.final
        await bench.hypervisor.ensure_gone(big.id)

    async def test_a_disk_moves_whole_to_another_host_and_its_server_starts_from_it(self, bench, running):
        with pytest.raises(Fault, match="not off"):
            async for _ in bench.hypervisor.disk(running.id):
                raise AssertionError("the disk of a running guest was read")
        await bench.hypervisor.ensure_stopped(running, 0)
        sent = b"".join([data async for data in bench.hypervisor.disk(running.id)])
        assert sent
        there, said = server(generation=4, power=HostServer.STOPPED), []
        await bench.hypervisor.take_disk(there, chunks(sent), said.append)
        assert "copying the disk" in said and await self.look(bench, there.id) is None
        assert b"".join([data async for data in bench.hypervisor.disk(there.id)]) == sent
        there.power = HostServer.RUNNING
        await bench.hypervisor.ensure_running(Wish(there), silent)
        assert await self.look(bench, there.id) == Domain(Seen.RUNNING, 4, 0)
        await self.until_ready(bench, there.id)
        await bench.hypervisor.ensure_gone(there.id)
        assert [data async for data in bench.hypervisor.disk(there.id)] == []

    async def test_a_disk_that_is_cut_off_leaves_what_was_there(self, bench, running):
        async def cut():
            yield b"the first part"
            raise Fault("cut off")

        await bench.hypervisor.ensure_stopped(running, 0)
        before = b"".join([data async for data in bench.hypervisor.disk(running.id)])
        with pytest.raises(Fault, match="cut off"):
            await bench.hypervisor.take_disk(running, cut(), silent)
        assert b"".join([data async for data in bench.hypervisor.disk(running.id)]) == before

    async def test_a_server_that_never_had_a_disk_comes_without_one(self, bench):
        never = server()
        assert [data async for data in bench.hypervisor.disk(never.id)] == []
        await bench.hypervisor.take_disk(never, chunks(), silent)
        await bench.hypervisor.ensure_running(Wish(never), silent)
        assert (await self.look(bench, never.id)).seen is Seen.RUNNING
        await bench.hypervisor.ensure_gone(never.id)
