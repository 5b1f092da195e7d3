"""What one call has written so far, over the cache: its decisions see one another, and all of them are one commit at its end.

A call that runs under an overlay does what it would do without, or is refused by it: whatever would mean something else in
one commit than in several (a guard on what the call itself has written) ends in NotAtOnce and never in another outcome.
"""
import contextlib
import contextvars
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf.message import Message

from control.kernel.cache import Cache, Change, Kind
from control.kernel.store import Guard, Record

M = TypeVar("M", bound=Message)

#: The overlay of the call that runs now; None: its decisions are commits of their own.
current: contextvars.ContextVar["Overlay | None"] = contextvars.ContextVar("overlay", default=None)


class NotAtOnce(Exception):
    """What a call does cannot be one commit. Nothing of it was committed."""


class Overlay(Cache):
    """The cache as one call sees it. Ends with the call: what still runs then sees, and writes, as everybody does."""

    def __init__(self, below: Cache, queue: Callable[[str], Awaitable[None]]):
        """`queue` waits for the call's turn under a name (Database.transact's `serial`), which it keeps to its end."""
        self._below = below
        self.queue = queue
        self._own: dict[str, tuple[int, Message | None]] = {}
        self._guards: dict[Guard, None] = {}
        self._open = True
        self.refused = False

    @contextlib.contextmanager
    def laid(self) -> Iterator[None]:
        """Run what is inside under this overlay."""
        token = current.set(self)
        try:
            yield
        finally:
            self._open = False
            current.reset(token)

    def over(self, cache: Cache) -> Cache:
        """This, where it is over that cache and its call has not ended; else the cache."""
        return self if self._open and self._below is cache else cache

    def refuse(self) -> None:
        """Raises NotAtOnce; `refused` stays set, whoever catches that on its way."""
        self.refused = True
        raise NotAtOnce

    # Reading

    @property
    def revision(self) -> int:  # type: ignore[override]
        return self._below.revision

    def at(self, kind: Kind[M], key: str) -> tuple[int, M | None]:
        """(revision of the store's record, message as the call left it)."""
        if key in self._own:
            return self._own[key]  # type: ignore[return-value]
        return self._below.at(kind, key)

    def all(self, kind: Kind[M]) -> list[M]:
        return self._with_own(kind, self._below.all(kind), lambda message: True)

    def keys(self, kind: Kind[M]) -> list[str]:
        return [kind.key_of(message) for message in self.all(kind)]

    def by(self, kind: Kind[M], index: str, value: str, limit: int | None = None) -> list[M]:
        found = self._with_own(kind, self._below.by(kind, index, value), lambda message: value in kind.indexes[index](message))
        return found[:limit]

    def in_order(self, kind: Kind[M], after: str = "") -> Iterator[M]:
        order = kind.order
        assert order is not None
        ordered = sorted((order(message), kind.key_of(message), message) for message in self.all(kind))
        start = (order(message), after) if after and (message := self.at(kind, after)[1]) is not None else ((), "")
        return (message for at, key, message in ordered if (at, key) > start)

    def size(self, kind: Kind) -> int:
        return len(self.all(kind))

    def count(self, kind: Kind[M], index: str, value: str) -> int:
        return len(self.by(kind, index, value))

    async def wait(self, revision: int, timeout: float = 5.0) -> None:
        await self._below.wait(revision, timeout)

    def listening(self, listener: Callable[[Change], None], *kinds: Kind) -> Any:
        return self._below.listening(listener, *kinds)

    def _with_own(self, kind: Kind[M], messages: list[M], is_meant: Callable[[M], bool]) -> list[M]:
        own = {key: message for key, (_, message) in self._own.items() if key.startswith(kind.prefix)}
        if not own:
            return messages
        return ([message for message in messages if kind.key_of(message) not in own]
                + [message for message in own.values() if isinstance(message, kind.message) and is_meant(message)])

    # Writing

    def take(self, writes: Mapping[str, tuple[int, Message | None]], guards: Iterable[Guard]) -> None:
        """Add what a decision writes and compares. Raises NotAtOnce where its guards are about what the call wrote before."""
        for guard in guards:
            if guard.what == "empty":
                if any(key.startswith(guard.key) for key in self._own):
                    self.refuse()
            elif guard.key in self._own:
                before, message = self._own[guard.key]
                if guard.what == "exists" and message is not None:
                    continue
                if guard.what == "unchanged" and guard.revision == before:
                    continue
                self.refuse()
            if guard.key not in writes or guard.what not in ("exists", "unchanged"):
                self._guards[guard] = None
        self._own.update(writes)

    def commit(self) -> tuple[list[Record], list[Guard]]:
        """What the call's one commit writes and compares."""
        records = [Record(key, None if message is None else message.SerializeToString(deterministic=True), revision)
                   for key, (revision, message) in self._own.items() if message is not None or revision]
        written = {record.key: record.revision for record in records}
        return records, [guard for guard in self._guards if not self._implied(guard, written)]

    @staticmethod
    def _implied(guard: Guard, written: Mapping[str, int]) -> bool:
        """Whether a write of the guarded key compares the same."""
        revision = written.get(guard.key, -1)
        return (guard.what == "exists" and revision > 0) or (guard.what == "unchanged" and revision == guard.revision)


@contextlib.contextmanager
def outside() -> Iterator[None]:
    """Start tasks inside that are not the call's own: what they write is committed on its own, for everybody."""
    token = current.set(None)
    try:
        yield
    finally:
        current.reset(token)
