"""Two control planes, each a process of its own, on one etcd: what ends a token ends it on both, and both count as one."""
import asyncio
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests

from tests import planes as control_planes
from tests.conftest import Etcd, unique
from tests.planes import Plane

#: Seconds from the answer to a change until every replica acts on it.
WITHIN = 1.0

PASSWORD = "a-password-of-mine-1"


@dataclass
class World:
    """Somebody with a role in a project of a domain, and the admin."""

    planes: tuple[Plane, Plane]
    admin: str = ""
    ids: dict[str, str] = field(default_factory=dict)

    def make(self) -> "World":
        one = self.planes[0]
        self.admin = one.admin_token()
        self.ids["domain"] = self._made("domain", name=unique("d"))
        self.ids["project"] = self._made("project", name=unique("p"), domain_id=self.ids["domain"])
        self.name = unique("u")
        self.ids["user"] = self._made("user", name=self.name, domain_id=self.ids["domain"], password=PASSWORD)
        role = one("GET", "/roles?name=member", self.admin).json()["roles"][0]["id"]
        self.grant = f"/projects/{self.ids['project']}/users/{self.ids['user']}/roles/{role}"
        assert one("PUT", self.grant, self.admin).status_code == 204
        limit = time.monotonic() + 10
        while self.log_in(self.planes[1]).status_code != 201:       # the other one follows: it has seen them a little later
            assert time.monotonic() < limit
        return self

    def _made(self, noun: str, **values: Any) -> str:
        reply = self.planes[0]("POST", f"/{noun}s", self.admin, {noun: values})
        assert reply.status_code == 201, reply.text
        return reply.json()[noun]["id"]

    def log_in(self, plane: Plane, password: str = PASSWORD) -> requests.Response:
        return plane.log_in(self.name, password, {"project": {"id": self.ids["project"]}}, self.ids["domain"])


@pytest.fixture(scope="module")
def planes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plane, Plane]]:
    if not shutil.which("etcd"):
        pytest.skip("no etcd here: apt-get install etcd-server")
    own = Etcd(tmp_path_factory.mktemp("replicas"))
    own.start()
    try:
        asyncio.run(own.ready())
        with control_planes.running(tmp_path_factory.getbasetemp(), own, 2) as made:
            yield made[0], made[1]
    finally:
        own.kill()


@pytest.fixture(params=[False, True], ids=["here", "there"])
def world(request: pytest.FixtureRequest, planes) -> World:
    """What one replica is told, the other one acts on; and the other way round."""
    return World(planes[::-1] if request.param else planes).make()


def ends(plane: Plane, token: str) -> bool:
    """Whether a replica refuses a token in time."""
    limit = time.monotonic() + WITHIN
    while plane.takes(token):
        if time.monotonic() > limit:
            return False
    return True


def disable(noun: str) -> Callable[[World, Plane, str], requests.Response]:
    return lambda world, plane, token: plane("PATCH", f"/{noun}s/{world.ids[noun]}", world.admin, {noun: {"enabled": False}})


@pytest.mark.etcd
@pytest.mark.parametrize("change", [
    pytest.param(disable("user"), id="user disabled"), pytest.param(disable("project"), id="project disabled"),
    pytest.param(disable("domain"), id="domain disabled"),
    pytest.param(lambda world, plane, token: plane("DELETE", world.grant, world.admin), id="role taken"),
    pytest.param(lambda world, plane, token: plane("PATCH", f"/users/{world.ids['user']}", world.admin,
                                                   {"user": {"password": "another-password-1"}}), id="password set"),
    pytest.param(lambda world, plane, token: plane("DELETE", "/auth/tokens", world.admin, **{"X-Subject-Token": token}),
                 id="revoked"),
    pytest.param(lambda world, plane, token: plane("DELETE", f"/users/{world.ids['user']}", world.admin), id="user deleted")])
def test_what_ends_a_token_ends_it_on_every_replica_within_a_second(world: World, change):
    one, two = world.planes
    token = world.log_in(two).headers["X-Subject-Token"]
    assert one.takes(token) and two.takes(token)        # and both remember it as good
    assert change(world, one, token).status_code in (200, 204)
    assert not one.takes(token)                         # who made the change sees it at once
    assert ends(two, token)


@pytest.mark.etcd
def test_ten_wrong_passwords_lock_wherever_they_were_tried(world: World):
    for number in range(9):
        assert world.log_in(world.planes[number % 2], "a-wrong-password-1").status_code == 401
    assert world.log_in(world.planes[1]).status_code == 201                 # nine do not, and a right one begins anew
    for number in range(10):
        assert world.log_in(world.planes[number % 2], "a-wrong-password-1").status_code == 401
    for plane in world.planes:
        assert world.log_in(plane).status_code == 401
    unlock = {"user": {"enabled": True}}
    assert world.planes[0]("PATCH", f"/users/{world.ids['user']}", world.admin, unlock).status_code == 200
    assert world.log_in(world.planes[1]).status_code == 201


@pytest.mark.etcd
def test_a_new_token_is_good_on_every_replica_at_once(world: World):
    for plane, other in (world.planes, world.planes[::-1]):
        assert other.takes(world.log_in(plane).headers["X-Subject-Token"])
