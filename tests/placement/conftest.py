"""A running placement service: the real gateway on a loopback port over a store, for clients that block."""
import asyncio
import contextlib
import threading
import uuid
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
import requests

from control.gateway.app import Gateway
from control.gateway.server import listen, serve
from control.identity import service as identity
from control.kernel import fleet
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Unauthenticated
from control.kernel.rpc import Dispatcher
from control.placement import service
from control.placement.live import LiveFleet
from control.placement.neighbours import NoServers
from tests.upgrade.later_store import LaterStore

ROLES = {"admin": {"admin"}, "service": {"service"}, "member": {"member", "reader"}, "reader": {"reader"}, "nobody": set()}


class Tokens:
    """Authenticates a name of ROLES, or "<name>:<project>", as somebody with these roles in a project."""

    async def authenticate(self, token: str) -> Caller:
        name, _, project = token.partition(":")
        if name not in ROLES:
            raise Unauthenticated("token.invalid", "The request you have made requires authentication.")
        return Caller(user_id=f"user-{name}", project_id=project or f"project-{name}", roles=frozenset(ROLES[name]))


class Client(requests.Session):
    """One person's HTTP client of the placement API, at one microversion."""

    def __init__(self, url: str, token: str = "admin", microversion: str = "1.39"):
        super().__init__()
        self.url = url
        self.headers["X-Auth-Token"] = token
        if microversion:
            self.headers["OpenStack-API-Version"] = f"placement {microversion}"

    def request(self, method: str, path: str, *arguments: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        return super().request(method, path if "://" in path else self.url + path, *arguments, timeout=60, **options)

    def at(self, microversion: str, token: str = "") -> "Client":
        return Client(self.url, token or str(self.headers["X-Auth-Token"]), microversion)

    def provider(self, name: str = "", parent: str = "", traits: Any = (), aggregates: Any = (), **inventories: Any) -> str:
        """A new provider with inventories by class (a total, or fields), traits (made if they are custom) and aggregates."""
        made = self.post("/resource_providers", json={"name": name or uuid.uuid4().hex, "parent_provider_uuid": parent or None})
        assert made.status_code == 200, made.text
        path = f"/resource_providers/{made.json()['uuid']}"
        for trait in traits:
            if trait.startswith("CUSTOM_"):
                assert self.put(f"/traits/{trait}").status_code in (201, 204)
        stocks = {name: have if isinstance(have, dict) else {"total": have} for name, have in inventories.items()}
        wanted = {"inventories": stocks, "traits": list(traits), "aggregates": list(aggregates)}
        for noun, value in wanted.items():
            if value:
                answer = self.put(f"{path}/{noun}", json={noun: value, "resource_provider_generation": self.generation(path)})
                assert answer.status_code == 200, answer.text
        return made.json()["uuid"]

    def generation(self, path: str) -> int:
        """The generation of the provider at a path, or with a UUID."""
        return self.get(path if "/" in path else f"/resource_providers/{path}").json()["generation"]

    def allocate(self, consumer: str, generation: int | None = None, **providers: dict[str, int]) -> requests.Response:
        """PUT what a consumer shall hold: amounts by class, by provider (its UUID as a keyword)."""
        return self.put(f"/allocations/{consumer}", json={
            "allocations": {provider: {"resources": amounts} for provider, amounts in providers.items()},
            "project_id": "p", "user_id": "u", "consumer_generation": generation, "consumer_type": "INSTANCE"})


PASSWORD = "s3cret-s3cret"


class Cloud:
    """One replica with a placement service, in a thread of its own; with identity, too, tokens and catalog are the real ones."""

    def __init__(self, has_identity: bool = False) -> None:
        self._has_identity = has_identity
        self._started = threading.Event()
        self._listener = listen("127.0.0.1", 0)
        self.root = "http://{}:{}".format(*self._listener.getsockname())
        self.url = f"{self.root}/placement"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    async def _run(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.database = Database(LaterStore(), (*fleet.KINDS, *identity.KINDS))
        authenticator = identity.TokenAuthenticator(self.database) if self._has_identity else Tokens()
        dispatcher = Dispatcher(authenticator)
        if self._has_identity:
            for servicer, descriptor in identity.servicers(self.database, authenticator, identity.Passwords()):
                dispatcher.add(servicer, descriptor)
        for servicer, descriptor in service.servicers(self.database, LiveFleet(self.database, NoServers())):
            dispatcher.add(servicer, descriptor)
        tasks = [asyncio.create_task(work) for work in (
            self.database.cache.run(), serve(Gateway(dispatcher), "127.0.0.1", 0, listener=self._listener))]
        await self.database.cache.ready.wait()
        if self._has_identity:
            await identity.bootstrap(
                self.database, admin_password=PASSWORD, demo_password=PASSWORD, public_url=self.root,
                endpoints=[("identity", "keystone", "/v3"), ("placement", "placement", "/placement")])
        self._started.set()
        await self._stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def run(self, work: Coroutine) -> Any:
        """What a coroutine gives, run in the replica's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    running = Cloud()
    yield running
    running.stop()


@pytest.fixture
def admin(cloud: Cloud) -> Client:
    return Client(cloud.url)
