"""The data directory: image data in files that are complete and on disk, or absent.

A file is written as NAME.part under a lock that its writer holds until the image's record is committed, and gets its name
once it is checked and synced. A lock ends with its process, so `held` tells a running upload from one that died.
All of it happens in threads: no call here blocks the event loop.
"""
import asyncio
import errno
import fcntl
import hashlib
import logging
import os
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, TypeVar

from control.image import formats
from control.kernel.errors import Conflict, Invalid, NotFound, TooLarge
from protos.image.v1.records_pb2 import StoredData

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Bytes hashed and written in one go, and read in one go. Smaller costs thread switches, larger memory per transfer.
CHUNK = 1024 * 1024

#: Threads for all transfers of a process: hashing keeps a core busy, more of them only queue for the disk.
THREADS = 4


class Directory:
    """One directory of image data, with an id of its own that records name."""

    def __init__(self, path: Path):
        """Use a directory, made here with its id if it is new. Raises OSError."""
        self.path = path
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        marker = path / "directory-id"
        if not marker.exists():
            fresh = path / f"directory-id.{os.getpid()}"
            fresh.write_text(f"{uuid.uuid4()}\n")
            fresh.replace(marker)
        self.id = marker.read_text().strip()
        self._threads = ThreadPoolExecutor(THREADS, "images")

    async def begin(self, name: str) -> "Incoming":
        """Open and lock a new file. Raises TooLarge where the disk has no room even for that."""
        return await self._run(lambda: Incoming(self.path / name, self._run))

    async def remove(self, name: str) -> None:
        """Delete a file, complete or not; nothing where there is none."""
        def unlink() -> None:
            # in this order: an upload that gives the file its name meanwhile fails, or did it before the second
            (self.path / f"{name}.part").unlink(missing_ok=True)
            (self.path / name).unlink(missing_ok=True)
        await self._run(unlink)

    async def has(self, name: str) -> bool:
        """Whether a complete file is here."""
        return await self._run((self.path / name).is_file)

    async def held(self, name: str) -> bool:
        """Whether a running upload, of any process, has this file."""
        # in this order: a file loses its suffix while it is held
        return await self._run(lambda: any(_locked(path) for path in (self.path / f"{name}.part", self.path / name)))

    async def names(self) -> set[str]:
        """Every complete file."""
        def listed() -> set[str]:
            return {path.name for path in self.path.iterdir() if path.is_file() and not path.name.endswith(".part")
                    and not path.name.startswith("directory-id")}
        return await self._run(listed)

    async def sweep(self) -> None:
        """Delete the beginnings that no process holds: what was cut off before a record named it."""
        def unlink() -> None:
            for part in self.path.glob("*.part"):
                if not _locked(part):
                    part.unlink(missing_ok=True)
                    log.info("image data %s: deleted what an interrupted upload left", part.name)
        await self._run(unlink)

    async def free(self) -> int:
        """Bytes that can be written."""
        def available() -> int:
            stat = os.statvfs(self.path)
            return stat.f_bavail * stat.f_frsize
        return await self._run(available)

    async def read(self, name: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """A file's bytes from `start`, `length` of them or all, in chunks; a file that is deleted meanwhile is read to its end.

        Raises NotFound where the directory has no such file.
        """
        try:
            file: BinaryIO = await self._run((self.path / name).open, "rb", 0)
        except FileNotFoundError as error:
            raise NotFound("image.data.missing", "The image's data is not in this replica's directory.") from error
        with file:
            end = os.fstat(file.fileno()).st_size if length is None else start + length
            while start < end:
                data = await self._run(_read_at, file, min(CHUNK, end - start), start)
                if not data:
                    return
                start += len(data)
                yield data

    async def _run(self, work: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)


class Incoming:
    """One file that is being received. Its owner ends it by close(), whatever happens."""

    def __init__(self, path: Path, run: Callable):
        self._path, self._part = path, path.with_name(path.name + ".part")
        self._run = run
        with _disk_errors():
            self._file: BinaryIO = self._part.open("wb", 0)
        fcntl.flock(self._file, fcntl.LOCK_EX)    # at most for the moment that somebody looks whether it is held
        self._gate = threading.Lock()             # a cancelled call leaves its thread running: close() waits for it
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha512 = hashlib.sha512()
        self._head = self._tail = b""
        self._size = 0
        self._checked = False

    async def receive(self, chunks: AsyncIterator[bytes], *, disk_format: str, limit: int, expected: int | None,
                      sha512: str = "") -> StoredData:
        """Write all chunks, check what they are, and give the file its name; what it holds.

        Args:
          disk_format: what the data is to be; "" where it is not to be inspected.
          limit: bytes at most.
          expected: bytes that must come, where known.
          sha512: their hash in hexadecimal, where known.

        Raises:
          Invalid: not that many bytes, or other data than declared.
          TooLarge: over the limit, or no room on the disk.
        """
        buffer, total = bytearray(), 0
        writing: asyncio.Future[None] | None = None
        async for data in chunks:
            total += len(data)
            if total > limit:
                raise TooLarge("image.data.limit", f"The image data is over the limit of {limit} bytes.")
            buffer += data
            if len(buffer) >= CHUNK:
                if writing is not None:
                    await writing
                # the next chunk arrives while this one is hashed
                writing = asyncio.ensure_future(self._run(self._absorb, bytes(buffer), disk_format))
                writing.add_done_callback(lambda done: done.cancelled() or done.exception())   # else logged where nobody awaits
                buffer.clear()
        if writing is not None:
            await writing
        if expected is not None and total != expected:
            raise Invalid("image.data.size", f"{total} bytes of image data came, {expected} were announced: upload it again.")
        return await self._run(self._finish, bytes(buffer), disk_format, sha512)

    async def close(self) -> None:
        """Let go of the file and its lock; what is written stays. Safe to repeat."""
        await self._run(self._close)

    def _absorb(self, data: bytes, disk_format: str) -> None:
        with self._gate, _disk_errors():
            if self._file.closed:
                return
            view = memoryview(data)
            while view:
                view = view[self._file.write(view):]
            self._md5.update(data)
            self._sha512.update(data)
        self._size += len(data)
        self._tail = (self._tail + data[-formats.TAIL:])[-formats.TAIL:]
        if not self._checked:
            self._head += data[:formats.HEAD - len(self._head)]
            if len(self._head) == formats.HEAD:
                self._check(disk_format)

    def _check(self, disk_format: str) -> None:
        if disk_format and not self._checked:
            formats.check(self._head, disk_format)
        self._checked = True

    def _finish(self, rest: bytes, disk_format: str, sha512: str) -> StoredData:
        self._absorb(rest, disk_format)
        self._check(disk_format)
        if sha512 and sha512 != self._sha512.hexdigest():
            raise Invalid("image.data.hash", f"The data has the SHA-512 {self._sha512.hexdigest()[:16]}..., not {sha512[:16]}...")
        stored = StoredData(size=self._size, md5=self._md5.hexdigest(), sha512=self._sha512.hexdigest())
        if disk_format:
            seen = formats.virtual_size(self._head, self._tail, self._size, disk_format)
            if seen is not None:
                stored.virtual_size = min(seen, 2**63 - 1)
        with self._gate, _disk_errors():
            os.fsync(self._file.fileno())
            try:
                self._part.rename(self._path)
            except FileNotFoundError as error:
                raise Conflict("image.data.deleted", "The image was deleted during the upload.") from error
            parent = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
        return stored

    def _close(self) -> None:
        with self._gate:
            self._file.close()


def _read_at(file: BinaryIO, length: int, start: int) -> bytes:
    return os.pread(file.fileno(), length, start)


def _locked(path: Path) -> bool:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False


class _disk_errors:
    """A full disk as an error that the caller understands."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise TooLarge("image.data.full", "There is no room for the image data: the disk that keeps images is full. "
                                              "Delete images, or ask the operator for more.") from error
