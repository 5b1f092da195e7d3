"""The fleet: capacity is kept, refusals say why and what would help, choices say why, and a dry run tells the truth."""
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import _engine, reference
from scheduler.constraints import HostSignature
from scheduler.explain import relaxed
from scheduler.fleet import Fleet, single_row
from scheduler.types import Fix, Group, Held, Host, Inventory, Placement, Refusal, Request, Row, ServerGroup, Shape, amounts

CLASSES = ("VCPU", "MEMORY_MB", "CUSTOM_GPU")
TRAITS = ("A", "B")
few_traits = st.frozensets(st.sampled_from(TRAITS))
inventories = st.dictionaries(st.sampled_from(CLASSES), st.builds(
    Inventory, total=st.integers(0, 5), reserved=st.integers(0, 1), allocation_ratio=st.sampled_from([1.0, 1.5]),
    max_unit=st.sampled_from([2, 9]), step_size=st.sampled_from([1, 1, 2])))
some_amounts = st.dictionaries(st.sampled_from(CLASSES), st.integers(0, 3), max_size=2).map(amounts)


@st.composite
def fleets(draw, engine=_engine.Engine):
    hosts = []
    for number in range(draw(st.integers(0, 5))):
        rows = tuple(Row(f"r{row}", tuple(sorted(draw(inventories).items())), draw(few_traits),
                         draw(st.integers(0, max(row - 1, 0))))
                     for row in range(draw(st.sampled_from([1, 1, 3]))))
        hosts.append(Host(f"h{number}", rows, draw(st.sampled_from(["", "z"])), draw(st.frozensets(st.sampled_from("xy"))),
                          draw(st.sampled_from(["", "", "", "down"]))))
    groups = [ServerGroup("apart", "anti-affinity"), ServerGroup("two", "anti-affinity", 2), ServerGroup("together", "affinity"),
              ServerGroup("softly", draw(st.sampled_from(["soft-affinity", "soft-anti-affinity"])))]
    return Fleet(hosts, groups=groups, engine=engine)


@st.composite
def shapes(draw):
    def traits():
        required = draw(few_traits)
        return {"required": required, "forbidden": draw(few_traits) - required,
                "any_of": tuple(draw(st.lists(st.frozensets(st.sampled_from(TRAITS), min_size=1), max_size=1)))}

    groups = tuple(Group(draw(some_amounts), **traits()) for _ in range(draw(st.sampled_from([0, 0, 1, 2]))))
    return Shape(draw(some_amounts), **traits(), zone=draw(st.sampled_from(["", "", "z"])),
                 aggregates=tuple(draw(st.lists(st.frozensets(st.sampled_from("xy"), min_size=1), max_size=1))),
                 not_aggregates=draw(st.frozensets(st.sampled_from("xy"), max_size=1)), groups=groups,
                 isolate=draw(st.booleans()),
                 subtrees=((0, 1),) if len(groups) == 2 and draw(st.booleans()) else (),
                 policy=draw(st.sampled_from(["pack", "spread", "first"])),
                 weights=draw(st.sampled_from([(), (("VCPU", 2), ("MEMORY_MB", 1))])))


@st.composite
def requests(draw, most=8):
    names = st.frozensets(st.sampled_from([f"h{number}" for number in range(6)]))
    return [Request(f"s{number}", draw(shapes()), draw(st.sampled_from(["", "", "", "apart", "two", "together", "softly"])),
                    draw(st.one_of(st.none(), st.none(), names)), draw(st.one_of(st.just(frozenset()), names)),
                    draw(st.sampled_from([0, 0, 2000])))
            for number in range(draw(st.integers(1, most)))]


def check(fleet):
    """No row holds more than it has, no hard group is broken, and what hosts have free is what nobody holds."""
    held = {name: {} for name in fleet.hosts}
    for consumer in fleet.claims:
        for part in fleet.held(consumer):
            for name, amount in part.amounts:
                held[fleet.host_of(consumer)][part.row, name] = held[fleet.host_of(consumer)].get((part.row, name), 0) + amount
    for name, host in fleet.hosts.items():
        has = {(row.name, what): inventory.capacity for row in host.rows for what, inventory in row.inventories}
        assert all(amount <= has[what] for what, amount in held[name].items())
        for what, free in fleet.free(name).items():
            assert free == sum(amount for (_, one), amount in has.items() if one == what) - sum(
                amount for (_, one), amount in held[name].items() if one == what)
    for group in fleet.groups.values():
        homes = [fleet.host_of(consumer) for consumer in fleet.claims if fleet.request(consumer).group == group.id]
        if group.policy == "anti-affinity":
            assert all(homes.count(home) <= group.most for home in homes)
        if group.policy == "affinity":
            assert len(set(homes)) <= 1


