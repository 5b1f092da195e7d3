"""Images' data over HTTP: in, out, cut, refused, and after a crash. The bytes on the disk are looked at each time."""
import contextlib
import hashlib
import os
import socket
import struct
import subprocess
import threading
from urllib.parse import urlsplit

import pytest

from control.image.files import Directory
from control.image.model import IMAGE
from control.image.reconciler import Reconciler
from protos.image.v1.images_pb2 import Image
from tests.image.conftest import Cloud

DATA = os.urandom(3 * 2**20 + 17)


def qcow2(version: int = 3, backing: int = 0, features: int = 0, encryption: int = 0, size: int = 2**30) -> bytes:
    """A header as qemu writes it, and enough behind it."""
    head = struct.pack(">4sIQIIQIIQQIIQ", b"QFI\xfb", version, backing, 20, 16, size, encryption, 1, 0x30000, 0x10000, 1, 0, 0)
    return (head + struct.pack(">QQQII", features, 0, 0, 4, 104)).ljust(70_000, b"\0")


def vmdk(kind: str, extent: str = 'RW 8 SPARSE "x.vmdk"') -> bytes:
    text = f'# Disk DescriptorFile\nversion=1\ncreateType="{kind}"\n{extent}\n'.encode()
    return struct.pack("<4sIIQQQQ", b"KDMV", 1, 3, 8, 128, 1, 20).ljust(512, b"\0") + text.ljust(20 * 512, b"\0")


def test_data_comes_back_as_it_went_in_with_size_and_hashes(cloud):
    image = cloud.one.create()
    answer = cloud.one.upload(image["id"], DATA, **{"X-OpenStack-Image-Size": str(len(DATA))})
    assert answer.status_code == 204 and answer.content == b""
    shown = cloud.one.show(image["id"])
    assert (shown["status"], shown["size"], shown["virtual_size"]) == ("active", len(DATA), len(DATA))
    assert shown["checksum"] == hashlib.md5(DATA).hexdigest()
    assert (shown["os_hash_algo"], shown["os_hash_value"]) == ("sha512", hashlib.sha512(DATA).hexdigest())
    answer = cloud.one.get(f"/v2/images/{image['id']}/file")
    assert answer.status_code == 200 and answer.content == DATA
    assert answer.headers["Content-Length"] == str(len(DATA)) and answer.headers["Content-MD5"] == shown["checksum"]
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert cloud.used("one") == {"image_count_total": 1, "image_size_total": len(DATA)}
    assert len(cloud.files()) == 1 and cloud.files()[0].startswith(image["id"])


def test_a_chunked_upload_without_a_length_is_taken(cloud):
    image = cloud.one.create()
    assert cloud.one.upload(image["id"], (DATA[i:i + 100_000] for i in range(0, len(DATA), 100_000))).status_code == 204
    assert cloud.one.show(image["id"])["checksum"] == hashlib.md5(DATA).hexdigest()


def test_a_part_can_be_asked_for(cloud):
    path = f"/v2/images/{cloud.one.create(name='p')['id']}/file"
    cloud.one.put(path, data=DATA, headers={"Content-Type": "application/octet-stream"})
    for header, part in {"bytes=0-9": DATA[:10], "bytes=10-": DATA[10:], "bytes=-5": DATA[-5:],
                         "bytes=1000000-2000000": DATA[1000000:2000001]}.items():
        answer = cloud.one.get(path, headers={"Range": header})
        assert answer.status_code == 206 and answer.content == part, header
        assert answer.headers["Content-Range"].endswith(f"/{len(DATA)}")
    assert cloud.one.get(path, headers={"Range": f"bytes={len(DATA)}-"}).status_code == 416
    assert cloud.one.get(path, headers={"Range": "lines=1-2"}).status_code == 200


def test_an_image_without_data_has_nothing_to_send(cloud):
    assert cloud.one.get(f"/v2/images/{cloud.one.create()['id']}/file").status_code == 204


def test_empty_data_is_data(cloud):
    image = cloud.one.create()
    assert cloud.one.upload(image["id"], b"").status_code == 204
    assert cloud.one.show(image["id"])["size"] == 0
    answer = cloud.one.get(f"/v2/images/{image['id']}/file")
    assert answer.status_code == 200 and answer.content == b""


