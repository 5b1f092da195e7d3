"""Versioned records under slash-separated keys: the only state the control plane has.

A commit applies all its writes at one new revision, or none. Every write names the revision that it replaces (0: the
key must not exist), so a lost race is Stale and never a lost update; guards compare what is read but not written.
Semantics follow etcd's Txn: `MemoryStore` is the whole contract in a dict, `etcd_store.EtcdStore` the same over etcd,
and tests/conformance/check_store.py holds both to it.
"""
import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from control.kernel.errors import Stale, Unavailable

#: A commit beyond these is refused before it is sent: etcd's default of 128 less the one that the store adds, and of
#: 1.5 MiB less what a transaction of so many operations weighs beside keys and values.
MAX_OPERATIONS = 127
MAX_BYTES = 1_500_000


@dataclass(frozen=True, slots=True)
class Record:
    """One key as it was read, or as it shall be written."""

    key: str
    value: bytes | None        # None: absent (when read), delete (when written)
    revision: int = 0          # last modification; 0 for a key that does not exist
    created: int = 0           # revision of its creation; 0 when unknown or absent. Ignored by writes
    lease: int = 0             # lease that it dies with; 0 for none
    previous: bytes | None = None    # what it replaced; only of a watch that was asked for it. Ignored by writes


@dataclass(frozen=True, slots=True)
class Guard:
    """A comparison that must hold for a commit to be applied. Build one with the class methods."""

    key: str
    what: str                  # "unchanged", "exists", "created" or "empty"
    revision: int = 0

    @classmethod
    def unchanged(cls, key: str, revision: int) -> "Guard":
        """`key` was last modified at `revision`; 0: it does not exist."""
        return cls(key, "unchanged", revision)

    @classmethod
    def exists(cls, key: str) -> "Guard":
        """`key` exists, at whatever revision."""
        return cls(key, "exists")

    @classmethod
    def created(cls, key: str, revision: int) -> "Guard":
        """`key` is the one that was created at `revision`: the fence of a leader."""
        return cls(key, "created", revision)

    @classmethod
    def empty(cls, prefix: str) -> "Guard":
        """No key starts with `prefix`."""
        return cls(prefix, "empty")


@dataclass(frozen=True, slots=True)
class Batch:
    """What one watch message brings: records in order of revision, whole revisions only.

    `records` is empty for a progress notice. `compacted` is set on the last batch of a watch whose start revision is no
    longer kept: list again.
    """

    records: Sequence[Record]
    revision: int
    compacted: bool = False


class Store(Protocol):
    """etcd, as much of it as Brume uses. Every method may raise Unavailable; reads may be repeated, commits are
    answered exactly (a time-out is resolved by reading back before it is reported)."""

    async def get(self, key: str) -> Record:
        """The record at `key`; revision 0 when there is none. Linearizable."""

    async def scan(self, prefix: str) -> tuple[list[Record], int]:
        """All records below `prefix` in key order, and the revision that they were all read at (pages are pinned)."""

    async def commit(self, *writes: Record, guards: Sequence[Guard] = ()) -> int:
        """Apply all writes at one new revision and return it, or none.

        Without writes it only compares, and returns the revision at which all guards held. Deleting what is not there
        changes nothing. Raises Stale when a write's revision or a guard does not hold or a lease has expired, ValueError
        beyond MAX_OPERATIONS or MAX_BYTES and for two writes of one key.
        """

    def watch(self, prefix: str, after: int, *, previous: bool = False) -> AsyncGenerator[Batch, None]:
        """Every change below `prefix` after revision `after`, for ever; survives lost connections without a gap.

        A deletion is a Record with value None and the deletion's revision. Ends after a compacted batch.
        `previous`: each record also says what it replaced.
        """

    async def grant(self, ttl: int) -> int:
        """A new lease of `ttl` seconds; its id."""

    def renewer(self) -> Callable[[int], bool]:
        """What renews a lease, from any thread but the loop's: False when it has expired. It blocks for some seconds at most."""

    async def revoke(self, lease: int) -> None:
        """End a lease and delete its keys. Safe to repeat."""

    async def close(self) -> None:
        """Let go of connections. Running watches end with Unavailable."""


def size_of(writes: Sequence[Record], guards: Sequence[Guard]) -> int:
    """The bytes that count against MAX_BYTES: values once, keys as often as a transaction names them."""
    return (sum(3 * len(write.key.encode()) + len(write.value or b"") for write in writes)
            + sum(2 * len(guard.key.encode()) for guard in guards))


