"""What users write of latencies and failures, and that a seed alone decides what comes of it."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.simulation.behaviour import PROFILES, Behaviour, Draws, behaviour


def test_words_say_how_long_things_take_and_how_often_they_fail():
    said = behaviour("start=0.2..1.5, stop=1", "start=0.01,crash=0.5/h,stream=2/h")
    assert said.latency == {"start": (0.2, 1.5), "stop": (1.0, 1.0)}
    assert (said.failures, said.rates) == ({"start": 0.01}, {"crash": 0.5, "stream": 2.0})
    assert behaviour("kvm").latency == PROFILES["kvm"] and behaviour() == Behaviour()


@pytest.mark.parametrize(("latency", "failures", "why"), [
    ("sloth", "", "'sloth' is not"), ("start", "", "'start' is not"), ("fly=1", "", "'fly=1' is not"),
    ("start=2..1", "", "lowest comes first"), ("start=-1", "", "0 to 3600"), ("start=nan", "", "0 to 3600"),
    ("start=x", "", "0 to 3600"), ("", "start=1.5", "0 to 1"), ("", "crash=0.1", "crash=0.1/h"), ("", "crash=-1/h", "0 to 3600"),
])
def test_words_that_mean_nothing_are_refused_with_what_is_wrong(latency, failures, why):
    with pytest.raises(ValueError, match=why):
        behaviour(latency, failures)


@given(st.integers(), st.text(max_size=20), st.lists(st.sampled_from(["start", "stop", "crash"]), max_size=30), st.randoms())
def test_the_nth_draw_of_a_sort_is_the_same_in_whatever_order_others_are_drawn(seed, host, sorts, random):
    drawn, again = Draws(seed, host), Draws(seed, host)
    first = [(sort, drawn.draw(sort)) for sort in sorts]
    random.shuffle(sorts)
    second = [(sort, again.draw(sort)) for sort in sorts]
    for sort in set(sorts):
        assert [value for of, value in first if of == sort] == [value for of, value in second if of == sort]
    assert all(0 <= value < 1 for _, value in first)


def test_hosts_seeds_and_sorts_draw_apart_and_evenly():
    values = {Draws(seed, host).draw(sort) for seed in range(5) for host in ("a", "b") for sort in ("start", "stop")}
    assert len(values) == 20
    draws = Draws(7, "a")
    many = [draws.draw("start") for _ in range(4000)]
    assert 0.48 < sum(many) / len(many) < 0.52 and sum(value < 0.1 for value in many) == pytest.approx(400, abs=60)


def test_seconds_lie_in_their_range_failures_come_as_often_as_said_and_what_is_not_said_never():
    said, draws = behaviour("start=0.2..1.5", "start=0.25,crash=60/h"), Draws(1, "a")
    seconds = [draws.seconds(said, "start") for _ in range(500)]
    assert 0.2 <= min(seconds) < 0.3 and 1.4 < max(seconds) <= 1.5
    assert sum(draws.fails(said, "start") for _ in range(2000)) == pytest.approx(500, abs=80)
    waits = [draws.until(said, "crash") or 0 for _ in range(2000)]
    assert sum(waits) / len(waits) == pytest.approx(60, rel=0.1)
    assert draws.seconds(said, "stop") == 0 and not draws.fails(said, "stop") and draws.until(said, "stream") is None
