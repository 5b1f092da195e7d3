"""Makes a backup of a cloud: of its state through etcd, of image data and files from the state directory of this machine."""
import contextlib
import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from control.audit.journal import state as journal_state
from control.backup import archive
from control.backup.state import dump, kind_of, pack
from control.image.model import IMAGE
from control.kernel import etcd_server
from control.kernel.config import Config
from control.kernel.errors import Invalid
from control.kernel.etcd_client import rpc_pb2
from control.kernel.etcd_store import EtcdStore
from protos.image.v1.images_pb2 import Image
from protos.image.v1.records_pb2 import ImageRecord

#: Bytes that a file beside the state may have to be taken along: settings, passwords, certificates.
MOST = 1 << 20


async def make(config: Config, path: Path, secret: bytes | None, *, images: bool = True, replicas: Sequence[Path] = (),
               begin: Callable[[int], archive.Progress] = lambda total: lambda size: None) -> dict[str, Any]:
    """Write the backup of a running cloud to a new file; its manifest.

    `replicas`: the state directories of several replicas on this machine. `begin` is told about how many bytes there are, and
    gives what is told of bytes done. Raises Invalid where image data is damaged or not on this machine, Unavailable where etcd
    does not answer, OSError where the file cannot be written.
    """
    store = EtcdStore(config.etcd_endpoints, etcd_server.client_credentials(config.pki_dir))
    try:
        status = await store.client.call(lambda member: member.maintenance.Status, rpc_pb2.StatusRequest())
        directories = [place / "images" for place in replicas or (config.state_dir,)]
        stored = sum(file.stat().st_size for directory in directories for file in directory.glob("*")) if images else 0
        with archive.writing(path, secret, begin(status.dbSizeInUse + stored)) as writer:
            counts: Counter[str] = Counter()
            data: list[ImageRecord] = []
            revision = number = 0
            async for at, chunk in dump(store):
                revision = at
                for entry in chunk.entries:
                    counts[kind_of(entry.key)] += 1
                    if entry.key.startswith(IMAGE.prefix):
                        data.append(ImageRecord.FromString(entry.value))
                writer.add(f"state/{number:06d}", pack(chunk))
                number += 1
            for name, file in _files(config):
                writer.add_file(f"files/{name}", file)
            taken = _add_images(writer, directories, data) if images else 0
            directory_id = str(uuid.uuid4())         # of the one directory that image data is restored into
            writer.add("images/directory-id", f"{directory_id}\n".encode())
            audit = journal_state((replicas[0] if replicas else config.state_dir) / "audit")
            return writer.finish({
                "brume": version("brume"), "made_at": datetime.now(UTC).isoformat(timespec="seconds"), "cloud": config.name,
                "revision": revision, "records": dict(sorted(counts.items())), "images": taken, "with_images": images,
                "image_directory": directory_id,
                "audit": {"head": audit["head"], "revision": audit["revision"], "sequence": audit["sequence"]}})
    finally:
        await store.close()


def _files(config: Config) -> Iterator[tuple[str, Path]]:
    """What a cloud has beside its state: settings, passwords, rules, certificates."""
    for path in sorted(config.state_dir.iterdir()):
        if path.is_file() and not path.is_symlink() and not path.name.startswith((".", "etcd")) and path.stat().st_size <= MOST:
            yield path.name, path
    for path in sorted(config.pki_dir.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            yield str(path.relative_to(config.state_dir)), path


def _add_images(writer: archive.Writer, directories: Sequence[Path], records: list[ImageRecord]) -> int:
    """The data of active images; how many files. One that was deleted since the state was read is left out."""
    taken = set()
    missing = []
    for record in records:
        if record.image.status != Image.ACTIVE or not record.file or record.file in taken:
            continue
        path = next((found for directory in directories if (found := directory / record.file).exists()), None)
        if path is None:
            missing.append(record.image.id)
            continue
        with contextlib.suppress(FileNotFoundError):
            writer.add_file(f"images/{record.file}", path, record.image.os_hash_value)
            taken.add(record.file)
    if missing:
        raise Invalid("backup.images", f"the data of images {', '.join(missing[:10])} is not in {directories[0]}: make "
                                       "the backup on the machine that has it, or leave image data out with --no-images")
    return len(taken)


def describe(manifest: dict[str, Any]) -> dict[str, Any]:
    """What to say of a backup: its manifest without the list of parts."""
    return json.loads(json.dumps({key: value for key, value in manifest.items() if key != "members"})) | {
        "parts": len(manifest["members"]), "bytes": sum(member["size"] for member in manifest["members"])}
