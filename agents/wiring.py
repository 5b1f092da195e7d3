"""When the host's networking is applied: soon after its objects change, and before a server that needs it starts.

Changes that come together are applied together. Nothing is applied before the first snapshot: without it, all that is on the
host would look unwanted.
"""
import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping

from agents.hypervisor.driver import Fault
from agents.network.driver import HostNetworking
from protos.internal.v1.hosts_pb2 import HostObject

log = logging.getLogger(__name__)

#: Seconds to wait for more changes. Longer: a server's start waits as long; shorter: a burst is applied in more passes.
TOGETHER = 0.02

#: Seconds after which a failed pass is made again, doubling up to the second.
FIRST_BACKOFF, MAX_BACKOFF = 0.5, 30.0


class Wiring:
    """Applies `objects` (the agent's own dict, as it is at the time) and tells which ports are wired.

    Args:
      on_port: told each port that became wired (True) or is no longer (False).
    """

    def __init__(self, networking: HostNetworking, objects: Mapping[str, HostObject], on_port: Callable[[str, bool], None]):
        self.wired: frozenset[str] = frozenset()
        self._networking = networking
        self._objects = objects
        self._on_port = on_port
        self._asked = 0                    # passes asked for; the last one made covers all asked before it began
        self._made = 0
        self._wake = asyncio.Event()
        self._pass_ended = asyncio.Condition()

    def touch(self) -> None:
        """Have a pass made soon."""
        self._asked += 1
        self._wake.set()

    async def ready(self, port_ids: Iterable[str]) -> None:
        """Return once the ports are wired as of now. Raises Fault if they are not after the pass that is due."""
        due = self._asked
        async with self._pass_ended:
            await self._pass_ended.wait_for(lambda: self._made >= due)
        if missing := [port_id for port_id in port_ids if port_id not in self.wired]:
            self.touch()
            raise Fault(f"The network of port {missing[0]} is not ready on this host.")

    async def run(self) -> None:
        """Make passes as they are asked for, until cancelled."""
        backoff = FIRST_BACKOFF
        while True:
            await self._wake.wait()
            await asyncio.sleep(TOGETHER)
            self._wake.clear()
            asked = self._asked
            try:
                wired = frozenset(await self._networking.apply(dict(self._objects)))
            except Exception:
                log.exception("the host's networking could not be applied; again in %.1f s", backoff)
                asyncio.get_running_loop().call_later(backoff, self._wake.set)
                backoff = min(backoff * 2, MAX_BACKOFF)
                wired = self.wired
            else:
                backoff = FIRST_BACKOFF
            before, self.wired = self.wired, wired
            for port_id in wired - before:
                self._on_port(port_id, True)
            for port_id in before - wired:
                if f"port/{port_id}" in self._objects:          # of one that is to go nobody asks
                    self._on_port(port_id, False)
            async with self._pass_ended:
                self._made = asked
                self._pass_ended.notify_all()
