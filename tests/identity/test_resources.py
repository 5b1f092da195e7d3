"""Domains, projects, users, groups and roles over REST: what they show, what is refused, what goes with them."""
import asyncio

import pytest

from control.identity.model import ASSIGNMENT, ENTRY, GROUP, MEMBER, PROJECT, ROLE, USER
from control.identity.passwords import Passwords
from control.kernel.errors import Unavailable
from protos.identity.v1.records_pb2 import Assignment, Membership
from tests.identity.conftest import Cloud, made

LONG = {"user": 255, "project": 64, "domain": 64, "group": 64, "role": 255}
NOUNS = list(LONG)


@pytest.mark.parametrize("noun", NOUNS)
async def test_a_resource_is_made_shown_listed_changed_and_deleted(cloud: Cloud, admin, noun) -> None:
    thing = await made(admin, noun, name="first", description="one")
    path = f"/v3/{noun}s/{thing['id']}"
    assert thing["links"] == {"self": f"http://cloud.example:5000{path}"}
    assert (await admin("GET", path)).json == {noun: thing}
    listed = (await admin("GET", f"/v3/{noun}s?name=first")).json
    assert listed[f"{noun}s"] == [thing] and listed["links"]["next"] is None
    changed = (await admin("PATCH", path, json_body={noun: {"name": "second", "description": "two"}})).json[noun]
    assert changed == thing | {"name": "second", "description": "two"}
    assert (await admin("GET", f"/v3/{noun}s?name=first")).json[f"{noun}s"] == []
    await made(admin, noun, name="first")
    if noun == "domain":
        assert (await admin("DELETE", path)).status == 403
        await admin("PATCH", path, json_body={noun: {"enabled": False}})
    assert (await admin("DELETE", path)).status == 204
    for verb in ("GET", "PATCH", "DELETE"):
        reply = await admin(verb, path, json_body={noun: {}} if verb == "PATCH" else None)
        assert reply.status == 404 and reply.json["error"]["message"] == f"Could not find {noun}: {thing['id']}."


@pytest.mark.parametrize("noun", NOUNS)
async def test_a_name_is_there_once_and_has_its_length(cloud: Cloud, admin, noun) -> None:
    await made(admin, noun, name="taken")
    other = await made(admin, noun, name="other")
    assert (await admin("POST", f"/v3/{noun}s", json_body={noun: {"name": "taken"}})).status == 409
    assert (await admin("PATCH", f"/v3/{noun}s/{other['id']}", json_body={noun: {"name": "taken"}})).status == 409
    assert (await admin("PATCH", f"/v3/{noun}s/{other['id']}", json_body={noun: {"name": "other"}})).status == 200
    await made(admin, noun, name="x" * LONG[noun])
    for name in ("x" * (LONG[noun] + 1), "", "  ", 7, None):
        assert (await admin("POST", f"/v3/{noun}s", json_body={noun: {"name": name}})).status == 400
    for name in ("", None):
        assert (await admin("PATCH", f"/v3/{noun}s/{other['id']}", json_body={noun: {"name": name}})).status == 400


async def test_of_many_who_want_one_name_at_once_one_gets_it(cloud: Cloud, admin) -> None:
    replies = await asyncio.gather(*(admin("POST", "/v3/users", json_body={"user": {"name": "wanted"}}) for _ in range(8)))
    assert sorted(reply.status for reply in replies) == [201] + [409] * 7


async def test_one_name_may_be_used_in_two_domains(cloud: Cloud, admin) -> None:
    domain = await made(admin, "domain", name="other")
    for noun in ("user", "project", "group"):
        here, there = await made(admin, noun, name="same"), await made(admin, noun, name="same", domain_id=domain["id"])
        assert (here["domain_id"], there["domain_id"]) == ("default", domain["id"])
        both = (await admin("GET", f"/v3/{noun}s?name=same&domain_id={domain['id']}")).json[f"{noun}s"]
        assert [row["id"] for row in both] == [there["id"]]
        assert (await admin("POST", f"/v3/{noun}s", json_body={noun: {"name": "x", "domain_id": "nowhere"}})).status == 404
        assert (await admin("PATCH", f"/v3/{noun}s/{here['id']}", json_body={noun: {"domain_id": domain["id"]}})).status == 400


async def test_extra_properties_come_back_and_null_is_kept(cloud: Cloud, admin) -> None:
    user = await made(admin, "user", name="u", email="a@b.c", quota={"gold": [1, None, 2.5]}, description=None)
    assert user["email"] == "a@b.c" and user["quota"] == {"gold": [1, None, 2.5]} and user["description"] is None
    path = f"/v3/users/{user['id']}"
    changed = (await admin("PATCH", path, json_body={"user": {"email": None, "links": {"self": "x"}}})).json["user"]
    assert changed["email"] is None and changed["quota"] == user["quota"] and changed["links"] == user["links"]
    assert (await admin("POST", "/v3/users", json_body={"user": {"name": "big", "blob": "x" * 40000}})).status == 400


