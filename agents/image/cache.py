"""Images on this host: each fetched once, checked, and hard-linked into the directories of the servers made from it.

A file in the cache is whole and right: bytes arrive in a .part, which is hashed and renamed or thrown away. Since servers
hold links, taking an image out of the cache takes nothing from them; and one that they hold costs no space in it.
"""
import asyncio
import hashlib
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from agents.hypervisor.driver import Fault
from protos.internal.v1.hosts_pb2 import BootImage

log = logging.getLogger(__name__)

#: Bytes of an image, by its sha512, from the control plane. Raises Fault.
Fetch = Callable[[str], AsyncIterator[bytes]]

#: Bytes that images which no server uses may take. Less means to fetch again what comes back, more means less disk for servers.
LIMIT = 20 << 30

#: How often the bytes may be wrong in a row before trying again is thought to be no use.
TRIES = 3

_SHA512 = re.compile(r"[0-9a-f]{128}")


class ImageCache:
    """driver.Images: files by SHA-512 in one directory."""

    def __init__(self, directory: Path, fetch: Fetch, limit: int = LIMIT):
        self._directory = directory
        self._fetch = fetch
        self._limit = limit
        self._running: dict[str, asyncio.Task[None]] = {}

    async def place(self, image: BootImage, path: Path) -> None:
        if not _SHA512.fullmatch(image.sha512):
            raise Fault(f"The image {image.id} has no SHA-512 to check it against: upload it again.", final=True)
        file = self._directory / image.sha512
        # Twice: between a fetch and the link, another server's fetch may have made room by taking it out again.
        for _ in range(2):
            if not file.exists():
                await self._fetched(image)
            try:
                os.link(file, path)
                os.utime(file)         # used now; see _trim
                return
            except FileExistsError:
                return
            except FileNotFoundError:
                if not path.parent.is_dir():
                    raise
        raise Fault(f"The image {image.id} does not stay in this host's cache: its disk may be full.")

    async def _fetched(self, image: BootImage) -> None:
        """Have the image in the cache; those who ask at the same time share one fetch, which goes on when one of them leaves."""
        task = self._running.get(image.sha512)
        if task is None:
            task = self._running[image.sha512] = asyncio.create_task(self._pull(image))
            task.add_done_callback(lambda done: (self._running.pop(image.sha512, None), done.cancelled() or done.exception()))
        await asyncio.shield(task)

    async def _pull(self, image: BootImage) -> None:
        await asyncio.to_thread(self._trim, image.size)
        began = time.monotonic()
        for attempt in range(1, TRIES + 1):
            size, digest = await self._write(image)
            if digest == image.sha512:
                log.info("image %s: %d MiB in %.1f s", image.id, size >> 20, time.monotonic() - began)
                return
            log.warning("image %s: try %d gave %d of %d bytes with another SHA-512", image.id, attempt, size, image.size)
        raise Fault(f"The image {image.id} arrived {TRIES} times with another content than was uploaded: its stored data is "
                    "damaged. Upload it again.", final=True)

    async def _write(self, image: BootImage) -> tuple[int, str]:
        """Fetch once; how many bytes came, and their SHA-512. Renamed into place if that is right, gone if not."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        part = self._directory / f"{image.sha512}.part"
        digest, size = hashlib.sha512(), 0
        try:
            with part.open("wb") as file:
                async for data in self._fetch(image.sha512):
                    size += len(data)
                    if image.size and size > image.size:
                        break
                    await asyncio.to_thread(_append, file, digest, data)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
            if digest.hexdigest() == image.sha512:
                part.chmod(0o444)
                part.rename(self._directory / image.sha512)
        except OSError as error:
            raise Fault(f"The image {image.id} could not be kept on this host: {error.strerror}.") from error
        finally:
            part.unlink(missing_ok=True)
        return size, digest.hexdigest()

    def _trim(self, coming: int) -> None:
        """Make room for bytes to come: take out what no server uses, the longest unused first."""
        unused = []
        for file in self._directory.glob("*"):
            status = file.stat()
            if status.st_nlink == 1 and _SHA512.fullmatch(file.name):
                unused.append((status.st_mtime, status.st_size, file))
        total = sum(size for _, size, _ in unused) + coming
        for _, size, file in sorted(unused):
            if total <= self._limit:
                break
            log.info("image %s...: out of the cache", file.name[:12])
            file.unlink(missing_ok=True)
            total -= size


def _append(file: Any, digest: Any, data: bytes) -> None:
    file.write(data)
    digest.update(data)
