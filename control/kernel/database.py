"""Decisions: read from the cache, decide in plain code, commit once, and decide again when the world moved meanwhile.

A decision sees one consistent snapshot and its commit names every revision that it replaces, so it takes effect on
exactly the state that it was made on, or not at all.
"""
import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from agents.telemetry import traces
from control.kernel.acting import has_effect
from control.kernel.cache import Cache, Kind
from control.kernel.errors import Conflict, Exhausted, NotFound, Stale, Unavailable
from control.kernel.overlay import Overlay, current
from control.kernel.store import Guard, Record, Store

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)
T = TypeVar("T")

#: How often a decision is made anew after losing a race. Too low fails callers under contention; too high hides a
#: decision that can never be committed.
ATTEMPTS = 30

#: Seconds that reads may be behind the store before it counts as being behind.
MOMENT = 0.25

#: Nothing is under it: asking for it tells the store's revision.
NEWEST = "/kernel/newest/"


class Transaction:
    """What one decision reads and will write. Messages that it hands out are copies, free to be changed."""

    def __init__(self, cache: Cache):
        self._cache = cache
        self._writes: dict[str, tuple[int, Message | None]] = {}
        self._guards: dict[tuple[str, str], Guard] = {}

    def get(self, kind: Kind[M], *parts: str) -> M | None:
        """The message under an id, this transaction's own writes included; None when there is none."""
        key = kind.key(*parts)
        message = self._writes[key][1] if key in self._writes else self._cache.at(kind, key)[1]
        if message is None:
            return None
        copy = kind.message()
        copy.CopyFrom(message)
        return copy

    def has(self, kind: Kind, *parts: str) -> bool:
        """Whether there is something under an id, without a copy of it."""
        key = kind.key(*parts)
        return (self._writes[key][1] if key in self._writes else self._cache.at(kind, key)[1]) is not None

    def require(self, kind: Kind[M], *parts: str) -> M:
        """As get, but raises NotFound with a text that names the kind and the id."""
        message = self.get(kind, *parts)
        if message is None:
            raise missing(kind, *parts)
        return message

    def rows(self, kind: Kind[M], index: str | None = None, value: str = "") -> list[M]:
        """Messages as the cache has them (not copies; own writes applied): all, or those under an index value."""
        messages = self._cache.all(kind) if index is None else self._cache.by(kind, index, value)
        own = {key: message for key, (_, message) in self._writes.items() if key.startswith(kind.prefix)}
        if not own:
            return messages
        kept = [message for message in messages if kind.key_of(message) not in own]
        added = [message for message in own.values() if isinstance(message, kind.message)
                 and (index is None or value in kind.indexes[index](message))]
        return kept + added

    def put(self, kind: Kind[M], message: M) -> None:
        """Write a message over what was read under its id; creates it where the id was absent.

        A message that was made of parts keeps the fields of the stored one that only a later version knows. What is nested
        keeps its own only where the message that was read is changed.
        """
        key = kind.key_of(message)
        stored = self._cache.at(kind, key)[1]
        if stored is not None and stored is not message and len(UnknownFieldSet(stored)) and not len(UnknownFieldSet(message)):
            message.MergeFromString(_unknown(stored))
        self._write(kind, key, message)

    def delete(self, kind: Kind[M], *parts: str) -> None:
        """Delete what is under an id; nothing where there is nothing."""
        key = kind.key(*parts)
        if self._cache.at(kind, key)[1] is not None or key in self._writes:
            self._write(kind, key, None)

    def _write(self, kind: Kind, key: str, message: Message | None) -> None:
        revision = self._writes[key][0] if key in self._writes else self._cache.at(kind, key)[0]
        self._writes[key] = (revision, message)

    def guard_exists(self, kind: Kind, *parts: str) -> None:
        """The commit is refused if the thing is deleted meanwhile: for parents of what is created."""
        self.guard(Guard.exists(kind.key(*parts)))

    def guard_unchanged(self, kind: Kind, *parts: str) -> None:
        """The commit is refused if the thing changes at all meanwhile."""
        key = kind.key(*parts)
        self.guard(Guard.unchanged(key, self._cache.at(kind, key)[0]))

    def guard_empty(self, kind: Kind, *parts: str) -> None:
        """The commit is refused if anything is under these first parts of the kind's ids: for parents that are deleted."""
        self.guard(Guard.empty(kind.key(*parts) + ("/" if parts else "")))

    def guard(self, guard: Guard) -> None:
        self._guards[guard.key, guard.what] = guard

    def hand_over(self, overlay: Overlay, guards: Sequence[Guard]) -> None:
        """Leave to a whole call's commit what this decision would have committed with these guards."""
        overlay.take(self._writes, [*self._guards.values(), *guards] if self._writes else ())

    def writes(self) -> tuple[list[Record], list[Guard]]:
        """What to commit. A guard on a key that is also written says nothing that the write does not say."""
        records = [Record(key, None if message is None else message.SerializeToString(deterministic=True), revision)
                   for key, (revision, message) in self._writes.items() if message is not None or revision]
        guards = [guard for guard in self._guards.values()
                  if not (guard.key in self._writes and guard.what in ("exists", "unchanged"))]
        return records, guards


