"""Security compliance: lockout, password rules and options of users, over REST, in Keystone's words."""
import asyncio
import dataclasses
import time

import pytest

from control.identity.compliance import Compliance
from control.identity.model import LOGIN, USER
from tests.identity.conftest import Cloud, made, replica


@pytest.fixture
async def user(admin) -> dict:
    return await made(admin, "user", name="alice", password="first-1")


def ask(cloud: Cloud, **options) -> None:
    """Have the cloud ask this of passwords from now on."""
    for method in cloud.dispatcher.methods.values():
        servicer = method.handler.__self__
        for owner in (servicer, getattr(servicer, "_authentication", None)):
            for name in ("_compliance", "compliance"):
                if isinstance(getattr(owner, name, None), Compliance):
                    setattr(owner, name, dataclasses.replace(getattr(owner, name), **options))
        authentication = getattr(servicer, "_authentication", None)
        if authentication is not None:
            authentication._logins._compliance = authentication.compliance


async def change(cloud: Cloud, user: dict, before: str, after: str):
    return await cloud.anybody("POST", f"/v3/users/{user['id']}/password",
                               json_body={"user": {"original_password": before, "password": after}})


async def set_options(admin, user: dict, **options) -> dict:
    reply = await admin("PATCH", f"/v3/users/{user['id']}", json_body={"user": {"options": options}})
    assert reply.status == 200, reply.body
    return reply.json["user"]


