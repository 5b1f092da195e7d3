"""Policy rules: what they mean, where they come from, and what a file of overrides may do to them."""
import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.kernel import policy as policies
from control.kernel.access_rules import AccessRule
from control.kernel.caller import Caller
from control.kernel.errors import Invalid
from control.kernel.policy import NAMED, Policy, PolicyFile, RequestTarget, rule_name
from protos.compute.v1 import servers_pb2
from protos.identity.v1 import users_pb2

ADMIN = Caller("u-admin", project_id="p", roles=frozenset({"admin"}))
MANAGER = Caller("u-manager", domain_id="d", roles=frozenset({"manager", "member", "reader"}))
MEMBER = Caller("u-member", project_id="p", roles=frozenset({"member", "reader"}))
READER = Caller("u-reader", project_id="p", roles=frozenset({"reader"}))
AUDITOR = Caller("u-auditor", system=True, roles=frozenset({"reader"}))
SERVICE = Caller("u-service", project_id="s", roles=frozenset({"service"}))
NOBODY = Caller("u-nobody")
EVERYBODY = (ADMIN, MANAGER, MEMBER, READER, AUDITOR, SERVICE, NOBODY)


@pytest.fixture
def policy() -> Policy:
    policy = Policy()
    policy.add("compute:servers:create", "member")
    policy.add("identity:get_user", "self_or_domain_reader")
    return policy


@pytest.fixture
def file(tmp_path: Path, policy: Policy) -> PolicyFile:
    return PolicyFile(policy, tmp_path / "policy.yaml")


def write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o600)


@pytest.mark.parametrize("rule, allowed", [
    ("authenticated", set(EVERYBODY)), ("admin", {ADMIN}), ("admin_or_service", {ADMIN, SERVICE}),
    ("member", {ADMIN, MEMBER}), ("reader", {ADMIN, MEMBER, READER}),
    ("system_reader", {ADMIN, AUDITOR}), ("self_or_system_reader", {ADMIN, AUDITOR, READER}),
    ("domain_reader", {ADMIN, AUDITOR, MANAGER}), ("domain_manager", {ADMIN, MANAGER}),
    ("self_or_domain_reader", {ADMIN, AUDITOR, MANAGER, READER}), ("self_or_admin", {ADMIN, READER}), ("public", set(EVERYBODY))])
def test_each_named_rule_lets_through_whom_it_says(policy: Policy, rule: str, allowed: set[Caller]) -> None:
    target = {"user_id": "u-reader", "target.domain_id": "d"}
    assert {caller for caller in EVERYBODY if policy.rule(rule).allows(caller, target)} == allowed


def test_every_named_rule_is_tried() -> None:
    [mark] = [mark for mark in test_each_named_rule_lets_through_whom_it_says.pytestmark if mark.name == "parametrize"]
    assert {row[0] for row in mark.args[1]} == set(NAMED)


@pytest.mark.parametrize("text, allowed", [
    ("@", True), ("!", False), ("", True), ("role:MEMBER", True), ("not role:member", False), ("role:admin or role:member", True),
    ("role:member and role:admin", False), ("(role:admin or role:member) and project_id:p", True), ("'p':%(project_id)s", True),
    ("project_id:%(project_id)s", True), ("project_id:%(absent)s", False), ("is_admin:False", True), ("True:True", True),
    ("project_id:None", False), ("system_scope:all", False), ("domain_id:None", True), ("token.project.id:p", True),
    ("role:%(wanted)s", True), ("rule:compute:servers:create", True)])
def test_a_rule_means_what_oslo_policys_language_says(policy: Policy, text: str, allowed: bool) -> None:
    policy.take({"mine": text})
    assert policy.rule("mine").allows(MEMBER, {"project_id": "p", "wanted": "Member"}) is allowed


