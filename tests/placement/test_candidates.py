"""Candidates are exactly what a slow search over all choices finds, and never take what is not there."""
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.placement import candidates
from control.placement.candidates import Forest, Group, Node, Request, Stock, find

CLASSES, TRAITS, AGGREGATES = ("CPU", "DISK"), ("RED", "BLUE"), ("agg1", "agg2")


def node(uuid: str, parent: Node | None = None, traits=(), aggregates=(), shares: bool = False, **stocks) -> Node:
    """A provider; stocks are free amounts, or Stocks."""
    return Node(uuid, f"name-{uuid}", parent.uuid if parent else "", parent.root if parent else uuid,
                stocks={name: have if isinstance(have, Stock) else Stock(have, 0) for name, have in stocks.items()},
                traits=frozenset(traits), aggregates=frozenset(aggregates), shares=shares)


def asked(**more) -> Request:
    """A request of groups given as keywords, the suffix with "_" before it; other keywords are the request's own."""
    groups = {name.removeprefix("group"): more.pop(name) for name in list(more) if name.startswith("group")}
    return Request(groups, **more)


def servings(found) -> list[dict]:
    return [{uuid: dict(amounts) for uuid, amounts in candidate.amounts.items()} for candidate in found]


# By hand

def test_resources_without_a_suffix_may_come_of_several_providers_of_one_tree_but_not_of_two_trees():
    root = node("a", CPU=4)
    forest = Forest([root, node("a-disk", root, DISK=10), node("b", CPU=4), node("c", DISK=10)])
    found = find(forest, asked(group=Group({"CPU": 1, "DISK": 5})))
    assert servings(found) == [{"a": {"CPU": 1}, "a-disk": {"DISK": 5}}]
    assert not find(forest, asked(group=Group({"CPU": 1, "DISK": 5}), nested=False))


def test_a_sharing_provider_serves_the_trees_of_its_aggregates_alone():
    forest = Forest([node("a", CPU=4, aggregates=["agg1"]), node("b", CPU=4, aggregates=["agg2"]),
                     node("nfs", DISK=100, aggregates=["agg1"], shares=True)])
    assert servings(find(forest, asked(group=Group({"CPU": 1, "DISK": 5})))) == [{"a": {"CPU": 1}, "nfs": {"DISK": 5}}]
    assert not find(forest, asked(group=Group({"CPU": 1, "DISK": 5}, in_tree="a"))), "what others share is not in the tree"
    assert len(find(forest, asked(group=Group({"DISK": 5})))) == 1, "one candidate, whatever trees it serves"


@pytest.mark.parametrize(("amount", "fits"), [(1, False), (2, True), (3, False), (4, True), (6, True), (8, False)])
def test_bounds_and_steps_of_one_allocation_are_kept(amount, fits):
    forest = Forest([node("a", CPU=Stock(20, 10, min_unit=2, max_unit=6, step_size=2))])
    assert bool(find(forest, asked(group=Group({"CPU": amount})))) == fits


def test_groups_with_a_suffix_are_served_by_one_provider_each_and_apart_where_they_must():
    root = node("a")
    forest = Forest([root, node("n0", root, CPU=4), node("n1", root, CPU=4)])
    two = {"group1": Group({"CPU": 2}), "group2": Group({"CPU": 2})}
    assert len(find(forest, asked(**two))) == 4
    apart = find(forest, asked(**two, isolate=True))
    assert {(tuple(each.mappings["1"]), tuple(each.mappings["2"])) for each in apart} == {(("n0",), ("n1",)), (("n1",), ("n0",))}
    assert all(each.amounts[uuid] == {"CPU": 2} for each in apart for uuid in ("n0", "n1"))
    three = {"group1": Group({"CPU": 3}), "group2": Group({"CPU": 2})}
    assert len(find(forest, asked(**three))) == 2, "both of one provider are more than it has"


def test_same_subtree_wants_a_provider_that_all_others_are_below():
    root = node("a", CPU=4)
    left, right = node("left", root, traits=["RED"]), node("right", root, traits=["RED"])
    forest = Forest([root, left, right, node("left-nic", left, DISK=1), node("right-nic", right, DISK=1)])
    request = asked(group_root=Group(required=(frozenset({"RED"}),)), group_nic=Group({"DISK": 1}),
                    same_subtrees=[frozenset({"_root", "_nic"})])
    assert {(each.mappings["_root"][0], each.mappings["_nic"][0]) for each in find(forest, request)} == {
        ("left", "left-nic"), ("right", "right-nic")}
    assert all(set(each.amounts) == {each.mappings["_nic"][0]} for each in find(forest, request))


