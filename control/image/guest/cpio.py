"""Archives as the Linux kernel unpacks them at boot ("newc"), the same bytes for the same content. See the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst."""
import stat
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or device: the kind is in the mode, as in a stat."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(mode: int = 0o755) -> Entry:
    return Entry(stat.S_IFDIR | mode)


def file(data: bytes, mode: int = 0o644) -> Entry:
    return Entry(stat.S_IFREG | mode, data)


def pack(entries: Mapping[str, Entry]) -> bytes:
    """The archive of entries by path; a directory must be among them before what is in it, which sorting by path gives."""
    archive = bytearray()
    for inode, (path, entry) in enumerate(sorted(entries.items()), 1):
        _append(archive, path, entry, inode)
    _append(archive, "TRAILER!!!", Entry(0), 0)
    return bytes(archive)


def _append(archive: bytearray, path: str, entry: Entry, inode: int) -> None:
    name = path.encode() + b"\0"
    links, owner, time = 1, 0, 0
    fields = (inode, entry.mode, owner, owner, links, time, len(entry.data), 0, 0, *entry.device, len(name), 0)
    archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
    archive += bytes(-len(archive) % 4)
    archive += entry.data
    archive += bytes(-len(archive) % 4)
