"""The roles that replicas share: each role is cut into shards by its keys, and each shard has one leader.

Who shall lead what is a function of the replicas that live, so all of them agree without a word: a replica campaigns for what
is assigned to it and resigns the rest. A moment in which two see different replicas costs a wait for the election, nothing else.
"""
import asyncio
import functools
import hashlib
import logging
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from control.kernel.cache import Change
from control.kernel.database import Database
from control.kernel.election import PAUSE, Election
from control.kernel.replicas import REPLICA, Membership
from control.kernel.store import Guard
from protos.internal.v1.replicas_pb2 import ReplicaRecord

log = logging.getLogger(__name__)

#: Shards of a role whose work grows with the cloud. They go evenly on 1, 2, 3 and 6 replicas, and nearly so on 5; more replicas
#: than shards would do no more, and each shard costs a key in the store and a look at every change.
SHARDS = 6

#: Seconds that resigning everything may take when the process stops, before the lease is revoked under what is left.
RESIGN_WITHIN = 1.0


@dataclass(frozen=True, slots=True)
class Shard:
    """What one leader has of a role: the keys that are its own, and the fence that goes into each commit."""

    fence: Guard
    number: int = 0
    of: int = 1

    def has(self, key: str) -> bool:
        return zlib.crc32(key.encode()) % self.of == self.number


@dataclass(frozen=True)
class Role:
    """A part of the control plane's own work. `work` runs on the leader of each shard until it is cancelled."""

    name: str
    work: Callable[[Shard], Awaitable[None]]
    shards: int = 1

    @property
    def label(self) -> str:
        """As ReplicaRecord.roles has it."""
        return f"{self.name}/{self.shards}"


def assign(role: Role, replicas: Iterable[ReplicaRecord]) -> list[str]:
    """The id of the replica that shall lead each shard; "" for all where no replica has the role.

    Rendezvous hashing with bounded loads: each shard goes to the replica that scores highest for it among those that have not
    their even share of the role yet. When a replica comes or goes, few shards move that need not. All releases that run
    beside each other must agree on this function; a change of it needs a new name for the role.
    """
    able = [replica.id for replica in replicas if role.label in replica.roles]
    if not able:
        return [""] * role.shards
    most = -(-role.shards // len(able))
    loads: Counter[str] = Counter()
    leaders = []
    for shard in range(role.shards):
        leader = max((each for each in able if loads[each] < most), key=functools.partial(_score, role.name, shard))
        loads[leader] += 1
        leaders.append(leader)
    return leaders


def _score(role: str, shard: int, replica: str) -> bytes:
    return hashlib.blake2b(f"{role}/{shard}/{replica}".encode(), digest_size=8).digest()


class Roles:
    """One replica's part in all roles, while run() runs."""

    def __init__(self, database: Database, membership: Membership, roles: Sequence[Role]):
        self._database = database
        self._membership = membership
        self._roles = roles

    async def run(self) -> None:
        """Lead what is assigned to this replica until cancelled; then the work ends and all is resigned."""
        await self._database.cache.ready.wait()
        wake = asyncio.Event()

        def on_change(change: Change) -> None:
            wake.set()

        leading: dict[tuple[str, int], asyncio.Task[None]] = {}
        leaving: dict[tuple[str, int], asyncio.Task[None]] = {}
        with self._database.cache.listening(on_change, REPLICA):
            try:
                while True:
                    wake.clear()
                    mine = self._mine()
                    for job in leading.keys() - mine.keys():
                        leaving[job] = leading.pop(job)
                        leaving[job].cancel()
                        leaving[job].add_done_callback(lambda _: wake.set())
                    leaving = {job: task for job, task in leaving.items() if not task.done()}
                    for job in mine.keys() - leading.keys() - leaving.keys():
                        leading[job] = asyncio.create_task(self._lead(mine[job], job[1]))
                    await wake.wait()
            finally:
                await _end([*leading.values(), *leaving.values()], set(leading.values()))

    def _mine(self) -> dict[tuple[str, int], Role]:
        replicas = self._database.cache.all(REPLICA)
        return {(role.name, shard): role for role in self._roles
                for shard, leader in enumerate(assign(role, replicas)) if leader == self._membership.id}

    async def _lead(self, role: Role, number: int) -> None:
        election = Election(self._database.store, self._membership, role.name, number, role.shards)
        while True:
            try:
                await election.lead(lambda fence: role.work(Shard(fence, number, role.shards)))
            except Exception:       # what the store gives no name for: the shard must not stay without a candidate
                log.exception("%s: campaigning again", election.key)
                await asyncio.sleep(PAUSE)


async def _end(tasks: Sequence[asyncio.Task[None]], running: Iterable[asyncio.Task[None]]) -> None:
    """Let all resign; what does not in time is cut off."""
    if not tasks:
        return
    for task in running:
        task.cancel()
    _, late = await asyncio.wait(tasks, timeout=RESIGN_WITHIN)
    for task in late:
        log.warning("a role was not resigned in time: it goes with the lease")
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
