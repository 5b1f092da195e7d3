"""Group commit: concurrent commits that touch different keys travel in one etcd transaction, each answered for itself.

A transaction that was sent is sent again until etcd answers it. That is exact, not hopeful: with its writes each
transaction leaves a mark, which has its own random number, and when its comparisons fail etcd returns in the same step
every compared revision and the mark. So "failed because it was applied already", "failed because someone else was first" and
"applied now" are told apart, whatever was lost on the way and whoever wrote the same keys since. The mark also says who
decided what: etcd's history of marks is where the audit journal (control/audit) learns the authors of every change.
"""
import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Iterable, Sequence

import grpc

from agents.telemetry.timing import Timings
from control.kernel.acting import acting
from control.kernel.errors import Stale, Unavailable
from control.kernel.etcd_client import AioRpcError, Client, prefix_range, rpc_pb2
from control.kernel.store import MAX_BYTES, MAX_OPERATIONS, Guard, Record, check_size, size_of
from protos.internal.v1.audit_pb2 import Mark

log = logging.getLogger(__name__)

#: Transactions under way at once. One leaves etcd idle while an answer is decoded; many make small groups, and a put in
#: a group of 64 costs an eighth of a put alone.
MAX_FLIGHTS = 2

#: Seconds from one transaction to the next while commits come faster than they are answered: each costs etcd, this process and
#: whoever watches as much as ten more writes in one would. Longer makes larger groups, and all wait; a caller alone never does.
LINGER = 0.004

#: Where marks stand: outside of "/", so that no watch of the cloud's records carries them.
MARKS = "marks/"

#: After a burst of writes, etcd 3.4 copies a buffer of the burst's size for each read, until it commits a batch that
#: touches no key: one lease, granted and revoked in a quiet moment. A burst has this many keys or more (the buffer's
#: first size); quiet are two batch intervals (0.1 s each) and a margin.
BURST, QUIET = 512, 0.35


