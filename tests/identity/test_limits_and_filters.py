"""Limits, endpoint filters, policies, domain configurations, inherited grants and project tags, over REST."""
from typing import Any

import pytest

from control.identity.model import DOMAIN_CONFIG, ENTRY, LIMIT, USER
from control.kernel.database import Transaction
from tests.api.client import Client
from tests.identity.conftest import Cloud, made


async def _service(admin) -> str:
    return (await admin("GET", "/v3/services?type=compute")).json["services"][0]["id"]


async def test_limits_are_registered_then_set_for_projects_each_once(cloud: Cloud, admin, demo) -> None:
    service = await _service(admin)
    project = (await cloud.log_in("demo")).json["token"]["project"]["id"]
    cores = {"service_id": service, "region_id": "RegionOne", "resource_name": "cores", "default_limit": 10}
    own = {"service_id": service, "region_id": "RegionOne", "resource_name": "cores", "resource_limit": 5, "project_id": project}
    assert (await admin("POST", "/v3/limits", json_body={"limits": [own]})).status == 403
    reply = await admin("POST", "/v3/registered_limits", json_body={"registered_limits": [cores]})
    registered = reply.json["registered_limits"][0]
    assert reply.status == 201 and registered["default_limit"] == 10 and registered["description"] is None
    both = [cores | {"resource_name": "ram"}, cores]
    assert (await admin("POST", "/v3/registered_limits", json_body={"registered_limits": both})).status == 409
    assert len((await admin("GET", "/v3/registered_limits")).json["registered_limits"]) == 1
    reply = await admin("POST", "/v3/limits", json_body={"limits": [own]})
    limit = reply.json["limits"][0]
    assert reply.status == 201 and limit["domain_id"] is None and limit["resource_limit"] == 5
    assert (await admin("POST", "/v3/limits", json_body={"limits": [own]})).status == 409
    assert [row["id"] for row in (await demo("GET", "/v3/limits")).json["limits"]] == [limit["id"]]
    assert (await admin("GET", "/v3/limits?resource_name=ram")).json["limits"] == []
    path = f"/v3/registered_limits/{registered['id']}"
    assert (await admin("DELETE", path)).status == 403
    assert (await admin("PATCH", path, json_body={"registered_limit": {"default_limit": 20}})).json["registered_limit"][
        "default_limit"] == 20
    assert (await admin("PATCH", path, json_body={"registered_limit": {"resource_name": "vcpus"}})).status == 403
    changed = await admin("PATCH", f"/v3/limits/{limit['id']}", json_body={"limit": {"resource_limit": 7}})
    assert changed.json["limit"]["resource_limit"] == 7
    assert (await demo("PATCH", f"/v3/limits/{limit['id']}", json_body={"limit": {"resource_limit": 9}})).status == 403
    assert (await demo("GET", "/v3/limits/model")).json["model"]["name"] == "flat"
    for wrong in (cores | {"default_limit": -2}, cores | {"service_id": "x"}, cores | {"resource_name": ""}):
        assert (await admin("POST", "/v3/registered_limits", json_body={"registered_limits": [wrong]})).status == 400
    assert (await admin("DELETE", f"/v3/projects/{project}")).status == 204
    assert not cloud.db.cache.all(LIMIT) and (await admin("DELETE", path)).status == 204
    assert not [entry for entry in cloud.db.cache.all(ENTRY) if "limit" in entry.noun]


