"""A whole control plane in process over a real etcd: its gateway is called directly, and the test is its hosts' agents."""
import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control.cli import credentials
from control.kernel import config as settings
from control.kernel import etcd_server, fleet, pki
from control.kernel.database import Database, Transaction
from control.main import Replica
from protos.internal.v1.fleet_pb2 import HostRecord
from protos.internal.v1.hosts_pb2 import Gone, Inventory, ObservedPort, ObservedServer
from tests.api.client import Client, Reply
from tests.conftest import Etcd, empty, unique

HOSTS = ("h1", "h2")


class Cloud:
    """Two hosts, the admin and the demo user, an image and a flavor."""

    def __init__(self, replica: Replica, tokens: dict[str, str]):
        self.replica = replica
        self.database: Database = replica.database
        self._clients = {user: Client(replica.gateway, {"x-auth-token": token}) for user, token in tokens.items()}

    async def __call__(self, verb: str, path: str, body: Any = None, user: str = "demo") -> Reply:
        return await self._clients[user](verb, path, json_body=body)

    async def make(self, path: str, noun: str, user: str = "demo", **fields: Any) -> dict[str, Any]:
        reply = await self("POST", path, {noun: fields}, user)
        assert reply.status in (200, 201, 202), reply.body
        return reply.json[noun]

    async def set_up(self) -> "Cloud":
        for number, name in enumerate(HOSTS):
            await self.attach(name, number)
        self.flavor = (await self.make("/compute/v2.1/flavors", "flavor", "admin", name="f", vcpus=1, ram=64, disk=1))["id"]
        self.network = (await self("GET", "/network/v2.0/networks?name=private")).json["networks"][0]["id"]
        self.public = (await self("GET", "/network/v2.0/networks?name=public")).json["networks"][0]["id"]
        self.project = (await self("GET", "/network/v2.0/networks?name=private")).json["networks"][0]["project_id"]
        image = await self("POST", "/image/v2/images", {"name": "i", "disk_format": "raw", "container_format": "bare"})
        self.image = image.json["id"]
        stored = await self._clients["demo"]("PUT", f"/image/v2/images/{self.image}/file", body=bytes(4096),
                                             headers={"content-type": "application/octet-stream"})
        assert stored.status == 204, stored.body
        return self

    async def attach(self, name: str, number: int) -> None:
        record = HostRecord(name=name, id=f"00000000-0000-4000-8000-{number + 1:012d}", up=True, inventory=Inventory(
            vcpus=64, ram_mib=65536, disk_gib=1000, hypervisor_type="QEMU", architecture="x86_64", address="192.0.2.1"))
        record.updated_at.GetCurrentTime()
        record.replica = self.replica.membership.id

        def decide(tx: Transaction) -> None:
            tx.put(fleet.HOST, record)
            self.replica.hosts._inventories.refresh(tx, record)

        await self.database.transact(decide)

    async def server(self, name: str = "", **more: Any) -> str:
        """A server, on a host and running."""
        made = await self.make("/compute/v2.1/servers", "server", name=name or unique("vm"), imageRef=self.image,
                               flavorRef=self.flavor, networks=[{"uuid": self.network}], **more)
        await self.until(lambda: self.record(made["id"]).host)
        await self.run(made["id"])
        return made["id"]

    def record(self, server_id: str) -> Any:
        from control.compute.model import SERVER
        return self.database.require(SERVER, server_id)

    async def run(self, server_id: str) -> None:
        """What the agent of a server's host reports."""
        server = self.record(server_id)

        def decide(tx: Transaction) -> None:
            for observer in self.replica.hosts._observers:
                for port_id in self.replica.ports.ids(server_id):
                    observer.observed_port(tx, server.host, ObservedPort(id=port_id, up=True))
            for observer in self.replica.hosts._observers:
                observer.observed_server(tx, server.host, ObservedServer(
                    id=server_id, generation=server.desired.generation, domain=ObservedServer.RUNNING,
                    reboots=server.desired.reboots))

        await self.database.transact(decide)

    async def delete(self, server_id: str) -> None:
        host = self.record(server_id).host
        assert (await self("DELETE", f"/compute/v2.1/servers/{server_id}")).status == 204
        for observer in self.replica.hosts._observers:
            await observer.gone(host, Gone(key=f"server/{server_id}"))

    async def until(self, done: Any, within: float = 20.0) -> None:
        async with asyncio.timeout(within):
            while not done():
                await asyncio.sleep(0.02)

    async def findings(self, *checks: str) -> list[dict[str, Any]]:
        return (await self.report(*checks))["findings"]

    async def report(self, *checks: str) -> dict[str, Any]:
        query = "&".join(f"check={name}" for name in checks)
        reply = await self("GET", f"/doctor/v1/findings?{query}", user="admin")
        assert reply.status == 200, reply.body
        return reply.json

    async def repair(self, *checks: str) -> dict[str, Any]:
        reply = await self("POST", "/doctor/v1/repairs", {"checks": list(checks)}, user="admin")
        assert reply.status == 200, reply.body
        return reply.json


@pytest.fixture
async def cloud(etcd: Etcd, tmp_path: Path) -> AsyncIterator[Cloud]:
    await etcd.ready()
    await empty(etcd)
    config = settings.Config(state_dir=tmp_path, hypervisor="simulated", etcd=(etcd.endpoint,))
    logins = credentials.ensure(config)
    pki.ensure_ca(config.pki_dir)
    store = etcd.store()
    replica = Replica(config, store, etcd_server.client_credentials(config.pki_dir))
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(replica.database.cache.run())]
        await replica.database.cache.ready.wait()
        await replica.bootstrap()
        tasks.append(group.create_task(replica.images.run()))
        tasks.append(group.create_task(replica.take_part()))
        tokens = {}
        for user, project in (("admin", "admin"), ("demo", "demo")):
            reply = await Client(replica.gateway, {})("POST", "/v3/auth/tokens", json_body={"auth": {
                "identity": {"methods": ["password"], "password": {"user": {
                    "name": user, "domain": {"id": "default"}, "password": logins[user].password}}},
                "scope": {"project": {"name": project, "domain": {"id": "default"}}}}})
            tokens[user] = reply.headers["x-subject-token"]
        yield await Cloud(replica, tokens).set_up()
        for task in tasks:
            task.cancel()
    replica.directories.close()
    with contextlib.suppress(Exception):
        await replica.providers.close()
    await store.close()
