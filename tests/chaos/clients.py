"""The clients of a chaos run: they make, use and delete servers, fight for names and addresses, and note what they were told.

A call is tried again, at another endpoint, until it is answered for good or its patience ends; POSTs carry an idempotency key, so
trying again is safe. What a client was told must agree with what it was told before: a breach is noted as such at once.
"""
import asyncio
import math
import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.chaos.history import History, Operation, Outcome

#: Seconds that one answer may take, that an operation is tried for, and that a server may need to come to rest.
ANSWER_WITHIN, PATIENCE, REST_WITHIN = 8.0, 60.0, 120.0

#: Names that all clients fight for; and addresses, by their last number.
SHARED_NAMES, SHARED_ADDRESSES = 3, range(201, 204)

#: Answers that say "not now": another try may fare better.
PASSING = frozenset({500, 502, 503, 504})

VERBS: Mapping[str, int] = {"boot": 5, "delete": 4, "power": 3, "name": 3, "address": 3, "list": 2}


@dataclass(frozen=True, slots=True)
class Given:
    """What the clients work with: made before a run by `setting.prepare`."""

    endpoints: Sequence[str]            # "http://host:port" of each replica, and of the balancer
    replicas: Sequence[str]             # those of them that are one replica, always
    user: str
    password: str
    project: str
    image: str
    flavor: str
    network: str
    subnet: str
    prefix: str                         # of addresses: "10.0.0."


@dataclass(slots=True)
class Answer:
    """What came back, at last; status 0 where nothing did."""

    status: int
    body: Any
    tries: int
    via: str
    sent: bool                          # whether any try may have reached a replica


