"""How long the host's guests may run without a word from the control plane, and the epoch that they belong to.

Where servers are started elsewhere on their own, a host that is cut off has to stop them itself first: the control plane cannot
reach it. The lease counts from when the agent said what was acknowledged, never from when the acknowledgement arrived: so it
ends here before the control plane, which counts from its answer, thinks so (control/hosts/leases.py has the inequality). It is
kept in a file, for an agent that was killed to know, when it runs again, whether its guests still may; and on the clock that
counts on while the machine sleeps. Whoever is about to touch a guest asks `holds` first: a process may have been stopped for
minutes between any two of its lines.
"""
import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from protos.internal.v1.hosts_pb2 import Lease as Granted

log = logging.getLogger(__name__)

#: Names this run of the machine: after a reboot no guest is left of what a lease was for.
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

#: Seconds between two looks at the clock while a lease runs: the loop's own clock stands still while the machine sleeps.
LOOK_EVERY = 0.5


def boottime() -> float:
    """Seconds since the machine started, its sleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """The lease and the epoch of one host.

    Args:
      file: where they are kept; None: nowhere, as for hosts that live in this process alone.
    """

    def __init__(self, file: Path | None = None, now: Callable[[], float] = boottime):
        self.epoch = 0                              # that the host was readmitted with last
        self.granted_epoch = 0                      # that the control plane says it has
        self.lapses = 0                             # how often guests were stopped because it ran out
        self.bound = False                          # no guest runs without a lease
        self.seconds = 0.0                          # of the lease granted last
        self._file = file
        self._now = now
        self._until: float | None = None            # None: guests may run for ever
        self._said: dict[int, float] = {}           # number of what waits for an acknowledgement -> when it was said
        self._changed = asyncio.Event()
        self._read()

    # The clock

    def holds(self) -> bool:
        """Whether guests may run at this moment."""
        return self._until is None or self._now() < self._until

    async def lapse(self) -> None:
        """Return when the lease has run out."""
        while self.holds():
            self._changed.clear()
            left = None if self._until is None else max(0.0, min(LOOK_EVERY, self._until - self._now()))
            try:
                async with asyncio.timeout(left):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def wait(self) -> None:
        """Return when guests may run, or there are none any more."""
        while not self.holds():
            self._changed.clear()
            await self._changed.wait()

    def waiting(self) -> float:
        """For how many seconds the oldest of what was said has waited for its acknowledgement; 0 for nothing."""
        return self._now() - min(self._said.values()) if self._said else 0.0

    # What happens

    def attaching(self) -> None:
        """A new stream begins: what was said on the one before will not be acknowledged."""
        self._said.clear()

    def said(self, number: int) -> None:
        """Something is about to be said that will be acknowledged."""
        self._said[number] = self._now()

    def granted(self, lease: Granted) -> None:
        """An acknowledgement arrived. One of what was never said, or was acknowledged before, gives nothing."""
        said = self._said.get(lease.heartbeat)
        if said is None or not self.holds():
            return
        self._said = {number: at for number, at in self._said.items() if number > lease.heartbeat}
        self.seconds, self.granted_epoch = lease.seconds, lease.epoch
        before = self._until, self.bound
        self.bound = lease.seconds > 0
        self._until = max(self._until or 0.0, said + lease.seconds) if self.bound else None
        if (self._until, self.bound) != before:
            self._write()
            self._changed.set()

    def ended(self) -> None:
        """No guest runs any more: without one there is nothing to be held to."""
        self.lapses += 1
        self._until = None
        self._write()
        self._changed.set()

    def readmitted(self, epoch: int) -> None:
        """Nothing is left here of older epochs."""
        self.epoch = epoch
        self._write()

    # The file

    def _read(self) -> None:
        if self._file is None:
            return
        try:
            kept = json.loads(self._file.read_text())
            self.epoch, self.bound = int(kept["epoch"]), bool(kept["bound"])
            if kept["until"] is not None and kept["boot"] == _boot():
                self._until = float(kept["until"])
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            # A file that nobody can read may have said that the guests are to be off: so they are, before anything else.
            log.warning("%s is damaged (%s): guests are stopped until the control plane says otherwise", self._file, error)
            self._until, self.bound = 0.0, True

    def _write(self) -> None:
        if self._file is None:
            return
        part = self._file.with_name(self._file.name + ".part")
        part.write_text(json.dumps({"epoch": self.epoch, "bound": self.bound, "until": self._until, "boot": _boot()}))
        os.replace(part, self._file)


def _boot() -> str:
    return _BOOT_ID.read_text().strip()
