"""Policy as identity's callers meet it: overrides, managers of a domain, secrets in logs, and tokens that end at once."""
import logging

import pytest

from control.identity.model import PROJECT, USER
from tests.identity.conftest import PASSWORDS, Cloud, made


async def manager(cloud: Cloud, admin, role: str = "manager"):
    """(a domain's id, a client with a token for it of a user who has the role there)."""
    domain = await made(admin, "domain", name="shop")
    user = await made(admin, "user", name="boss", password="pw", domain_id=domain["id"])
    [found] = (await admin("GET", f"/v3/roles?name={role}")).json["roles"]
    granted = await admin("PUT", f"/v3/domains/{domain['id']}/users/{user['id']}/roles/{found['id']}")
    assert granted.status == 204
    reply = await cloud.log_in("boss", "pw", {"domain": {"id": domain["id"]}}, domain=domain["id"])
    assert reply.status == 201, reply.body
    return domain["id"], cloud.client_of(reply.headers["x-subject-token"])


async def test_a_manager_of_a_domain_manages_its_users_and_no_others(cloud: Cloud, admin) -> None:
    domain_id, boss = await manager(cloud, admin)
    clerk = await made(boss, "user", name="clerk", password="pw")
    assert clerk["domain_id"] == domain_id
    path = f"/v3/users/{clerk['id']}"
    assert (await boss("PATCH", path, json_body={"user": {"description": "x"}})).status == 200
    assert {user["name"] for user in (await boss("GET", "/v3/users")).json["users"]} == {"boss", "clerk"}
    stranger = await made(admin, "user", name="stranger", password="pw")
    for verb in ("GET", "PATCH", "DELETE"):
        reply = await boss(verb, f"/v3/users/{stranger['id']}", **({"json_body": {"user": {}}} if verb == "PATCH" else {}))
        assert reply.status == 403, verb
    elsewhere = await boss("POST", "/v3/users", json_body={"user": {"name": "spy", "domain_id": "default"}})
    assert elsewhere.status == 403
    assert elsewhere.json["error"]["message"] == "You are not authorized to perform the requested action: identity:create_user."
    assert (await boss("DELETE", path)).status == 204


async def test_a_manager_of_a_domain_manages_its_groups_with_its_own_users_alone(cloud: Cloud, admin) -> None:
    domain_id, boss = await manager(cloud, admin)
    group, clerk = await made(boss, "group", name="staff"), await made(boss, "user", name="clerk", password="pw")
    theirs, stranger = await made(admin, "group", name="theirs"), await made(admin, "user", name="stranger", password="pw")
    assert group["domain_id"] == domain_id
    assert (await boss("PUT", f"/v3/groups/{group['id']}/users/{clerk['id']}")).status == 204
    assert [user["name"] for user in (await boss("GET", f"/v3/groups/{group['id']}/users")).json["users"]] == ["clerk"]
    for pair in ((theirs, clerk), (group, stranger), (theirs, stranger)):
        assert (await boss("PUT", f"/v3/groups/{pair[0]['id']}/users/{pair[1]['id']}")).status == 403
    assert [each["name"] for each in (await boss("GET", "/v3/groups")).json["groups"]] == ["staff"]
    assert (await boss("DELETE", f"/v3/groups/{theirs['id']}")).status == 403
    assert (await boss("DELETE", f"/v3/groups/{group['id']}")).status == 204


async def test_a_reader_of_a_domain_sees_its_users_and_changes_none(cloud: Cloud, admin) -> None:
    _, boss = await manager(cloud, admin, "reader")
    [user] = (await boss("GET", "/v3/users")).json["users"]
    assert (await boss("GET", f"/v3/users/{user['id']}")).status == 200
    assert (await boss("PATCH", f"/v3/users/{user['id']}", json_body={"user": {"description": "x"}})).status == 403


async def test_an_override_opens_and_closes_calls(cloud: Cloud, admin, demo) -> None:
    user_id = (await cloud.log_in("admin")).json["token"]["user"]["id"]
    assert (await demo("GET", f"/v3/users/{user_id}")).status == 403
    policy = cloud.dispatcher.policy
    policy.take({"identity:get_user": "role:member", "identity:create_role": "!", "identity:list_roles": "@"})
    assert (await demo("GET", f"/v3/users/{user_id}")).status == 200
    assert (await admin("POST", "/v3/roles", json_body={"role": {"name": "x"}})).status == 403
    assert (await demo("GET", "/v3/roles")).status == 200
    policy.take({})
    assert (await demo("GET", f"/v3/users/{user_id}")).status == 403 == (await demo("GET", "/v3/roles")).status