_ATOMS = st.sampled_from(["@", "!", "role:member", "role:Admin", "role:reader", "project_id:%(project_id)s", "system_scope:all",
                          "user_id:%(user_id)s", "domain_id:%(none)s", "'p':%(project_id)s"])
_RULES = st.recursive(_ATOMS, lambda inner: st.one_of(
    inner.map(lambda rule: f"not ({rule})"), st.lists(inner, min_size=2, max_size=3).map(lambda rules: f"({' or '.join(rules)})"),
    st.lists(inner, min_size=2, max_size=3).map(lambda rules: f"({' and '.join(rules)})"),
    st.lists(inner, min_size=2, max_size=4).map(" or ".join)), max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(text=_RULES, caller=st.sampled_from(EVERYBODY))
def test_a_compiled_rule_says_what_oslo_policy_itself_says(text: str, caller: Caller) -> None:
    from oslo_policy import _checks, _parser
    policy = Policy()
    policy.take({"mine": text})
    target = {"project_id": "p", "user_id": "u-reader"}
    creds = {"user_id": caller.user_id, "project_id": caller.project_id or None, "domain_id": caller.domain_id or None,
             "system_scope": "all" if caller.system else None, "roles": sorted(caller.roles)}
    expected = _checks._check(_parser.parse_rule(text), target, creds, None, None)
    for _ in range(2):       # the second answer may come from the table
        assert policy.rule("mine").allows(caller, target) is bool(expected)


def test_a_rule_without_a_target_is_judged_once_per_roles_and_scope(policy: Policy) -> None:
    rule = policy.rule("compute:servers:create")
    other = Caller("u-other", project_id="p", roles=MEMBER.roles)
    assert rule.allows(MEMBER) and rule.allows(other) and len(rule.verdicts) == 1
    about = policy.rule("identity:get_user")
    assert about.allows(READER, {"user_id": "u-reader"}) and not about.allows(READER, {"user_id": "u-member"})


def test_a_target_is_the_requests_fields_and_what_its_service_finds() -> None:
    request = users_pb2.UpdateUserRequest(user_id="u", user=users_pb2.User(domain_id="d"))
    target = RequestTarget(request, MEMBER, lambda message, caller, key: {"user.domain_id": "found"}.get(key))
    assert (target["user_id"], target["user.domain_id"], target["target.user.domain_id"]) == ("u", "d", "found")
    for absent in ("user", "nothing", "user_id.more", "target.group.id"):
        assert absent not in target


def test_rules_are_called_as_openstack_calls_them_where_it_is_plain() -> None:
    def named(module, service: str, rpc: str) -> str:
        return rule_name(module.DESCRIPTOR.services_by_name[service].methods_by_name[rpc])

    assert named(users_pb2, "Users", "CreateUser") == "identity:create_user"
    assert named(servers_pb2, "Servers", "CreateServer") == "compute:servers:create"
    assert named(servers_pb2, "Servers", "ListServersDetail") == "compute:servers:list_detail"


def test_no_file_is_no_override(policy: Policy, file: PolicyFile) -> None:
    file.load()
    assert policy.overrides == {} and policy.rule("compute:servers:create").allows(MEMBER)


def test_a_file_overrides_rules_and_brings_its_own(policy: Policy, file: PolicyFile, tmp_path: Path) -> None:
    write(tmp_path / "policy.yaml", "mine: role:reader\n'compute:servers:create': rule:mine and project_id:p\n"
                                    "identity:get_user: [[rule:admin], [role:reader, 'project_id:p']]\n")
    file.load()
    assert policy.rule("compute:servers:create").allows(READER) and not policy.rule("compute:servers:create").allows(ADMIN)
    assert policy.rule("identity:get_user").allows(ADMIN) and policy.rule("identity:get_user").allows(READER)


@pytest.mark.parametrize("text, line", [
    ("a: role:admin\nb: role:admin or\n", 2), ("a: '@'\n\nb: (role:admin\n", 3), ("a: nonsense\n", 1), ("a: rule:missing\n", 1),
    ("a: rule:b\nb: rule:a\n", 1), ("a: http://elsewhere/\n", 1), ("a: {b: c}\n", 1), ("a: 7\n", 1), ("- a\n", 1),
    ("a: '@'\nb: [\n", 3), ("a: '@'\na: '!'\n", 2), ("a: shoe_size:44\n", 1), ("a: user_id:%(user_id)d\n", 1),
    ("a: user_id:%(user_id\n", 1), ("a: " + "not (" * 60 + "role:a" + ")" * 60, 1),
    ("r0: '@'\n" + "".join(f"r{n}: rule:r{n - 1}\n" for n in range(1, 100)), 41)])
def test_a_broken_file_is_refused_with_its_line_and_changes_nothing(policy, file, tmp_path: Path, text: str, line: int) -> None:
    write(tmp_path / "policy.yaml", "compute:servers:create: role:reader\n")
    file.load()
    write(tmp_path / "policy.yaml", text)
    with pytest.raises(Invalid, match=f"line {line}:"):
        file.load()
    assert policy.overrides == {"compute:servers:create": "role:reader"} and policy.rule("compute:servers:create").allows(READER)


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to give a file away")
def test_a_file_that_others_can_write_is_refused(file: PolicyFile, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    write(path, "a: '@'\n")
    path.chmod(0o620)
    with pytest.raises(Invalid, match="chmod"):
        file.load()
    path.chmod(0o600)
    os.chown(path, 65534, 0)
    with pytest.raises(Invalid, match="chown"):
        file.load()


async def test_a_change_of_the_file_counts_at_once_and_a_broken_one_is_warned_of(policy, file, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(policies, "INTERVAL", 0.01)
    path = tmp_path / "policy.yaml"
    file.load()
    watching = asyncio.create_task(file.watch())
    try:
        write(path, "compute:servers:create: '!'\n")
        async with asyncio.timeout(5):
            while policy.rule("compute:servers:create").allows(MEMBER):
                await asyncio.sleep(0.01)
            write(path, "compute:servers:create: '@'\nbroken: or or\n")
            while "line 2" not in caplog.text:
                await asyncio.sleep(0.01)
            assert not policy.rule("compute:servers:create").allows(MEMBER)
            path.unlink()
            while not policy.rule("compute:servers:create").allows(MEMBER):
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()


def test_a_rule_that_nobody_asks_is_warned_of(file: PolicyFile, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "policy.yaml", "compute:server:create: '!'\n")
    file.load()
    assert "line 1" in caplog.text and "compute:server:create" in caplog.text


def test_an_explanation_names_every_check(policy: Policy) -> None:
    verdict = policy.explain("compute:servers:create", READER)
    assert not verdict.allowed
    seen = {}

    def walk(each) -> None:
        seen[each.text] = each.allowed
        for part in each.parts:
            walk(part)

    walk(verdict)
    assert seen["role:admin"] is False and seen["role:member"] is False and seen["project_id:None"] is False


@pytest.mark.parametrize("path, asked, matches", [
    ("/v2.1/servers", "/v2.1/servers", True), ("/v2.1/servers", "/v2.1/servers/7", False),
    ("/v2.1/servers/*", "/v2.1/servers/7", True), ("/v2.1/servers/{id}/ips", "/v2.1/servers/7/ips", True),
    ("/v2.1/servers/*", "/v2.1/servers/7/ips", False), ("/v2.1/**", "/v2.1/servers/7/ips", True),
    ("/v2.1/ser.ers", "/v2.1/servers", False)])
def test_an_access_rule_matches_whole_paths(path: str, asked: str, matches: bool) -> None:
    rule = AccessRule("compute", "GET", path)
    assert rule.matches("compute", "GET", (asked,)) is matches
    assert not rule.matches("compute", "POST", (asked,)) and not rule.matches("image", "GET", (asked,))