class Database:
    """A replica's way to state: reads from its cache, writes through transact()."""

    def __init__(self, store: Store, kinds: Iterable[Kind]):
        self.store = store
        self._cache = Cache(store, kinds)
        #: Why nothing may be written now; "": it may.
        self.refusing = ""
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @property
    def cache(self) -> Cache:
        """What reads see: the replica's cache; within a call that commits all at once, with what it has written so far."""
        overlay = current.get()
        return self._cache if overlay is None else overlay.over(self._cache)

    def apart(self) -> None:
        """Say that what follows is more than one commit, or has effects beside the store: it cannot be committed at once.

        Raises NotAtOnce within a call that would be; the call is then begun again, as one that need not be.
        """
        if isinstance(cache := self.cache, Overlay):
            cache.refuse()
        has_effect()

    def check_writable(self) -> None:
        """Raises Unavailable while nothing may be written."""
        if self.refusing:
            raise Unavailable("store.refusing", self.refusing)

    def get(self, kind: Kind[M], *parts: str) -> M | None:
        overlay = current.get()         # not the property: nothing is read more often
        return (self._cache if overlay is None else overlay.over(self._cache)).get(kind, *parts)

    def require(self, kind: Kind[M], *parts: str) -> M:
        """The cached message (do not change it), or NotFound."""
        message = self.get(kind, *parts)
        if message is None:
            raise missing(kind, *parts)
        return message

    def rows(self, kind: Kind[M], index: str | None = None, value: str = "") -> list[M]:
        """The cached messages (do not change them) of a kind: all, or those under an index value."""
        cache = self.cache
        return cache.all(kind) if index is None else cache.by(kind, index, value)

    async def transact(self, decide: Callable[[Transaction], T], *, guards: Sequence[Guard] = (), serial: str = "",
                       confirm: bool = False) -> T:
        """Run `decide` on a snapshot and commit what it wrote; its answer, once this replica's reads show the commit.

        `decide` is plain and quick, may raise to give up, and may run again from the start: it has no effect but through
        the transaction. Where it refuses for what the state is, that was so after this was called, not only in the cache.
        `guards` are added to the commit: a leader's fence. `serial` names what callers on this replica queue for instead of
        racing: the one record that all of them write (a quota ledger). `confirm`: where nothing is written, what the transaction
        guards is compared all the same, so that its answer is of the state and not only of what was known here.
        Raises what `decide` raises; Unavailable when the store does not answer or the race is lost ATTEMPTS times.
        """
        if isinstance(cache := self.cache, Overlay):
            await cache.queue(serial)
            transaction = Transaction(cache)
            answer = decide(transaction)
            transaction.hand_over(cache, guards)
            return answer
        contended = ""      # the key that this decision lost; it queues for it here, or 200 callers would all lose 30 times
        fresh = False
        async with self.queue(serial):
            for attempt in range(ATTEMPTS):
                async with self.queue(contended):
                    transaction, seen = Transaction(self.cache), self.cache.revision
                    try:
                        answer = decide(transaction)
                    except (NotFound, Conflict, Exhausted):
                        if fresh or not await self.catch_up(seen, 5.0):
                            raise
                        fresh = True
                        continue
                    writes, own_guards = transaction.writes()
                    if not writes and not (confirm and own_guards):
                        return answer
                    if writes:
                        self.check_writable()
                    if not contended and (contended := self.queued(writes)):
                        continue
                    try:
                        if traces.tracer is not None:
                            with traces.span("commit", writes=len(writes), attempt=attempt):
                                revision = await self.store.commit(*writes, guards=[*own_guards, *guards])
                        else:
                            revision = await self.store.commit(*writes, guards=[*own_guards, *guards])
                    except Stale as stale:
                        if any(guard.what == "created" for guard in guards) and await self._fenced(guards):
                            raise
                        await self.cache.wait(stale.revision)
                        contended = stale.key
                    else:
                        has_effect()
                        await self.shown(revision)
                        return answer
                if attempt > 2:
                    await asyncio.sleep(random.uniform(0, 0.005 * attempt))  # noqa: S311 - spreads retries, no secret
        raise Unavailable("store.contended", f"lost the race for {contended} {ATTEMPTS} times: try again")

    def queued(self, writes: Iterable[Record]) -> str:
        """A key among those to be written that callers queue for; "" for none."""
        return next((write.key for write in writes if write.key in self._locks), "")

    async def shown(self, revision: int) -> None:
        """Wait until reads show a commit. It is made, so a replica that is behind is no failure of the caller's."""
        try:
            await self.cache.wait(revision)
        except Unavailable as error:
            log.warning("answering before reads show it: %s", error)

    async def newest(self) -> int:
        """The store's revision now. Raises Unavailable where it does not answer."""
        return (await self.store.scan(NEWEST))[1]

    async def catch_up(self, seen: int, within: float = MOMENT) -> bool:
        """Whether the store is ahead of what was seen at a revision; reads show then what it has.

        Raises Unavailable where they do not within some seconds, or the store does not answer.
        """
        revision = await self.newest()
        if revision <= seen:
            return False
        await self.cache.wait(revision, within)
        return True

    async def _fenced(self, guards: Sequence[Guard]) -> bool:
        """Whether a fence among the guards has fallen: this leader is none any more, and trying again is no use."""
        for guard in guards:
            if guard.what == "created" and (await self.store.get(guard.key)).created != guard.revision:
                return True
        return False

    @contextlib.asynccontextmanager
    async def queue(self, name: str) -> AsyncIterator[None]:
        """Wait for one's turn among this replica's callers who name the same; "" is no queue."""
        if not name:
            yield
            return
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(name)
            if users > 1:
                self._locks[name] = (lock, users - 1)


def _unknown(message: Message) -> bytes:
    """The fields of a message that this version does not know, as they are stored."""
    rest = type(message)()
    rest.CopyFrom(message)
    for field, _ in rest.ListFields():
        rest.ClearField(field.name)
    return rest.SerializeToString()


def missing(kind: Kind, *parts: str) -> NotFound:
    """The NotFound for an id of a kind: "Server x could not be found." """
    noun = kind.message.DESCRIPTOR.name.removesuffix("Record")
    return NotFound(f"{kind.prefix.strip('/').replace('/', '.')}.missing", f"{noun} {parts[-1]} could not be found.")
