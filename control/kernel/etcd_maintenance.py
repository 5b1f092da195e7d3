"""The upkeep that etcd leaves to its user: compaction, defragmentation, alarms, learners, and marks of clients that are gone.

The leader of the control plane runs it; two of them at once would do no harm. It keeps as much history as a watch needs
to resume after a long break: KEEP_SECONDS, but no more than KEEP_REVISIONS.
"""
import asyncio
import logging
import time
from collections import deque

from control.kernel import etcd_members
from control.kernel.errors import Unavailable
from control.kernel.etcd_client import DEADLINE, AioRpcError, prefix_range, rpc_pb2
from control.kernel.etcd_commit import MARKS
from control.kernel.etcd_store import EtcdStore

log = logging.getLogger(__name__)

#: More history costs etcd's disk and memory, less makes replicas list everything again after a shorter break.
KEEP_SECONDS, KEEP_REVISIONS = 600.0, 200_000
#: Defragmentation stops a member while it lasts, so it is done where it gives back much: bytes, and the share unused.
DEFRAGMENT_BYTES, DEFRAGMENT_SHARE = 64 << 20, 0.5
#: Seconds that compaction or defragmentation may take.
LONG = 60.0
#: The marks swept in one step.
SWEEP = 60
#: Touched by each sweep, so that watches of the cloud's records see its revision too.
TOUCHED = b"/kernel/maintenance"


class Maintenance:
    """One pass each `interval` seconds over a store's members."""

    def __init__(self, store: EtcdStore, *, interval: float = 60.0, keep_seconds: float = KEEP_SECONDS,
                 keep_revisions: int = KEEP_REVISIONS):
        self._store = store
        self._client = store.client
        self._interval = interval
        self._keep_seconds = keep_seconds
        self._keep_revisions = keep_revisions
        self._seen: deque[tuple[float, int]] = deque()      # (when, revision), oldest first
        self._compacted = 0
        self._marks: dict[bytes, int] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.step()
            except (Unavailable, AioRpcError) as error:
                log.warning("etcd maintenance: %s", error.details() if isinstance(error, AioRpcError) else error)
            await asyncio.sleep(self._interval)

    async def step(self) -> None:
        """One pass."""
        status = await self._client.call(lambda member: member.maintenance.Status, rpc_pb2.StatusRequest())
        await self.compact(self._old_revision(status.header.revision))
        alarms = (await self._client.call(lambda member: member.maintenance.Alarm, rpc_pb2.AlarmRequest())).alarms
        for alarm in alarms:
            if alarm.alarm == rpc_pb2.NOSPACE:
                log.warning("etcd member %x is out of space: compacting and defragmenting; raise its quota or find what grows",
                            alarm.memberID)
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
        if not now and (status.dbSize < DEFRAGMENT_BYTES or unused < status.dbSize * DEFRAGMENT_SHARE):
            return
        started = time.monotonic()
        await maintenance.Defragment(rpc_pb2.DefragmentRequest(), timeout=LONG)
        log.info("etcd %s: defragmented %d MiB, %d of them unused, in %.1f s", endpoint, status.dbSize >> 20, unused >> 20,
                 time.monotonic() - started)

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