def state(fleet):
    return ({name: fleet.engine.free(number) for name, number in fleet.numbers.items()},
            {consumer: (fleet.host_of(consumer), fleet.held(consumer)) for consumer in fleet.claims})


@settings(max_examples=200, deadline=None)
@given(fleets(), requests(), st.randoms(use_true_random=False))
def test_whatever_comes_and_goes_no_capacity_and_no_group_is_exceeded(fleet, wanted, random):
    for request in wanted:
        before = state(fleet)
        answer = fleet.place(request)
        if isinstance(answer, Placement):
            assert fleet.host_of(request.id) == answer.host and not fleet.hosts[answer.host].closed
        else:
            assert state(fleet) == before
            assert sum(answer.ruled_out.values()) == answer.hosts == len(fleet.hosts)
        check(fleet)
        if fleet.claims and random.random() < 0.4:
            consumer = random.choice(sorted(fleet.claims))
            if random.random() < 0.5:
                fleet.release(consumer)
            else:
                fleet.move(consumer)
            check(fleet)
    for consumer in list(fleet.claims):
        fleet.release(consumer)
    assert all(free == fleet.capacity(name)[what] for name in fleet.hosts for what, free in fleet.free(name).items())


@settings(max_examples=200, deadline=None)
@given(fleets(), requests())
def test_what_a_refusal_suggests_makes_the_request_fit(fleet, wanted):
    for request in wanted:
        answer = fleet.place(request)
        if isinstance(answer, Refusal):
            for fix in answer.fixes:
                assert isinstance(fleet.copy().place(relaxed(request, fix)), Placement), str(fix)


@settings(max_examples=200, deadline=None)
@given(fleets(), requests())
def test_a_dry_run_answers_what_the_real_call_answers_and_leaves_no_trace(fleet, wanted):
    before = state(fleet)
    foretold = fleet.dry_run(wanted, explain=True)
    assert state(fleet) == before
    assert foretold == [fleet.place(request, explain=True) for request in wanted]


@settings(max_examples=150, deadline=None)
@given(fleets(), requests())
def test_a_choice_names_the_best_and_the_next_best(fleet, wanted):
    for request in wanted:
        answer = fleet.dry_run([request], explain=True)[0]
        if isinstance(answer, Placement):
            without = fleet.dry_run([replace(request, avoid=request.avoid | {answer.host})])[0]
            runner_up = answer.choice.runner_up
            assert answer.choice.winner.host == answer.host and answer.choice.candidates >= (2 if runner_up else 1)
            assert (runner_up.host if runner_up else None) == (without.host if isinstance(without, Placement) else None)
        fleet.place(request)


@settings(max_examples=150, deadline=None)
@given(fleets(), requests())
def test_all_are_placed_or_none(fleet, wanted):
    before = state(fleet)
    answers = fleet.place_all(wanted)
    if any(isinstance(answer, Refusal) for answer in answers):
        assert state(fleet) == before
    else:
        assert len(answers) == len(wanted) == len(fleet.claims)
        check(fleet)


@settings(max_examples=100, deadline=None)
@given(st.data(), requests())
def test_the_fleet_answers_alike_over_both_engines(data, wanted):
    fast = data.draw(fleets())
    plain = Fleet(fast.hosts.values(), groups=fast.groups.values(), engine=reference.Engine)
    for request in wanted:
        assert fast.place(request, explain=True) == plain.place(request, explain=True)


HOST = single_row("a", {"VCPU": Inventory(4), "MEMORY_MB": Inventory(4096)})


def asks(vcpus=1, ram=1024, **more):
    return Shape(amounts({"VCPU": vcpus, "MEMORY_MB": ram}), **more)


