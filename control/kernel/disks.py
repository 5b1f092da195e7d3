"""The room on the file systems that a cloud writes to: who runs it is told before one is full."""
import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

#: A file system is low on space when less than this is free: a share of it, and at most so many bytes.
LOW_SHARE, LOW_BYTES = 0.1, 10 << 30
#: Seconds between two looks.
EVERY = 30.0


@dataclass(frozen=True, slots=True)
class Disk:
    """One file system, by a path on it; in bytes."""

    path: Path
    total: int
    free: int

    @property
    def low(self) -> bool:
        return self.free < min(self.total * LOW_SHARE, LOW_BYTES)


def look(paths: Sequence[Path]) -> list[Disk]:
    """The file systems that some paths are on, each once; paths that are not there are passed over."""
    found: dict[int, Disk] = {}
    for path in paths:
        try:
            device, stat = path.stat().st_dev, os.statvfs(path)
        except OSError:
            continue
        found.setdefault(device, Disk(path, stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
    return list(found.values())


async def watch(paths: Sequence[Path]) -> None:
    """Tell operators when a file system gets low on space, and when it has room again; until cancelled."""
    told: set[Path] = set()
    while True:
        for disk in await asyncio.to_thread(look, paths):
            if disk.low and disk.path not in told:
                told.add(disk.path)
                log.warning("%s: %d MiB of %d MiB are free. When it is full the cloud changes nothing any more: make room",
                            disk.path, disk.free >> 20, disk.total >> 20)
            elif not disk.low and disk.path in told:
                told.discard(disk.path)
                log.info("%s: %d MiB of %d MiB are free again", disk.path, disk.free >> 20, disk.total >> 20)
        await asyncio.sleep(EVERY)