class _Commit:
    """One caller's commit, waiting or in flight."""

    __slots__ = ("answer", "author", "guards", "leased", "prefixes", "read", "size", "writes", "written")

    def __init__(self, writes: Sequence[Record], guards: Sequence[Guard]):
        self.writes = writes
        self.author = acting()
        self.guards = (*(Guard.unchanged(write.key, write.revision) for write in writes), *guards)
        self.written = frozenset(write.key for write in writes)
        self.read = frozenset(guard.key for guard in guards if guard.what != "empty")
        self.prefixes = tuple(guard.key for guard in guards if guard.what == "empty")
        self.leased = any(write.lease for write in writes)
        self.size = size_of(writes, guards)
        self.answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def succeed(self, revision: int) -> None:
        if not self.answer.done():
            self.answer.set_result(revision)

    def fail(self, error: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class Committer:
    """Takes commits, forms groups, sends them. Use through EtcdStore."""

    def __init__(self, client: Client):
        self._client = client
        self.timings = Timings()        # by outcome: "ok", or an error's name; Stale is a lost race
        self.newest = 0                 # the highest revision of these commits
        self._waiting: deque[_Commit] = deque()
        self._flights: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._started = 0.0             # when a flight last did, on the loop's clock
        self._crowded = False           # it had company: several commits, or a flight before it that is not back
        self._identity = secrets.token_hex(8)
        self._slots = [f"{MARKS}{self._identity}/{slot}" for slot in range(MAX_FLIGHTS)]
        self._next_slot = MAX_FLIGHTS
        self._burst = 0
        self._calm: asyncio.TimerHandle | None = None
        self._chores: set[asyncio.Task[None]] = set()

    async def commit(self, writes: Sequence[Record], guards: Sequence[Guard]) -> int:
        """As Store.commit."""
        check_size(writes, guards)
        self._client.check_open()
        commit = _Commit(writes, guards)
        self._waiting.append(commit)
        self._schedule()
        started, outcome = time.perf_counter(), "ok"
        try:
            revision = await commit.answer
            self.newest = max(self.newest, revision)
            return revision
        except BaseException as error:
            outcome = type(error).__name__
            raise
        finally:
            self.timings.add((outcome,), time.perf_counter() - started)

    async def close(self) -> None:
        if self._calm:
            self._calm.cancel()
        for commit in self._waiting:
            commit.fail(Unavailable("store.closed", "the store is closed"))
        self._waiting.clear()
        tasks = [*self._flights, *self._chores]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Forming groups

    def _schedule(self) -> None:
        """Start flights once everyone who is ready to run now has added theirs."""
        if not self._scheduled and self._slots and self._waiting:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            if self._crowded and sum(len(commit.guards) for commit in self._waiting) < MAX_OPERATIONS:
                loop.call_at(self._started + LINGER, self._start)
            else:
                loop.call_soon(self._start)

    def _start(self) -> None:
        self._scheduled = False
        loop = asyncio.get_running_loop()
        while self._slots and (group := self._take()):
            self._crowded, self._started = len(group) > 1 or bool(self._flights), loop.time()
            flight = loop.create_task(self._fly(group, self._slots.pop()))
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)

    def _take(self) -> list[_Commit]:
        """The next group: in order of arrival, those that fit and touch nothing that another of them touches."""
        group: list[_Commit] = []
        left: deque[_Commit] = deque()
        operations = size = 0
        written: set[str] = set()
        read: set[str] = set()
        prefixes: set[str] = set()
        while self._waiting and operations < MAX_OPERATIONS:
            commit = self._waiting.popleft()
            if commit.answer.done():        # its caller has gone
                continue
            fits = (operations + len(commit.guards) <= MAX_OPERATIONS and size + commit.size <= MAX_BYTES
                    and not (commit.leased and group)
                    and written.isdisjoint(commit.written) and written.isdisjoint(commit.read)
                    and read.isdisjoint(commit.written)
                    and not _below(commit.written, prefixes) and not _below(written, commit.prefixes))
            if not fits:
                left.append(commit)
                continue
            group.append(commit)
            operations += len(commit.guards)
            size += commit.size
            written |= commit.written
            read |= commit.read
            prefixes.update(commit.prefixes)
            if commit.leased:               # may fail for its lease alone: let it fail alone
                break
        left.extend(self._waiting)
        self._waiting = left
        return group

    # Sending them

    async def _fly(self, group: list[_Commit], slot: str) -> None:
        try:
            while group:
                group = await self._send(group, slot)
            self._slots.append(slot)
        except BaseException as error:
            # The transaction may still be applied and leave its mark, so that slot is not used again.
            self._slots.append(f"{MARKS}{self._identity}/{self._next_slot}")
            self._next_slot += 1
            known = error if isinstance(error, Exception) else Unavailable("store.closed", "the store is closed")
            for commit in group:
                commit.fail(known)
            if not isinstance(error, Exception):
                raise
        finally:
            self._schedule()

    async def _send(self, group: list[_Commit], slot: str) -> list[_Commit]:
        """Send a group and answer its commits; what remains is to be sent again without those that failed."""
        mark = Mark(nonce=secrets.token_bytes(12), sent_at_ms=time.time_ns() // 1_000_000)
        compared = list(dict.fromkeys(guard for commit in group for guard in commit.guards))
        operations: list[rpc_pb2.RequestOp] = []
        for commit in group:
            made = [_operation(write) for write in commit.writes
                    if write.value is not None or write.revision]        # not to delete what is not there
            operations += made
            actor, request_id, project_id, rpc = commit.author
            mark.decisions.add(writes=len(made), request_id=request_id, actor=actor, project_id=project_id, rpc=rpc)
        left = mark.SerializeToString()
        request = rpc_pb2.TxnRequest(
            compare=[_compare(guard) for guard in compared], success=operations,
            failure=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(keys_only=True, limit=1, **_keys(guard)))
                     for guard in compared])
        if request.success:
            request.success.append(rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=slot.encode(), value=left)))
        request.failure.append(rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(key=slot.encode())))
        try:
            response = await self._client.call(lambda member: member.kv.Txn, request)
        except AioRpcError as error:
            for commit in group:
                commit.fail(_refused(commit, error))
            return []
        self._count(len(request.success))
        revision = response.header.revision
        if not response.succeeded:
            *found, marked = response.responses
            found_mark = next(iter(marked.response_range.kvs), None)
            if found_mark is None or found_mark.value != left:
                return _sort_out(group, dict(zip(compared, found, strict=True)), revision)
            revision = found_mark.mod_revision        # applied by an earlier try whose answer was lost
        for commit in group:
            commit.succeed(revision)
        self._overtaken({write.key: write.value is not None for commit in group for write in commit.writes}, revision)
        return []

    def _overtaken(self, written: dict[str, bool], revision: int) -> None:
        """Answer waiting commits that this one made stale: a key's revision never comes back, so they need not be sent."""
        left: deque[_Commit] = deque()
        for commit in self._waiting:
            lost = next((guard for guard in commit.guards if guard.what == "unchanged" and guard.key in written
                         and 0 < guard.revision < revision), None)
            if lost is None:
                left.append(commit)
            else:
                commit.fail(_stale(lost, revision))
        self._waiting = left

    # Etcd 3.4's read buffer

    def _count(self, keys: int) -> None:
        self._burst += keys
        if self._calm:
            self._calm.cancel()
            self._calm = None
        if self._burst >= BURST:
            self._calm = asyncio.get_running_loop().call_later(QUIET, self._settle)

    def _settle(self) -> None:
        self._burst, self._calm = 0, None
        chore = asyncio.get_running_loop().create_task(self._touch_no_key())
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    async def _touch_no_key(self) -> None:
        try:
            granted = await self._client.call(lambda member: member.lease.LeaseGrant, rpc_pb2.LeaseGrantRequest(TTL=5))
            await self._client.call(lambda member: member.lease.LeaseRevoke, rpc_pb2.LeaseRevokeRequest(ID=granted.ID))
        except (AioRpcError, Unavailable) as error:
            log.debug("no lease after a burst: %s", error)      # an optimization; the next burst tries again


