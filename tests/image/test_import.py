"""brume images import and build: downloads from a real HTTP server that cuts, lies and forgets, into a real image service."""
import hashlib
import http.client
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from rich.progress import Progress

from control.cli import images
from control.cli.session import RestError
from control.image import catalogue, download
from control.kernel.config import Config
from control.kernel.errors import Invalid, NotFound, Unavailable
from tests.image.conftest import Cloud
from tests.image.test_data import qcow2

DISK = qcow2(size=2**21) + os.urandom(3 * 2**20)


class Distributor(ThreadingHTTPServer):
    """Serves image.qcow2 and its checksums. `cuts`: after how many bytes each next answer breaks off."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = {"/image.qcow2": DISK, "/SUMS": f"{hashlib.sha256(DISK).hexdigest()} *image.qcow2\n".encode()}
        self.cuts: list[int] = []
        self.ranges = True
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def entry(self, **fields: object) -> catalogue.Entry:
        return catalogue.Entry(**{"name": "toy", "os": "Toy 1", "url": f"{self.url}/image.qcow2", "checksums": f"{self.url}/SUMS",
                                  "format": "qcow2", "user": "toy", "min_disk": 1, "min_ram": 64,
                                  "properties": {"os_distro": "toy"}, **fields})    # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server: Distributor = self.server    # type: ignore[assignment]
        data = server.files.get(self.path)
        asked = self.headers.get("Range", "")
        server.asked.append(f"{self.path} {asked}".strip())
        if data is None:
            self.send_error(404)
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts and self.path.endswith("qcow2") else len(data)
        self.wfile.write(data[start:start + cut])
        self.wfile.flush()
        if start + cut < len(data):
            self.close_connection = True

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def distributor():
    server = Distributor()
    yield server
    server.shutdown()
    server.server_close()


class Rest:
    """A Session's requests, with the test's token. The real one is tested with the whole cloud."""

    def __init__(self, cloud: Cloud):
        self._base = urlsplit(cloud.url)

    def request(self, method, service, path, body=None, *, headers=None):
        headers = {"X-Auth-Token": "admin", **(headers or {})}
        if isinstance(body, dict):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection = http.client.HTTPConnection(self._base.hostname, self._base.port)
        connection.request(method, self._base.path + path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        if answer.status >= 400:
            raise RestError(answer.status, data.decode())
        return json.loads(data) if data else None


@pytest.fixture
def importing(cloud, tmp_path):
    """Imports an entry; the image's id."""
    def run(entry: catalogue.Entry, name: str = "toy") -> str:
        return images.import_entry(Config(state_dir=tmp_path), Rest(cloud), entry, name, "public", Progress(disable=True))
    return run


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    real = download.fetch
    monkeypatch.setattr(download, "fetch", lambda *arguments, **options: real(*arguments, pause=0, **options))


def test_an_import_ends_in_a_public_image_with_the_distributors_bytes(cloud, distributor, importing, tmp_path):
    image = cloud.one.show(importing(distributor.entry()))
    assert (image["name"], image["status"], image["visibility"]) == ("toy", "active", "public")
    assert (image["os_distro"], image["os_admin_user"], image["min_ram"], image["min_disk"]) == ("toy", "toy", 64, 1)
    assert image["source"] == distributor.entry().url and image["virtual_size"] == 2**21
    assert cloud.one.get(f"/v2/images/{image['id']}/file").content == DISK
    assert list((tmp_path / "downloads").iterdir()) == [], "what is in the cloud is not kept twice"


def test_an_import_again_finds_the_image_that_is_there(cloud, distributor, importing):
    assert importing(distributor.entry()) == importing(distributor.entry())
    assert cloud.admin.names() == ["toy"]


def test_a_wrong_checksum_uploads_nothing_and_keeps_nothing(cloud, distributor, importing, tmp_path):
    distributor.files["/SUMS"] = f"{hashlib.sha256(b'other').hexdigest()}  image.qcow2\n".encode()
    with pytest.raises(Invalid, match="nothing was imported"):
        importing(distributor.entry())
    assert cloud.admin.names() == [] and list((tmp_path / "downloads").iterdir()) == []


