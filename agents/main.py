"""Builds one agent from its configuration and runs it; the only place that constructs and wires.

What a role may need and rarely does (libvirt, netlink, certificates) is imported where it is built, since an idle agent's memory
is mostly modules.
"""
import asyncio
import contextlib
import logging
import os
import pwd
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from agents.agent import Agent
from agents.certificate import keep_renewing
from agents.hypervisor import libvirtd
from agents.hypervisor.driver import Fault, Hypervisor
from agents.lease import Lease
from agents.network.driver import HostNetworking, SimulatedNetworking
from protos.internal.v1.hosts_pb2 import AgentMessage, Hello, Inventory

if TYPE_CHECKING:
    from agents.hypervisor.libvirt_driver import LibvirtHypervisor
    from agents.link import Link

log = logging.getLogger(__name__)

#: Seconds between two tries to reach the hypervisor before saying hello.
HYPERVISOR_EVERY = 0.5

#: Seconds that guests have to shut down when their host is taken down, and that a libvirtd has to start for it.
DOWN_SECONDS, LIBVIRTD_WITHIN = 5.0, 20.0


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """One agent. Directories are absolute."""

    #: Name of the host; the common name of its certificate.
    host: str
    #: What the agent keeps: images, the servers' disks and consoles.
    directory: Path
    #: The private libvirtd's; used where none runs on the machine.
    libvirt_directory: Path
    #: For what may be lost with the machine's memory: dnsmasq's files.
    run_directory: Path
    #: "host:port" of the control plane's replicas, for agents.
    endpoints: tuple[str, ...]
    #: Mutual TLS: PEM files, all or none.
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    #: Prefix of what the agent makes on the host.
    cloud: str = "brume"
    #: Where other hosts and consoles reach this one.
    address: str = "127.0.0.1"
    availability_zone: str = ""
    #: "libvirt" or "simulated".
    hypervisor: str = "libvirt"
    #: "" for the machine's libvirtd where one answers, else the private one.
    libvirt_uri: str = ""
    #: Seconds that a guest has to shut down when it is stopped, and when it is rebooted softly.
    stop_seconds: float = 30.0
    reboot_seconds: float = 120.0
    #: Bytes of images that no server uses.
    image_cache: int = 20 << 30
    #: Servers that are worked on at a time. Most of them wait for a guest, and none may hold up the others.
    workers: int = 32
    version: str = "0.1.0"
    #: Address and port of /metrics, /healthz and /readyz; None: none.
    metrics: tuple[str, int] | None = None

    @property
    def instances(self) -> Path:
        return self.directory / "instances"

    @property
    def uri(self) -> str:
        return self.libvirt_uri or libvirtd.pick_uri(self.libvirt_directory)


async def run(config: AgentConfig) -> None:
    """Run an agent until cancelled. Virtual machines and networks stay when it ends."""
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")     # what it starts are other programs, and never speak gRPC
    from agents.link import Credentials, Link
    if config.hypervisor != "simulated" and os.geteuid() != 0:
        raise SystemExit("agent: making virtual machines and networks needs root; run as root, or with a simulated hypervisor.")
    credentials = None
    if config.ca and config.certificate and config.key:
        credentials = Credentials(config.ca, config.certificate, config.key)
    link: Link

    async def hello() -> Hello:
        inventory = await _inventory(hypervisor)
        inventory.address, inventory.availability_zone = config.address, config.availability_zone
        return Hello(host=config.host, version=config.version, inventory=inventory)

    def report(key: str, message: AgentMessage) -> None:
        link.report(key, message)

    async with AsyncExitStack() as stack:
        hypervisor = await stack.enter_async_context(_hypervisor(config, lambda: link))
        networking = await stack.enter_async_context(_networking(config))
        config.directory.mkdir(parents=True, exist_ok=True)
        lease = Lease(config.directory / "lease.json")
        agent = Agent(hypervisor, networking, report, stop_seconds=config.stop_seconds, reboot_seconds=config.reboot_seconds,
                      workers=config.workers, lease=lease)
        link = Link(config.endpoints, credentials, hello=hello, on_desired=agent.desired, on_query=agent.answer, lease=lease)
        agent.movers = link
        async with asyncio.TaskGroup() as group:
            group.create_task(agent.run())
            group.create_task(link.run())
            if credentials:
                group.create_task(keep_renewing(credentials.certificate, credentials.key, link.renew))
            if config.metrics is not None:
                group.create_task(_tell(config.metrics, agent, link))


