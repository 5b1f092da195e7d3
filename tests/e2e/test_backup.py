"""A backup made of a running cloud, and the cloud made of it again after all but the virtual machines was lost."""
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.backup import restoring
from control.cli import processes
from control.cli.session import RestError
from tests.e2e.cloud import Cloud, until
from tests.e2e.test_guests import Tenant

pytestmark = [pytest.mark.vm, pytest.mark.host, pytest.mark.etcd]

NAME, PORT, PUBLIC = "brumeback", 5400, "172.24.54.0/24"


class OwnCloud(Cloud):
    """A cloud beside the one that the other tests share."""

    def up(self) -> dict[str, Any]:
        return json.loads(self.brume("up", "--json", "--port", str(PORT), "--name", NAME, "--public-cidr", PUBLIC).stdout)


@pytest.fixture(scope="module")
def own_cloud() -> Iterator[OwnCloud]:
    if os.geteuid() != 0:
        pytest.skip("a whole cloud needs root: virtual machines and networks")
    cloud = OwnCloud(Path(tempfile.mkdtemp(prefix="brume-", dir="/var/tmp")))
    try:
        cloud.up()
        yield cloud
    finally:
        cloud.brume("down", "--purge", "--yes", check=False)
        shutil.rmtree(cloud.state_dir, ignore_errors=True)


def lose_everything(cloud: Cloud) -> None:
    """Kill the cloud's processes, virtual machines aside, and delete what the control plane has."""
    pids = [row["pid"] for row in processes.status(cloud.config) if row["pid"]]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: processes.wait_for_lock(cloud.config, 0.1), "all processes are gone", 30)
    for path in restoring.occupied(cloud.state_dir):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def test_a_restored_cloud_adopts_what_runs_and_names_what_it_does_not_know(own_cloud: OwnCloud, tmp_path: Path) -> None:
    cloud = own_cloud
    tenant = Tenant(cloud, "keeper", "10.9.0.0/24", tmp_path)
    server, address = tenant.boot("kept")
    boot_id = tenant.run(address, "cat /proc/sys/kernel/random/boot_id").strip()
    assert boot_id
    file = tmp_path / "cloud.backup"
    (tmp_path / "passphrase").write_text("a long enough passphrase\n")
    made = json.loads(cloud.brume("backup", str(file), "--encrypt", str(tmp_path / "passphrase"), "--json").stdout)
    assert made["images"] == 1 and made["records"]["compute/servers"] == 1
    assert file.stat().st_mode & 0o777 == 0o600
    # After the backup: another server, and a reboot of the first, so that its agent has seen newer wishes than the backup has.
    late, _ = tenant.boot("late")
    tenant.session.request("POST", "compute", f"/servers/{server['id']}/action", {"reboot": {"type": "HARD"}})
    until(lambda: tenant.run(address, "cat /proc/sys/kernel/random/boot_id").strip() not in ("", boot_id), "rebooted", 120)
    boot_id = tenant.run(address, "cat /proc/sys/kernel/random/boot_id").strip()
    before = cloud.state_dir / "audit"
    assert cloud.brume("audit", "verify").returncode == 0

    lose_everything(cloud)
    assert not (cloud.state_dir / "etcd").exists()
    refused = cloud.brume("restore", str(file), check=False)
    assert refused.returncode and "passphrase" in refused.stderr
    cloud.brume("restore", str(file), "--passphrase", str(tmp_path / "passphrase"))
    up = cloud.up()
    tenant.servers.remove(late["id"])
    assert up["unknown_servers"] == {cloud.config.host_name: [late["id"]]}

    session = tenant.session
    rows = session.request("GET", "compute", "/servers/detail")["servers"]
    assert [row["name"] for row in rows] == ["kept"]
    until(lambda: session.request("GET", "compute", f"/servers/{server['id']}")["server"]["status"] == "ACTIVE", "adopted", 60)
    until(lambda: tenant.run(address, "cat /proc/sys/kernel/random/boot_id").strip() == boot_id,
          "the same guest, reached by SSH as before", 60)
    # What is asked for counts again: a reboot more than the backup knew of, and another server.
    session.request("POST", "compute", f"/servers/{server['id']}/action", {"reboot": {"type": "HARD"}})
    until(lambda: tenant.run(address, "cat /proc/sys/kernel/random/boot_id").strip() not in ("", boot_id), "rebooted anew", 120)
    _, other = tenant.boot("after")
    assert tenant.run(other, "hostname").strip().startswith("after")
    # The journal goes on across the restore, and says who made what.
    assert cloud.brume("audit", "verify").returncode == 0 and before.exists()
    shown = [json.loads(line) for line in cloud.brume("audit", "show", "--json", "--id", server["id"]).stdout.splitlines()]
    assert shown[0]["rpc"] == "/compute.v1.Servers/CreateServer" and shown[0]["actor"].startswith("user:")
    assert shown[0]["request"].startswith("req-") and any(row["actor"] == "control:restore" for row in shown)
    tenant.close()