class TestWords:
    def test_a_refusal_counts_hosts_names_the_nearest_miss_and_says_what_would_fit(self):
        fleet = Fleet([HOST, single_row("b", {"VCPU": Inventory(4), "MEMORY_MB": Inventory(8192, 1024)}),
                       single_row("c", {"VCPU": Inventory(9), "MEMORY_MB": Inventory(99999)}, closed="down"),
                       single_row("d", {"VCPU": Inventory(9), "MEMORY_MB": Inventory(99999)}, zone="far")])
        shape = asks(ram=8192, not_aggregates=frozenset("x"), forbidden=frozenset("A"))
        refusal = fleet.place(Request("s", shape, avoid=frozenset("d")))
        assert refusal.ruled_out == {"to be avoided": 1, "down": 1, "without enough RAM": 2}
        assert refusal.reason() == ("4 hosts: 1 to be avoided, 1 down, 2 without enough RAM. "
                                    "The nearest miss lacks 1024 MiB of RAM. "
                                    "It would fit with at most 7168 MiB of RAM or without hosts to avoid.")
        assert "The nearest miss, b, lacks" in refusal.reason(name_hosts=True)

    def test_no_hosts_is_said_plainly(self):
        assert Fleet().place(Request("s", asks())).reason() == "There is no host yet."

    def test_a_class_that_no_host_has_is_named(self):
        assert "1 without CUSTOM_FPGA" in Fleet([HOST]).place(Request("s", Shape(amounts({"CUSTOM_FPGA": 1})))).reason()

    def test_traits_zones_aggregates_and_units_are_named(self):
        fleet = Fleet([replace(HOST, zone="east")])
        for shape, reason in [(asks(required=frozenset({"HW_GPU"})), "without trait HW_GPU"),
                              (asks(zone="west"), "not in zone west"), (asks(vcpus=5), "without enough vCPU"),
                              (asks(aggregates=(frozenset({"ssd"}),)), "outside the aggregates asked for")]:
            assert fleet.place(Request("s", shape)).ruled_out == {reason: 1}
        fleet.set_host(single_row("a", {"VCPU": Inventory(8, max_unit=2), "MEMORY_MB": Inventory(4096)}))
        assert fleet.place(Request("s", asks(vcpus=4))).ruled_out == {"that give one consumer at most 2 vCPU": 1}

    def test_a_full_anti_affinity_group_is_named(self):
        fleet = Fleet([HOST], groups=[ServerGroup("g", "anti-affinity")])
        fleet.place(Request("s1", asks(), "g"))
        refusal = fleet.place(Request("s2", asks(), "g"))
        assert refusal.ruled_out == {"holding members of the server group": 1} and refusal.fixes == (Fix(("the server group",)),)


class TestParts:
    """A host of two NUMA cells, each with a device."""

    CELL = (("MEMORY_MB", Inventory(1024)), ("PCPU", Inventory(2)))
    NUMA = Host("n", (Row("n", (("DISK_GB", Inventory(10)),)), Row("cell0", CELL), Row("cell1", CELL),
                      Row("gpu", (("CUSTOM_GPU", Inventory(1)),), frozenset({"V100"}), parent=2)))
    GUEST = Group(amounts({"PCPU": 2, "MEMORY_MB": 512}))
    GPU = Group(amounts({"CUSTOM_GPU": 1}), required=frozenset({"V100"}))

    def test_each_cell_of_a_guest_is_on_a_cell_of_its_own(self):
        fleet = Fleet([self.NUMA])
        answer = fleet.place(Request("s", Shape(amounts({"DISK_GB": 4}), groups=(self.GUEST, self.GUEST), isolate=True)))
        assert answer.held == (Held("n", (("DISK_GB", 4),)), Held("cell0", (("MEMORY_MB", 512), ("PCPU", 2))),
                               Held("cell1", (("MEMORY_MB", 512), ("PCPU", 2))))

    def test_a_device_is_near_its_cell_where_that_is_asked_for(self):
        fleet = Fleet([self.NUMA])
        answer = fleet.place(Request("s", Shape((), groups=(self.GUEST, self.GPU), subtrees=((0, 1),))))
        assert [part.row for part in answer.held] == ["cell1", "gpu"]

    def test_more_than_a_cell_has_does_not_fit_though_the_host_has_it(self):
        refusal = Fleet([self.NUMA]).place(Request("s", Shape((), groups=(Group(amounts({"PCPU": 3})),))))
        assert refusal.ruled_out == {"whose parts do not fit it": 1}

    def test_a_row_of_which_something_is_held_does_not_go_and_others_may(self):
        fleet = Fleet([self.NUMA])
        fleet.place(Request("s", Shape((), groups=(self.GPU,))))
        with pytest.raises(ValueError, match="holds something of row gpu"):
            fleet.set_host(replace(self.NUMA, rows=self.NUMA.rows[:3]))
        fleet.set_host(replace(self.NUMA, rows=(self.NUMA.rows[0], self.NUMA.rows[2], replace(self.NUMA.rows[3], parent=1))))
        assert fleet.held("s") == (Held("gpu", (("CUSTOM_GPU", 1),)),)


