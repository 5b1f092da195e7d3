"""Plans keep to capacity, and refusals say why."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.planner import Snapshot
from scheduler.types import RESOURCES, Host, Placement, Refusal, Request

amounts = st.tuples(*[st.integers(0, 4)] * 3)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(amounts, amounts), max_size=5), st.lists(amounts, max_size=12))
def test_no_plan_exceeds_a_capacity(hosts, demands):
    fleet = [Host(f"h{i}", capacity, used) for i, (capacity, used) in enumerate(hosts)]
    used = {host.name: list(host.used) for host in fleet}
    for decision in Snapshot(fleet).plan([Request(str(i), demand) for i, demand in enumerate(demands)]):
        if isinstance(decision, Placement):
            for r, amount in enumerate(decision.request.amounts):
                used[decision.host][r] += amount
                capacity = next(host for host in fleet if host.name == decision.host).capacity[r]
                assert used[decision.host][r] <= capacity


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(amounts, amounts), max_size=5), amounts)
def test_the_counts_of_a_refusal_add_up_and_what_is_lacking_would_make_it_fit(hosts, demand):
    fleet = [Host(f"h{i}", capacity, used) for i, (capacity, used) in enumerate(hosts)]
    [decision] = Snapshot(fleet).plan([Request("r", demand)])
    if isinstance(decision, Refusal):
        assert sum(decision.ruled_out.values()) == len(fleet) == decision.hosts
        if fleet:
            mended = tuple(demand[i] - decision.lacks.get(resource, 0) for i, resource in enumerate(RESOURCES))
            nearest = next(host for host in fleet if host.name == decision.nearest)
            if all(u <= c for u, c in zip(nearest.used, nearest.capacity, strict=True)):
                assert isinstance(Snapshot(fleet).plan([Request("r", mended)])[0], Placement)


def test_a_refusal_counts_hosts_by_constraint_and_names_the_nearest_miss():
    fleet = [Host("a", (4, 4096, 10), (0, 3072, 0), "nova"), Host("b", (4, 8192, 10), (0, 8000, 0), "nova"),
             Host("c", (4, 8192, 10), (0, 0, 0), "nova", open=False, closed_because="down"),
             Host("d", (9, 9999, 99), (0, 0, 0), "far")]
    [refusal] = Snapshot(fleet).plan([Request("r", (1, 2048, 1), zone="nova")])
    assert refusal.ruled_out == {"down": 1, "not in zone nova": 1, "without enough RAM": 2}
    assert refusal.nearest == "b"      # it lacks 1856 of 8192, a lacks 1024 of 4096
    assert refusal.reason() == ("4 hosts: 1 down, 1 not in zone nova, 2 without enough RAM. "
                                "The nearest miss lacks 1856 MiB of RAM.")
    assert "The nearest miss, b, lacks" in refusal.reason(name_hosts=True)


def test_requests_of_one_plan_see_each_other():
    first, second, third = Snapshot([Host("a", (2, 100, 100), (0, 0, 0))]).plan([Request(str(i), (1, 10, 1)) for i in range(3)])
    assert (first.host, second.host) == ("a", "a")
    assert third.ruled_out == {"without enough vCPU": 1} and third.lacks == {"vcpus": 1}


def test_no_hosts_is_said_plainly():
    [refusal] = Snapshot([]).plan([Request("r", (1, 1, 1))])
    assert refusal.reason() == "There is no host yet."


@pytest.mark.parametrize("demand", [(-1, 0, 0), (0, 2**41, 0)])
def test_amounts_out_of_range_are_refused(demand):
    with pytest.raises(ValueError, match="outside"):
        Snapshot([Host("a", (1, 1, 1), (0, 0, 0))]).plan([Request("r", demand)])
