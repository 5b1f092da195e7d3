"""Users of a real OpenID Connect provider log in over REST, have roles through groups, and end when their provider does."""
import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher
from keystoneauth1 import session as keystone
from keystoneauth1.exceptions import http as refusals
from keystoneauth1.identity import v3

from control.gateway import server
from control.gateway.app import Gateway
from control.identity import service as identity
from control.identity.asking import asking
from control.identity.directories import Directories
from control.identity.directory_logins import DirectoryAuthenticator, DirectoryPasswords
from control.identity.federation import settings
from control.identity.federation.providers import Providers
from control.identity.federation.shadow import sweep, user_id_of
from control.identity.model import DIRECTORY_ENTRY, MEMBER, USER
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.rpc import Dispatcher
from control.kernel.store import MemoryStore
from protos.identity.v1.directories_pb2 import DirectoryEntry
from protos.identity.v1.records_pb2 import UserRecord
from protos.identity.v1.users_pb2 import User
from tests.api.client import Client, Reply
from tests.identity.canaille.provider import CALLBACK, CLIENTS, PEOPLE, SCOPE, Canaille
from tests.identity.conftest import ENDPOINTS, Cloud, made

FEDERATION = "/v3/OS-FEDERATION"
ACME = f"{FEDERATION}/identity_providers/acme"
AUTH = f"{ACME}/protocols/openid/auth"

#: Whoever the provider knows, in its groups that the cloud has too.
RULES = [{"local": [{"user": {"id": "{0}", "name": "{0}", "email": "{1}"}}],
          "remote": [{"type": "sub"}, {"type": "HTTP_OIDC_EMAIL"}]},
         {"local": [{"groups": "{0}", "domain": {"id": "default"}}], "remote": [{"type": "groups", "blacklist": ["strange"]}]}]


