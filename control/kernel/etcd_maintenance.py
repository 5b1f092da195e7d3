"""The upkeep that etcd leaves to its user: compaction, defragmentation, alarms, learners, and marks of clients that are gone.

The leader of the control plane runs it; two of them at once would do no harm. Every replica keeps guard: a full etcd takes no
leases either, so nobody can become the leader, and whoever sees it full makes room. It keeps as much history as a watch needs
to resume after a long break: KEEP_SECONDS, but no more than KEEP_REVISIONS.
"""
import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from dataclasses import dataclass

from control.kernel import etcd_members
from control.kernel.errors import Unavailable
from control.kernel.etcd_client import DEADLINE, GUARD_EVERY, AioRpcError, Client, prefix_range, rpc_pb2
from control.kernel.etcd_commit import MARKS
from control.kernel.etcd_store import EtcdStore

log = logging.getLogger(__name__)

#: More history costs etcd's disk and memory, less makes replicas list everything again after a shorter break.
KEEP_SECONDS, KEEP_REVISIONS = 600.0, 200_000
#: Defragmentation stops a member while it lasts, so it is done where it gives back much: bytes, and the share unused.
DEFRAGMENT_BYTES, DEFRAGMENT_SHARE = 64 << 20, 0.5
#: Share of the quota from which history is given up before writes are (but for that since the last pass: a watch that was
#: away for longer must list again then), unused space is given back at once, and operators are told where that was not enough.
WARN_SHARE = 0.8
#: Seconds that compaction or defragmentation may take.
LONG = 60.0
#: Seconds within which etcd writes a batch.
COUNTED_AFTER = 0.25
#: The marks swept in one step.
SWEEP = 60
#: Touched by each sweep, so that watches of the cloud's records see its revision too.
TOUCHED = b"/kernel/maintenance"


#: Where a member comes near its quota, the share unused from which it is defragmented.
CROWDED_SHARE = 0.1
#: Seconds within which a second alarm means that the state itself is too large.
FULL_AGAIN = 600.0


@dataclass(frozen=True, slots=True)
class Room:
    """What one member of etcd uses of its quota, in bytes."""

    endpoint: str
    size: int                  # of its database; its quota counts this
    in_use: int                # of that, by the state and its history
    quota: int
    full: bool                 # it takes no writes

    @property
    def share(self) -> float:
        return self.size / self.quota if self.quota else 0.0


async def rooms(client: Client, quota: int) -> list[Room]:
    """The room of each member that answers."""
    alarms = (await client.call(lambda member: member.maintenance.Alarm, rpc_pb2.AlarmRequest())).alarms
    full = {alarm.memberID for alarm in alarms if alarm.alarm == rpc_pb2.NOSPACE}
    found = []
    for endpoint in client.endpoints:
        with contextlib.suppress(AioRpcError):
            status = await client.at(endpoint).maintenance.Status(rpc_pb2.StatusRequest(), timeout=DEADLINE)
            found.append(Room(endpoint, status.dbSize, status.dbSizeInUse, quota, status.header.member_id in full))
    return found


