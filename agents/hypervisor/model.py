"""Which step brings a domain nearer to its wish; pure.

The table is total: what is wanted, as against what is seen, always has an answer.
"""
from enum import Enum

from protos.internal.v1.hosts_pb2 import HostServer, ObservedServer


class Seen(Enum):
    """A domain, as the host shows it."""

    RUNNING = "running"
    PAUSED = "paused"
    LEFT = "left"              # off because the guest shut itself down
    OFF = "off"                # off for any other reason: it was stopped, killed, or the machine went down
    CRASHED = "crashed"
    MISSING = "missing"


class Wanted(Enum):
    """A wish, as compared with what was carried out last."""

    RUN = "run"
    RUN_ANEW = "run anew"      # the wish is newer than what was carried out: a guest that left is started again
    REBOOT = "reboot"
    STOP = "stop"
    REMOVE = "remove"


class Step(Enum):
    REST = "rest"
    NOTE = "note"              # all is right; only remember the newer generation
    START = "start"
    REBOOT = "reboot"
    STOP = "stop"
    REMOVE = "remove"


NEXT_STEP: dict[tuple[Wanted, Seen], Step] = {
    (Wanted.RUN, Seen.RUNNING): Step.REST,
    (Wanted.RUN, Seen.PAUSED): Step.START,
    (Wanted.RUN, Seen.LEFT): Step.REST,             # the control plane learns it, and changes the wish
    (Wanted.RUN, Seen.OFF): Step.START,
    (Wanted.RUN, Seen.CRASHED): Step.START,
    (Wanted.RUN, Seen.MISSING): Step.START,

    (Wanted.RUN_ANEW, Seen.RUNNING): Step.NOTE,
    (Wanted.RUN_ANEW, Seen.PAUSED): Step.START,
    (Wanted.RUN_ANEW, Seen.LEFT): Step.START,
    (Wanted.RUN_ANEW, Seen.OFF): Step.START,
    (Wanted.RUN_ANEW, Seen.CRASHED): Step.START,
    (Wanted.RUN_ANEW, Seen.MISSING): Step.START,

    (Wanted.REBOOT, Seen.RUNNING): Step.REBOOT,
    (Wanted.REBOOT, Seen.PAUSED): Step.REBOOT,
    (Wanted.REBOOT, Seen.LEFT): Step.START,         # what was to go down is down
    (Wanted.REBOOT, Seen.OFF): Step.START,
    (Wanted.REBOOT, Seen.CRASHED): Step.START,
    (Wanted.REBOOT, Seen.MISSING): Step.START,

    (Wanted.STOP, Seen.RUNNING): Step.STOP,
    (Wanted.STOP, Seen.PAUSED): Step.STOP,
    (Wanted.STOP, Seen.LEFT): Step.REST,
    (Wanted.STOP, Seen.OFF): Step.REST,
    (Wanted.STOP, Seen.CRASHED): Step.STOP,
    (Wanted.STOP, Seen.MISSING): Step.REST,         # a stopped server needs its disk, not a domain

    (Wanted.REMOVE, Seen.RUNNING): Step.REMOVE,
    (Wanted.REMOVE, Seen.PAUSED): Step.REMOVE,
    (Wanted.REMOVE, Seen.LEFT): Step.REMOVE,
    (Wanted.REMOVE, Seen.OFF): Step.REMOVE,
    (Wanted.REMOVE, Seen.CRASHED): Step.REMOVE,
    (Wanted.REMOVE, Seen.MISSING): Step.REMOVE,     # files may be left
}


def wanted(server: HostServer, generation: int, reboots: int) -> Wanted:
    """What a server's wish asks for, given the generation and reboots that were carried out last."""
    match server.power:
        case HostServer.ABSENT:
            return Wanted.REMOVE
        case HostServer.STOPPED:
            return Wanted.STOP
    if server.reboots > reboots:
        return Wanted.REBOOT
    return Wanted.RUN_ANEW if server.generation > generation else Wanted.RUN


def next_step(server: HostServer, seen: Seen, generation: int, reboots: int) -> Step:
    """The step to take for a server whose domain is `seen` and has carried out `generation` with `reboots`."""
    step = NEXT_STEP[wanted(server, generation, reboots), seen]
    if step is Step.REST and seen is not Seen.MISSING and server.generation > generation:
        return Step.NOTE
    return step


_REPORTED = {
    Seen.RUNNING: ObservedServer.RUNNING, Seen.PAUSED: ObservedServer.PAUSED, Seen.LEFT: ObservedServer.SHUTOFF,
    Seen.OFF: ObservedServer.SHUTOFF, Seen.CRASHED: ObservedServer.CRASHED, Seen.MISSING: ObservedServer.MISSING,
}


def reported(server: HostServer, seen: Seen) -> ObservedServer.Domain:
    """How the control plane is told; a stopped server without a domain is as stopped as one with."""
    if seen is Seen.MISSING and server.power == HostServer.STOPPED:
        return ObservedServer.SHUTOFF
    return _REPORTED[seen]
