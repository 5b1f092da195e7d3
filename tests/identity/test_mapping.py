"""The mapping language: what rules make of an assertion, and which rules are none."""
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.identity.federation.assertion import assertion_of
from control.identity.federation.mapping import Domain, Group, Mapped, Project, Unmapped, User, parse
from control.kernel.errors import Invalid

ALICE = {"sub": ("248",), "name": ("alice",), "email": ("alice@idp.test",), "groups": ("devs", "ops", "guests"),
         "department": ("research",)}
USER = {"user": {"name": "{0}"}}
NAME = {"type": "name"}


def applied(local, remote, version: str = "1.0", said=ALICE) -> Mapped:
    return parse([{"local": local, "remote": remote}], version).apply(said)


def groups(local, remote, said=ALICE) -> list[str]:
    """Names of the groups that one rule gives a user."""
    mapped = applied([USER, local | {"domain": {"id": "d"}}], [NAME, *remote], said=said)
    assert all(group.domain == Domain(id="d") for group in mapped.groups)
    return [group.name for group in mapped.groups]


# Users

def test_values_stand_in_the_order_of_the_conditions_that_give_some():
    mapped = applied([{"user": {"id": "{0}", "name": "{1} of {2}", "email": "{2}"}}],
                     [{"type": "sub"}, {"type": "department", "any_one_of": ["research"]}, NAME, {"type": "email"}])
    assert mapped.user == User(id="248", name="alice of alice@idp.test", email="alice@idp.test")


def test_double_braces_stand_for_single_ones():
    assert applied([{"user": {"name": "{{{0}}}"}}], [NAME]).user.name == "{alice}"


def test_the_first_rule_that_names_a_user_counts_and_groups_add_up():
    rules = [{"local": [USER, {"group": {"id": "g1"}}], "remote": [NAME]},
             {"local": [{"user": {"name": "second"}}, {"group": {"id": "g1"}}, {"group": {"name": "x", "domain": {"name": "d"}}}],
              "remote": [NAME]},
             {"local": [{"group": {"id": "never"}}], "remote": [{"type": "nothing"}]}]
    mapped = parse(rules).apply(ALICE)
    assert mapped.user.name == "alice"
    assert mapped.groups == (Group(id="g1"), Group(name="x", domain=Domain(name="d")))


def test_without_a_rule_for_it_a_user_is_called_as_the_provider_calls_them():
    rules = parse([{"local": [{"group": {"id": "g"}}], "remote": [NAME]}])
    assert rules.apply(ALICE, remote_user="248").user == User(id="248", name="248")
    with pytest.raises(Unmapped):
        rules.apply(ALICE)


@pytest.mark.parametrize("name", ["{1}", "x{1}", "{2}"], ids=["several", "several in a text", "none"])
def test_a_user_has_one_name(name: str):
    with pytest.raises(Unmapped, match=r"user\.name"):
        applied([{"user": {"name": name}}], [NAME, {"type": "groups"}, {"type": "groups", "whitelist": ["other"]}])


def test_no_rule_that_applies_is_nobody():
    with pytest.raises(Unmapped, match="no rule"):
        applied([USER], [NAME, {"type": "absent"}])


def test_a_rule_without_local_gives_nothing():
    with pytest.raises(Unmapped):
        applied([], [NAME])


def test_a_local_user_keeps_the_domain_and_one_of_the_provider_has_the_providers():
    for kind, domain in (("local", Domain(id="default")), ("ephemeral", None)):
        user = applied([{"user": {"name": "{0}", "type": kind, "domain": {"id": "default"}}}], [NAME]).user
        assert (user.local, user.domain) == (kind == "local", domain)


# Conditions

