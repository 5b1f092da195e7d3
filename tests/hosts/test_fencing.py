"""Two replicas and three hosts as processes, on a real etcd: whatever becomes silent, no server ever runs twice.

The hosts are simulated, each in a process with a journal of when its guests ran; all clocks are the machine's own.
"""
import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agents.lease import boottime
from control.cli import credentials
from control.cli.session import Session
from control.hosts import leases
from control.kernel import config as settings
from control.kernel import pki
from control.kernel.config import Config, load
from tests.conftest import Etcd, free_port
from tests.e2e.cloud import until

pytestmark = pytest.mark.etcd


def free_ports(count: int) -> int:
    """The first of so many loopback ports in a row that nothing listens on now."""
    while True:
        first = free_port()
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return first


#: Of the two replicas; each takes the three from there on.
PORTS = (free_ports(3), free_ports(3))


class Cable:
    """A loopback port that leads to another, until it is cut: then nothing comes through, and nobody is told."""

    def __init__(self, to: int):
        self.to, self.cut = to, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._open.append(near)
                if self.cut:
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self.to))
                except OSError:
                    near.close()           # nobody is there
                    continue
                self._open.append(far)
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(a, b), daemon=True).start()

    def _carry(self, a: socket.socket, b: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := a.recv(65536):
                while self.cut:
                    time.sleep(0.05)
                b.sendall(data)
            b.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for each in self._open:
            each.close()


@dataclass
class Cluster:
    state: Path
    etcd: Etcd
    processes: dict[str, subprocess.Popen] = field(default_factory=dict)
    cables: list[Cable] = field(default_factory=list)
    stood: dict[str, float] = field(default_factory=dict)     # host -> when its process was paused

    def save(self) -> None:
        """For commands, which know a cloud by its state directory."""
        settings.save(self.config())

    def spawn(self, name: str, *arguments: str) -> subprocess.Popen:
        with (self.state / f"{name}.out").open("ab") as log:
            process = self.processes[name] = subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log)
        return process

    def end(self, name: str) -> None:
        """As a crash does: no last words."""
        self.processes[name].kill()
        self.processes[name].wait()

    def control(self, number: int, evacuation: str = "auto") -> None:
        file = self.state / f"control-{number}.toml"
        file.write_text(f'port = {PORTS[number]}\nhost = "plane-{number}"\netcd = ["{self.etcd.endpoint}"]\n'
                        f'public_url = "http://127.0.0.1:{PORTS[0]}"\nevacuation = "{evacuation}"\nhypervisor = "simulated"\n')
        self.spawn(f"control-{number}", "-m", "control.cli.main", "--state-dir", str(self.state), "control", "--config",
                   str(file))

    def agent(self, host: str, *ports: int) -> None:
        (self.state / host).mkdir(exist_ok=True)
        pki.ensure_leaf(self.state / "pki", host, client=True)
        self.spawn(host, str(Path(__file__).with_name("journaling_agent.py")), str(self.state / host), host,
                   str(self.state / "pki"), *(f"localhost:{port}" for port in ports))

    def config(self) -> Config:
        return load(self.state, self.state / "control-0.toml")

    def session(self) -> Session:
        return credentials.ensure(self.config())["admin"].session(self.config())

    def journal(self, host: str) -> list[dict]:
        return [json.loads(line) for line in (self.state / host / "journal").read_text().splitlines()]

    def ran(self, server_id: str, host: str) -> list[tuple[float, float]]:
        """When a server's guest ran on a host: not while the process that pretends to run it stood still itself."""
        spans: list[tuple[float, float]] = []
        on, stood = None, self.stood.get(host, float("inf"))
        for event in self.journal(host):
            if event["about"] == server_id and event["what"] == "on":
                on = event["at"]
            elif event["about"] == server_id and event["what"] in ("off", "gone") and on is not None:
                spans.append((on, min(event["at"], stood) if on < stood else event["at"]))
                on = None
        return spans + ([(on, float("inf"))] if on is not None else [])

    def brume(self, *arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "control.cli.main", "--state-dir", str(self.state), *arguments],
                              capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def openstack(self, *arguments: str, check: bool = True) -> str:
        """The unmodified client, as the admin."""
        admin, config = credentials.ensure(self.config())["admin"], self.config()
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OS_")} | {
            "OS_AUTH_URL": config.auth_url, "OS_USERNAME": admin.user, "OS_PASSWORD": admin.password,
            "OS_PROJECT_NAME": admin.project, "OS_USER_DOMAIN_ID": "default", "OS_PROJECT_DOMAIN_ID": "default",
            "OS_REGION_NAME": config.region, "OS_IDENTITY_API_VERSION": "3", "OS_COMPUTE_API_VERSION": "2.96"}
        done = subprocess.run([str(Path(sys.executable).with_name("openstack")), *arguments], capture_output=True, text=True,
                              env=environment, check=False, timeout=120)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def hosts(self) -> dict[str, dict]:
        services = self.session().request("GET", "compute", "/os-services?binary=nova-compute",
                                          headers={"OpenStack-API-Version": "compute 2.53"})["services"]
        return {service["host"]: service for service in services}

    def servers(self) -> dict[str, dict]:
        return {server["id"]: server for server in self.session().request(
            "GET", "compute", "/servers/detail?all_tenants=1", headers={"OpenStack-API-Version": "compute 2.96"})["servers"]}

    def on(self, host: str) -> list[str]:
        return [server["id"] for server in self.servers().values() if server["OS-EXT-SRV-ATTR:host"] == host]

    def all_active(self) -> bool:
        return all(server["status"] == "ACTIVE" for server in self.servers().values())

    def logs(self) -> str:
        return "\n".join(f"== {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:])
                         for path in sorted(self.state.glob("*.out")))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    state = tmp_path_factory.mktemp("fencing")
    etcd = Etcd(state)
    etcd.start()
    it = Cluster(state, etcd)
    try:
        for number in range(2):
            it.control(number)
            credentials.ensure(it.config())
        agent_ports = [port + 2 for port in PORTS]
        it.cables = [Cable(port) for port in agent_ports]
        it.save()
        until(lambda: answers(0) and answers(1), "both replicas answer")
        for host in ("near", "other"):
            it.agent(host, *agent_ports)
        it.agent("far", *(cable.port for cable in it.cables))
        until(lambda: [service["state"] for service in it.hosts().values()] == ["up"] * 3, "three hosts are up")
        make_servers(it, 9)
        until(it.all_active, "the servers run")
        yield it
    except BaseException:
        print(it.logs())
        raise
    finally:
        for process in it.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        for cable in it.cables:
            cable.close()
        etcd.kill()


