"""Machines for tests: each a network namespace with an address and a state directory of its own, on one bridge."""
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.network import kernel
from control.cli import processes
from control.kernel import config as settings
from control.kernel.config import Config

BRUME = [sys.executable, "-m", "control.cli.main"]
NAME, NETWORK = "brumemach", "172.24.41"


@dataclass
class Machine:
    """One of them. Its commands see its namespace and its state directory only."""

    name: str
    number: int
    directory: Path
    #: Flags of every `brume up` on it.
    flags: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"{NETWORK}.{self.number}"

    @property
    def namespace(self) -> str:
        return f"{NAME}-{self.name}"

    @property
    def state_dir(self) -> Path:
        return self.directory / self.name

    @property
    def config(self) -> Config:
        return settings.load(self.state_dir)

    def brume(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", f"--net=/run/netns/{self.namespace}", *BRUME, "--state-dir", str(self.state_dir), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=self.directory)
        if check and done.returncode:
            raise AssertionError(f"brume {' '.join(arguments)} on {self.name}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def up(self) -> dict[str, Any]:
        return json.loads(self.brume("up", "--json", *self.flags).stdout)

    def pids(self) -> dict[str, int]:
        return {row["name"]: row["pid"] for row in processes.status(self.config)}

    def cut_off(self) -> None:
        """All that runs on it dies at once, as when its power goes."""
        for pid in self.pids().values():         # the supervisor first
            if pid:
                os.kill(pid, signal.SIGKILL)


def connect(machines: list[Machine]) -> None:
    """Give each machine its namespace, on a bridge that this process reaches too."""
    with kernel.Netlink() as root:
        root.add_bridge(f"{NAME}-b", "02:00:ac:18:29:fe", 1500, filtered=False)
        bridge = root.the_link(f"{NAME}-b")
        root.change(bridge, up=True)
        root.ensure_addresses(bridge, {f"{NETWORK}.254/24"})
        for machine in machines:
            kernel.ensure_namespace(machine.namespace)
            root.add_veth(f"{NAME}-{machine.number}", 1500, machine.namespace, "eth0", f"02:00:ac:18:29:{machine.number:02x}")
            root.change(root.the_link(f"{NAME}-{machine.number}"), master=bridge.index, up=True)
            with kernel.inside(machine.namespace), kernel.Netlink() as inside:
                for name, address in (("lo", "127.0.0.1/8"), ("eth0", f"{machine.address}/24")):
                    link = inside.the_link(name)
                    inside.change(link, up=True)
                    inside.ensure_addresses(link, {address})


def disconnect() -> None:
    """Remove all that connect() made."""
    for name in kernel.namespace_names():
        if name.startswith(f"{NAME}-"):
            kernel.remove_namespace(name)
    with kernel.Netlink() as root:
        for name in root.links():
            if name.startswith(f"{NAME}-"):
                root.remove(name)