async def test_no_answer_has_a_password_or_its_hash(cloud: Cloud, admin) -> None:
    user = await made(admin, "user", name="u", password="hidden-one")
    assert "password" not in user and user["password_expires_at"] is None and user["options"] == {}
    record = cloud.db.get(USER, user["id"])
    assert record.password_hash.startswith("$argon2id$") and b"hidden-one" not in record.SerializeToString()
    for path in ("/v3/users", f"/v3/users/{user['id']}"):
        text = (await admin("GET", path)).body.decode()
        assert "argon2" not in text and "hidden-one" not in text


async def test_a_default_project_is_set_to_null_and_gone(cloud: Cloud, admin) -> None:
    project = await made(admin, "project", name="p")
    user = await made(admin, "user", name="u", default_project_id=project["id"])
    assert user["default_project_id"] == project["id"]
    changed = await admin("PATCH", f"/v3/users/{user['id']}", json_body={"user": {"default_project_id": None}})
    assert "default_project_id" not in changed.json["user"]
    assert (await admin("POST", "/v3/users", json_body={"user": {"name": "v", "default_project_id": "default"}})).status == 400


async def test_users_change_their_own_password_with_the_present_one(cloud: Cloud, admin) -> None:
    user = await made(admin, "user", name="u", password="old")
    path = f"/v3/users/{user['id']}/password"
    token = await cloud.token("u", "old")
    wrong = await cloud.anybody("POST", path, json_body={"user": {"original_password": "not it", "password": "new"}})
    assert wrong.status == 401
    right = await cloud.client_of(token)("POST", path, json_body={"user": {"original_password": "old", "password": "new"}})
    assert right.status == 204
    assert (await cloud.log_in("u", "old")).status == 401 and (await cloud.log_in("u", "new")).status == 201
    assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 401
    assert (await cloud.anybody("POST", "/v3/users/nobody/password",
                                json_body={"user": {"original_password": "a", "password": "b"}})).status == 401


async def test_a_user_without_a_password_cannot_log_in(cloud: Cloud, admin) -> None:
    await made(admin, "user", name="u")
    assert (await cloud.log_in("u", "")).status == 401
    assert (await admin("POST", "/v3/users", json_body={"user": {"name": "v", "password": ""}})).status == 400
    assert (await admin("POST", "/v3/users", json_body={"user": {"name": "v", "password": "é" * 513}})).status == 400


async def test_projects_are_nested_and_deleted_from_the_leaves(cloud: Cloud, admin) -> None:
    parent = await made(admin, "project", name="parent")
    assert parent["parent_id"] == "default" and parent["is_domain"] is False and parent["tags"] == []
    child = await made(admin, "project", name="child", parent_id=parent["id"])
    assert child["parent_id"] == parent["id"] and child["domain_id"] == "default"
    assert [row["id"] for row in (await admin("GET", f"/v3/projects?parent_id={parent['id']}")).json["projects"]] == [child["id"]]
    assert (await admin("DELETE", f"/v3/projects/{parent['id']}")).status == 403
    assert (await admin("POST", "/v3/projects", json_body={"project": {"name": "x", "parent_id": "nowhere"}})).status == 404
    deepest = child
    for level in range(2):
        deepest = await made(admin, "project", name=f"level{level}", parent_id=deepest["id"])
    deeper = {"name": "deeper", "parent_id": deepest["id"]}
    assert (await admin("POST", "/v3/projects", json_body={"project": deeper})).status == 403
    await admin("DELETE", f"/v3/projects/{deepest['id']}")
    await admin("DELETE", f"/v3/projects/{deepest['parent_id']}")
    assert (await admin("DELETE", f"/v3/projects/{child['id']}")).status == 204
    assert (await admin("DELETE", f"/v3/projects/{parent['id']}")).status == 204


async def test_of_deleting_a_parent_and_making_a_child_at_once_no_orphan_is_left(cloud: Cloud, admin) -> None:
    for round in range(5):
        parent = await made(admin, "project", name=f"parent{round}")
        gone, born = await asyncio.gather(
            admin("DELETE", f"/v3/projects/{parent['id']}"),
            admin("POST", "/v3/projects", json_body={"project": {"name": f"child{round}", "parent_id": parent["id"]}}))
        assert (gone.status, born.status) in ((204, 404), (403, 201))