def check_size(writes: Sequence[Record], guards: Sequence[Guard]) -> None:
    """Raise ValueError where etcd would refuse the transaction for its size or for writing a key twice."""
    operations = len(writes) + len(guards)
    size = size_of(writes, guards)
    if operations > MAX_OPERATIONS or size > MAX_BYTES:
        raise ValueError(f"a commit of {operations} operations and {size} bytes is beyond {MAX_OPERATIONS} and {MAX_BYTES}")
    if len({write.key for write in writes}) < len(writes):
        raise ValueError("a commit writes one key twice: " + ", ".join(sorted(write.key for write in writes)))


class MemoryStore:
    """The contract in a dict: for tests, and to read before etcd_store.py. Leases expire by the running loop's clock."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._revision = 1
        self._history: list[Batch] = []
        self._compacted = 0
        self._changed = asyncio.Event()
        self._leases: dict[int, tuple[int, asyncio.TimerHandle]] = {}
        self._lease_ids = itertools.count(1)
        self._closed = False

    async def get(self, key: str) -> Record:
        self._check_open()
        return self._records.get(key, Record(key, None))

    async def scan(self, prefix: str) -> tuple[list[Record], int]:
        self._check_open()
        return [self._records[key] for key in sorted(self._records) if key.startswith(prefix)], self._revision

    async def commit(self, *writes: Record, guards: Sequence[Guard] = ()) -> int:
        self._check_open()
        check_size(writes, guards)
        for guard in (*(Guard.unchanged(write.key, write.revision) for write in writes), *guards):
            if not self._holds(guard):
                raise Stale("store.stale", f"{guard.key} is no longer {guard.what} {guard.revision or ''}".rstrip(),
                            self._revision, key=guard.key)
        for write in writes:
            if write.lease and write.lease not in self._leases:
                raise Stale("store.lease", f"lease {write.lease} of {write.key} has expired", self._revision)
        return self._apply(writes)

    async def watch(self, prefix: str, after: int, *, previous: bool = False) -> AsyncGenerator[Batch, None]:
        seen = after
        while True:
            self._check_open()
            if seen < self._compacted:
                yield Batch((), self._compacted, compacted=True)
                return
            changed = self._changed
            first = self._revision - len(self._history) + 1     # the history has one batch for each revision
            for batch in self._history[max(seen + 1 - first, 0):]:
                records = [record if previous else replace(record, previous=None)
                           for record in batch.records if record.key.startswith(prefix)]
                seen = batch.revision
                if records:
                    yield Batch(records, batch.revision)
            if changed is self._changed:
                await changed.wait()

    async def grant(self, ttl: int) -> int:
        self._check_open()
        lease = next(self._lease_ids)
        self._leases[lease] = (ttl, asyncio.get_running_loop().call_later(ttl, self._expire, lease))
        return lease

    def renewer(self) -> Callable[[int], bool]:
        async def renew(lease: int) -> bool:
            self._check_open()
            if lease not in self._leases:
                return False
            ttl, timer = self._leases[lease]
            timer.cancel()
            self._leases[lease] = (ttl, asyncio.get_running_loop().call_later(ttl, self._expire, lease))
            return True

        loop = asyncio.get_running_loop()
        return lambda lease: asyncio.run_coroutine_threadsafe(renew(lease), loop).result()

    async def revoke(self, lease: int) -> None:
        self._check_open()
        if lease in self._leases:
            self._leases[lease][1].cancel()
            self._expire(lease)

    async def close(self) -> None:
        self._closed = True
        for _, timer in self._leases.values():
            timer.cancel()
        self._wake()

    def compact(self) -> None:
        """Forget history, as etcd's compaction does; a watch from before it gets a compacted batch."""
        self._compacted, self._history = self._revision, []
        self._wake()

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("store.closed", "the store is closed")

    def _holds(self, guard: Guard) -> bool:
        record = self._records.get(guard.key)
        match guard.what:
            case "unchanged":
                return (record.revision if record else 0) == guard.revision
            case "exists":
                return record is not None
            case "created":
                return record is not None and record.created == guard.revision
            case "empty":
                return not any(key.startswith(guard.key) for key in self._records)
        raise ValueError(f"unknown guard {guard.what!r}")

    def _apply(self, writes: Sequence[Record]) -> int:
        writes = [write for write in writes if write.value is not None or write.key in self._records]
        if not writes:
            return self._revision
        self._revision += 1
        batch = []
        for write in writes:
            before = self._records.get(write.key)
            if write.value is None:
                batch.append(Record(write.key, None, self._revision, previous=before.value if before else None))
                self._records.pop(write.key, None)
            else:
                created = before.created if before else self._revision
                self._records[write.key] = record = Record(write.key, write.value, self._revision, created, write.lease)
                batch.append(replace(record, previous=before.value if before else None))
        self._history.append(Batch(batch, self._revision))
        self._wake()
        return self._revision

    def _expire(self, lease: int) -> None:
        del self._leases[lease]
        self._apply([Record(record.key, None) for record in self._records.values() if record.lease == lease])

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
