"""Application credentials over REST: a secret for one project that ends when it, its user or its role does."""
import pytest

from control.identity.model import CREDENTIAL
from tests.identity.conftest import Cloud, made


async def _made(client, user: str, **values) -> dict:
    reply = await client("POST", f"/v3/users/{user}/application_credentials", json_body={"application_credential": values})
    assert reply.status == 201, reply.body
    return reply.json["application_credential"]


async def _log_in(cloud: Cloud, **credential):
    return await cloud.anybody("POST", "/v3/auth/tokens", json_body={"auth": {"identity": {
        "methods": ["application_credential"], "application_credential": credential}}})


@pytest.fixture
async def user(cloud: Cloud) -> str:
    return (await cloud.log_in("demo")).json["token"]["user"]["id"]


async def test_its_secret_is_shown_once_and_logs_in_with_its_roles(cloud: Cloud, demo, user) -> None:
    credential = await _made(demo, user, name="ci", roles=[{"name": "reader"}], description=None, expires_at=None)
    assert credential["secret"] and credential["expires_at"] is None and credential["unrestricted"] is False
    shown = (await demo("GET", f"/v3/users/{user}/application_credentials/{credential['id']}")).json["application_credential"]
    assert "secret" not in shown and [role["name"] for role in shown["roles"]] == ["reader"]
    assert credential["secret"].encode() not in cloud.db.get(CREDENTIAL, credential["id"]).SerializeToString()
    for how in ({"id": credential["id"]}, {"name": "ci", "user": {"id": user}},
                {"name": "ci", "user": {"name": "demo", "domain": {"id": "default"}}}):
        reply = await _log_in(cloud, secret=credential["secret"], **how)
        token = reply.json["token"]
        assert reply.status == 201 and token["methods"] == ["application_credential"]
        assert [role["name"] for role in token["roles"]] == ["reader"] and token["project"]["name"] == "demo"
        assert token["application_credential"] == {"id": credential["id"], "name": "ci", "restricted": True}


async def test_a_wrong_secret_an_expired_or_a_deleted_credential_is_refused(cloud: Cloud, demo, user) -> None:
    credential = await _made(demo, user, name="ci", secret="mine")
    assert (await _log_in(cloud, id=credential["id"], secret="not mine")).status == 401
    assert (await _log_in(cloud, id="nothing", secret="mine")).status == 401
    token = (await _log_in(cloud, id=credential["id"], secret="mine")).headers["x-subject-token"]
    client = cloud.client_of(token)
    assert (await client("GET", "/v3/auth/projects")).status == 200
    past = {"name": "past", "expires_at": "2020-01-01T00:00:00.000000"}
    reply = await demo("POST", f"/v3/users/{user}/application_credentials", json_body={"application_credential": past})
    assert reply.status == 400
    assert (await demo("DELETE", f"/v3/users/{user}/application_credentials/{credential['id']}")).status == 204
    assert (await client("GET", "/v3/auth/projects")).status == 401
    assert (await _log_in(cloud, id=credential["id"], secret="mine")).status == 401


async def test_it_gives_no_more_than_its_user_has_and_makes_no_other_unless_it_may(cloud: Cloud, demo, user) -> None:
    path = f"/v3/users/{user}/application_credentials"
    greedy = {"name": "a", "roles": [{"name": "admin"}]}
    assert (await demo("POST", path, json_body={"application_credential": greedy})).status == 400
    for unrestricted, status in ((False, 403), (True, 201)):
        credential = await _made(demo, user, name=f"u{unrestricted}", unrestricted=unrestricted)
        reply = await _log_in(cloud, id=credential["id"], secret=credential["secret"])
        client = cloud.client_of(reply.headers["x-subject-token"])
        assert (await client("POST", path, json_body={"application_credential": {"name": f"by{unrestricted}"}})).status == status
    assert (await demo("POST", path, json_body={"application_credential": {"name": "uTrue"}})).status == 409


async def test_it_is_its_users_own_and_goes_with_them(cloud: Cloud, admin, demo, user) -> None:
    other = await made(admin, "user", name="other", password="pw")
    credential = await _made(demo, user, name="ci")
    stranger = await cloud.client("other", "pw")
    path = f"/v3/users/{user}/application_credentials"
    assert (await stranger("GET", path)).status == (await stranger("GET", f"{path}/{credential['id']}")).status == 403
    assert (await stranger("DELETE", f"{path}/{credential['id']}")).status == 403
    assert (await admin("POST", path, json_body={"application_credential": {"name": "x"}})).status == 403
    assert (await stranger("GET", f"/v3/users/{other['id']}/application_credentials/{credential['id']}")).status == 404
    assert [row["name"] for row in (await demo("GET", path)).json["application_credentials"]] == ["ci"]
    assert (await admin("DELETE", f"/v3/users/{user}")).status == 204
    assert not cloud.db.cache.all(CREDENTIAL)
