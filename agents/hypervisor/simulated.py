"""A hypervisor that exists in memory alone, for simulated fleets and for tests: the same verbs, the same meaning.

Its guests hear at once when asked to shut down, unless told to be deaf. What happens to a host's domains from outside (a guest
that leaves, a process that is killed) is a method each.
"""
import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import replace

from agents.hypervisor.driver import Domain, Fault, Images, Say, Wish
from agents.hypervisor.model import Seen
from protos.internal.v1.hosts_pb2 import HostServer, Inventory

#: What a simulated host has to give, unless told otherwise.
INVENTORY = Inventory(vcpus=64, ram_mib=256 * 1024, disk_gib=4096, hypervisor_type="simulated", hypervisor_version=1000000,
                      architecture="x86_64", cpu_model="simulated", notice="simulated: no server of this host really runs")


#: Awaited before something is done to a server, with the verb ("start", "stop" or "remove") and the server's id: takes the time
#: that it takes, and raises Fault where it fails.
Before = Callable[[str, str], Awaitable[None]]


async def _at_once(verb: str, server_id: str) -> None:
    """Everything works and takes no time."""


class SimulatedHypervisor:
    """driver.Hypervisor in memory."""

    def __init__(self, inventory: Inventory = INVENTORY, *, images: Images | None = None, before: Before = _at_once):
        self.domains: dict[str, Domain] = {}
        self.disks: dict[str, bytes] = {}              # a word for what is on each
        self.deaf: set[str] = set()                    # guests that do not hear when asked to shut down
        self._inventory = inventory
        self._images = images
        self._before = before
        self._consoles: dict[str, str] = {}
        self._changed: asyncio.Queue[str] = asyncio.Queue()

    async def inventory(self) -> Inventory:
        return self._inventory

    async def observe(self, server_ids: Collection[str] | None = None) -> dict[str, Domain]:
        wanted = self.domains if server_ids is None else server_ids
        return {server_id: self.domains[server_id] for server_id in wanted if server_id in self.domains}

    async def ensure_running(self, wish: Wish, say: Say) -> None:
        server = wish.server
        if (old := self.domains.get(server.id)) is None or old.seen not in (Seen.RUNNING, Seen.PAUSED):
            if server.disk_gib and server.image.size > server.disk_gib << 30:
                raise Fault("The image does not fit on the flavor's root disk: choose a flavor with more disk.", final=True)
            say("starting")
            await self._before("start", server.id)
            self.disks.setdefault(server.id, uuid.uuid4().bytes)
            self._consoles[server.id] = self._consoles.get(server.id, "") + "guest ready\r\n"
        self._become(server.id, Domain(Seen.RUNNING, server.generation, server.reboots))

    async def ensure_stopped(self, server: HostServer, grace: float) -> None:
        if server.id not in self.domains:
            return
        await self._stop(server.id, grace)
        self._become(server.id, replace(self.domains[server.id], generation=server.generation, reboots=server.reboots))

    async def reboot(self, wish: Wish, grace: float) -> None:
        if wish.server.id in self.domains:
            await self._stop(wish.server.id, grace)
        await self.ensure_running(wish, lambda _: None)

    async def ensure_gone(self, server_id: str) -> None:
        if server_id in self.domains:
            await self._before("remove", server_id)
        self._consoles.pop(server_id, None)
        self.disks.pop(server_id, None)
        if self.domains.pop(server_id, None):
            self._changed.put_nowait(server_id)

    async def console_log(self, server_id: str, lines: int) -> bytes:
        text = self._consoles.get(server_id, "")
        return "".join(text.splitlines(keepends=True)[-lines:]).encode()       # 0 is all of them

    async def disk(self, server_id: str) -> AsyncIterator[bytes]:
        if (domain := self.domains.get(server_id)) and domain.seen not in (Seen.LEFT, Seen.OFF):
            raise Fault("The server's disk is in use: it is not off.")
        if server_id in self.disks:
            yield self.disks[server_id]

    async def take_disk(self, server: HostServer, chunks: AsyncIterator[bytes], say: Say) -> None:
        say("copying the disk")
        data = b"".join([chunk async for chunk in chunks])
        self.disks.pop(server.id, None)
        if data:
            self.disks[server.id] = data

    async def events(self) -> AsyncIterator[str]:
        while True:
            yield await self._changed.get()

    # From outside

    def guest_leaves(self, server_id: str) -> None:
        """The guest shuts itself down."""
        self._become(server_id, replace(self.domains[server_id], seen=Seen.LEFT))

    def kill(self, server_id: str) -> None:
        """The domain's process dies."""
        self._become(server_id, replace(self.domains[server_id], seen=Seen.OFF))

    def pause(self, server_id: str) -> None:
        self._become(server_id, replace(self.domains[server_id], seen=Seen.PAUSED))

    async def _stop(self, server_id: str, grace: float) -> None:
        domain = self.domains[server_id]
        if domain.seen in (Seen.LEFT, Seen.OFF):
            return
        await self._before("stop", server_id)
        hears = server_id not in self.deaf and domain.seen is Seen.RUNNING
        if grace and not hears:
            await asyncio.sleep(grace)
        self._become(server_id, replace(self.domains[server_id], seen=Seen.LEFT if grace and hears else Seen.OFF))

    def _become(self, server_id: str, domain: Domain) -> None:
        if self.domains.get(server_id) != domain:
            self.domains[server_id] = domain
            self._changed.put_nowait(server_id)
