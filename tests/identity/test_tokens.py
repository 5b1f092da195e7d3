"""Tokens over REST: how they are got, what they say, and everything that ends them."""
import asyncio
import logging
import time
from typing import Any

import pytest

from control.identity import sealing, service
from control.identity.model import TOKEN_KEY
from control.kernel.errors import Unauthenticated
from tests.identity.conftest import PASSWORDS, URL, Cloud, made, replica

DEFAULT = {"id": "default"}
ADMIN_PROJECT = {"project": {"name": "admin", "domain": {"name": "Default"}}}


async def test_the_quick_start_request_gets_a_token_for_the_default_project(cloud: Cloud) -> None:
    reply = await cloud.log_in("demo")
    token = reply.json["token"]
    assert reply.status == 201 and reply.headers["x-subject-token"]
    assert token["methods"] == ["password"]
    assert token["user"]["name"] == "demo" and token["user"]["domain"] == {"id": "default", "name": "Default"}
    assert token["user"]["password_expires_at"] is None
    assert token["project"]["name"] == "demo" and token["is_domain"] is False
    assert [role["name"] for role in token["roles"]] == ["member", "reader"]
    assert len(token["audit_ids"]) == 1
    assert token["issued_at"].endswith("Z") and token["expires_at"] > token["issued_at"]


async def test_the_catalog_is_in_the_token_with_the_project_in_its_addresses(cloud: Cloud) -> None:
    token = (await cloud.log_in("demo")).json["token"]
    by_type = {entry["type"]: entry for entry in token["catalog"]}
    assert set(by_type) == {"identity", "compute", "volume"}
    assert {endpoint["interface"] for endpoint in by_type["compute"]["endpoints"]} == {"public", "internal", "admin"}
    assert {endpoint["url"] for endpoint in by_type["volume"]["endpoints"]} == {f"{URL}/volume/v3/{token['project']['id']}"}
    assert {endpoint["region_id"] for endpoint in by_type["compute"]["endpoints"]} == {"RegionOne"}


@pytest.mark.parametrize("name,password,domain", [
    ("demo", "wrong", "default"), ("nobody", "changeme", "default"), ("demo", "changeme", "elsewhere"), ("demo", "", "default"),
    ("demo", "x" * 2000, "default"), ("", "changeme", "default")])
async def test_wrong_credentials_get_one_answer_that_gives_nothing_away(cloud: Cloud, name, password, domain) -> None:
    reply = await cloud.log_in(name, password, domain=domain)
    if not name:
        assert reply.status == 400
        return
    assert reply.status == 401
    assert reply.json["error"]["message"] == "The request you have made requires authentication."
    assert "x-subject-token" not in reply.headers


@pytest.mark.parametrize("body", [
    {}, {"auth": {}}, {"auth": {"identity": {"methods": []}}}, {"auth": {"identity": {"methods": ["password"]}}},
    {"auth": {"identity": {"methods": ["password"], "password": {"user": {"name": "demo", "password": "changeme"}}}}},
    {"auth": {"identity": {"methods": "password"}}}])
async def test_incomplete_credentials_are_a_bad_request(cloud: Cloud, body) -> None:
    reply = await cloud.anybody("POST", "/v3/auth/tokens", json_body=body)
    assert reply.status == 400 and reply.json["error"]["code"] == 400


@pytest.mark.parametrize("scope", [
    "everything", [], {"project": {}}, {"project": {"name": "demo"}}, {"project": {"id": 7}}, {"system": {"all": False}},
    {"project": {"id": "a"}, "domain": {"id": "b"}}, {"galaxy": {"id": "a"}}])
async def test_a_scope_of_no_known_shape_is_a_bad_request(cloud: Cloud, scope) -> None:
    assert (await cloud.log_in("demo", scope=scope)).status == 400


async def test_a_scope_without_a_role_on_it_is_refused(cloud: Cloud) -> None:
    for scope in (ADMIN_PROJECT, {"system": {"all": True}}, {"domain": DEFAULT}, {"project": {"id": "nowhere"}}):
        assert (await cloud.log_in("demo", scope=scope)).status == 401


async def test_each_kind_of_scope_shows_itself_alone(cloud: Cloud) -> None:
    scopes = {"project": ADMIN_PROJECT, "domain": {"domain": {"name": "Default"}}, "system": {"system": {"all": True}},
              "": "unscoped"}
    for kind, scope in scopes.items():
        token = (await cloud.log_in("admin", scope=scope)).json["token"]
        assert {"project", "domain", "system"} & set(token) == ({kind} if kind else set())
        assert ("roles" in token) == ("catalog" in token) == bool(kind)
    assert token["user"]["name"] == "admin"


