"""One agent as it is run: over a real stream, on a real libvirtd and the real network of this machine."""
import asyncio
import contextlib
import dataclasses
import hashlib
import os
import signal
import tempfile
import uuid
from pathlib import Path

import pytest

from agents import main
from agents.hypervisor.domain_xml import domain_name, tap_name
from protos.internal.v1 import hosts_pb2 as pb
from tests.agents.control_plane import Control
from tests.agents.hypervisor.guests import disk_image

pytestmark = [pytest.mark.vm, pytest.mark.host]

RUNNING, STOPPED, ABSENT = pb.HostServer.RUNNING, pb.HostServer.STOPPED, pb.HostServer.ABSENT
DISK = disk_image()
SHA512 = hashlib.sha512(DISK).hexdigest()


@pytest.fixture
async def control():
    control = Control()
    control.images[SHA512] = DISK
    await control.start()
    yield control
    await control.server.stop(None)


@pytest.fixture
async def config(daemon, control):
    with tempfile.TemporaryDirectory(prefix="brume-", dir=daemon.directory.parent) as directory:
        Path(directory).chmod(0o711)
        config = main.AgentConfig(
            host="host", directory=Path(directory, "agent"), libvirt_directory=daemon.directory,
            run_directory=Path(directory, "run"), endpoints=(f"127.0.0.1:{control.port}",), cloud="btest", libvirt_uri=daemon.uri,
            stop_seconds=10)
        yield config
        await main.teardown(config, purge=True)
        assert not config.directory.exists()


@contextlib.asynccontextmanager
async def agent(config):
    task = asyncio.create_task(main.run(config))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def objects(power=RUNNING, generation=1):
    network, subnet, port, server = (str(uuid.uuid4()) for _ in range(4))
    address = pb.FixedAddress(subnet_id=subnet, ip="10.98.0.5")
    return [
        pb.HostObject(key=f"network/{network}", network=pb.HostNetwork(
            id=network, vni=4711, mtu=1450, subnets=[pb.HostSubnet(id=subnet, cidr="10.98.0.0/24", gateway_ip="10.98.0.1")],
            members=[pb.NetworkMember(port_id=port, mac="fa:16:3e:98:00:05", addresses=[address], host="host",
                                      device_id=server)])),
        pb.HostObject(key=f"port/{port}", port=pb.HostPort(
            id=port, network_id=network, mac="fa:16:3e:98:00:05", addresses=[address], device_id=server, admin_up=True,
            port_security=True, mtu=1450)),
        pb.HostObject(key=f"server/{server}", server=pb.HostServer(
            id=server, generation=generation, power=power, vcpus=1, ram_mib=64, disk_gib=1, port_ids=[port], config_drive=True,
            image=pb.BootImage(id="image", disk_format="raw", sha512=SHA512, size=len(DISK)), name="guest",
            guest=pb.GuestData(uuid=server, name="guest", hostname="guest"))),
    ]


def at_rest(thing, domain):
    return lambda said: (said.server.id == thing.server.id and said.server.generation == thing.server.generation
                         and said.server.domain == domain and not said.server.step and not said.server.fault)


def pid_of(config, thing):
    return int((config.libvirt_directory / "run" / "qemu" / f"{domain_name(thing.server.id)}.pid").read_text())


async def test_a_server_lives_on_a_real_host_through_everything_that_befalls_it(control, config):
    *_, port, thing = control.objects = objects()
    tap = Path("/sys/class/net", tap_name(port.port.id))
    async with agent(config):
        await control.until(at_rest(thing, pb.ObservedServer.RUNNING))
        assert control.hellos[0].inventory.hypervisor_type in ("KVM", "QEMU")
        assert tap.joinpath("master").exists() and tap.joinpath("carrier").read_text().strip() == "1"
        pid = pid_of(config, thing)

        async with asyncio.timeout(30):
            data = b""
            while b"guest ready" not in data:
                control.queries.put_nowait(pb.ControlMessage(query=pb.Query(id=1, console_log=pb.ConsoleLog(
                    server_id=thing.server.id))))
                data = (await control.until(lambda said: said.HasField("reply"))).reply.data

    # The agent is away: the guest runs on, and the next agent touches neither it nor its tap.
    inode = tap.stat().st_ino
    os.kill(pid, 0)
    async with agent(config):
        await control.until(at_rest(thing, pb.ObservedServer.RUNNING))
        assert pid_of(config, thing) == pid and tap.stat().st_ino == inode

        # Its process is killed: it is brought back.
        os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(OSError, ValueError):
                    if pid_of(config, thing) != pid:
                        break
                await asyncio.sleep(0.05)

        thing.server.power, thing.server.generation = STOPPED, 2
        control.change(thing)
        await control.until(at_rest(thing, pb.ObservedServer.SHUTOFF))

    # The host is taken down, and the server is wished again when it is back: its disk is what it was.
    disk = config.instances / thing.server.id / "disk"
    inode = disk.stat().st_ino
    await main.teardown(config)
    assert not tap.exists() and disk.stat().st_ino == inode
    thing.server.power, thing.server.generation = RUNNING, 3
    async with agent(config):
        await control.until(at_rest(thing, pb.ObservedServer.RUNNING))
        assert disk.stat().st_ino == inode
        thing.server.power, thing.server.generation = ABSENT, 4
        control.change(thing)
        await control.until(lambda said: said.gone.key == thing.key)
        assert not disk.parent.exists()
        control.change(removed=[each.key for each in control.objects])
        async with asyncio.timeout(20):
            while tap.exists():
                await asyncio.sleep(0.02)


async def test_a_host_is_taken_down_though_its_libvirtd_was_killed(daemon, control, config):
    config = dataclasses.replace(config, libvirt_uri="")
    if config.uri != daemon.uri:
        pytest.skip("this machine has a libvirtd of its own")
    *_, thing = control.objects = objects()
    async with agent(config):
        await control.until(at_rest(thing, pb.ObservedServer.RUNNING))
    pid = pid_of(config, thing)
    daemon.kill()
    try:
        await main.teardown(config)
        with contextlib.suppress(FileNotFoundError):
            assert Path(f"/proc/{pid}/cmdline").read_bytes() == b"", "it is gone, or waits to be reaped"
        assert (config.instances / thing.server.id / "disk").exists()
    finally:
        daemon.start()
