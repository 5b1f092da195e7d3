"""A cloud of its own with simulated hosts, for benchmarks: brought up, filled with projects, and taken away again."""
import contextlib
import http.client
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import load

from agents.simulation import run
from agents.simulation.fleet import Plan
from control.cli import credentials, processes
from control.cli.session import Session
from control.cli.simulate import FAMILY
from control.kernel import config as settings
from control.kernel import pki
from control.kernel.config import Config

#: Beside any other cloud of the machine.
NAME, PORT, PUBLIC = "brumesim", 5300, "172.24.53.0/24"


@dataclass(frozen=True, slots=True)
class Tenant:
    """A project with a token, a network of its own and room for all that it wants."""

    project: str
    token: str
    network: str


@dataclass(frozen=True, slots=True)
class Cloud:
    """A cloud that runs. `flavor` and `image` are what servers are made of."""

    config: Config
    admin: Session
    flavor: str
    image: str

    def pids(self) -> dict[str, list[int]]:
        """Processes by what they are."""
        return {row["name"]: [row["pid"]] for row in processes.status(self.config) if row["pid"]}

    def tenants(self, count: int) -> list[Tenant]:
        return [self._tenant(number) for number in range(count)]

    def admin_token(self) -> str:
        """A token of the admin in its project."""
        return self._token("admin", "admin", self.config.path("admin.password").read_text().strip(), name=True)

    def _tenant(self, number: int) -> Tenant:
        admin = self.admin
        project = admin.request("POST", "identity", "/projects", {"project": {"name": f"bench-{number}"}})["project"]["id"]
        user = admin.request("POST", "identity", "/users", {"user": {"name": f"bench-{number}", "password": "bench-password"}})
        role = admin.request("GET", "identity", "/roles?name=member")["roles"][0]["id"]
        admin.request("PUT", "identity", f"/projects/{project}/users/{user['user']['id']}/roles/{role}")
        admin.request("PUT", "compute", f"/os-quota-sets/{project}", {"quota_set": {"instances": -1, "cores": -1, "ram": -1}})
        admin.request("PUT", "network", f"/v2.0/quotas/{project}", {"quota": {"port": -1}})
        token = self._token(f"bench-{number}", project, "bench-password")
        client = load.Client(self.config.port)
        _, made = client.json("POST", "/network/v2.0/networks", {"network": {"name": "net"}}, token)
        network = made["network"]["id"]
        client.json("POST", "/network/v2.0/subnets", {"subnet": {
            "network_id": network, "ip_version": 4, "cidr": f"10.{number % 256}.0.0/16"}}, token)
        return Tenant(project, token, network)

    def _token(self, user: str, project: str, password: str, *, name: bool = False) -> str:
        scope = {"name": project, "domain": {"id": "default"}} if name else {"id": project}
        headers, _ = load.Client(self.config.port).json("POST", "/v3/auth/tokens", {"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": user, "domain": {"id": "default"}, "password": password}}},
            "scope": {"project": scope}}})
        return headers["X-Subject-Token"]


@contextlib.contextmanager
def running(port: int = PORT, replicas: int = 1) -> Iterator[Cloud]:
    """A new cloud in a temporary directory, with fsync as ever; gone afterwards, SIGTERM or not. Needs root."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    state_dir = Path(tempfile.mkdtemp(prefix="brume-", dir="/var/tmp"))
    state_dir.chmod(0o711)                     # a balancer runs as a user of its own
    toml = state_dir / "settings.toml"
    toml.write_text('hypervisor = "simulated"\n')
    try:
        _brume(state_dir, "up", "--config", str(toml), "--name", NAME, "--port", str(port), "--public-cidr", PUBLIC, "--no-seed",
               "--json", *(["--replicas", str(replicas)] if replicas > 1 else []))
        config = settings.load(state_dir)
        admin = credentials.ensure(config)["admin"].session(config)
        flavor = admin.request("POST", "compute", "/flavors", {"flavor": {
            "id": "bench", "name": "bench", "vcpus": 1, "ram": 1024, "disk": 10}})["flavor"]["id"]
        image = admin.request("POST", "image", "/v2/images", {
            "name": "simulated", "disk_format": "raw", "container_format": "bare", "visibility": "public"})["id"]
        admin.request("PUT", "image", f"/v2/images/{image}/file", bytes(512),
                      headers={"Content-Type": "application/octet-stream"})
        # the cloud's own agent simulates a host, too; it shall have no servers
        admin.request("PUT", "compute", "/os-services/disable", {"host": config.host_name, "binary": "nova-compute"})
        yield Cloud(config, admin, flavor, image)
    finally:
        _brume(state_dir, "down", "--purge", "--yes", check=False)
        shutil.rmtree(state_dir, ignore_errors=True)


@contextlib.contextmanager
def hosts(cloud: Cloud, count: int, processes: int = 1, **plan: Any) -> Iterator[run.Processes]:
    """Simulated hosts of the cloud, all of them attached."""
    own = pki.ensure_leaf(cloud.config.pki_dir, FAMILY, client=True)
    wanted = Plan(count=count, ca=own.ca, certificate=own.certificate, key=own.key,
                  endpoints=cloud.config.agent_endpoints, **plan)
    with run.running(wanted, processes) as fleet:
        until(lambda: fleet.totals()["settled"] == count, 600, "the hosts to attach")
        yield fleet


def until(done: Callable[[], bool], within: float, what: str, pause: float = 0.1) -> float:
    """Wait until something is so; the seconds that it took."""
    began = time.monotonic()
    while not done():
        if time.monotonic() - began > within:
            raise SystemExit(f"waited {within:.0f} s in vain for {what}")
        time.sleep(pause)
    return time.monotonic() - began


class Meter:
    """CPU seconds of processes, by what they are, since it was made."""

    def __init__(self, pids: dict[str, list[int]]):
        self._pids = pids
        self._before = self._now()

    def _now(self) -> dict[str, float]:
        return {name: sum(map(load.cpu_seconds, found)) for name, found in self._pids.items()}

    def seconds(self) -> dict[str, float]:
        return {name: after - self._before[name] for name, after in self._now().items()}


def get(port: int, path: str, token: str) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("GET", path, headers={"X-Auth-Token": token})
    answer = connection.getresponse()
    data = answer.read()
    if answer.status >= 400:
        raise SystemExit(f"GET {path}: {answer.status} {data[:300]!r}")
    return json.loads(data)


def _brume(state_dir: Path, *arguments: str, check: bool = True) -> None:
    done = subprocess.run([sys.executable, "-m", "control.cli.main", "--state-dir", str(state_dir), *arguments],
                          capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise SystemExit(f"brume {arguments[0]} failed: {done.stdout}{done.stderr}")
