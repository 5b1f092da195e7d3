"""The cloud that a chaos run is about: three replicas of `brume up`, each on a small disk of its own, and simulated hosts.

Everything is made under one directory and carries the run's own name; `down` leaves nothing of it.
"""
import contextlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from control.cli import credentials
from control.cli.session import RestError, Session
from control.kernel import config as settings
from control.kernel import pki
from control.kernel.config import Config
from tests.chaos.clients import Given

BRUME = [sys.executable, "-m", "control.cli.main"]
NAME, PORT, PUBLIC, REPLICA_CIDR = "brumechaos", 5700, "172.24.60.0/24", "172.24.61.0/24"

#: Of the network that servers and addresses are on.
CIDR, PREFIX = "10.77.0.0/24", "10.77.0."

#: The processes that have the simulated hosts, half of them each.
FLEETS = ("fleet-1", "fleet-2")

#: MiB of each replica's disk: half an hour of work is 200 for etcd beside its log of 128, and 170 for the audit journal.
DISK_MIB = 1536

#: What one project may have: less than the clients would like.
QUOTA = {"instances": 30, "cores": -1, "ram": -1, "key_pairs": -1}


class Setting:
    """faults.Parts, and how it is brought up and down.

    Args:
      directory: for everything; made anew.
    """

    def __init__(self, directory: Path, seed: int, hosts: int):
        self.directory = directory
        self.state_dir = directory / "state"
        self.seed, self.hosts = seed, hosts
        self._fleets: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = False

    # The way up and down

    def up(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        (self.directory / "clocks").mkdir(parents=True)
        self.directory.chmod(0o711)
        _mount_disks([Path(self.disk(replica)) for replica in (1, 2, 3)], self.directory)
        library = self.directory / "clock.so"
        subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", library, Path(__file__).with_name("clock.c"), "-ldl"], check=True)
        (self.directory / "cloud.toml").write_text(
            f'name = "{NAME}"\nport = {PORT}\npublic_cidr = "{PUBLIC}"\nreplica_cidr = "{REPLICA_CIDR}"\n'
            'hypervisor = "simulated"\nhost = "chaos-host"\nevacuation = "auto"\n')
        self.brume("up", "--replicas", "3", "--config", str(self.directory / "cloud.toml"), "--no-seed", "--json", environment={
            "LD_PRELOAD": str(library), "CHAOS_CLOCK": str(self.directory / "clocks")})
        for name in FLEETS:
            self.start_fleet(name)

    def down(self) -> None:
        self._stopping = True
        for fleet in self._fleets.values():
            fleet.terminate()
            fleet.wait()
        with contextlib.suppress(subprocess.CalledProcessError, subprocess.TimeoutExpired):
            self.brume("down")
        for replica in (1, 2, 3):
            subprocess.run(["umount", self.disk(replica)], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self.directory, ignore_errors=True)

    def out_of_step(self) -> list[str]:
        """What `brume doctor` finds on a replica: of its files and of the state."""
        done = subprocess.run([*BRUME, "--state-dir", str(self.state_dir), "doctor", "--json"], check=False, text=True,
                              timeout=60, capture_output=True)
        if done.returncode not in (0, 1) or not done.stdout:
            return [f"brume doctor: {done.returncode} {done.stderr[-500:]}"]
        return [f"doctor: {finding['subject']} {finding['what']}" for finding in json.loads(done.stdout)["findings"]]

    def brume(self, *arguments: str, environment: dict[str, str] | None = None, timeout: float = 180) -> str:
        """What a `brume` command on this cloud prints. Raises CalledProcessError."""
        return subprocess.run([*BRUME, "--state-dir", str(self.state_dir), *arguments], check=True, text=True, timeout=timeout,
                              env=os.environ | (environment or {}), stdout=subprocess.PIPE).stdout

    def start_fleet(self, name: str) -> None:
        """Start a process with its half of the hosts."""
        own = pki.ensure_leaf(self.config.pki_dir, "*.sim", client=True)
        half = self.hosts // 2
        with (self.directory / f"{name}.log").open("ab") as log:
            self._fleets[name] = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.fleet", self._domains_of(name), str(FLEETS.index(name) * half), str(half),
                 str(self.seed), own.ca, own.certificate, own.key, *self.config.agent_endpoints], stdout=log, stderr=log,
                env=os.environ | {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"})

    def watch_fleets(self) -> None:
        """Start again what died of the hosts, as those who run them would."""
        for name, fleet in list(self._fleets.items()):
            if fleet.poll() is not None and not self._stopping:
                self.start_fleet(name)

    def domains(self) -> dict[str, dict[str, str]]:
        """What is on the simulated hosts now."""
        found: dict[str, dict[str, str]] = {}
        for name in FLEETS:
            file = self._domains_of(name)
            file.unlink(missing_ok=True)
            os.kill(self.pid(name), signal.SIGUSR1)
            limit = time.monotonic() + 20
            while not file.exists():
                if time.monotonic() > limit:
                    raise TimeoutError("the simulated hosts do not say what is on them")
                time.sleep(0.05)
            found |= json.loads(file.read_text())
        return found

    def _domains_of(self, name: str) -> Path:
        return self.directory / f"{name}.json"

    # As faults see it

    @property
    def config(self) -> Config:
        return settings.load(self.state_dir)

    def processes(self) -> Sequence[str]:
        return [*(f"{part}-{replica}" for part in ("etcd", "control") for replica in (1, 2, 3)), "haproxy", *FLEETS]

    def pid(self, process: str) -> int:
        if process in FLEETS:
            fleet = self._fleets.get(process)
            return fleet.pid if fleet is not None and fleet.poll() is None else 0
        try:
            return int((self.state_dir / "run" / f"{process}.pid").read_text())
        except (FileNotFoundError, ValueError):
            return 0

    def namespace(self, replica: int) -> str:
        return f"{NAME}-replica-{replica}"

    def address(self, replica: int) -> str:
        return self.config.places[replica - 1].address

    def disk(self, replica: int) -> str:
        return str(self.state_dir / f"replica-{replica}")

    def clock(self, seconds: float, replica: int = 0) -> None:
        for file in (self.directory / "clocks").iterdir():
            if not replica or file.name == str(os.stat(f"/run/netns/{self.namespace(replica)}").st_ino):
                with file.open("r+b") as offset:
                    offset.write(struct.pack("q", round(seconds * 1e9)))

    # What clients need

    def session(self, user: str) -> Session:
        return credentials.ensure(self.config)[user].session(self.config)

    def prepare(self) -> Given:
        """An image, a flavor, quotas, and hosts that are there: what clients work with."""
        admin, demo = self.session("admin"), self.session("demo")
        self._wait_for_hosts(admin)
        flavor = admin.request("POST", "compute", "/flavors", {"flavor": {
            "name": "chaos", "ram": 64, "vcpus": 1, "disk": 1}})["flavor"]["id"]
        image = demo.request("POST", "image", "/v2/images", {
            "name": "chaos", "disk_format": "raw", "container_format": "bare"})["id"]
        demo.request("PUT", "image", f"/v2/images/{image}/file", os.urandom(1 << 20), headers={
            "Content-Type": "application/octet-stream"})
        project = demo.request("GET", "identity", "/auth/projects")["projects"][0]["id"]
        admin.request("PUT", "compute", f"/os-quota-sets/{project}", {"quota_set": QUOTA})
        admin.request("PUT", "network", f"/v2.0/quotas/{project}", {"quota": {"port": -1}})
        network = demo.request("POST", "network", "/v2.0/networks", {"network": {"name": "chaos"}})["network"]["id"]
        # the addresses above 199 are given to nobody who does not ask for one
        subnet = demo.request("POST", "network", "/v2.0/subnets", {"subnet": {
            "network_id": network, "ip_version": 4, "cidr": CIDR,
            "allocation_pools": [{"start": PREFIX + "10", "end": PREFIX + "199"}]}})["subnet"]["id"]
        # nobody is to be placed on the machine's own host: what is on it is not written down
        admin.request("PUT", "compute", "/os-services/disable", {"binary": "nova-compute", "host": "chaos-host"})
        login = credentials.ensure(self.config)["demo"]
        replicas = [f"http://{self.address(replica)}:{PORT}" for replica in (1, 2, 3)]
        return Given(
            endpoints=[*replicas, self.config.url], replicas=replicas, user=login.user,
            password=login.password, project=login.project, image=image, flavor=flavor, network=network, subnet=subnet,
            prefix=PREFIX)

    def _wait_for_hosts(self, admin: Session, within: float = 60.0) -> None:
        limit = time.monotonic() + within
        while (up := self.hosts_up(admin)) < self.hosts // 2 * 2:
            if time.monotonic() > limit:
                raise TimeoutError(f"{up} of {self.hosts} simulated hosts are up")
            time.sleep(0.2)

    def hosts_up(self, admin: Session) -> int:
        try:
            services: list[dict[str, Any]] = admin.request("GET", "compute", "/os-services?binary=nova-compute")["services"]
        except RestError:
            return 0
        return sum(service["state"] == "up" and service["host"].endswith(".sim") for service in services)


def _mount_disks(places: Sequence[Path], directory: Path) -> None:
    """A file system of its own at each place: it can be filled and frozen without harm to others."""
    for number, place in enumerate(places, 1):
        image = directory / f"disk-{number}"
        with image.open("wb") as file:
            file.truncate(DISK_MIB << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        place.mkdir(parents=True)
        subprocess.run(["mount", "-o", "loop", image, place], check=True)


@contextlib.contextmanager
def brought_up(directory: Path, seed: int, hosts: int) -> Iterator[Setting]:
    """The setting for as long as the context lasts."""
    setting = Setting(directory, seed, hosts)
    try:
        setting.up()
        yield setting
    finally:
        setting.down()
