"""Whether a replica serves: its state is read in, the store answers, and reads show what it says."""
import asyncio
import time
from collections.abc import Sequence

from control.kernel.database import Database
from control.kernel.errors import Unavailable

#: Seconds that the store has to answer, and this replica to have seen what it answers.
PATIENCE = 2.0

#: Seconds that a finding is good for: anybody may ask, and the store is asked no more often.
GOOD_FOR = 1.0


class Readiness:
    """What keeps a replica from serving now, in words; nothing: it serves."""

    def __init__(self, database: Database):
        self._database = database
        self._asking = asyncio.Lock()
        self._found: Sequence[str] = ()
        self._until = 0.0

    async def __call__(self) -> Sequence[str]:
        if not self._database.cache.ready.is_set():
            return ["the state is being read in"]
        async with self._asking:
            if time.monotonic() >= self._until:
                self._found = await self._look()
                self._until = time.monotonic() + GOOD_FOR
            return self._found

    async def _look(self) -> Sequence[str]:
        cache = self._database.cache
        try:
            async with asyncio.timeout(PATIENCE):
                revision = await self._database.newest()
        except (TimeoutError, Unavailable):
            return ["the store does not answer"]
        try:
            await cache.wait(revision, PATIENCE)
        except Unavailable:
            return [f"{revision - cache.revision} revisions behind the store"]
        return []
