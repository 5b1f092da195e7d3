"""Makes a cloud of a backup again: files first, checked and put in place whole; the state when an etcd is there to take it.

Between the two the state lies in restore/ of the state directory, and `brume up` loads it before anything else is started;
so a restored cloud may have another number of replicas, or of members of etcd, than the one that was backed up.
"""
import json
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from control.backup import archive
from control.backup.archive import MANIFEST, Progress
from control.backup.state import load
from control.kernel import etcd_server
from control.kernel.config import Config, write_private
from control.kernel.errors import Conflict
from control.kernel.etcd_store import EtcdStore

#: What of a state directory is the control plane's; the rest is the host's (disks and domains of servers), or logs and the
#: audit journal, which go on.
OURS = ("etcd*", "images", "pki", "restore", "replica-*", "*.json", "*.password", "*.yaml", "openrc", "seeded")

PENDING = "restore"

#: Seconds that etcd has to get ready.
READY_WITHIN = 60.0


def occupied(state_dir: Path) -> list[Path]:
    """What a control plane has in a state directory."""
    return sorted({path for pattern in OURS for path in state_dir.glob(pattern)})


def unpack(path: Path, secret: bytes | None, state_dir: Path, *, replace: bool = False,
           progress: Progress = lambda size: None) -> tuple[dict[str, Any], Path | None]:
    """Put a backup's files into a state directory and its state beside them, to be loaded; (manifest, where the old one is).

    Raises Invalid where the backup is not whole, before anything is touched; Conflict where the directory has a control plane
    and `replace` is not set. What is replaced is kept in a directory of its own.
    """
    manifest = archive.verify(path, secret, progress)
    there = occupied(state_dir)
    if there and not replace:
        raise Conflict("restore.state", f"{state_dir} has a cloud already ({there[0].name} and more): restore into an empty "
                                        "directory, or give --replace, which keeps the old one aside")
    state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    part = state_dir / ".restore.part"
    shutil.rmtree(part, ignore_errors=True)
    (part / PENDING).mkdir(mode=0o700, parents=True)
    for name, content in archive.reading(path, secret, progress):
        kind, _, rest = name.partition("/")
        if kind == "files":
            _write(part / rest, content)
        elif kind == "images":
            _write(part / "images" / rest, content)
        elif kind == "state":
            _write(part / PENDING / rest, content)
    # The time is kept: a load that is begun again makes the same of every record.
    write_private(part / PENDING / MANIFEST, json.dumps({**manifest, "restored_at_ms": time.time_ns() // 1_000_000}).encode())
    aside = _put_aside(state_dir, there) if there else None
    for made in sorted(part.iterdir(), key=lambda made: made.name == PENDING):        # what says that there is one comes last
        os.replace(made, state_dir / made.name)
    part.rmdir()
    return manifest, aside


def pending(config: Config) -> dict[str, Any] | None:
    """The manifest of a restore whose state is not loaded yet."""
    path = config.path(PENDING, MANIFEST)
    return json.loads(path.read_bytes()) if path.exists() else None


async def load_pending(config: Config) -> dict[str, int]:
    """Load the state that waits into the running etcd; how many records of each kind. Safe to repeat."""
    manifest = pending(config)
    if manifest is None:
        return {}
    credentials = etcd_server.client_credentials(config.pki_dir)
    # Of a cluster of our own, the member that founds it anew alone: others may still be of the one that was before.
    endpoints = config.etcd or config.etcd_endpoints[:1]
    await etcd_server.wait_ready(endpoints, credentials, READY_WITHIN)
    store = EtcdStore(endpoints, credentials)
    try:
        counts = await load(store, _chunks(config.path(PENDING)), manifest["restored_at_ms"], manifest["image_directory"])
    finally:
        await store.close()
    write_private(config.path("restored.json"), json.dumps({
        "made_at": manifest["made_at"], "revision": manifest["revision"], "records": counts,
        "restored_at": datetime.now(UTC).isoformat(timespec="seconds"), "audit": manifest["audit"]}).encode())
    shutil.rmtree(config.path(PENDING))
    return counts


def _chunks(directory: Path) -> Iterator[bytes]:
    for path in sorted(directory.iterdir()):
        if path.name != MANIFEST:
            yield path.read_bytes()


def _put_aside(state_dir: Path, there: list[Path]) -> Path:
    aside = state_dir / f"replaced-{datetime.now(UTC).strftime('%Y%m%dT%H%M%SZ')}"
    number = 0
    while aside.exists():
        number += 1
        aside = aside.with_name(f"{aside.name.partition('.')[0]}.{number}")
    aside.mkdir(mode=0o700)
    for path in there:
        os.replace(path, aside / path.name)
    journal = aside / "replica-1" / "audit"      # of the first of several replicas here: it goes on as this machine's
    if journal.exists() and not (state_dir / "audit").exists():
        os.replace(journal, state_dir / "audit")
    return aside


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file, archive.CHUNK)
        file.flush()
        os.fsync(file.fileno())