async def test_a_domain_is_a_project_too(cloud: Cloud, admin) -> None:
    domain = await made(admin, "domain", name="seen-twice")
    project = (await admin("GET", f"/v3/projects/{domain['id']}")).json["project"]
    assert project["is_domain"] is True and project["domain_id"] is None and project["parent_id"] is None
    assert "seen-twice" not in {row["name"] for row in (await admin("GET", "/v3/projects")).json["projects"]}
    assert "seen-twice" in {row["name"] for row in (await admin("GET", "/v3/projects?is_domain=true")).json["projects"]}
    other = await made(admin, "project", name="made-as-project", is_domain=True)
    assert (await admin("GET", f"/v3/domains/{other['id']}")).json["domain"]["name"] == "made-as-project"


async def test_projects_are_found_by_their_tags(cloud: Cloud, admin) -> None:
    for name, tags in (("both", ["a", "b"]), ("one", ["a"]), ("none", [])):
        await made(admin, "project", name=name, tags=tags)

    async def named(query: str) -> set[str]:
        return {row["name"] for row in (await admin("GET", f"/v3/projects?{query}")).json["projects"]} & {"both", "one", "none"}

    assert await named("tags=a,b") == {"both"}
    assert await named("tags-any=a,b") == {"both", "one"}
    assert await named("not-tags=a,b") == {"one", "none"}
    assert await named("not-tags-any=a,b") == {"none"}
    for tags in (["a/b"], ["a,b"], [""], ["x" * 256], ["a", "a"], [str(number) for number in range(81)]):
        assert (await admin("POST", "/v3/projects", json_body={"project": {"name": "t", "tags": tags}})).status == 400


async def test_deleting_a_domain_takes_everything_in_it(cloud: Cloud, admin) -> None:
    domain = (await made(admin, "domain", name="doomed"))["id"]
    parent = await made(admin, "project", name="p", domain_id=domain)
    await made(admin, "project", name="c", parent_id=parent["id"])
    user = await made(admin, "user", name="u", domain_id=domain)
    group = await made(admin, "group", name="g", domain_id=domain)
    role = await made(admin, "role", name="r", domain_id=domain)
    await admin("PUT", f"/v3/groups/{group['id']}/users/{user['id']}")
    assert (await admin("PUT", f"/v3/projects/{parent['id']}/users/{user['id']}/roles/{role['id']}")).status == 204
    assert (await admin("DELETE", f"/v3/domains/{domain}")).status == 403
    assert cloud.db.get(USER, user["id"]) is not None
    await admin("PATCH", f"/v3/domains/{domain}", json_body={"domain": {"enabled": False}})
    assert (await admin("DELETE", f"/v3/domains/{domain}")).status == 204
    for kind in (PROJECT, USER, GROUP, ROLE):
        assert not cloud.db.cache.by(kind, "domain", domain)
    assert not cloud.db.cache.all(MEMBER)
    assert not [entry for entry in cloud.db.cache.all(ENTRY) if domain in (entry.scope, entry.id) or entry.scope == parent["id"]]


async def test_deleting_what_hundreds_of_things_depend_on_leaves_none_of_them(cloud: Cloud, admin) -> None:
    user = (await made(admin, "user", name="busy"))["id"]
    role = cloud.db.cache.all(ROLE)[0].id

    def assign(transaction, first: int) -> None:
        for number in range(first, first + 60):
            transaction.put(ASSIGNMENT, Assignment(actor_type="user", actor_id=user, target_type="project",
                                                   target_id=f"p{number}", role_id=role))
            transaction.put(MEMBER, Membership(group_id=f"g{number}", user_id=user))

    for first in range(0, 240, 60):
        await cloud.db.transact(lambda transaction, first=first: assign(transaction, first))
    assert (await admin("DELETE", f"/v3/users/{user}")).status == 204
    assert not cloud.db.cache.by(ASSIGNMENT, "actor", f"user/{user}") and not cloud.db.cache.by(MEMBER, "user", user)


async def test_group_membership_is_put_checked_listed_and_removed(cloud: Cloud, admin, demo) -> None:
    group, user = await made(admin, "group", name="g"), await made(admin, "user", name="u")
    path = f"/v3/groups/{group['id']}/users/{user['id']}"
    assert (await admin("HEAD", path)).status == 404
    assert [(await admin("PUT", path)).status for _ in range(2)] == [204, 204]
    assert (await admin("HEAD", path)).status == (await admin("GET", path)).status == 204
    assert [row["id"] for row in (await admin("GET", f"/v3/groups/{group['id']}/users")).json["users"]] == [user["id"]]
    assert [row["id"] for row in (await admin("GET", f"/v3/users/{user['id']}/groups")).json["groups"]] == [group["id"]]
    assert (await admin("DELETE", path)).status == 204 and (await admin("DELETE", path)).status == 404
    for wrong in (f"/v3/groups/x/users/{user['id']}", f"/v3/groups/{group['id']}/users/x"):
        assert (await admin("PUT", wrong)).status == 404