class Federated(Cloud):
    """A cloud whose configuration has one provider, "acme"."""

    def __init__(self, store, **options: Any):
        self.db = Database(store, identity.KINDS)
        self.providers = Providers(settings.read({"federation": {"acme": options}}))
        directories = Directories(self.db, {})
        self.passwords = DirectoryPasswords(directories, PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
        self.authenticator = DirectoryAuthenticator(self.db, directories)
        self.dispatcher = Dispatcher(self.authenticator)
        for servicer, descriptor in asking(identity.servicers(self.db, self.authenticator, self.passwords,
                                                              providers=self.providers), self.db, directories):
            self.dispatcher.add(servicer, descriptor)
        self.gateway = Gateway(self.dispatcher)
        self.anybody = Client(self.gateway)
        self.url = ""

    async def federate(self, rules: Any = None, **provider: Any) -> None:
        """Make the provider, its mapping and its protocol, and the group "devs", which is a member of the project demo."""
        admin = self.admin = await self.client("admin")
        await put(admin, f"{FEDERATION}/mappings/rules", "mapping", rules=rules or RULES)
        self.acme = await put(admin, ACME, "identity_provider", **{"enabled": True} | provider)
        await put(admin, f"{ACME}/protocols/openid", "protocol", mapping_id="rules")
        self.devs = await made(admin, "group", name="devs", domain_id="default")
        (self.demo_project,) = (await admin("GET", "/v3/projects?name=demo")).json["projects"]
        (member,) = (await admin("GET", "/v3/roles?name=member")).json["roles"]
        self.member = member["id"]
        given = await admin("PUT", f"/v3/projects/{self.demo_project['id']}/groups/{self.devs['id']}/roles/{self.member}")
        assert given.status == 204

    async def enter(self, token: str, verb: str = "POST") -> Reply:
        return await self.anybody(verb, AUTH, headers={"authorization": f"Bearer {token}"})

    async def entered(self, token: str) -> str:
        reply = await self.enter(token)
        assert reply.status == 201, reply.body
        return reply.headers["x-subject-token"]

    async def in_demo(self, token: str) -> Reply:
        return await self.exchange(token, {"project": {"id": self.demo_project["id"]}})


async def put(client: Client, path: str, noun: str, **values: Any) -> dict[str, Any]:
    reply = await client("PUT", path, json_body={noun: values})
    assert reply.status == 201, reply.body
    return reply.json[noun]


@contextlib.asynccontextmanager
async def running(store, port: int = 0, **options: Any) -> AsyncIterator[Federated]:
    cloud = Federated(store, **options)
    listener = server.listen("127.0.0.1", port)
    cloud.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    following = asyncio.create_task(cloud.db.cache.run())
    serving = asyncio.create_task(server.serve(cloud.gateway, "127.0.0.1", 0, listener=listener))
    try:
        await cloud.db.cache.ready.wait()
        await cloud.bootstrap(public_url=cloud.url, endpoints=ENDPOINTS[:1])
        yield cloud
    finally:
        for task in (serving, following):
            task.cancel()
        await asyncio.gather(serving, following, return_exceptions=True)
        await cloud.providers.close()
        cloud.passwords.close()


@pytest.fixture
async def cloud(store, canaille: Canaille) -> AsyncIterator[Federated]:
    async with running(store, **canaille.options()) as made_cloud:
        await made_cloud.federate()
        yield made_cloud


@pytest.fixture
async def quick(canaille: Canaille) -> AsyncIterator[Federated]:
    """The same over memory alone, for what the store has no part in."""
    async with running(MemoryStore(), **canaille.options(timeout=1.0, opaque_tokens="introspection")) as made_cloud:
        yield made_cloud


# Logging in

@pytest.mark.parametrize("verb", ["GET", "POST"])
async def test_a_user_of_the_provider_gets_a_token_without_scope(cloud: Federated, canaille: Canaille, verb: str):
    reply = await cloud.enter(canaille.token("alice"), verb)
    assert reply.status == 201, reply.body
    token = reply.json["token"]
    assert token["methods"] == ["openid"]
    assert not {"project", "domain", "roles", "catalog"} & set(token)
    domain_id = cloud.acme["domain_id"]
    assert token["user"] == {
        "id": user_id_of(domain_id, "acme", "alice"), "name": "alice", "domain": {"id": domain_id, "name": domain_id},
        "password_expires_at": None, "OS-FEDERATION": {"identity_provider": {"id": "acme"}, "protocol": {"id": "openid"},
                                                       "groups": [{"id": cloud.devs["id"]}]}}


async def test_the_token_is_exchanged_for_one_in_a_project_of_a_group(cloud: Federated, canaille: Canaille):
    token = await cloud.entered(canaille.token("alice"))
    alice = cloud.client_of(token)
    for path in ("/v3/auth/projects", f"{FEDERATION}/projects"):
        assert [project["name"] for project in (await alice("GET", path)).json["projects"]] == ["demo"]
    assert (await alice("GET", f"{FEDERATION}/domains")).json["domains"] == []
    scoped = await cloud.in_demo(token)
    assert scoped.status == 201, scoped.body
    said = scoped.json["token"]
    assert sorted(said["methods"]) == ["openid", "token"] and [role["name"] for role in said["roles"]] == ["member", "reader"]
    assert said["user"]["OS-FEDERATION"]["identity_provider"] == {"id": "acme"} and said["catalog"]
    shown = await cloud.admin("GET", "/v3/auth/tokens", headers={"x-subject-token": scoped.headers["x-subject-token"]})
    assert shown.json["token"]["user"] == said["user"]


@pytest.mark.parametrize("method", ["openid", "mapped"])
async def test_the_older_names_of_the_method_exchange_it_too(quick: Federated, canaille: Canaille, method: str):
    await quick.federate()
    token, own = await quick.entered(canaille.token("alice")), await quick.token("demo")

    async def exchanged(token: str) -> Reply:
        return await quick.anybody("POST", "/v3/auth/tokens", json_body={"auth": {
            "identity": {"methods": [method], method: {"id": token}}, "scope": {"project": {"id": quick.demo_project["id"]}}}})

    assert (await exchanged(token)).status == 201
    assert (await exchanged(own)).status == 401            # which is no provider's


async def test_a_user_has_the_roles_that_they_were_given_themselves(cloud: Federated, canaille: Canaille):
    token = await cloud.entered(canaille.token("eve"))
    user_id = user_id_of(cloud.acme["domain_id"], "acme", "eve")
    assert (await cloud.in_demo(token)).status == 401
    given = await cloud.admin("PUT", f"/v3/projects/{cloud.demo_project['id']}/users/{user_id}/roles/{cloud.member}")
    assert given.status == 204
    assert (await cloud.in_demo(token)).status == 201


async def test_users_are_listed_with_who_they_are_to_the_provider(cloud: Federated, canaille: Canaille):
    await cloud.entered(canaille.token("alice"))
    await cloud.entered(canaille.token("alice"))
    await cloud.entered(canaille.token("bob"))
    users = (await cloud.admin("GET", f"/v3/users?domain_id={cloud.acme['domain_id']}")).json["users"]
    assert [user["name"] for user in users] == ["alice", "bob"]
    assert users[0]["email"] == "alice@idp.test"
    assert users[0]["federated"] == [{"idp_id": "acme", "protocols": [{"protocol_id": "openid", "unique_id": "alice"}]}]
    for query, names in (("unique_id=bob", ["bob"]), ("idp_id=acme&protocol_id=openid", ["alice", "bob"]), ("idp_id=x", [])):
        assert [user["name"] for user in (await cloud.admin("GET", f"/v3/users?{query}")).json["users"]] == names
    (group,) = (await cloud.admin("GET", f"/v3/users/{users[0]['id']}/groups")).json["groups"]
    assert group["name"] == "devs"
    assert len((await cloud.admin("GET", f"/v3/groups/{cloud.devs['id']}/users")).json["users"]) == 2


async def test_nobody_makes_themselves_a_user_of_a_provider(quick: Federated, canaille: Canaille):
    await quick.federate()
    forged = await made(quick.admin, "user", name="mallory", federated=[{"idp_id": "acme", "protocols": [
        {"protocol_id": "openid", "unique_id": "alice"}]}])
    assert "federated" not in forged
    changed = await quick.admin("PATCH", f"/v3/users/{forged['id']}", json_body={"user": {"federated": [{"idp_id": "acme"}]}})
    assert changed.status == 200 and "federated" not in changed.json["user"]


async def test_two_users_may_have_one_name(quick: Federated, canaille: Canaille):
    rules = [{"local": [{"user": {"id": "{0}", "name": "somebody"}}], "remote": [{"type": "sub"}]}]
    await quick.federate(rules, domain_id="default")
    namesake = await made(quick.admin, "user", name="somebody", password="own", domain_id="default")
    ids = {(await quick.enter(canaille.token(name))).json["token"]["user"]["id"] for name in ("alice", "bob")}
    assert len(ids) == 2 and namesake["id"] not in ids
    for user_id in ids:
        assert (await quick.admin("DELETE", f"/v3/users/{user_id}")).status == 204
    assert (await quick.log_in("somebody", "own")).status == 201


# Who may not

async def test_bad_tokens_are_refused_alike(quick: Federated, canaille: Canaille, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    await quick.federate()
    key, now = canaille.keys[0], int(time.time())
    bad = [canaille.token("alice", "other"), key.sign(canaille.claims(exp=now - 60)), key.sign(canaille.claims(iss="https://x.test")),
           key.sign(canaille.claims(), kid="unknown"), "not.a.token", "opaque", key.sign(canaille.claims(aud="other"))]
    bodies = set()
    for token in bad:
        reply = await quick.enter(token)
        assert reply.status == 401 and "x-subject-token" not in reply.headers
        bodies.add(reply.body)
        assert token == "opaque" or token not in caplog.text
    assert len(bodies) == 1
    for header in ({}, {"authorization": "Basic YTpi"}, {"authorization": "Bearer"}, {"authorization": "Bearer a b"},
                   {"x-auth-token": "x", "authorization": ""}):
        assert (await quick.anybody("POST", AUTH, headers=header)).status == 401
    assert canaille.secret_file.read_text().strip() not in caplog.text
    users = (await quick.admin("GET", f"/v3/users?domain_id={quick.acme['domain_id']}")).json["users"]
    assert users == []


async def test_a_silent_provider_is_503_without_a_trace(quick: Federated, canaille: Canaille, caplog: pytest.LogCaptureFixture):
    await quick.federate()
    token = canaille.token("alice")
    canaille.silence()
    try:
        reply = await quick.enter(token)
    finally:
        canaille.resume()
    assert reply.status == 503 and "acme" in reply.json["error"]["message"]
    assert "Traceback" not in caplog.text and canaille.issuer not in reply.json["error"]["message"]
    assert (await quick.enter(token)).status == 201


async def test_whom_no_rule_maps_is_nobody(quick: Federated, canaille: Canaille):
    await quick.federate([{"local": [{"user": {"name": "{0}"}}],
                           "remote": [{"type": "sub"}, {"type": "groups", "any_one_of": ["ops"]}]}])
    assert (await quick.enter(canaille.token("alice"))).status == 201
    assert (await quick.enter(canaille.token("bob"))).status == 401
    assert (await quick.admin("DELETE", f"{FEDERATION}/mappings/rules")).status == 204
    assert (await quick.enter(canaille.token("alice"))).status == 401


async def test_what_there_is_not_is_not_found(quick: Federated, canaille: Canaille):
    await quick.federate()
    bearer = {"authorization": f"Bearer {canaille.token('alice')}"}
    for path in (f"{FEDERATION}/identity_providers/none/protocols/openid/auth", f"{ACME}/protocols/none/auth"):
        assert (await quick.anybody("POST", path, headers=bearer)).status == 404
    await put(quick.admin, f"{FEDERATION}/identity_providers/unset", "identity_provider", enabled=True)
    await put(quick.admin, f"{FEDERATION}/identity_providers/unset/protocols/openid", "protocol", mapping_id="rules")
    reply = await quick.anybody("POST", f"{FEDERATION}/identity_providers/unset/protocols/openid/auth", headers=bearer)
    assert reply.status == 403 and "configuration" in reply.json["error"]["message"]


async def test_a_provider_is_known_by_its_remote_ids(quick: Federated, canaille: Canaille):
    await quick.federate(remote_ids=["https://another.test"])
    token = canaille.token("alice")
    assert (await quick.enter(token)).status == 403
    for attribute, status in (("HTTP_OIDC_ISS", 201), ("sub", 403), ("absent", 403)):
        patch = {"protocol": {"mapping_id": "rules", "remote_id_attribute": attribute}}
        assert (await quick.admin("PATCH", f"{ACME}/protocols/openid", json_body=patch)).status == 200
        changed = await quick.admin("PATCH", ACME, json_body={"identity_provider": {"remote_ids": [canaille.issuer]}})
        assert changed.status == 200
        assert (await quick.enter(token)).status == status


# What ends tokens

@pytest.mark.parametrize("ended", ["provider disabled", "provider deleted", "provider made anew", "protocol deleted",
                                   "user disabled", "user deleted", "domain disabled"])
async def test_what_a_token_hangs_on_ends_it_at_once(cloud: Federated, canaille: Canaille, ended: str):
    given = canaille.token("alice")
    unscoped = await cloud.entered(given)
    scoped = (await cloud.in_demo(unscoped)).headers["x-subject-token"]
    alice = [cloud.client_of(token) for token in (unscoped, scoped)]
    assert [(await client("GET", "/v3/auth/projects")).status for client in alice] == [200, 200]
    user_path = f"/v3/users/{user_id_of(cloud.acme['domain_id'], 'acme', 'alice')}"
    match ended:
        case "provider disabled":
            reply = await cloud.admin("PATCH", ACME, json_body={"identity_provider": {"enabled": False}})
        case "provider deleted" | "provider made anew":
            reply = await cloud.admin("DELETE", ACME)
            assert (await cloud.admin("GET", user_path)).status == 404
            if ended == "provider made anew":
                await put(cloud.admin, ACME, "identity_provider", enabled=True, domain_id=cloud.acme["domain_id"])
                await put(cloud.admin, f"{ACME}/protocols/openid", "protocol", mapping_id="rules")
        case "protocol deleted":
            reply = await cloud.admin("DELETE", f"{ACME}/protocols/openid")
        case "user disabled":
            reply = await cloud.admin("PATCH", user_path, json_body={"user": {"enabled": False}})
        case "user deleted":
            reply = await cloud.admin("DELETE", user_path)
        case _:
            reply = await cloud.admin("PATCH", f"/v3/domains/{cloud.acme['domain_id']}", json_body={"domain": {"enabled": False}})
    assert reply.status in (200, 204), reply.body
    assert [(await client("GET", "/v3/auth/projects")).status for client in alice] == [401, 401]
    assert (await cloud.in_demo(unscoped)).status == 404
    again = (await cloud.enter(given)).status
    wanted = {"provider disabled": 403, "provider deleted": 404, "protocol deleted": 404, "user disabled": 401,
              "domain disabled": 401, "provider made anew": 201, "user deleted": 201}
    assert again == wanted[ended]
    if ended in ("provider made anew", "user deleted"):
        assert [(await client("GET", "/v3/auth/projects")).status for client in alice] == [401, 401]


async def test_a_provider_that_is_enabled_again_lets_users_in_but_not_their_old_tokens(quick: Federated, canaille: Canaille):
    await quick.federate()
    old = quick.client_of(await quick.entered(canaille.token("alice")))
    for enabled in (False, True):
        assert (await quick.admin("PATCH", ACME, json_body={"identity_provider": {"enabled": enabled}})).status == 200
        assert (await old("GET", "/v3/auth/projects")).status == 401
    assert (await quick.enter(canaille.token("alice"))).status == 201


async def test_what_a_user_made_ends_with_the_provider_too(quick: Federated, canaille: Canaille):
    await quick.federate()
    scoped = await quick.in_demo(await quick.entered(canaille.token("alice")))
    user_id = scoped.json["token"]["user"]["id"]
    alice = quick.client_of(scoped.headers["x-subject-token"])
    reply = await alice("POST", f"/v3/users/{user_id}/application_credentials",
                        json_body={"application_credential": {"name": "robot", "secret": "of the robot"}})
    assert reply.status == 201, reply.body
    identity_of_robot = {"methods": ["application_credential"], "application_credential": {
        "id": reply.json["application_credential"]["id"], "secret": "of the robot"}}

    async def robot() -> Reply:
        return await quick.anybody("POST", "/v3/auth/tokens", json_body={"auth": {"identity": identity_of_robot}})

    entered = await robot()
    assert entered.status == 201 and "OS-FEDERATION" not in entered.json["token"]["user"]
    assert (await quick.admin("PATCH", ACME, json_body={"identity_provider": {"enabled": False}})).status == 200
    assert (await robot()).status == 401
    assert (await quick.client_of(entered.headers["x-subject-token"])("GET", "/v3/auth/projects")).status == 401


# Groups

async def test_groups_follow_the_provider_at_each_login(cloud: Federated, canaille: Canaille):
    key = canaille.keys[0]
    token = await cloud.entered(key.sign(canaille.claims()))
    assert (await cloud.in_demo(token)).status == 201
    await cloud.entered(key.sign(canaille.claims(groups=["ops"])))
    assert (await cloud.in_demo(token)).status == 401
    await cloud.entered(key.sign(canaille.claims(groups=["devs"])))
    assert (await cloud.in_demo(token)).status == 201


async def test_a_membership_ends_with_the_providers_time(quick: Federated, canaille: Canaille, monkeypatch: pytest.MonkeyPatch):
    await quick.federate(authorization_ttl=5)
    token = await quick.entered(canaille.token("alice"))
    scoped = (await quick.in_demo(token)).headers["x-subject-token"]
    alice = quick.client_of(scoped)
    assert (await alice("GET", "/v3/auth/catalog")).status == 200
    user_id = user_id_of(quick.acme["domain_id"], "acme", "alice")
    (row,) = quick.db.cache.by(MEMBER, "user", user_id)
    ends = row.expires_at.ToMicroseconds() / 1e6
    assert 5 * 60 <= ends - time.time() <= 6 * 60
    present = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: present() + 361 * 10 ** 9)
    monkeypatch.setattr(time, "time", lambda: present() / 1e9 + 361)
    assert (await alice("GET", "/v3/auth/catalog")).status == 401
    assert (await quick.in_demo(token)).status == 401
    assert (await quick.admin("GET", f"/v3/users/{user_id}/groups")).json["groups"] == []
    assert (await quick.admin("HEAD", f"/v3/groups/{quick.devs['id']}/users/{user_id}")).status == 404
    assert (await quick.admin("GET", f"/v3/groups/{quick.devs['id']}/users")).json["users"] == []
    assert (await quick.client_of(token)("GET", "/v3/auth/projects")).json["projects"] == []


async def test_a_login_that_only_renews_memberships_leaves_what_is_known_of_tokens(quick: Federated, canaille: Canaille,
                                                                                  monkeypatch: pytest.MonkeyPatch):
    await quick.federate()
    scoped = (await quick.in_demo(await quick.entered(canaille.token("alice")))).headers["x-subject-token"]
    assert (await quick.client_of(scoped)("GET", "/v3/auth/catalog")).status == 200
    before = quick.db.cache.all(MEMBER)[0].expires_at.seconds
    now = clock.now()
    now.seconds += 120
    monkeypatch.setattr(clock, "now", lambda: now)
    await quick.entered(canaille.token("alice"))
    assert quick.db.cache.all(MEMBER)[0].expires_at.seconds == before + 120 and scoped in quick.authenticator._known
    await quick.entered(canaille.keys[0].sign(canaille.claims(groups=[])))
    assert scoped not in quick.authenticator._known
    assert (await quick.client_of(scoped)("GET", "/v3/auth/catalog")).status == 401


async def test_a_membership_that_an_administrator_gave_stays(quick: Federated, canaille: Canaille):
    await quick.federate()
    key, user_id = canaille.keys[0], user_id_of(quick.acme["domain_id"], "acme", "alice")
    await quick.entered(key.sign(canaille.claims()))
    assert (await quick.admin("PUT", f"/v3/groups/{quick.devs['id']}/users/{user_id}")).status == 204
    for groups in (["devs"], []):
        token = await quick.entered(key.sign(canaille.claims(groups=groups)))
        assert (await quick.in_demo(token)).status == 201
    (row,) = quick.db.cache.by(MEMBER, "user", user_id)
    assert not row.HasField("expires_at")


async def test_memberships_that_have_ended_are_swept(quick: Federated, canaille: Canaille, monkeypatch: pytest.MonkeyPatch):
    await quick.federate()
    await quick.entered(canaille.token("alice"))
    await sweep(quick.db)
    assert quick.db.cache.all(MEMBER)
    now = clock.now()
    now.seconds += 2 * 3600
    monkeypatch.setattr(clock, "now", lambda: now)
    await sweep(quick.db)
    assert not quick.db.cache.all(MEMBER)


async def test_hundreds_of_groups_are_taken_and_given_back(cloud: Federated, canaille: Canaille):
    names = [f"g{number}" for number in range(150)]
    for name in names:
        await made(cloud.admin, "group", name=name, domain_id="default")
    key, user_id = canaille.keys[0], user_id_of(cloud.acme["domain_id"], "acme", "alice")
    for groups in (names, [*names[100:], "devs"], []):
        reply = await cloud.enter(key.sign(canaille.claims(groups=groups)))
        assert reply.status == 201 and len(reply.headers["x-subject-token"]) < 1024
        assert len(cloud.db.cache.by(MEMBER, "user", user_id)) == len(groups)


async def test_many_logins_of_one_user_at_once_make_one_user(cloud: Federated, canaille: Canaille):
    token = canaille.token("alice")
    replies = await asyncio.gather(*(cloud.enter(token) for _ in range(20)))
    assert {reply.status for reply in replies} == {201}
    assert len({reply.json["token"]["user"]["id"] for reply in replies}) == 1
    assert len((await cloud.admin("GET", "/v3/users?idp_id=acme")).json["users"]) == 1


# Other rules

async def test_projects_are_made_for_who_needs_them(cloud: Federated, canaille: Canaille):
    rules = [{"local": [{"user": {"name": "{0}"}, "projects": [
        {"name": "lab of {0}", "roles": [{"name": "member"}]}, {"name": "shared", "roles": [{"name": "reader"}]}]}],
        "remote": [{"type": "sub"}]}]
    changed = await cloud.admin("PATCH", f"{FEDERATION}/mappings/rules", json_body={"mapping": {"rules": rules}})
    assert changed.status == 200
    for name in ("alice", "bob", "alice"):
        token = await cloud.entered(canaille.token(name))
        projects = (await cloud.client_of(token)("GET", "/v3/auth/projects")).json["projects"]
        assert [project["name"] for project in projects] == [f"lab of {name}", "shared"]
        assert {project["domain_id"] for project in projects} == {cloud.acme["domain_id"]}
    reply = await cloud.exchange(token, {"project": {"id": projects[0]["id"]}})
    assert [role["name"] for role in reply.json["token"]["roles"]] == ["member", "reader"]


@pytest.mark.parametrize("local", [
    {"user": {"name": "{0}"}, "projects": [{"name": "p", "roles": [{"name": "no such role"}]}]},
    {"user": {"name": "{0}"}, "projects": [{"name": "x" * 65, "roles": [{"name": "member"}]}]},
    {"user": {"name": "nobody", "type": "local", "domain": {"id": "default"}}}, {"user": {"id": "nobody", "type": "local"}},
    {"user": {"name": "x" * 300}}], ids=["role", "project", "local name", "local id", "long"])
async def test_rules_that_lead_nowhere_let_nobody_in(quick: Federated, canaille: Canaille, local: dict):
    await quick.federate([{"local": [local], "remote": [{"type": "sub"}]}])
    assert (await quick.enter(canaille.token("alice"))).status == 401


async def test_rules_can_name_a_user_of_the_clouds_own(quick: Federated, canaille: Canaille):
    await quick.federate([{"local": [{"user": {"name": "demo", "type": "local", "domain": {"name": "Default"}}},
                                     {"groups": "devs", "domain": {"id": "default"}}], "remote": [{"type": "sub"}]}])
    reply = await quick.enter(canaille.token("alice"))
    assert reply.status == 201, reply.body
    said = reply.json["token"]
    own = (await quick.log_in("demo")).json["token"]["user"]["id"]
    assert said["user"]["id"] == own and "OS-FEDERATION" not in said["user"] and said["methods"] == ["openid"]
    assert not quick.db.get(USER, own).user.federated and not quick.db.cache.by(MEMBER, "user", own)
    demo = quick.client_of(reply.headers["x-subject-token"])
    assert (await quick.admin("PATCH", ACME, json_body={"identity_provider": {"enabled": False}})).status == 200
    assert (await demo("GET", "/v3/auth/projects")).status == 401
    assert (await quick.log_in("demo")).status == 201


async def test_rules_can_name_a_user_of_a_directory(quick: Federated, canaille: Canaille):
    await quick.federate([{"local": [{"user": {"name": "{0}", "type": "local", "domain": {"name": "corp"}}}],
                           "remote": [{"type": "sub"}]}])
    corp = await made(quick.admin, "domain", name="corp")
    copy = UserRecord(user=User(id="f" * 64, name="alice", domain_id=corp["id"], enabled=True))

    def fill(transaction: Transaction) -> None:
        transaction.put(DIRECTORY_ENTRY, DirectoryEntry(id="f" * 64, domain_id=corp["id"], entity_type="user", local_id="x"))
        transaction.put(USER, copy)

    await quick.db.transact(fill)
    assert (await quick.enter(canaille.token("alice"))).json["token"]["user"]["id"] == "f" * 64
    assert (await quick.enter(canaille.token("bob"))).status == 401
    rules = [{"local": [{"user": {"name": "{0}"}, "domain": {"name": "corp"}}], "remote": [{"type": "sub"}]}]
    change = {"mapping": {"rules": rules, "schema_version": "2.0"}}
    assert (await quick.admin("PATCH", f"{FEDERATION}/mappings/rules", json_body=change)).status == 200
    assert (await quick.enter(canaille.token("alice"))).status == 401        # a directory's domain has its own users alone


async def test_the_second_version_of_rules_puts_users_where_it_says(quick: Federated, canaille: Canaille):
    await quick.federate()
    rules = [{"local": [{"user": {"name": "{0}"}, "domain": {"id": "default"},
                         "projects": [{"name": "theirs", "roles": [{"name": "member"}]}]}], "remote": [{"type": "sub"}]}]
    change = {"mapping": {"rules": rules, "schema_version": "2.0"}}
    assert (await quick.admin("PATCH", f"{FEDERATION}/mappings/rules", json_body=change)).status == 200
    reply = await quick.enter(canaille.token("alice"))
    assert reply.json["token"]["user"]["domain"] == {"id": "default", "name": "Default"}
    assert reply.json["token"]["user"]["id"] == user_id_of("default", "acme", "alice")
    alice = quick.client_of(reply.headers["x-subject-token"])
    (project,) = (await alice("GET", "/v3/auth/projects")).json["projects"]
    assert (project["name"], project["domain_id"]) == ("theirs", "default")


async def test_a_program_logs_in_with_a_token_of_its_own(quick: Federated, canaille: Canaille):
    await quick.federate([{"local": [{"user": {"name": "robot {0}"}}], "remote": [{"type": "client_id"}]}])
    reply = await quick.enter(canaille.opaque_token())
    assert reply.status == 201 and reply.json["token"]["user"]["name"] == "robot brume"


# keystoneauth's plugins, over HTTP

def common(cloud: Federated, canaille: Canaille) -> dict[str, Any]:
    return {"auth_url": f"{cloud.url}/v3", "identity_provider": "acme", "protocol": "openid", "project_name": "demo",
            "project_domain_id": "default"}


def client(canaille: Canaille) -> dict[str, Any]:
    return {"client_id": "brume", "client_secret": CLIENTS["brume"], "scope": SCOPE,
            "discovery_endpoint": f"{canaille.issuer}/.well-known/openid-configuration"}


async def access(plugin) -> Any:
    return await asyncio.to_thread(plugin.get_access, keystone.Session())


async def test_keystoneauth_logs_in_with_a_password(cloud: Federated, canaille: Canaille):
    plugin = v3.OidcPassword(username="alice", password=PEOPLE["alice"], **common(cloud, canaille), **client(canaille))
    held = await access(plugin)
    assert (held.username, held.project_name, held.role_names) == ("alice", "demo", ["member", "reader"])
    assert held.is_federated


async def test_keystoneauth_logs_in_with_an_access_token(quick: Federated, canaille: Canaille):
    await quick.federate()
    held = await access(v3.OidcAccessToken(access_token=canaille.token("bob"), **common(quick, canaille)))
    assert (held.username, held.project_name) == ("bob", "demo")
    with pytest.raises(refusals.Unauthorized):
        await access(v3.OidcAccessToken(access_token=canaille.token("bob", "other"), **common(quick, canaille)))


async def test_keystoneauth_logs_in_with_a_code(quick: Federated, canaille: Canaille):
    await quick.federate()
    code = await asyncio.to_thread(canaille.code, "alice")
    held = await access(v3.OidcAuthorizationCode(code=code, redirect_uri=CALLBACK, **common(quick, canaille), **client(canaille)))
    assert (held.username, held.project_name) == ("alice", "demo")


async def test_keystoneauth_logs_a_program_in(quick: Federated, canaille: Canaille):
    await quick.federate([{"local": [{"user": {"name": "robot"}}, {"groups": "devs", "domain": {"id": "default"}}],
                           "remote": [{"type": "client_id", "any_one_of": ["brume"]}]}])
    held = await access(v3.OidcClientCredentials(**common(quick, canaille), **client(canaille)))
    assert (held.username, held.project_name) == ("robot", "demo")


async def test_keystoneauth_logs_a_device_in(quick: Federated, canaille: Canaille):
    await quick.federate()
    endpoints = {"device_authorization_endpoint": f"{canaille.issuer}/oauth/device",
                 "access_token_endpoint": f"{canaille.issuer}/oauth/token"}
    plugin = v3.oidc.OidcDeviceAuthorization(**endpoints, **common(quick, canaille),
                                             **client(canaille) | {"discovery_endpoint": None})
    logging_in = asyncio.create_task(access(plugin))
    while not getattr(plugin, "user_code", ""):
        await asyncio.sleep(0.05)
        assert not logging_in.done(), await logging_in
    await asyncio.to_thread(canaille.consent, plugin.user_code, "alice")
    held = await logging_in
    assert (held.username, held.project_name) == ("alice", "demo")


async def test_the_openstack_client_logs_in(quick: Federated, canaille: Canaille):
    await quick.federate()
    options = {"auth-type": "v3oidcpassword", "username": "alice", "password": PEOPLE["alice"], "openid-scope": SCOPE,
               **{key.replace("_", "-"): value for key, value in (common(quick, canaille) | client(canaille)).items()
                  if key != "scope"}}
    arguments = [f"--os-{key}={value}" for key, value in options.items()]
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("openstack"), *arguments, "token", "issue", "-f", "json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    assert json.loads(out)["project_id"] == quick.demo_project["id"]
