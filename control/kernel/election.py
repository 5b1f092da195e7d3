"""Who does a job that one replica at a time should do.

Leadership saves work and gives no exclusion: a leader that was cut off may believe in itself for a moment longer. What
makes it harmless is the fence, a guard on the election key's creation, in every commit that a leader makes as leader.
"""
import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from control.kernel.errors import Stale, Unavailable
from control.kernel.store import Guard, Record, Store

log = logging.getLogger(__name__)

#: Seconds before a candidate tries again after the store or its own work failed.
PAUSE = 0.5


class Election:
    """One candidate for one job.

    Args:
      name: the job; the same for all candidates.
      identity: who this is, for whoever looks at the key: host name and process id.
      ttl: seconds for which a leader that vanished is still the leader. Etcd gives no less than 2. Shorter costs a
        renewal of the lease every third of it, and a hand-over whenever a replica stalls for that long.
    """

    def __init__(self, store: Store, name: str, identity: str, ttl: int = 3):
        self.key = f"/election/{name}"
        self._store = store
        self._identity = identity
        self._ttl = ttl

    async def lead(self, work: Callable[[Guard], Awaitable[None]]) -> None:
        """For ever: become the leader, run `work` with the fence until it ends or the lease is lost, begin again.

        When cancelled it ends the work first and then resigns, so that another takes over at once.
        """
        while True:
            try:
                lease, fence = await self._campaign()
            except Unavailable as error:
                log.warning("election %s: %s", self.key, error)
                await asyncio.sleep(PAUSE)
                continue
            log.info("election %s: %s leads from revision %d", self.key, self._identity, fence.revision)
            try:
                await self._hold(lease, work, fence)
            finally:
                await self._resign(lease)
            log.warning("election %s: %s leads no more", self.key, self._identity)
            await asyncio.sleep(PAUSE)

    async def leader(self) -> str:
        """The identity of who leads now; "" for nobody."""
        return ((await self._store.get(self.key)).value or b"").decode()

    async def _campaign(self) -> tuple[int, Guard]:
        """The lease and the fence, once this candidate leads."""
        while True:
            await self._vacant()
            lease = await self._store.grant(self._ttl)
            try:
                revision = await self._store.commit(Record(self.key, self._identity.encode(), lease=lease))
            except Stale:
                await self._store.revoke(lease)
            except BaseException:
                await self._resign(lease)       # the key may be ours without our knowing
                raise
            else:
                return lease, Guard.created(self.key, revision)

    async def _vacant(self) -> None:
        """Return when nobody leads."""
        while (record := await self._store.get(self.key)).value is not None:
            async with contextlib.aclosing(self._store.watch(self.key, record.revision)) as batches:
                async for batch in batches:
                    if any(change.key == self.key and change.value is None for change in batch.records):
                        break

    async def _hold(self, lease: int, work: Callable[[Guard], Awaitable[None]], fence: Guard) -> None:
        """Run the work while the lease is kept."""
        task = asyncio.ensure_future(work(fence))
        keeper = asyncio.ensure_future(self._keep(lease))
        try:
            await asyncio.wait({task, keeper}, return_when=asyncio.FIRST_COMPLETED)
            if task.done() and not task.cancelled() and (error := task.exception()):
                log.error("election %s: the leader's work failed", self.key, exc_info=error)
        finally:
            for each in (task, keeper):
                each.cancel()
            await asyncio.gather(task, keeper, return_exceptions=True)

    async def _keep(self, lease: int) -> None:
        """Return when the lease is lost, or may be by the time that the next renewal could be known to have failed."""
        loop = asyncio.get_running_loop()
        lost_at = loop.time() + self._ttl
        while True:
            await asyncio.sleep(self._ttl / 3)
            asked = loop.time()
            try:
                async with asyncio.timeout_at(lost_at):
                    if not await self._store.keep_alive(lease):
                        return
            except TimeoutError:
                return
            except Unavailable as error:
                log.warning("election %s: %s", self.key, error)
            else:
                lost_at = asked + self._ttl

    async def _resign(self, lease: int) -> None:
        """Let another take over; where that fails the lease ends by itself."""
        revoking = asyncio.ensure_future(self._store.revoke(lease))
        try:
            await asyncio.shield(revoking)
        except Unavailable as error:
            log.info("election %s: not resigned, the lease ends by itself: %s", self.key, error)
        except asyncio.CancelledError:
            with contextlib.suppress(Unavailable):
                await revoking
            raise