def test_data_goes_only_to_a_queued_image_with_formats(cloud):
    image = cloud.one.create()
    assert cloud.one.upload(image["id"], b"one").status_code == 204
    assert cloud.one.upload(image["id"], b"two").status_code == 409
    assert cloud.one.get(f"/v2/images/{image['id']}/file").content == b"one"
    bare = cloud.one.post("/v2/images", json={"name": "bare"}).json()
    answer = cloud.one.upload(bare["id"], b"x")
    assert answer.status_code == 400 and "disk_format, container_format" in answer.text
    assert cloud.one.put(f"/v2/images/{bare['id']}/file", json={}).status_code == 415
    assert cloud.one.upload("no-such-image", b"x").status_code == 404


@pytest.mark.parametrize(("disk_format", "data", "word"), [
    ("qcow2", b"no header at all", "no known format"),
    ("qcow2", b"", "no known format"),
    ("qcow2", qcow2(backing=1000), "backing file"),
    ("qcow2", qcow2(version=2, backing=8), "backing file"),
    ("qcow2", qcow2(features=1 << 2), "external file"),
    ("qcow2", qcow2(features=1 << 60), "not known"),
    ("qcow2", qcow2(features=1 << 1), "corrupt"),
    ("qcow2", qcow2(encryption=1), "encrypted"),
    ("qcow2", qcow2(version=1), "version 1"),
    ("qcow2", qcow2()[:80], "incomplete"),
    ("raw", qcow2(), "qcow2"),
    ("ari", qcow2(), "qcow2"),
    ("raw", vmdk("monolithicSparse"), "vmdk"),
    ("raw", b"vhdxfile" + bytes(1000), "vhdx"),
    ("raw", b"QED\0" + bytes(1000), "qed"),
    ("raw", b"# Disk DescriptorFile\nRW 1 FLAT \"/etc/shadow\" 0\n", "vmdk"),
    ("vmdk", b"# Disk DescriptorFile\ncreateType=\"monolithicFlat\"\nRW 1 FLAT \"/etc/shadow\" 0\n", "single"),
    ("vmdk", vmdk("monolithicFlat"), "type"),
    ("vmdk", vmdk("monolithicSparse", 'RW 8 SPARSE "x.vmdk"\nRW 8 FLAT "/etc/shadow" 0'), "extent"),
    ("vmdk", qcow2(), "qcow2"),
    ("vhd", b"\0" * 2000, "vhd"),
    ("vdi", b"\0" * 2000, "vdi"),
    ("iso", b"\0" * 70_000, "iso"),
])
def test_data_that_is_not_what_it_should_be_is_refused_and_leaves_nothing(cloud, disk_format, data, word):
    container = disk_format if disk_format == "ari" else "bare"
    image = cloud.one.create(disk_format=disk_format, container_format=container)
    answer = cloud.one.upload(image["id"], data)
    assert answer.status_code == 400 and word in answer.text, answer.text
    shown = cloud.one.show(image["id"])
    assert shown["status"] == "queued" and shown["size"] is None and shown["checksum"] is None
    assert cloud.files() == [] and cloud.used("one") == {"image_count_total": 1}


@pytest.mark.parametrize(("disk_format", "data", "virtual"), [
    ("qcow2", qcow2(size=7 * 2**30), 7 * 2**30),
    ("qcow2", qcow2(version=2, size=4096), 4096),
    ("qcow2", qcow2(features=0b11001), 2**30),
    ("vmdk", vmdk("streamOptimized"), 4096),
    ("vdi", (bytes(64) + b"\x7f\x10\xda\xbe").ljust(368, b"\0") + struct.pack("<Q", 12345 * 512) + bytes(1000), 12345 * 512),
    ("vhd", bytes(4096) + (b"conectix".ljust(48, b"\0") + struct.pack(">Q", 4096)).ljust(512, b"\0"), 4096),
    ("iso", bytes(32769) + b"CD001" + bytes(40_000), 32769 + 5 + 40_000),
    ("raw", bytes(32769) + b"CD001" + bytes(40_000), 32769 + 5 + 40_000),
    ("raw", b"x" * 5, 5),
    ("vhdx", b"vhdxfile" + bytes(500), None),
    ("aki", b"MZ kernel", None),
])
def test_the_disk_that_a_server_will_see_is_read_from_the_header(cloud, disk_format, data, virtual):
    container = disk_format if disk_format == "aki" else "bare"
    image = cloud.one.create(disk_format=disk_format, container_format=container)
    assert (answer := cloud.one.upload(image["id"], data)).status_code == 204, answer.text
    assert cloud.one.show(image["id"])["virtual_size"] == virtual