def _below(keys: Iterable[str], prefixes: Iterable[str]) -> bool:
    ends = tuple(prefixes)
    return bool(ends) and any(key.startswith(ends) for key in keys)


def _keys(guard: Guard) -> dict[str, bytes]:
    return prefix_range(guard.key) if guard.what == "empty" else {"key": guard.key.encode()}


def _compare(guard: Guard) -> rpc_pb2.Compare:
    """Etcd compares a range key by key, and an empty one as a key of version 0."""
    compare = rpc_pb2.Compare
    match guard.what:
        case "unchanged":
            return compare(target=compare.MOD, result=compare.EQUAL, mod_revision=guard.revision, **_keys(guard))
        case "exists":
            return compare(target=compare.VERSION, result=compare.GREATER, version=0, **_keys(guard))
        case "created":
            return compare(target=compare.CREATE, result=compare.EQUAL, create_revision=guard.revision, **_keys(guard))
        case "empty":
            return compare(target=compare.VERSION, result=compare.EQUAL, version=0, **_keys(guard))
    raise ValueError(f"unknown guard {guard.what!r}")


def _operation(write: Record) -> rpc_pb2.RequestOp:
    if write.value is None:
        return rpc_pb2.RequestOp(request_delete_range=rpc_pb2.DeleteRangeRequest(key=write.key.encode()))
    return rpc_pb2.RequestOp(request_put=rpc_pb2.PutRequest(key=write.key.encode(), value=write.value, lease=write.lease))


def _holds(guard: Guard, found: rpc_pb2.ResponseOp) -> bool:
    """Whether a guard held where etcd looked: the same that its Compare said."""
    first = next(iter(found.response_range.kvs), None)
    match guard.what:
        case "unchanged":
            return (first.mod_revision if first else 0) == guard.revision
        case "exists":
            return first is not None
        case "created":
            return (first.create_revision if first else 0) == guard.revision
        case _:
            return first is None


def _sort_out(group: list[_Commit], found: dict[Guard, rpc_pb2.ResponseOp], revision: int) -> list[_Commit]:
    """Answer the commits whose guards failed; returns the others."""
    held = {guard: _holds(guard, answer) for guard, answer in found.items()}
    left = []
    for commit in group:
        lost = next((guard for guard in commit.guards if not held[guard]), None)
        if lost is None:
            left.append(commit)
        else:
            commit.fail(_stale(lost, revision))
    if len(left) == len(group):
        raise RuntimeError(f"etcd refused a transaction of {len(group)} commits all of whose comparisons hold")
    return left


def _stale(guard: Guard, revision: int) -> Stale:
    return Stale("store.stale", f"{guard.key} is no longer {guard.what} {guard.revision or ''}".rstrip(), revision, key=guard.key)


def _refused(commit: _Commit, error: AioRpcError) -> Exception:
    if error.code() == grpc.StatusCode.NOT_FOUND:
        return Stale("store.lease", "the lease of a written key has expired")
    return ValueError(f"etcd refuses a commit of {len(commit.guards)} comparisons and {commit.size} bytes: {error.details()}")
