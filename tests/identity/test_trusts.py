"""Trusts over REST: what a trustee gets, how often, for how long, and how a trust is passed on."""
import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from control.identity.model import TRUST
from tests.identity.conftest import Cloud, made


class World:
    """The user demo trusts; the users bob and carol are trusted."""

    def __init__(self, cloud: Cloud, admin, demo) -> None:
        self.cloud, self.admin, self.demo = cloud, admin, demo
        self.ids: dict[str, str] = {}

    async def prepare(self) -> None:
        token = (await self.cloud.log_in("demo")).json["token"]
        self.ids = {"demo": token["user"]["id"], "project": token["project"]["id"]}
        for name in ("bob", "carol"):
            self.ids[name] = (await made(self.admin, "user", name=name, password="pw"))["id"]

    async def trust(self, client, trustor: str, trustee: str, **values: Any):
        body = {"trustor_user_id": self.ids[trustor], "trustee_user_id": self.ids[trustee], "impersonation": True,
                "project_id": self.ids["project"], "roles": [{"name": "member"}]} | values
        return await client("POST", "/v3/OS-TRUST/trusts", json_body={"trust": body})

    async def use(self, who: str, trust: dict[str, Any]):
        return await self.cloud.log_in(who, "pw", {"OS-TRUST:trust": {"id": trust["id"]}})


@pytest.fixture
async def world(cloud: Cloud, admin, demo) -> World:
    made_world = World(cloud, admin, demo)
    await made_world.prepare()
    return made_world


async def test_a_trustee_acts_as_the_trustor_or_as_themselves_with_the_trusts_roles(world: World) -> None:
    for impersonation, name in ((True, "demo"), (False, "bob")):
        reply = await world.trust(world.demo, "demo", "bob", impersonation=impersonation, expires_at=None)
        trust = reply.json["trust"]
        assert reply.status == 201 and trust["remaining_uses"] is trust["expires_at"] is trust["deleted_at"] is None
        assert [role["name"] for role in trust["roles"]] == ["member"] and trust["redelegation_count"] == 0
        assert trust["links"]["self"].endswith(f"/v3/OS-TRUST/trusts/{trust['id']}")
        token = (await world.use("bob", trust)).json["token"]
        assert token["user"]["name"] == name and token["project"]["id"] == world.ids["project"]
        assert {role["name"] for role in token["roles"]} == {"member", "reader"}
        assert token["OS-TRUST:trust"] == {"id": trust["id"], "impersonation": impersonation,
                                           "trustor_user": {"id": world.ids["demo"]}, "trustee_user": {"id": world.ids["bob"]}}
        assert (await world.use("carol", trust)).status == 403
    assert (await world.cloud.log_in("bob", "pw", {"OS-TRUST:trust": {"id": "nothing"}})).status == 404


async def test_a_token_from_a_trust_makes_no_application_credential_that_would_outlive_it(world: World) -> None:
    trust = (await world.trust(world.demo, "demo", "bob")).json["trust"]
    token = (await world.use("bob", trust)).headers["x-subject-token"]
    refused = await world.demo("POST", f"/v3/users/{world.ids['demo']}/application_credentials", headers={"X-Auth-Token": token},
                               json_body={"application_credential": {"name": "lasting"}})
    assert refused.status == 403


async def test_of_a_trusts_uses_no_more_are_given_than_it_has(world: World) -> None:
    trust = (await world.trust(world.demo, "demo", "bob", remaining_uses=3)).json["trust"]
    replies = await asyncio.gather(*(world.use("bob", trust) for _ in range(8)))
    assert sorted(reply.status for reply in replies) == [201] * 3 + [404] * 5
    record = world.cloud.db.get(TRUST, trust["id"])
    assert record is not None and record.remaining_uses == 0
    used = next(reply for reply in replies if reply.status == 201).headers["x-subject-token"]
    assert (await world.cloud.client_of(used)("GET", "/v3/auth/catalog")).status == 200       # what was given still holds
    assert (await world.demo("GET", f"/v3/OS-TRUST/trusts/{trust['id']}")).status == 404
    for wrong in ({"remaining_uses": 0}, {"remaining_uses": 1, "allow_redelegation": True}):
        assert (await world.trust(world.demo, "demo", "bob", **wrong)).status == 400


