"""The file of a backup: a tar of named parts, whose last one is the manifest with the size and hash of each.

It is written and read as a stream, so that no part but a chunk of state is ever in memory.
"""
import contextlib
import hashlib
import io
import json
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from control.backup.sealing import Opening, Sealing, is_sealed
from control.kernel.errors import Invalid

FORMAT = 1
MANIFEST = "manifest.json"
CHUNK = 1 << 20

Progress = Callable[[int], object]


class Writer:
    """Puts parts into an archive. Use through writing()."""

    def __init__(self, tar: tarfile.TarFile, progress: Progress):
        self._tar = tar
        self._progress = progress
        self.members: list[dict[str, Any]] = []

    def add(self, name: str, data: bytes) -> None:
        self._put(name, io.BytesIO(data), len(data))

    def add_file(self, name: str, path: Path, sha512: str = "") -> None:
        """A file as it is now. Raises Invalid where it is not what `sha512` says, OSError where it cannot be read."""
        with path.open("rb") as file:
            made = self._put(name, file, os.fstat(file.fileno()).st_size)
        if sha512 and made != sha512:
            raise Invalid("backup.image", f"{path} is damaged: its SHA-512 is {made[:16]}..., and {sha512[:16]}... is expected")

    def finish(self, manifest: dict[str, Any]) -> dict[str, Any]:
        manifest = {"format": FORMAT, **manifest, "members": self.members}
        data = json.dumps(manifest, indent=1).encode()
        self._tar.addfile(_info(MANIFEST, len(data)), io.BytesIO(data))
        return manifest

    def _put(self, name: str, file: BinaryIO, size: int) -> str:
        reader = _Hashing(file, self._progress)
        self._tar.addfile(_info(name, size), reader)        # raises OSError where the file is shorter by now
        digest = reader.hash.hexdigest()
        self.members.append({"name": name, "size": size, "sha512": digest})
        return digest


@contextlib.contextmanager
def writing(path: Path, secret: bytes | None, progress: Progress = lambda size: None) -> Iterator[Writer]:
    """A new archive, 0600, which has its name only when it is whole and on disk. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            sealing = Sealing(file, secret) if secret else None
            with tarfile.open(fileobj=sealing or file, mode="w|", format=tarfile.PAX_FORMAT, bufsize=CHUNK) as tar:  # type: ignore[call-overload]
                yield Writer(tar, progress)
            if sealing:
                sealing.close()
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def reading(path: Path, secret: bytes | None, progress: Progress = lambda size: None) -> Iterator[tuple[str, BinaryIO]]:
    """The parts of an archive in order, the manifest last. Raises Invalid where it is no archive or cannot be decrypted."""
    try:
        with path.open("rb") as file:
            if is_sealed(file):
                if secret is None:
                    raise Invalid("backup.sealed", f"{path} is encrypted: name the file with its passphrase (--passphrase)")
                source: Any = Opening(file, secret)
            else:
                source = file
            with tarfile.open(fileobj=source, mode="r|", bufsize=CHUNK) as tar:
                for info in tar:
                    if not info.isreg() or info.name.startswith("/") or ".." in Path(info.name).parts:
                        raise Invalid("backup.member", f"{path} has a part that no backup has: {info.name[:100]!r}")
                    content = tar.extractfile(info)
                    assert content is not None
                    yield info.name, _Hashing(content, progress)  # type: ignore[misc]
    except (tarfile.TarError, EOFError) as error:
        raise Invalid("backup.tar", f"{path} is no backup, or a damaged one: {error}") from error
    except OSError as error:
        raise Invalid("backup.file", f"{path}: {error.strerror or error}") from error


def verify(path: Path, secret: bytes | None, progress: Progress = lambda size: None) -> dict[str, Any]:
    """The manifest of an archive all of whose parts are what it says. Raises Invalid, naming what is wrong."""
    found: dict[str, tuple[int, str]] = {}
    manifest: dict[str, Any] | None = None
    for name, content in reading(path, secret, progress):
        if name == MANIFEST:
            try:
                manifest = json.loads(content.read())
            except ValueError as error:
                raise Invalid("backup.manifest", f"{path}: its manifest is damaged") from error
            continue
        while content.read(CHUNK):
            pass
        found[name] = (content.size, content.hash.hexdigest())  # type: ignore[attr-defined]
    if manifest is None:
        raise Invalid("backup.manifest", f"{path} is cut off: it has no manifest")
    if manifest.get("format") != FORMAT:
        raise Invalid("backup.format", f"{path} has format {manifest.get('format')}, and this Brume reads {FORMAT}: use the one "
                                       f"that made it ({manifest.get('brume', 'unknown')}) or a newer one")
    wanted = {member["name"]: (member["size"], member["sha512"]) for member in manifest["members"]}
    for name in wanted.keys() | found.keys():
        if wanted.get(name) != found.get(name):
            what = "is missing" if name not in found else "is not in its manifest" if name not in wanted else "is damaged"
            raise Invalid("backup.member", f"{path}: {name} {what}")
    return manifest


class _Hashing:
    """Hashes and counts what is read through it."""

    def __init__(self, file: Any, progress: Progress):
        self._file = file
        self._progress = progress
        self.hash = hashlib.sha512()
        self.size = 0

    def read(self, size: int = -1) -> bytes:
        try:
            data = self._file.read(size)
        except (tarfile.TarError, EOFError) as error:
            raise Invalid("backup.tar", f"the backup is cut off: {error}") from error
        self.hash.update(data)
        self.size += len(data)
        self._progress(len(data))
        return data


def _info(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    return info