def test_traits_of_the_root_choose_trees():
    forest = Forest([node("a", CPU=1, traits=["RED"]), node("b", CPU=1)])
    assert servings(find(forest, asked(group=Group({"CPU": 1}), root_required=frozenset({"RED"})))) == [{"a": {"CPU": 1}}]
    assert servings(find(forest, asked(group=Group({"CPU": 1}), root_forbidden=frozenset({"RED"})))) == [{"b": {"CPU": 1}}]


def test_a_limit_takes_one_candidate_of_each_tree_before_a_second_of_any():
    roots = [node(f"r{number}") for number in range(3)]
    forest = Forest([*roots, *(node(f"{root.uuid}-{part}", root, CPU=1) for root in roots for part in range(5))])
    found = find(forest, asked(group=Group({"CPU": 1}), limit=3))
    assert {forest.nodes[uuid].root for each in found for uuid in each.amounts} == {"r0", "r1", "r2"}


def test_a_search_that_would_never_end_is_given_up_and_answers_with_what_it_has(monkeypatch):
    monkeypatch.setattr(candidates, "MAX_STEPS", 5000)
    root = node("a")
    forest = Forest([root, *(node(f"n{number}", root, CPU=1) for number in range(30))])
    groups = {f"group{number}": Group({"CPU": 1}) for number in range(40)}
    assert find(forest, asked(**groups, isolate=True)) == []


def test_a_provider_that_changed_is_found_by_what_it_has_now():
    forest = Forest([node("a", CPU=1, aggregates=["agg1"])])
    forest.put(node("a", DISK=1, aggregates=["agg2"]))
    assert not find(forest, asked(group=Group({"CPU": 1}))) and find(forest, asked(group=Group({"DISK": 1})))
    forest.remove("a")
    forest.remove("a")
    assert not (forest.nodes or forest.trees or forest.by_class or forest.by_aggregate or forest.sharing)


# Against a slow search

@st.composite
def forests(draw) -> Forest:
    """Up to five providers, in trees and with amounts so small that ties, exact fits and empty ones are common."""
    made: list[Node] = []
    for number in range(draw(st.integers(1, 5))):
        parent = draw(st.sampled_from([None, *made]))
        traits, aggregates = (frozenset(draw(st.sets(st.sampled_from(names)))) for names in (TRAITS, AGGREGATES))
        stocks = {name: Stock(draw(st.integers(0, 4)), draw(st.integers(0, 2)), 1, draw(st.integers(1, 4)),
                              draw(st.integers(1, 2))) for name in draw(st.sets(st.sampled_from(CLASSES)))}
        made.append(Node(f"n{number}", f"n{number}", parent.uuid if parent else "", parent.root if parent else f"n{number}",
                         stocks=stocks, traits=traits, aggregates=aggregates, shares=draw(st.integers(0, 3)) == 0))
    return Forest(made)


any_of = st.lists(st.sets(st.sampled_from(TRAITS), min_size=1).map(frozenset), max_size=2).map(tuple)
members = st.lists(st.sets(st.sampled_from(AGGREGATES), min_size=1).map(frozenset), max_size=1).map(tuple)
rarely = st.sampled_from([frozenset(), frozenset(), frozenset({"RED"})])
groups = st.builds(Group, st.dictionaries(st.sampled_from(CLASSES), st.integers(1, 3), min_size=1), any_of, rarely, members,
                   st.sampled_from([frozenset(), frozenset(), frozenset({"agg1"})]), st.sampled_from(["", "", "n0", "n5"]))
requests = st.builds(Request, st.dictionaries(st.sampled_from(["", "1", "2"]), groups, min_size=1, max_size=2), st.booleans(),
                     rarely, rarely, st.sampled_from([(), (frozenset({"1", "2"}),)]), nested=st.booleans())


def has_each(sets, having) -> bool:
    return all(one & having for one in sets)


def slowly(forest: Forest, request: Request) -> set:
    """Every candidate, by trying each provider for each class of each group, in each tree."""
    found = set()
    wishes = [(suffix, name) for suffix, group in request.groups.items() for name in group.resources]
    for root in forest.trees:
        anchor = forest.nodes[root]
        if not request.root_required <= anchor.traits or request.root_forbidden & anchor.traits:
            continue
        linked = {each.uuid for each in forest.sharing.values()
                  if any(each.aggregates & member.aggregates for member in forest.trees[root].values())}
        near = [forest.nodes[uuid] for uuid in {*forest.trees[root], *linked}]
        for choice in itertools.product(near, repeat=len(wishes)):
            served = dict(zip(wishes, choice, strict=True))
            if allowed(forest, request, anchor, served):
                amounts: dict = {}
                for (suffix, name), provider in served.items():
                    key = provider.uuid, name
                    amounts[key] = amounts.get(key, 0) + request.groups[suffix].resources[name]
                mappings = frozenset((suffix, frozenset(provider.uuid for (of, _), provider in served.items() if of == suffix))
                                     for suffix in request.groups)
                found.add((frozenset(amounts.items()), mappings))
    return found


