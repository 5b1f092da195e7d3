"""The changes since a revision: the last ones from memory, older ones from the store until it has compacted them.

What is in memory has no gap: every change of the kinds that matter after `start`.
"""
import asyncio
from collections import deque
from collections.abc import Collection, Iterable, Sequence

from google.protobuf.message import Message

from control.kernel.cache import Change, Kind, M
from control.kernel.database import Database
from control.kernel.errors import Stale
from control.kernel.store import Record
from control.watch.errors import TooOld, oldest

#: Changes kept in memory, and bytes of the records that they have. More lets readers stay away for longer before the store has to
#: be asked; a change of a server is 1 to 2 KiB, and its newer half is what the cache has anyway.
MAX_CHANGES, MAX_BYTES = 50_000, 64 * 2**20

#: Touched where a revision is wanted at which a watch of the store is sure to say something.
MARK = "/kernel/watch"


class History:
    """The changes of some kinds. `append` is called with every step of the cache, in order."""

    def __init__(self, database: Database, kinds: Collection[Kind], *, changes: int = MAX_CHANGES, size: int = MAX_BYTES):
        self._database = database
        self._kinds = frozenset(id(kind) for kind in kinds)
        self._most, self._most_bytes = changes, size
        self._changes: deque[Change] = deque()
        self._bytes = 0
        self.start = database.cache.revision
        self._extending = asyncio.Lock()
        self._wanted: list[int] = []

    def mine(self, changes: Iterable[Change]) -> list[Change]:
        """Those of the kinds that matter."""
        return [change for change in changes if id(change.kind) in self._kinds]

    def append(self, changes: Sequence[Change]) -> None:
        self._changes.extend(changes)
        self._bytes += sum(map(_size, changes))
        self._trim()

    def restart(self, revision: int) -> None:
        """Begin anew: what changed until `revision` is not known one by one."""
        self._changes.clear()
        self._bytes, self.start = 0, revision

    async def reach(self, revision: int) -> None:
        """Have every change after a revision. Raises TooOld where the store does not know them any more, or they are too many."""
        while revision < self.start:
            self._wanted.append(revision)
            try:
                async with self._extending:
                    if self.start <= revision:
                        return
                    await self._extend(min(self._wanted), revision)
            finally:
                self._wanted.remove(revision)

    def since(self, revision: int) -> list[Change]:
        """Every change after a revision that has been reached, oldest first."""
        if revision < self.start:
            raise oldest(revision, self.start)
        found = []
        for change in reversed(self._changes):
            if change.revision <= revision:
                break
            found.append(change)
        found.reverse()
        return found

    async def _extend(self, first: int, needed: int) -> None:
        """Read the changes from `first` on, or at least from `needed`, to the start of what is here."""
        end = self.start
        try:
            read = await self._read(first, end)
        except TooOld:
            if first == needed:
                raise
            first, read = needed, await self._read(needed, end)
        if self.start != end:
            return                  # begun anew meanwhile, or more was dropped: the caller looks again
        self._changes.extendleft(reversed(read))
        self._bytes += sum(map(_size, read))
        self.start = first
        self._trim()
        if self.start > needed:
            raise oldest(needed, self.start)

    async def _read(self, first: int, end: int) -> list[Change]:
        store, read = self._database.store, []
        await self._mark()          # a later revision than `end`, so that the watch below comes to its end
        watch = store.watch("/", first, previous=True)
        try:
            async for batch in watch:
                if batch.compacted:
                    raise oldest(first, batch.revision)
                changes = [self._database.cache.decoded(record) for record in batch.records if record.revision <= end]
                read += self.mine(change for change in changes if change is not None)
                if len(read) > self._most:
                    raise oldest(first, end)
                if batch.revision >= end:
                    break
        finally:
            await watch.aclose()
        return read

    async def _mark(self) -> None:
        while True:
            found = await self._database.store.get(MARK)
            try:
                await self._database.store.commit(Record(MARK, b"", found.revision))
                return
            except Stale:           # another replica has just done it; its revision may be an earlier one than ours
                continue

    def _trim(self) -> None:
        while self._changes and (len(self._changes) > self._most or self._bytes > self._most_bytes):
            revision = self.start = self._changes[0].revision
            while self._changes and self._changes[0].revision == revision:
                self._bytes -= _size(self._changes.popleft())


class Past:
    """The state as it was before the changes that have been undone, newest first: a watchable.Reader."""

    def __init__(self, database: Database):
        self._database = database
        self._before: dict[str, Message | None] = {}
        self._rows: dict[int, dict[str, Message]] = {}      # of each kind, what there was under keys that have changed since

    def undo(self, change: Change) -> None:
        self._before[change.key] = change.before
        rows = self._rows.setdefault(id(change.kind), {})
        if change.before is not None:
            rows[change.key] = change.before
        else:
            rows.pop(change.key, None)

    def at(self, kind: Kind[M], key: str) -> M | None:
        return self._before[key] if key in self._before else self._database.cache.at(kind, key)[1]  # type: ignore[return-value]

    def get(self, kind: Kind[M], *parts: str) -> M | None:
        return self.at(kind, kind.key(*parts))

    def rows(self, kind: Kind[M], index: str | None = None, value: str = "") -> list[M]:
        now = self._database.rows(kind, index, value)
        then = self._rows.get(id(kind))
        if then is None:
            return now
        kept = [message for message in now if kind.key_of(message) not in self._before]
        return kept + [message for message in then.values()  # type: ignore[misc]
                       if index is None or value in kind.indexes[index](message)]  # type: ignore[arg-type]


def _size(change: Change) -> int:
    return 200 + sum(message.ByteSize() for message in (change.before, change.after) if message is not None)
