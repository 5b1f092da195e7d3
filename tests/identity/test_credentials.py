"""Credentials and EC2 keys over REST: kept sealed, their users' own, and tokens for what was signed with them."""
import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from control.identity import signatures
from control.identity.model import SECRET
from tests.identity.conftest import Cloud, made


@pytest.fixture
async def ids(cloud: Cloud) -> dict[str, str]:
    token = (await cloud.log_in("demo")).json["token"]
    return {"user": token["user"]["id"], "project": token["project"]["id"]}


async def _keys(client, ids: dict[str, str]) -> dict:
    reply = await client("POST", f"/v3/users/{ids['user']}/credentials/OS-EC2", json_body={"tenant_id": ids["project"]})
    assert reply.status == 201, reply.body
    return reply.json["credential"]


def _signed2(keys: dict, **changes) -> dict:
    """A request of the EC2 API signed by AWS's recipe for version 2."""
    params = {"Action": "DescribeInstances", "SignatureVersion": "2", "SignatureMethod": "HmacSHA256",
              "AWSAccessKeyId": keys["access"], "Timestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")} | changes
    query = "&".join(f"{quote(key, safe='-_.~')}={quote(params[key], safe='-_.~')}" for key in sorted(params))
    text = f"GET\ncloud.example:8773\n/services/Cloud\n{query}"
    signature = base64.b64encode(hmac.new(keys["secret"].encode(), text.encode(), hashlib.sha256).digest()).decode()
    return {"access": keys["access"], "signature": signature, "host": "cloud.example:8773", "verb": "GET",
            "path": "/services/Cloud", "params": params, "headers": {}, "body_hash": ""}


