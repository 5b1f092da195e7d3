"""What a machine is for its cloud, and the bundles that make it so."""
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from control.kernel import config, pki
from control.kernel.config import ReplicaPlace
from control.kernel.errors import Invalid

BRUME = [sys.executable, "-m", "control.cli.main"]

THREE = "".join(f'[[replicas]]\nname = "r{number}"\naddress = "10.9.0.{number}"\n' for number in (1, 2, 3))


def brume(state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BRUME, "--state-dir", str(state_dir), *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The state directory of r1 of three."""
    file = tmp_path / "brume.toml"
    file.write_text(THREE)
    state_dir = tmp_path / "r1"
    config.save(config.load(state_dir, file, host="r1"))
    pki.ensure_ca(state_dir / "pki")
    for name in ("admin", "demo"):
        config.write_private(state_dir / f"{name}.password", b"secret-" + name.encode())
    return state_dir


def test_a_machine_is_a_replica_a_host_or_both_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "brume.toml"
    file.write_text(THREE + "agent = true\n")
    what = {name: config.load(tmp_path, file, host=name) for name in ("r1", "r3", "elsewhere")}
    assert {name: (one.runs_control, one.runs_agent) for name, one in what.items()} == {
        "r1": (True, False), "r3": (True, True), "elsewhere": (False, True)}
    alone = config.load(tmp_path / "alone")
    assert alone.runs_control and alone.runs_agent and alone.etcd_endpoints == ("https://127.0.0.1:5003",)
    r3 = what["r3"]
    assert (r3.listen, r3.agent_listen, r3.host_address) == ("10.9.0.3",) * 3
    assert r3.etcd_endpoints[0] == "https://10.9.0.3:5003" and len(r3.etcd_endpoints) == 3
    assert {one.url for one in what.values()} == {"http://10.9.0.1:5000"}, "the catalog would depend on who writes it"
    assert what["elsewhere"].agent_endpoints == tuple(f"10.9.0.{number}:5002" for number in (1, 2, 3))


def test_replicas_are_saved_and_follow_the_file_when_an_address_changes(tmp_path: Path) -> None:
    file = tmp_path / "brume.toml"
    file.write_text(THREE)
    config.save(config.load(tmp_path, file, host="r1"))
    assert config.load(tmp_path).replicas[2] == ReplicaPlace("r3", "10.9.0.3")
    file.write_text(THREE.replace("10.9.0.1", "10.9.0.11"))
    assert config.load(tmp_path, file).listen == "10.9.0.11"


@pytest.mark.parametrize("text, named", [
    ("replicas = [3]", "an entry"), ('[[replicas]]\nname = "r1"', "an entry"),
    ('[[replicas]]\nname = "r1"\naddress = "here"', "address of replica r1"),
    ('[[replicas]]\nname = "../r1"\naddress = "10.9.0.1"', "host name"),
    (THREE + '[[replicas]]\nname = "r1"\naddress = "10.9.0.9"', "no two"),
    ("replicas_here = 2", "1, 3 or 5"), ('host = "control"', "--host"),
    ('host = "control-1"', "--host"), ("replicas_here = 3\n" + THREE, "stand alone"), ('replica_cidr = "x"', "replica_cidr"),
    ("certificate_days = 0.0", "certificate_days")])
def test_settings_of_several_machines_that_make_no_sense_are_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "brume.toml"
    file.write_text(text)
    with pytest.raises(Invalid, match=named):
        config.load(tmp_path, file)


def test_a_replicas_bundle_makes_its_machine_that_replica(first: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "r2.tar"
    assert brume(first, "certificate", "replica", "r2", "--output", str(bundle)).returncode == 0
    assert bundle.stat().st_mode & 0o777 == 0o600
    second = tmp_path / "r2"
    assert "r2" in brume(second, "join", str(bundle)).stdout
    loaded = config.load(second)
    assert (loaded.host_name, loaded.listen, loaded.replicas) == ("r2", "10.9.0.2", config.load(first).replicas)
    for name in ("pki/ca.key", "pki/ca.crt", "admin.password", "demo.password"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
        assert (second / name).stat().st_mode & 0o777 == 0o600
    assert (second / "etcd.joined").exists(), "it would found a cluster of its own"


def test_a_hosts_bundle_holds_nothing_but_the_hosts_own(first: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "h1.tar"
    assert brume(first, "certificate", "host", "h1", "--address", "10.9.1.1", "--output", str(bundle)).returncode == 0
    with tarfile.open(bundle) as tar:
        assert set(tar.getnames()) == {"cloud.json", "pki/ca.crt", "pki/h1.crt", "pki/h1.key"}
    assert not (first / "pki" / "h1.key").exists()
    brume(tmp_path / "h1", "join", str(bundle))
    loaded = config.load(tmp_path / "h1")
    assert (loaded.host_name, loaded.host_address, loaded.runs_control, loaded.runs_agent) == ("h1", "10.9.1.1", False, True)


def test_a_cloud_on_loopback_makes_no_bundle_for_a_host_that_could_not_reach_it(tmp_path: Path) -> None:
    config.save(config.load(tmp_path))
    pki.ensure_ca(tmp_path / "pki")
    done = brume(tmp_path, "certificate", "host", "h1")
    assert done.returncode == 1 and "agent_listen" in done.stderr


def bundle_of(path: Path, **files: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "pki/../../x.key", "bin/brume", "pki/.hidden.key"])
def test_a_bundle_with_anything_else_in_it_is_refused_whole(tmp_path: Path, name: str) -> None:
    bundle = bundle_of(tmp_path / "b.tar", **{"cloud.json": json.dumps({"host": "x"}).encode(), "pki/ca.crt": b"x", name: b"x"})
    done = brume(tmp_path / "state", "join", str(bundle))
    assert done.returncode == 1 and "no bundle" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()