async def test_a_trust_ends_with_its_time_its_deletion_and_its_trustors_roles(world: World) -> None:
    later = datetime.now(UTC) + timedelta(minutes=5)
    trust = (await world.trust(world.demo, "demo", "bob", expires_at=later.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))).json["trust"]
    reply = await world.use("bob", trust)
    assert reply.json["token"]["expires_at"] == trust["expires_at"]
    holder = world.cloud.client_of(reply.headers["x-subject-token"])
    assert (await world.cloud.exchange(reply.headers["x-subject-token"], {"project": {"id": world.ids["project"]}})).status == 403
    assert (await world.demo("DELETE", f"/v3/OS-TRUST/trusts/{trust['id']}")).status == 204
    assert (await holder("GET", "/v3/auth/catalog")).status == 401
    for wrong in ("2020-01-01T00:00:00Z", "bad.123Z"):
        assert (await world.trust(world.demo, "demo", "bob", expires_at=wrong)).status == 400

    trust = (await world.trust(world.demo, "demo", "bob")).json["trust"]
    holder = world.cloud.client_of((await world.use("bob", trust)).headers["x-subject-token"])
    role = trust["roles"][0]["id"]
    grant = f"/v3/projects/{world.ids['project']}/users/{world.ids['demo']}/roles/{role}"
    assert (await world.admin("DELETE", grant)).status == 204
    assert (await holder("GET", "/v3/auth/catalog")).status == 401 and (await world.use("bob", trust)).status == 403
    await world.admin("PUT", grant)
    assert (await world.use("bob", trust)).status == 201
    assert (await world.admin("PATCH", f"/v3/users/{world.ids['demo']}", json_body={"user": {"enabled": False}})).status == 200
    assert (await world.use("bob", trust)).status == 403


async def test_a_trust_is_passed_on_only_where_it_may_be_and_never_widened(world: World) -> None:
    first = (await world.trust(world.demo, "demo", "bob", allow_redelegation=True, redelegation_count=1)).json["trust"]
    bob = world.cloud.client_of((await world.use("bob", first)).headers["x-subject-token"])
    assert (await world.trust(bob, "demo", "carol", roles=[{"name": "admin"}])).status == 403
    assert (await world.trust(bob, "demo", "carol", allow_redelegation=True, redelegation_count=2)).status == 403
    second = await world.trust(bob, "demo", "carol")
    assert second.status == 201 and second.json["trust"]["redelegated_trust_id"] == first["id"]
    carol = world.cloud.client_of((await world.use("carol", second.json["trust"])).headers["x-subject-token"])
    assert (await world.trust(carol, "demo", "bob")).status == 403
    assert (await world.demo("DELETE", f"/v3/OS-TRUST/trusts/{first['id']}")).status == 204
    assert (await carol("GET", "/v3/auth/catalog")).status == 401 and not world.cloud.db.cache.all(TRUST)
    plain = (await world.trust(world.demo, "demo", "bob")).json["trust"]
    bob = world.cloud.client_of((await world.use("bob", plain)).headers["x-subject-token"])
    assert (await world.trust(bob, "demo", "carol")).status == 403


async def test_a_trust_is_for_its_two_users_to_see_and_gives_only_what_the_trustor_has(world: World) -> None:
    trust = (await world.trust(world.demo, "demo", "bob")).json["trust"]
    path = f"/v3/OS-TRUST/trusts/{trust['id']}"
    bob, carol = [await world.cloud.client(name, "pw") for name in ("bob", "carol")]
    assert (await bob("GET", path)).status == 200 and (await carol("GET", path)).status == 404
    assert (await bob("DELETE", path)).status == 403 and (await carol("DELETE", path)).status == 404
    role = trust["roles"][0]["id"]
    assert [row["id"] for row in (await bob("GET", f"{path}/roles")).json["roles"]] == [role]
    assert (await bob("GET", f"{path}/roles/{role}")).json["role"]["name"] == "member"
    assert (await bob("HEAD", f"{path}/roles/{role}")).status == 200 and (await bob("HEAD", f"{path}/roles/x")).status == 404
    own = f"/v3/OS-TRUST/trusts?trustee_user_id={world.ids['bob']}"
    for client, where in ((bob, own), (world.admin, "/v3/OS-TRUST/trusts")):
        assert [row["id"] for row in (await client("GET", where)).json["trusts"]] == [trust["id"]]
    assert (await carol("GET", own)).status == (await carol("GET", "/v3/OS-TRUST/trusts")).status == 403
    assert (await world.trust(world.demo, "demo", "bob", roles=[{"name": "admin"}])).status == 403
    assert (await world.trust(world.demo, "demo", "bob", roles=[])).status == 403
    assert (await world.trust(world.demo, "bob", "carol")).status == 403
    assert (await world.trust(world.demo, "demo", "bob", impersonation=None)).status == 400
    assert (await world.admin("DELETE", f"/v3/users/{world.ids['bob']}")).status == 204
    assert not world.cloud.db.cache.all(TRUST)
