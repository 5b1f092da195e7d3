"""Passcodes and receipts: logging in with more than one method."""
import base64
import time

import pytest
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

from tests.identity.conftest import Cloud, made

SEED = base64.b32encode(b"0123456789abcdefghij").decode()
RULES = {"multi_factor_auth_enabled": True, "multi_factor_auth_rules": [["password", "totp"]]}


def passcode(at: float | None = None) -> str:
    device = TOTP(base64.b32decode(SEED), 6, SHA1(), 30)
    return device.generate(int(time.time() if at is None else at)).decode()


@pytest.fixture
async def user(cloud: Cloud, admin) -> dict:
    user = await made(admin, "user", name="alice", password="first-1", options=RULES)
    reply = await admin("POST", "/v3/credentials", json_body={"credential": {
        "type": "totp", "blob": SEED, "user_id": user["id"]}})
    assert reply.status == 201, reply.body
    return user


async def log_in(cloud: Cloud, user: dict, *methods: str, code: str = "", receipt: str = "", password: str = "first-1"):
    identity: dict = {"methods": list(methods)}
    if "password" in methods:
        identity["password"] = {"user": {"id": user["id"], "password": password}}
    if "totp" in methods:
        identity["totp"] = {"user": {"id": user["id"], "passcode": code or passcode()}}
    return await cloud.anybody("POST", "/v3/auth/tokens", json_body={"auth": {"identity": identity}},
                               headers={"openstack-auth-receipt": receipt} if receipt else {})


async def test_both_methods_at_once_get_a_token(cloud: Cloud, user: dict) -> None:
    reply = await log_in(cloud, user, "password", "totp")
    assert reply.status == 201 and sorted(reply.json["token"]["methods"]) == ["password", "totp"]


async def test_one_method_gets_a_receipt_and_the_other_one_with_it_a_token(cloud: Cloud, user: dict) -> None:
    first = await log_in(cloud, user, "password")
    assert first.status == 401 and "x-subject-token" not in first.headers
    assert first.json["required_auth_methods"] == [["password", "totp"]]
    assert first.json["receipt"]["methods"] == ["password"]
    assert first.json["receipt"]["user"] == {"id": user["id"], "name": "alice", "domain": {"id": "default", "name": "Default"}}
    receipt = first.headers["openstack-auth-receipt"]
    assert (await cloud.client_of(receipt)("GET", "/v3/auth/projects")).status == 401       # a receipt is no token
    second = await log_in(cloud, user, "totp", receipt=receipt)
    assert second.status == 201 and sorted(second.json["token"]["methods"]) == ["password", "totp"]
    token = second.headers["x-subject-token"]
    assert (await cloud.exchange(token, "unscoped")).status == 201


async def test_a_receipt_is_its_users_alone_and_ends(cloud: Cloud, user: dict, admin, monkeypatch) -> None:
    receipt = (await log_in(cloud, user, "password")).headers["openstack-auth-receipt"]
    other = await made(admin, "user", name="bob", password="first-1", options=RULES)
    assert (await log_in(cloud, other, "password", receipt=receipt)).status == 401
    token = (await log_in(cloud, user, "password", "totp")).headers["x-subject-token"]
    assert (await log_in(cloud, user, "password", receipt=token)).status == 401             # a token is no receipt
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + 301 * 10**9)
    assert "openstack-auth-receipt" not in (await log_in(cloud, user, "password", receipt=receipt)).headers


async def test_a_passcode_is_taken_once_and_only_in_its_time(cloud: Cloud, user: dict) -> None:
    code = passcode()
    assert (await log_in(cloud, user, "password", "totp", code=code)).status == 201
    assert (await log_in(cloud, user, "password", "totp", code=code)).status == 401
    for wrong in (passcode(time.time() - 90), passcode(time.time() + 60), "1", "x" * 5000, "६६६६६६"):
        reply = await log_in(cloud, user, "password", "totp", code=wrong)
        assert reply.status in (400, 401) and "x-subject-token" not in reply.headers


async def test_ten_wrong_passcodes_lock(cloud: Cloud, user: dict) -> None:
    for _ in range(10):
        assert (await log_in(cloud, user, "totp", code="000000")).status == 401
    assert (await log_in(cloud, user, "password", "totp")).status == 401


async def test_without_rules_any_method_is_enough(cloud: Cloud, user: dict, admin) -> None:
    options = {"multi_factor_auth_enabled": False}
    assert (await admin("PATCH", f"/v3/users/{user['id']}", json_body={"user": {"options": options}})).status == 200
    assert (await log_in(cloud, user, "password")).status == 201
    assert (await log_in(cloud, user, "totp")).status == 201