def test_a_filter_of_ones_own_rules_hosts_out_with_its_reason():
    def even(shape: Shape, host: HostSignature) -> str:
        return "in an odd zone" if host.zone == "odd" else ""

    fleet = Fleet([replace(HOST, zone="odd")], filters=[even])
    assert fleet.place(Request("s", asks())).ruled_out == {"in an odd zone": 1}


def test_a_new_class_widens_the_fleet_and_what_is_held_stays():
    fleet = Fleet([HOST], groups=[ServerGroup("g", "affinity")])
    fleet.place(Request("s", asks(vcpus=3), "g"))
    fleet.set_host(single_row("b", {"AAA": Inventory(2), "VCPU": Inventory(2)}))
    assert fleet.free("a") == {"VCPU": 1, "MEMORY_MB": 3072} and fleet.request("s").group == "g"
    assert fleet.place(Request("t", Shape(amounts({"AAA": 2})))).host == "b"


def test_shapes_that_nobody_needs_are_forgotten():
    fleet = Fleet([HOST])
    fleet.place(Request("kept", asks(ram=7)))
    for ram in range(5000):
        fleet.dry_run([Request("s", asks(ram=1000 + ram))])
    assert len(fleet.shapes) <= 4096 and fleet.held("kept") == (Held("a", (("MEMORY_MB", 7), ("VCPU", 1))),)


def test_a_lowered_ratio_leaves_what_is_held_and_takes_nothing_more():
    fleet = Fleet([single_row("a", {"VCPU": Inventory(2, allocation_ratio=2.0)})])
    fleet.place(Request("s", Shape(amounts({"VCPU": 4}))))
    fleet.set_host(single_row("a", {"VCPU": Inventory(2)}))
    assert fleet.free("a") == {"VCPU": -2}
    assert fleet.place(Request("t", Shape(amounts({"VCPU": 1})))).lacks == {"VCPU": 3}


def test_a_consumer_is_placed_once_and_a_group_must_be_there():
    fleet = Fleet([HOST])
    fleet.place(Request("s", asks()))
    with pytest.raises(ValueError, match="already"):
        fleet.place(Request("s", asks()))
    with pytest.raises(ValueError, match="no server group"):
        fleet.place(Request("t", asks(), "nowhere"))


def test_a_removed_group_lets_its_members_be():
    fleet = Fleet([HOST], groups=[ServerGroup("g", "anti-affinity")])
    fleet.place(Request("s", asks(), "g"))
    fleet.remove_group("g")
    fleet.set_group(ServerGroup("h", "anti-affinity"))
    assert fleet.host_of("s") == "a" and isinstance(fleet.place(Request("t", asks(), "h")), Placement)


@pytest.mark.parametrize("make, error", [
    (lambda: amounts({"VCPU": -1}), "outside"), (lambda: amounts({"VCPU": 2**41}), "outside"),
    (lambda: Inventory(-1), "outside"), (lambda: Inventory(1, allocation_ratio=0), "ratio"),
    (lambda: Shape((), required=frozenset("A"), forbidden=frozenset("A")), "both required and forbidden"),
    (lambda: Shape((), policy="best"), "unknown policy"), (lambda: Shape((), weights=(("VCPU", 101),)), "weight"),
    (lambda: ServerGroup("g", "near"), "unknown policy"), (lambda: ServerGroup("g", "affinity", 0), "fewer than one"),
])
def test_bad_input_is_refused_with_its_reason(make, error):
    with pytest.raises(ValueError, match=error):
        make()


