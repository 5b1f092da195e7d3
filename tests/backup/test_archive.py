"""The file of a backup: whole or refused, with or without a passphrase, and nothing unpacked from one that is not."""
import io
import json
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.backup import archive, restoring, sealing
from control.backup.state import pack
from control.kernel.errors import Conflict, Invalid
from protos.internal.v1.backup_pb2 import StateChunk, StateEntry

SECRET = b"a long enough passphrase"


@pytest.fixture(autouse=True)
def cheap_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "COST", 2**4)


def made(path: Path, secret: bytes | None = None) -> bytes:
    """A small backup; its bytes."""
    with archive.writing(path, secret) as writer:
        writer.add("state/000000", pack(StateChunk(entries=[StateEntry(key="/compute/servers/a", value=b"x")])))
        writer.add("files/cloud.json", b'{"name": "brume", "port": 5000}')
        writer.add("files/pki/ca.crt", b"certificate")
        writer.add("images/data", os.urandom(3_000_000))
        writer.finish({"made_at": "now", "revision": 7, "records": {"compute/servers": 1}, "images": 1, "cloud": "brume",
                       "audit": {}})
    return path.read_bytes()


@pytest.mark.parametrize("secret", [None, SECRET])
def test_what_was_written_is_read_and_the_file_is_its_owners_alone(tmp_path: Path, secret: bytes | None) -> None:
    path = tmp_path / "b"
    data = made(path, secret)
    assert path.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [path]
    manifest = archive.verify(path, secret)
    assert manifest["revision"] == 7 and len(manifest["members"]) == 4
    assert (b"certificate" in data) == (secret is None)
    parts = {name: content.read() for name, content in archive.reading(path, secret)}
    assert parts["files/pki/ca.crt"] == b"certificate" and len(parts["images/data"]) == 3_000_000


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_backup_that_is_cut_off_or_changed_anywhere_is_refused(tmp_path: Path, secret: bytes | None) -> None:
    path = tmp_path / "b"
    data = made(path, secret)
    some = random.Random(1)
    for _ in range(25):
        path.write_bytes(data[:some.randrange(len(data) - 20_000)])
        with pytest.raises(Invalid):
            archive.verify(path, secret)
    for _ in range(25):
        changed = bytearray(data)
        at = some.choice([some.randrange(700, 3_000_000)])
        changed[at] ^= 1 << some.randrange(8)
        path.write_bytes(bytes(changed))
        try:
            parts = archive.verify(path, secret)["members"]
        except Invalid:
            continue
        assert secret is None and len(parts) == 4, "only what pads a tar may change unseen"


def test_a_wrong_passphrase_says_so(tmp_path: Path) -> None:
    made(tmp_path / "b", SECRET)
    with pytest.raises(Invalid, match="passphrase is wrong"):
        archive.verify(tmp_path / "b", b"another long passphrase")
    with pytest.raises(Invalid, match="encrypted"):
        archive.verify(tmp_path / "b", None)
    short = tmp_path / "short"
    short.write_text("short\n")
    with pytest.raises(Invalid, match="12 characters"):
        sealing.passphrase(short)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 40), max_size=12), frame=st.integers(1, 16))
def test_sealed_bytes_come_back_whatever_the_sizes_of_writes_and_frames(sizes: list[int], frame: int) -> None:
    before = sealing.FRAME
    sealing.FRAME = frame
    try:
        plain, file = b"", io.BytesIO()
        writer = sealing.Sealing(file, SECRET)
        for size in sizes:
            piece = os.urandom(size)
            plain += piece
            writer.write(piece)
        writer.close()
        file.seek(0)
        assert sealing.Opening(file, SECRET).read(10**6) == plain
        sealed = file.getvalue()
        if len(plain) > frame:      # a whole frame gone from the end is found
            cut = io.BytesIO(sealed[:len(sealing.MAGIC) + sealing.SALT + sealing.PREFIX + frame + sealing.TAG])
            with pytest.raises(Invalid):
                sealing.Opening(cut, SECRET).read(10**6)
    finally:
        sealing.FRAME = before


def test_a_part_that_leaves_the_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b"
    for name in ("files/../../evil", "/etc/evil"):
        with tarfile.open(path, "w") as tar:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
        with pytest.raises(Invalid, match="no backup has"):
            archive.verify(path, None)


def test_nothing_is_unpacked_from_a_damaged_backup(tmp_path: Path) -> None:
    path, place = tmp_path / "b", tmp_path / "state"
    data = bytearray(made(path))
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(Invalid, match="images/data is damaged"):
        restoring.unpack(path, None, place)
    assert not place.exists()


def test_files_are_unpacked_beside_what_is_the_hosts_and_a_cloud_is_kept_aside(tmp_path: Path) -> None:
    path, place = tmp_path / "b", tmp_path / "state"
    made(path)
    disk = place / "agent" / "instances" / "a" / "disk"
    disk.parent.mkdir(parents=True)
    disk.write_text("disk")
    _, aside = restoring.unpack(path, None, place)
    assert aside is None and disk.read_text() == "disk"
    assert (place / "pki" / "ca.crt").read_bytes() == b"certificate" and (place / "images" / "data").stat().st_size == 3_000_000
    assert json.loads((place / "restore" / "manifest.json").read_text())["restored_at_ms"] > 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in (place / "pki").rglob("*"))
    with pytest.raises(Conflict, match="--replace"):
        restoring.unpack(path, None, place)
    (place / "pki" / "ca.crt").write_text("newer")
    _, aside = restoring.unpack(path, None, place, replace=True)
    assert aside and (aside / "pki" / "ca.crt").read_text() == "newer" and disk.read_text() == "disk"
    assert (place / "pki" / "ca.crt").read_bytes() == b"certificate"


@pytest.mark.parametrize("secret", [None, SECRET])
def test_a_full_disk_leaves_no_half_of_a_backup(tmp_path: Path, secret: bytes | None) -> None:
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        with pytest.raises(OSError, match="No space left"):
            made(tmp_path / "b", secret)
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
