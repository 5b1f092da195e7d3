"""Fixtures for every test: a real etcd with mutual TLS, started once a session, and a store of each kind."""
import contextlib
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler.loadscope import LoadScopeScheduling

from control.kernel import etcd_server
from control.kernel.etcd_client import Client, prefix_range, rpc_pb2
from control.kernel.etcd_store import EtcdStore
from control.kernel.pki import Credentials
from control.kernel.store import MemoryStore
from tests.log_secrets import nothing_secret_is_logged

__all__ = ["nothing_secret_is_logged"]       # every session has it


#: Tests that bring up clouds or machines, which have names and ports in common: never two at a time.
CLOUDS = ("tests/e2e/", "tests/chaos/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What brings up clouds first: where tests run in several processes, one has these alone to do, and they are the most."""
    items.sort(key=lambda item: not item.nodeid.startswith(CLOUDS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return Sharing(config, log)


class Sharing(LoadScopeScheduling):
    """Shares tests out among processes: all that bring up clouds to one, others file by file."""

    def _split_scope(self, nodeid: str) -> str:
        return "clouds" if nodeid.startswith(CLOUDS) else nodeid.partition("::")[0]


class Etcd:
    """One etcd process on free loopback ports with its data below a directory; may be killed and started again."""

    def __init__(self, directory: Path, name: str = "brume"):
        self.config = etcd_server.Config(
            data_dir=directory / name, credentials=etcd_server.server_credentials(directory / "pki"),
            client_port=free_port(), peer_port=free_port(), progress_interval="1s", name=name)
        self.credentials: Credentials = etcd_server.client_credentials(directory / "pki")
        self.log = directory / f"{name}.log"
        self.process: subprocess.Popen | None = None
        self.peers: list[Etcd] = []         # the other members of its cluster

    @property
    def endpoint(self) -> str:
        return self.config.endpoint

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        assert self.process is None, "a second one would be left behind"
        etcd_server.prepare(self.config)
        members = ",".join(f"{each.config.name}=https://127.0.0.1:{each.config.peer_port}" for each in (self, *self.peers))
        arguments = [*etcd_server.command(self.config), f"--initial-cluster={members}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(arguments, env=etcd_server.environment(), stdout=log, stderr=log)

    async def ready(self) -> None:
        await etcd_server.wait_ready([self.endpoint], self.credentials)

    def kill(self) -> None:
        """As a crash does: no last words."""
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def store(self, endpoint: str | None = None, **options) -> EtcdStore:
        return EtcdStore([endpoint or self.endpoint], self.credentials, **options)


def free_port() -> int:
    """A loopback port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    """The session's etcd, for tests that leave it running. Its keys are the test's own from start to end."""
    if not shutil.which("etcd"):
        pytest.skip("no etcd here: apt-get install etcd-server")
    server = Etcd(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd of the test's own, running, for tests that kill it."""
    if not shutil.which("etcd"):
        pytest.skip("no etcd here: apt-get install etcd-server")
    server = Etcd(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def etcd_store(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    """An EtcdStore on an empty keyspace."""
    async with emptied(etcd) as made:
        yield made


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[MemoryStore | EtcdStore]:
    """An empty store: each test that takes it runs on both kinds."""
    if request.param == "memory":
        async with contextlib.AsyncExitStack() as stack:
            memory = MemoryStore()
            stack.push_async_callback(memory.close)
            yield memory
        return
    async with emptied(request.getfixturevalue("etcd")) as etcd_store:
        yield etcd_store


@contextlib.asynccontextmanager
async def emptied(etcd: Etcd) -> AsyncIterator[EtcdStore]:
    """A store on an etcd that has no key."""
    await etcd.ready()
    await empty(etcd)
    made = etcd.store()
    try:
        yield made
    finally:
        await made.close()


async def empty(etcd: Etcd) -> None:
    """Delete every key."""
    client = Client([etcd.endpoint], etcd.credentials)
    try:
        await client.call(lambda member: member.kv.DeleteRange, rpc_pb2.DeleteRangeRequest(**prefix_range("")))
    finally:
        await client.close()


def unique(prefix: str = "") -> str:
    """A name that no other test uses."""
    return f"{prefix}{uuid.uuid4().hex[:8]}"
