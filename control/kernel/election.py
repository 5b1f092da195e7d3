"""Who does a job that one replica at a time should do.

Leadership saves work and gives no exclusion: a leader that was cut off may believe in itself for a moment longer. What
makes it harmless is the fence, a guard on the leadership's creation, in every commit that a leader makes as leader.
"""
import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from control.kernel.errors import Stale, Unavailable
from control.kernel.replicas import LEADERSHIP, Membership, Term
from control.kernel.store import Guard, Record, Store
from protos.internal.v1.replicas_pb2 import Leadership

log = logging.getLogger(__name__)

#: Seconds before a candidate tries again after the store or its own work failed.
PAUSE = 0.5


class Election:
    """One replica's candidacy for one job: a shard of a role. The leadership hangs on the replica's lease, and goes with it."""

    def __init__(self, store: Store, membership: Membership, role: str, shard: int = 0, shards: int = 1):
        leadership = Leadership(role=role, shard=shard, shards=shards, replica_id=membership.id)
        self.key = LEADERSHIP.key_of(leadership)
        self._value = leadership.SerializeToString(deterministic=True)
        self._store = store
        self._membership = membership

    async def lead(self, work: Callable[[Guard], Awaitable[None]]) -> None:
        """For ever: become the leader, run `work` with the fence until it ends or the lease is lost, begin again.

        When cancelled it ends the work first and then resigns, so that another takes over at once.
        """
        while True:
            term = await self._membership.term()
            try:
                if fence := await self._campaign(term):
                    log.info("%s: leading from revision %d", self.key, fence.revision)
                    await self._hold(term, work, fence)
                    log.warning("%s: leading no more", self.key)
            except Unavailable as error:
                log.warning("%s: %s", self.key, error)
            finally:
                await self._resign(term)
            await asyncio.sleep(PAUSE)

    async def _campaign(self, term: Term) -> Guard | None:
        """The fence, once this candidate leads; None where its term ended first."""
        while not term.over.is_set():
            record = await self._store.get(self.key)
            if record.value is not None and record.lease != term.lease:
                await self._vacant(term, record.revision)
            elif record.value is not None:      # written by a try whose outcome was not known
                return Guard.created(self.key, record.created)
            else:
                try:
                    return Guard.created(self.key, await self._written(Record(self.key, self._value, lease=term.lease)))
                except Stale as stale:
                    if stale.key != self.key:       # the lease: its loss is about to be known
                        await asyncio.sleep(PAUSE)
        return None

    async def _written(self, record: Record) -> int:
        """The revision of a commit whose outcome is known even where this is cancelled: what resigns comes after it."""
        writing = asyncio.ensure_future(self._store.commit(record))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:
            with contextlib.suppress(Stale, Unavailable):
                await writing
            raise

    async def _vacant(self, term: Term, revision: int) -> None:
        """Return when the one who leads at a revision does no more, or the term is over."""
        async def gone() -> None:
            async with contextlib.aclosing(self._store.watch(self.key, revision)) as batches:
                async for batch in batches:
                    if batch.compacted or any(change.key == self.key and change.value is None for change in batch.records):
                        return

        await _first(gone(), term.over.wait())

    async def _hold(self, term: Term, work: Callable[[Guard], Awaitable[None]], fence: Guard) -> None:
        """Run the work while the lease is kept."""
        try:
            await _first(work(fence), term.over.wait())
        except Exception:
            log.exception("%s: the leader's work failed", self.key)

    async def _resign(self, term: Term) -> None:
        """Let another take over. The key must not stay while nobody does the work: this gives up with the lease alone."""
        while not term.over.is_set():
            try:
                record = await self._store.get(self.key)
                if record.value is not None and record.lease == term.lease:
                    await self._store.commit(Record(self.key, None, record.revision))
                return
            except Stale:
                continue
            except Unavailable as error:
                log.warning("%s: not resigned yet: %s", self.key, error)
                await asyncio.sleep(PAUSE)


async def _first(*awaitables: Awaitable[object]) -> None:
    """Return, or raise, when one of them has ended; the others are cancelled and waited for."""
    tasks = [asyncio.ensure_future(each) for each in awaitables]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
