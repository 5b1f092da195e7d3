"""Console logs as files that a guest writes to without end: what is kept of them, and their last lines; no more I/O than that."""
import os
from pathlib import Path

from agents.hypervisor.domain_xml import Files

#: Bytes at which a log is cut, and how many of its last ones stay. A guest that writes faster than the log is looked at has
#: more for that long.
CUT_AT, KEPT = 1 << 20, 256 << 10

#: Seconds between two looks at every log.
LOOK_EVERY = 10.0


def cap(files: Files) -> None:
    """Cut a log that has grown too long. QEMU appends, so it goes on at the new end."""
    try:
        size = files.console.stat().st_size
    except FileNotFoundError:
        return
    if size > CUT_AT:
        files.console_before.write_bytes(_last_bytes(files.console, KEPT))
        os.truncate(files.console, 0)


def last_lines(files: Files, lines: int) -> bytes:
    """The last lines (0: all that is kept), beginning with a whole character."""
    text = _last_bytes(files.console_before, KEPT) + _last_bytes(files.console, CUT_AT)
    if lines > 0:
        at = len(text.removesuffix(b"\n"))
        for _ in range(lines):
            at = text.rfind(b"\n", 0, at)
            if at < 0:
                break
        text = text[at + 1:]
    begin = 0
    while begin < min(4, len(text)) and text[begin] & 0xC0 == 0x80:
        begin += 1
    return text[begin:]


def _last_bytes(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - count))
            return file.read(count)
    except FileNotFoundError:
        return b""
