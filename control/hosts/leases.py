"""When a host that is not heard of is down, and when it is certain that nothing runs there.

Each acknowledgement of a heartbeat lets the agent's guests run for LEASE seconds, where servers are started elsewhere on their
own. Two clocks measure that, and neither is ever compared with the other:

    s   the agent says a heartbeat                     (agent's clock: CLOCK_BOOTTIME)
    a   this replica begins to acknowledge it          (replica's clock: monotonic)

The heartbeat is said before it is acknowledged, whatever the network does with either message: s <= a. The agent's lease ends at
s + LEASE, and STOP later no guest runs. A host is written down, and may be fenced, at a + GRACE, so it is enough that

    LEASE * (1 + DRIFT) + STOP <= GRACE                with DRIFT = 1 %, STOP = 2.8 s:  12.12 + 2.8 <= 15

where DRIFT is how far both clocks may run apart (NTP allows 0.1 %). An acknowledgement that is late shortens the agent's time and
nothing else.

A replica acknowledges only while it is certain to be listed (Membership.sure). So for a host whose replica is gone, its last
a is before the moment g at which anybody could see that, and g + GRACE is late enough. In the commit that writes such a host
down stands that the replica is not listed; one that comes back has another term, and has every agent attach anew.

Seconds from a host's silence to its servers' start elsewhere: GRACE (15), where its replica died with it the replica's lease
before (2, and etcd's half); then what the commits, the image and the guest's start take.
"""
import time

#: Seconds. LEASE is three heartbeats of an agent, so that one may be lost, and one attempt at another replica may fail. A shorter
#: one stops guests for a stall of the control plane, a longer one lets servers stay away as much longer.
LEASE, STOP, DRIFT, GRACE = 12.0, 2.8, 0.01, 15.0

#: Heartbeats' time without any message after which a stream counts as broken.
MISSED = 2.5

#: Seconds between two looks for hosts that are missed.
LOOK_EVERY = 0.5


class Leases:
    """When this replica last acknowledged something to each host."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._acknowledged: dict[str, float] = {}

    def acknowledge(self, host: str) -> None:
        """Something is about to be acknowledged to a host."""
        self._acknowledged[host] = time.monotonic()

    def over(self, host: str) -> bool:
        """Whether the lease of a host that is not attached is over."""
        return time.monotonic() - self._acknowledged.get(host, self._begun) >= GRACE

    def forget(self, host: str) -> None:
        self._acknowledged.pop(host, None)