def test_a_cut_download_goes_on_where_it_was(cloud, distributor, importing):
    distributor.cuts = [1_000_000, 500_000, 7]
    image_id = importing(distributor.entry())
    assert cloud.one.get(f"/v2/images/{image_id}/file").content == DISK
    assert [asked for asked in distributor.asked if "image" in asked] == [
        "/image.qcow2", "/image.qcow2 bytes=1000000-", "/image.qcow2 bytes=1500000-", "/image.qcow2 bytes=1500007-"]


def test_a_server_without_ranges_is_begun_again(cloud, distributor, importing):
    distributor.ranges, distributor.cuts = False, [1_000_000]
    assert cloud.one.show(importing(distributor.entry()))["size"] == len(DISK)


def test_a_download_that_breaks_again_and_again_is_kept_for_the_next_run(cloud, distributor, importing, tmp_path):
    distributor.cuts = [1_000_000] + [0] * 5
    with pytest.raises(Unavailable, match="brume images build"):
        importing(distributor.entry())
    (part,) = (tmp_path / "downloads").iterdir()
    assert part.stat().st_size == 1_000_000 and cloud.admin.names() == []
    assert cloud.one.show(importing(distributor.entry()))["size"] == len(DISK)
    assert distributor.asked[-1] == "/image.qcow2 bytes=1000000-"


def test_without_a_network_the_way_out_is_named(cloud, distributor, importing):
    distributor.shutdown()
    distributor.server_close()
    with pytest.raises(Unavailable, match=r"cannot download .*brume images build"):
        importing(distributor.entry())


def test_a_missing_file_is_told_with_its_url(distributor, importing):
    with pytest.raises(Unavailable, match=r"missing\.qcow2: 404"):
        entry = distributor.entry(url=f"{distributor.url}/missing.qcow2")
        distributor.files["/SUMS"] = f"{'0' * 64}  missing.qcow2\n".encode()
        importing(entry)


def test_an_image_that_the_cloud_refuses_is_not_left_behind(cloud, distributor, importing):
    distributor.files["/image.qcow2"] = bad = qcow2(backing=8)
    distributor.files["/SUMS"] = f"SHA512 (image.qcow2) = {hashlib.sha512(bad).hexdigest()}\n".encode()
    with pytest.raises(RestError, match="backing file"):
        importing(distributor.entry())
    assert cloud.admin.names() == []


SHA256, SHA512, MD5 = "a1" * 32, "b2" * 64, "c3" * 16


@pytest.mark.parametrize(("listing", "found"), [
    (f"{SHA512}  disk.img\n{SHA512.replace('b', 'd')}  other.img\n", SHA512),
    (f"{SHA256} *disk.img\n", SHA256),
    (f"{SHA256.upper()} ./disk.img\n", SHA256),
    (f"-----BEGIN PGP SIGNED MESSAGE-----\n\n# disk.img: 5 bytes\nSHA256 (disk.img) = {SHA256}\n-----BEGIN PGP", SHA256),
    (f"{MD5}  disk.img\n", MD5),
    (f"{SHA256}\n", SHA256),
])
def test_checksums_are_read_in_the_usual_spellings(listing, found):
    assert catalogue.checksum_of(listing, "disk.img") == found


@pytest.mark.parametrize("listing", ["", f"{SHA256}  disk.img.xz\n", f"{SHA256}  mydisk.img\n",
                                     f"{SHA256[:40]}  disk.img\n", "<html>"])
def test_a_list_without_the_file_gives_no_checksum(listing):
    with pytest.raises(NotFound, match=r"disk\.img"):
        catalogue.checksum_of(listing, "disk.img")


def test_the_catalogue_is_complete_and_over_https():
    entries = catalogue.load()
    assert {"debian-12", "ubuntu-24.04", "cirros"} <= entries.keys()
    for entry in entries.values():
        assert entry.url.startswith("https://") and entry.checksums.startswith("https://"), entry.name
        assert entry.format in ("qcow2", "raw") and entry.user and entry.min_disk and entry.min_ram
        assert all(isinstance(value, str) for value in entry.properties.values())
    with pytest.raises(NotFound, match="debian-12"):
        catalogue.find(entries, "windows")


def test_a_catalogue_that_makes_no_sense_is_named(tmp_path):
    for text in ("- name: x\n", "{", "- [1]\n", "5"):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(Invalid, match=r"c\.yaml"):
            catalogue.load(tmp_path / "c.yaml")
