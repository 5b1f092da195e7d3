"""Delegated access: consumers, request tokens, access tokens, and what their tokens are worth. Signed by oauthlib's client."""
import json
import time
from typing import Any
from urllib.parse import parse_qs

import pytest
from oauthlib import oauth1

from tests.api.client import Client, Reply
from tests.conftest import unique
from tests.identity.conftest import URL, Cloud, made, replica


class Consumer:
    """A program that signs as it was told to when it was registered."""

    def __init__(self, cloud: Cloud, key: str, secret: str):
        self.key = key
        self.secret = secret
        self._anybody = cloud.anybody

    async def __call__(self, path: str, *, body: Any = None, headers: dict[str, str] | None = None, url: str = URL,
                       sent: dict[str, str] | None = None, **signing: str) -> Reply:
        """The answer to a signed POST. `sent`: headers that were signed before."""
        return await self._anybody("POST", path, json_body=body, headers=sent or self.sign(path, url, headers, **signing))

    def sign(self, path: str, url: str = URL, headers: dict[str, str] | None = None, **signing: str) -> dict[str, str]:
        client = oauth1.Client(self.key, client_secret=signing.pop("client_secret", self.secret), **signing)
        return client.sign(url + path, http_method="POST", headers=headers or {})[1]

    async def wish(self, project_id: str) -> dict[str, str]:
        """A request token."""
        reply = await self("/v3/OS-OAUTH1/request_token", headers={"Requested-Project-Id": project_id}, callback_uri="oob")
        assert reply.status == 201, reply.body
        assert reply.headers["content-type"] == "application/x-www-form-urlencoded"
        return form(reply)

    async def exchange(self, wish: dict[str, str], verifier: str, **changes: Any) -> Reply:
        return await self("/v3/OS-OAUTH1/access_token", resource_owner_key=wish["oauth_token"],
                          resource_owner_secret=wish["oauth_token_secret"], verifier=verifier, **changes)

    async def log_in(self, held: dict[str, str], path: str = "/v3/auth/tokens", **changes: Any) -> Reply:
        return await self(path, body={"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}},
                          resource_owner_key=held["oauth_token"], resource_owner_secret=held["oauth_token_secret"], **changes)


def form(reply: Reply) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(reply.body.decode()).items()}


async def a_consumer(cloud: Cloud, admin: Client) -> Consumer:
    reply = await admin("POST", "/v3/OS-OAUTH1/consumers", json_body={"consumer": {"description": "reports"}})
    assert reply.status == 201
    return Consumer(cloud, reply.json["consumer"]["id"], reply.json["consumer"]["secret"])


async def authorized(user: Client, wish: dict[str, str], *roles: str) -> Reply:
    return await user("PUT", f"/v3/OS-OAUTH1/authorize/{wish['oauth_token']}",
                      json_body={"roles": [{"name": role} for role in roles]})


async def whoami(cloud: Cloud, name: str) -> dict[str, Any]:
    return (await cloud.log_in(name)).json["token"]


async def access_token(cloud: Cloud, consumer: Consumer, user: Client, name: str = "demo", *roles: str) -> dict[str, str]:
    """An access token for the user's project."""
    wish = await consumer.wish((await whoami(cloud, name))["project"]["id"])
    reply = await authorized(user, wish, *(roles or ("member",)))
    assert reply.status == 200, reply.body
    reply = await consumer.exchange(wish, reply.json["token"]["oauth_verifier"])
    assert reply.status == 201, reply.body
    return form(reply)


async def test_a_consumer_is_made_shown_changed_and_deleted(cloud: Cloud, admin: Client):
    reply = await admin("POST", "/v3/OS-OAUTH1/consumers", json_body={"consumer": {"description": "reports", "team": "blue"}})
    consumer = reply.json["consumer"]
    assert reply.status == 201 and consumer["description"] == "reports" and consumer["team"] == "blue"
    assert len(consumer["secret"]) == 64
    path = f"/v3/OS-OAUTH1/consumers/{consumer['id']}"
    assert consumer["links"]["self"] == URL + path
    shown = (await admin("GET", path)).json["consumer"]
    assert "secret" not in shown and shown["description"] == "reports"
    assert [row["id"] for row in (await admin("GET", "/v3/OS-OAUTH1/consumers")).json["consumers"]] == [consumer["id"]]
    reply = await admin("PATCH", path, json_body={"consumer": {"description": "graphs"}})
    assert reply.status == 200 and reply.json["consumer"]["description"] == "graphs" and reply.json["consumer"]["team"] == "blue"
    assert (await admin("PATCH", path, json_body={"consumer": {"secret": "mine"}})).status == 400
    assert (await admin("DELETE", path)).status == 204
    for verb in ("GET", "DELETE"):
        assert (await admin(verb, path)).status == 404
    assert (await admin("PATCH", path, json_body={"consumer": {}})).status == 404


