"""Who has which role on what, over REST: given and taken back, through groups and implications, and listed."""
import asyncio

import pytest

from control.identity.model import ASSIGNMENT
from tests.identity.conftest import Cloud, made


async def _world(admin) -> dict[str, str]:
    """Ids of a project, a domain, a user, a group that the user is in, and the roles."""
    ids = {noun: (await made(admin, noun, name=f"the-{noun}"))["id"] for noun in ("project", "domain", "user", "group")}
    await admin("PUT", f"/v3/groups/{ids['group']}/users/{ids['user']}")
    return ids | {role["name"]: role["id"] for role in (await admin("GET", "/v3/roles")).json["roles"]}


@pytest.mark.parametrize("target", ["projects/{project}", "domains/{domain}", "system"])
@pytest.mark.parametrize("actor", ["users/{user}", "groups/{group}"])
async def test_a_role_is_given_checked_listed_and_taken_back(cloud: Cloud, admin, target, actor) -> None:
    ids = await _world(admin)
    base = f"/v3/{target}/{actor}/roles".format(**ids)
    grant = f"{base}/{ids['member']}"
    assert (await admin("HEAD", grant)).status == 404 and (await admin("GET", base)).json["roles"] == []
    assert [(await admin("PUT", grant)).status for _ in range(2)] == [204, 204]
    assert (await admin("HEAD", grant)).status == (await admin("GET", grant)).status == 204
    assert [role["name"] for role in (await admin("GET", base)).json["roles"]] == ["member"]
    assert (await admin("DELETE", grant)).status == 204 and (await admin("DELETE", grant)).status == 404
    assert (await admin("PUT", f"{base}/nothing")).status == 404


async def test_a_role_needs_its_three_ends(cloud: Cloud, admin) -> None:
    ids = await _world(admin)
    for path in ("projects/x/users/{user}/roles/{member}", "projects/{project}/users/x/roles/{member}",
                 "projects/{project}/users/{user}/roles/x", "domains/{project}/users/{user}/roles/{member}",
                 "projects/{project}/groups/{user}/roles/{member}"):
        assert (await admin("PUT", f"/v3/{path}".format(**ids))).status == 404, path


async def test_a_group_gives_its_members_what_it_has_and_no_longer(cloud: Cloud, admin) -> None:
    ids = await _world(admin)
    await admin("PATCH", f"/v3/users/{ids['user']}", json_body={"user": {"password": "pw"}})
    await admin("PUT", f"/v3/projects/{ids['project']}/groups/{ids['group']}/roles/{ids['manager']}")
    reply = await cloud.log_in("the-user", "pw", {"project": {"id": ids["project"]}})
    assert [role["name"] for role in reply.json["token"]["roles"]] == ["manager", "member", "reader"]
    client = cloud.client_of(reply.headers["x-subject-token"])
    assert [row["id"] for row in (await client("GET", "/v3/auth/projects")).json["projects"]] == [ids["project"]]
    await admin("DELETE", f"/v3/groups/{ids['group']}/users/{ids['user']}")
    assert (await client("GET", "/v3/auth/projects")).status == 401


async def test_assignments_are_listed_with_names_and_links(cloud: Cloud, admin) -> None:
    ids = await _world(admin)
    await admin("PUT", f"/v3/projects/{ids['project']}/users/{ids['user']}/roles/{ids['member']}")
    rows = (await admin("GET", f"/v3/role_assignments?include_names=True&user.id={ids['user']}")).json["role_assignments"]
    default = {"id": "default", "name": "Default"}
    assert rows == [{
        "role": {"id": ids["member"], "name": "member"}, "user": {"id": ids["user"], "name": "the-user", "domain": default},
        "scope": {"project": {"id": ids["project"], "name": "the-project", "domain": default}},
        "links": {"assignment":
                  f"http://cloud.example:5000/v3/projects/{ids['project']}/users/{ids['user']}/roles/{ids['member']}"}}]
    plain = (await admin("GET", f"/v3/role_assignments?scope.project.id={ids['project']}")).json["role_assignments"]
    assert plain[0]["role"] == {"id": ids["member"]} and plain[0]["user"] == {"id": ids["user"]}


async def test_effective_spells_out_groups_and_implied_roles(cloud: Cloud, admin) -> None:
    ids = await _world(admin)
    await admin("PUT", f"/v3/domains/{ids['domain']}/groups/{ids['group']}/roles/{ids['member']}")
    for query in ("effective", "effective=True"):
        rows = (await admin("GET", f"/v3/role_assignments?{query}&user.id={ids['user']}")).json["role_assignments"]
        assert {row["role"]["id"] for row in rows} == {ids["member"], ids["reader"]}
        assert all(row["user"]["id"] == ids["user"] and "group" not in row for row in rows)
        assert all(row["links"]["membership"].endswith(f"/groups/{ids['group']}/users/{ids['user']}") for row in rows)
    assert (await admin("GET", f"/v3/role_assignments?user.id={ids['user']}")).json["role_assignments"] == []
    assert (await admin("GET", f"/v3/role_assignments?effective&group.id={ids['group']}")).status == 400
    direct = (await admin("GET", f"/v3/role_assignments?group.id={ids['group']}&effective=0")).json["role_assignments"]
    assert [row["group"]["id"] for row in direct] == [ids["group"]]