def test_images_that_qemu_img_makes_are_judged_right(cloud, tmp_path):
    def make(*arguments: str) -> bytes:
        subprocess.run(["qemu-img", "create", "-q", *arguments], check=True, cwd=tmp_path)
        return (tmp_path / "disk").read_bytes()

    good = cloud.one.create(disk_format="qcow2")
    assert cloud.one.upload(good["id"], make("-f", "qcow2", "disk", "10M")).status_code == 204
    assert cloud.one.show(good["id"])["virtual_size"] == 10 * 2**20
    (tmp_path / "base").write_bytes(bytes(2**20))
    for arguments, word in ((("-f", "qcow2", "-b", "base", "-F", "raw", "disk"), "backing file"),
                            (("-f", "qcow2", "-o", "data_file=other", "disk", "10M"), "external file")):
        bad = cloud.one.create(disk_format="qcow2")
        answer = cloud.one.upload(bad["id"], make(*arguments))
        assert answer.status_code == 400 and word in answer.text
    for disk_format, name in (("vmdk", "vmdk"), ("vdi", "vdi"), ("vhd", "vpc"), ("vhdx", "vhdx")):
        other = cloud.one.create(disk_format=disk_format)
        answer = cloud.one.upload(other["id"], make("-f", name, "disk", "10M"))
        assert answer.status_code == 204, f"{name}: {answer.text}"


def test_a_wrong_or_too_large_size_is_refused(tmp_path):
    cloud = Cloud(tmp_path / "images", max_size=1000)
    try:
        image = cloud.one.create()
        assert cloud.one.upload(image["id"], b"12345", **{"X-OpenStack-Image-Size": "6"}).status_code == 400
        assert cloud.one.upload(image["id"], b"x" * 1001).status_code == 413
        assert cloud.one.upload(image["id"], (b"x" * 100 for _ in range(11))).status_code == 413
        assert cloud.one.show(image["id"])["status"] == "queued" and cloud.files() == []
        assert cloud.one.upload(image["id"], b"x" * 1000).status_code == 204
    finally:
        cloud.stop()


def test_a_refused_large_upload_gets_its_answer_though_the_client_is_still_sending(cloud):
    image = cloud.one.create(disk_format="qcow2")
    answer = cloud.one.upload(image["id"], bytes(50 * 2**20))
    assert answer.status_code == 400 and "no known format" in answer.text


def begin_upload(cloud: Cloud, image_id: str, length: str | None = "1000000") -> socket.socket:
    """A connection in the middle of an upload: 5 bytes of the body are sent, and the image is saving."""
    address = urlsplit(cloud.url)
    connection = socket.create_connection((address.hostname, address.port))
    framing = f"Content-Length: {length}\r\n\r\n" if length else "Transfer-Encoding: chunked\r\n\r\n"
    body = "12345" if length else "5\r\n12345\r\n"
    connection.sendall(f"PUT /image/v2/images/{image_id}/file HTTP/1.1\r\nHost: x\r\nX-Auth-Token: one\r\n"
                       f"Content-Type: application/octet-stream\r\n{framing}{body}".encode())
    cloud.until(lambda: cloud.one.show(image_id)["status"] == "saving")
    return connection


@pytest.mark.parametrize("length", ["1000000", None])
def test_a_cut_upload_returns_the_image_to_queued_and_leaves_no_file(cloud, length):
    image = cloud.one.create()
    begin_upload(cloud, image["id"], length).close()
    cloud.until(lambda: cloud.one.show(image["id"])["status"] == "queued")
    cloud.until(lambda: cloud.files() == [])
    assert cloud.one.upload(image["id"], b"whole").status_code == 204
    assert cloud.one.get(f"/v2/images/{image['id']}/file").content == b"whole"


