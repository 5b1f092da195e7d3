"""A cloud of nothing but its network: the real gateway and service over the store's twin, called in process."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from control.gateway.app import Gateway
from control.kernel import fleet, quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Unauthenticated
from control.kernel.rpc import Dispatcher
from control.kernel.store import Store
from control.network import service
from protos.internal.v1.fleet_pb2 import HostRecord
from protos.internal.v1.hosts_pb2 import ObservedPort
from tests.api.client import Client, Reply
from tests.upgrade.later_store import LaterStore


def caller_of(project: str) -> Caller:
    """A member of a project; "admin" is the cloud's admin in a project of that name."""
    return Caller(user_id=f"user-{project}", project_id=project, roles=frozenset({"admin" if project == "admin" else "member"}))


class Tokens:
    """Authenticates a project's name as a member of it."""

    async def authenticate(self, token: str) -> Caller:
        if token not in ("admin", "one", "two"):
            raise Unauthenticated("token.invalid", "The request you have made requires authentication.")
        return caller_of(token)


class Project:
    """One project's client: verbs that check the status and open the envelope."""

    def __init__(self, gateway: Gateway, name: str):
        self.name = name
        self._client = Client(gateway, {"x-auth-token": name})

    async def __call__(self, verb: str, path: str, body: Any = None) -> Reply:
        return await self._client(verb, "/network/v2.0" + path, json_body=body)

    async def get(self, path: str) -> Any:
        reply = await self("GET", path)
        assert reply.status == 200, reply.body
        return reply.json

    async def ids(self, path: str) -> set[str]:
        """The ids in a list's answer."""
        (rows,) = (value for key, value in (await self.get(path)).items() if not key.endswith("_links"))
        return {row["id"] for row in rows}

    async def create(self, noun: str, **fields: Any) -> Any:
        reply = await self.try_create(noun, **fields)
        assert reply.status == 201, reply.body
        return reply.json[noun]

    async def try_create(self, noun: str, **fields: Any) -> Reply:
        return await self("POST", f"/{collection(noun)}", {noun: fields})

    async def update(self, noun: str, identifier: str, **fields: Any) -> Any:
        reply = await self("PUT", f"/{collection(noun)}/{identifier}", {noun: fields})
        assert reply.status == 200, reply.body
        return reply.json[noun]

    async def show(self, noun: str, identifier: str) -> Any:
        return (await self.get(f"/{collection(noun)}/{identifier}"))[noun]

    async def delete(self, noun: str, identifier: str) -> int:
        return (await self("DELETE", f"/{collection(noun)}/{identifier}")).status

    async def interface(self, verb: str, router: str, **fields: str) -> Reply:
        return await self("PUT", f"/routers/{router}/{verb}_router_interface", fields)

    async def network(self, cidr: str = "10.0.0.0/24", **fields: Any) -> tuple[str, str]:
        """Ids of a new network with a subnet."""
        network = await self.create("network", name="n", **fields)
        subnet = await self.create("subnet", network_id=network["id"], ip_version=4, cidr=cidr)
        return network["id"], subnet["id"]

    async def used(self) -> dict[str, int]:
        """What the project's quota says that it uses."""
        details = (await self.get(f"/quotas/{self.name}/details"))["quota"]
        return {name: use["used"] for name, use in details.items() if use["used"]}


def collection(noun: str) -> str:
    return {"security_group": "security-groups", "security_group_rule": "security-group-rules"}.get(noun, noun + "s")


class Cloud:
    """The service with its database, and clients of three projects."""

    def __init__(self, database: Database):
        self.database = database
        self.ports = service.ServerPorts(database)
        self.projection = service.Projection(database)
        self.observer = service.Observer(database)
        dispatcher = Dispatcher(Tokens())
        for servicer, descriptor in service.servicers(database):
            dispatcher.add(servicer, descriptor)
        self.gateway = Gateway(dispatcher)
        self.admin, self.one, self.two = (Project(self.gateway, name) for name in ("admin", "one", "two"))
        self.public = ""

    async def host(self, name: str, up: bool = True) -> None:
        """Write a host's record."""

        def decide(tx: Transaction) -> None:
            record = tx.get(fleet.HOST, name) or HostRecord(name=name, id=f"id-{name}")
            record.up = up
            tx.put(fleet.HOST, record)

        await self.database.transact(decide)

    async def boot(self, project: str, server_id: str, *wanted: Any, host: str = "", groups: tuple[str, ...] = ()) -> list[str]:
        """Make a server's ports as compute does, and bind them to a host."""

        def decide(tx: Transaction) -> list[str]:
            made = self.ports.create(tx, caller_of(project), server_id, server_id, wanted, groups)
            if host:
                self.ports.bind(tx, server_id, host)
            return made

        return await self.database.transact(decide)

    async def observe(self, host: str, port: ObservedPort) -> None:
        """Take in what a host's agent says of a port."""
        await self.database.transact(lambda tx: self.observer.observed_port(tx, host, port))

    async def shut(self, server_id: str) -> None:
        """Give a server's ports back as compute does."""
        await self.database.transact(lambda tx: self.ports.release(tx, server_id))

    def on(self, host: str) -> dict[str, Any]:
        """What a host shall have, by key."""
        return {each.key: getattr(each, each.WhichOneof("object")) for each in self.projection.objects_for(host)}


@contextlib.asynccontextmanager
async def running(store: Store | None = None) -> AsyncIterator[Cloud]:
    """A cloud with a public network and one host that is up."""
    database = Database(store or LaterStore(), (*service.KINDS, *quota.KINDS, *fleet.KINDS))
    following = asyncio.create_task(database.cache.run())
    try:
        await database.cache.ready.wait()
        await service.bootstrap(database, admin_project_id="admin")
        cloud = Cloud(database)
        await cloud.host("host-1")
        cloud.public = (await cloud.admin.get("/networks?router:external=True"))["networks"][0]["id"]
        yield cloud
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@pytest.fixture
async def cloud() -> AsyncIterator[Cloud]:
    async with running() as made:
        yield made


@pytest.fixture
async def any_cloud(store: Store) -> AsyncIterator[Cloud]:
    """A cloud over the store's twin, and one over the real store: for what depends on what a commit compares."""
    async with running(store) as made:
        yield made