def test_a_cloud_in_place_is_replaced_only_when_that_is_asked_for(own_cloud: OwnCloud, tmp_path: Path) -> None:
    file = tmp_path / "cloud.backup"
    own_cloud.brume("backup", str(file))
    assert own_cloud.brume("backup", "verify", str(file)).returncode == 0
    admin = own_cloud.session("admin")
    admin.request("POST", "identity", "/projects", {"project": {"name": "made-later"}})
    refused = own_cloud.brume("restore", str(file), check=False)
    assert refused.returncode and "--replace" in refused.stderr
    said = json.loads(own_cloud.brume("restore", str(file), "--replace", "--json").stdout)
    assert (Path(said["replaced"]) / "etcd").exists()
    own_cloud.up()
    with pytest.raises(RestError) as gone:
        own_cloud.session("admin").request("GET", "identity", "/projects/made-later")
    assert gone.value.status == 404
    names = [row["name"] for row in own_cloud.session("admin").request("GET", "identity", "/projects")["projects"]]
    assert "admin" in names and "made-later" not in names


def test_a_cloud_of_one_replica_becomes_one_of_three(own_cloud: OwnCloud, tmp_path: Path) -> None:
    if not shutil.which("haproxy"):
        pytest.skip("several replicas need haproxy")
    file = tmp_path / "cloud.backup"
    own_cloud.brume("backup", str(file))
    image = own_cloud.session("admin").request("GET", "image", "/v2/images?name=tiny")["images"][0]
    own_cloud.brume("restore", str(file), "--replace", "--replicas", "3")
    own_cloud.up()
    names = [row["name"] for row in processes.status(own_cloud.config) if row["pid"]]
    assert {"etcd-1", "etcd-2", "etcd-3", "control-3", "journal-2"} <= set(names)
    admin = own_cloud.session("admin")
    assert admin.request("GET", "image", f"/v2/images/{image['id']}")["status"] == "active"
    admin.request("POST", "identity", "/projects", {"project": {"name": "of-three"}})
    one, other = (own_cloud.state_dir / f"replica-{number}" / "audit" for number in (1, 3))
    until(lambda: "of-three" in own_cloud.brume("audit", "show", "--json", "--journal", str(other)).stdout, "it is written", 30)
    said = json.loads(own_cloud.brume("audit", "verify", "--journal", str(one), "--against", str(other), "--json").stdout)
    assert said["holds"] and said["compared"] > 50
    # And a backup of the three is one of one again.
    again = tmp_path / "three.backup"
    made = json.loads(own_cloud.brume("backup", str(again), "--json").stdout)
    assert made["images"] == 1
    own_cloud.brume("restore", str(again), "--replace", "--replicas", "1")
    own_cloud.up()
    names = [row["name"] for row in own_cloud.session("admin").request("GET", "identity", "/projects")["projects"]]
    assert "of-three" in names
    # The first replica's journal went on through both.
    assert own_cloud.brume("audit", "verify").returncode == 0
    eras = {json.loads(line)["era"] for line in own_cloud.brume("audit", "show", "--json").stdout.splitlines()}
    assert len(eras) >= 3