def test_a_second_upload_meanwhile_is_refused_and_disturbs_nothing(cloud):
    image = cloud.one.create()
    with begin_upload(cloud, image["id"], "10") as connection:
        assert cloud.one.upload(image["id"], b"other").status_code == 409
        connection.sendall(b"67890")
        assert connection.recv(100).startswith(b"HTTP/1.1 204")
    assert cloud.one.get(f"/v2/images/{image['id']}/file").content == b"1234567890"


def test_an_image_deleted_during_its_upload_leaves_nothing(cloud):
    image = cloud.one.create()
    with begin_upload(cloud, image["id"], "10") as connection:
        assert cloud.one.delete(f"/v2/images/{image['id']}").status_code == 204
        connection.sendall(b"67890")
        assert connection.recv(100).startswith(b"HTTP/1.1 409")
    cloud.until(lambda: cloud.files() == [])
    cloud.until(lambda: not [key for key in cloud.store._records if key.startswith("/image/")])
    assert cloud.used("one") == {}


def test_a_deleted_images_data_goes_and_a_running_download_is_served_to_its_end(cloud):
    image = cloud.one.create()
    data = DATA * 8
    cloud.one.upload(image["id"], data)
    with cloud.one.get(f"/v2/images/{image['id']}/file", stream=True) as answer:
        pieces = answer.iter_content(2**16)
        received = next(pieces)
        assert cloud.two.delete(f"/v2/images/{image['id']}").status_code == 404
        assert cloud.admin.delete(f"/v2/images/{image['id']}").status_code == 204
        cloud.until(lambda: cloud.files() == [])
        received += b"".join(pieces)
    assert received == data
    assert cloud.used("one") == {}


def test_after_a_crash_in_an_upload_the_image_is_queued_again_and_the_file_gone(cloud):
    image, whole = cloud.one.create(), cloud.one.create()
    cloud.one.upload(whole["id"], b"whole")
    name = f"{image['id']}.abcdefabcdef"

    def saving(tx):
        record = tx.require(IMAGE, image["id"])
        record.image.status, record.file = Image.SAVING, name
        record.directory_id = (cloud.folder / "directory-id").read_text().strip()
        tx.put(IMAGE, record)

    cloud.run(cloud.database.transact(saving))
    (cloud.folder / f"{name}.part").write_bytes(b"half")
    (cloud.folder / "never-in-a-record.part").write_bytes(b"begun")
    again = cloud.restarted()
    try:
        again.until(lambda: again.one.show(image["id"])["status"] == "queued")
        again.until(lambda: len(again.files()) == 1)
        assert again.one.get(f"/v2/images/{whole['id']}/file").content == b"whole"
        assert again.one.upload(image["id"], b"now").status_code == 204
    finally:
        again.stop()


def test_an_upload_that_another_worker_runs_is_not_taken_for_a_crash(cloud):
    image = cloud.one.create()
    other = Reconciler(cloud.database, Directory(cloud.folder))     # of a second process over the same directory
    with begin_upload(cloud, image["id"], "10") as connection:
        assert cloud.run(other.reconcile(IMAGE.key(image["id"]))) is not None, "it shall look again"
        assert cloud.one.show(image["id"])["status"] == "saving"
        connection.sendall(b"67890")
        assert connection.recv(100).startswith(b"HTTP/1.1 204")
    assert cloud.run(other.reconcile(IMAGE.key(image["id"]))) is None
    assert cloud.one.get(f"/v2/images/{image['id']}/file").content == b"1234567890"


