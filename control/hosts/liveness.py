"""Which hosts are missed, and that nothing runs on those that are: written down by the replica that holds the stream, or held it.

A host that is missed is down. It is fenced, by the leader, where servers are started elsewhere on their own, and only where that
is certain: its lease has run out (control/hosts/leases.py), or the operator's command has cut its power.
"""
import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from control.hosts import leases, records
from control.hosts.leases import Leases
from control.hosts.neighbours import Membership
from control.kernel import fleet
from control.kernel.cache import Change
from control.kernel.database import Database
from control.kernel.errors import Error, Unavailable
from control.kernel.reconcile import Controller
from control.kernel.replicas import REPLICA
from control.kernel.store import Guard
from protos.internal.v1.fleet_pb2 import HostRecord

log = logging.getLogger(__name__)

#: Hosts that are written down at a time: the store commits them together.
AT_ONCE = 128

#: Hosts, and part of all, that may be missed at once like any other: with more of them the fault is more likely on this side (an
#: overload, a network that is cut), and they have so many seconds more. Less patience has a cloud that comes back rebuild itself
#: elsewhere; more has the servers of a rack that is lost wait.
MANY, MANY_PART, MANY_PATIENCE = 100, 0.2, 60.0

#: Seconds that the command that cuts a host's power may take, and hosts for which it runs at a time.
COMMAND_WITHIN, COMMANDS = 20.0, 16


@dataclass(frozen=True, slots=True)
class Fencing:
    """`automatic`: servers are started elsewhere on their own. `command`: cuts the power of the host that is its last argument,
    and ends with 0 when that is off for certain; () for none."""

    automatic: bool = False
    command: Sequence[str] = ()


