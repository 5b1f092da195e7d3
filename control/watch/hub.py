"""From the cache's steps to readers' queues: an event is made once for all who see the same of it.

Readers that listen to the same names and see the same of a record are a group. A step is put together once per group, and what
each reader of it gets is the same tuple; how many readers there are costs no more than that many appends.
"""
import asyncio
import contextlib
import itertools
import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage

from control.kernel.cache import Change
from control.kernel.database import Database
from control.kernel.errors import Error, Unavailable
from control.kernel.rpc import Call
from control.kernel.watchable import Watchable
from control.watch.errors import Slow, TooMany
from control.watch.history import MAX_CHANGES, History, Past
from protos.watch.v1.watches_pb2 import WatchEvent

log = logging.getLogger(__name__)

#: What waits for one reader at most: events, and their bytes. Less drops readers at every burst, more lets idle ones hold more.
MAX_WAITING, MAX_WAITING_BYTES = 10_000, 8 * 2**20

#: Readers on one replica at most, and of one user.
MAX_READERS, MAX_READERS_PER_USER = 10_000, 1_000

#: What an admin of all projects listens to.
ALL: frozenset[str] | None = None

Audience = frozenset[str] | None           # None: in nobody's list


def sees(listens: frozenset[str] | None, audience: Audience) -> bool:
    return audience is not None and (listens is None or not listens.isdisjoint(audience))


@dataclass(eq=False)
class Difference:
    """One record before and after: what each group makes its event of. `views` has what was made already."""

    key: str
    after: Any
    seen_after: Audience
    before: Any = None
    seen_before: Audience = None
    #: Newest first, what the record was meanwhile, and who saw it.
    between: list[tuple[Any, Audience]] = field(default_factory=list)
    views: dict[tuple, AnyMessage] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """What one step tells a reader: its events, the last of which has the revision."""

    events: tuple[WatchEvent, ...]
    size: int
    revision: int


class Group:
    """The readers of one kind to whom the same is told."""

    def __init__(self, watchable: Watchable, listens: frozenset[str] | None, call: Call):
        self.watchable, self.listens = watchable, listens
        # As any of theirs, all of whom see the same; and not one of theirs, because whom that speaks for may change.
        self.call = Call(microversion=call.microversion, caller_or_none=call.caller)
        self.variant = (call.microversion, call.caller.is_admin)
        self.names: tuple[str | None, ...] = (None,) if listens is None else tuple(listens)
        self.readers: dict[Reader, None] = {}

    def told(self, differences: Iterable[Difference], revision: int) -> Told | None:
        """What of the differences is told to these readers; None where it is nothing."""
        events = []
        for each in differences:
            was, now = sees(self.listens, each.seen_before), sees(self.listens, each.seen_after)
            if now:
                events.append(self.event(WatchEvent.MODIFIED if was else WatchEvent.ADDED, each.after, each.views))
            elif was:
                events.append(self.event(WatchEvent.DELETED, each.before, each.views))
            elif (seen := next((record for record, audience in each.between if sees(self.listens, audience)), None)) is not None:
                events.append(self.event(WatchEvent.DELETED, seen, {}))
        if not events:
            return None
        events[-1].revision = revision
        return Told(tuple(events), sum(len(event.object.value) + 100 for event in events), revision)

    def event(self, type: Any, record: Any, views: dict[tuple, AnyMessage]) -> WatchEvent:
        key = (type == WatchEvent.DELETED, self.variant)
        view = views.get(key)
        if view is None:
            view = views[key] = AnyMessage()
            view.Pack(self.watchable.view(record, self.call), deterministic=True)
        return WatchEvent(type=type, object=view)


