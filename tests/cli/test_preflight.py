"""A machine that cannot carry a cloud is told what is missing, and what to do."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from control.cli import preflight
from control.kernel import config

BRUME = [sys.executable, "-m", "control.cli.main"]


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the first problem is root")
def test_a_port_in_use_is_named_with_who_uses_it(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        problems = preflight.check(config.load(tmp_path, port=port, hypervisor="simulated"))
    [problem] = [problem for problem in problems if str(port) in problem.what]
    assert f"pid {os.getpid()}" in problem.what and "--port" in problem.remedy


@pytest.mark.skipif(os.geteuid() != 0, reason="without root the first problem is root")
def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_found", lambda program: program != "etcd")
    problems = preflight.check(config.load(tmp_path))
    assert preflight.Problem("etcd is not installed", "apt-get install etcd-server") in problems


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to become somebody else")
def test_up_without_root_says_so_and_touches_nothing(tmp_path: Path) -> None:
    state_dir = Path("/var/tmp") / tmp_path.name / "state"
    # Imported first: the interpreter itself may live where only root may read.
    program = "import os, control.cli.cloud, control.cli.main as cli, control.cli.session; os.setuid(65534); cli.main()"
    done = subprocess.run([sys.executable, "-c", program, "--state-dir", str(state_dir), "up"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 1 and "sudo" in done.stderr and "Traceback" not in done.stderr
    assert not state_dir.exists()


def test_env_without_a_cloud_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run([*BRUME, "--state-dir", str(tmp_path), "env"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "brume up" in done.stderr


def test_help_lists_every_command() -> None:
    text = subprocess.run([*BRUME, "--help"], capture_output=True, text=True, check=True).stdout
    for command in ("up", "down", "status", "env", "demo", "images", "policy", "control", "agent"):
        assert f"  {command} " in text