class Liveness:
    """Of one replica. `attached` and `coming` are the hosts that it has streams of, and those whose streams wait."""

    def __init__(self, database: Database, membership: Membership, acknowledged: Leases, fencing: Fencing,
                 attached: Collection[str], coming: Collection[str]):
        self._db = database
        self._membership = membership
        self._leases = acknowledged
        self._fencing = fencing
        self._attached = attached
        self._coming = coming
        self._gone: dict[str, float] = {}              # replica -> when this one saw it gone
        self._many_since: dict[str, float] = {}        # replica -> since when many of its hosts are missed at once

    async def watch_own(self) -> None:
        """Write down this replica's hosts that are missed; until cancelled."""
        while True:
            await asyncio.sleep(leases.LOOK_EVERY)
            own = self._membership.id
            if self._db.cache.count(fleet.HOST, "replica", own) > len(self._attached):       # mostly all are there
                await self._write_down(
                    own, [host for host in self._db.cache.by(fleet.HOST, "replica", own) if self._missed(host.name)],
                    lambda host: self._missed(host.name))

    async def lead(self, fence: Sequence[Guard]) -> None:
        """The leader's part: hosts of replicas that are gone, and the fencing of those that are down; until cancelled."""
        controller = Controller("hosts.fencing", self._db.cache, kinds=(fleet.HOST,), keys_of=self._keys_of,
                                all_keys=self._all_keys, reconcile=lambda name: self._fence(name, fence), workers=COMMANDS)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch_orphans(fence))
            group.create_task(controller.run())

    # Down

    def _missed(self, name: str) -> bool:
        return name not in self._attached and name not in self._coming and self._leases.over(name)

    async def _watch_orphans(self, fence: Sequence[Guard]) -> None:
        def note(change: Change) -> None:
            if change.after is not None:
                self._gone.pop(change.after.id, None)  # type: ignore[attr-defined]

        self._gone.clear()
        with self._db.cache.listening(note, REPLICA):
            while True:
                held = set(self._db.cache.values(fleet.HOST, "replica"))
                now = time.monotonic()
                gone = {replica for replica in held - {self._membership.id} if self._db.get(REPLICA, replica) is None}
                self._gone = {replica: self._gone.get(replica, now) for replica in gone}
                for replica in gone:
                    if now - self._gone[replica] >= leases.GRACE:
                        hosts = [host for host in self._db.cache.by(fleet.HOST, "replica", replica) if host.up or host.replica]
                        await self._write_down(replica, hosts, lambda _: True,
                                               [*fence, Guard.unchanged(REPLICA.key(replica), 0)])
                await asyncio.sleep(leases.LOOK_EVERY)

    async def _write_down(self, replica: str, hosts: Sequence[HostRecord], still: Callable[[HostRecord], bool],
                          guards: Sequence[Guard] = ()) -> None:
        """Write down hosts of a replica that are missed, unless they are too many to be down at once."""
        if self._too_many(replica, len(hosts)):
            return
        slots = asyncio.Semaphore(AT_ONCE)

        async def one(host: HostRecord) -> None:
            async with slots:
                with contextlib.suppress(Error):       # of the store: the next look tries again
                    if await self._db.transact(lambda tx: still(host) and records.down(tx, host.name, host.replica),
                                               guards=guards):
                        log.warning("host %s is silent: down", host.name)
                        self._leases.forget(host.name)

        await asyncio.gather(*map(one, hosts))

    def _too_many(self, replica: str, missed: int) -> bool:
        """Whether so many hosts are missed that they get more time to come back."""
        total = self._db.cache.size(fleet.HOST)
        if missed <= max(MANY, total * MANY_PART):
            self._many_since.pop(replica, None)
            return False
        now = time.monotonic()
        if replica not in self._many_since:
            log.warning("%d of %d hosts are missed at once: more likely they cannot reach the control plane. None of them is "
                        "written down for %.0f s more", missed, total, MANY_PATIENCE)
        return now - self._many_since.setdefault(replica, now) < MANY_PATIENCE

    # Fencing

    def _keys_of(self, change: Change) -> Iterable[str]:
        if change.kind is fleet.HOST and change.after is not None and self._to_fence(change.after):  # type: ignore[arg-type]
            return (change.after.name,)  # type: ignore[attr-defined]
        return ()

    def _all_keys(self) -> list[str]:
        return [host.name for host in self._db.cache.all(fleet.HOST) if self._to_fence(host)]

    def _to_fence(self, host: HostRecord) -> bool:
        """Whether a host is down, and it can be made certain that nothing runs there."""
        return (self._fencing.automatic and not host.up and not host.replica and not host.HasField("fenced_at")
                and (host.leased or bool(self._fencing.command)))

    async def _fence(self, name: str, fence: Sequence[Guard]) -> float | None:
        host = self._db.get(fleet.HOST, name)
        if host is None or not self._to_fence(host):
            return None
        if self._fencing.command:
            await self._cut_power(name)
        if await self._db.transact(lambda tx: records.fence(tx, name), guards=fence):
            log.warning("host %s is fenced (%s): its servers may be started elsewhere", name,
                        "its power is cut" if self._fencing.command else "its lease has run out")
        return None

    async def _cut_power(self, name: str) -> None:
        """Run the operator's command for a host. Raises Unavailable where it does not say that the host is off."""
        program, *arguments = self._fencing.command
        try:
            process = await asyncio.create_subprocess_exec(
                program, *arguments, name, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE)
        except OSError as error:
            raise Unavailable("host.fence_command", f"host {name} is not fenced: fence_command cannot run: {error}") from error
        try:
            async with asyncio.timeout(COMMAND_WITHIN):
                _, said = await process.communicate()
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                raise Unavailable("host.fence_command", f"host {name} is not fenced: fence_command took longer than "
                                                        f"{COMMAND_WITHIN:.0f} s") from error
            raise
        if process.returncode:
            raise Unavailable("host.fence_command", f"host {name} is not fenced: fence_command ended with {process.returncode}: "
                                                    f"{said.decode('utf-8', 'replace').strip()[-500:]}")
