"""The libvirt driver on a real libvirtd with real guests, by the suite that the simulated one passes too."""
import asyncio
import os
import signal
import stat
import tempfile
from dataclasses import replace
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from agents.hypervisor import libvirt_driver, libvirtd
from agents.hypervisor.domain_xml import domain_name
from agents.hypervisor.driver import Domain, Fault, Wish
from agents.hypervisor.libvirt_driver import LibvirtHypervisor
from agents.hypervisor.model import Seen
from tests.agents.hypervisor.guests import disk_image
from tests.conformance.check_hypervisor import CheckHypervisor, server, silent

pytestmark = pytest.mark.vm


class Disks:
    """driver.Images with one small guest, and a disk that is too big for most."""

    def __init__(self):
        self.placed = 0

    async def place(self, image, path):
        self.placed += 1
        path.write_bytes(disk_image())
        if image.size > path.stat().st_size:
            os.truncate(path, image.size)


class LibvirtBench:
    def __init__(self, daemon, directory: Path):
        self.daemon = daemon
        self.directory = directory
        self.images = Disks()
        self.hypervisor = self.new_driver()

    def new_driver(self) -> LibvirtHypervisor:
        return LibvirtHypervisor(self.daemon.uri, self.directory, self.images, self.daemon.directory)

    async def guest_leaves(self, server_id):
        await self._with_domain(server_id, lambda domain: domain.shutdown())
        await self._until_off(server_id)

    async def kill(self, server_id, number=signal.SIGKILL):
        os.kill(self.pid(server_id), number)
        await self._until_off(server_id)

    async def pause(self, server_id):
        await self._with_domain(server_id, lambda domain: domain.suspend())

    async def make_deaf(self, server_id):
        # the guest's power button goes off: PM1_EN = 0
        await self._with_domain(server_id, lambda domain: libvirt_qemu.qemuMonitorCommand(
            domain, "o /w 0x602 0", libvirt_qemu.VIR_DOMAIN_QEMU_MONITOR_COMMAND_HMP))

    def pid(self, server_id) -> int:
        return int((self.daemon.directory / "run" / "qemu" / f"{domain_name(server_id)}.pid").read_text())

    async def _with_domain(self, server_id, action):
        def act():
            connection = libvirt.open(self.daemon.uri)
            try:
                return action(connection.lookupByUUIDString(server_id))
            finally:
                connection.close()

        return await asyncio.to_thread(act)

    async def _until_off(self, server_id):
        async with asyncio.timeout(20):
            while await self._with_domain(server_id, lambda domain: domain.isActive()):
                await asyncio.sleep(0.02)


@pytest.fixture
async def bench(daemon):
    with tempfile.TemporaryDirectory(prefix="brume-", dir=daemon.directory.parent) as directory:
        Path(directory).chmod(0o711)
        bench = LibvirtBench(daemon, Path(directory, "instances"))
        async with bench.hypervisor:
            yield bench
            await bench.hypervisor.release(0)


