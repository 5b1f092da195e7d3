"""The journal's files: lines that are appended, synced and chained by hashes, and never changed.

A write is on disk whole or not at all: what a crash or a full disk left of one is cut off again. Files are 0600, named by the
number of their first entry; the first line of each names the hash that the file before it ended with.
"""
import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson

log = logging.getLogger(__name__)

#: Bytes after which a file is followed by another. Smaller: more files; larger: retention gives space back in larger pieces.
MAX_FILE = 64 * 2**20

#: What the hash of the first entry is chained to.
FIRST = "0" * 64

_HASH = b',"hash":"'


class Line(NamedTuple):
    """One line taken apart."""

    body: bytes              # without the hash
    hash: str


def hash_of(previous: str, body: bytes) -> str:
    """The hash that ends a line."""
    return hashlib.sha256(previous.encode() + body).hexdigest()


def split(line: bytes) -> Line:
    """A line without its newline. Raises ValueError where it is none of a journal."""
    body, mark, rest = line[:-75], line[-75:-66], line[-66:]
    if mark != _HASH or rest[-2:] != b'"}':
        raise ValueError("the line does not end with a hash")
    return Line(body + b"}", rest[:-2].decode("ascii", "replace"))


def files(directory: Path) -> list[Path]:
    """A journal's files, oldest first."""
    return sorted(directory.glob("audit-*.jsonl"))


class Chain:
    """The end of a journal, to be appended to by one process at a time."""

    def __init__(self, directory: Path, max_file: int = MAX_FILE):
        """Open a journal, or begin one. Raises OSError.

        Where somebody damaged its end it goes on in a new file, after the last line that is whole; the damage stays to be seen.
        """
        self._directory = directory
        self._max_file = max_file
        self.head = FIRST
        self.sequence = 0                          # of the next entry
        self.last: dict[str, Any] | None = None    # the last entry that is no "file"
        self._descriptor = -1
        self._size = 0
        self._day = ""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._recover()

    def append(self, entries: Sequence[dict[str, Any]], day: str) -> None:
        """Write entries and sync them. `day`: "2026-01-31"; another one begins another file.

        Raises OSError; then nothing of them is in the journal, and the same may be tried again.
        """
        if self._descriptor < 0 or self._size >= self._max_file or (day != self._day and self._size):
            self._begin(day)
        lines, head, sequence = [], self.head, self.sequence
        for entry in entries:
            body = orjson.dumps({"sequence": sequence, **entry})
            head = hash_of(head, body)
            lines.append(body[:-1] + _HASH + head.encode() + b'"}\n')
            sequence += 1
        self._write(b"".join(lines))
        self.head, self.sequence = head, sequence
        for entry in entries:
            if entry["type"] != "file":
                self.last = entry

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def prune(self, before: float) -> list[Path]:
        """Delete the files, but never the last, that were written last before a time (seconds since 1970)."""
        old = [path for path in files(self._directory)[:-1] if path.stat().st_mtime < before]
        for path in old:
            path.unlink()
        return old

    def _begin(self, day: str) -> None:
        self.close()
        path = self._directory / f"audit-{self.sequence:012d}.jsonl"
        while path.exists():                       # of this journal, and damaged: nothing is ever overwritten
            path = path.with_name(f"{path.stem}~.jsonl")
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size, self._day = 0, day
        body = orjson.dumps({"sequence": self.sequence, "type": "file", "day": day, "previous": self.head})
        head = hash_of(self.head, body)
        try:
            self._write(body[:-1] + _HASH + head.encode() + b'"}\n')
            _sync_directory(self._directory)
        except OSError:
            self.close()
            with contextlib.suppress(OSError):
                path.unlink()
            raise
        self.head, self.sequence = head, self.sequence + 1

    def _write(self, data: bytes) -> None:
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            os.fdatasync(self._descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)

    def _recover(self) -> None:
        """Find the end; cut off what a crash left of a last line, and a last file without a whole line."""
        while found := files(self._directory):
            path = found[-1]
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            if whole < len(data):
                os.ftruncate(self._descriptor, whole)
            if whole:
                break
            self.close()
            path.unlink()
        else:
            return
        self._size = whole
        damaged = newest = True
        for entry in _backwards(found):
            if newest:
                self.head, self.sequence = entry["hash"], entry["sequence"] + 1
                damaged, newest = entry["line"] != data[data.rfind(b"\n", 0, whole - 1) + 1:whole - 1], False
                self._day = entry.get("day", "") or next((other["day"] for other in _backwards(found) if "day" in other), "")
            if entry["type"] != "file":
                self.last = entry
                break
        if damaged:
            log.error("%s ends with what is no entry: `brume audit verify` shows the damage; it goes on in a new file", path)
            self.close()


def _backwards(found: list[Path]) -> Iterator[dict[str, Any]]:
    """Entries that are whole, newest first, each with its own `line`."""
    for path in reversed(found):
        for line in reversed(path.read_bytes().splitlines()):
            try:
                split(line)
                entry = orjson.loads(line)
                if entry["type"] and entry["sequence"] >= 0:
                    yield {**entry, "line": line}
            except (ValueError, KeyError, TypeError):
                continue


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
