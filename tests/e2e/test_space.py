"""A cloud whose database, and then whose disk, is full: it is read, says why it changes nothing, and goes on by itself."""
import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from control.cli.session import RestError, Session
from control.kernel import etcd_server
from control.kernel.errors import Unavailable
from control.kernel.etcd_client import Client, prefix_range, rpc_pb2
from control.kernel.etcd_store import EtcdStore
from control.kernel.store import Record
from tests.e2e.cloud import Cloud, until

pytestmark = [pytest.mark.host, pytest.mark.etcd]


class SmallCloud(Cloud):
    """A cloud of a simulated host on a small file system, with an etcd of 24 MiB."""

    def up(self) -> dict[str, Any]:
        config = self.state_dir / "try.toml"
        config.write_text('hypervisor = "simulated"\netcd_quota_mib = 24\n')
        return json.loads(self.brume("up", "--json", "--no-seed", "--port", "5500", "--name", "brumespace", "--public-cidr",
                                     "172.24.55.0/24", "--config", str(config)).stdout)


@pytest.fixture(scope="module")
def small_cloud() -> Iterator[SmallCloud]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = Path(tempfile.mkdtemp(prefix="brume-", dir="/var/tmp"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(place)], check=True)
    cloud = SmallCloud(place)
    try:
        cloud.up()
        yield cloud
    finally:
        cloud.brume("down", check=False)
        subprocess.run(["umount", "-l", str(place)], check=False)
        shutil.rmtree(place, ignore_errors=True)


@contextlib.asynccontextmanager
async def store_of(cloud: Cloud) -> AsyncIterator[EtcdStore]:
    store = EtcdStore(cloud.config.etcd_endpoints, etcd_server.client_credentials(cloud.config.pki_dir), patience=1)
    try:
        yield store
    finally:
        await store.close()


def fill_etcd(cloud: Cloud) -> None:
    """Write one key until etcd takes no more of it, and then nothing any more: its alarm comes a moment later."""
    async def fill() -> None:
        async with store_of(cloud) as store:
            revision = (await store.get("/junk")).revision
            with contextlib.suppress(Unavailable):
                for _ in range(400):
                    revision = await store.commit(Record("/junk", b"x" * 1_000_000, revision))
            for _ in range(100):
                await store.commit(Record(f"/junk/{uuid.uuid4()}", b""))
                await asyncio.sleep(0.01)
    with contextlib.suppress(Unavailable):
        asyncio.run(fill())


def make_project(session: Session, name: str) -> int:
    """The status of making a project: 201, or that of the error; 0: no answer."""
    try:
        session.request("POST", "identity", "/projects", {"project": {"name": name}})
    except RestError as error:
        return error.status
    return 201


def fill_with_state(cloud: Cloud) -> None:
    """Write new keys until etcd takes no more: no history that the cloud could make room of."""
    async def fill() -> None:
        async with store_of(cloud) as store:
            for size in (1_000_000, 10_000, 100):
                with contextlib.suppress(Unavailable):
                    for _ in range(400):
                        await store.commit(Record(f"/junk/{uuid.uuid4()}", b"x" * size))

    asyncio.run(fill())


def remove_junk(cloud: Cloud) -> None:
    """Not by the store, whose commits leave a mark, for which there is no room."""
    async def clear() -> None:
        client = Client(cloud.config.etcd_endpoints, etcd_server.client_credentials(cloud.config.pki_dir))
        try:
            await client.call(lambda member: member.kv.DeleteRange, rpc_pb2.DeleteRangeRequest(**prefix_range("/junk/")))
        finally:
            await client.close()

    asyncio.run(clear())


def test_a_full_database_is_read_refuses_changes_with_a_reason_and_makes_room_by_itself(small_cloud: SmallCloud) -> None:
    session = small_cloud.session("admin")
    assert make_project(session, "before") == 201
    with pytest.raises(RestError, match="database is full") as refused:
        for number in range(100):        # of the history that there is the cloud makes room for some more
            fill_with_state(small_cloud)
            session.request("POST", "identity", "/projects", {"project": {"name": f"refused-{number}"}})
    assert refused.value.status == 503
    assert "before" in {row["name"] for row in session.request("GET", "identity", "/projects")["projects"]}
    remove_junk(small_cloud)
    until(lambda: make_project(session, "after") in (201, 409), "the cloud goes on by itself", 90)
    names = {row["name"] for row in session.request("GET", "identity", "/projects")["projects"]}
    assert {"before", "after"} <= names
    assert len([name for name in names if name.startswith("refused-")]) == number, "the one that was refused is not there"
    assert small_cloud.session("admin").request("GET", "compute", "/os-services")["services"][0]["state"] == "up"
    assert small_cloud.brume("audit", "verify").returncode == 0


def test_a_full_disk_stops_changes_with_a_reason_and_nothing_is_lost(small_cloud: SmallCloud) -> None:
    session = small_cloud.session("admin")
    assert make_project(session, "on-disk") in (201, 409)
    filler = small_cloud.state_dir / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 65536)
    said = json.loads(small_cloud.brume("status", "--json", check=False).stdout)
    assert any("MiB are free: make room" in problem for problem in said["space"]["problems"])
    statuses = []
    for number in range(40):
        fill_etcd(small_cloud)
        statuses.append(make_project(session, f"full-{number}"))
        if statuses[-1] != 201:
            break
    assert statuses[-1] == 503, statuses
    assert "on-disk" in {row["name"] for row in session.request("GET", "identity", "/projects")["projects"]}, "reads go on"
    filler.unlink()
    until(lambda: make_project(session, "room-again") in (201, 409), "the cloud goes on by itself", 120)
    names = {row["name"] for row in session.request("GET", "identity", "/projects")["projects"]}
    acknowledged = {f"full-{number}" for number, code in enumerate(statuses) if code == 201}
    assert {"before", "on-disk", "room-again", *acknowledged} <= names
    until(lambda: not any("journal" in problem for problem in json.loads(
        small_cloud.brume("status", "--json", check=False).stdout)["space"]["problems"]), "the journal goes on", 60)
    until(lambda: "room-again" in small_cloud.brume("audit", "show", "--json").stdout, "the journal has caught up", 60)
    assert small_cloud.brume("audit", "verify").returncode == 0
