"""`brume simulate` against a whole cloud: its hosts attach, get servers, and a trace is played on them."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.cli.session import RestError
from tests.e2e.cloud import BRUME, Cloud, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="a cloud needs root")


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """A cloud of this file's own, whose one host pretends, too."""
    state_dir = Path(tempfile.mkdtemp(prefix="brume-", dir="/var/tmp"))
    (state_dir / "settings.toml").write_text('hypervisor = "simulated"\n')
    made = Cloud(state_dir)
    try:
        made.brume("up", "--config", str(state_dir / "settings.toml"), "--name", "brumepretend", "--port", "5160",
                   "--public-cidr", "172.24.41.0/24", "--no-seed", "--json")
        yield made
    finally:
        made.brume("down", "--purge", "--yes", check=False)
        shutil.rmtree(state_dir, ignore_errors=True)


def services(cloud: Cloud) -> dict[str, dict[str, Any]]:
    rows = cloud.session("admin").request("GET", "compute", "/os-services?binary=nova-compute")["services"]
    return {row["host"]: row for row in rows if row["host"].endswith(".sim")}


def test_simulated_hosts_attach_with_the_familys_certificate_and_a_ctrl_c_ends_them_cleanly(cloud: Cloud) -> None:
    command = subprocess.Popen([*BRUME, "--state-dir", str(cloud.state_dir), "simulate", "--hosts", "20", "--zones", "a,b",
                                "--processes", "2", "--json"], stdout=subprocess.PIPE, text=True)
    try:
        until(lambda: [row["state"] for row in services(cloud).values()] == ["up"] * 20, "20 hosts are up")
        assert {row["zone"] for row in services(cloud).values()} == {"a", "b"}
        hypervisors = cloud.session("admin").request("GET", "compute", "/os-hypervisors/detail")["hypervisors"]
        assert {row["vcpus"] for row in hypervisors if row["hypervisor_hostname"].endswith(".sim")} == {64}
        assert command.stdout
        said = next(line for line in map(json.loads, command.stdout) if line["attached"] == 20)
        assert (said["hosts"], said["running"], said["reconnects"]) == (20, 0, 0)
    finally:
        command.send_signal(signal.SIGINT)
        command.communicate(timeout=30)
    assert command.returncode == 0
    assert not Path(f"/proc/{command.pid}/task").exists()
    until(lambda: all(row["state"] == "down" for row in services(cloud).values()), "silent hosts are written down")


def test_a_trace_is_played_and_what_has_no_room_is_counted(cloud: Cloud, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    small = [f"{number},{60 + number},1,512" for number in range(12)]
    trace.write_text("\n".join(["arrival,lifetime,vcpus,ram", *small, "5,30,1,4000000"]) + "\n")
    done = cloud.brume("simulate", "--hosts", "3", "--latency", "start=0.01..0.05", "--replay", str(trace), "--speed", "20",
                       "--json", timeout=120)
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["asked"], said["placed"], said["refused"], said["failed"], said["alive"]) == (13, 12, 1, 0, 0)
    assert said["deleted"] == 12 and 0 < said["active_p50_ms"] <= said["active_p99_ms"]
    admin = cloud.session("admin")
    until(lambda: not admin.request("GET", "compute", "/servers?all_tenants=1")["servers"], "its servers are gone")
    with pytest.raises(RestError):
        admin.request("GET", "compute", "/flavors/sim-9-9")


def test_without_a_cloud_the_command_says_what_to_do(tmp_path: Path) -> None:
    done = Cloud(tmp_path / "none").brume("simulate", "--hosts", "1", check=False)
    assert done.returncode == 1 and "run `brume up` first" in done.stderr and "Traceback" not in done.stderr