async def test_a_default_project_without_a_role_leaves_the_token_without_scope(cloud: Cloud, admin) -> None:
    project = await made(admin, "project", name="elsewhere")
    await made(admin, "user", name="visitor", password="pw", default_project_id=project["id"])
    token = (await cloud.log_in("visitor", "pw")).json["token"]
    assert "project" not in token and "roles" not in token


async def test_exchanging_a_token_keeps_its_end_and_its_chain(cloud: Cloud) -> None:
    first = await cloud.log_in("admin", scope="unscoped")
    second = await cloud.exchange(first.headers["x-subject-token"], ADMIN_PROJECT)
    third = await cloud.exchange(second.headers["x-subject-token"], {"system": {"all": True}})
    assert second.status == third.status == 201
    ends = {reply.json["token"]["expires_at"] for reply in (first, second, third)}
    assert len(ends) == 1
    assert set(second.json["token"]["methods"]) == {"password", "token"}
    assert third.json["token"]["audit_ids"][1] == second.json["token"]["audit_ids"][1] == first.json["token"]["audit_ids"][0]


async def test_show_and_head_say_what_the_issue_said(cloud: Cloud, admin) -> None:
    issued = await cloud.log_in("demo")
    header = {"x-subject-token": issued.headers["x-subject-token"]}
    shown = await admin("GET", "/v3/auth/tokens", headers=header)
    assert shown.status == 200 and shown.json == issued.json and shown.headers["x-subject-token"] == header["x-subject-token"]
    head = await admin("HEAD", "/v3/auth/tokens", headers=header)
    assert head.status == 200 and not head.body
    for query in ("?nocatalog", "?nocatalog=1"):
        assert "catalog" not in (await admin("GET", f"/v3/auth/tokens{query}", headers=header)).json["token"]


async def test_a_token_is_shown_and_ended_by_its_user_or_an_admin_alone(cloud: Cloud, demo, admin) -> None:
    theirs = {"x-subject-token": await cloud.token("admin")}
    assert (await demo("GET", "/v3/auth/tokens", headers=theirs)).status == 403
    assert (await demo("DELETE", "/v3/auth/tokens", headers=theirs)).status == 403
    own = {"x-subject-token": await cloud.token("demo")}
    assert (await demo("GET", "/v3/auth/tokens", headers=own)).status == 200
    assert (await demo("GET", "/v3/auth/tokens")).status == 400
    assert (await demo("GET", "/v3/auth/tokens", headers={"x-subject-token": "nonsense"})).status == 404
    assert (await cloud.anybody("GET", "/v3/auth/tokens", headers=own)).status == 401


async def test_a_token_that_does_not_hold_is_exchanged_for_nothing(cloud: Cloud, admin) -> None:
    token = await cloud.token("demo")
    assert (await cloud.exchange(token, "unscoped")).status == 201
    assert (await admin("DELETE", "/v3/auth/tokens", headers={"x-subject-token": token})).status == 204
    for ended in (token, "nonsense", ""):
        reply = await cloud.exchange(ended, "unscoped")
        assert reply.status == 404 and reply.json["error"]["message"] == "Could not find token."


async def test_a_revoked_token_ends_and_others_of_its_user_do_not(cloud: Cloud, admin) -> None:
    first, second = await cloud.token("demo"), await cloud.token("demo")
    assert (await cloud.client_of(first)("GET", "/v3/auth/projects")).status == 200
    assert (await cloud.client_of(first)("DELETE", "/v3/auth/tokens", headers={"x-subject-token": first})).status == 204
    assert (await cloud.client_of(first)("GET", "/v3/auth/projects")).status == 401
    assert (await admin("GET", "/v3/auth/tokens", headers={"x-subject-token": first})).status == 404
    assert (await cloud.client_of(second)("GET", "/v3/auth/projects")).status == 200


async def _ends(cloud: Cloud, token: str, act) -> None:
    """`act` ends a token that held before."""
    client = cloud.client_of(token)
    assert (await client("GET", "/v3/auth/projects")).status == 200
    reply = await act
    assert reply.status < 300, reply.body
    assert (await client("GET", "/v3/auth/projects")).status == 401