async def test_filters_narrow_by_role_and_scope(cloud: Cloud, admin) -> None:
    ids = await _world(admin)
    for place in (f"projects/{ids['project']}", f"domains/{ids['domain']}", "system"):
        await admin("PUT", f"/v3/{place}/users/{ids['user']}/roles/{ids['member']}")

    async def scopes(query: str) -> list[str]:
        rows = (await admin("GET", f"/v3/role_assignments?user.id={ids['user']}&{query}")).json["role_assignments"]
        return sorted(next(iter(row["scope"])) for row in rows)

    assert await scopes("") == ["domain", "project", "system"]
    assert await scopes(f"scope.project.id={ids['project']}") == ["project"]
    assert await scopes(f"scope.domain.id={ids['domain']}") == ["domain"]
    assert await scopes("scope.system=all") == ["system"]
    assert await scopes(f"role.id={ids['reader']}") == []
    child = await made(admin, "project", name="child", parent_id=ids["project"])
    await admin("PUT", f"/v3/projects/{child['id']}/users/{ids['user']}/roles/{ids['member']}")
    assert await scopes(f"scope.project.id={ids['project']}&include_subtree=true") == ["project", "project"]


async def test_deleting_an_end_takes_its_assignments(cloud: Cloud, admin) -> None:
    for end in ("project", "user", "group", "role"):
        ids = {noun: (await made(admin, noun, name=f"{end}-{noun}"))["id"] for noun in ("project", "user", "group", "role")}
        actor = f"groups/{ids['group']}" if end == "group" else f"users/{ids['user']}"
        assert (await admin("PUT", f"/v3/projects/{ids['project']}/{actor}/roles/{ids['role']}")).status == 204
        assert (await admin("DELETE", f"/v3/{end}s/{ids[end]}")).status == 204
        assert not [row for row in cloud.db.cache.all(ASSIGNMENT) if row.target_id == ids["project"]]


async def test_of_deleting_a_user_and_giving_them_a_role_at_once_no_assignment_is_left(cloud: Cloud, admin) -> None:
    role = (await admin("GET", "/v3/roles?name=member")).json["roles"][0]["id"]
    project = (await made(admin, "project", name="p"))["id"]
    for round in range(5):
        user = (await made(admin, "user", name=f"u{round}"))["id"]
        gone, given = await asyncio.gather(admin("DELETE", f"/v3/users/{user}"),
                                           admin("PUT", f"/v3/projects/{project}/users/{user}/roles/{role}"))
        assert gone.status == 204 and given.status in (204, 404)
        assert not cloud.db.cache.by(ASSIGNMENT, "actor", f"user/{user}")


async def test_roles_imply_others_but_never_admin_and_never_in_a_circle(cloud: Cloud, admin) -> None:
    roles = {role["name"]: role["id"] for role in (await admin("GET", "/v3/roles")).json["roles"]}
    own = (await made(admin, "role", name="auditor"))["id"]
    path = f"/v3/roles/{own}/implies/{roles['reader']}"
    assert (await admin("HEAD", path)).status == 404
    reply = await admin("PUT", path)
    assert reply.status == 201 and reply.json["role_inference"]["implies"]["name"] == "reader"
    assert (await admin("HEAD", path)).status == 204 and (await admin("GET", path)).status == 200
    assert (await admin("PUT", f"/v3/roles/{roles['reader']}/implies/{own}")).status == 400
    assert (await admin("PUT", f"/v3/roles/{own}/implies/{roles['admin']}")).status == 400
    rules = {rule["prior_role"]["name"]: [implied["name"] for implied in rule["implies"]]
             for rule in (await admin("GET", "/v3/role_inferences")).json["role_inferences"]}
    assert rules == {"admin": ["manager"], "manager": ["member"], "member": ["reader"], "auditor": ["reader"]}
    assert (await admin("DELETE", path)).status == 204 and (await admin("DELETE", path)).status == 404


async def test_a_reader_of_the_system_sees_everything_and_changes_nothing(cloud: Cloud, admin) -> None:
    ids = await _world(admin)
    await admin("PATCH", f"/v3/users/{ids['user']}", json_body={"user": {"password": "pw"}})
    await admin("PUT", f"/v3/system/users/{ids['user']}/roles/{ids['reader']}")
    reader = await cloud.client("the-user", "pw", {"system": {"all": True}})
    for path in ("users", "projects", "domains", "groups", "roles", "services", "endpoints", "role_assignments"):
        assert (await reader("GET", f"/v3/{path}")).status == 200
    assert (await reader("POST", "/v3/users", json_body={"user": {"name": "x"}})).status == 403
