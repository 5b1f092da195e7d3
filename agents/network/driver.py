"""What an agent asks of its host's networking: two verbs, each safe to repeat, and a twin that does it in memory."""
from collections.abc import Mapping
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


class SimulatedNetworking:
    """A host's networking that exists in memory alone, for simulated fleets. It wires a port when its network is there."""

    def __init__(self) -> None:
        self.objects: dict[str, HostObject] = {}
        self.wired: set[str] = set()

    async def apply(self, objects: Mapping[str, HostObject]) -> set[str]:
        self.objects = dict(objects)
        self.wired = {item.port.id for item in objects.values()
                      if item.WhichOneof("object") == "port" and f"network/{item.port.network_id}" in objects}
        return set(self.wired)

    async def teardown(self) -> None:
        self.objects.clear()
        self.wired.clear()
