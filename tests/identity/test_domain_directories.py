"""Domains that got their directory over REST: it counts on every replica at once, and a broken one shuts its domain alone."""
import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from control.identity.model import DOMAIN_CONFIG, MEMBER, USER
from tests.api.client import Client, Reply
from tests.conftest import unique
from tests.identity.conftest import made
from tests.identity.slapd import PLAIN, READER, READER_PASSWORD, Slapd
from tests.identity.test_directories import Corporate, World

#: Keystone's names for what slapd.options() says.
TREES = {"user_tree_dn": f"ou=people,{PLAIN}", "group_tree_dn": f"ou=groups,{PLAIN}", "user_id_attribute": "uid",
         "user_name_attribute": "uid", "group_name_attribute": "cn"}


@contextlib.asynccontextmanager
async def replica(store) -> AsyncIterator[Corporate]:
    """A replica whose operator's file has no directories."""
    cloud = Corporate(store, {})
    following = asyncio.create_task(cloud.db.cache.run())
    try:
        await cloud.db.cache.ready.wait()
        await cloud.bootstrap()
        yield cloud
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        cloud.passwords.close()
        cloud.directories.close()


@pytest.fixture
async def clouds(store) -> AsyncIterator[tuple[Corporate, Corporate]]:
    """Two replicas on one store. What is asked of the one is asked of the other."""
    async with replica(store) as one, replica(store) as two:
        yield one, two


@pytest.fixture
def world(slapd: Slapd):
    people = World(slapd, PLAIN)
    yield people
    people.clear()


@pytest.fixture
async def admin(clouds) -> Client:
    return await clouds[0].client("admin")


@pytest.fixture
async def domain(clouds, admin: Client) -> dict[str, Any]:
    found = await made(admin, "domain", name=unique("corp"))
    for cloud in clouds:
        cloud.domain = found["id"]
    await seen(clouds)
    return found


def options(slapd: Slapd, **changes: Any) -> dict[str, Any]:
    return {"identity": {"driver": "ldap"}, "ldap": {
        "url": f"ldap://127.0.0.1:{slapd.port}", "user": f"{READER},{PLAIN}", "password": READER_PASSWORD} | TREES | changes}


async def put(admin: Client, domain: dict[str, Any], config: dict[str, Any], verb: str = "PUT") -> Reply:
    return await admin(verb, f"/v3/domains/{domain['id']}/config", json_body={"config": config})


async def seen(clouds: tuple[Corporate, Corporate]) -> None:
    """Until both have seen what either has."""
    latest = max(cloud.db.cache.revision for cloud in clouds)
    for cloud in clouds:
        await cloud.db.cache.wait(latest)


async def statuses(clouds, name: str, password: str) -> list[int]:
    await seen(clouds)
    return [(await cloud.corporate(name, password)).status for cloud in clouds]


async def test_a_directory_set_over_rest_counts_on_every_replica(clouds, domain, admin: Client, world: World, slapd: Slapd):
    assert await statuses(clouds, world.ann, f"{world.ann}!") == [401, 401]
    assert (await put(admin, domain, options(slapd))).status == 201
    assert await statuses(clouds, world.ann, f"{world.ann}!") == [201, 201]
    assert await statuses(clouds, world.ann, "wrong") == [401, 401]
    assert await statuses(clouds, world.ann, "") == [401, 401]
    for cloud in clouds:
        client = await cloud.client("admin")
        users = (await client("GET", f"/v3/users?domain_id={domain['id']}")).json["users"]
        assert {user["name"] for user in users} >= {world.ann, world.ben}
        part = (await client("GET", f"/v3/users?domain_id={domain['id']}&name__startswith=ann")).json["users"]
        assert world.ann in {user["name"] for user in part} and world.ben not in {user["name"] for user in part}
        crew = (await client("GET", f"/v3/groups?domain_id={domain['id']}&name={world.crew}")).json["groups"][0]
        members = (await client("GET", f"/v3/groups/{crew['id']}/users")).json["users"]
        assert [user["name"] for user in members] == [world.ann]
        assert (await client("POST", "/v3/users", json_body={"user": {"name": "new", "domain_id": domain["id"]}})).status == 403


