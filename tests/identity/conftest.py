"""An identity service with a gateway before it, over either store, and people who log in to it."""
import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from control.gateway.app import Gateway
from control.identity import service as identity
from control.kernel.database import Database
from control.kernel.rpc import Dispatcher
from control.kernel.store import Store
from tests.api.client import Client, Reply
from tests.conftest import emptied
from tests.identity.canaille import provider
from tests.identity.canaille.provider import Canaille
from tests.identity.slapd import Slapd
from tests.upgrade.later_store import LaterStore

URL = "http://cloud.example:5000"
ENDPOINTS = [("identity", "keystone", "/v3"), ("compute", "nova", "/compute/v2.1"),
             ("volume", "cinder", "/volume/v3/$(project_id)s")]
PASSWORDS = {"admin": "adm1n", "demo": "changeme"}


class Cloud:
    """One replica's identity service. Its passwords are hashed cheaply: what a hash costs is tested elsewhere."""

    def __init__(self, store):
        self.db = Database(store, identity.KINDS)
        self.passwords = identity.Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        self.authenticator = identity.TokenAuthenticator(self.db)
        self.dispatcher = Dispatcher(self.authenticator)
        for servicer, descriptor in identity.servicers(self.db, self.authenticator, self.passwords):
            self.dispatcher.add(servicer, descriptor)
        self.gateway = Gateway(self.dispatcher)
        self.anybody = Client(self.gateway)

    async def bootstrap(self, **changes) -> None:
        wanted: dict[str, Any] = {"admin_password": PASSWORDS["admin"], "demo_password": PASSWORDS["demo"], "public_url": URL,
                                  "endpoints": ENDPOINTS, "passwords": self.passwords}
        await identity.bootstrap(self.db, **(wanted | changes))

    async def log_in(self, name: str, password: str | None = None, scope: Any = None, domain: str = "default") -> Reply:
        """The answer to a password login; `scope` as in the body."""
        auth: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": {
            "name": name, "domain": {"id": domain}, "password": PASSWORDS.get(name, "") if password is None else password}}}}
        if scope is not None:
            auth["scope"] = scope
        return await self.anybody("POST", "/v3/auth/tokens", json_body={"auth": auth})

    async def token(self, name: str, password: str | None = None, scope: Any = None) -> str:
        reply = await self.log_in(name, password, scope)
        assert reply.status == 201, reply.body
        return reply.headers["x-subject-token"]

    async def exchange(self, token: str, scope: Any) -> Reply:
        """The answer to a wish to exchange a token for one with another scope."""
        return await self.anybody("POST", "/v3/auth/tokens", json_body={"auth": {
            "identity": {"methods": ["token"], "token": {"id": token}}, "scope": scope}})

    async def client(self, name: str, password: str | None = None, scope: Any = None) -> Client:
        return self.client_of(await self.token(name, password, scope))

    def client_of(self, token: str) -> Client:
        return Client(self.gateway, {"x-auth-token": token})


@contextlib.asynccontextmanager
async def replica(store) -> AsyncIterator[Cloud]:
    """A running replica over a store."""
    cloud = Cloud(store)
    following = asyncio.create_task(cloud.db.cache.run())
    try:
        await cloud.db.cache.ready.wait()
        yield cloud
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        cloud.passwords.close()


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.etcd)])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An empty store of each kind; the one in memory holds what is written to what a later version may expect."""
    async with contextlib.AsyncExitStack() as stack:
        made: Store
        if request.param == "memory":
            stack.push_async_callback((made := LaterStore()).close)
        else:
            made = await stack.enter_async_context(emptied(request.getfixturevalue("etcd")))
        yield made


@pytest.fixture
async def cloud(store) -> AsyncIterator[Cloud]:
    """A cloud that has just been set up."""
    async with replica(store) as running:
        await running.bootstrap()
        yield running


@pytest.fixture
async def admin(cloud: Cloud) -> Client:
    return await cloud.client("admin")


@pytest.fixture
async def demo(cloud: Cloud) -> Client:
    return await cloud.client("demo")


async def made(client: Client, noun: str, **values: Any) -> dict[str, Any]:
    """A resource that a client creates."""
    reply = await client("POST", f"/v3/{noun}s", json_body={noun: values})
    assert reply.status == 201, reply.body
    return reply.json[noun]


@pytest.fixture(scope="session")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slapd]:
    """The session's slapd. Its entries are removed by the tests that make them."""
    if not Path("/usr/sbin/slapd").exists():
        pytest.skip("no slapd here: apt-get install slapd")
    server = Slapd(tmp_path_factory.mktemp("slapd"))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def canaille(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaille]:
    """The session's OpenID Connect provider. Tests leave it as they found it."""
    try:
        provider.install()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"canaille cannot be installed here: {error}")
    server = Canaille(tmp_path_factory.mktemp("canaille"))
    yield server
    server.kill()