def allowed(forest: Forest, request: Request, anchor: Node, served: dict) -> bool:
    of_group = {suffix: {provider.uuid: provider for (of, _), provider in served.items() if of == suffix}
                for suffix in request.groups}
    total: dict = {}
    for (suffix, name), provider in served.items():
        group, amount = request.groups[suffix], request.groups[suffix].resources[name]
        if name not in provider.stocks or not provider.stocks[name].gives(amount):
            return False
        total[provider.uuid, name] = total.get((provider.uuid, name), 0) + amount
        if group.in_tree and (group.in_tree not in forest.nodes or forest.nodes[group.in_tree].root != provider.root):
            return False
        own = suffix == "" and provider.root == anchor.uuid
        if not has_each(group.member_of, provider.aggregates) and not (own and has_each(group.member_of, anchor.aggregates)):
            return False
        outside = provider.aggregates | (anchor.aggregates if suffix == "" else frozenset())
        if group.forbidden & provider.traits or group.not_member_of & outside:
            return False
    for (uuid, name), amount in total.items():
        stock = forest.nodes[uuid].stocks[name]
        if stock.used + amount > stock.capacity or amount > stock.max_unit:
            return False
    for suffix, providers in of_group.items():
        together = frozenset().union(*(provider.traits for provider in providers.values()))
        if not has_each(request.groups[suffix].required, together) or (suffix and len(providers) > 1):
            return False
    alone = [next(iter(providers)) for suffix, providers in of_group.items() if suffix]
    if request.isolate and len(set(alone)) < len(alone):
        return False
    for suffixes in request.same_subtrees:
        uuids = {uuid for suffix in suffixes for uuid in of_group.get(suffix, ())}
        if uuids and not any(all(forest.below_or_same(uuid, top) for uuid in uuids) for top in uuids):
            return False
    takers = {uuid for uuid, _ in total}
    return request.nested or len({forest.nodes[uuid].root for uuid in takers}) == len(takers)


@settings(max_examples=400, deadline=None)
@given(forests(), requests)
def test_candidates_are_what_a_search_over_all_choices_finds(forest: Forest, request_: Request):
    found = find(forest, request_)
    flat = [(frozenset(((uuid, name), amount) for uuid, amounts in each.amounts.items() for name, amount in amounts.items()),
             frozenset((suffix, frozenset(uuids)) for suffix, uuids in each.mappings.items())) for each in found]
    assert len(set(flat)) == len(flat), "each once"
    assert set(flat) == slowly(forest, request_)


@st.composite
def flat_forests(draw) -> Forest:
    """Providers without others below them, some of which share."""
    made = []
    for number in range(draw(st.integers(1, 6))):
        traits, aggregates = (frozenset(draw(st.sets(st.sampled_from(names)))) for names in (TRAITS, AGGREGATES))
        stocks = {name: Stock(draw(st.integers(0, 6)), draw(st.integers(0, 2)), 1, draw(st.integers(1, 6)),
                              draw(st.integers(1, 2))) for name in draw(st.sets(st.sampled_from(CLASSES), min_size=1))}
        made.append(Node(f"n{number}", f"n{number}", "", f"n{number}", stocks=stocks, traits=traits, aggregates=aggregates,
                         shares=draw(st.integers(0, 9)) == 0))
    return Forest(made)


@settings(max_examples=400, deadline=None)
@given(flat_forests(), requests, st.integers(1, 8))
def test_what_a_lone_provider_is_asked_and_a_search_of_its_tree_have_one_answer(forest: Forest, request_: Request, limit: int):
    limited = Request(**{name: getattr(request_, name) for name in request_.__slots__} | {"limit": limit})
    quick = find(forest, limited)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(candidates._Search, "is_lone", lambda self, root: False)
        searched = find(forest, limited)
    assert quick == searched
    assert [list(each.mappings) for each in quick] == [list(each.mappings) for each in searched]


def test_most_trees_are_asked_without_a_search(monkeypatch):
    forest = Forest(node(f"n{number}", CPU=4) for number in range(10))
    monkeypatch.setattr(candidates._Search, "tree", lambda self, root: pytest.fail("searched"))
    assert len(find(forest, asked(group=Group({"CPU": 2}), group1=Group({"CPU": 2})))) == 10
    assert not find(forest, asked(group=Group({"CPU": 2}), group1=Group({"CPU": 3})))
