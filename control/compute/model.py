"""What a server's record means: its status, what may be done to it, and what a host's report changes.

Everything here is plain and pure: no store, no clock, no network. `derive` is total over what it is given.
"""
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from control.kernel.cache import Kind
from control.kernel.errors import Conflict
from protos.compute.v1.placement_decisions_pb2 import PlacementDecision
from protos.compute.v1.records_pb2 import (
    ActionRecord,
    FlavorName,
    FlavorRecord,
    KeyPairRecord,
    MaintenanceRecord,
    Relocation,
    SeenServer,
    ServerFault,
    ServerGroupRecord,
    ServerRecord,
)
from protos.internal.v1.hosts_pb2 import HostServer, ObservedServer

SERVER = Kind("/compute/servers/", ServerRecord, indexes={
    "project": lambda server: (server.project_id,), "host": lambda server: (server.host,),
    "group": lambda server: (server.server_group,) if server.server_group else (),
    "visited": lambda server: visited(server),
    "relocating": lambda server: (server.relocation.source, "") if server.HasField("relocation") else (),
    "waiting": lambda server: ("",) if waits(server) else (),
    "passing": lambda server: ("",) if derive(server).task_state else ()},
    order=lambda server: (-server.created_at.seconds, -server.created_at.nanos))
ACTION = Kind("/compute/actions/", ActionRecord, id_of=lambda action: (action.server_id, action.request_id),
              indexes={"server": lambda action: (action.server_id,)}, packed=True)
FLAVOR = Kind("/compute/flavors/", FlavorRecord)
FLAVOR_NAME = Kind("/compute/flavor-names/", FlavorName, id_of=lambda name: (name.name,))
KEYPAIR = Kind("/compute/keypairs/", KeyPairRecord, id_of=lambda pair: (pair.user_id, pair.name),
               indexes={"user": lambda pair: (pair.user_id,)})
SERVER_GROUP = Kind("/compute/server-groups/", ServerGroupRecord, indexes={"project": lambda group: (group.project_id,)})
DECISION = Kind("/compute/decisions/", PlacementDecision, id_of=lambda decision: (decision.server_id,), packed=True)
MAINTENANCE = Kind("/compute/maintenances/", MaintenanceRecord, id_of=lambda record: (record.host,))
KINDS = (SERVER, ACTION, FLAVOR, FLAVOR_NAME, KEYPAIR, SERVER_GROUP, DECISION, MAINTENANCE)

#: The service's name in quota ledgers; key pairs are counted in a ledger of each user.
QUOTA, USER_QUOTA = "compute", "compute.user"

#: Nova's. RAM is in MiB.
DEFAULT_QUOTAS: Mapping[str, int] = {
    "instances": 10, "cores": 20, "ram": 51200, "key_pairs": 100, "metadata_items": 128, "server_groups": 10,
    "server_group_members": 10, "injected_files": 5, "injected_file_content_bytes": 10240, "injected_file_path_bytes": 255,
    "fixed_ips": -1, "floating_ips": -1, "security_groups": -1, "security_group_rules": -1}

#: Actions kept of one server; the oldest go first. More costs memory, fewer loses history.
MAX_ACTIONS = 100

RUNNING, STOPPED, ABSENT = HostServer.RUNNING, HostServer.STOPPED, HostServer.ABSENT

#: nova's numbers for what a hypervisor sees.
POWER_STATES: Mapping[int, int] = {
    ObservedServer.DOMAIN_UNSPECIFIED: 0, ObservedServer.RUNNING: 1, ObservedServer.PAUSED: 3, ObservedServer.SHUTOFF: 4,
    ObservedServer.CRASHED: 6, ObservedServer.MISSING: 0}


@dataclass(frozen=True, slots=True)
class State:
    """What clients see of where a server stands."""

    status: str
    vm_state: str
    task_state: str            # "" at rest
    power_state: int


def derive(server: ServerRecord, host_up: bool = True) -> State:
    """A server's state, from what is wanted of it, what was seen of it and where it is; nothing else decides it.

    Args:
      host_up: whether an agent is attached for its host; without effect while it has none.
    """
    wanted, seen = server.desired, server.seen
    vm_state = _vm_state(server)
    task = _task(server, vm_state)
    if relocates(server) and vm_state != "error" and not wanted.deleted:
        return State(_RELOCATING[server.relocation.verb], "active" if wanted.power == RUNNING else "stopped", task,
                     POWER_STATES[seen.domain])
    status = {"error": "ERROR", "building": "BUILD", "active": "ACTIVE", "stopped": "SHUTOFF"}[vm_state]
    if task in ("rebooting", "rebooting_hard") and not wanted.deleted:
        status = "REBOOT" if wanted.reboot_soft else "HARD_REBOOT"
    if task and server.host and not host_up:
        task = "waiting-for-host"
    return State(status, vm_state, task, POWER_STATES[seen.domain])


