"""Every record of the known kinds, decoded, in memory: lists, gets and scheduling read here and never touch etcd.

One watch over the whole keyspace feeds it, so that one revision speaks for all kinds at once: what is read between two
awaits is a consistent snapshot. Messages handed out belong to the cache; a caller that wants to change one copies it.
"""
import asyncio
import bisect
import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote

from google.protobuf.message import DecodeError, Message

from control.kernel import collector
from control.kernel.errors import Unavailable
from control.kernel.store import Record, Store

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

#: Parts that percent-encoding leaves as they are: nearly all.
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*").fullmatch


@dataclass(frozen=True, eq=False)
class Kind(Generic[M]):
    """One noun's place in the store: a prefix that ends in a slash, the message kept there, and how it is found."""

    prefix: str
    message: type[M]
    #: The parts of a message's key below the prefix.
    id_of: Callable[[M], tuple[str, ...]] = field(default=lambda message: (message.id,))  # type: ignore[attr-defined]
    #: Index name -> the values under which a message is found; kept current by the cache.
    indexes: Mapping[str, Callable[[M], Iterable[str]]] = field(default_factory=dict)
    #: What Cache.in_order() goes by, ties broken by the key; the cache keeps it current.
    order: Callable[[M], tuple[int, ...]] | None = None
    #: For what is many and seldom read: the cache keeps it as it is stored, in a third of the memory, and decodes it when asked.
    packed: bool = False

    def key(self, *parts: str) -> str:
        """The store key of an id. Parts may hold any text: they are percent-encoded."""
        if len(parts) == 1 and _PLAIN(parts[0]):      # nearly always: an id
            return self.prefix + parts[0]
        return self.prefix + "/".join([part if _PLAIN(part) else quote(part, safe="") for part in parts])

    def key_of(self, message: M) -> str:
        return self.key(*self.id_of(message))


def _itself(message: Any) -> Any:
    return message


class Change(NamedTuple, Generic[M]):
    """One record's change as the cache applied it. `before` None: created; `after` None: deleted."""

    kind: Kind[M]
    key: str
    before: M | None
    after: M | None
    revision: int


#: Called with the changes of whole revisions, oldest first, and the revision that the cache is at with them; and whether they are
#: the difference of two listings instead: then what happened between is not known, and each change's revision is its record's.
Follower = Callable[[Sequence[Change], int, bool], None]


class _Table(Generic[M]):
    __slots__ = ("_indexed", "_ordered", "indexes", "kind", "read", "rows")

    def __init__(self, kind: Kind[M]):
        self.kind = kind
        self.rows: dict[str, tuple[int, Any]] = {}           # revision, and the message; of a packed kind its bytes
        self.read: Callable[[Any], M] = kind.message.FromString if kind.packed else _itself
        self.indexes: dict[str, dict[str, dict[str, None]]] = {name: {} for name in kind.indexes}
        self._indexed = [(values_of, self.indexes[name]) for name, values_of in kind.indexes.items()]
        self._ordered: list[tuple[tuple[int, ...], str]] | None = None

    def put(self, key: str, revision: int, data: bytes | None) -> tuple[M | None, M | None]:
        """Take in a record; (before, after). Raises DecodeError, and changes nothing, where it holds no such message."""
        message = None if data is None else self.kind.message.FromString(data)
        row = self.rows.pop(key, None)
        before = None if row is None else self.read(row[1])
        if before is not None:
            self._unindex(key, before)
        if message is not None:
            self.rows[key] = (revision, data if self.kind.packed else message)
            for values_of, index in self._indexed:
                for value in values_of(message):
                    keys = index.get(value)
                    if keys is None:
                        index[value] = {key: None}
                    else:
                        keys[key] = None
        if self._ordered is not None:
            self._reorder(key, before, message)
        return before, message

    def sort(self) -> None:
        """Put the rows in order at once, where their kind has one: a million one by one would take minutes."""
        if (order := self.kind.order) is not None:
            self._ordered = sorted((order(self.read(kept)), key) for key, (_, kept) in self.rows.items())

    def in_order(self, after: str) -> Iterator[M]:
        order, rows = self.kind.order, self.rows
        assert order is not None and self._ordered is not None, "the cache has its first snapshot"
        at = bisect.bisect_right(self._ordered, (order(self.read(rows[after][1])), after)) if after else 0
        for place in range(at, len(self._ordered)):
            yield self.read(rows[self._ordered[place][1]][1])

    def _reorder(self, key: str, before: M | None, after: M | None) -> None:
        order, ordered = self.kind.order, self._ordered
        assert order is not None and ordered is not None
        old, new = None if before is None else (order(before), key), None if after is None else (order(after), key)
        if old == new:
            return
        if old is not None:
            del ordered[bisect.bisect_left(ordered, old)]
        if new is not None:
            bisect.insort(ordered, new)

    def _unindex(self, key: str, message: M) -> None:
        for values_of, index in self._indexed:
            for value in values_of(message):
                keys = index.get(value, {})
                keys.pop(key, None)
                if not keys:
                    index.pop(value, None)


