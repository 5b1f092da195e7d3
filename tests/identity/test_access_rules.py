"""Application credentials that are limited to some requests, and the rules that say to which."""
import grpc
import pytest

from control.kernel import errors
from control.kernel.rpc import Call
from protos.identity.v1 import users_pb2
from tests.identity.conftest import Cloud


async def limited(cloud: Cloud, demo, *rules: dict):
    """(user id, a client with a token of a credential that has these rules, the credential)."""
    token = (await cloud.log_in("demo")).json["token"]
    user_id = token["user"]["id"]
    reply = await demo("POST", f"/v3/users/{user_id}/application_credentials", json_body={"application_credential": {
        "name": f"limited-{len(rules)}-{rules[0].get('path', '')}", "access_rules": list(rules)}})
    assert reply.status == 201, reply.body
    credential = reply.json["application_credential"]
    answer = await cloud.anybody("POST", "/v3/auth/tokens", json_body={"auth": {"identity": {
        "methods": ["application_credential"],
        "application_credential": {"id": credential["id"], "secret": credential["secret"]}}}})
    assert answer.status == 201, answer.body
    assert answer.json["token"]["application_credential"]["access_rules"] == credential["access_rules"]
    return user_id, cloud.client_of(answer.headers["x-subject-token"]), credential


async def test_a_limited_credential_does_what_its_rules_say_and_nothing_else(cloud: Cloud, demo) -> None:
    user_id, client, _ = await limited(cloud, demo, {"service": "identity", "method": "GET", "path": "/v3/users/*/projects"})
    assert (await client("GET", f"/v3/users/{user_id}/projects")).status == 200
    assert (await client("GET", f"/v3/users/{user_id}/projects/")).status == 200
    for verb, path in (("GET", f"/v3/users/{user_id}"), ("GET", "/v3/auth/projects"), ("HEAD", f"/v3/users/{user_id}/projects"),
                       ("GET", f"/v3/users/{user_id}/%70rojects"), ("POST", "/v3/users")):
        assert (await client(verb, path)).status == 401, (verb, path)


async def test_an_exchanged_token_is_no_wider(cloud: Cloud, demo) -> None:
    user_id, client, _ = await limited(cloud, demo, {"service": "identity", "method": "GET", "path": "/v3/users/{id}"})
    reply = await cloud.anybody("POST", "/v3/auth/tokens", json_body={"auth": {"identity": {
        "methods": ["token"], "token": {"id": client._headers["x-auth-token"]}}}})
    wider = cloud.client_of(reply.headers["x-subject-token"])
    assert (await wider("GET", f"/v3/users/{user_id}")).status == 200
    assert (await wider("GET", "/v3/auth/projects")).status == 401


async def test_a_native_call_is_judged_as_its_rest_form(cloud: Cloud, demo) -> None:
    user_id, client, _ = await limited(cloud, demo, {"service": "identity", "method": "GET", "path": "/v3/users/*"})
    call = Call(token=client._headers["x-auth-token"])
    methods = cloud.dispatcher.methods
    answer = await cloud.dispatcher.unary(methods["/identity.v1.Users/GetUser"], users_pb2.GetUserRequest(user_id=user_id), call)
    assert answer.user.name == "demo"
    for name, request in (("ListUsers", users_pb2.ListUsersRequest()), ("GetUser", users_pb2.GetUserRequest(user_id="a/b")),
                          ("ListUserProjects", users_pb2.ListUserProjectsRequest(user_id=user_id))):
        with pytest.raises(errors.Unauthenticated) as error:
            await cloud.dispatcher.unary(methods[f"/identity.v1.Users/{name}"], request, call)
        assert error.value.status == grpc.StatusCode.UNAUTHENTICATED


async def test_rules_are_listed_shown_shared_and_deleted_when_nothing_has_them(cloud: Cloud, demo, admin) -> None:
    rule = {"service": "compute", "method": "GET", "path": "/v2.1/servers"}
    user_id, _, first = await limited(cloud, demo, rule)
    base = f"/v3/users/{user_id}"
    listed = (await demo("GET", f"{base}/access_rules")).json
    [found] = listed["access_rules"]
    assert {key: found[key] for key in rule} == rule
    rule_id = listed["access_rules"][0]["id"]
    _, _, second = await limited(cloud, demo, {"id": rule_id}, rule)
    assert {each["id"] for each in first["access_rules"] + second["access_rules"]} == {rule_id}
    assert (await demo("GET", f"{base}/access_rules?service=image")).json["access_rules"] == []
    assert (await demo("GET", f"{base}/access_rules/{rule_id}")).json["access_rule"]["path"] == "/v2.1/servers"
    assert (await demo("DELETE", f"{base}/access_rules/{rule_id}")).status == 403
    for credential in (first, second):
        assert (await demo("DELETE", f"{base}/application_credentials/{credential['id']}")).status == 204
    assert (await demo("DELETE", f"{base}/access_rules/{rule_id}")).status == 204
    assert (await demo("GET", f"{base}/access_rules/{rule_id}")).status == 404


@pytest.mark.parametrize("rule", [{"service": "compute", "method": "GRAB", "path": "/"},
                                  {"service": "", "method": "GET", "path": "/"},
                                  {"service": "compute", "method": "GET", "path": "servers"}, {"method": "GET"}])
async def test_a_rule_that_makes_no_sense_is_refused(cloud: Cloud, demo, rule) -> None:
    user_id = (await cloud.log_in("demo")).json["token"]["user"]["id"]
    reply = await demo("POST", f"/v3/users/{user_id}/application_credentials",
                       json_body={"application_credential": {"name": "x", "access_rules": [rule]}})
    assert reply.status == 400


async def test_another_users_rules_are_not_theirs_to_see_or_to_have(cloud: Cloud, demo, admin) -> None:
    _, _, credential = await limited(cloud, demo, {"service": "compute", "method": "GET", "path": "/v2.1/servers"})
    admin_id = (await cloud.log_in("admin")).json["token"]["user"]["id"]
    assert (await demo("GET", f"/v3/users/{admin_id}/access_rules")).status == 403
    reply = await admin("POST", f"/v3/users/{admin_id}/application_credentials", json_body={
        "application_credential": {"name": "x", "access_rules": [{"id": credential["access_rules"][0]["id"]}]}})
    assert reply.status == 404
