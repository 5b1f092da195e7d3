"""Renews a lease from a thread of its own: a lease says that its process lives, not that its event loop has time right now.

A loop that is busy with thousands of things at once must not lose what its replica holds, or each of them comes back as two. One
that does nothing at all any more must: what STALL says.
"""
import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

from control.kernel.errors import Unavailable

log = logging.getLogger(__name__)

#: Seconds between two signs of life of the loop, and without one after which its lease is renewed no more. A shorter STALL gives
#: up what a busy replica would have done soon; with a longer one a replica that hangs keeps others from its work for as long.
BEAT, STALL = 0.5, 10.0

#: Seconds before another try where nobody answered.
PAUSE = 0.1


class LeaseKeeper:
    """Keeps one lease while its block runs. Make it within the loop that it speaks for.

    Args:
      renew: renews a lease, from any thread; False when it has expired, Unavailable when nobody answers.
      every: seconds between two renewals.
      silence: seconds without an answer after which the lease counts as lost.
    """

    def __init__(self, renew: Callable[[int], bool], lease: int, *, every: float, silence: float):
        self.lost = asyncio.Event()
        self.asked = 0.0                # on the monotonic clock: when the last renewal that was granted was asked for
        self._renew = renew
        self._lease = lease
        self._every = every
        self._silence = silence
        self._loop = asyncio.get_running_loop()
        self._stopped = threading.Event()
        self._alive_at = time.monotonic()
        self._beating: asyncio.TimerHandle | None = None
        self._thread = threading.Thread(target=self._run, name=f"lease {lease}", daemon=True)

    def __enter__(self) -> "LeaseKeeper":
        self._beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()             # a renewal under way may end later; nobody waits for it
        if self._beating:
            self._beating.cancel()

    def _beat(self) -> None:
        self._alive_at = time.monotonic()
        self._beating = self._loop.call_later(BEAT, self._beat)

    # In the thread

    def _run(self) -> None:
        heard, pause = time.monotonic(), self._every
        while not self._stopped.wait(pause):
            asked = time.monotonic()
            if asked - self._alive_at > STALL:
                log.error("the event loop has done nothing for %.0f s: its lease is renewed no more", asked - self._alive_at)
                break
            try:
                if not self._renew(self._lease):
                    break
                self.asked, heard, pause = asked, time.monotonic(), self._every
            except Unavailable as error:
                if self._stopped.is_set():
                    return
                log.warning("a lease is not renewed: %s", error)
                pause = PAUSE
                if time.monotonic() - heard >= self._silence:
                    break
            except Exception:
                if self._stopped.is_set():
                    return
                log.exception("the renewal of a lease failed")
                break
        if not self._stopped.is_set():
            with contextlib.suppress(RuntimeError):         # the loop is closed: nobody is left to be told
                self._loop.call_soon_threadsafe(self.lost.set)