class Cache:
    """Reads of the replica. `run()` keeps it current; `ready` is set when the first snapshot is in."""

    def __init__(self, store: Store, kinds: Iterable[Kind]):
        self._store = store
        self._tables: dict[int, _Table] = {}
        self._by_prefix: dict[str, _Table] = {}
        for kind in kinds:
            if not kind.prefix.endswith("/") or kind.prefix in self._by_prefix:
                raise ValueError(f"kind prefix {kind.prefix!r} must end in a slash and be used once")
            self._tables[id(kind)] = self._by_prefix[kind.prefix] = _Table(kind)
        self._depth = max((prefix.count("/") - 1 for prefix in self._by_prefix), default=0)
        self.revision = 0
        self.ready = asyncio.Event()
        self._listeners: list[tuple[Callable[[Change], None], frozenset[int]]] = []     # with their kinds; none: all
        self._listening_to: dict[int, tuple[Callable[[Change], None], ...]] = {}        # by kind, as far as it was asked for
        self._followers: list[Follower] = []
        self._waiters: list[tuple[int, asyncio.Future]] = []

    # Reading

    def get(self, kind: Kind[M], *parts: str) -> M | None:
        return self.at(kind, kind.key(*parts))[1]

    def at(self, kind: Kind[M], key: str) -> tuple[int, M | None]:
        """(revision, message) under a store key; (0, None) when there is none."""
        table = self._tables[id(kind)]
        row = table.rows.get(key, (0, None))
        return row if not kind.packed or row[1] is None else (row[0], table.read(row[1]))

    def all(self, kind: Kind[M]) -> list[M]:
        """Every message of a kind, in order of last modification."""
        table = self._tables[id(kind)]
        found = [kept for _, kept in table.rows.values()]
        return list(map(table.read, found)) if kind.packed else found

    def keys(self, kind: Kind[M]) -> list[str]:
        return list(self._tables[id(kind)].rows)

    def by(self, kind: Kind[M], index: str, value: str, limit: int | None = None) -> list[M]:
        """The messages that an index of the kind has under a value, in order of last modification; the first `limit` of them."""
        table = self._tables[id(kind)]
        keys: Iterable[str] = table.indexes[index].get(value, ())
        found = [table.rows[key][1] for key in (keys if limit is None else itertools.islice(keys, limit))]
        return list(map(table.read, found)) if kind.packed else found

    def in_order(self, kind: Kind[M], after: str = "") -> Iterator[M]:
        """The messages in their kind's own order: those after the one under a store key that there is, or all. Not to be kept
        over an await."""
        return self._tables[id(kind)].in_order(after)

    def values(self, kind: Kind, index: str) -> list[str]:
        """The values that an index of the kind has messages under."""
        return list(self._tables[id(kind)].indexes[index])

    def size(self, kind: Kind) -> int:
        """How many messages of a kind there are."""
        return len(self._tables[id(kind)].rows)

    def count(self, kind: Kind[M], index: str, value: str) -> int:
        return len(self._tables[id(kind)].indexes[index].get(value, ()))

    async def wait(self, revision: int, timeout: float = 5.0) -> None:
        """Return once the cache has seen `revision`. Raises Unavailable after `timeout` seconds."""
        if self.revision >= revision:
            return
        future = asyncio.get_running_loop().create_future()
        self._waiters.append((revision, future))
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError as error:
            raise Unavailable("store.behind", f"this replica is behind: revision {self.revision}, wanted {revision}") from error

    @contextlib.contextmanager
    def listening(self, listener: Callable[[Change], None], *kinds: Kind) -> Iterator[None]:
        """Call `listener` on each change of some kinds, or of any, in order, from within the cache's own task: it must be quick
        and not raise."""
        entry = listener, frozenset(map(id, kinds))
        self._listeners.append(entry)
        self._listening_to.clear()
        try:
            yield
        finally:
            self._listeners.remove(entry)
            self._listening_to.clear()

    def _listeners_to(self, kind: Kind) -> tuple[Callable[[Change], None], ...]:
        found = self._listening_to.get(id(kind))
        if found is None:
            found = self._listening_to[id(kind)] = tuple(
                listener for listener, kinds in self._listeners if not kinds or id(kind) in kinds)
        return found

    @contextlib.contextmanager
    def following(self, follower: Follower) -> Iterator[None]:
        """Call `follower` once for all changes that the cache takes in at once, when it has them; otherwise as listening()."""
        self._followers.append(follower)
        try:
            yield
        finally:
            self._followers.remove(follower)

    def decoded(self, record: Record) -> Change | None:
        """The change that a watch's record with `previous` is; None for what is of no kind, or does not decode."""
        table = self._table_of(record.key)
        if table is None:
            return None
        read = table.kind.message.FromString
        try:
            return Change(table.kind, record.key, None if record.previous is None else read(record.previous),
                          None if record.value is None else read(record.value), record.revision)
        except DecodeError:
            return None

    # Following

    async def run(self) -> None:
        """Follow the store until cancelled; lists again when the history it needs is gone or a connection is lost."""
        while True:
            try:
                records, revision = await self._store.scan("/")
                self._replace(records, revision)
                self.ready.set()
                async for batch in self._store.watch("/", self.revision):
                    if batch.compacted:
                        log.warning("the store's history was compacted past revision %d: listing again", self.revision)
                    else:
                        self._apply(batch.records, batch.revision)
            except Unavailable as error:
                log.warning("the store does not answer: %s", error)
                await asyncio.sleep(0.5)

    def _replace(self, records: list[Record], revision: int) -> None:
        """Become the listed state; what changed meanwhile reaches listeners as changes."""
        gone: list[Record] = []
        changed = records
        if self.revision:                                 # not the first
            listed = {record.key for record in records}
            gone = [Record(key, None, revision) for table in self._by_prefix.values() for key in table.rows if key not in listed]
            changed = [record for record in records if not self._has(record)]
        first = not self.revision
        with collector.loading():
            self._apply(gone + changed, revision, listed=True)
            for table in self._by_prefix.values() if first else ():
                table.sort()

    def _has(self, record: Record) -> bool:
        table = self._table_of(record.key)
        return table is None or table.rows.get(record.key, (0, None))[0] == record.revision

    def _table_of(self, key: str) -> _Table | None:
        """The table of the longest prefix of a kind that the key starts with."""
        table, end = None, 0
        for _ in range(self._depth):
            end = key.find("/", end + 1)
            if end < 0:
                break
            table = self._by_prefix.get(key[:end + 1], table)
        return table

    def _apply(self, records: Iterable[Record], revision: int, listed: bool = False) -> None:
        changes = []
        tables: dict[str, _Table | None] = {}                # of the folders of these keys: most are of few
        for record in records:
            folder = record.key.rpartition("/")[0]
            if folder not in tables:
                tables[folder] = self._table_of(record.key)
            table = tables[folder]
            if table is None:
                continue
            try:
                before, message = table.put(record.key, record.revision, record.value)
            except DecodeError:
                log.error("%s holds no %s: passed over", record.key, table.kind.message.DESCRIPTOR.full_name)
                continue
            if before is not None or message is not None:
                changes.append(Change(table.kind, record.key, before, message, record.revision))
        self.revision = max(self.revision, revision)
        for change in changes:
            for listener in self._listeners_to(change.kind):
                try:
                    listener(change)
                except Exception:
                    log.exception("a listener failed on %s", change.key)
        for follower in tuple(self._followers):
            try:
                follower(changes, self.revision, listed)
            except Exception:
                log.exception("a follower failed at revision %d", self.revision)
        if self._waiters:
            due = [future for wanted, future in self._waiters if wanted <= self.revision]
            self._waiters = [(wanted, future) for wanted, future in self._waiters
                             if wanted > self.revision and not future.done()]
            for future in due:
                if not future.done():
                    future.set_result(None)