async def test_a_consumer_without_a_description_has_none(admin: Client):
    reply = await admin("POST", "/v3/OS-OAUTH1/consumers", json_body={"consumer": {}})
    assert reply.status == 201 and reply.json["consumer"]["description"] is None


async def test_only_admins_make_consumers(demo: Client):
    assert (await demo("POST", "/v3/OS-OAUTH1/consumers", json_body={"consumer": {}})).status == 403
    assert (await demo("GET", "/v3/OS-OAUTH1/consumers")).status == 403


async def test_a_consumer_acts_for_a_user_with_the_roles_that_they_authorized(cloud: Cloud, admin: Client, demo: Client):
    consumer, before = await a_consumer(cloud, admin), await whoami(cloud, "demo")
    held = await access_token(cloud, consumer, demo, "demo", "reader")
    reply = await consumer.log_in(held)
    token = reply.json["token"]
    assert reply.status == 201
    assert token["methods"] == ["oauth1"] and token["user"]["id"] == before["user"]["id"]
    assert token["project"]["id"] == before["project"]["id"] and [role["name"] for role in token["roles"]] == ["reader"]
    assert token["OS-OAUTH1"] == {"access_token_id": held["oauth_token"], "consumer_id": consumer.key}
    assert token["expires_at"] <= held["oauth_expires_at"]
    client = cloud.client_of(reply.headers["x-subject-token"])
    assert (await client("GET", f"/v3/users/{before['user']['id']}")).status == 200
    shown = await client("GET", "/v3/auth/tokens", headers={"X-Subject-Token": reply.headers["x-subject-token"]})
    assert shown.json["token"]["OS-OAUTH1"] == token["OS-OAUTH1"]


async def test_keystoneauth_signs_with_or_without_the_query(cloud: Cloud, admin: Client, demo: Client):
    consumer = await a_consumer(cloud, admin)
    held = await access_token(cloud, consumer, demo)
    signing = {"resource_owner_key": held["oauth_token"], "resource_owner_secret": held["oauth_token_secret"]}
    for signed in ("/v3/auth/tokens", "/v3/auth/tokens?nocatalog"):
        headers = consumer.sign(signed, **signing)
        reply = await consumer.log_in(held, "/v3/auth/tokens?nocatalog", sent=headers)
        assert reply.status == 201 and "catalog" not in reply.json["token"]


async def test_a_signature_may_be_hmac_sha256_but_never_plain_text(cloud: Cloud, admin: Client, demo: Client):
    consumer = await a_consumer(cloud, admin)
    held = await access_token(cloud, consumer, demo)
    assert (await consumer.log_in(held, signature_method=oauth1.SIGNATURE_HMAC_SHA256)).status == 201
    assert (await consumer.log_in(held, signature_method=oauth1.SIGNATURE_PLAINTEXT)).status == 401