async def test_its_password_is_nowhere_to_be_seen(clouds, domain, admin: Client, world: World, slapd: Slapd,
                                                  caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    replies = [await put(admin, domain, options(slapd)), await put(admin, domain, {"ldap": {"password": "another"}}, "PATCH"),
               await admin("GET", f"/v3/domains/{domain['id']}/config"),
               await admin("GET", f"/v3/domains/{domain['id']}/config/ldap")]
    assert await statuses(clouds, world.ann, f"{world.ann}!") == [503, 503]
    assert (await admin("GET", f"/v3/domains/{domain['id']}/config/ldap/password")).status == 404
    record = clouds[0].db.get(DOMAIN_CONFIG, domain["id"])
    for text in (*(reply.body.decode() for reply in replies), caplog.text, str(record)):
        assert READER_PASSWORD not in text and "another" not in text
    assert "password" not in json.dumps([reply.json for reply in replies])


async def test_a_changed_option_counts_at_once_and_ends_whom_it_leaves_out(clouds, domain, admin: Client, world: World, slapd):
    await put(admin, domain, options(slapd))
    await seen(clouds)
    tokens = [(await cloud.corporate(world.ann, f"{world.ann}!")).headers["x-subject-token"] for cloud in clouds]
    await seen(clouds)
    for cloud in clouds:
        for token in tokens:
            assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 200
    assert (await put(admin, domain, {"ldap": {"user_filter": f"(!(uid={world.ann}))"}}, "PATCH")).status == 200
    await seen(clouds)
    for cloud in clouds:
        for token in tokens:
            assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 401
    assert await statuses(clouds, world.ann, f"{world.ann}!") == [401, 401]
    assert await statuses(clouds, world.ben, f"{world.ben}!") == [201, 201]


async def test_one_level_or_all_below_is_searched(clouds, domain, admin: Client, world: World, slapd: Slapd):
    assert (await put(admin, domain, options(slapd, user_tree_dn=PLAIN))).status == 201
    assert await statuses(clouds, world.ann, f"{world.ann}!") == [401, 401]
    assert (await put(admin, domain, {"ldap": {"query_scope": "sub"}}, "PATCH")).status == 200
    assert await statuses(clouds, world.ann, f"{world.ann}!") == [201, 201]


@pytest.mark.parametrize("how", ["delete", "delete the group", "another driver"])
async def test_without_its_directory_a_domain_has_its_own_users_again(clouds, domain, admin: Client, world, slapd, how: str):
    await put(admin, domain, options(slapd))
    await seen(clouds)
    reply = await clouds[1].corporate(world.ann, f"{world.ann}!")
    before, token = reply.json["token"]["user"]["id"], reply.headers["x-subject-token"]
    base = f"/v3/domains/{domain['id']}/config"
    await seen(clouds)
    match how:
        case "delete":
            assert (await admin("DELETE", base)).status == 204
        case "delete the group":
            assert (await admin("DELETE", f"{base}/identity")).status == 204
        case _:
            assert (await put(admin, domain, {"identity": {"driver": "sql"}}, "PATCH")).status == 200
    await seen(clouds)
    for cloud in clouds:
        assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 401
        assert not cloud.db.cache.by(USER, "domain", domain["id"]) and not cloud.db.cache.all(MEMBER)
    user = await made(admin, "user", name=world.ann, domain_id=domain["id"], password="own")
    assert await statuses(clouds, world.ann, "own") == [201, 201]
    reply = await put(admin, domain, options(slapd))
    assert reply.status == 409 and "of its own" in reply.json["error"]["message"]
    assert (await admin("DELETE", f"/v3/users/{user['id']}")).status == 204
    assert (await put(admin, domain, options(slapd))).status in (200, 201)
    await seen(clouds)
    assert (await clouds[1].corporate(world.ann, f"{world.ann}!")).json["token"]["user"]["id"] == before


@pytest.mark.parametrize("changes", [
    {"user": None}, {"password": ""}, {"url": "http://x"}, {"url": "ldap://directory.example"}, {"user_filter": "uid=x"},
    {"page_size": "many"}, {"use_tls": "perhaps"}, {"tls_cacertfile": "/none"}, {"tls_req_cert": "never"},
    {"user_enabled_emulation": True}, {"query_scope": "all"}, {"user_name_attribute": 7}, {"url": ["ldap://127.0.0.1"]}])
async def test_a_broken_configuration_shuts_its_domain_alone(clouds, domain, admin: Client, world: World, slapd: Slapd, changes,
                                                            caplog: pytest.LogCaptureFixture):
    await put(admin, domain, options(slapd))
    await seen(clouds)
    token = (await clouds[1].corporate(world.ann, f"{world.ann}!")).headers["x-subject-token"]
    assert (await put(admin, domain, options(slapd, **changes))).status == 200
    assert await statuses(clouds, world.ann, f"{world.ann}!") == [503, 503]
    for cloud in clouds:
        assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 503
        assert (await cloud.log_in("demo")).status == 201
        client = await cloud.client("admin")
        for path in ("/v3/users", "/v3/projects", "/v3/domains", "/v3/role_assignments", f"/v3/domains/{domain['id']}/config"):
            assert (await client("GET", path)).status == 200
        assert (await client("GET", f"/v3/users?domain_id={domain['id']}")).status == 503
    warnings = [record.getMessage() for record in caplog.records if "until that is put right" in record.getMessage()]
    assert len(warnings) == len(clouds) and all(next(iter(changes)) in text and domain["id"] in text for text in warnings)
    assert (await put(admin, domain, options(slapd))).status == 200
    assert await statuses(clouds, world.ann, f"{world.ann}!") == [201, 201]


async def test_a_domain_with_a_broken_configuration_can_be_deleted(clouds, domain, admin: Client):
    assert (await put(admin, domain, {"identity": {"driver": "ldap"}, "ldap": {"url": "nonsense"}})).status == 201
    path = f"/v3/domains/{domain['id']}"
    assert (await admin("PATCH", path, json_body={"domain": {"enabled": False}})).status == 200
    assert (await admin("DELETE", path)).status == 204
    assert not clouds[0].db.cache.all(DOMAIN_CONFIG)


async def test_the_default_domain_keeps_the_clouds_own_users(clouds, admin: Client, slapd: Slapd):
    assert (await put(admin, {"id": "default"}, options(slapd))).status == 403
    assert (await clouds[0].log_in("demo")).status == 201