def _signed4(keys: dict) -> dict:
    """A request of the EC2 API signed by AWS's recipe for version 4."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/RegionOne/ec2/aws4_request"
    body_hash = hashlib.sha256(b"Action=DescribeInstances").hexdigest()
    request = f"POST\n/\n\nhost:cloud.example\nx-amz-date:{stamp}\n\nhost;x-amz-date\n{body_hash}"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = ("AWS4" + keys["secret"]).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    return {"access": keys["access"], "signature": signature, "host": "cloud.example", "verb": "POST", "path": "/",
            "params": {"Action": "DescribeInstances"}, "body_hash": body_hash,
            "headers": {"X-Amz-Date": stamp, "Host": "cloud.example", "Authorization":
                        f"AWS4-HMAC-SHA256 Credential={keys['access']}/{scope}, SignedHeaders=host;x-amz-date, "
                        f"Signature={signature}"}}


def test_aws_own_example_of_version_4_has_the_signature_that_aws_gives() -> None:
    headers = {"host": "iam.amazonaws.com", "content-type": "application/x-www-form-urlencoded; charset=utf-8",
               "x-amz-date": "20150830T123600Z", "authorization":
               "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/iam/aws4_request, "
               "SignedHeaders=content-type;host;x-amz-date, Signature=none"}
    signature = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7"
    assert signatures.ec2("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", signature, verb="GET", host="iam.amazonaws.com", path="/",
                          params={"Action": "ListUsers", "Version": "2010-05-08"}, headers=headers, body_hash="")


async def test_a_credential_is_kept_sealed_and_shown_changed_and_deleted(cloud: Cloud, admin, demo, ids) -> None:
    totp = await made(demo, "credential", type="totp", blob="GEZDGNBVGY3TQOJQ")
    assert totp["user_id"] == ids["user"] and totp["project_id"] is None
    assert b"GEZDGNBV" not in cloud.db.get(SECRET, totp["id"]).SerializeToString()
    path = f"/v3/credentials/{totp['id']}"
    assert (await demo("GET", path)).json["credential"] == totp
    changed = await demo("PATCH", path, json_body={"credential": {"blob": "new", "project_id": ids["project"]}})
    assert changed.json["credential"]["blob"] == "new" and changed.json["credential"]["project_id"] == ids["project"]
    await made(admin, "credential", type="cert", blob="x")
    assert [row["type"] for row in (await demo("GET", "/v3/credentials")).json["credentials"]] == ["totp"]
    assert len((await admin("GET", "/v3/credentials")).json["credentials"]) == 2
    assert len((await admin("GET", "/v3/credentials?type=cert")).json["credentials"]) == 1
    await made(admin, "user", name="other", password="pw")
    stranger = await cloud.client("other", "pw")
    assert (await stranger("GET", path)).status == (await stranger("DELETE", path)).status == 403
    assert (await demo("DELETE", path)).status == 204 and (await demo("GET", path)).status == 404


async def test_an_ec2_credential_has_keys_a_project_and_one_access_key_of_its_own(cloud: Cloud, demo, ids) -> None:
    blob = json.dumps({"access": "a", "secret": "s"})
    wanted = {"type": "ec2", "blob": blob, "project_id": ids["project"]}
    credential = await made(demo, "credential", **wanted)
    assert credential["id"] == hashlib.sha256(b"a").hexdigest()
    for wrong, status in ((wanted, 409), (wanted | {"project_id": None}, 400), (wanted | {"blob": "{}"}, 400),
                          (wanted | {"user_id": "other"}, 403), (wanted | {"type": ""}, 400),
                          (wanted | {"blob": json.dumps({"access": "b", "secret": "s", "trust_id": "t"})}, 400)):
        assert (await demo("POST", "/v3/credentials", json_body={"credential": wrong})).status == status
    path = f"/v3/credentials/{credential['id']}"
    for wrong in ({"blob": json.dumps({"access": "a", "secret": "s", "app_cred_id": "x"})}, {"blob": '{"access": "a"}'},
                  {"type": "totp"}):
        assert (await demo("PATCH", path, json_body={"credential": wrong})).status == 400
    changed = await demo("PATCH", path, json_body={"credential": {"blob": json.dumps({"access": "b", "secret": "t"})}})
    assert changed.status == 200 and changed.json["credential"]["id"] == credential["id"]


async def test_an_access_key_that_was_replaced_signs_nothing(cloud: Cloud, admin, demo, ids) -> None:
    keys = await _keys(demo, ids)
    path = f"/v3/credentials/{hashlib.sha256(keys['access'].encode()).hexdigest()}"
    blob = json.dumps({"access": "another", "secret": keys["secret"]})
    assert (await demo("PATCH", path, json_body={"credential": {"blob": blob}})).status == 200
    assert (await admin("POST", "/v3/ec2tokens", json_body={"credentials": _signed4(keys)})).status == 401


async def test_keys_are_made_listed_and_deleted_by_their_user(cloud: Cloud, admin, demo, ids) -> None:
    keys = await _keys(demo, ids)
    base = f"/v3/users/{ids['user']}/credentials/OS-EC2"
    assert keys["tenant_id"] == ids["project"] and keys["trust_id"] is None and keys["links"]["self"].endswith(keys["access"])
    assert (await demo("GET", base)).json["credentials"] == [keys]
    assert (await demo("GET", f"{base}/{keys['access']}")).json["credential"] == keys
    other = (await made(admin, "project", name="not mine"))["id"]
    assert (await demo("POST", base, json_body={"tenant_id": other})).status == 403
    await made(admin, "user", name="other", password="pw")
    assert (await (await cloud.client("other", "pw"))("GET", base)).status == 403
    assert (await demo("DELETE", f"{base}/{keys['access']}")).status == 204
    assert (await demo("GET", f"{base}/{keys['access']}")).status == 404


@pytest.mark.parametrize("sign", [_signed2, _signed4])
async def test_a_signed_request_is_worth_a_token_of_its_user(cloud: Cloud, admin, demo, ids, sign) -> None:
    keys = await _keys(demo, ids)
    request = sign(keys)
    reply = await admin("POST", "/v3/ec2tokens", json_body={"credentials": request})
    token = reply.json["token"]
    assert reply.status == 200 and token["user"]["id"] == ids["user"] and token["project"]["id"] == ids["project"]
    assert token["methods"] == ["ec2credential"]
    assert (await cloud.client_of(reply.headers["x-subject-token"])("GET", "/v3/auth/projects")).status == 200
    for wrong in (request | {"signature": "x"}, request | {"path": "/other"}, request | {"access": "nobody"}):
        assert (await admin("POST", "/v3/ec2tokens", json_body={"credentials": wrong})).status == 401
    assert (await demo("POST", "/v3/ec2tokens", json_body={"credentials": request})).status == 403
    assert (await cloud.anybody("POST", "/v3/ec2tokens", json_body={"credentials": request})).status == 401


async def test_an_old_request_is_worth_nothing(cloud: Cloud, admin, demo, ids) -> None:
    keys = await _keys(demo, ids)
    for stale in ("2020-01-01T00:00:00Z", "2099-01-01T00:00:00Z", "never"):
        assert (await admin("POST", "/v3/ec2tokens", json_body={"credentials": _signed2(keys, Timestamp=stale)})).status == 401


async def test_a_signed_text_of_s3_is_worth_a_token(cloud: Cloud, admin, demo, ids) -> None:
    keys = await _keys(demo, ids)
    text = b"GET\n\n\nThu, 17 Nov 2005 18:49:58 GMT\n/bucket/object"
    signature = base64.b64encode(hmac.new(keys["secret"].encode(), text, hashlib.sha1).digest()).decode()
    for name, status in ((signature, 200), ("x", 401)):
        reply = await admin("POST", "/v3/s3tokens", json_body={"credentials": {
            "access": keys["access"], "signature": name, "token": base64.urlsafe_b64encode(text).decode()}})
        assert reply.status == status
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
    text4 = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(b'request').hexdigest()}".encode()
    key = ("AWS4" + keys["secret"]).encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    reply = await admin("POST", "/v3/s3tokens", json_body={"credentials": {
        "access": keys["access"], "signature": hmac.new(key, text4, hashlib.sha256).hexdigest(),
        "token": base64.b64encode(text4).decode()}})
    assert reply.status == 200 and reply.json["token"]["user"]["id"] == ids["user"]


async def test_keys_made_with_an_application_credential_give_no_more_than_it(cloud: Cloud, admin, demo, ids) -> None:
    reply = await demo("POST", f"/v3/users/{ids['user']}/application_credentials", json_body={
        "application_credential": {"name": "narrow", "roles": [{"name": "reader"}]}})
    narrow = reply.json["application_credential"]
    reply = await cloud.anybody("POST", "/v3/auth/tokens", json_body={"auth": {"identity": {
        "methods": ["application_credential"], "application_credential": {"id": narrow["id"], "secret": narrow["secret"]}}}})
    keys = await _keys(cloud.client_of(reply.headers["x-subject-token"]), ids)
    token = (await admin("POST", "/v3/ec2tokens", json_body={"credentials": _signed2(keys)})).json["token"]
    assert [role["name"] for role in token["roles"]] == ["reader"]
    await demo("DELETE", f"/v3/users/{ids['user']}/application_credentials/{narrow['id']}")
    assert (await admin("POST", "/v3/ec2tokens", json_body={"credentials": _signed2(keys)})).status == 401
