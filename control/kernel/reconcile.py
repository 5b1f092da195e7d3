"""From changes to calls of reconcile(key): each key by one worker at a time, again after failure, all of them now and then.

A reconciler is given a key, never an event: it reads everything, compares, takes one step and is called again. So a
change that is missed costs a resync period and nothing else.
"""
import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from agents.telemetry import traces
from agents.telemetry.timing import Timings
from control.kernel.acting import Author, author
from control.kernel.cache import Cache, Change, Kind
from control.kernel.errors import Error

log = logging.getLogger(__name__)

#: Seconds. A failing key is tried again after 0.05, 0.1, 0.2 ... up to MAX_BACKOFF; a full pass is made each RESYNC.
#: A shorter RESYNC costs CPU when nothing happens, a longer one delays the repair of what no change announced.
FIRST_BACKOFF, MAX_BACKOFF, RESYNC = 0.05, 30.0, 60.0

#: Seconds that steps in progress have to end when a controller is cancelled. A step is a commit or two; what takes longer is
#: cut off, and whoever carries on sees how far it came.
FINISH_WITHIN = 0.3

#: Keys that a worker looks at before it lets others run. A full pass over 100,000 must hold nobody up.
IN_A_ROW = 20

#: The controllers that run in this process, for who counts what they do.
RUNNING: "dict[Controller, None]" = {}


class WorkQueue:
    """Keys to look at, each at most once in the queue and at most once in work."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[str | None] = asyncio.Queue()
        self._due: dict[str, float] = {}       # what the queue holds, oldest first, and since when
        self._working: set[str] = set()
        self._again: set[str] = set()          # added while in work
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._closed = False

    def add(self, key: str) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._working:
            self._again.add(key)
        elif key not in self._due:
            self._due[key] = time.monotonic()
            self._queue.put_nowait(key)

    @property
    def depth(self) -> int:
        """Keys that wait for a worker now."""
        return len(self._due)

    @property
    def age(self) -> float:
        """Seconds that the oldest of them has waited; 0 where none waits."""
        return time.monotonic() - next(iter(self._due.values())) if self._due else 0.0

    def add_later(self, key: str, seconds: float) -> None:
        """Add a key after a while, or sooner if something else adds it."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if self._closed or key in self._due or (timer and timer.when() <= loop.time() + seconds):
            return
        if timer:
            timer.cancel()
        self._timers[key] = loop.call_later(seconds, self._timed, key)

    def failed(self, key: str) -> None:
        """Add a key after its back-off, which doubles with each failure in a row."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(FIRST_BACKOFF * 2 ** min(failures - 1, 16), MAX_BACKOFF)
        self.add_later(key, delay * random.uniform(0.75, 1.25))  # noqa: S311 - spreads retries, no secret

    def succeeded(self, key: str) -> None:
        self._failures.pop(key, None)

    async def take(self) -> str | None:
        """The next key, None when the queue is closed; the caller says done() when it has worked on it."""
        key = await self._queue.get()
        if self._closed or key is None:
            self._queue.put_nowait(None)       # for the next who takes
            return None
        self._due.pop(key, None)
        self._working.add(key)
        return key

    def done(self, key: str) -> None:
        self._working.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Give out no more keys."""
        self._closed = True
        self._queue.put_nowait(None)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _timed(self, key: str) -> None:
        self._timers.pop(key, None)
        self.add(key)


class Controller:
    """Runs one reconciler over the keys that changes name.

    Args:
      name: for logs, "compute.servers".
      kinds: those whose changes matter.
      keys_of: the keys to look at after a change of one of them; quick, no I/O.
      all_keys: every key there is, for the first pass and each resync.
      reconcile: one step for one key. Returns None when reality agrees, else the seconds after which to be called
        again (0: at once). May raise: the key backs off.
      mine: whether a key is this controller's: those of a leader's shard.
    """

    def __init__(self, name: str, cache: Cache, *, kinds: Sequence[Kind], keys_of: Callable[[Change], Iterable[str]],
                 all_keys: Callable[[], Iterable[str]], reconcile: Callable[[str], Awaitable[float | None]],
                 mine: Callable[[str], bool] = lambda key: True, workers: int = 4, resync: float = RESYNC):
        self.name = name
        self._cache = cache
        self._kinds = tuple(kinds)
        self._keys_of = keys_of
        self._all_keys = all_keys
        self._reconcile = reconcile
        self._mine = mine
        self._workers = workers
        self._resync = resync
        self.queue = WorkQueue()
        #: Of single steps, by outcome: "ok", or an error's name.
        self.timings = Timings()

    async def run(self) -> None:
        """Reconcile until cancelled; steps in progress then have FINISH_WITHIN to end."""
        author.set(Author(f"reconciler:{self.name}"))       # of this task and of the workers that it starts
        await self._cache.ready.wait()
        queue = self.queue = WorkQueue()
        RUNNING[self] = None

        def on_change(change: Change) -> None:
            for key in self._keys_of(change):
                if self._mine(key):
                    queue.add(key)

        workers = [asyncio.create_task(self._work(queue)) for _ in range(self._workers)]
        with self._cache.listening(on_change, *self._kinds):
            try:
                while True:
                    for key in self._all_keys():
                        if self._mine(key):
                            queue.add(key)
                    await asyncio.sleep(self._resync)
            finally:
                queue.close()
                _, late = await asyncio.wait(workers, timeout=FINISH_WITHIN)
                for worker in late:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                RUNNING.pop(self, None)

    async def _work(self, queue: WorkQueue) -> None:
        taken = 0
        while (key := await queue.take()) is not None:
            taken += 1
            if taken % IN_A_ROW == 0:
                await asyncio.sleep(0)         # most keys are at rest, and none of the awaits here waits
            started, outcome = time.perf_counter(), "ok"
            try:
                if traces.tracer is not None:
                    with traces.span(f"reconcile {self.name}", key=key):
                        again = await self._reconcile(key)
                else:
                    again = await self._reconcile(key)
            except Error as error:
                outcome = type(error).__name__
                log.warning("%s %s: %s", self.name, key, error)
                queue.failed(key)
            except Exception as error:
                outcome = type(error).__name__
                log.exception("%s %s failed", self.name, key)
                queue.failed(key)
            else:
                queue.succeeded(key)
                if again is not None:
                    if again > 0:
                        queue.add_later(key, again)
                    else:
                        queue.add(key)
            finally:
                self.timings.add((outcome,), time.perf_counter() - started)
                queue.done(key)
