"""Idempotency keys: a call that is made again with its key is answered again, and takes effect once.

Key and effect are one commit: while a key has no record, nothing of its call has happened. Calls whose effects are more than one
commit are the exception (Database.apart, or more records than a commit holds): those leave a record when they begin, and one that
is cut off answers ever after that its end is not known.

A refusal is an answer, too: a copy of the call that was held up on its way, and arrives when the caller has long been told "no",
must not take effect. What is neither yes nor no (no answer from the store) is not kept.

Records are read and written at the store itself, outside of "/": no watch carries them and no cache holds them. They are found by
a hash, and what they hold is encrypted with a key that is made of the idempotency key, which is nowhere in the store.
"""
import asyncio
import hashlib
import hmac
import logging
import os
import random
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from google.protobuf.message import DecodeError

from control.kernel import clock
from control.kernel.caller import Caller
from control.kernel.database import ATTEMPTS, Database
from control.kernel.errors import (
    Conflict,
    Denied,
    Error,
    Exhausted,
    Invalid,
    NotAcceptable,
    NotFound,
    Stale,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from control.kernel.overlay import NotAtOnce, Overlay
from control.kernel.store import MAX_BYTES, MAX_OPERATIONS, Guard, Record, Store, size_of
from protos.internal.v1.idempotency_pb2 import IdempotencyRecord, IdempotentAnswer

log = logging.getLogger(__name__)

#: The header of REST and, in lower case, the metadata of gRPC; and what says that an answer was given before.
HEADER, REPLAYED = "Idempotency-Key", "Idempotency-Replayed"

PREFIX = "idempotency/"

#: Written with each change of records that changes nothing below "/" otherwise, so that watches of that see its revision, too:
#: a key for each call that has begun and not ended, or was refused, and one for the sweeper.
MARKS, SWEPT = "/kernel/idempotency/", "/kernel/idempotency-swept"

#: How long an unfinished call may still be running somewhere: twice the longest deadline.
RUNNING = timedelta(seconds=120)

#: Seconds after which to ask again for a call that is still running.
RETRY_AFTER = 2

#: The sweeper looks at this many parts of all records in turn, so that it never holds many; of each it deletes so many at once.
SLICES, BATCH = 256, 60

#: Characters of a refusal's text that are kept.
MAX_TEXT = 4096

_KEY = re.compile(r"[\x20-\x7e]{1,255}")

Run = Callable[[], Awaitable[IdempotentAnswer]]


class InProgress(Conflict):
    """The same call is being carried out."""

    headers = (("Retry-After", str(RETRY_AFTER)),)


def parse(text: str) -> str:
    """The key that a header or metadata gives; "" for none. As in a structured header it may stand in quotes.

    Raises Invalid for what is no key.
    """
    key = text.strip()
    if len(key) > 1 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if text and not _KEY.fullmatch(key):
        raise Invalid("idempotency.key", f"{HEADER} must be 1 to 255 printable ASCII characters; best is a random UUID.")
    return key


@dataclass(frozen=True, slots=True)
class _Secrets:
    """What is made of a caller and a key: where the record lies, and the keys of its fingerprint and its seal."""

    name: str
    printing: bytes
    sealing: bytes

    @classmethod
    def of(cls, caller: Caller, key: str) -> "_Secrets":
        scope = "\0".join((caller.user_id, caller.project_id, caller.domain_id, "system" if caller.system else ""))
        made = HKDF(SHA256(), 80, salt=hashlib.sha256(scope.encode()).digest(), info=b"brume idempotency 1").derive(key.encode())
        return cls(PREFIX + made[:16].hex(), made[16:48], made[48:])

    @property
    def mark(self) -> str:
        return MARKS + self.name.removeprefix(PREFIX)

    def fingerprint(self, content: bytes) -> bytes:
        return hmac.digest(self.printing, content, "sha256")

    def seal(self, answer: IdempotentAnswer, fingerprint: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + AESGCM(self.sealing).encrypt(nonce, answer.SerializeToString(), fingerprint)

    def open(self, sealed: bytes, fingerprint: bytes) -> IdempotentAnswer:
        return IdempotentAnswer.FromString(AESGCM(self.sealing).decrypt(sealed[:12], sealed[12:], fingerprint))


class IdempotencyKeys:
    """The keys of one replica's calls."""

    def __init__(self, database: Database):
        self._database = database
        self._store = database.store

    async def once(self, caller: Caller, key: str, content: bytes, run: Run) -> tuple[IdempotentAnswer, bool]:
        """What a call answers, and whether it was answered before.

        Args:
          content: all that makes the call what it is; another one under the same key is refused.
          run: carries out the call, with no effects but through the database. May be called again from the start.

        Raises what `run` raises, and raised before, where that is a refusal; Conflict where the key came with other content, or
        with a call whose end is not known; InProgress while one is running.
        """
        secrets = _Secrets.of(caller, key)
        fingerprint = secrets.fingerprint(content)
        contended = ""
        async with self._database.queue(secrets.name), AsyncExitStack() as turns:
            turn = _Turn(self._database, turns)
            for attempt in range(ATTEMPTS):
                if (known := await self._known(secrets, fingerprint)) is not None:
                    return _answered(known), True
                await turn.take(contended)
                try:
                    outcome = await self._attempt(secrets, fingerprint, run, turn)
                except NotAtOnce:
                    await turns.aclose()
                    return _answered(await self._apart(secrets, fingerprint, run)), False
                if outcome.failure is not None:
                    raise outcome.failure
                if outcome.answer is not None:
                    return outcome.answer, False
                contended = outcome.lost
                if attempt > 2:
                    await asyncio.sleep(random.uniform(0, 0.005 * attempt))  # noqa: S311 - spreads retries, no secret
        raise Unavailable("store.contended", f"lost the race for {contended} {ATTEMPTS} times: try again")

    async def _known(self, secrets: _Secrets, fingerprint: bytes) -> IdempotentAnswer | None:
        """What the record of a key answers; None where there is none, and reads show all that was committed before this."""
        records, revision = await self._store.scan(secrets.name)
        value = records[0].value if records else None
        if value is None:
            await self._database.cache.wait(revision)        # or the call could be refused for what is over already
            return None
        record = IdempotencyRecord.FromString(value)
        if not hmac.compare_digest(record.fingerprint, fingerprint):
            raise Conflict("idempotency.reused", f"This {HEADER} came with another request before: a key is for one request and "
                                                 "its repetitions. Use a new one.")
        if record.unfinished:
            begun = record.created_at.ToDatetime()
            if clock.now().ToDatetime() - begun < RUNNING:
                raise InProgress("idempotency.running", f"The request with this {HEADER} is being carried out: ask again in "
                                                        f"{RETRY_AFTER} s.")
            raise Conflict("idempotency.unknown", f"The request with this {HEADER}, begun {begun:%Y-%m-%dT%H:%M:%SZ}, was cut "
                                                  "off and may be carried out in part. Look at what there is, and use a new key.")
        if not record.sealed_answer:
            raise Conflict("idempotency.large", f"The request with this {HEADER} was carried out; its answer was too large to be "
                                                "kept. Look at what there is.")
        try:
            return secrets.open(record.sealed_answer, fingerprint)
        except (InvalidTag, DecodeError) as error:
            raise Conflict("idempotency.damaged", f"The request with this {HEADER} was carried out; what is kept of its answer "
                                                  "cannot be read. Look at what there is.") from error

    async def _attempt(self, secrets: _Secrets, fingerprint: bytes, run: Run, turn: "_Turn") -> "_Outcome":
        """Run the call and commit what it wrote, with its record, at once.

        What a call wrote that then failed (a wrong password, counted) is committed all the same.
        Raises NotAtOnce with nothing committed.
        """
        overlay, outcome = Overlay(self._database.cache, turn.take_serial), _Outcome()
        try:
            with overlay.laid():
                outcome.answer = await run()
        except Error as error:
            outcome.failure = error
        except Exception as error:
            if overlay.refused:
                raise NotAtOnce from error
            raise
        if overlay.refused:
            raise NotAtOnce
        writes, guards = overlay.commit()
        if not turn.is_taken and (queued := self._database.queued(writes)):
            return _Outcome(lost=queued)
        if outcome.failure is not None and (refusal := _refusal(outcome.failure)) is not None and not self._database.refusing:
            marked = not writes
            writes.append(Record(secrets.name, self._record(secrets, fingerprint, refusal, marked=marked)))
            if marked:
                writes.append(Record(secrets.mark, b""))
        elif outcome.answer is None:
            guards.append(Guard.unchanged(secrets.name, 0))      # or it failed because of what its twin has done
        elif writes:
            writes.append(Record(secrets.name, self._record(secrets, fingerprint, outcome.answer)))
        else:
            return outcome
        if writes:
            self._database.check_writable()
        if len(writes) + len(guards) > MAX_OPERATIONS or size_of(writes, guards) > MAX_BYTES:
            raise NotAtOnce
        try:
            revision = await self._store.commit(*writes, guards=guards)
        except Stale as stale:
            await self._database.cache.wait(stale.revision)
            return _Outcome(lost=stale.key if stale.key != secrets.name else "")
        if writes:
            await self._database.shown(revision)
        return outcome

    async def _apart(self, secrets: _Secrets, fingerprint: bytes, run: Run) -> IdempotentAnswer:
        """Run a call that cannot be one commit, between a record that it has begun and one that it has ended."""
        begun = IdempotencyRecord(created_at=clock.now(), fingerprint=fingerprint, unfinished=True)
        try:
            revision = await self._store.commit(Record(secrets.name, begun.SerializeToString()), Record(secrets.mark, b""))
        except Stale:
            if (known := await self._known(secrets, fingerprint)) is not None:
                return known
            raise
        try:
            answer = await run()
        except Unavailable:
            raise                                       # who knows what came of it
        except Error as error:
            refusal = _refusal(error)
            record = None if refusal is None else self._record(secrets, fingerprint, refusal)
            await self._store.commit(Record(secrets.name, record, revision), Record(secrets.mark, None, revision))
            raise
        record = self._record(secrets, fingerprint, answer)
        await self._store.commit(Record(secrets.name, record, revision), Record(secrets.mark, None, revision))
        return answer

    @staticmethod
    def _record(secrets: _Secrets, fingerprint: bytes, answer: IdempotentAnswer, *, marked: bool = False) -> bytes:
        record = IdempotencyRecord(created_at=clock.now(), fingerprint=fingerprint, marked=marked)
        if len(answer.response) < MAX_BYTES // 2:
            record.sealed_answer = secrets.seal(answer, fingerprint)
        return record.SerializeToString()


#: The kinds of errors that say no.
_REFUSALS: dict[str, type[Error]] = {kind.__name__: kind for kind in (
    Invalid, Denied, NotFound, NotAcceptable, Conflict, TooLarge, UnsupportedMedia, Exhausted)}


def _refusal(error: Error) -> IdempotentAnswer | None:
    """What is kept of an error; None where it does not say no for good."""
    kind = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in _REFUSALS), "")
    if not kind or isinstance(error, Stale | InProgress):
        return None
    return IdempotentAnswer(refusal=IdempotentAnswer.Refusal(kind=kind, reason=error.reason, text=str(error)[:MAX_TEXT]))