def test_a_full_disk_is_told_and_the_image_is_queued_again(cloud, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("needs root to mount a small file system")
    try:
        full = Cloud(small / "images")
        try:
            image = full.one.create()
            for data in (bytes(2**21), (bytes(2**16) for _ in range(40))):    # with a length, and without
                answer = full.one.upload(image["id"], data)
                assert answer.status_code == 413 and "no room" in answer.text
                assert full.one.show(image["id"])["status"] == "queued" and full.files() == []
            assert full.one.upload(image["id"], b"fits").status_code == 204
        finally:
            full.stop()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_deactivated_image_is_not_given_out(cloud):
    image = cloud.one.create()
    path = f"/v2/images/{image['id']}"
    assert cloud.one.post(f"{path}/actions/deactivate").status_code == 409
    cloud.one.upload(image["id"], b"data")
    for _ in range(2):
        assert cloud.one.post(f"{path}/actions/deactivate").status_code == 204
    assert cloud.one.show(image["id"])["status"] == "deactivated"
    assert cloud.one.get(f"{path}/file").status_code == 403
    assert cloud.one.post(f"{path}/actions/reactivate").status_code == 204
    assert cloud.one.get(f"{path}/file").content == b"data"


def test_staged_data_becomes_the_images_by_an_import(cloud):
    image = cloud.one.create()
    path = f"/v2/images/{image['id']}"
    octets = {"Content-Type": "application/octet-stream"}
    assert cloud.one.post(f"{path}/import", json={"method": {"name": "glance-direct"}}).status_code == 409
    assert cloud.one.put(f"{path}/stage", data=b"staged", headers=octets).status_code == 204
    assert cloud.one.show(image["id"])["status"] == "uploading" and cloud.used("one")["image_size_total"] == 6
    assert cloud.one.post(f"{path}/import", json={"method": {"name": "web-download"}}).status_code == 400
    assert cloud.one.post(f"{path}/import", json={"method": {"name": "glance-direct"}}).status_code == 202
    shown = cloud.one.show(image["id"])
    assert (shown["status"], shown["size"], shown["checksum"]) == ("active", 6, hashlib.md5(b"staged").hexdigest())
    assert cloud.one.get(f"{path}/file").content == b"staged"
    staged = cloud.one.create()
    assert cloud.one.put(f"/v2/images/{staged['id']}/stage", data=b"staged", headers=octets).status_code == 204
    assert cloud.one.delete(f"/v2/images/{staged['id']}").status_code == 204
    cloud.until(lambda: len(cloud.files()) == 1)
    assert cloud.used("one") == {"image_count_total": 1, "image_size_total": 6}


def test_others_boot_active_images_that_they_see_and_hosts_read_them_by_hash(cloud):
    from control.kernel.caller import Caller
    from control.kernel.errors import Invalid, NotFound
    one, two = (Caller(user_id="u", project_id=project, roles=frozenset({"member"})) for project in ("one", "two"))
    image = cloud.one.create()
    with pytest.raises(Invalid, match="queued"):
        cloud.images.bootable(one, image["id"])
    cloud.one.upload(image["id"], DATA)
    assert cloud.images.bootable(one, image["id"]).os_hash_value == hashlib.sha512(DATA).hexdigest()
    for caller, name in ((two, image["id"]), (one, "missing")):
        with pytest.raises(Invalid, match="could not be found"):
            cloud.images.bootable(caller, name)
    wrapped = cloud.one.create(container_format="ova")
    cloud.one.upload(wrapped["id"], qcow2(backing=8))
    with pytest.raises(Invalid, match="ova"):
        cloud.images.bootable(one, wrapped["id"])

    async def read(sha512: str) -> bytes:
        return b"".join([piece async for piece in cloud.images.read(sha512)])

    assert cloud.run(read(hashlib.sha512(DATA).hexdigest())) == DATA
    for unknown in ("0" * 128, ""):
        with pytest.raises(NotFound):
            cloud.run(read(unknown))


def test_uploads_at_once_do_not_mix(cloud):
    blobs = [os.urandom(2**20 + number) for number in range(8)]
    ids = [cloud.one.create()["id"] for _ in blobs]
    workers = [threading.Thread(target=cloud.one.upload, args=pair) for pair in zip(ids, blobs, strict=True)]
    with contextlib.ExitStack() as stack:
        for worker in workers:
            worker.start()
            stack.callback(worker.join)
    for image_id, blob in zip(ids, blobs, strict=True):
        assert cloud.one.show(image_id)["os_hash_value"] == hashlib.sha512(blob).hexdigest()
    assert cloud.used("one")["image_size_total"] == sum(map(len, blobs))
