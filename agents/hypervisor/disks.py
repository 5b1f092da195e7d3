"""Root disks: a qcow2 overlay on the image's file, which many disks share and none writes to.

An image is somebody else's file: its header is read here, by hand, and never lets QEMU open another file of the host.
"""
import asyncio
import os
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from agents.hypervisor import command
from agents.hypervisor.driver import Fault

GIB = 1 << 30

#: Bytes that are read at a time, and sent.
CHUNK = 1 << 20

#: Bytes of a qcow2 header that are read, and the incompatible feature bit for an external data file.
_HEADER, _EXTERNAL_DATA = 104, 1 << 2


@dataclass(frozen=True, slots=True)
class Shape:
    """What a disk image says of itself."""

    virtual_size: int          # bytes


def shape(path: Path, disk_format: str) -> Shape:
    """Look at an image file. Raises a final Fault if it is not what it is said to be, or not safe to open."""
    match disk_format:
        case "raw" | "ami":
            return Shape(path.stat().st_size)
        case "qcow2":
            with path.open("rb") as file:
                return qcow2_shape(file.read(_HEADER))
    raise Fault(f"Images of the format {disk_format!r} cannot be booted on this host: convert to qcow2 or raw.", final=True)


def qcow2_shape(header: bytes) -> Shape:
    if len(header) < 72 or header[:4] != b"QFI\xfb":
        raise Fault("The image is said to be qcow2 and is not: create it again with its true --disk-format.", final=True)
    version, backing_offset, _, _, size, encryption = struct.unpack(">IQIIQI", header[4:36])
    features = struct.unpack(">Q", header[72:80])[0] if version >= 3 and len(header) >= 80 else 0
    if backing_offset or features & _EXTERNAL_DATA:
        raise Fault("The image refers to another file (a backing or data file): convert it with qemu-img to stand alone.",
                    final=True)
    if encryption:
        raise Fault("The image is encrypted, which this host cannot open: upload it decrypted.", final=True)
    return Shape(size)


def check_overlay(path: Path, base: str) -> None:
    """Look at a disk that another host sent. Raises a final Fault if it is not one of ours: on `base`, "" for none, and alone."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
        if len(header) < 72 or header[:4] != b"QFI\xfb":
            raise Fault("What came from the other host is no disk of a server.", final=True)
        offset, length = struct.unpack(">QI", header[8:20])
        features = struct.unpack(">Q", header[72:80])[0] if len(header) >= 80 else 0
        file.seek(offset)
        name = file.read(min(length, 1023)).decode("utf-8", "replace") if offset else ""
    if name != base or features & _EXTERNAL_DATA:
        raise Fault("The disk that came from the other host refers to a file that is not its image.", final=True)


def size_for(image: Shape | None, disk_gib: int) -> int:
    """Bytes of the root disk: disk_gib, or (0) the image's own size. Raises a final Fault if the image does not fit."""
    if image is None:
        return disk_gib * GIB
    if disk_gib and image.virtual_size > disk_gib * GIB:
        needed = -(-image.virtual_size // GIB)
        raise Fault(f"The image is {needed} GiB unpacked and the flavor's root disk {disk_gib} GiB: "
                    f"choose a flavor with at least {needed} GiB of disk.", final=True)
    return disk_gib * GIB or -(-image.virtual_size // 512) * 512


async def chunks_of(path: Path) -> AsyncIterator[bytes]:
    """A file's bytes."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while data := await asyncio.to_thread(file.read, CHUNK):
            yield data
    finally:
        await asyncio.to_thread(file.close)


async def write(path: Path, chunks: AsyncIterator[bytes], check: Callable[[Path], None]) -> bool:
    """Have a file of these bytes, checked and safe from a crash, or not at all; whether there were any. Zeros cost no space."""
    unfinished = path.with_name(path.name + ".part")
    file, size = await asyncio.to_thread(unfinished.open, "wb"), 0
    try:
        async for data in chunks:
            size += len(data)
            if data.count(0) == len(data):
                await asyncio.to_thread(file.seek, size)
            else:
                await asyncio.to_thread(file.write, data)
        await asyncio.to_thread(file.truncate, size)
        await asyncio.to_thread(file.flush)
        await asyncio.to_thread(os.fsync, file.fileno())
        if size:
            check(unfinished)
            unfinished.rename(path)
        return bool(size)
    finally:
        file.close()
        unfinished.unlink(missing_ok=True)


async def create_overlay(path: Path, size: int, base: Path | None, base_format: str) -> None:
    """Make an empty qcow2 of `size` bytes at `path`, on `base` if given (in the same directory); whole or not at all."""
    unfinished = path.with_name(path.name + ".part")
    # -u: the base is not opened, its size being known; and it is named without its directory, so that both can be moved.
    backing = ["-u", "-b", base.name, "-F", base_format] if base else []
    if error := await command.run("qemu-img", "create", "-q", "-f", "qcow2", *backing, str(unfinished), str(size)):
        raise Fault(f"The root disk could not be made: {error}")
    unfinished.rename(path)
