"""Keys to work on: each by one worker at a time, several keys at once, again after failure.

A key that is added while it is worked on is worked on once more afterwards, so no change is missed and none is done twice.
"""
import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection

log = logging.getLogger(__name__)

#: Seconds: a key that fails is tried again after FIRST_BACKOFF, twice that, and so on up to MAX_BACKOFF. A shorter maximum
#: keeps a broken host busy, a longer one lets a mended one wait.
FIRST_BACKOFF, MAX_BACKOFF = 0.25, 30.0


class Worklist:
    """Runs work(key) for keys that are added.

    Args:
      work: one step for one key; may be cancelled and called again at any time. Returns None when there is nothing more to
        do, else the seconds after which it is to be called again. May raise: the key backs off.
      expected: exceptions that are logged without a trace.
    """

    def __init__(self, work: Callable[[str], Awaitable[float | None]], at_once: int = 4,
                 expected: tuple[type[Exception], ...] = ()):
        self._work = work
        self._expected = expected
        self._slots = asyncio.Semaphore(at_once)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._closed = False

    @property
    def depth(self) -> int:
        """Keys that are worked on, or wait for it."""
        return len(self._tasks) + len(self._timers)

    def add(self, key: str) -> None:
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._tasks:
            self._again.add(key)
        elif not self._closed:
            self._tasks[key] = asyncio.create_task(self._run(key))

    def restart(self, key: str) -> None:
        """Add a key whose work so far is out of date: what is being done for it is cancelled, and failures are forgotten."""
        self._failures.pop(key, None)
        self.add(key)
        if key in self._again:
            self._tasks[key].cancel()

    def add_later(self, key: str, seconds: float) -> None:
        """Add a key after a while, or sooner if something else adds it."""
        if key not in self._timers and key not in self._again and not self._closed:
            self._timers[key] = asyncio.get_running_loop().call_later(seconds, self.add, key)

    def failures(self, key: str) -> int:
        """How often a key failed in a row, not counting what runs now."""
        return self._failures.get(key, 0)

    @property
    def idle(self) -> bool:
        """Whether no key is being worked on or waits to be."""
        return not self._tasks and not self._timers

    async def close(self) -> None:
        """Stop what runs, and start nothing more."""
        self._closed = True
        await self.drop()

    async def drop(self, unless: Collection[str] = ()) -> None:
        """Stop what runs, and forget every key but these."""
        for key in self._timers.keys() - unless:
            self._timers.pop(key).cancel()
        self._again &= set(unless)
        tasks = [task for key, task in self._tasks.items() if key not in unless]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: str) -> None:
        later: float | None = None
        try:
            async with self._slots:
                self._again.discard(key)
                later = await self._work(key)
            self._failures.pop(key, None)
        except asyncio.CancelledError:
            if key not in self._again:
                raise
        except Exception as error:
            later = self._failed(key, error)
        finally:
            del self._tasks[key]
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        elif later is not None:
            self.add_later(key, later)

    def _failed(self, key: str, error: Exception) -> float:
        """Count a failure; the seconds to wait."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(FIRST_BACKOFF * 2 ** min(failures - 1, 16), MAX_BACKOFF)
        log.warning("%s: %s; again in %.1f s", key, error, delay, exc_info=not isinstance(error, self._expected))
        return delay * random.uniform(0.75, 1.25)  # noqa: S311 - spreads retries, no secret
