"""Writes the journal of one replica: follows all of etcd's history from the last revision that the files hold.

It is a process of its own, so that what a change costs here is not taken from the calls that make changes. Content and order
are the store's alone: for each change the record as it was one revision before, and as it became; the authors from the
transaction's mark.
"""
import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from google.protobuf.message import DecodeError

from control.audit.chain import Chain
from control.audit.documents import Documents
from control.audit.reading import alive
from control.kernel.cache import Kind
from control.kernel.errors import Stale, Unavailable
from control.kernel.etcd_client import AioRpcError, rpc_pb2
from control.kernel.etcd_commit import MARKS
from control.kernel.etcd_store import EtcdStore
from control.kernel.store import MAX_OPERATIONS, Batch, Record
from protos.internal.v1.audit_pb2 import AuditOrigin, Decision, Mark

log = logging.getLogger(__name__)

#: What journals have in common lies here, outside of "/".
ORIGIN = "audit/origin"

#: Seconds for which changes are gathered to be written and synced together.
GATHER = 0.05
#: Changes that are gathered at most, and batches that may wait: bounds of the memory while the disk is slow.
MOST, WAITING = 2000, 1000
#: Bytes of records' last documents that are kept: what changes has mostly just changed. Less asks etcd for more of them.
RECENT_BYTES = 4 * 2**20
#: Seconds between two tries after the disk or etcd failed, between two signs of life, and between two looks for old files.
PAUSE, SIGN_OF_LIFE, PRUNE_EVERY = 2.0, 1.0, 3600.0
DAY = 86_400.0
#: How much the journal's process gives way: where cores are short, calls go first and the journal follows when it can.
NICE = 10


class Written(NamedTuple):
    """A record as it is written down; `document` None: there is none."""

    document: orjson.Fragment | None
    size: int = 0
    leased: bool = False


ABSENT = Written(None)


class Recent:
    """What was last written down of records by their keys, as far as it is known: the latest to stay longest."""

    def __init__(self, size: int):
        self.rows: dict[str, Written] = {}
        self._most = size
        self._size = 0

    def put(self, key: str, written: Written) -> None:
        """Note what a record has become. One that is gone is not kept: what comes after it was made anew."""
        self._size += written.size - self.rows.pop(key, ABSENT).size
        if written.document is not None:
            self.rows[key] = written

    def trim(self) -> None:
        """Let the oldest go where they are too many."""
        while self._size > self._most:
            self._size -= self.rows.pop(next(iter(self.rows))).size

    def clear(self) -> None:
        self.rows.clear()
        self._size = 0