@pytest.mark.parametrize("change", [{"enabled": False}, {"password": "another"}])
async def test_disabling_a_user_or_setting_a_password_ends_tokens(cloud: Cloud, admin, change) -> None:
    user = (await cloud.log_in("demo")).json["token"]["user"]["id"]
    await _ends(cloud, await cloud.token("demo"), admin("PATCH", f"/v3/users/{user}", json_body={"user": change}))


async def test_a_token_from_before_disabling_stays_ended_after_enabling(cloud: Cloud, admin) -> None:
    token = await cloud.token("demo")
    user = (await cloud.log_in("demo")).json["token"]["user"]["id"]
    await _ends(cloud, token, admin("PATCH", f"/v3/users/{user}", json_body={"user": {"enabled": False}}))
    assert (await cloud.log_in("demo")).status == 401
    await admin("PATCH", f"/v3/users/{user}", json_body={"user": {"enabled": True}})
    assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 401
    assert (await cloud.log_in("demo")).status == 201


async def test_disabling_or_deleting_a_project_or_taking_the_role_ends_tokens_for_it(cloud: Cloud, admin) -> None:
    user = await made(admin, "user", name="worker", password="pw")
    roles = (await admin("GET", "/v3/roles?name=member")).json["roles"]

    async def project_with_role(name: str) -> tuple[str, str]:
        project = (await made(admin, "project", name=name))["id"]
        grant = f"/v3/projects/{project}/users/{user['id']}/roles/{roles[0]['id']}"
        assert (await admin("PUT", grant)).status == 204
        return project, grant

    project, _ = await project_with_role("disabled")
    token = await cloud.token("worker", "pw", {"project": {"id": project}})
    await _ends(cloud, token, admin("PATCH", f"/v3/projects/{project}", json_body={"project": {"enabled": False}}))
    assert (await cloud.log_in("worker", "pw", {"project": {"id": project}})).status == 401
    project, _ = await project_with_role("deleted")
    token = await cloud.token("worker", "pw", {"project": {"id": project}})
    await _ends(cloud, token, admin("DELETE", f"/v3/projects/{project}"))
    project, grant = await project_with_role("left")
    token = await cloud.token("worker", "pw", {"project": {"id": project}})
    await _ends(cloud, token, admin("DELETE", grant))
    token = await cloud.token("worker", "pw")
    await _ends(cloud, token, admin("DELETE", f"/v3/users/{user['id']}"))


async def test_disabling_a_domain_ends_the_tokens_of_its_users_and_projects(cloud: Cloud, admin) -> None:
    domain = (await made(admin, "domain", name="department"))["id"]
    await made(admin, "user", name="insider", password="pw", domain_id=domain)
    reply = await cloud.log_in("insider", "pw", domain=domain)
    await _ends(cloud, reply.headers["x-subject-token"],
                admin("PATCH", f"/v3/domains/{domain}", json_body={"domain": {"enabled": False}}))
    assert (await cloud.log_in("insider", "pw", domain=domain)).status == 401


async def test_what_is_shown_of_a_token_is_what_is_true_now(cloud: Cloud, admin) -> None:
    token = await cloud.token("demo")

    async def shown(query: str = "") -> dict[str, Any]:
        reply = await admin("GET", f"/v3/auth/tokens{query}", headers={"x-subject-token": token})
        assert reply.status == 200 and reply.headers["x-subject-token"] == token
        return reply.json["token"]

    first = await shown()
    assert await shown() == first and "catalog" not in await shown("?nocatalog") and await shown() == first
    user_id, project_id = first["user"]["id"], first["project"]["id"]
    role = (await admin("POST", "/v3/roles", json_body={"role": {"name": "extra"}})).json["role"]
    assert (await admin("PUT", f"/v3/projects/{project_id}/users/{user_id}/roles/{role['id']}")).status == 204
    assert {each["name"] for each in (await shown())["roles"]} == {each["name"] for each in first["roles"]} | {"extra"}
    assert (await admin("PATCH", f"/v3/projects/{project_id}", json_body={"project": {"name": "renamed"}})).status == 200
    assert (await shown())["project"]["name"] == "renamed"
    service = first["catalog"][0]
    assert (await admin("PATCH", f"/v3/services/{service['id']}", json_body={"service": {"enabled": False}})).status == 200
    assert service["id"] not in {each["id"] for each in (await shown())["catalog"]}
    assert (await admin("DELETE", "/v3/auth/tokens", headers={"x-subject-token": token})).status == 204
    assert (await admin("GET", "/v3/auth/tokens", headers={"x-subject-token": token})).status == 404