@settings(max_examples=150, deadline=None)
@given(fleets(), requests(), requests(), st.booleans())
def test_many_without_names_go_where_one_by_one_they_would(fleet, before, wanted, all_or_nothing):
    for request in before:
        fleet.place(replace(request, id=f"before-{request.id}"))
    plain = [replace(request, only=None, avoid=frozenset(), until=0) for request in wanted]
    kinds, names = list(dict.fromkeys(request.shape for request in plain)), list(fleet.groups)
    which = np.array([kinds.index(request.shape) for request in plain], np.int32)
    groups = np.array([names.index(request.group) if request.group else -1 for request in plain], np.int32)
    was = state(fleet)
    tried = fleet.place_many(kinds, which, groups, names, all_or_nothing=all_or_nothing, held=True, reasons=100)
    assert state(fleet) == was
    if all_or_nothing:
        answers = fleet.copy().place_all(plain)
        if any(isinstance(answer, Refusal) for answer in answers):
            assert (tried.hosts == -1).all() and tried.refused
            return
    else:
        answers = fleet.dry_run(plain)
    assert [fleet.names[host] if host >= 0 else "" for host in tried.hosts] == [
        answer.host if isinstance(answer, Placement) else "" for answer in answers]
    assert list(tried.held) == [answer.held if isinstance(answer, Placement) else () for answer in answers]
    assert sum(count for count, _ in tried.refused.values()) == sum(isinstance(answer, Refusal) for answer in answers)
    assert all(refusal is not None and refusal.request.shape == kinds[shape]
               for (shape, _), (_, refusal) in tried.refused.items())


def test_what_a_consumer_needs_can_be_told_later():
    fleet = Fleet([single_row("a", {"VCPU": Inventory(4)}), single_row("b", {"VCPU": Inventory(4)}, traits=frozenset({"A"}))])
    fleet.hold(Request("s", Shape(())), "b", [Held("b", (("VCPU", 1),))])
    needs = Request("s", Shape((("VCPU", 1),), required=frozenset({"A"})))
    fleet.remember(needs)
    assert fleet.request("s") == needs
    assert isinstance(fleet.move("s"), Refusal) and fleet.host_of("s") == "b"


def test_many_that_hold_something_already_are_held_as_one_by_one():
    hosts = [single_row(name, {"VCPU": Inventory(9)}) for name in "ab"]
    groups = [ServerGroup("apart", "anti-affinity")]
    held = [(f"s{number}", "ab"[number % 2], (("VCPU", number % 3),) if number % 3 else (), "apart" if number == 4 else "")
            for number in range(7)]
    many, each = Fleet(hosts, groups=groups), Fleet(hosts, groups=groups)
    many.hold_many(held)
    for consumer, host, given_amounts, group in held:
        each.hold(Request(consumer, Shape(given_amounts), group), host, [Held(host, given_amounts)])
    assert state(many) == state(each)
    assert all(many.request(consumer) == each.request(consumer) for consumer, *_ in held)
    with pytest.raises(ValueError, match="s3 has a place already"):
        many.hold_many([("s3", "a", (), "")])


def test_ten_thousand_dry_runs_tell_what_the_real_calls_do():
    """Over fleets that fill and empty; the generator is plain, so that the cases are many."""
    seed = random.Random(20171201)
    told = 0
    while told < 10_000:
        hosts = [single_row(f"h{number}", {name: Inventory(seed.randint(1, 12), allocation_ratio=seed.choice([1.0, 1.5]))
                                           for name in CLASSES}, zone=seed.choice(["", "z"]),
                            traits=frozenset(trait for trait in TRAITS if seed.random() < 0.5))
                 for number in range(seed.randint(1, 8))]
        fleet = Fleet(hosts, groups=[ServerGroup("apart", "anti-affinity"), ServerGroup("near", "soft-affinity")])
        for number in range(200):
            shape = Shape(amounts({name: seed.randint(0, 3) for name in CLASSES}), zone=seed.choice(["", "", "z"]),
                          required=frozenset(trait for trait in TRAITS if seed.random() < 0.2),
                          policy=seed.choice(["pack", "spread"]))
            request = Request(f"s{number}", shape, seed.choice(["", "", "apart", "near"]))
            [foretold] = fleet.dry_run([request])
            assert fleet.place(request) == foretold
            told += 1
            if fleet.claims and seed.random() < 0.5:
                fleet.release(seed.choice(sorted(fleet.claims)))
        check(fleet)