@dataclass(slots=True)
class Client:
    """One client with its own connections, its own servers and a generator of its own."""

    name: str
    given: Given
    history: History
    rng: random.Random
    gaps: list[float] = field(default_factory=list)          # seconds that an operation waited for its first good answer
    breaches: list[str] = field(default_factory=list)
    servers: dict[str, str] = field(default_factory=dict)    # its own, by id: name
    made_via: dict[str, str] = field(default_factory=dict)   # the endpoint that answered
    _token: str = ""
    _at: int = 0
    _count: int = 0
    _http: httpx.AsyncClient | None = None

    async def work(self, until: float) -> None:
        """Work until a moment of the monotonic clock."""
        self._at = self.rng.randrange(len(self.given.endpoints))
        async with httpx.AsyncClient(timeout=httpx.Timeout(ANSWER_WITHIN, connect=1.0)) as self._http:
            while time.monotonic() < until:
                verb = self.rng.choices(list(VERBS), list(VERBS.values()))[0]
                await getattr(self, f"_{verb}")()
                await asyncio.sleep(self.rng.uniform(0, 0.3))

    # What it does

    async def _boot(self) -> None:
        if len(self.servers) >= 6:
            return await self._delete()
        self._count += 1
        name = f"{self.name}-{self._count}"
        answer, operation = await self._do("create", f"server/{name}", "POST", "/compute/v2.1/servers", {"server": {
            "name": name, "imageRef": self.given.image, "flavorRef": self.given.flavor,
            "networks": [{"uuid": self.given.network}]}})
        if operation.outcome is Outcome.OK:
            server_id = answer.body["server"]["id"]
            self.servers[server_id], self.made_via[server_id] = name, answer.via
            await self._must_see(server_id, answer.via)
            await self._rest(server_id)
        return None

    async def _delete(self) -> None:
        if not self.servers:
            return
        server_id = self.rng.choice(list(self.servers))
        thing = f"server/{self.servers[server_id]}"
        _, operation = await self._do("delete", thing, "DELETE", f"/compute/v2.1/servers/{server_id}")
        if operation.outcome in (Outcome.OK, Outcome.REFUSED):
            del self.servers[server_id]

    async def _power(self) -> None:
        if not self.servers:
            return
        server_id = self.rng.choice(list(self.servers))
        action = self.rng.choice([{"os-stop": None}, {"os-start": None}, {"reboot": {"type": "HARD"}}])
        await self._do("power", f"server/{self.servers[server_id]}", "POST", f"/compute/v2.1/servers/{server_id}/action", action)
        await self._rest(server_id)

    async def _name(self) -> None:
        name = f"shared-{self.rng.randrange(SHARED_NAMES)}"
        if self.rng.random() < 0.5:
            await self._do("create", f"keypair/{name}", "POST", "/compute/v2.1/os-keypairs", {"keypair": {
                "name": name, "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ" + "A" * 42 + " chaos"}})
        else:
            await self._do("delete", f"keypair/{name}", "DELETE", f"/compute/v2.1/os-keypairs/{name}")

    async def _address(self) -> None:
        """Take an address by a port, keep it for a moment, give it back."""
        ip = f"{self.given.prefix}{self.rng.choice(SHARED_ADDRESSES)}"
        answer, operation = await self._do("create", f"address/{ip}", "POST", "/network/v2.0/ports", {"port": {
            "network_id": self.given.network, "fixed_ips": [{"subnet_id": self.given.subnet, "ip_address": ip}]}})
        if operation.outcome is not Outcome.OK:
            return
        await asyncio.sleep(self.rng.uniform(0, 1))
        for _ in range(5):          # its own, so nobody else gives it back
            _, operation = await self._do("delete", f"address/{ip}", "DELETE", f"/network/v2.0/ports/{answer.body['port']['id']}")
            if operation.outcome in (Outcome.OK, Outcome.REFUSED):
                return

    async def _list(self) -> None:
        """All servers of the project: what this client made through the same replica is among them, once."""
        answer = await self._call("GET", "/compute/v2.1/servers?limit=1000", None, "")
        if answer.status != 200:
            return
        listed = [server["id"] for server in answer.body["servers"]]
        if len(set(listed)) < len(listed):
            self.breaches.append(f"{self.name}: a list of {answer.via} has a server twice")
        for server_id, name in self.servers.items():
            if self.made_via[server_id] == answer.via in self.given.replicas and server_id not in listed:
                self.breaches.append(f"{self.name}: {answer.via} made server {name} and then did not list it")

    async def _must_see(self, server_id: str, via: str) -> None:
        """Read your writes: the replica that has answered shows it from then on."""
        answer = await self._call("GET", f"/compute/v2.1/servers/{server_id}", None, "")
        if answer.status == 404 and answer.via == via and answer.tries == 1 and via in self.given.replicas:
            self.breaches.append(f"{self.name}: {via} made server {server_id} and then did not know it")

    async def _rest(self, server_id: str) -> None:
        """Wait until a server is at rest, or long enough: whether all came to rest is asked at the end."""
        limit = time.monotonic() + self.rng.choice([0.0, 2.0, 20.0])
        while time.monotonic() < limit:
            answer = await self._call("GET", f"/compute/v2.1/servers/{server_id}", None, "")
            if answer.status != 200 or answer.body["server"]["OS-EXT-STS:task_state"] is None:
                return
            await asyncio.sleep(0.3)

    # Asking

    async def _do(self, verb: str, thing: str, method: str, path: str, body: Any = None) -> tuple[Answer, Operation]:
        began = time.monotonic()
        answer = await self._call(method, path, body, str(uuid.UUID(int=self.rng.getrandbits(128))))
        outcome = _outcome(method, answer)
        ended = math.inf if outcome is Outcome.UNKNOWN else time.monotonic()
        operation = Operation(self.name, verb, thing, began, ended, outcome, str(answer.status), answer.tries, answer.via)
        self.history.add(operation)
        return answer, operation

    async def _call(self, method: str, path: str, body: Any, key: str) -> Answer:
        """One call, tried until it is answered for good; each try at another endpoint than the one that failed."""
        limit, tries, sent, began = time.monotonic() + PATIENCE, 0, False, time.monotonic()
        while True:
            tries += 1
            endpoint = self._endpoint()
            answer, reached = await self._once(endpoint, method, path, body, key)
            sent = sent or reached
            if answer is not None and answer.status_code not in PASSING and not _in_progress(answer):
                self.gaps.append(time.monotonic() - began)
                return Answer(answer.status_code, answer.json() if answer.content else None, tries, endpoint, sent)
            if time.monotonic() > limit:
                return Answer(0, None, tries, endpoint, sent)
            self._at += 1
            await asyncio.sleep(min(0.05 * tries, 1.0))

    async def _once(self, endpoint: str, method: str, path: str, body: Any, key: str) -> tuple[httpx.Response | None, bool]:
        """An answer, or None; and whether the call may have reached a replica."""
        assert self._http is not None
        try:
            if not self._token:
                await self._log_in(endpoint)
            headers = {"X-Auth-Token": self._token} | ({"Idempotency-Key": key} if key and method == "POST" else {})
            answer = await self._http.request(method, endpoint + path, json=body, headers=headers)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            return None, False
        except httpx.HTTPError:
            return None, True
        if answer.status_code == 401:
            self._token = ""
            return None, False
        return answer, answer.status_code != 503

    async def _log_in(self, endpoint: str) -> None:
        assert self._http is not None
        answer = await self._http.post(f"{endpoint}/v3/auth/tokens", json={"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": self.given.user, "domain": {"id": "default"}, "password": self.given.password}}},
            "scope": {"project": {"name": self.given.project, "domain": {"id": "default"}}}}})
        if answer.status_code != 201:
            raise httpx.ConnectError(f"no token: {answer.status_code}")
        self._token = answer.headers["X-Subject-Token"]

    def _endpoint(self) -> str:
        return self.given.endpoints[self._at % len(self.given.endpoints)]


def _in_progress(answer: httpx.Response) -> bool:
    """Whether another try with the same key is still at work."""
    return answer.status_code == 409 and "Retry-After" in answer.headers


def _outcome(method: str, answer: Answer) -> Outcome:
    if 200 <= answer.status < 300:
        return Outcome.OK
    if answer.status in (404, 409):
        return Outcome.REFUSED
    if answer.status == 0:
        return Outcome.UNKNOWN if answer.sent else Outcome.FAILED
    return Outcome.FAILED
