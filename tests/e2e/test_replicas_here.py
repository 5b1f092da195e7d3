"""Three replicas on one machine, behind one address: a cloud of one grows, loses any of its parts, and leaves nothing behind."""
import http.client
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from control.cli import processes
from control.kernel import pki
from tests.e2e.cloud import Cloud, until
from tests.log_secrets import WATCH

pytestmark = [pytest.mark.host, pytest.mark.etcd, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]

NAME, PORT, NETWORK = "brumehere", 5700, "172.24.42.0/24"


@dataclass
class Here(Cloud):
    def up(self, *flags: str) -> dict[str, Any]:
        return json.loads(self.brume("up", "--json", "--no-seed", *flags).stdout)

    def pids(self) -> dict[str, int]:
        return {row["name"]: row["pid"] for row in processes.status(self.config)}

    def certify(self) -> Path:
        """A new certificate for clients, as an authority outside would give one: with its own behind it."""
        directory = self.state_dir / "clients"
        (directory / "cloud.crt").unlink(missing_ok=True)
        leaf = pki.ensure_leaf(directory, "cloud", ["127.0.0.1"], server=True)
        leaf.certificate.write_bytes(leaf.certificate.read_bytes() + leaf.ca.read_bytes())
        return leaf.certificate

    def answer(self) -> int:
        """The status of a request by a connection of its own; 0 when it is cut off."""
        context = ssl.create_default_context(cafile=self.state_dir / "clients" / "ca.crt")
        connection = http.client.HTTPSConnection("127.0.0.1", PORT, timeout=5, context=context)
        try:
            connection.request("GET", "/v3")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def shown(self, port: int) -> int:
        """The serial number of the certificate that clients see."""
        pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=5)
        return x509.load_pem_x509_certificate(pem.encode()).serial_number


@pytest.fixture(scope="module")
def cloud() -> Iterator[Here]:
    if not shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin"):
        pytest.skip("no haproxy here: apt-get install haproxy")
    state_dir = Path(tempfile.mkdtemp(prefix="brume-", dir="/var/tmp"))
    file = state_dir / "settings.toml"
    cloud = Here(state_dir)
    certificate = cloud.certify()
    file.write_text(f'hypervisor = "simulated"\nreplica_cidr = "{NETWORK}"\n'
                    f'certificate = "{certificate}"\nkey = "{certificate.with_suffix(".key")}"\n')
    try:
        cloud.up("--config", str(file), "--name", NAME, "--port", str(PORT))
        yield cloud
    finally:
        for secret in state_dir.glob("*.password"):
            WATCH.note(secret.read_text().strip())
        WATCH.read(state_dir / "log")
        if keep := os.environ.get("BRUME_KEEP_LOGS"):
            shutil.copytree(state_dir / "log", keep, dirs_exist_ok=True)
        cloud.brume("down", "--purge", "--yes", check=False)
        shutil.rmtree(state_dir, ignore_errors=True)


def made(cloud: Here) -> list[str]:
    """What the cloud's replicas have on the machine."""
    links = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [link["ifname"] for link in links if link["ifname"].startswith(NAME)] + [
        name for name in spaces if name.startswith(f"{NAME}-")]


def test_a_cloud_of_one_grows_to_three_replicas_and_keeps_all_it_has(cloud: Here) -> None:
    cloud.session("admin").request("POST", "compute", "/flavors", {"flavor": {
        "id": "kept", "name": "kept", "vcpus": 1, "ram": 64, "disk": 0}})
    assert made(cloud) == []
    cloud.up("--replicas", "3")
    assert cloud.session("demo").request("GET", "compute", "/flavors/kept")["flavor"]["name"] == "kept"
    pids = cloud.pids()
    assert {"etcd-1", "etcd-2", "etcd-3", "control-1", "control-2", "control-3", "haproxy", "agent"} < pids.keys()
    assert cloud.brume("etcd", "list").stdout.count("voter") == 2

    cloud.up()
    assert cloud.pids() == pids, "up again started something anew"
    assert "has 3 replicas" in cloud.brume("up", "--replicas", "1", check=False).stderr


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_dead_replica_is_not_seen_by_new_connections(cloud: Here, number: int) -> None:
    pids = until(lambda: (found := cloud.pids()) and all(found.values()) and found, "all run", 30)
    for part in (f"control-{number}", f"etcd-{number}"):
        os.kill(pids[part], signal.SIGKILL)
    # What a dying process's socket has accepted dies with it.
    until(lambda: cloud.pids()[f"control-{number}"] != pids[f"control-{number}"], "it is dead", 5)
    assert [status for status in (cloud.answer() for _ in range(300)) if status != 200] == []
    flavor = {"id": f"without-{number}", "name": f"without-{number}", "vcpus": 1, "ram": 64, "disk": 0}
    cloud.session("admin").request("POST", "compute", "/flavors", {"flavor": flavor})
    until(lambda: cloud.pids()[f"control-{number}"] not in (0, pids[f"control-{number}"]), "it runs again", 30)
    until(lambda: "does not answer" not in cloud.brume("etcd", "list").stdout, "its etcd answers", 30)


def test_a_replicas_etcd_is_made_anew(cloud: Here) -> None:
    shutil.rmtree(cloud.state_dir / "replica-1" / "etcd" / "member")
    cloud.brume("etcd", "replace", "replica-1", "--yes")
    table = cloud.brume("etcd", "list").stdout
    assert table.count("voter") == 2 and table.count("leader") == 1 and "replica-1" in table


def test_status_names_every_part_and_how_long_each_certificate_is_good(cloud: Here) -> None:
    status = json.loads(cloud.brume("status", "--json").stdout)
    days = {row["name"]: row["days"] for row in status["certificates"]}
    assert 364 < days["replica-3/etcd"] <= 365 and days["ca"] > 7000
    assert status["api"] and all(row["pid"] for row in status["processes"])


def test_a_new_certificate_for_clients_is_shown_without_a_restart(cloud: Here) -> None:
    pids = cloud.pids()
    new = x509.load_pem_x509_certificate(cloud.certify().read_bytes()).serial_number
    # Three replicas look at their files each on its own: all of them answer in turn.
    until(lambda: {cloud.shown(port) for _ in range(6) for port in (PORT, PORT + 1)} == {new}, "it is shown by all", 20)
    assert cloud.answer() == 200 and cloud.pids() == pids


def test_down_leaves_no_namespace_and_no_link_and_up_brings_three_back(cloud: Here) -> None:
    assert made(cloud)
    cloud.brume("down")
    assert made(cloud) == []
    cloud.up()
    assert cloud.session("demo").request("GET", "compute", "/flavors/without-3")
    assert len([name for name in cloud.pids() if name.startswith("control")]) == 3