class Maintenance:
    """One pass each `interval` seconds over a store's members."""

    def __init__(self, store: EtcdStore, *, interval: float = 60.0, keep_seconds: float = KEEP_SECONDS,
                 keep_revisions: int = KEEP_REVISIONS, quota: int = 0):
        """`quota`: bytes that a member's database may have; 0: not known."""
        self._store = store
        self._client = store.client
        self._interval = interval
        self._keep_seconds = keep_seconds
        self._keep_revisions = keep_revisions
        self._seen: deque[tuple[float, int]] = deque()      # (when, revision), oldest first
        self._compacted = 0
        self._marks: dict[bytes, int] = {}
        self._quota = quota
        self._crowded: set[str] = set()                     # endpoints that operators were told of
        self._ran_full = 0.0                                # when room was made last

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.step()
            except (Unavailable, AioRpcError) as error:
                log.warning("etcd maintenance: %s", error.details() if isinstance(error, AioRpcError) else error)
            await asyncio.sleep(self._interval)

    async def guard(self) -> None:
        """Make room when etcd is full, leader or not; until cancelled."""
        while True:
            await asyncio.sleep(GUARD_EVERY * random.uniform(0.5, 1.0))  # noqa: S311 - keeps replicas apart, no secret
            with contextlib.suppress(Unavailable, AioRpcError):
                if await self._full():
                    await self.step()

    async def _full(self) -> bool:
        alarms = await self._client.call(lambda member: member.maintenance.Alarm, rpc_pb2.AlarmRequest())
        return any(alarm.alarm == rpc_pb2.NOSPACE for alarm in alarms.alarms)

    async def step(self) -> None:
        """One pass."""
        status = await self._client.call(lambda member: member.maintenance.Status, rpc_pb2.StatusRequest())
        alarms = (await self._client.call(lambda member: member.maintenance.Alarm, rpc_pb2.AlarmRequest())).alarms
        last = self._seen[-1][1] if self._seen else 0
        old = self._old_revision(status.header.revision)
        crowded = bool(self._quota) and status.dbSize >= self._quota * WARN_SHARE
        await self.compact(max(old, last) if crowded else old)
        if crowded and not alarms:      # etcd counts what a compaction has freed with the batch of writes after it
            with contextlib.suppress(Unavailable):      # full just now: the next pass sees the alarm
                await self._client.call(lambda member: member.kv.Put, rpc_pb2.PutRequest(key=TOUCHED))
            await asyncio.sleep(COUNTED_AFTER)
        for alarm in alarms:
            if alarm.alarm == rpc_pb2.NOSPACE:
                again = self._ran_full and time.monotonic() - self._ran_full < FULL_AGAIN
                log.log(logging.ERROR if again else logging.WARNING, "etcd member %x is out of space: compacting and "
                        "defragmenting%s", alarm.memberID, "; it was just done, so the state itself is too large: raise "
                        "etcd_quota_mib" if again else "")
                await self.compact(status.header.revision)
            else:
                log.warning("etcd member %x raises alarm %s: replace the member", alarm.memberID,
                            rpc_pb2.AlarmType.Name(alarm.alarm))
        full = [alarm for alarm in alarms if alarm.alarm == rpc_pb2.NOSPACE]
        await self._defragment_each(bool(full))
        await etcd_members.settle(self._client)
        for alarm in full:
            await self._client.call(lambda member: member.maintenance.Alarm, rpc_pb2.AlarmRequest(
                action=rpc_pb2.AlarmRequest.DEACTIVATE, memberID=alarm.memberID, alarm=alarm.alarm))
            self._ran_full = time.monotonic()
        await self._tell(crowded)
        await self._sweep()

    def _old_revision(self, revision: int) -> int:
        """The newest revision that need not be kept; 0 for none. Remembers this one."""
        now = time.monotonic()
        old = revision - self._keep_revisions
        self._seen.append((now, revision))
        while self._seen and self._seen[0][0] <= now - self._keep_seconds:
            old = max(old, self._seen.popleft()[1])
        return max(old, 0)

    async def compact(self, revision: int) -> None:
        """Forget history before `revision`."""
        if revision <= self._compacted:
            return
        try:
            await self._client.call(lambda member: member.kv.Compact, rpc_pb2.CompactionRequest(revision=revision, physical=True),
                                    deadline=LONG)
            log.info("etcd: compacted to revision %d", revision)
        except AioRpcError as error:
            if "has been compacted" not in (error.details() or ""):
                raise
        self._compacted = revision

    async def _defragment_each(self, now: bool) -> None:
        """One member after the other, since each stops while it lasts; none, unless space ran out, while one is away."""
        statuses = {}
        for endpoint in self._client.endpoints:
            try:
                statuses[endpoint] = await self._client.at(endpoint).maintenance.Status(rpc_pb2.StatusRequest(), timeout=DEADLINE)
            except AioRpcError as error:
                log.warning("etcd member %s does not answer: %s", endpoint, error.details())
        if now or len(statuses) == len(self._client.endpoints):
            for endpoint, status in statuses.items():
                await self._defragment(endpoint, status, now)

    async def _defragment(self, endpoint: str, status: rpc_pb2.StatusResponse, now: bool) -> None:
        """Give unused space of one member's database back, where that is much or must be."""
        maintenance = self._client.at(endpoint).maintenance
        unused = status.dbSize - status.dbSizeInUse
        crowded = self._quota and status.dbSize >= self._quota * WARN_SHARE and unused >= status.dbSize * CROWDED_SHARE
        if not (now or crowded) and (status.dbSize < DEFRAGMENT_BYTES or unused < status.dbSize * DEFRAGMENT_SHARE):
            return
        started = time.monotonic()
        await maintenance.Defragment(rpc_pb2.DefragmentRequest(), timeout=LONG)
        log.info("etcd %s: defragmented %d MiB, %d of them unused, in %.1f s", endpoint, status.dbSize >> 20, unused >> 20,
                 time.monotonic() - started)

    async def _tell(self, gave_up: bool) -> None:
        """Tell operators which members come near their quota though history was given up, and which have room again; once."""
        for room in await rooms(self._client, self._quota) if self._quota else ():
            if gave_up and room.share >= WARN_SHARE and room.endpoint not in self._crowded:
                self._crowded.add(room.endpoint)
                log.warning("etcd %s: %.0f %% of its quota of %d MiB are used, and no history is left to give up: raise "
                            "etcd_quota_mib, or find what grows", room.endpoint, room.share * 100, self._quota >> 20)
            elif room.share < WARN_SHARE * 0.9 and room.endpoint in self._crowded:
                self._crowded.discard(room.endpoint)
                log.info("etcd %s: %.0f %% of its quota are used", room.endpoint, room.share * 100)

    async def _sweep(self) -> None:
        """Remove the marks that no commit has touched since the last pass: their client is gone, or idle and will make
        them again."""
        response = await self._client.call(lambda member: member.kv.Range,
                                           rpc_pb2.RangeRequest(keys_only=True, **prefix_range(MARKS)))
        marks = {kv.key: kv.mod_revision for kv in response.kvs}
        dead = [(key, revision) for key, revision in marks.items() if self._marks.get(key) == revision][:SWEEP]
        self._marks = marks
        if dead:
            # Not by the store: it leaves a mark itself, which may be one of these.
            await self._client.call(lambda member: member.kv.Txn, rpc_pb2.TxnRequest(
                compare=[rpc_pb2.Compare(target=rpc_pb2.Compare.MOD, key=key, mod_revision=revision) for key, revision in dead],
                success=[rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=TOUCHED)),
                         *(rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=key)) for key, _ in dead)]))