def shift(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let it be later."""
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + int(seconds * 1e9))


# Lockout

async def test_ten_wrong_passwords_lock_and_the_answer_gives_nothing_away(cloud: Cloud, user: dict, monkeypatch) -> None:
    answers = [await cloud.log_in("alice", "wrong") for _ in range(10)]
    locked = await cloud.log_in("alice", "first-1")
    assert {reply.status for reply in answers} == {401} == {locked.status}
    assert {reply.json["error"]["message"] for reply in [*answers, locked]} == {
        "The request you have made requires authentication."}
    shift(monkeypatch, 1790)
    assert (await cloud.log_in("alice", "first-1")).status == 401
    shift(monkeypatch, 20)
    assert (await cloud.log_in("alice", "first-1")).status == 201


async def test_nine_wrong_passwords_do_not_lock_and_a_right_one_begins_anew(cloud: Cloud, user: dict) -> None:
    for _ in range(2):
        for _ in range(9):
            assert (await cloud.log_in("alice", "wrong")).status == 401
        assert (await cloud.log_in("alice", "first-1")).status == 201


async def test_guesses_at_once_on_two_replicas_are_counted_exactly(store) -> None:
    async with replica(store) as one, replica(store) as other:
        await one.bootstrap()
        user = await made(await one.client("admin"), "user", name="alice", password="first-1")
        await other.db.cache.wait(one.db.cache.revision)
        await asyncio.gather(*((one, other)[number % 2].log_in("alice", "wrong") for number in range(9)))
        await one.db.cache.wait(max(one.db.cache.revision, other.db.cache.revision))
        assert one.db.get(LOGIN, user["id"]).failures == 9
        assert (await one.log_in("alice", "wrong")).status == 401
        assert (await other.log_in("alice", "first-1")).status == 401      # what the other one counted counts at once


async def test_a_lock_ends_no_token_and_costs_no_other_caller_anything(cloud: Cloud, user: dict, admin) -> None:
    token = await cloud.token("alice", "first-1")
    known = len(cloud.authenticator._known)
    for _ in range(10):
        await cloud.log_in("alice", "wrong")
    assert len(cloud.authenticator._known) == known
    assert (await cloud.client_of(token)("GET", "/v3/auth/projects")).status == 200


@pytest.mark.parametrize("update", [{"password": "second-2"}, {"enabled": True}])
async def test_an_administrator_unlocks(cloud: Cloud, user: dict, admin, update) -> None:
    for _ in range(10):
        await cloud.log_in("alice", "wrong")
    assert (await admin("PATCH", f"/v3/users/{user['id']}", json_body={"user": update})).status == 200
    assert (await cloud.log_in("alice", update.get("password", "first-1"))).status == 201


async def test_a_user_whose_option_says_so_is_never_locked(cloud: Cloud, user: dict, admin) -> None:
    await set_options(admin, user, ignore_lockout_failure_attempts=True)
    for _ in range(11):
        await cloud.log_in("alice", "wrong")
    assert (await cloud.log_in("alice", "first-1")).status == 201


# Passwords

async def test_an_expired_password_can_only_be_changed(cloud: Cloud, admin, monkeypatch) -> None:
    ask(cloud, password_expires_days=2)
    user = await made(admin, "user", name="bob", password="first-1")
    token = (await cloud.log_in("bob", "first-1")).json["token"]
    assert token["user"]["password_expires_at"] == user["password_expires_at"] is not None
    shift(monkeypatch, 2 * 86400 + 1)
    refused = await cloud.log_in("bob", "first-1")
    assert refused.status == 401
    assert refused.json["error"]["message"] == f"The password is expired and needs to be changed for user: {user['id']}."
    assert (await change(cloud, user, "first-1", "second-2")).status == 204
    assert (await cloud.log_in("bob", "second-2")).status == 201


async def test_a_password_of_somebody_elses_choice_has_to_be_changed_first(cloud: Cloud, admin) -> None:
    ask(cloud, change_password_upon_first_use=True)
    user = await made(admin, "user", name="bob", password="first-1")
    assert (await cloud.log_in("bob", "first-1")).status == 401
    assert (await change(cloud, user, "first-1", "second-2")).status == 204
    assert (await cloud.log_in("bob", "second-2")).status == 201
    free = await made(admin, "user", name="eve", password="first-1",
                      options={"ignore_change_password_upon_first_use": True})
    assert free["password_expires_at"] is None and (await cloud.log_in("eve", "first-1")).status == 201


async def test_an_option_lifts_the_expiry_and_its_end_brings_it_back(cloud: Cloud, admin) -> None:
    ask(cloud, password_expires_days=2)
    user = await made(admin, "user", name="bob", password="first-1")
    assert (await set_options(admin, user, ignore_password_expiry=True))["options"] == {"ignore_password_expiry": True}
    assert cloud.db.get(USER, user["id"]).user.HasField("password_expires_at") is False
    assert (await set_options(admin, user, ignore_password_expiry=None))["password_expires_at"] == user["password_expires_at"]


async def test_a_new_password_differs_from_the_last_ones(cloud: Cloud, user: dict) -> None:
    ask(cloud, unique_last_password_count=3)
    for before, after in (("first-1", "second-2"), ("second-2", "third-3")):
        assert (await change(cloud, user, before, after)).status == 204
    for former in ("first-1", "second-2", "third-3"):
        reply = await change(cloud, user, "third-3", former)
        assert reply.status == 400 and "must be unique is 3" in reply.json["error"]["message"]
    assert (await change(cloud, user, "third-3", "fourth-4")).status == 204
    assert (await change(cloud, user, "fourth-4", "first-1")).status == 204


async def test_a_password_has_the_form_that_is_asked_wherever_it_is_set(cloud: Cloud, user: dict, admin) -> None:
    ask(cloud, password_regex=r"^(?=.*\d).{7,}$", password_regex_description="a digit and seven characters")
    expected = "The password does not match the requirements: a digit and seven characters."
    replies = [await change(cloud, user, "first-1", "short1"),
               await admin("POST", "/v3/users", json_body={"user": {"name": "bob", "password": "nodigits"}}),
               await admin("PATCH", f"/v3/users/{user['id']}", json_body={"user": {"password": "nodigits"}})]
    for reply in replies:
        assert (reply.status, reply.json["error"]["message"]) == (400, expected)


async def test_a_password_is_kept_for_its_minimum_age(cloud: Cloud, user: dict, monkeypatch) -> None:
    ask(cloud, minimum_password_age=1)
    assert (await change(cloud, user, "first-1", "second-2")).status == 204      # the first one was not theirs
    reply = await change(cloud, user, "second-2", "third-3")
    assert reply.status == 400 and "must be used for 1 day(s)" in reply.json["error"]["message"]
    shift(monkeypatch, 86401)
    assert (await change(cloud, user, "second-2", "third-3")).status == 204


async def test_a_locked_password_is_the_administrators_to_change(cloud: Cloud, user: dict, admin) -> None:
    await set_options(admin, user, lock_password=True)
    reply = await change(cloud, user, "first-1", "second-2")
    assert reply.status == 400 and "contact your administrator" in reply.json["error"]["message"]
    assert (await admin("PATCH", f"/v3/users/{user['id']}", json_body={"user": {"password": "second-2"}})).status == 200


async def test_a_user_who_was_away_for_too_long_is_shut_out(cloud: Cloud, user: dict, admin, monkeypatch) -> None:
    ask(cloud, disable_user_account_days_inactive=30)
    assert (await cloud.log_in("alice", "first-1")).status == 201
    shift(monkeypatch, 29 * 86400)
    assert (await cloud.log_in("alice", "first-1")).status == 201
    shift(monkeypatch, 32 * 86400)
    assert (await cloud.log_in("alice", "first-1")).status == 401
    monkeypatch.undo()


@pytest.mark.parametrize("options", [{"shoe_size": 44}, {"lock_password": "yes"}, {"multi_factor_auth_rules": "totp"},
                                     {"multi_factor_auth_rules": [[]]}, {"multi_factor_auth_rules": [[7]]},
                                     {"multi_factor_auth_rules": [["totp"]] * 21}])
async def test_an_option_that_makes_no_sense_is_refused(admin, user: dict, options) -> None:
    reply = await admin("PATCH", f"/v3/users/{user['id']}", json_body={"user": {"options": options}})
    assert reply.status == 400


async def test_options_are_merged_and_null_takes_one_away(admin, user: dict) -> None:
    await set_options(admin, user, lock_password=True, ignore_password_expiry=False)
    assert (await set_options(admin, user, lock_password=None))["options"] == {"ignore_password_expiry": False}


async def test_what_is_kept_of_logins_goes_with_the_user(cloud: Cloud, user: dict, admin) -> None:
    await cloud.log_in("alice", "wrong")
    assert cloud.db.get(LOGIN, user["id"]).failures == 1
    assert (await admin("DELETE", f"/v3/users/{user['id']}")).status == 204
    assert cloud.db.get(LOGIN, user["id"]) is None