@pytest.mark.parametrize("ended", ["user", "project", "domain"])
async def test_a_token_is_refused_at_once_when_what_it_hangs_on_is_disabled(cloud: Cloud, admin, ended: str) -> None:
    domain = await made(admin, "domain", name="shop")
    project = await made(admin, "project", name="till", domain_id=domain["id"])
    user = await made(admin, "user", name="clerk", password="pw", domain_id=domain["id"], default_project_id=project["id"])
    [role] = (await admin("GET", "/v3/roles?name=member")).json["roles"]
    assert (await admin("PUT", f"/v3/projects/{project['id']}/users/{user['id']}/roles/{role['id']}")).status == 204
    token = (await cloud.log_in("clerk", "pw", domain=domain["id"])).headers["x-subject-token"]
    clerk = cloud.client_of(token)
    assert (await clerk("GET", "/v3/auth/projects")).status == 200
    thing = {"user": user, "project": project, "domain": domain}[ended]
    assert (await admin("PATCH", f"/v3/{ended}s/{thing['id']}", json_body={ended: {"enabled": False}})).status == 200
    assert (await clerk("GET", "/v3/auth/projects")).status == 401
    assert (await admin("PATCH", f"/v3/{ended}s/{thing['id']}", json_body={ended: {"enabled": True}})).status == 200
    assert (await clerk("GET", "/v3/auth/projects")).status == 401
    assert cloud.db.get(USER, user["id"]) and cloud.db.get(PROJECT, project["id"])


async def test_no_secret_is_ever_logged(cloud: Cloud, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = set(PASSWORDS.values())
    token = await cloud.token("admin")
    admin = cloud.client_of(token)
    user = await made(admin, "user", name="alice", password="swordfish-1")
    await admin("PATCH", f"/v3/users/{user['id']}", json_body={"user": {"password": "swordfish-2"}})
    await cloud.anybody("POST", f"/v3/users/{user['id']}/password", json_body={"user": {
        "original_password": "swordfish-2", "password": "swordfish-3"}})
    await cloud.log_in("alice", "swordfish-wrong")
    await cloud.anybody("POST", f"/v3/users/{user['id']}/password", json_body={"user": {
        "original_password": "swordfish-bad", "password": ["swordfish-list"]}})
    own = (await cloud.log_in("admin")).json["token"]["user"]["id"]
    reply = await admin("POST", f"/v3/users/{own}/application_credentials",
                        json_body={"application_credential": {"name": "robot", "secret": "swordfish-robot"}})
    assert reply.status == 201
    again = await cloud.anybody("POST", "/v3/auth/tokens", json_body={"auth": {"identity": {
        "methods": ["application_credential"],
        "application_credential": {"id": reply.json["application_credential"]["id"], "secret": "swordfish-robot"}}}})
    blob = await admin("POST", "/v3/credentials", json_body={"credential": {
        "type": "totp", "blob": "SWORDFISHSEED234", "user_id": user["id"]}})
    assert blob.status == 201
    exchanged = await cloud.exchange(token, "unscoped")
    subject = {"x-subject-token": exchanged.headers["x-subject-token"]}
    assert (await admin("GET", "/v3/auth/tokens", headers=subject)).status == 200
    assert (await admin("DELETE", "/v3/auth/tokens", headers=subject)).status == 204
    assert (await cloud.client_of("swordfish-token")("GET", "/v3/users")).status == 401
    secrets |= {token, again.headers["x-subject-token"], subject["x-subject-token"], "swordfish", "SWORDFISH", "argon2"}
    secrets |= {record.password_hash for record in cloud.db.cache.all(USER) if record.password_hash}
    logged = "\n".join(record.getMessage() + (record.exc_text or "") for record in caplog.records)
    assert "/identity.v1.Users/CreateUser ok" in logged
    assert [secret for secret in secrets if secret in logged] == []