class Reader:
    """One watch: what waits for it."""

    def __init__(self, group: Group, user_id: str, revision: int):
        self.group, self.user_id = group, user_id
        self.revision = revision          # up to which everything has been handed out
        self.error: Error | None = None
        self._waiting: deque[Told] = deque()
        self._events = self._bytes = 0
        self._wake: asyncio.Future[None] | None = None       # while somebody waits in take()
        self._timer: asyncio.TimerHandle | None = None       # runs on from one take() to the next: most are woken before it ends
        self._due = 0.0

    def put(self, told: Told) -> bool:
        """Queue a step; drops the reader where that is too much, and says so."""
        if self.error is not None:
            return False
        self._events += len(told.events)
        self._bytes += told.size
        if self._events > MAX_WAITING or self._bytes > MAX_WAITING_BYTES:
            self.end(Slow(f"The watch was dropped: {self._events} events of {self._bytes} bytes wait to be read. Read faster, "
                          f"and go on from revision {self.revision}.", self.revision))
            return True
        self._waiting.append(told)
        self._notify()
        return False

    def end(self, error: Error) -> None:
        """End the watch, with an error that the reader gets next."""
        self._waiting.clear()
        self._events = self._bytes = 0
        self.error = self.error or error
        self._notify()

    async def take(self, seconds: float) -> Told | None:
        """The next step; None where there is none for so long. Raises what the watch was ended with."""
        if not self._waiting and self.error is None:
            loop = asyncio.get_running_loop()
            self._wake, self._due = loop.create_future(), loop.time() + seconds
            if self._timer is None:
                self._timer = loop.call_at(self._due, self._time_out)
            try:
                await self._wake
            finally:
                self._wake = None
        if self.error is not None:
            raise self.error
        if not self._waiting:
            return None
        told = self._waiting.popleft()
        self._events -= len(told.events)
        self._bytes -= told.size
        return told


    def close(self) -> None:
        """Nobody will take any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _time_out(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        if self._wake is not None and loop.time() < self._due:
            self._timer = loop.call_at(self._due, self._time_out)
        else:
            self._notify()


class Hub:
    """All watches of one replica."""

    def __init__(self, database: Database, watchables: Collection[Watchable], *, changes: int = MAX_CHANGES,
                 readers: int = MAX_READERS, readers_per_user: int = MAX_READERS_PER_USER):
        """`changes`: how many are kept in memory."""
        self.watchables = {watchable.name: watchable for watchable in watchables}
        if len(self.watchables) != len(watchables):
            raise ValueError("two kinds that can be watched have one name")
        self._database = database
        self._related: dict[int, list[tuple[Watchable, Any]]] = {}
        kinds = {}
        for watchable in watchables:
            kinds[id(watchable.kind)] = watchable.kind
            for related in watchable.related:
                kinds[id(related.kind)] = related.kind
                self._related.setdefault(id(related.kind), []).append((watchable, related))
        self.history = History(database, list(kinds.values()), changes=changes)
        self._following = database.cache.following(self.step)
        self._following.__enter__()         # before any reader can come: to the end of the process
        self._most, self._most_per_user = readers, readers_per_user
        self._users: dict[str, int] = {}
        self.told: dict[str, int] = {}          # events handed to readers' queues, by kind
        self.dropped = 0                        # readers that were too slow
        self._groups: dict[Watchable, dict[tuple, Group]] = {}
        self._listening: dict[tuple[Watchable, str | None], dict[Group, None]] = {}     # by each name; None: all projects

    def readers(self) -> dict[str, int]:
        """How many there are, by kind."""
        return {watchable.name: sum(len(group.readers) for group in groups.values())
                for watchable, groups in self._groups.items()}

    @property
    def revision(self) -> int:
        """Up to which everything has been told."""
        return self._database.cache.revision

    async def run(self) -> None:
        """Until cancelled; then all watches end, so that their readers go to another replica."""
        try:
            await asyncio.Event().wait()
        finally:
            for groups in self._groups.values():
                for group in groups.values():
                    for reader in group.readers:
                        reader.end(Unavailable("watch.stopping", "This replica stops: connect again, and go on from the last "
                                                                 "revision."))

    def step(self, changes: Sequence[Change], revision: int, listed: bool) -> None:
        """Tell all readers what the cache has just taken in."""
        if listed:
            self.history.restart(revision)
            if not self._groups:
                return
        mine = self.history.mine(changes)
        if not mine:
            return
        if not listed:
            self.history.append(mine)
        if not self._groups:
            return
        for watchable in self._groups:
            differences = self._differences(watchable, mine)
            for group in self._concerned(watchable, differences):
                told = self._told(group, differences, revision)
                if told is not None:
                    name = watchable.name
                    self.told[name] = self.told.get(name, 0) + len(told.events) * len(group.readers)
                    for reader in group.readers:
                        self.dropped += reader.put(told)

    def _concerned(self, watchable: Watchable, differences: Iterable[Difference]) -> Iterable[Group]:
        """The groups that see one of the records, before or after."""
        names: set[str | None] = {None}
        for each in differences:
            names.update(each.seen_before or (), each.seen_after or ())
        found: dict[Group, None] = {}
        for name in names:
            found.update(self._listening.get((watchable, name), {}))
        return found

    def _told(self, group: Group, differences: Sequence[Difference], revision: int) -> Told | None:
        try:
            return group.told(differences, revision)
        except Exception:
            log.exception("%s cannot be shown: its watches end", group.watchable.name)
            for reader in group.readers:
                reader.end(Error("internal", "An unexpected error happened; list again."))
            return None

    def begin(self, reader: Reader, after: int, project_id: str) -> Iterator[WatchEvent]:
        """What a new reader is told first: what there is, or how that differs from the state at a revision that was reached.

        All of it is of one revision, whenever the iterator is read.
        """
        group, revision = reader.group, self.revision
        if after:
            changes = self.history.since(after)
            differences = self._differences(group.watchable, changes, partly=True)
            told = group.told(differences, revision)
            reader.revision = after
            return iter(told.events if told is not None else ())
        reader.revision = 0
        rows = self._listed(group, project_id)
        return (group.event(WatchEvent.ADDED, row, {}) for row in rows)

    def _differences(self, watchable: Watchable, changes: Sequence[Change], *, partly: bool = False) -> list[Difference]:
        """How the watched records differ from before the changes, of which there is each since then.

        `partly`: the reader may have got a part of a step between, so what came and went is among them, too.
        """
        past = Past(self._database)
        found: dict[str, Difference] = {}
        for _, group in itertools.groupby(reversed(changes), key=lambda change: change.revision):
            at_once = list(group)
            touched = dict.fromkeys(key for change in at_once for key in self._touched(watchable, change, change.after, past))
            for key in touched:
                record = past.at(watchable.kind, key)
                seen = self._audience(watchable, past, record)
                if key not in found:
                    found[key] = Difference(key, record, seen)
                elif partly and seen is not None:
                    found[key].between.append((record, seen))
            for change in at_once:
                past.undo(change)
            for key in [key for change in at_once for key in self._touched(watchable, change, change.before, past)]:
                if key not in found:
                    record = self._database.cache.at(watchable.kind, key)[1]
                    found[key] = Difference(key, record, self._audience(watchable, self._database, record))
        for key, difference in found.items():
            difference.before = past.at(watchable.kind, key)
            difference.seen_before = self._audience(watchable, past, difference.before)
        return list(reversed(found.values()))

    def _touched(self, watchable: Watchable, change: Change, record: Any, reader: Any) -> Iterable[str]:
        """The keys of the watched records that a change is about: `record` is one side of it, `reader` the state on that side."""
        if change.kind is watchable.kind:
            yield change.key
        for other, related in self._related.get(id(change.kind), ()):
            if other is watchable and record is not None and (
                    change.before is None or change.after is None or related.shown(change.before) != related.shown(change.after)):
                yield from related.keys(reader, record)

    @staticmethod
    def _audience(watchable: Watchable, reader: Any, record: Any) -> Audience:
        found = watchable.audience(reader, record) if record is not None else None
        return None if found is None else frozenset(found)

    def _listed(self, group: Group, project_id: str) -> list[Any]:
        """The records that a group has in its list now."""
        watchable = group.watchable
        narrow = watchable.candidates if group.listens is not None and project_id else None
        rows = narrow(self._database, project_id) if narrow is not None else self._database.rows(watchable.kind)
        unique = {id(row): row for row in rows}
        return [row for row in unique.values() if sees(group.listens, self._audience(watchable, self._database, row))]

    @contextlib.contextmanager
    def reading(self, watchable: Watchable, listens: frozenset[str] | None, call: Call) -> Iterator[Reader]:
        """A reader of all steps from now on. Raises TooMany."""
        user_id = call.caller.user_id
        if sum(self._users.values()) >= self._most or self._users.get(user_id, 0) >= self._most_per_user:
            raise TooMany("watch.many", f"There are too many watches: {self._most_per_user} of one user at most, {self._most} in "
                                        "all. End some, or share one among your programs.")
        groups = self._groups.setdefault(watchable, {})
        key = (listens, call.microversion, call.caller.is_admin)
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(watchable, listens, call)
            for name in group.names:
                self._listening.setdefault((watchable, name), {})[group] = None
        reader = Reader(group, user_id, self.revision)
        group.readers[reader] = None
        self._users[user_id] = self._users.get(user_id, 0) + 1
        try:
            yield reader
        finally:
            reader.close()
            group.readers.pop(reader)
            if not group.readers:
                groups.pop(key, None)
                for name in group.names:
                    self._listening[watchable, name].pop(group)
                    if not self._listening[watchable, name]:
                        del self._listening[watchable, name]
            if not groups:
                self._groups.pop(watchable, None)
            self._users[user_id] -= 1
            if not self._users[user_id]:
                del self._users[user_id]