async def _tell(address: tuple[str, int], agent: Agent, link: "Link") -> None:
    """Answer who looks after this process. It is ready while it is attached."""
    from agents.telemetry import listener

    def metrics() -> tuple[str, bytes]:
        from agents.metrics import text
        return text(agent, link)

    async def ready() -> list[str]:
        return [] if link.attached else ["not attached to the control plane"]

    await listener.serve(*address, metrics=metrics, ready=ready)


async def teardown(config: AgentConfig, *, purge: bool = False) -> None:
    """Take down what agents of this cloud made on the host: servers' domains, networks. Disks stay, unless purged.

    Safe to repeat, and after any crash. The agent must not run.
    """
    if config.hypervisor != "simulated":
        await _teardown_host(config)
    if purge and config.directory.exists():
        await asyncio.to_thread(shutil.rmtree, config.directory)


async def _teardown_host(config: AgentConfig) -> None:
    with contextlib.ExitStack() as stack:
        uri = config.uri
        if uri == libvirtd.private_uri(config.libvirt_directory):
            had_one = (config.libvirt_directory / "run").exists()
            if had_one and not libvirtd.answers(libvirtd.private_socket(config.libvirt_directory)):
                stack.enter_context(_temporary_libvirtd(config.libvirt_directory))
            uri = uri if had_one else ""
        if uri:
            async with _libvirt(config, uri, _no_link) as hypervisor:
                await hypervisor.release(DOWN_SECONDS)
    async with _networking(config) as networking:
        await networking.teardown()


def _hypervisor(config: AgentConfig, link: "Callable[[], Link]") -> AbstractAsyncContextManager[Hypervisor]:
    if config.hypervisor == "simulated":
        from agents.hypervisor.simulated import SimulatedHypervisor
        return contextlib.nullcontext(SimulatedHypervisor())
    uri = config.uri
    log.info("hypervisor: %s", uri)
    return _libvirt(config, uri, link)


def _libvirt(config: AgentConfig, uri: str, link: "Callable[[], Link]") -> "LibvirtHypervisor":
    from agents.hypervisor.libvirt_driver import LibvirtHypervisor
    from agents.image.cache import ImageCache
    config.directory.mkdir(parents=True, exist_ok=True)
    config.directory.chmod(0o711)              # guests' user goes through it to its disks
    images = ImageCache(config.directory / "images", lambda sha512: link().fetch_image(sha512), config.image_cache)
    return LibvirtHypervisor(uri, config.instances, images, config.libvirt_directory)


def _no_link() -> "Link":
    raise Fault("The host is being taken down.")


@contextlib.asynccontextmanager
async def _networking(config: AgentConfig) -> AsyncIterator[HostNetworking]:
    if config.hypervisor == "simulated":
        yield SimulatedNetworking()
        return
    from agents.network.host import LinuxNetworking
    try:
        guests = pwd.getpwnam(libvirtd.guest_user(config.libvirt_directory)).pw_uid
    except KeyError:
        guests = 0
    networking = LinuxNetworking(config.cloud, config.host, config.run_directory, tap_owner=guests or None)
    try:
        yield networking
    finally:
        await networking.close()


async def _inventory(hypervisor: Hypervisor) -> Inventory:
    """What the host has to give, once its hypervisor answers."""
    said = ""
    while True:
        try:
            return await hypervisor.inventory()
        except Fault as fault:
            if str(fault) != said:
                log.warning("waiting for the hypervisor: %s", fault)
            said = str(fault)
        await asyncio.sleep(HYPERVISOR_EVERY)


@contextlib.contextmanager
def _temporary_libvirtd(directory: Path) -> Iterator[None]:
    """The private libvirtd for as long as it takes to take down what it ran, where nothing else runs it."""
    daemon = subprocess.Popen(libvirtd.standalone_command(directory), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        for _ in range(int(LIBVIRTD_WITHIN / 0.1)):
            if libvirtd.answers(libvirtd.private_socket(directory)):
                break
            try:
                daemon.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                pass
        yield
    finally:
        daemon.terminate()
        daemon.wait()
