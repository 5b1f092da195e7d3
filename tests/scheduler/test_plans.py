"""What-ifs change nothing, and come true to the letter when they are applied to the fleet that they were made for."""
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import plans
from scheduler.fleet import Fleet, single_row
from scheduler.plans import Move, Moved
from scheduler.types import Inventory, Placement, Request, ServerGroup, Shape, amounts
from tests.scheduler.test_fleet import check, fleets, requests, state


@settings(max_examples=150, deadline=None)
@given(fleets(), requests(), st.data())
def test_a_plan_comes_true_to_the_letter(fleet, wanted, data):
    for request in wanted[:-1]:
        fleet.place(request)
    names = sorted(fleet.hosts)
    what_if = data.draw(st.sampled_from(["drain", "add", "ratio", "balance", "consolidate"]))
    before = state(fleet)
    match what_if:
        case "drain":
            some = data.draw(st.sets(st.sampled_from(names))) if names else []
            plan = plans.drain(fleet, some)
            leaving = {consumer for name in some for consumer in fleet.on(name)}
            assert {move.consumer for move in plan.moves} | {refused.request.id for refused in plan.refused} == leaving
        case "add":
            plan = plans.add(fleet, wanted[-1:])
        case "ratio":
            plan = plans.change_ratio(fleet, "VCPU", 0.5)
        case "balance":
            plan = plans.balance(fleet, most_moves=3, threshold_ppm=0)
            assert len(plan.moves) <= 3
        case _:
            plan = plans.consolidate(fleet, most_moves=3)
            assert len(plan.moves) <= 3
    assert state(fleet) == before
    plans.apply(fleet, plan)
    for move in plan.moves:
        assert fleet.host_of(move.consumer) == move.target != move.source
    for placed in plan.placed:
        assert fleet.host_of(placed.request.id) == placed.host
    for consumer, (host, _) in before[1].items():
        if consumer not in {move.consumer for move in plan.moves}:
            assert fleet.host_of(consumer) == host
    if what_if == "ratio":
        assert set(plan.overfull) == {name for name in names if any(free < 0 for free in fleet.free(name).values())}
    else:
        check(fleet)


def small_fleet(hosts=3, vcpus=4, **more):
    return Fleet([single_row(f"h{number}", {"VCPU": Inventory(vcpus)}) for number in range(hosts)], **more)


def server(number, vcpus=1, **more):
    return Request(f"s{number}", Shape(amounts({"VCPU": vcpus})), **more)


def test_a_plan_for_a_fleet_that_changed_is_refused_and_nothing_is_done():
    fleet = small_fleet()
    fleet.place(server(1))
    plan = plans.drain(fleet, ["h0"])
    fleet.revision += 1
    with pytest.raises(Moved, match="revision 0; the fleet is at 1"):
        plans.apply(fleet, plan)
    assert fleet.host_of("s1") == "h0" and not fleet.hosts["h0"].closed


def test_a_plan_that_cannot_be_done_leaves_everyone_where_they_are():
    fleet = small_fleet(hosts=2)
    for number in range(3):
        fleet.place(server(number))
    plan = plans.drain(fleet, ["h0"])
    fleet.set_host(single_row("h1", {"VCPU": Inventory(2)}))
    before = state(fleet)
    with pytest.raises(Moved, match="does not fit h1"):
        plans.apply(fleet, replace(plan, closed=()))
    assert state(fleet) == before


def test_an_affinity_group_leaves_a_drained_host_together():
    fleet = small_fleet(groups=[ServerGroup("g", "affinity")])
    for number in range(3):
        fleet.place(server(number, group="g"))
    plan = plans.drain(fleet, ["h0"])
    assert not plan.refused and {move.target for move in plan.moves} == {"h1"}


def test_a_rack_too_many_says_who_cannot_go_and_why():
    fleet = small_fleet(hosts=2)
    for number in range(4):
        fleet.place(server(number, 2))
    plan = plans.drain(fleet, ["h0"])
    assert not plan.moves and [refused.lacks for refused in plan.refused] == [{"VCPU": 2}, {"VCPU": 2}]


def test_two_hundred_more_are_as_many_as_fit():
    plan = plans.add(small_fleet(hosts=10, vcpus=16), [server(number) for number in range(200)])
    assert len(plan.placed) == 160 and len(plan.refused) == 40


def test_balance_takes_one_move_where_one_is_enough():
    fleet = small_fleet(hosts=2)
    fleet.place(server(0, 2))
    fleet.place(server(1, 1))
    fleet.place(server(2, 1))
    plan = plans.balance(fleet, most_moves=10)
    assert plan.moves == (Move("s0", "h0", "h1"),)
    plans.apply(fleet, plan)
    assert plans.load_ppm(fleet, "h0") == plans.load_ppm(fleet, "h1") == 500_000


def test_consolidation_empties_the_hosts_that_it_can():
    fleet = small_fleet(hosts=3)
    for number, host in enumerate(["h0", "h0", "h1", "h2"]):
        fleet.place(replace(server(number), only=frozenset([host])))
    for consumer in list(fleet.claims):
        fleet.remember(replace(fleet.request(consumer), only=None))
    plan = plans.consolidate(fleet, most_moves=2)
    plans.apply(fleet, plan)
    assert sum(bool(fleet.on(name)) for name in fleet.hosts) == 1


def test_a_drained_host_takes_nothing_more():
    fleet = small_fleet(hosts=2)
    plans.apply(fleet, plans.drain(fleet, ["h0"]))
    answer = fleet.place(server(1))
    assert isinstance(answer, Placement) and answer.host == "h1"