def answers(number: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PORTS[number])):
        return True
    return False


def make_servers(cluster: Cluster, count: int) -> None:
    admin = cluster.session()
    admin.request("POST", "compute", "/flavors", {"flavor": {"id": "f", "name": "f", "vcpus": 1, "ram": 64, "disk": 1}})
    image = admin.request("POST", "image", "/v2/images", {"name": "i", "disk_format": "raw", "container_format": "bare"})
    admin.request("PUT", "image", f"/v2/images/{image['id']}/file", os.urandom(4096),
                  headers={"Content-Type": "application/octet-stream"})
    admin.request("POST", "compute", "/servers", {"server": {
        "name": "vm", "imageRef": image["id"], "flavorRef": "f", "networks": "auto", "min_count": count, "max_count": count}},
        headers={"OpenStack-API-Version": "compute 2.37"})


def assert_never_twice(cluster: Cluster, servers: list[str]) -> None:
    """No two hosts ran a server at one instant."""
    for server_id in servers:
        spans = sorted((*span, host) for host in ("near", "other", "far")
                       for span in cluster.ran(server_id, host))
        for (_, end, before), (begin, _, after) in itertools.pairwise(spans):
            assert end <= begin, f"{server_id} ran on {before} until {end} and on {after} from {begin}"


def test_a_paused_agent_stops_its_guests_before_it_does_anything_else_and_they_run_elsewhere_once(cluster: Cluster):
    moving = cluster.on("near")
    assert moving
    process, stopped = cluster.processes["near"], boottime()
    cluster.stood["near"] = stopped
    process.send_signal(signal.SIGSTOP)
    until(lambda: not cluster.on("near") and cluster.all_active(), "its servers run elsewhere", 30)
    assert boottime() - stopped < 30
    assert cluster.hosts()["near"]["state"] == "down"
    woken = boottime()
    process.send_signal(signal.SIGCONT)
    until(lambda: cluster.hosts()["near"]["state"] == "up", "the host is let in again", 30)
    after = [event for event in cluster.journal("near") if event["at"] >= woken]
    assert {event["about"] for event in after[:len(moving)]} == set(moving)
    assert all(event["what"] == "off" for event in after[:len(moving)]), "before it says a word"
    assert {event["about"] for event in after if event["what"] == "gone"} == set(moving), "and all of them are removed"
    assert_never_twice(cluster, moving)


def test_a_host_that_is_cut_off_stops_its_guests_before_they_run_elsewhere(cluster: Cluster):
    moving, cut = cluster.on("far"), boottime()
    assert moving
    for cable in cluster.cables:
        cable.cut = True
    until(lambda: not cluster.on("far") and cluster.all_active(), "its servers run elsewhere", 30)
    assert boottime() - cut < 30
    for server_id in moving:
        _, end = cluster.ran(server_id, "far")[-1]
        assert cut < end < cut + leases.LEASE + leases.STOP
    assert_never_twice(cluster, moving)
    for cable in cluster.cables:
        cable.cut = False
    until(lambda: cluster.hosts()["far"]["state"] == "up", "the host is let in again", 40)


