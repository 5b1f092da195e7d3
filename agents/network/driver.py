"""What an agent asks of its host's networking: two verbs, each safe to repeat, and a twin that does it in memory."""
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from protos.internal.v1.hosts_pb2 import HostObject


class HostNetworking(Protocol):
    async def apply(self, objects: Mapping[str, HostObject]) -> set[str]:
        """Make the host like `objects`, which are all there are for it, by key; return ids of the ports that are wired.

        A wired port's tap is in its network's bridge and its rules are in place. What is right already is not touched; what
        is no longer among the objects goes. What cannot be done is logged, leaves its port unwired and hinders nothing else;
        it is tried again by the next call. Calls are carried out one after the other.
        """

    async def teardown(self) -> None:
        """Remove everything that this cloud made on the host, whoever made it and whenever."""


async def _at_once() -> None:
    """Everything works and takes no time."""


class SimulatedNetworking:
    """A host's networking that exists in memory alone, for simulated fleets. It wires a port when its network is there.

    `before` is awaited before each pass that has ports to wire: takes the time that it takes, and raises where it fails.
    """

    def __init__(self, before: Callable[[], Awaitable[None]] = _at_once) -> None:
        self.objects: Mapping[str, HostObject] = {}
        self.wired: set[str] = set()
        self._before = before

    async def apply(self, objects: Mapping[str, HostObject]) -> set[str]:
        wired = {item.port.id for key, item in objects.items()
                 if key.startswith("port/") and f"network/{item.port.network_id}" in objects}
        if wired - self.wired:
            await self._before()
        self.objects, self.wired = objects, wired
        return set(wired)

    async def teardown(self) -> None:
        self.objects = {}
        self.wired.clear()