@pytest.mark.parametrize(("condition", "holds"), [
    ({"any_one_of": ["devs", "x"]}, True), ({"any_one_of": ["x"]}, False), ({"any_one_of": []}, False),
    ({"not_any_of": ["x"]}, True), ({"not_any_of": ["x", "ops"]}, False), ({"not_any_of": []}, True),
    ({"any_one_of": ["^d.v"], "regex": True}, True), ({"any_one_of": ["^ev"], "regex": True}, False),
    ({"any_one_of": ["ev"], "regex": True}, True), ({"any_one_of": ["^d.v"], "regex": False}, False),
    ({"not_any_of": ["^o"], "regex": True}, False), ({"not_any_of": ["^x"], "regex": True}, True)])
def test_a_condition_holds(condition: dict, holds: bool):
    remote = [NAME, {"type": "groups"} | condition]
    if holds:
        assert applied([USER], remote).user.name == "alice"
    else:
        with pytest.raises(Unmapped):
            applied([USER], remote)


@pytest.mark.parametrize("how", ["any_one_of", "not_any_of", "whitelist", "blacklist"])
def test_no_condition_holds_for_what_is_not_said(how: str):
    with pytest.raises(Unmapped):
        applied([USER], [NAME, {"type": "absent", how: ["x"]}])


@pytest.mark.parametrize(("condition", "left"), [
    ({}, ["devs", "ops", "guests"]), ({"whitelist": ["ops", "x"]}, ["ops"]), ({"whitelist": []}, []),
    ({"blacklist": ["guests"]}, ["devs", "ops"]), ({"blacklist": []}, ["devs", "ops", "guests"]),
    ({"whitelist": ["s$"], "regex": True}, ["devs", "ops", "guests"]), ({"blacklist": ["^g"], "regex": True}, ["devs", "ops"])])
def test_values_are_filtered(condition: dict, left: list[str]):
    assert groups({"groups": "{1}"}, [{"type": "groups"} | condition]) == left


@pytest.mark.parametrize("how", ["any_one_of", "not_any_of", "whitelist", "blacklist"])
@pytest.mark.parametrize(("pattern", "value"), [("a", "a" * 5000), ("(a|aa)+$", "a" * 4000 + "b")], ids=["too long", "for ever"])
def test_what_an_expression_cannot_tell_lets_nobody_in(how: str, pattern: str, value: str):
    with pytest.raises(Unmapped, match=r"of long has|for long takes"):
        applied([USER], [NAME, {"type": "long", how: [pattern], "regex": True}], said=ALICE | {"long": (value,)})


# Groups

def test_groups_in_a_text_are_one_each():
    assert groups({"groups": "team-{1}"}, [{"type": "groups"}]) == ["team-devs", "team-ops", "team-guests"]
    assert groups({"groups": "['a', 'b-{1}']"}, [{"type": "department"}]) == ["a", "b-research"]
    assert groups({"groups": "just one"}, []) == ["just one"]


def test_what_a_provider_says_is_never_read_as_a_list():
    said = ALICE | {"groups": ("['admins']", "{0}")}
    assert groups({"groups": "{1}"}, [{"type": "groups"}], said) == ["['admins']", "{0}"]


def test_group_ids_are_ids():
    mapped = applied([USER, {"group_ids": "{1}"}], [NAME, {"type": "groups", "whitelist": ["devs", "ops"]}])
    assert mapped.groups == (Group(id="devs"), Group(id="ops"))


def test_more_than_a_provider_may_say_is_refused():
    with pytest.raises(Unmapped, match="allowed"):
        groups({"groups": "{1}{2}"}, [{"type": "many"}, {"type": "many"}], ALICE | {"many": tuple(map(str, range(50)))})


# Projects

def test_projects_come_with_roles():
    local = [USER, {"projects": [{"name": "for {0}", "roles": [{"name": "member"}, {"name": "reader"}]}]}]
    assert applied(local, [NAME]).projects == (Project("for alice", ("member", "reader")),)


