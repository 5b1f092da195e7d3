"""A whole cloud of the tests' own, driven by the commands and clients that users have."""
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from control.cli import credentials, processes
from control.cli.session import Session
from control.kernel import config as settings
from control.kernel.config import Config

BRUME = [sys.executable, "-m", "control.cli.main"]
NAME, PORT, PUBLIC = "brumetest", 5100, "172.24.40.0/24"


@dataclass
class Cloud:
    """The running cloud and the ways to use it."""

    state_dir: Path

    @property
    def config(self) -> Config:
        return settings.load(self.state_dir)

    def session(self, user: str = "demo") -> Session:
        return credentials.ensure(self.config)[user].session(self.config)

    def brume(self, *arguments: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """A `brume` command on this cloud."""
        done = subprocess.run([*BRUME, "--state-dir", str(self.state_dir), *arguments], capture_output=True, text=True,
                              timeout=timeout, check=False)
        if check and done.returncode:
            raise AssertionError(f"brume {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}\n{self.logs()}")
        return done

    def up(self) -> dict[str, Any]:
        return json.loads(self.brume("up", "--json", "--port", str(PORT), "--name", NAME, "--public-cidr", PUBLIC).stdout)

    def openstack(self, *arguments: str, cloud: str = "brume", check: bool = True, env: dict[str, str] | None = None) -> str:
        """An unmodified `openstack` command; its standard output. Raises AssertionError with what it said when it fails."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("OS_")}
        environment = clean | (env or {"OS_CLIENT_CONFIG_FILE": str(self.state_dir / "clouds.yaml"), "OS_CLOUD": cloud})
        done = subprocess.run([str(Path(sys.executable).with_name("openstack")), *arguments], capture_output=True, text=True,
                              env=environment, timeout=180, check=False)
        if check and done.returncode:
            raise AssertionError(f"openstack {' '.join(arguments)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout if check else done.stdout + done.stderr

    def openstack_json(self, *arguments: str, cloud: str = "brume") -> Any:
        return json.loads(self.openstack(*arguments, "-f", "json", cloud=cloud))

    def pid(self, process: str) -> int:
        return next(row["pid"] for row in processes.status(self.config) if row["name"] == process)

    def ssh(self, address: str, key: Path, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ssh", "-i", str(key), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
             "-o", "ConnectTimeout=3", "-o", "LogLevel=ERROR", f"root@{address}", command],
            capture_output=True, text=True, timeout=60, check=False)

    def logs(self) -> str:
        return processes.log_ends(self.config, "supervisor", "etcd", "libvirtd", "control", "agent", lines=15)


def until(done: Callable[[], Any], what: str, within: float = 60.0) -> Any:
    """The first true answer of `done`; fails with `what` when there is none in time."""
    limit = time.monotonic() + within
    while True:
        answer = done()
        if answer:
            return answer
        if time.monotonic() > limit:
            pytest.fail(f"not within {within:.0f} s: {what}")
        time.sleep(0.2)


def leftovers(name: str) -> list[str]:
    """What a cloud of this name has on the machine: namespaces, links, nft tables, dnsmasq and QEMU processes."""
    def lines(*command: str) -> list[str]:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    found = [f"namespace {line}" for line in lines("ip", "netns", "list") if line.startswith(f"{name}-")]
    found += [f"link {link['ifname']}" for link in json.loads("".join(lines("ip", "-json", "link")) or "[]")
              if link.get("ifalias", "").startswith(f"{name}/")]
    found += [line for line in lines("nft", "list", "tables") if name in line]
    return found
