"""Several `brume control` on one etcd, each a process of its own, and an agent of a simulated host for tests that need one."""
import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests

from agents import main as agents
from control.cli import credentials
from control.kernel import config as settings
from control.kernel import pki
from tests.conftest import Etcd, unique
from tests.log_secrets import WATCH


class Plane:
    """One `brume control`, and who talks to it."""

    def __init__(self, directory: Path, etcd: Etcd, authority: Path):
        directory.mkdir(mode=0o700)
        (directory / "pki").symlink_to(authority)
        self._log = directory / "control.log"
        port = _free_ports(3)
        self.config = settings.Config(state_dir=directory, port=port, etcd=(etcd.endpoint,), log_level="DEBUG",
                                      hypervisor="simulated", public_url="")
        settings.save(self.config)
        pki.ensure_leaf(self.config.pki_dir, "agents", ["127.0.0.1", "localhost"], server=True)
        self.process: subprocess.Popen | None = None
        self.root = f"http://127.0.0.1:{port}"
        self.url = f"{self.root}/v3"
        self.http = requests.Session()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "control.cli.main", "--state-dir", str(self.config.state_dir), "control"],
                stdout=log, stderr=log, env=os.environ | {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"})

    def wait(self) -> None:
        limit = time.monotonic() + 60
        while time.monotonic() < limit and self.runs:
            try:
                if self.http.get(self.url, timeout=5).status_code == 200:
                    return
            except requests.ConnectionError:
                time.sleep(0.1)
        raise AssertionError(self._log.read_text()[-3000:])

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As a crash does: no last words."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def terminate(self) -> None:
        """Ask it to stop."""
        if self.process:
            self.process.send_signal(signal.SIGTERM)

    def ended(self, seconds: float = 20) -> int | None:
        """Its exit status; None where it has not ended in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds) if self.process else None
        return None

    def stop(self) -> None:
        if self.runs:
            self.terminate()
            if self.ended() is None:
                self.kill()
        if self._log.exists():
            WATCH.read(self._log)

    def __call__(self, verb: str, path: str, token: str = "", body: Any = None, **headers: str) -> requests.Response:
        """An answer of identity, or of what `path` names from the root on ("//compute/v2.1/servers")."""
        url = self.root + path[1:] if path.startswith("//") else self.url + path
        return self.http.request(verb, url, json=body, timeout=30,
                                 headers=({"X-Auth-Token": token} if token else {}) | headers)

    def log_in(self, name: str, password: str, scope: Any = None, domain: str = "default") -> requests.Response:
        auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": {
            "name": name, "password": password, "domain": {"id": domain}}}}}
        return self("POST", "/auth/tokens", body={"auth": auth | ({"scope": scope} if scope else {})})

    def admin_token(self) -> str:
        secret = self.config.path("admin.password").read_text().strip()
        WATCH.note(secret)
        reply = self.log_in("admin", secret, {"project": {"name": "admin", "domain": {"id": "default"}}})
        assert reply.status_code == 201, reply.text
        return reply.headers["X-Subject-Token"]

    def takes(self, token: str) -> bool:
        status = self("GET", "/auth/projects", token).status_code
        assert status in (200, 401)
        return status == 200


def _free_ports(count: int) -> int:
    """The first of so many free ports in a row, below those that the kernel gives to connections: a plane that is started again
    must find them free."""
    while True:
        first = random.randrange(20_000, 32_000)
        if all(_is_free(first + number) for number in range(count)):
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def running(directory: Path, etcd: Etcd, count: int) -> Iterator[list[Plane]]:
    """So many replicas below a directory. They share secrets and the authority, as an operator copies them."""
    authority = etcd.credentials.ca.parent
    planes = [Plane(directory / unique("plane"), etcd, authority) for _ in range(count)]
    try:
        for plane in planes:
            for login, held in credentials.ensure(planes[0].config).items():
                settings.write_private(plane.config.path(f"{login}.password"), held.password.encode())
            plane.start()
            plane.wait()
        yield planes
    finally:
        for plane in planes:
            plane.stop()


class SimulatedHost:
    """The agent of a host that only pretends, in a thread; it knows all replicas."""

    def __init__(self, directory: Path, authority: Path, planes: Sequence[Plane], name: str = "node-1"):
        leaf = pki.ensure_leaf(authority, name, client=True)
        self._config = agents.AgentConfig(
            host=name, directory=directory, libvirt_directory=directory / "libvirt", run_directory=directory / "run",
            endpoints=tuple(plane.config.agent_address for plane in planes), ca=leaf.ca, certificate=leaf.certificate,
            key=leaf.key, hypervisor="simulated")
        self._started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._started.set()
        running = asyncio.create_task(agents.run(self._config))
        await self._stop.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