async def test_a_projects_catalog_has_the_endpoints_that_it_was_given(cloud: Cloud, admin) -> None:
    async def types() -> list[str]:
        return [entry["type"] for entry in (await cloud.log_in("demo")).json["token"]["catalog"]]

    project = (await cloud.log_in("demo")).json["token"]["project"]["id"]
    service, everything = await _service(admin), await types()
    reply = await admin("POST", "/v3/OS-EP-FILTER/endpoint_groups", json_body={
        "endpoint_group": {"name": "compute", "filters": {"service_id": service, "interface": "public"}}})
    group = reply.json["endpoint_group"]
    base = f"/v3/OS-EP-FILTER/endpoint_groups/{group['id']}"
    assert reply.status == 201 and len((await admin("GET", f"{base}/endpoints")).json["endpoints"]) == 1
    assert (await admin("HEAD", f"{base}/projects/{project}")).status == 404 and await types() == everything
    assert (await admin("PUT", f"{base}/projects/{project}")).status == 204
    assert (await admin("GET", f"{base}/projects/{project}")).status == 200
    assert [row["id"] for row in (await admin("GET", f"{base}/projects")).json["projects"]] == [project]
    assert await types() == ["compute"]
    identity = (await admin("GET", "/v3/endpoints?interface=public")).json["endpoints"]
    own = next(row for row in identity if row["url"].endswith("/v3"))["id"]
    path = f"/v3/OS-EP-FILTER/projects/{project}/endpoints"
    assert (await admin("PUT", f"{path}/{own}")).status == (await admin("HEAD", f"{path}/{own}")).status == 204
    assert await types() == ["compute", "identity"] and len((await admin("GET", path)).json["endpoints"]) == 2
    assert [row["id"] for row in (await admin("GET", f"/v3/OS-EP-FILTER/endpoints/{own}/projects")).json["projects"]] == [project]
    assert len((await admin("GET", f"/v3/OS-EP-FILTER/projects/{project}/endpoint_groups")).json["endpoint_groups"]) == 1
    changed = await admin("PATCH", base, json_body={"endpoint_group": {"name": "new", "filters": {}}})
    assert changed.json["endpoint_group"]["name"] == "new"
    assert (await admin("PATCH", base, json_body={"endpoint_group": {"filters": {"color": "red"}}})).status == 400
    assert (await admin("DELETE", f"{path}/{own}")).status == 204 and (await admin("DELETE", base)).status == 204
    assert await types() == everything


async def test_a_policy_applies_to_an_endpoint_before_its_service(cloud: Cloud, admin) -> None:
    service = await _service(admin)
    endpoint = (await admin("GET", f"/v3/endpoints?service_id={service}&interface=public")).json["endpoints"][0]["id"]
    one, other = [await _policy(admin, name) for name in ("one", "other")]
    assert (await admin("GET", f"/v3/endpoints/{endpoint}/OS-ENDPOINT-POLICY/policy")).status == 404
    for policy, place in ((one, f"services/{service}"), (other, f"endpoints/{endpoint}")):
        path = f"/v3/policies/{policy['id']}/OS-ENDPOINT-POLICY/{place}"
        assert (await admin("GET", path)).status == 404
        assert (await admin("PUT", path)).status == (await admin("HEAD", path)).status == 204
        found = await admin("GET", f"/v3/endpoints/{endpoint}/OS-ENDPOINT-POLICY/policy")
        assert found.json["policy"]["id"] == policy["id"]
    endpoints = (await admin("GET", f"/v3/policies/{one['id']}/OS-ENDPOINT-POLICY/endpoints")).json["endpoints"]
    assert len(endpoints) == 2
    changed = await admin("PATCH", f"/v3/policies/{one['id']}", json_body={"policy": {"type": "text/plain"}})
    assert changed.json["policy"] == one | {"type": "text/plain"}
    assert (await admin("DELETE", f"/v3/policies/{other['id']}")).status == 204
    found = await admin("GET", f"/v3/endpoints/{endpoint}/OS-ENDPOINT-POLICY/policy")
    assert found.json["policy"]["id"] == one["id"]


async def _policy(admin, name: str) -> dict:
    reply = await admin("POST", "/v3/policies", json_body={"policy": {"type": "application/json", "blob": {"name": name}}})
    assert reply.status == 201 and reply.json["policy"]["blob"] == {"name": name}
    return reply.json["policy"]


