"""One simulated host: the real agent and its stream, over a hypervisor and networking in memory that behave as drawn."""
import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from agents.agent import Agent
from agents.hypervisor.driver import Fault
from agents.hypervisor.model import Seen
from agents.hypervisor.simulated import INVENTORY, SimulatedHypervisor
from agents.lease import Lease
from agents.link import Link
from agents.network.driver import SimulatedNetworking
from agents.simulation.behaviour import Behaviour, Draws
from agents.simulation.channels import Channels
from protos.internal.v1.hosts_pb2 import AgentMessage, Desired, Hello, Inventory


@dataclass(frozen=True, slots=True)
class Shape:
    """What a host has: RAM in MiB, disk in GiB."""

    vcpus: int = 64
    ram_mib: int = 256 * 1024
    disk_gib: int = 4096


class SimulatedHost:
    """A host called `name`. What happens is counted in `counts`: starts, attaches, failures...

    Args:
      channels: where it gets its connection from; `endpoints` are the control plane's.
    """

    def __init__(self, name: str, shape: Shape, zone: str, *, seed: int, behaviour: Behaviour, endpoints: tuple[str, ...],
                 channels: Channels, counts: Counter[str], version: str):
        self.name = name
        inventory = Inventory()
        inventory.CopyFrom(INVENTORY)
        inventory.vcpus, inventory.ram_mib, inventory.disk_gib = shape.vcpus, shape.ram_mib, shape.disk_gib
        inventory.availability_zone, inventory.address = zone, "127.0.0.1"
        self._hello = Hello(host=name, version=version, inventory=inventory)
        self._behaviour = behaviour
        self._draws = Draws(seed, name)
        self._counts = counts
        self._ends: dict[str, asyncio.TimerHandle] = {}       # when a running server's process will die
        self._endpoints = endpoints
        self._channels = channels
        self._work: asyncio.Task[None] | None = None
        self._restarting = False
        self._lease = Lease()                                 # outlives the agent, as the file does on a real host
        self.on_arrival: Callable[[], None] | None = None      # told of every change of a wish that comes
        self.hypervisor = SimulatedHypervisor(inventory, before=self._before)
        self._begin()

    def _begin(self) -> None:
        """A new agent, which knows nothing."""
        self.agent = Agent(self.hypervisor, SimulatedNetworking(self._before_wiring), self._report, lease=self._lease)
        self.link = Link(self._endpoints, None, hello=self._say_hello, on_desired=self._desired, on_query=self.agent.answer,
                         connect=self._channels.connect, lease=self._lease)
        self.agent.movers = self.link

    @property
    def attached(self) -> bool:
        return self.link.attached

    @property
    def settled(self) -> bool:
        """Whether the agent is attached and has said all that there is to say."""
        return self.link.attached and self.link.silent and self.agent.idle

    async def run(self) -> None:
        """Be a host until cancelled."""
        while True:
            self._work = asyncio.create_task(self._run_agent())
            try:
                await self._work
            except asyncio.CancelledError:
                if not self._restarting:
                    self._work.cancel()
                    await asyncio.gather(self._work, return_exceptions=True)
                    raise
            self._restarting = False
            self._begin()

    def restart_agent(self) -> None:
        """End the agent and start another; the servers run on."""
        if self._work is not None:
            self._restarting = True
            self._work.cancel()

    async def _run_agent(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.agent.run())
            while True:
                attached = group.create_task(self.link.run())
                try:
                    async with asyncio.timeout(self._draws.until(self._behaviour, "stream")):
                        await attached
                except TimeoutError:
                    self._counts["cuts"] += 1

    def _report(self, key: str, message: AgentMessage) -> None:
        self.link.report(key, message)

    async def _say_hello(self) -> Hello:
        return self._hello

    def _desired(self, desired: Desired) -> None:
        if desired.snapshot:
            self._counts["attaches"] += 1
        elif self.on_arrival is not None:
            self.on_arrival()
        self.agent.desired(desired)

    # How it behaves

    async def _before(self, verb: str, server_id: str) -> None:
        if verb != "start" and (end := self._ends.pop(server_id, None)):
            end.cancel()
        if seconds := self._draws.seconds(self._behaviour, verb):
            await asyncio.sleep(seconds)
        if self._draws.fails(self._behaviour, verb):
            self._counts["failures"] += 1
            raise Fault(f"simulated: the {verb} failed")
        self._counts[f"{verb}s"] += 1
        if verb == "start" and (life := self._draws.until(self._behaviour, "crash")) is not None:
            self._ends[server_id] = asyncio.get_running_loop().call_later(life, self._crash, server_id)

    async def _before_wiring(self) -> None:
        if seconds := self._draws.seconds(self._behaviour, "wire"):
            await asyncio.sleep(seconds)
        if self._draws.fails(self._behaviour, "wire"):
            self._counts["failures"] += 1
            raise Fault("simulated: wiring failed")

    def _crash(self, server_id: str) -> None:
        self._ends.pop(server_id, None)
        domain = self.hypervisor.domains.get(server_id)
        if domain is not None and domain.seen is Seen.RUNNING:
            self._counts["crashes"] += 1
            self.hypervisor.kill(server_id)