def test_a_drain_moves_all_servers_with_their_disks_between_processes(cluster: Cluster):
    moving = cluster.on("other")
    assert moving
    drained = json.loads(cluster.brume("drain", "other", "--reason", "new fans", "--at-once", "2", "--wait", "--json"))
    assert (drained["status"], drained["done"], drained["total"]) == ("done", len(moving), len(moving))
    assert not cluster.on("other") and cluster.hosts()["other"]["disabled_reason"] == "new fans"
    assert "done" in cluster.brume("drain", "other")
    until(cluster.all_active, "the servers run")
    assert_never_twice(cluster, moving)
    cluster.brume("undrain", "other")
    assert cluster.hosts()["other"]["status"] == "enabled"


def test_hosts_of_a_replica_that_dies_go_to_another_and_nothing_happens_to_their_guests(cluster: Cluster):
    before = {host: len([event for event in cluster.journal(host) if event["what"] in ("on", "off", "gone")])
              for host in ("near", "other", "far")}
    cluster.end("control-1")
    seen, end = set(), time.monotonic() + leases.GRACE + 6
    while time.monotonic() < end:
        seen |= {service["state"] for service in cluster.hosts().values()}
        time.sleep(0.2)
    assert seen == {"up"}
    after = {host: len([event for event in cluster.journal(host) if event["what"] in ("on", "off", "gone")])
             for host in ("near", "other", "far")}
    assert after == before


def test_guests_are_stopped_when_no_replica_answers_and_start_again_where_they_were(cluster: Cluster):
    where, dead = {server_id: server["OS-EXT-SRV-ATTR:host"] for server_id, server in cluster.servers().items()}, boottime()
    cluster.end("control-0")
    time.sleep(leases.LEASE + leases.STOP)
    for server_id, host in where.items():
        _, end = cluster.ran(server_id, host)[-1]
        assert dead < end < dead + leases.LEASE + leases.STOP
    cluster.control(0)
    until(lambda: answers(0) and cluster.all_active(), "all is back", 40)
    assert {server_id: server["OS-EXT-SRV-ATTR:host"] for server_id, server in cluster.servers().items()} == where
    assert_never_twice(cluster, list(where))


def test_where_evacuation_is_manual_guests_outlive_any_outage_and_are_evacuated_on_command(cluster: Cluster):
    where = {server_id: server["OS-EXT-SRV-ATTR:host"] for server_id, server in cluster.servers().items()}

    def run() -> bool:
        return all(cluster.ran(server_id, host)[-1][1] == float("inf") for server_id, host in where.items())

    cluster.control(1, "manual")
    until(lambda: answers(1), "the other replica is there")
    cluster.end("control-0")
    until(lambda: not any(json.loads((cluster.state / host / "lease.json").read_text())["bound"]
                          for host in ("near", "other", "far")), "every agent knows that it needs no lease", 40)
    assert run()
    cluster.end("control-1")
    time.sleep(leases.GRACE + 2)
    assert run()
    cluster.control(0, "manual")
    until(lambda: answers(0) and [service["state"] for service in cluster.hosts().values()] == ["up"] * 3, "all is back", 40)
    assert run()
    lost = "far"
    moving = cluster.on(lost)
    assert moving
    cluster.end(lost)
    until(lambda: cluster.hosts()[lost]["state"] == "down", "it is down", 30)
    time.sleep(3)
    assert cluster.on(lost) == moving
    assert "still in use" in cluster.openstack("server", "evacuate", moving[0], check=False)
    cluster.openstack("compute", "service", "set", "--down", lost, "nova-compute")
    assert cluster.hosts()[lost]["forced_down"]
    # without --wait, which never ends: the client looks for "ACTIVE" in what it has made lower case
    cluster.openstack("--os-compute-api-version", "2.94", "server", "evacuate", moving[0])
    until(cluster.all_active, "it runs elsewhere", 30)
    (there,) = {host for host in ("near", "other") if moving[0] in cluster.on(host)}
    assert cluster.ran(moving[0], there)[-1][1] == float("inf")
    assert cluster.on(lost) == moving[1:]
    cluster.openstack("compute", "service", "set", "--up", lost, "nova-compute")
    cluster.agent(lost, *(cable.port for cable in cluster.cables))
    until(lambda: cluster.hosts()[lost]["state"] == "up" and cluster.all_active(), "it is let in, with what is still its own", 30)