def _answered(answer: IdempotentAnswer) -> IdempotentAnswer:
    """An answer that was kept. Raises the error where it is a refusal."""
    if not answer.HasField("refusal"):
        return answer
    refusal = answer.refusal
    error = _REFUSALS.get(refusal.kind, Conflict)(refusal.reason, refusal.text)
    error.headers = ((REPLAYED, "true"),)
    raise error


@dataclass(slots=True)
class _Outcome:
    """Of one attempt: the answer or the error that the call ended in; neither where it is to be run again."""

    answer: IdempotentAnswer | None = None
    failure: Error | None = None
    lost: str = ""                     # the key that was contended


class _Turn:
    """The queues that a call stands at: at most a name of its decisions', then a contended key, as in Database.transact."""

    def __init__(self, database: Database, held: AsyncExitStack):
        self._database = database
        self._held = held
        self._has_serial = False
        self.is_taken = False

    async def take_serial(self, name: str) -> None:
        if name and not self._has_serial and not self.is_taken:
            self._has_serial = True
            await self._held.enter_async_context(self._database.queue(name))

    async def take(self, key: str) -> None:
        if key and not self.is_taken:
            self.is_taken = True
            await self._held.enter_async_context(self._database.queue(key))


async def sweep(store: Store, part: int, kept: timedelta) -> int:
    """Delete the records of one of SLICES parts that are older than that; how many."""
    records, _ = await store.scan(f"{PREFIX}{part:02x}")
    oldest = clock.now().ToDatetime() - kept
    read = [(record, IdempotencyRecord.FromString(record.value or b"")) for record in records]
    due = [(record, content.unfinished or content.marked) for record, content in read if content.created_at.ToDatetime() < oldest]
    for start in range(0, len(due), BATCH):
        touched, batch = await store.get(SWEPT), due[start:start + BATCH]
        await store.commit(Record(SWEPT, b"", touched.revision),
                           *(Record(record.key, None, record.revision) for record, _ in batch),
                           *(Record(MARKS + record.key.removeprefix(PREFIX), None, record.revision)
                             for record, marked in batch if marked))
    return len(due)


async def keep_sweeping(store: Store, kept: timedelta) -> None:
    """Delete old records, a slice at a time, all within an hour, until cancelled: a part of the leader's work."""
    part = random.randrange(SLICES)  # noqa: S311 - where to begin, no secret
    while True:
        await asyncio.sleep(timedelta(hours=1).total_seconds() / SLICES)
        try:
            if swept := await sweep(store, part, kept):
                log.debug("%d old idempotency keys forgotten", swept)
        except (Stale, Unavailable, DecodeError) as error:
            log.warning("idempotency keys are not swept: %s", error)
        part = (part + 1) % SLICES
