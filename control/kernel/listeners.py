"""Who listens on a port of this machine, for messages that say whom to stop."""
import contextlib
from pathlib import Path


def owner(port: int) -> str:
    """The process that listens on a TCP port, as "pid N (name)"; "" where that cannot be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A" and int(columns[1].rsplit(":", 1)[1], 16) == port:
                    inodes.add(f"socket:[{columns[9]}]")
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        with contextlib.suppress(OSError):
            if str(descriptor.readlink()) in inodes:
                process = descriptor.parts[2]
                return f"pid {process} ({Path('/proc', process, 'comm').read_text().strip()})"
    return ""
