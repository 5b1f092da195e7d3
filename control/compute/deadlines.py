"""How long a server may be on its way: each passing state has an owner, and a time after which it ends in a fault.

Pure. The fault says what was waited for; its user can then delete the server, or ask again. What was waited for goes on being
tried, and where it comes after all the fault goes by itself (model.settle).
"""
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import model
from protos.compute.v1.records_pb2 import ServerFault, ServerRecord
from protos.internal.v1.fleet_pb2 import HostRecord

SCHEDULER, AGENT, NETWORK = "scheduler", "host", "network"


@dataclass(frozen=True, slots=True)
class Passing:
    """A state on the way to another one."""

    owner: str
    #: From when it was entered. Too short ends what would have come to be; too long leaves users in doubt.
    seconds: int
    #: What would end it: "its host did not report within 600 s that {waited_for}".
    waited_for: str


#: By task_state, as model.derive has them.
PASSING: Mapping[str, Passing] = {
    # Decided in milliseconds where any host is up; the reconciler itself gives up after PATIENCE where none is.
    "scheduling": Passing(SCHEDULER, 300, "a host was chosen for it"),
    # The largest image that is taken by default, 64 GiB, over a network of 1 Gbit/s is a quarter of an hour.
    "spawning": Passing(AGENT, 1800, "it was started"),
    # A tap and a few rules; what takes longer has failed.
    "networking": Passing(NETWORK, 600, "its ports were wired"),
    "powering-on": Passing(AGENT, 600, "it was started"),
    # A guest may have an hour to shut down (os_shutdown_timeout), and is cut off then.
    "powering-off": Passing(AGENT, 3900, "it was shut down"),
    "rebooting": Passing(AGENT, 3900, "it was rebooted"),
    "rebooting_hard": Passing(AGENT, 600, "it was rebooted"),
}

#: Deleting ends when the host says that the domain is gone, or is itself deleted or fenced. It never ends in a fault, which would
#: take the wish back; an operator is told after so many seconds.
DELETING = Passing(AGENT, 600, "it was gone")


def since(server: ServerRecord) -> Timestamp:
    """When a server came into the state that it is in: what changes its state notes it. A change by its owner begins it anew."""
    return server.updated_at if server.HasField("updated_at") else server.created_at


def left(server: ServerRecord, now: Timestamp) -> float | None:
    """Seconds until a server's passing state ends, 0 or less when it is over; None for one at rest, or being deleted."""
    passing = PASSING.get(model.derive(server).task_state)
    if passing is None:
        return None
    return passing.seconds - (now.ToMicroseconds() - since(server).ToMicroseconds()) / 1e6


def fault(server: ServerRecord, host: HostRecord | None, now: Timestamp) -> ServerFault:
    """What the owner of a server is told whose passing state is over, and with the names of hosts what admins are."""
    task = model.derive(server).task_state
    passing = PASSING[task]
    if passing.owner == SCHEDULER:
        text = f"The scheduler did not report within {passing.seconds} s that {passing.waited_for}. Delete it, and make it again."
        return ServerFault(code=500, message=text, details=text, created_at=now, waited_for=task)
    text = f"did not report within {passing.seconds} s that {passing.waited_for}"
    return ServerFault(code=500, message=f"Its host {text}.", details=f"Host {server.host} {text}: {_state_of(server, host)}.",
                       created_at=now, waited_for=task)


def _state_of(server: ServerRecord, host: HostRecord | None) -> str:
    if host is None:
        return "there is no such host any more"
    if not host.up:
        return f"its agent is not attached since {host.updated_at.ToDatetime():%Y-%m-%dT%H:%M:%SZ}"
    said = server.seen.fault or server.seen.step
    return f"its agent is attached, and said last: {said}" if said else "its agent is attached, and has not said why"
