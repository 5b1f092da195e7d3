"""The store over etcd: reads, watches and leases; etcd_commit has the writes, etcd_lease the renewals, etcd_pages the
scans, etcd_client the connections.

A watch neither misses a change nor repeats one, whatever happens to connections and members: it always resumes from the
last revision that it has handed out whole.
"""
import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import grpc

from control.kernel.errors import Unavailable
from control.kernel.etcd_client import (
    DEADLINE,
    NEED_LEADER,
    PATIENCE,
    AioRpcError,
    Client,
    Member,
    prefix_range,
    rpc_pb2,
)
from control.kernel.etcd_commit import Committer
from control.kernel.etcd_lease import Renewer
from control.kernel.etcd_pages import pages
from control.kernel.pki import Credentials
from control.kernel.store import Batch, Guard, Record

log = logging.getLogger(__name__)

#: How often a scan starts again when compaction overtakes it.
SCANS = 5


class EtcdStore:
    """Store over the members of one etcd cluster. Make and use it within one event loop."""

    def __init__(self, endpoints: Sequence[str], credentials: Credentials | None = None, *, patience: float = PATIENCE):
        self.client = Client(endpoints, credentials, patience=patience)
        self._committer = Committer(self.client)
        self.commits = self._committer.timings
        self._renewer = Renewer(endpoints, credentials)
        self._read = 0

    @property
    def newest(self) -> int:
        """The highest revision that etcd has told of, to a commit or a scan."""
        return max(self._committer.newest, self._read)

    async def get(self, key: str) -> Record:
        response = await self.client.call(lambda member: member.kv.Range, rpc_pb2.RangeRequest(key=key.encode()))
        return _record(response.kvs[0]) if response.kvs else Record(key, None)

    async def scan(self, prefix: str) -> tuple[list[Record], int]:
        for _ in range(SCANS):
            try:
                return await self._scan(prefix)
            except AioRpcError as error:
                if error.code() != grpc.StatusCode.OUT_OF_RANGE:
                    raise
                log.info("a scan of %s was overtaken by compaction: starting again", prefix)
        raise Unavailable("store.scan", f"a scan of {prefix} was overtaken by compaction {SCANS} times: keep more history")

    async def _scan(self, prefix: str) -> tuple[list[Record], int]:
        """All records of one revision. Raises OUT_OF_RANGE when it is compacted meanwhile."""
        records: list[Record] = []
        async for page in pages(self.client, prefix):
            records += map(_record, page.kvs)
            revision = page.header.revision
        self._read = max(self._read, revision)
        return records, revision

    async def commit(self, *writes: Record, guards: Sequence[Guard] = ()) -> int:
        return await self._committer.commit(writes, guards)

    async def watch(self, prefix: str, after: int, *, previous: bool = False) -> AsyncGenerator[Batch, None]:
        seen = after
        while True:
            member = self.client.member
            try:
                async with contextlib.aclosing(self._follow(member, prefix, seen, previous)) as batches:
                    async for batch in batches:
                        seen = batch.revision
                        yield batch
                        if batch.compacted:
                            return
                why = "it ended the stream"
            except AioRpcError as error:
                why = error.details() or error.code().name
            except asyncio.CancelledError:
                self.client.cancelled()
                raise
            self.client.check_open()
            log.info("watch of %s: lost %s at revision %d (%s), resuming", prefix, member.endpoint, seen, why)
            self.client.failed(member)
            await asyncio.sleep(0.1)

    async def _follow(self, member: Member, prefix: str, seen: int, previous: bool) -> AsyncGenerator[Batch, None]:
        """One stream of one member: batches after `seen`, until it ends."""
        # It starts one revision early, and passes over it: for a watch that starts at a compacted revision itself etcd
        # may have forgotten that this revision was a deletion; for an earlier one it says that it is compacted.
        create = rpc_pb2.WatchCreateRequest(start_revision=max(seen, 1), progress_notify=True, fragment=True,
                                            prev_kv=previous, **prefix_range(prefix))
        stream = member.watch.Watch(metadata=NEED_LEADER)
        try:
            async with asyncio.timeout(DEADLINE):
                await stream.write(rpc_pb2.WatchRequest(create_request=create))
            held: list[Record] = []         # of the newest revision, while fragments of it may follow
            async for response in stream:
                if response.compact_revision:
                    yield Batch((), response.compact_revision, compacted=True)
                    return
                if response.canceled:
                    return
                events = [event for event in response.events if event.kv.mod_revision > seen]
                if previous and any(_forgotten(event) for event in events):
                    yield Batch((), seen, compacted=True)
                    return
                held += [_changed(event) for event in events]
                newest = held[-1].revision if response.fragment and held else 0
                whole = [record for record in held if record.revision != newest]
                held = held[len(whole):]
                if whole:
                    seen = whole[-1].revision
                    yield Batch(whole, seen)
                elif not response.events and not response.created and response.header.revision > seen:
                    seen = response.header.revision
                    yield Batch((), seen)
        except TimeoutError:
            return
        finally:
            stream.cancel()

    async def grant(self, ttl: int) -> int:
        # With an id of our own a second try finds the lease that the first one made.
        request = rpc_pb2.LeaseGrantRequest(TTL=ttl, ID=secrets.randbits(62) + 1)
        with _tolerating(grpc.StatusCode.FAILED_PRECONDITION):
            await self.client.call(lambda member: member.lease.LeaseGrant, request)
        return request.ID

    def renewer(self) -> Callable[[int], bool]:
        return self._renewer.renew

    async def revoke(self, lease: int) -> None:
        with _tolerating(grpc.StatusCode.NOT_FOUND):
            await self.client.call(lambda member: member.lease.LeaseRevoke, rpc_pb2.LeaseRevokeRequest(ID=lease))

    async def close(self) -> None:
        self.client.closed = True
        self._renewer.close()
        await self._committer.close()
        await self.client.close()


@contextlib.contextmanager
def _tolerating(code: grpc.StatusCode) -> Iterator[None]:
    """Take a refusal for success: an earlier try, or somebody else, did it already."""
    try:
        yield
    except AioRpcError as error:
        if error.code() != code:
            raise


def _record(kv: Any) -> Record:
    return Record(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision, kv.lease)


def _changed(event: Any) -> Record:
    previous = event.prev_kv.value if event.HasField("prev_kv") else None
    if event.type == event.DELETE:
        return Record(event.kv.key.decode(), None, event.kv.mod_revision, previous=previous)
    kv = event.kv
    return Record(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision, kv.lease, previous)


def _forgotten(event: Any) -> bool:
    """Whether etcd has compacted what an event replaced after it found the event: then it leaves that out without a word."""
    return not event.HasField("prev_kv") and (event.type == event.DELETE or event.kv.mod_revision != event.kv.create_revision)