class TestLibvirtHypervisor(CheckHypervisor):
    @pytest.fixture
    async def bench(self, bench):
        return bench

    async def test_a_new_driver_adopts_what_runs_and_touches_nothing(self, bench, running):
        pid = bench.pid(running.id)
        async with bench.new_driver() as another:
            assert await another.observe() == {running.id: Domain(Seen.RUNNING, 1, 0)}
            await another.ensure_running(Wish(running), silent)
        assert bench.pid(running.id) == pid
        assert bench.images.placed == 1

    async def test_what_others_run_in_the_same_libvirtd_is_not_ours(self, bench, running):
        other = LibvirtHypervisor(bench.daemon.uri, bench.directory.with_name("others"), bench.images, bench.daemon.directory)
        async with other:
            assert await other.observe() == {}
            await other.ensure_gone(running.id)
            await other.release(0)
        assert (await self.look(bench, running.id)).seen is Seen.RUNNING

    async def test_guests_outlive_a_killed_libvirtd_and_are_found_again(self, bench, running):
        pid = bench.pid(running.id)
        bench.daemon.kill()
        with pytest.raises(Fault, match="libvirtd"):
            await bench.hypervisor.observe()
        os.kill(pid, 0)
        await asyncio.to_thread(bench.daemon.start)
        assert await self.look(bench, running.id) == Domain(Seen.RUNNING, 1, 0)
        events = bench.hypervisor.events()
        async with asyncio.timeout(20):
            await bench.guest_leaves(running.id)
            while await anext(events) != running.id:
                pass

    async def test_a_guest_that_left_is_known_though_libvirtd_forgot_it(self, bench, running):
        await bench.guest_leaves(running.id)
        assert (await self.look(bench, running.id)).seen is Seen.LEFT
        await asyncio.to_thread(bench.daemon.stop)
        await asyncio.to_thread(bench.daemon.start)
        assert (await self.look(bench, running.id)).seen is Seen.LEFT

    async def test_a_machine_that_ends_its_processes_is_no_guest_that_leaves(self, bench, running):
        await bench.kill(running.id, signal.SIGTERM)
        assert (await self.look(bench, running.id)).seen is Seen.OFF

    async def test_a_start_that_was_cut_off_after_its_definition_is_a_start_that_is_due(self, bench, running, monkeypatch):
        await bench.guest_leaves(running.id)
        running.generation = 2

        def no_create(*_):
            raise libvirt.libvirtError("killed here")

        monkeypatch.setattr(libvirt.virDomain, "create", no_create)
        with pytest.raises(Fault):
            await bench.hypervisor.ensure_running(Wish(running), silent)
        async with bench.new_driver() as another:
            assert await another.observe([running.id]) == {running.id: Domain(Seen.OFF, 2, 0)}

    async def test_a_start_that_nobody_saw_the_end_of_leaves_a_guest_whose_leaving_counts(self, bench, running):
        facts = bench.hypervisor._facts[running.id]

        def mark(domain):
            bench.hypervisor._write_facts(domain, replace(facts, starting=True))

        await bench.hypervisor._act(running.id, mark, "marked")
        async with bench.new_driver() as another:
            assert (await another.observe())[running.id].seen is Seen.RUNNING
            await bench.guest_leaves(running.id)
            assert (await another.observe())[running.id].seen is Seen.LEFT

    async def test_the_disk_outlives_a_release_and_its_image(self, bench, running):
        disk = bench.directory / running.id / "disk"
        inode = disk.stat().st_ino
        await bench.hypervisor.release(5)
        assert await bench.hypervisor.observe() == {}
        await bench.hypervisor.ensure_running(Wish(running), silent)
        assert disk.stat().st_ino == inode
        assert bench.images.placed == 1

    async def test_guests_run_without_root_where_their_user_can_reach_their_disks(self, bench, running):
        if libvirtd.guest_user(bench.daemon.directory) == "root":
            pytest.skip("this machine has no user for guests")
        assert Path(f"/proc/{bench.pid(running.id)}").stat().st_uid != 0
        base = (bench.directory / running.id / "base").stat()
        assert base.st_uid == 0 and not base.st_mode & stat.S_IWOTH

    async def test_a_config_drive_and_a_data_disk_of_its_own_size(self, bench):
        wanted = server(config_drive=True, disk_gib=2)
        await bench.hypervisor.ensure_running(Wish(wanted), silent)
        directory = bench.directory / wanted.id
        assert b"CONFIG_2" in (directory / "config-drive.iso").read_bytes().upper().replace(b"-", b"_")
        size = int.from_bytes((directory / "disk").read_bytes()[24:32], "big")
        assert size == 2 << 30
        await bench.hypervisor.ensure_gone(wanted.id)
        assert not directory.exists()

    async def test_a_long_console_is_cut_and_keeps_its_end(self, bench, running, monkeypatch):
        console = libvirt_driver.console
        files = bench.hypervisor._files(running.id)
        with files.console.open("ab") as log:
            log.write(b"old\n" * (console.CUT_AT // 4) + "é is the last character: é\n".encode())
        console.cap(files)
        assert files.console.stat().st_size == 0
        await bench.hypervisor.reboot(Wish(running), 0)
        async with asyncio.timeout(20):
            while b"guest ready" not in (text := await bench.hypervisor.console_log(running.id, 2)):
                await asyncio.sleep(0.02)
        assert text.decode().splitlines() == ["é is the last character: é", "guest ready"]

    async def test_an_image_property_that_cannot_be_had_is_a_final_fault(self, bench):
        wanted = server()
        wanted.image.properties["hw_vif_model"] = "nonsense"
        with pytest.raises(Fault, match="hw_vif_model") as caught:
            await bench.hypervisor.ensure_running(Wish(wanted), silent)
        assert caught.value.final
        await bench.hypervisor.ensure_gone(wanted.id)