async def test_a_remembered_answer_is_for_those_alone_who_may_see_it(cloud: Cloud, demo, admin) -> None:
    token = await cloud.token("admin")
    assert (await admin("GET", "/v3/auth/tokens", headers={"x-subject-token": token})).status == 200
    assert (await demo("GET", "/v3/auth/tokens", headers={"x-subject-token": token})).status == 403


async def test_another_replica_refuses_a_revoked_token_and_takes_a_new_one_at_once(cloud: Cloud, store) -> None:
    async with replica(store) as other:
        token = await cloud.token("demo")
        assert (await other.client_of(token)("GET", "/v3/auth/projects")).status == 200
        await cloud.client_of(token)("DELETE", "/v3/auth/tokens", headers={"x-subject-token": token})
        await other.db.cache.wait(cloud.db.cache.revision)
        assert (await other.client_of(token)("GET", "/v3/auth/projects")).status == 401


async def test_an_expired_token_is_refused_though_it_was_remembered(cloud: Cloud, monkeypatch) -> None:
    token = await cloud.token("demo")
    client = cloud.client_of(token)
    assert (await client("GET", "/v3/auth/projects")).status == 200
    assert (await client("GET", "/v3/auth/tokens", headers={"x-subject-token": token})).status == 200
    later = time.time() + sealing.LIFETIME.total_seconds() + 1
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(time, "time_ns", lambda: int(later * 1e9))
    with pytest.raises(Unauthenticated):
        await cloud.authenticator.remembered(token)
    assert (await client("GET", "/v3/auth/projects")).status == 401


async def test_a_token_that_was_changed_anywhere_is_refused(cloud: Cloud) -> None:
    token = await cloud.token("demo")
    for position in range(0, len(token), 37):
        changed = token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1:]
        assert (await cloud.client_of(changed)("GET", "/v3/auth/projects")).status == 401
    for nonsense in ("x", "é", "x" * 5000, "gAAAAA"):
        assert (await cloud.client_of(nonsense)("GET", "/v3/auth/projects")).status in (400, 401)


async def test_rotating_keys_logs_nobody_out_and_drops_only_keys_that_no_token_needs(cloud: Cloud, monkeypatch) -> None:
    token = await cloud.token("demo")
    await service.rotate(cloud.db)
    assert len(cloud.db.cache.all(TOKEN_KEY)) == 2
    assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 200
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + sealing.LEAD.total_seconds() + 1)
    under_new_key = await cloud.token("demo")
    assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 200
    assert (await cloud.client_of(under_new_key)("GET", "/v3/auth/projects")).status == 200
    shift = int((sealing.LIFETIME + 3 * sealing.LEAD).total_seconds() * 1e9)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + shift)
    await service.rotate(cloud.db)
    assert "first" not in {key.id for key in cloud.db.cache.all(TOKEN_KEY)}
    assert len(cloud.db.cache.all(TOKEN_KEY)) == 2


async def test_what_a_token_reaches_is_listed(cloud: Cloud, admin, demo) -> None:
    assert [row["name"] for row in (await demo("GET", "/v3/auth/projects")).json["projects"]] == ["demo"]
    assert (await demo("GET", "/v3/auth/domains")).json["domains"] == []
    assert (await demo("GET", "/v3/auth/system")).json["system"] == []
    assert [row["id"] for row in (await admin("GET", "/v3/auth/domains")).json["domains"]] == ["default"]
    assert (await admin("GET", "/v3/auth/system")).json["system"] == [{"all": True}]
    assert {row["type"] for row in (await demo("GET", "/v3/auth/catalog")).json["catalog"]} == {"identity", "compute", "volume"}
    unscoped = await cloud.client("admin", scope="unscoped")
    assert (await unscoped("GET", "/v3/auth/catalog")).status == 403


async def test_no_password_or_token_is_ever_logged(cloud: Cloud, admin, caplog) -> None:
    with caplog.at_level(logging.DEBUG):
        token = await cloud.token("demo")
        await cloud.log_in("demo", "a-wrong-one")
        await made(admin, "user", name="fresh", password="a-fresh-one")
        await cloud.client_of(token)("GET", "/v3/auth/projects")
    for secret in (PASSWORDS["demo"], PASSWORDS["admin"], "a-wrong-one", "a-fresh-one", token):
        assert secret not in caplog.text


async def test_logins_at_once_all_get_their_own_token(cloud: Cloud) -> None:
    tokens = await asyncio.gather(*(cloud.token("demo") for _ in range(20)))
    assert len(set(tokens)) == 20