async def test_what_is_not_signed_right_is_refused_alike(cloud: Cloud, admin: Client, demo: Client):
    consumer = await a_consumer(cloud, admin)
    held = await access_token(cloud, consumer, demo)
    other = await a_consumer(cloud, admin)
    refusals = [
        await consumer.log_in(held, client_secret="wrong"),
        await consumer.log_in(held | {"oauth_token_secret": "wrong"}),
        await consumer.log_in(held | {"oauth_token": "0" * 32}),
        await other.log_in(held),
        await Consumer(cloud, "0" * 32, consumer.secret).log_in(held),
        await consumer.log_in(held, timestamp=str(int(time.time()) - 3600)),
        await consumer.log_in(held, url="http://elsewhere.example"),
        await consumer("/v3/auth/tokens", body={"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}}),
        await cloud.anybody("POST", "/v3/auth/tokens", json_body={"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}}),
        await consumer.log_in(held, sent={"Authorization": "OAuth oauth_token=\"%zz\""}),
        await consumer.log_in(held, sent={"Authorization": "OAuth " + "a" * 5000})]
    assert {reply.status for reply in refusals} == {401}
    assert len({reply.json["error"]["message"] for reply in refusals}) == 1


async def test_a_signed_request_is_taken_once_on_all_replicas(store):
    async with replica(store) as one, replica(store) as two:
        await one.bootstrap()
        consumer = await a_consumer(one, await one.client("admin"))
        held = await access_token(one, consumer, await one.client("demo"))
        headers = consumer.sign("/v3/auth/tokens", resource_owner_key=held["oauth_token"],
                                resource_owner_secret=held["oauth_token_secret"])
        body = {"auth": {"identity": {"methods": ["oauth1"], "oauth1": {}}}}
        await two.db.cache.wait(one.db.cache.revision)
        assert (await one.anybody("POST", "/v3/auth/tokens", json_body=body, headers=headers)).status == 201
        for cloud in (one, two):
            assert (await cloud.anybody("POST", "/v3/auth/tokens", json_body=body, headers=headers)).status == 401


async def test_a_wish_needs_a_project_that_is_there(cloud: Cloud, admin: Client):
    consumer = await a_consumer(cloud, admin)
    path = "/v3/OS-OAUTH1/request_token"
    assert (await consumer(path, callback_uri="oob")).status == 400
    assert (await consumer(path, headers={"Requested-Project-Id": "nothing"}, callback_uri="oob")).status == 404
    reply = await consumer(path, headers={"Requested-Project-Id": "nothing"}, callback_uri="oob", client_secret="wrong")
    assert reply.status == 401


async def test_a_user_authorizes_only_what_they_have(cloud: Cloud, admin: Client, demo: Client):
    consumer = await a_consumer(cloud, admin)
    wish = await consumer.wish((await whoami(cloud, "demo"))["project"]["id"])
    assert (await authorized(demo, wish, "admin")).status == 401
    assert (await authorized(demo, wish, "nonsense")).status == 401
    assert (await authorized(demo, wish)).status == 400
    assert (await authorized(demo, {"oauth_token": "0" * 32}, "member")).status == 404
    assert (await authorized(demo, wish, "member")).status == 200
    other = await cloud.client("admin")
    assert (await authorized(other, wish, "admin")).status == 403


async def test_a_wish_is_exchanged_once_and_with_its_verifier(cloud: Cloud, admin: Client, demo: Client):
    consumer, other = await a_consumer(cloud, admin), await a_consumer(cloud, admin)
    wish = await consumer.wish((await whoami(cloud, "demo"))["project"]["id"])
    assert (await consumer.exchange(wish, "early")).status == 401
    verifier = (await authorized(demo, wish, "member")).json["token"]["oauth_verifier"]
    assert (await consumer.exchange(wish, "wrong")).status == 401
    assert (await consumer.exchange(wish | {"oauth_token_secret": "wrong"}, verifier)).status == 401
    assert (await other.exchange(wish, verifier)).status == 401
    assert (await consumer.exchange(wish, verifier)).status == 201
    assert (await consumer.exchange(wish, verifier)).status == 401


async def test_a_user_sees_and_revokes_what_they_authorized(cloud: Cloud, admin: Client, demo: Client):
    consumer, user = await a_consumer(cloud, admin), (await whoami(cloud, "demo"))["user"]["id"]
    held = await access_token(cloud, consumer, demo, "demo", "member", "reader")
    token = (await consumer.log_in(held)).headers["x-subject-token"]
    path = f"/v3/users/{user}/OS-OAUTH1/access_tokens"
    row, = (await demo("GET", path)).json["access_tokens"]
    assert row["id"] == held["oauth_token"] and row["consumer_id"] == consumer.key and row["authorizing_user_id"] == user
    assert row["expires_at"] == held["oauth_expires_at"]
    one = f"{path}/{row['id']}"
    assert row["links"] == {"self": URL + one, "roles": f"{URL}{one}/roles"}
    assert (await demo("GET", one)).json["access_token"] == row
    roles = (await demo("GET", f"{one}/roles")).json["roles"]
    assert [role["name"] for role in roles] == ["member", "reader"]
    assert (await demo("GET", f"{one}/roles/{roles[0]['id']}")).json["role"]["name"] == "member"
    assert (await demo("HEAD", f"{one}/roles/{roles[0]['id']}")).status == 200
    assert (await demo("GET", f"{one}/roles/nothing")).status == 404
    assert held["oauth_token_secret"] not in json.dumps([row, roles])
    assert (await demo("DELETE", one)).status == 204
    assert (await demo("GET", one)).status == 404
    assert (await cloud.client_of(token)("GET", f"/v3/users/{user}")).status == 401
    assert (await consumer.log_in(held)).status == 401


async def test_access_tokens_are_their_users_business(cloud: Cloud, admin: Client, demo: Client):
    consumer, user = await a_consumer(cloud, admin), (await whoami(cloud, "demo"))["user"]["id"]
    held = await access_token(cloud, consumer, demo)
    stranger = await made(admin, "user", name=unique(), password="pw", default_project_id="")
    client = cloud.client_of((await cloud.log_in(stranger["name"], "pw")).headers["x-subject-token"])
    for verb, below in (("GET", ""), ("GET", f"/{held['oauth_token']}"), ("DELETE", f"/{held['oauth_token']}")):
        assert (await client(verb, f"/v3/users/{user}/OS-OAUTH1/access_tokens{below}")).status == 403
    own = f"/v3/users/{stranger['id']}/OS-OAUTH1/access_tokens/{held['oauth_token']}"
    assert (await client("GET", own)).status == 404


@pytest.mark.parametrize("how", ["consumer", "user disabled", "role taken", "project disabled"])
async def test_a_consumers_tokens_end_with_what_they_stand_on(cloud: Cloud, admin: Client, how: str):
    project = await made(admin, "project", name=unique())
    user = await made(admin, "user", name=unique(), password="pw", default_project_id=project["id"])
    member = (await admin("GET", "/v3/roles?name=member")).json["roles"][0]["id"]
    role = f"/v3/projects/{project['id']}/users/{user['id']}/roles/{member}"
    assert (await admin("PUT", role)).status == 204
    consumer = await a_consumer(cloud, admin)
    wish = await consumer.wish(project["id"])
    verifier = (await authorized(await cloud.client(user["name"], "pw"), wish, "member")).json["token"]["oauth_verifier"]
    held = form(await consumer.exchange(wish, verifier))
    client = cloud.client_of((await consumer.log_in(held)).headers["x-subject-token"])
    assert (await client("GET", "/v3/auth/projects")).status == 200
    match how:
        case "consumer":
            assert (await admin("DELETE", f"/v3/OS-OAUTH1/consumers/{consumer.key}")).status == 204
        case "user disabled":
            await admin("PATCH", f"/v3/users/{user['id']}", json_body={"user": {"enabled": False}})
        case "role taken":
            assert (await admin("DELETE", role)).status == 204
        case _:
            await admin("PATCH", f"/v3/projects/{project['id']}", json_body={"project": {"enabled": False}})
    assert (await client("GET", "/v3/auth/projects")).status == 401
    assert (await consumer.log_in(held)).status == 401


async def test_a_consumers_token_makes_nothing_that_reaches_further(cloud: Cloud, admin: Client, demo: Client):
    consumer, before = await a_consumer(cloud, admin), await whoami(cloud, "demo")
    user, project = before["user"]["id"], before["project"]["id"]
    token = (await consumer.log_in(await access_token(cloud, consumer, demo))).headers["x-subject-token"]
    client = cloud.client_of(token)
    assert (await cloud.exchange(token, {"project": {"id": project}})).status == 403
    assert (await authorized(client, await consumer.wish(project), "member")).status == 403
    assert (await client("GET", f"/v3/users/{user}/OS-OAUTH1/access_tokens")).status == 403
    attempts = [
        ("/v3/OS-TRUST/trusts", {"trust": {"trustor_user_id": user, "trustee_user_id": user, "impersonation": True,
                                           "project_id": project, "roles": [{"name": "member"}]}}),
        (f"/v3/users/{user}/application_credentials", {"application_credential": {"name": "more"}}),
        (f"/v3/users/{user}/credentials/OS-EC2", {"tenant_id": project}),
        ("/v3/credentials", {"credential": {"type": "ec2", "user_id": user, "project_id": project,
                                            "blob": json.dumps({"access": "a", "secret": "s"})}}),
        ("/v3/credentials", {"credential": {"type": "totp", "user_id": user, "blob": "GEZDGNBVGY3TQOJQ"}})]
    assert [(await client("POST", path, json_body=body)).status for path, body in attempts] == [403] * len(attempts)


async def test_deleting_a_user_takes_what_they_authorized_along(cloud: Cloud, admin: Client):
    user = await made(admin, "user", name=unique(), password="pw", default_project_id=None)
    consumer = await a_consumer(cloud, admin)
    project = (await whoami(cloud, "admin"))["project"]["id"]
    member = (await admin("GET", "/v3/roles?name=member")).json["roles"][0]["id"]
    assert (await admin("PUT", f"/v3/projects/{project}/users/{user['id']}/roles/{member}")).status == 204
    client = await cloud.client(user["name"], "pw", {"project": {"id": project}})
    for _ in range(2):
        wish = await consumer.wish(project)
        verifier = (await authorized(client, wish, "member")).json["token"]["oauth_verifier"]
    assert (await consumer.exchange(wish, verifier)).status == 201
    assert (await admin("DELETE", f"/v3/users/{user['id']}")).status == 204
    from control.identity.model import ACCESS_TOKEN, REQUEST_TOKEN
    assert not cloud.db.cache.all(ACCESS_TOKEN) and not cloud.db.cache.all(REQUEST_TOKEN)


async def test_secrets_are_sealed_in_the_store(cloud: Cloud, admin: Client, demo: Client):
    consumer = await a_consumer(cloud, admin)
    held = await access_token(cloud, consumer, demo)
    from control.identity.model import ACCESS_TOKEN, CONSUMER
    for kind, secret in ((CONSUMER, consumer.secret), (ACCESS_TOKEN, held["oauth_token_secret"])):
        record, = cloud.db.cache.all(kind)
        assert secret.encode() not in record.SerializeToString()