def _vm_state(server: ServerRecord) -> str:
    if server.HasField("fault"):
        return "error"
    return _SETTLED[server.seen.settled]


_SETTLED: Mapping[int, str] = {SeenServer.SETTLED_UNSPECIFIED: "building", SeenServer.ACTIVE: "active",
                               SeenServer.STOPPED: "stopped"}


def _task(server: ServerRecord, vm_state: str) -> str:
    """What is still to be done for a server to be as wanted; "" for nothing."""
    if server.desired.deleted:
        return "deleting"
    return "" if vm_state == "error" else _pending(server)


def _pending(server: ServerRecord) -> str:
    """What is still to be done, whether or not a fault says that it did not come to be."""
    if relocates(server):
        return _relocation_task(server)
    wanted, seen = server.desired, server.seen
    vm_state = _SETTLED[seen.settled]
    if vm_state == "building":
        return _build_task(server)
    if wanted.power == STOPPED:
        return "" if vm_state == "stopped" else "powering-off"
    if wanted.reboots > seen.reboots:
        return "rebooting" if wanted.reboot_soft else "rebooting_hard"
    running = seen.domain in (ObservedServer.RUNNING, ObservedServer.PAUSED)
    return "" if vm_state == "active" and running else "powering-on"


def _relocation_task(server: ServerRecord) -> str:
    there = server.host != server.relocation.source
    if server.relocation.verb == Relocation.EVACUATE:
        return "rebuild_spawning" if there else "rebuilding"
    return "resize_finish" if there else "resize_migrating" if server.relocation.target else "resize_prep"


def _build_task(server: ServerRecord) -> str:
    if not server.host:
        return "scheduling"
    return "networking" if server.seen.domain == ObservedServer.RUNNING else "spawning"


def waits(server: ServerRecord) -> bool:
    """Whether a server is to be given a host."""
    return not server.host and not server.desired.deleted and not server.HasField("fault")


# On the way to another host

EVACUATE, MIGRATE = Relocation.EVACUATE, Relocation.MIGRATE
_RELOCATING = {EVACUATE: "REBUILD", MIGRATE: "RESIZE"}


def relocates(server: ServerRecord) -> bool:
    """Whether a server is on its way to another host. One whose host is drained goes on as it is while it has no target."""
    move = server.relocation
    return move.verb == EVACUATE or (move.verb == MIGRATE and (bool(move.target) or not move.drained))


def leaving(server: ServerRecord) -> bool:
    """Whether a server is still at the host that it leaves with its disk: it is to be off there."""
    return server.relocation.verb == MIGRATE and bool(server.relocation.target) and server.host != server.relocation.target


def disk_waits(server: ServerRecord) -> bool:
    """Whether a server that leaves is off, so that its disk may be copied."""
    return (leaving(server) and not server.desired.deleted and server.seen.generation >= server.desired.generation
            and server.seen.domain in _OFF)


def visited(server: ServerRecord) -> list[str]:
    """The hosts beside its own that have, or are to have, something of a server."""
    return [*server.leftovers, *([server.relocation.target] if leaving(server) else [])]


def arrive(server: ServerRecord) -> None:
    """A server's disk is whole at its target: from here on it is there, and its source has to clean up."""
    server.leftovers.append(server.host)
    server.host = server.relocation.target
    server.desired.generation += 1
    server.seen.domain = ObservedServer.DOMAIN_UNSPECIFIED


def turn_back(server: ServerRecord, move_id: str, why: str = "", *, failed: bool = False) -> None:
    """A server that leaves stays where it is for now; what its target has of it has to go.

    Args:
      move_id: of the next attempt.
      failed: there is to be none, until somebody asks.
    """
    server.leftovers.append(server.relocation.target)
    server.relocation.target, server.relocation.id = "", move_id
    server.relocation.refused, server.relocation.failed = why, failed
    server.desired.generation += 1


_OFF = (ObservedServer.SHUTOFF, ObservedServer.CRASHED, ObservedServer.MISSING)


# What may be asked

#: Action -> the vm_states that it is allowed in, as nova has it.
ALLOWED: Mapping[str, frozenset[str]] = {
    "start": frozenset({"stopped"}),
    "stop": frozenset({"active", "error"}),
    "migrate": frozenset({"active", "stopped"}),
    "reboot_soft": frozenset({"active"}),
    "reboot_hard": frozenset({"active", "stopped", "error"}),
}