def test_the_second_version_knows_domains_of_projects_and_users():
    local = [{"user": {"name": "{0}"}, "domain": {"name": "shop"}, "projects": [
        {"name": "p", "roles": [{"name": "member"}]}, {"name": "q", "roles": [{"name": "member"}], "domain": {"id": "{0}"}}]}]
    mapped = applied(local, [NAME], "2.0")
    assert mapped.user.domain == Domain(name="shop")
    assert [project.domain for project in mapped.projects] == [Domain(name="shop"), Domain(id="alice")]
    with pytest.raises(Invalid, match=r"rules\[0\]\.local\[0\]\.projects\[1\]"):
        applied(local, [NAME], "1.0")


# What is no mapping

@pytest.mark.parametrize(("rules", "place"), [
    (None, "rules"), ({}, "rules"), ([], "rules"), (["x"], "rules[0]"), ([{"local": []}], "rules[0]"),
    ([{"local": [], "remote": []}], "rules[0].remote"), ([{"local": {}, "remote": [NAME]}], "rules[0].local"),
    ([{"local": [], "remote": [NAME], "more": 1}], "rules[0]"),
    ([{"local": [], "remote": [{}]}], "rules[0].remote[0]"),
    ([{"local": [], "remote": [{"type": 1}]}], "rules[0].remote[0].type"),
    ([{"local": [], "remote": [{"type": "a", "any_one_of": ["x"], "whitelist": []}]}], "rules[0].remote[0]"),
    ([{"local": [], "remote": [{"type": "a", "any_one_of": "x"}]}], "rules[0].remote[0].any_one_of"),
    ([{"local": [], "remote": [{"type": "a", "any_one_of": [1]}]}], "rules[0].remote[0].any_one_of[0]"),
    ([{"local": [], "remote": [{"type": "a", "any_one_of": ["("], "regex": True}]}], "rules[0].remote[0].any_one_of[0]"),
    ([{"local": [], "remote": [{"type": "a", "whitelist": [], "regex": 1}]}], "rules[0].remote[0].regex"),
    ([{"local": [], "remote": [{"type": "a", "regex": True}]}], "rules[0].remote[0]"),
    ([{"local": [{"users": {}}], "remote": [NAME]}], "rules[0].local[0]"),
    ([{"local": [{"user": {"name": "{1}"}}], "remote": [NAME]}], "rules[0].local[0].user.name"),
    ([{"local": [{"user": {"name": "{x}"}}], "remote": [NAME]}], "rules[0].local[0].user.name"),
    ([{"local": [{"user": {"name": "{0.__class__}"}}], "remote": [NAME]}], "rules[0].local[0].user.name"),
    ([{"local": [{"user": {"name": ""}}], "remote": [NAME]}], "rules[0].local[0].user.name"),
    ([{"local": [{"user": {"type": "ghost"}}], "remote": [NAME]}], "rules[0].local[0].user.type"),
    ([{"local": [{"user": {"nick": "x"}}], "remote": [NAME]}], "rules[0].local[0].user"),
    ([{"local": [{"group": {"name": "g"}}], "remote": [NAME]}], "rules[0].local[0].group"),
    ([{"local": [{"group": {"id": "g", "name": "g"}}], "remote": [NAME]}], "rules[0].local[0].group"),
    ([{"local": [{"group": {"name": "g", "domain": {}}}], "remote": [NAME]}], "rules[0].local[0].group.domain"),
    ([{"local": [{"groups": "g"}], "remote": [NAME]}], "rules[0].local[0]"),
    ([{"local": [{"groups": ["g"], "domain": {"id": "d"}}], "remote": [NAME]}], "rules[0].local[0].groups"),
    ([{"local": [{"projects": [{"name": "p"}]}], "remote": [NAME]}], "rules[0].local[0].projects[0]"),
    ([{"local": [{"projects": [{"name": "p", "roles": []}]}], "remote": [NAME]}], "rules[0].local[0].projects[0].roles"),
    ([{"local": [{"projects": [{"name": "p", "roles": [{}]}]}], "remote": [NAME]}], "rules[0].local[0].projects[0].roles[0]"),
    ([{"local": [USER], "remote": [{"type": "a", "any_one_of": ["x"]}]}], "rules[0].local[0].user.name")])