async def test_the_roles_of_the_cloud_itself_are_fixed(cloud: Cloud, admin) -> None:
    role = (await admin("GET", "/v3/roles?name=member")).json["roles"][0]
    assert role["domain_id"] is None and role["description"] is None
    assert (await admin("DELETE", f"/v3/roles/{role['id']}")).status == 403
    assert (await admin("PATCH", f"/v3/roles/{role['id']}", json_body={"role": {"name": "x"}})).status == 403


async def test_lists_have_pages(cloud: Cloud, admin) -> None:
    for number in range(5):
        await made(admin, "group", name=f"g{number}")
    names, path, pages = [], "/v3/groups?limit=2", 0
    while path:
        answer = (await admin("GET", path)).json
        names += [group["name"] for group in answer["groups"]]
        following = answer["links"]["next"]
        path, pages = following and following.removeprefix("http://cloud.example:5000"), pages + 1
    assert names == [f"g{number}" for number in range(5)] and pages == 3


@pytest.mark.parametrize("verb,path", [
    ("POST", "/v3/users"), ("GET", "/v3/users"), ("GET", "/v3/projects"), ("POST", "/v3/projects"), ("GET", "/v3/domains"),
    ("POST", "/v3/domains"), ("GET", "/v3/groups"), ("GET", "/v3/roles"), ("POST", "/v3/roles"), ("GET", "/v3/services"),
    ("GET", "/v3/endpoints"), ("GET", "/v3/role_assignments"), ("GET", "/v3/users/{admin}"), ("GET", "/v3/users/nobody"),
    ("GET", "/v3/projects/nothing"), ("PATCH", "/v3/users/{demo}"), ("GET", "/v3/users/{admin}/projects"),
    ("PUT", "/v3/system/users/{demo}/roles/x"), ("DELETE", "/v3/users/{admin}")])
async def test_who_is_no_admin_is_refused_alike_for_what_is_there_and_what_is_not(cloud: Cloud, admin, demo, verb, path) -> None:
    ids = {row["name"]: row["id"] for row in (await admin("GET", "/v3/users")).json["users"]}
    body = {path.split("/")[2][:-1]: {}} if verb in ("POST", "PATCH") else None
    reply = await demo(verb, path.format(**ids), json_body=body)
    assert reply.status == 403 and reply.json["error"]["title"] == "Forbidden"
    assert (await cloud.anybody(verb, path.format(**ids), json_body=body)).status == 401


async def test_users_see_themselves_and_their_own_projects(cloud: Cloud, demo) -> None:
    token = (await cloud.log_in("demo")).json["token"]
    user, project = token["user"]["id"], token["project"]["id"]
    for path in (f"/v3/users/{user}", f"/v3/projects/{project}", f"/v3/users/{user}/projects", f"/v3/users/{user}/groups",
                 "/v3/domains/default", f"/v3/role_assignments?user.id={user}", "/v3/regions"):
        assert (await demo("GET", path)).status == 200, path
    assert [row["id"] for row in (await demo("GET", "/v3/users?name=demo")).json["users"]] == [user]
    assert [row["id"] for row in (await demo("GET", "/v3/projects?name=demo")).json["projects"]] == [project]
    assert (await demo("GET", "/v3/users?name=admin")).json["users"] == []
    assert (await demo("GET", "/v3/projects?name=admin")).json["projects"] == []


async def test_a_hash_with_old_parameters_is_renewed_at_the_next_login(cloud: Cloud) -> None:
    user = (await cloud.log_in("demo")).json["token"]["user"]["id"]
    strong = Passwords()
    before = cloud.db.get(USER, user).password_hash
    cloud.passwords._hasher = strong._hasher
    token = await cloud.token("demo")
    after = cloud.db.get(USER, user).password_hash
    assert before != after and "m=19456,t=2,p=1" in after
    assert await cloud.token("demo") and cloud.db.get(USER, user).password_hash == after
    assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 200
    strong.close()


async def test_more_logins_than_may_wait_are_refused_at_once(cloud: Cloud) -> None:
    results = await asyncio.gather(*(cloud.passwords.verify("", "guess") for _ in range(200)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, Unavailable)]
    assert refused and len(results) - len(refused) >= 64
    assert not any(result is True for result in results)