def check_action(server: ServerRecord, action: str) -> None:
    """Raises Conflict where an action is not allowed in the server's state, and says which."""
    state = derive(server)
    verb = action.partition("_")[0]
    if state.task_state and not (action == "reboot_hard" and state.vm_state == "active" and not server.desired.deleted):
        raise Conflict("compute.server.state",
                       f"Cannot '{verb}' instance {server.id} while it is in task_state {state.task_state}")
    if state.vm_state not in ALLOWED[action]:
        raise Conflict("compute.server.state",
                       f"Cannot '{verb}' instance {server.id} while it is in vm_state {state.vm_state}")
    if not server.host:
        raise Conflict("compute.server.state",
                       f"Cannot '{verb}' instance {server.id}: it has no host, and never ran. Delete it and make a new one.")


def check_unlocked(server: ServerRecord, is_admin: bool) -> None:
    """Raises Conflict for anyone but an admin while the server is locked."""
    if server.locked and not is_admin:
        raise Conflict("compute.server.locked", f"Instance {server.id} is locked")


def want_power(server: ServerRecord, power: int) -> None:
    """Ask for a power; a fault that stood in the way is forgotten, for it is tried again."""
    server.desired.power = power  # type: ignore[assignment]
    server.desired.generation += 1
    server.ClearField("fault")


def want_reboot(server: ServerRecord, soft: bool) -> None:
    server.desired.reboots += 1
    server.desired.reboot_soft = soft
    want_power(server, RUNNING)


def want_deleted(server: ServerRecord) -> None:
    server.desired.deleted = True
    server.desired.generation += 1


# What is reported

def observe(server: ServerRecord, seen: ObservedServer, wired: bool, now: Timestamp) -> bool:
    """Take in a host's report; whether anything changed that is worth a commit (what the agent is doing alone is not)."""
    before = ServerRecord()
    before.CopyFrom(server)
    server.seen.domain, server.seen.reboots = seen.domain, seen.reboots
    server.seen.generation, server.seen.fault = seen.generation, seen.fault[:4096]
    server.seen.step = seen.step[:255]
    current = seen.generation >= server.desired.generation
    if seen.fault and seen.fault_final and current:
        if not server.HasField("fault") or server.fault.waited_for:
            server.fault.CopyFrom(ServerFault(code=500, message=seen.fault[:255], details=seen.fault[:4096],
                                              created_at=now, from_host=True))
    elif server.HasField("fault") and server.fault.from_host and current and not seen.fault:
        server.ClearField("fault")
    settle(server, wired, now)
    step, server.seen.step = server.seen.step, before.seen.step
    changed = server != before
    server.seen.step = step
    return changed


def settle(server: ServerRecord, wired: bool, now: Timestamp) -> None:
    """Note where a server came to rest.

    A domain that shut off after it ran as wanted was shut down by its guest: then that is what is wanted from here on, as
    Nova has it. One that crashed or vanished is still wanted RUNNING, and its host brings it back.
    """
    wanted, seen = server.desired, server.seen
    current = seen.generation >= wanted.generation
    if leaving(server):
        return
    if wanted.power == RUNNING:
        if seen.domain == ObservedServer.RUNNING and (wired or (server.HasField("launched_at") and not relocates(server))):
            seen.settled = SeenServer.ACTIVE
            if not server.HasField("launched_at"):
                server.launched_at.CopyFrom(now)
        elif (seen.domain == ObservedServer.SHUTOFF and current and seen.settled == SeenServer.ACTIVE
              and seen.reboots >= wanted.reboots and not seen.step and not wanted.deleted):
            wanted.power = STOPPED
            wanted.generation += 1
            seen.settled = SeenServer.STOPPED
    elif current and seen.domain in _OFF:
        seen.settled = SeenServer.STOPPED
    if relocates(server) and server.host != server.relocation.source and current and not seen.step and seen.domain in (
            _OFF if wanted.power == STOPPED else (ObservedServer.RUNNING,)) and (wired or wanted.power == STOPPED):
        server.ClearField("relocation")
    if server.fault.waited_for and _pending(server) != server.fault.waited_for:
        server.ClearField("fault")           # it came after all


def host_hash(server: ServerRecord) -> str:
    """Nova's hostId: tells a project's servers on one host from others without naming the host."""
    return hashlib.sha224((server.project_id + server.host).encode()).hexdigest() if server.host else ""


def charge_of(server: ServerRecord) -> dict[str, int]:
    """What a server uses of its project's quota."""
    return {"instances": 1, "cores": server.flavor.vcpus, "ram": server.flavor.ram_mib}


def disk_of(server: ServerRecord) -> int:
    """GiB that a server takes of its host's disk; where the flavor has no size the image's, rounded up."""
    root = server.flavor.disk_gib or max(1, -(-server.image.size // 2**30))
    return root + server.flavor.ephemeral_gib + -(-server.flavor.swap_mib // 1024)