def test_what_means_nothing_is_refused_with_its_place(rules, place: str):
    with pytest.raises(Invalid) as refused:
        parse(rules)
    assert str(refused.value).startswith(f"{place}: "), refused.value


def test_a_version_that_there_is_not_is_refused():
    with pytest.raises(Invalid, match="schema_version"):
        parse([{"local": [USER], "remote": [NAME]}], "3.0")


# Properties

texts = st.text(min_size=1, max_size=6)
values = st.lists(texts, min_size=1, max_size=5, unique=True)


@given(values, values)
def test_a_whitelist_and_a_blacklist_share_what_is_said(said: list[str], listed: list[str]):
    kept, dropped = (groups({"groups": "{1}"}, [{"type": "groups", how: listed}], ALICE | {"groups": tuple(said)})
                     for how in ("whitelist", "blacklist"))
    assert sorted(kept + dropped) == sorted(said)
    assert set(kept) == set(said) & set(listed)


@given(values, values)
def test_any_one_of_holds_exactly_where_not_any_of_does_not(said: list[str], listed: list[str]):
    held = []
    for how in ("any_one_of", "not_any_of"):
        try:
            held.append(bool(applied([USER], [NAME, {"type": "groups", how: listed}], said=ALICE | {"groups": tuple(said)})))
        except Unmapped:
            held.append(False)
    assert held == [bool(set(said) & set(listed)), not set(said) & set(listed)]


@given(texts)
def test_a_value_comes_through_as_it_is_whatever_is_in_it(said: str):
    assert applied([USER], [NAME], said={"name": (said,)}).user.name == said


keys = st.sampled_from(["local", "remote", "type", "user", "name", "group", "id", "projects", "roles", "groups", "any_one_of"])
json_values = st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3)
                           | st.dictionaries(keys, inner, max_size=3))


@given(json_values)
def test_any_json_is_a_mapping_or_is_refused(rules):
    try:
        parsed = parse(rules, "2.0")
    except Invalid:
        return
    with contextlib.suppress(Unmapped):
        assert parsed.apply(ALICE).user


# Assertions

def test_a_claim_has_the_names_that_it_has_behind_apache():
    said = assertion_of({"email": "a@b", "email_verified": True, "n": 7, "groups": ["x", "y", ""], "none": None, "empty": "",
                         "realm": {"roles": ["r"], "deep": {"er": "z"}}})
    for name in ("email", "OIDC-email", "OIDC_CLAIM_email", "HTTP_OIDC_EMAIL", "HTTP_OIDC_CLAIM_EMAIL"):
        assert said[name] == ("a@b",)
    assert said["email_verified"] == ("true",) and said["n"] == ("7",)
    assert said["groups"] == said["HTTP_OIDC_GROUPS"] == ("x", "y")
    assert said["realm.roles"] == ("r",) and said["realm.deep.er"] == ("z",)
    assert "none" not in said and "empty" not in said


def test_a_text_that_is_none_is_left_out():
    assert assertion_of({"name": "\ud800", "groups": ["a", "b\udfff"], "sub": "1"})["groups"] == ("a",)
    assert "name" not in assertion_of({"name": "\ud800"})


def test_no_claim_stands_in_for_another():
    said = assertion_of({"email": "own", "EMAIL": "forged", "groups": "g", "OIDC-groups": "forged", "a": {"b": "1"}, "a.b": "2"})
    assert said["email"] == ("own",) and said["EMAIL"] == ("forged",) and said["groups"] == ("g",)
    assert "HTTP_OIDC_EMAIL" not in said and "OIDC-groups" not in said and "a.b" not in said