async def test_a_domains_configuration_is_set_changed_and_shown_without_its_password(cloud: Cloud, admin, demo) -> None:
    domain = (await made(admin, "domain", name="d"))["id"]
    base = f"/v3/domains/{domain}/config"
    config = {"identity": {"driver": "ldap"}, "ldap": {"url": "ldap://x", "user_tree_dn": "ou=a", "password": "geheim"}}
    shown = {"identity": {"driver": "ldap"}, "ldap": {"url": "ldap://x", "user_tree_dn": "ou=a"}}
    assert (await admin("GET", base)).status == 404
    assert [(await admin("PUT", base, json_body={"config": config})).status for _ in range(2)] == [201, 200]
    assert (await admin("GET", base)).json["config"] == shown
    assert b"geheim" not in cloud.db.get(DOMAIN_CONFIG, domain).SerializeToString()
    assert (await admin("GET", f"{base}/ldap")).json["config"] == {"ldap": shown["ldap"]}
    assert (await admin("GET", f"{base}/ldap/url")).json["config"] == {"url": "ldap://x"}
    assert (await admin("GET", f"{base}/ldap/password")).status == (await admin("GET", f"{base}/ldap/suffix")).status == 404
    for path, change in ((base, {"ldap": {"url": "ldap://y"}}), (f"{base}/ldap", {"ldap": {"url": "ldap://y"}}),
                         (f"{base}/ldap/url", {"url": "ldap://y"})):
        reply = await admin("PATCH", path, json_body={"config": change})
        assert reply.json["config"] == shown | {"ldap": shown["ldap"] | {"url": "ldap://y"}}
    for wrong in ({"database": {"connection": "x"}}, {"ldap": {"nonsense": 1}}):
        assert (await admin("PUT", base, json_body={"config": wrong})).status == 403
    assert (await demo("GET", base)).status == 403
    assert (await admin("DELETE", f"{base}/ldap/url")).status == 204 and (await admin("GET", f"{base}/ldap/url")).status == 404
    assert (await admin("DELETE", f"{base}/ldap")).status == 204
    assert (await admin("GET", base)).json["config"] == {"identity": {"driver": "ldap"}}
    assert (await admin("DELETE", base)).status == 204 and (await admin("DELETE", base)).status == 404
    assert (await admin("GET", "/v3/domains/config/default")).json["config"]["ldap"]["user_objectclass"] == "inetOrgPerson"
    assert (await admin("GET", "/v3/domains/config/default?option=url")).status == 400      # an option of no group
    assert (await admin("GET", "/v3/domains/config/ldap/default")).status == 200
    assert (await admin("GET", "/v3/domains/config/ldap/url/default")).json["config"] == {"url": "ldap://localhost"}
    assert (await demo("GET", "/v3/domains/default/config/security_compliance")).status == 200


@pytest.mark.parametrize("target", ["projects/{project}", "domains/{domain}"])
@pytest.mark.parametrize("actor", ["users/{user}", "groups/{group}"])
async def test_an_inherited_role_counts_on_what_is_below(cloud: Cloud, admin, target, actor) -> None:
    ids = {noun: (await made(admin, noun, name=f"the-{noun}"))["id"] for noun in ("domain", "user", "group")}
    ids["project"] = (await made(admin, "project", name="top", domain_id=ids["domain"]))["id"]
    child = (await made(admin, "project", name="child", parent_id=ids["project"]))["id"]
    role = (await made(admin, "role", name="auditor"))["id"]
    await admin("PUT", f"/v3/groups/{ids['group']}/users/{ids['user']}")
    base = f"/v3/OS-INHERIT/{target}/{actor}/roles".format(**ids)
    grant = f"{base}/{role}/inherited_to_projects"
    assert (await admin("HEAD", grant)).status == 404
    assert (await admin("PUT", grant)).status == (await admin("HEAD", grant)).status == (await admin("GET", grant)).status == 204
    assert [row["id"] for row in (await admin("GET", f"{base}/inherited_to_projects")).json["roles"]] == [role]
    rows = (await admin("GET", "/v3/role_assignments?scope.OS-INHERIT:inherited_to=projects")).json["role_assignments"]
    assert len(rows) == 1 and rows[0]["scope"]["OS-INHERIT:inherited_to"] == "projects"
    assert rows[0]["links"]["assignment"].endswith(grant)
    rows = (await admin("GET", f"/v3/role_assignments?effective&user.id={ids['user']}&scope.project.id={child}")).json
    assert [row["role"]["id"] for row in rows["role_assignments"]] == [role]
    assert (await admin("DELETE", grant)).status == 204 and (await admin("DELETE", grant)).status == 404


async def test_tags_are_set_one_by_one_or_together(cloud: Cloud, admin, demo) -> None:
    base = f"/v3/projects/{(await made(admin, 'project', name='p'))['id']}/tags"
    assert [(await admin("PUT", f"{base}/{tag}")).status for tag in ("blue", "red", "red")] == [201] * 3
    assert (await admin("GET", base)).json["tags"] == ["blue", "red"]
    assert (await admin("HEAD", f"{base}/blue")).status == (await admin("GET", f"{base}/blue")).status == 204
    assert (await admin("DELETE", f"{base}/blue")).status == 204
    assert (await admin("HEAD", f"{base}/blue")).status == (await admin("DELETE", f"{base}/blue")).status == 404
    assert (await admin("PUT", base, json_body={"tags": ["a", "b"]})).json["tags"] == ["a", "b"]
    assert (await admin("PUT", base, json_body={"tags": ["a", "a"]})).status == (await admin("PUT", f"{base}/a,b")).status == 400
    assert (await demo("PUT", f"{base}/x")).status == (await demo("GET", base)).status == 403
    assert (await admin("DELETE", base)).status == 204 and (await admin("GET", base)).json["tags"] == []


