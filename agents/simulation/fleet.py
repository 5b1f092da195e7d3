"""All simulated hosts of one process, and what they come to together."""
import asyncio
import gc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agents.hypervisor.model import Seen
from agents.link import Credentials
from agents.simulation.behaviour import Draws, behaviour
from agents.simulation.channels import Channels
from agents.simulation.host import Shape, SimulatedHost

#: Hosts that begin in one go, and seconds between goes: 1,000 a second. Faster, and they wait for each other's handshakes.
GO, GO_EVERY = 50, 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a process simulates. Hosts `first` to `first + count - 1` of the fleet; the words are those of `behaviour`."""

    count: int
    first: int = 0
    seed: int = 0
    #: Shapes with weights: a host's is drawn by its name.
    shapes: tuple[tuple[Shape, int], ...] = ((Shape(), 1),)
    #: Names of availability zones, dealt out in turn; none: the default one.
    zones: tuple[str, ...] = ()
    latency: str = ""
    failures: str = ""
    #: "host:port" of the control plane's replicas.
    endpoints: tuple[str, ...]
    #: Mutual TLS, for every host of the family ".sim".
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    version: str = "0"

    def name(self, number: int) -> str:
        return f"host-{number:05d}.sim"


class Fleet:
    """The hosts of a plan."""

    def __init__(self, plan: Plan):
        self.counts: Counter[str] = Counter()
        self._channels = Channels(Credentials(plan.ca, plan.certificate, plan.key)
                                  if plan.ca and plan.certificate and plan.key else None)
        manner = behaviour(plan.latency, plan.failures)
        self.hosts = []
        for number in range(plan.first, plan.first + plan.count):
            name = plan.name(number)
            zone = plan.zones[number % len(plan.zones)] if plan.zones else ""
            # each begins with another replica, as operators would have them
            turn = number % len(plan.endpoints)
            self.hosts.append(SimulatedHost(
                name, _shape_of(plan, name), zone, seed=plan.seed, behaviour=manner, channels=self._channels,
                endpoints=plan.endpoints[turn:] + plan.endpoints[:turn], counts=self.counts, version=plan.version))

    async def run(self) -> None:
        """Be all of them until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for number, host in enumerate(self.hosts):
                    group.create_task(host.run())
                    if number % GO == GO - 1:
                        await asyncio.sleep(GO_EVERY)
                gc.collect()
                gc.freeze()                    # what is there stays: no use to look through it again
        finally:
            await self._channels.close()

    def restart_agents(self) -> None:
        """End every agent and start another in its place; the hosts' servers run on."""
        for host in self.hosts:
            host.restart_agent()

    def follow(self, name: str, on_arrival: Callable[[], None]) -> None:
        """Have somebody told when changes of a host's wishes reach its agent; nothing where it is not among these hosts."""
        for host in self.hosts:
            if host.name == name:
                host.on_arrival = on_arrival

    def totals(self) -> dict[str, int]:
        """What there is now, and what was counted since the start."""
        seen = Counter(domain.seen for host in self.hosts for domain in host.hypervisor.domains.values())
        return {
            "hosts": len(self.hosts), "attached": sum(host.attached for host in self.hosts),
            "settled": sum(host.settled for host in self.hosts),
            "running": seen[Seen.RUNNING], "stopped": seen[Seen.OFF] + seen[Seen.LEFT], "paused": seen[Seen.PAUSED],
            **{name: self.counts[name] for name in ("starts", "stops", "removes", "failures", "crashes", "attaches", "cuts")}}


def _shape_of(plan: Plan, name: str) -> Shape:
    point = Draws(plan.seed, name).draw("shape") * sum(weight for _, weight in plan.shapes)
    for shape, weight in plan.shapes:
        point -= weight
        if point < 0:
            return shape
    return plan.shapes[-1][0]
