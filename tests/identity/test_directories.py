"""A domain whose users are in a real slapd, over REST: they log in, have roles, are listed, and end when they end there."""
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from argon2 import PasswordHasher

from control.gateway.app import Gateway
from control.identity import service as identity
from control.identity.asking import asking
from control.identity.directories import Directories, public_id
from control.identity.directory_logins import DirectoryAuthenticator, DirectoryPasswords
from control.identity.directory_settings import read
from control.identity.model import DIRECTORY_ENTRY, MEMBER, USER
from control.kernel import pki
from control.kernel.database import Database
from control.kernel.errors import Invalid
from control.kernel.rpc import Dispatcher
from control.kernel.store import MemoryStore
from tests.api.client import Client
from tests.conftest import unique
from tests.identity.conftest import Cloud, made
from tests.identity.slapd import AD, PLAIN, Slapd


class Corporate(Cloud):
    """A cloud with one domain, "corp", that is a directory's."""

    def __init__(self, store, settings):
        self.db = Database(store, identity.KINDS)
        self.directories = Directories(self.db, settings)
        self.passwords = DirectoryPasswords(self.directories, PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        self.authenticator = DirectoryAuthenticator(self.db, self.directories)
        self.dispatcher = Dispatcher(self.authenticator)
        for servicer, descriptor in asking(identity.servicers(self.db, self.authenticator, self.passwords), self.db,
                                           self.directories):
            self.dispatcher.add(servicer, descriptor)
        self.gateway = Gateway(self.dispatcher)
        self.anybody = Client(self.gateway)
        self.domain = ""

    async def corporate(self, name: str, password: str, scope: Any = None):
        return await self.log_in(name, password, scope, domain=self.domain)

    async def find(self, admin: Client, noun: str, name: str) -> dict[str, Any]:
        reply = await admin("GET", f"/v3/{noun}s?domain_id={self.domain}&name={name}")
        (found,) = reply.json[f"{noun}s"]
        return found


@contextlib.asynccontextmanager
async def running(store, **options: Any) -> AsyncIterator[Corporate]:
    cloud = Corporate(store, read({"domains": {"corp": options}}))
    following = asyncio.create_task(cloud.db.cache.run())
    try:
        await cloud.db.cache.ready.wait()
        await cloud.bootstrap()
        admin = await cloud.client("admin")
        found = (await admin("GET", "/v3/domains?name=corp")).json["domains"]
        cloud.domain = (found[0] if found else await made(admin, "domain", name="corp"))["id"]
        yield cloud
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        cloud.passwords.close()
        cloud.directories.close()


class World:
    """People of one test in one of slapd's directories; their names are the test's own."""

    def __init__(self, slapd: Slapd, suffix: str):
        self.slapd, self.suffix = slapd, suffix
        self.ann, self.ben, self.crew = unique("ann"), unique("ben"), unique("crew")
        self.dns = {name: slapd.add_user(suffix, name, f"{name}!") for name in (self.ann, self.ben)}
        self.dns[self.crew] = slapd.add_group(suffix, self.crew, [self.dns[self.ann]])

    def change(self, dn: str, **attributes: Any) -> None:
        with self.slapd.root(self.suffix) as root:
            root.modify(dn, {name: [("MODIFY_REPLACE", [value])] for name, value in attributes.items()})

    def clear(self) -> None:
        self.slapd.resume()
        for dn in self.dns.values():
            with contextlib.suppress(Exception):
                self.slapd.remove(self.suffix, dn)


@pytest.fixture(params=[PLAIN, AD], ids=["ldap", "ad"])
def world(request: pytest.FixtureRequest, slapd: Slapd):
    made_world = World(slapd, request.param)
    yield made_world
    made_world.clear()


@pytest.fixture
async def cloud(store, world: World, tmp_path) -> AsyncIterator[Corporate]:
    options = world.slapd.options(world.suffix, tmp_path, cache_time=1.0)
    if world.suffix == PLAIN:
        options["user_enabled_attribute"] = "employeeType"
    async with running(store, **options) as corporate:
        yield corporate


@pytest.fixture
async def project(cloud: Corporate, world: World, admin: Client) -> dict[str, Any]:
    """A project that ann may work in."""
    project = await made(admin, "project", name="works", domain_id=cloud.domain)
    user = await cloud.find(admin, "user", world.ann)
    role = (await admin("GET", "/v3/roles?name=member")).json["roles"][0]
    assert (await admin("PUT", f"/v3/projects/{project['id']}/users/{user['id']}/roles/{role['id']}")).status == 204
    return project


async def test_a_user_of_the_directory_logs_in_by_name_and_by_id(cloud: Corporate, world: World):
    reply = await cloud.corporate(world.ann, f"{world.ann}!")
    user = reply.json["token"]["user"]
    assert (reply.status, user["name"], user["domain"]["id"]) == (201, world.ann, cloud.domain)
    auth = {"identity": {"methods": ["password"], "password": {"user": {"id": user["id"], "password": f"{world.ann}!"}}}}
    assert (await cloud.anybody("POST", "/v3/auth/tokens", json_body={"auth": auth})).status == 201
    if world.suffix == PLAIN:
        assert user["id"] == public_id(cloud.domain, "user", world.ann)


@pytest.mark.parametrize("name,password", [
    ("ann", "wrong"), ("ann", ""), ("ann", "\u00ad"), ("nobody", "x"), ("*", "ann!"), ("ben", "ann!")])
async def test_wrong_credentials_get_the_same_answer_as_everywhere(cloud: Corporate, world: World, name: str, password: str):
    name = {"ann": world.ann, "ben": world.ben}.get(name, name)
    reply = await cloud.corporate(name, password.replace("ann", world.ann))
    assert reply.status == 401 and reply.json["error"]["message"] == "The request you have made requires authentication."


async def test_roles_of_users_and_of_groups_are_in_their_tokens(cloud: Corporate, world: World, admin: Client, project):
    scope = {"project": {"id": project["id"]}}
    reply = await cloud.corporate(world.ann, f"{world.ann}!", scope)
    assert {role["name"] for role in reply.json["token"]["roles"]} == {"member", "reader"}
    group = await cloud.find(admin, "group", world.crew)
    manager = (await admin("GET", "/v3/roles?name=admin")).json["roles"][0]
    grant = f"/v3/projects/{project['id']}/groups/{group['id']}/roles/{manager['id']}"
    assert (await admin("PUT", grant)).status == 204 and (await admin("HEAD", grant)).status in (200, 204)
    reply = await cloud.corporate(world.ann, f"{world.ann}!", scope)
    assert "admin" in {role["name"] for role in reply.json["token"]["roles"]}
    assert (await cloud.corporate(world.ben, f"{world.ben}!", scope)).status == 401
    shown = await admin("GET", f"/v3/role_assignments?effective&include_names&scope.project.id={project['id']}")
    assert world.ann in {row["user"]["name"] for row in shown.json["role_assignments"]}


async def test_users_and_groups_are_listed_and_shown_with_who_is_in_them(cloud: Corporate, world: World, admin: Client):
    listed = (await admin("GET", f"/v3/users?domain_id={cloud.domain}")).json["users"]
    assert {world.ann, world.ben} <= {user["name"] for user in listed}
    first = (await admin("GET", f"/v3/users?domain_id={cloud.domain}&limit=1")).json
    assert len(first["users"]) == 1 and first["links"]["next"]
    user, group = await cloud.find(admin, "user", world.ann), await cloud.find(admin, "group", world.crew)
    assert (await admin("GET", f"/v3/users/{user['id']}")).json["user"]["email"] == "someone@plain.test"
    assert (await admin("GET", f"/v3/groups/{group['id']}")).json["group"]["description"] == f"all {world.crew}"
    assert [row["id"] for row in (await admin("GET", f"/v3/groups/{group['id']}/users")).json["users"]] == [user["id"]]
    assert [row["id"] for row in (await admin("GET", f"/v3/users/{user['id']}/groups")).json["groups"]] == [group["id"]]
    assert (await admin("HEAD", f"/v3/groups/{group['id']}/users/{user['id']}")).status in (200, 204)
    assert (await admin("GET", f"/v3/users/{'0' * 64}")).status == 404


async def test_nothing_is_written_to_the_directory(cloud: Corporate, world: World, admin: Client):
    user, group = await cloud.find(admin, "user", world.ann), await cloud.find(admin, "group", world.crew)
    local = await made(admin, "user", name=unique(), domain_id="default")
    for verb, path, body in [
            ("POST", "/v3/users", {"user": {"name": "x", "domain_id": cloud.domain}}),
            ("PATCH", f"/v3/users/{user['id']}", {"user": {"name": "x"}}), ("DELETE", f"/v3/users/{user['id']}", None),
            ("POST", f"/v3/users/{user['id']}/password", {"user": {"original_password": f"{world.ann}!", "password": "x"}}),
            ("POST", "/v3/groups", {"group": {"name": "x", "domain_id": cloud.domain}}),
            ("PATCH", f"/v3/groups/{group['id']}", {"group": {"name": "x"}}), ("DELETE", f"/v3/groups/{group['id']}", None),
            ("PUT", f"/v3/groups/{group['id']}/users/{user['id']}", None),
            ("DELETE", f"/v3/groups/{group['id']}/users/{user['id']}", None)]:
        reply = await admin(verb, path, json_body=body)
        assert reply.status == 403 and "LDAP does not support write operations" in reply.json["error"]["message"], (verb, path)
    reply = await admin("PUT", f"/v3/groups/{group['id']}/users/{local['id']}")
    assert reply.status == 403 and "across backend boundaries" in reply.json["error"]["message"]


async def test_who_leaves_the_directory_or_a_group_of_it_loses_their_token(cloud: Corporate, world: World, admin: Client,
                                                                           project):
    group = await cloud.find(admin, "group", world.crew)
    user = await cloud.find(admin, "user", world.ann)
    manager = (await admin("GET", "/v3/roles?name=admin")).json["roles"][0]
    await admin("PUT", f"/v3/domains/{cloud.domain}/groups/{group['id']}/roles/{manager['id']}")
    reply = await cloud.corporate(world.ann, f"{world.ann}!", {"domain": {"id": cloud.domain}})
    through_group = cloud.client_of(reply.headers["x-subject-token"])
    reply = await cloud.corporate(world.ann, f"{world.ann}!", {"project": {"id": project["id"]}})
    own = cloud.client_of(reply.headers["x-subject-token"])
    assert (await through_group("GET", "/v3/auth/catalog")).status == (await own("GET", "/v3/auth/catalog")).status == 200
    world.change(world.dns[world.crew], member=world.dns[world.ben])
    await asyncio.sleep(1.1)
    assert (await through_group("GET", "/v3/auth/catalog")).status == 401
    assert (await own("GET", "/v3/auth/catalog")).status == 200
    world.slapd.remove(world.suffix, world.dns[world.ann])
    await asyncio.sleep(1.1)
    assert (await own("GET", "/v3/auth/catalog")).status == 401
    assert (await admin("GET", f"/v3/users/{user['id']}")).status == 404
    assert cloud.db.get(USER, user["id"]) is None and not cloud.db.cache.by(MEMBER, "user", user["id"])


async def test_who_is_disabled_in_the_directory_loses_their_token(cloud: Corporate, world: World, admin: Client, project):
    reply = await cloud.corporate(world.ann, f"{world.ann}!", {"project": {"id": project["id"]}})
    client = cloud.client_of(reply.headers["x-subject-token"])
    world.change(world.dns[world.ann], **({"userAccountControl": 514} if world.suffix == AD else {"employeeType": "FALSE"}))
    await asyncio.sleep(1.1)
    assert (await client("GET", "/v3/auth/catalog")).status == 401
    assert (await cloud.corporate(world.ann, f"{world.ann}!")).status == 401
    assert (await cloud.find(admin, "user", world.ann))["enabled"] is False


async def test_a_domain_of_a_directory_is_deleted_without_a_trace(cloud: Corporate, world: World, admin: Client, project):
    assert (await admin("GET", f"/v3/users?domain_id={cloud.domain}")).status == 200
    assert cloud.db.cache.by(DIRECTORY_ENTRY, "domain", cloud.domain)
    await admin("PATCH", f"/v3/domains/{cloud.domain}", json_body={"domain": {"enabled": False}})
    assert (await admin("DELETE", f"/v3/domains/{cloud.domain}")).status == 204
    assert not cloud.db.cache.by(DIRECTORY_ENTRY, "domain", cloud.domain) and not cloud.db.cache.by(USER, "domain", cloud.domain)


async def test_a_silent_directory_is_unavailable_in_time_and_holds_up_nobody_else(cloud: Corporate, world: World, admin: Client):
    assert (await cloud.corporate(world.ann, f"{world.ann}!")).status == 201
    world.slapd.silence()
    started = time.monotonic()
    logins = [asyncio.create_task(cloud.corporate(world.ann, "x")) for _ in range(80)]
    await asyncio.sleep(0.1)
    assert (await admin("GET", "/v3/projects")).status == 200 and (await cloud.log_in("demo")).status == 201
    assert time.monotonic() - started < 1.5
    replies = await asyncio.gather(*logins)
    assert {reply.status for reply in replies} == {503} and time.monotonic() - started < 4
    world.slapd.resume()
    await asyncio.sleep(1)
    assert (await cloud.corporate(world.ann, f"{world.ann}!")).status == 201


async def test_ids_and_roles_are_the_same_for_a_replica_that_starts_later(store, cloud: Corporate, world: World, admin: Client,
                                                                          project, tmp_path):
    before = (await cloud.find(admin, "user", world.ann))["id"]
    async with running(store, **world.slapd.options(world.suffix, tmp_path)) as other:
        reply = await other.corporate(world.ann, f"{world.ann}!", {"project": {"id": project["id"]}})
        assert reply.json["token"]["user"]["id"] == before
        assert (await (cloud.client_of(reply.headers["x-subject-token"]))("GET", "/v3/auth/catalog")).status == 200


@pytest.mark.parametrize("changes,status", [
    ({"use_tls": True}, 201), ({"ldaps": True}, 201),
    ({"use_tls": True, "strange": True}, 503), ({"ldaps": True, "strange": True}, 503),
    ({"url": "ldap://127.0.0.1:1,ldap://127.0.0.1:{port}"}, 201), ({"url": "ldap://127.0.0.1:1"}, 503)])
async def test_only_a_server_with_a_certificate_of_the_authority_is_asked(slapd: Slapd, tmp_path, changes, status):
    world = World(slapd, PLAIN)
    try:
        changes = dict(changes)
        strange = pki.ensure_ca(tmp_path / "pki").certificate
        changes["tls_cacertfile"] = str(strange if changes.pop("strange", False) else slapd.ca)
        if changes.pop("ldaps", False):
            changes["url"] = f"ldaps://localhost:{slapd.tls_port}"
        elif "url" in changes:
            changes["url"] = changes["url"].format(port=slapd.port)
        options = slapd.options(PLAIN, tmp_path, **changes) | {"plaintext": "url" in changes and "ldaps" not in changes["url"]}
        async with running(MemoryStore(), **options) as cloud:
            assert (await cloud.corporate(world.ann, f"{world.ann}!")).status == status
    finally:
        world.clear()


@pytest.mark.parametrize("changes,named", [
    ({"url": "http://x"}, "url"), ({"plaintext": False}, "url"), ({"user": ""}, "user"), ({"kind": "nis"}, "kind"),
    ({"password_file": "/none"}, "password_file"), ({"user_tree_dn": ""}, "user_tree_dn"),
    ({"user_filter": "uid=x"}, "user_filter"), ({"page_size": 0}, "page_size"), ({"page_size": "many"}, "page_size"),
    ({"colour": "red"}, "colour"), ({"timeout": True}, "timeout")])
def test_a_setting_that_makes_no_sense_is_named(slapd: Slapd, tmp_path, changes, named):
    with pytest.raises(Invalid, match=rf"identity\.domains\.corp\.{named}"):
        read({"domains": {"corp": slapd.options(PLAIN, tmp_path) | changes}})
    with pytest.raises(Invalid, match="default domain"):
        read({"domains": {"default": slapd.options(PLAIN, tmp_path)}})


async def test_a_directorys_domain_is_not_shared_with_an_identity_provider(store, slapd: Slapd, tmp_path):
    async with running(store, **slapd.options(PLAIN, tmp_path)) as cloud:
        admin = await cloud.client("admin")
        reply = await admin("PUT", "/v3/OS-FEDERATION/identity_providers/acme", json_body={"identity_provider": {
            "domain_id": cloud.domain}})
        assert reply.status == 403
        assert (await admin("GET", "/v3/OS-FEDERATION/identity_providers")).json["identity_providers"] == []