async def test_a_project_shows_those_above_and_below_it_and_is_switched_with_them(cloud: Cloud, admin) -> None:
    top = (await made(admin, "project", name="top"))["id"]
    middle = (await made(admin, "project", name="middle", parent_id=top))["id"]
    low = (await made(admin, "project", name="low", parent_id=middle))["id"]

    async def shown(project: str, query: str):
        return (await admin("GET", f"/v3/projects/{project}?{query}")).json["project"]

    assert (await shown(middle, "parents_as_ids"))["parents"] == {top: {"default": None}}
    assert (await shown(top, "subtree_as_ids"))["subtree"] == {middle: {low: None}}
    assert [row["project"]["name"] for row in (await shown(low, "parents_as_list"))["parents"]] == ["middle", "top"]
    assert [row["project"]["id"] for row in (await shown(top, "subtree_as_list"))["subtree"]] == [middle, low]
    assert (await admin("GET", f"/v3/projects/{top}?subtree_as_list&subtree_as_ids")).status == 400

    async def switch(project: str, enabled: bool) -> int:
        return (await admin("PATCH", f"/v3/projects/{project}", json_body={"project": {"enabled": enabled}})).status

    assert await switch(top, False) == 403
    assert [await switch(project, False) for project in (low, middle, top)] == [200] * 3
    assert await switch(middle, True) == 403
    assert (await admin("POST", "/v3/projects", json_body={"project": {"name": "x", "parent_id": top}})).status == 403
    assert [await switch(project, True) for project in (top, middle)] == [200] * 2


async def test_what_is_immutable_is_neither_changed_nor_deleted(cloud: Cloud, admin) -> None:
    for noun in ("project", "domain", "role"):
        path = f"/v3/{noun}s/{(await made(admin, noun, name='kept', options={'immutable': True}))['id']}"
        assert (await admin("PATCH", path, json_body={noun: {"description": "x"}})).status == 403
        assert (await admin("DELETE", path)).status == 403
        assert (await admin("PATCH", path, json_body={noun: {"options": {"immutable": False}}})).status == 200
        assert (await admin("PATCH", path, json_body={noun: {"description": "x"}})).status == 200


@pytest.mark.parametrize(("noun", "values"), [
    ("user", {"password": "pw"}), ("group", {}), ("project", {}), ("role", {}), ("domain", {}), ("service", {"type": "x"})])
async def test_every_list_takes_a_part_of_a_name(admin: Client, noun: str, values: dict[str, Any]):
    wanted, other = await made(admin, noun, name="Sunflower", **values), await made(admin, noun, name="Sunrise", **values)
    async def found(query: str) -> set[str]:
        return {row["id"] for row in (await admin("GET", f"/v3/{noun}s?{query}")).json[f"{noun}s"]}

    assert await found("name__startswith=Sun") == {wanted["id"], other["id"]}
    assert await found("name__contains=nf") == {wanted["id"]}
    assert await found("name__iendswith=FLOWER") == {wanted["id"]}
    assert await found("name__startswith=Sun&name__endswith=rise") == {other["id"]}
    assert await found("name__contains=moon") == set()


async def test_users_are_found_by_when_their_passwords_expire(cloud: Cloud, admin: Client):
    user, group = await made(admin, "user", name="soon", password="pw"), await made(admin, "group", name="people")
    await made(admin, "user", name="never", password="pw")
    assert (await admin("PUT", f"/v3/groups/{group['id']}/users/{user['id']}")).status == 204
    def decide(transaction: Transaction) -> None:
        record = transaction.get(USER, user["id"])
        assert record is not None
        record.user.password_expires_at.FromJsonString("2030-01-02T12:00:00Z")
        transaction.put(USER, record)

    await cloud.db.transact(decide)
    for path in ("/v3/users", f"/v3/groups/{group['id']}/users"):
        for value, names in (("lt:2030-01-03T00:00:00Z", ["soon"]), ("gt:2030-01-03T00:00:00Z", [])):
            assert [row["name"] for row in (await admin("GET", f"{path}?password_expires_at={value}")).json["users"]] == names
        assert (await admin("GET", f"{path}?password_expires_at=lt:tomorrow")).status == 400