class Journal:
    """One journal in a directory of its own.

    Args:
      kinds: what is written down; other keys (elections, marks) are not.
      keep_days: for which files are kept; 0 for ever.
    """

    def __init__(self, store: EtcdStore, directory: Path, kinds: Iterable[Kind], keep_days: int = 0):
        self._store = store
        self._directory = directory
        self._kinds = {kind.prefix: kind for kind in kinds}
        self._depth = max(prefix.count("/") - 1 for prefix in self._kinds)
        self._keep_days = keep_days
        self._documents = Documents(b"")
        self._era = ""
        self._recent = Recent(RECENT_BYTES)
        self._chain: Chain | None = None
        self._revision = 0
        self._fault = "starting"

    async def run(self) -> None:
        """Follow until cancelled."""
        alive_task = asyncio.create_task(self._show_life())
        try:
            while True:
                try:
                    self._chain = await asyncio.to_thread(Chain, self._directory)
                    await self._follow(self._chain)
                except (Unavailable, AioRpcError) as error:
                    log.warning("etcd does not answer: %s", error)
                except OSError as error:
                    self._fault = f"{self._directory}: {error.strerror or error}"
                    log.error("AUDIT JOURNAL STOPPED: %s. It goes on by itself when that is mended; what changes meanwhile is "
                              "written down then, if etcd still has its history (10 minutes).", self._fault)
                finally:
                    if self._chain:
                        self._chain.close()
                await asyncio.sleep(PAUSE)
        finally:
            alive_task.cancel()

    async def _follow(self, chain: Chain) -> None:
        origin = await self._origin()
        self._documents, self._era = Documents(origin.key), origin.era
        revision, skip = self._position(chain)
        _, now = await self._store.scan(ORIGIN)
        if now < revision:
            log.error("AUDIT JOURNAL HAS A GAP: the state is at revision %d, the journal at %d: somebody put an older state in "
                      "its place without `brume restore`", now, revision)
            chain.append([{"type": "gap", "era": self._era, "revision": now, "to": now, "time": _now(), "records": 0,
                           "went_back_from": revision}], _today())
            revision, skip = now, 0
        while True:
            after = revision if not skip else revision - 1
            queue: asyncio.Queue[Batch] = asyncio.Queue(WAITING)
            reader = asyncio.create_task(self._read(after, queue))
            try:
                forgotten = await self._write_batches(chain, queue, reader, revision, skip)
            finally:
                reader.cancel()
                with contextlib.suppress(asyncio.CancelledError, Unavailable, AioRpcError):
                    await reader
            revision, skip = await self._fill_gap(chain, forgotten), 0

    def _position(self, chain: Chain) -> tuple[int, int]:
        """(revision to go on from, entries of it that are there); 0 entries: it is whole."""
        last = chain.last
        if last is None:
            return 0, 0
        if last["era"] != self._era:
            log.warning("the state was restored from a backup: revisions begin anew")
            chain.append([{"type": "era", "era": self._era, "revision": 0, "time": _now(), "before": last["era"]}], _today())
            return 0, 0
        if last["type"] == "change" and "since" in last:       # in the middle of a gap's differences: they are listed again
            return last["since"], 0
        if last["type"] == "change" and last["index"] < last["of"]:
            return last["revision"], last["index"]
        return last["revision"], 0

    async def _read(self, after: int, queue: asyncio.Queue[Batch]) -> None:
        async for batch in self._store.watch("", after):
            await queue.put(batch)

    async def _write_batches(self, chain: Chain, queue: asyncio.Queue[Batch], reader: asyncio.Task[None], revision: int,
                             skip: int) -> int:
        """Write what the watch brings, until etcd has forgotten what comes next; the revision that was reached."""
        self._revision = revision
        self._recent.clear()            # what follows may begin elsewhere than what went before has ended
        pruned = 0.0
        while True:
            getter = asyncio.create_task(queue.get())
            await asyncio.wait({getter, reader}, return_when=asyncio.FIRST_COMPLETED, timeout=PRUNE_EVERY)
            if not getter.done():
                getter.cancel()
                if reader.done():
                    reader.result()
                    return self._revision
                continue
            batches = [getter.result()]
            if batches[0].records:
                await asyncio.sleep(GATHER)
            while not queue.empty() and sum(len(batch.records) for batch in batches) < MOST:
                batches.append(queue.get_nowait())
            forgotten = batches[-1].compacted
            entries = await self._entries([batch for batch in batches if not batch.compacted])
            if skip:
                entries = [entry for entry in entries if entry["revision"] > revision or entry["index"] > skip]
            await self._append(chain, entries)
            if forgotten:
                return self._revision
            self._revision = batches[-1].revision
            self._fault = ""
            if self._keep_days and time.monotonic() - pruned > PRUNE_EVERY:
                pruned = time.monotonic()
                for path in await asyncio.to_thread(chain.prune, time.time() - self._keep_days * DAY):
                    log.info("%s is older than %d days: deleted", path, self._keep_days)

    async def _append(self, chain: Chain, entries: Sequence[dict[str, Any]]) -> None:
        if entries:
            await asyncio.to_thread(chain.append, entries, _today())

    # What is written

    async def _entries(self, batches: Sequence[Batch]) -> list[dict[str, Any]]:
        """The entries of what some batches bring, in order."""
        revisions: dict[int, list[Record]] = {}
        for batch in batches:
            for record in batch.records:
                revisions.setdefault(record.revision, []).append(record)
        first: dict[str, Record] = {}
        for record in (record for records in revisions.values() for record in records):
            if record.key not in self._recent.rows and self._kind(record.key):
                first.setdefault(record.key, record)
        asked = [(key, record.revision - 1) for key, record in first.items() if record.created != record.revision]
        for key, record in (await self._before(asked)).items():
            self._recent.put(key, self._written(key, record))
        entries: list[dict[str, Any]] = []
        for revision, records in revisions.items():
            mark = next((_mark(record.value) for record in records
                         if record.value is not None and record.key.startswith(MARKS)), None)
            written = [record for record in records if not record.key.startswith(MARKS)]
            authors = _authors(mark, len(written))
            kept = [(record, author) for record, author in zip(written, authors, strict=True) if self._kind(record.key)]
            sent = _moment(mark.sent_at_ms) if mark and mark.sent_at_ms else _now()
            for index, (record, author) in enumerate(kept, 1):
                before = self._recent.rows.get(record.key, ABSENT)
                if author is None:      # no transaction of the control plane's: a lease that ended, or somebody's own client
                    author = Decision(actor="lease" if before.leased and record.value is None else "outside")
                    if author.actor == "outside":
                        log.warning("%s was changed at revision %d by none of this cloud's parts", record.key, revision)
                after = self._written(record.key, record)
                entries.append({
                    "type": "change", "era": self._era, "revision": revision, "index": index, "of": len(kept), "time": sent,
                    "actor": author.actor, "project": author.project_id, "request": author.request_id, "rpc": author.rpc,
                    **self._thing(record.key), "before": before.document, "after": after.document})
                self._recent.put(record.key, after)
        self._recent.trim()
        return entries

    async def _before(self, asked: Sequence[tuple[str, int]]) -> dict[str, Record]:
        """Records as they were at revisions. What there was none of, or etcd has forgotten meanwhile, is left out."""
        found: dict[str, Record] = {}
        for start in range(0, len(asked), MAX_OPERATIONS):
            part = asked[start:start + MAX_OPERATIONS]
            request = rpc_pb2.TxnRequest(success=[rpc_pb2.RequestOp(request_range=rpc_pb2.RangeRequest(
                key=key.encode(), revision=revision)) for key, revision in part])
            try:
                response = await self._store.client.call(lambda member: member.kv.Txn, request)
            except AioRpcError as error:
                log.warning("what %d records were before is not known any more: %s", len(part), error.details())
                continue
            for (key, _), answer in zip(part, response.responses, strict=True):
                kvs = answer.response_range.kvs
                if kvs:
                    found[key] = Record(key, kvs[0].value, kvs[0].mod_revision, kvs[0].create_revision, kvs[0].lease)
        return found

    def _kind(self, key: str) -> Kind | None:
        """The kind of the longest prefix that the key starts with."""
        kind, end = None, 0
        for _ in range(self._depth):
            end = key.find("/", end + 1)
            if end < 0:
                break
            kind = self._kinds.get(key[:end + 1], kind)
        return kind

    def _thing(self, key: str) -> dict[str, str]:
        kind = self._kind(key)
        assert kind is not None
        return {"kind": kind.message.DESCRIPTOR.full_name, "key": key, "id": key.removeprefix(kind.prefix)}

    def _written(self, key: str, record: Record) -> Written:
        if record.value is None:
            return ABSENT
        kind = self._kind(key)
        assert kind is not None
        try:
            document: dict[str, Any] = self._documents.of(kind.message.FromString(record.value))
        except DecodeError:
            document = {"undecodable_bytes": len(record.value)}
        text = bytes(memoryview(orjson.dumps(document)))       # a copy: what orjson makes keeps the room that it grew in
        return Written(orjson.Fragment(text), len(text), bool(record.lease))

    async def _fill_gap(self, chain: Chain, revision: int) -> int:
        """Write down what differs from what the journal says, where etcd's history has a hole; the revision of the state."""
        records, now = await self._store.scan("/")
        kept = {record.key: record for record in records if self._kind(record.key)}
        gone = [key for key in await asyncio.to_thread(alive, self._directory, self._era) if key not in kept]
        changed = [record for record in kept.values() if record.revision > revision]
        if revision:
            log.error("AUDIT JOURNAL HAS A GAP: etcd has forgotten what happened from revision %d to %d; %d records differ",
                      revision, now, len(gone) + len(changed))
        of = len(gone) + len(changed)
        blank = {"time": _now(), "actor": "", "project": "", "request": "", "rpc": "", "since": revision}
        entries: list[dict[str, Any]] = [{"type": "gap", "era": self._era, "revision": revision, "to": now, "time": _now(),
                                          "records": of}]
        entries += [{"type": "change", "era": self._era, "revision": now, "index": index, "of": of, **blank, **self._thing(key),
                     "before": None, "after": None} for index, key in enumerate(gone, 1)]
        entries += [{"type": "change", "era": self._era, "revision": now, "index": index, "of": of, **blank,
                     **self._thing(record.key), "before": None, "after": self._written(record.key, record).document,
                     "changed_at": record.revision} for index, record in enumerate(changed, len(gone) + 1)]
        entries.append({"type": "gap", "era": self._era, "revision": now, "to": now, "time": _now(), "records": 0})
        for start in range(0, len(entries), MOST):
            await self._append(chain, entries[start:start + MOST])
        return now

    # What all have in common

    async def _origin(self) -> AuditOrigin:
        while True:
            found = await self._store.get(ORIGIN)
            if found.value is not None:
                return AuditOrigin.FromString(found.value)
            made = AuditOrigin(key=secrets.token_bytes(32), era=secrets.token_hex(8))
            with contextlib.suppress(Stale):
                await self._store.commit(Record(ORIGIN, made.SerializeToString()))

    async def _show_life(self) -> None:
        """Say now and then how far the journal is, to whoever looks at its directory."""
        while True:
            chain = self._chain
            with contextlib.suppress(OSError):
                part = self._directory / f".{STATE}"
                part.write_text(json.dumps({
                    "time": time.time(), "fault": self._fault, "revision": self._revision,
                    "sequence": chain.sequence if chain else 0, "head": chain.head if chain else ""}))
                part.replace(self._directory / STATE)
            await asyncio.sleep(SIGN_OF_LIFE)


#: The file in the journal's directory that tells how far it is.
STATE = "state.json"


def state(directory: Path) -> dict[str, Any]:
    """How far the journal of a directory is: `fault` ("" for none), `revision`, `sequence`, `head`, `time` of saying so."""
    try:
        return json.loads((directory / STATE).read_bytes())
    except (FileNotFoundError, ValueError):
        return {"time": 0.0, "fault": "it has never run", "revision": 0, "sequence": 0, "head": ""}


def _mark(value: bytes) -> Mark:
    """What a transaction left; without decisions where it is of a release that wrote none."""
    try:
        return Mark.FromString(value)
    except DecodeError:
        return Mark()


def _authors(mark: Mark | None, writes: int) -> list[Decision | None]:
    """Who wrote each of a revision's records; None where it has no mark, "unknown" where that does not say."""
    if mark is None:
        return [None] * writes
    authors: list[Decision | None] = []
    for decision in mark.decisions:
        authors += [decision] * decision.writes
    return authors if len(authors) == writes else [Decision(actor="unknown")] * writes


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _now() -> str:
    return _moment(time.time_ns() // 1_000_000)


def _today() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")
