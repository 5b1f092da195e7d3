"""What is learned of lifetimes: known distributions come out, those who outlive them correct it, and memory has a bound."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import lifetimes
from scheduler.lifetimes import AGES, LONGEST, Lifetimes

DAY = 86400


def learn(learned: Lifetimes, keys, ages) -> None:
    for age in ages:
        learned.ended(keys, 0, age)


def mean_beyond(ages: np.ndarray, age: float) -> float:
    return float((ages[ages >= age] - age).mean())


class TestKnownDistributions:
    @pytest.mark.parametrize("age", [0, 1800, 3600])
    def test_an_exponential_life_of_an_hour_goes_on_for_an_hour_at_any_age(self, age):
        learned = Lifetimes()
        learn(learned, ("",), np.random.default_rng(1).exponential(3600, 6_000))
        assert learned.remaining(("",), age) == pytest.approx(3600, rel=0.15)

    @pytest.mark.parametrize("age", [0, 900, 7200])
    def test_of_a_mixture_the_short_leave_and_the_rest_is_expected_to_stay_as_long_as_they_did(self, age):
        draw = np.random.default_rng(2)
        ages = np.concatenate([draw.uniform(0, 600, 9_000), draw.uniform(DAY, 3 * DAY, 1_000)])
        learned = Lifetimes()
        learn(learned, ("",), ages)
        assert learned.remaining(("",), age) == pytest.approx(mean_beyond(ages, age), rel=0.2)

    def test_flavors_that_live_apart_are_told_apart(self):
        learned, draw = Lifetimes(), np.random.default_rng(3)
        learn(learned, ("", "short"), draw.uniform(300, 900, 3_000))
        learn(learned, ("", "long"), draw.uniform(DAY, 2 * DAY, 3_000))
        assert learned.remaining(("", "short"), 0) < 1200
        assert learned.remaining(("", "long"), 0) == pytest.approx(1.5 * DAY, rel=0.2)

    @given(st.lists(st.tuples(st.floats(0, 3e6), st.floats(0, 3e6), st.booleans()), max_size=60), st.floats(0, 1e7))
    def test_whatever_was_seen_an_answer_is_between_five_minutes_and_the_longest(self, seen, age):
        learned = Lifetimes()
        for one, other, ended in seen:
            (learned.ended if ended else learned.outlived)(("", 1), min(one, other), max(one, other))
        assert 300 <= learned.remaining(("", 1), age) <= LONGEST


class TestOutliving:
    def test_those_who_are_still_there_make_a_life_longer_than_those_who_left_alone_say(self):
        left, all_of_them = Lifetimes(), Lifetimes()
        for learned in (left, all_of_them):
            learn(learned, ("",), [600.0] * 500)
        for _ in range(500):
            all_of_them.outlived(("",), 0, 4 * 3600)
        assert all_of_them.remaining(("",), 0) > 2 * left.remaining(("",), 0)

    def test_who_is_told_of_in_steps_counts_as_who_is_told_of_once(self):
        once, steps = Lifetimes(), Lifetimes()
        for _ in range(300):
            once.ended(("",), 0, 20_000)
            steps.outlived(("",), 0, 700)
            steps.outlived(("",), 700, 9_000)
            steps.ended(("",), 9_000, 20_000)
        assert [once.remaining(("",), age) for age in AGES] == [steps.remaining(("",), age) for age in AGES]

    def test_what_is_seen_later_changes_what_is_expected(self, monkeypatch):
        monkeypatch.setattr(lifetimes, "EVERY", range(100, 100))
        learned = Lifetimes()
        learn(learned, ("",), [600.0] * 100)
        before = learned.remaining(("",), 0)
        learn(learned, ("",), [2.0 * DAY] * 1_000)
        assert before < 1500 < DAY < learned.remaining(("",), 0)


class TestWhatIsRare:
    def test_of_nothing_known_an_hour_is_expected(self):
        assert Lifetimes().remaining(("", "m1"), 0) == 3600

    def test_a_key_nobody_saw_is_expected_to_live_as_the_more_general_one(self):
        learned = Lifetimes()
        learn(learned, ("", "m1"), [2.0 * DAY] * 500)
        assert learned.remaining(("", "m1", ("m1", "new")), 0) == learned.remaining(("", "m1"), 0)

    @pytest.mark.parametrize(("cases", "least", "most"), [(1, 0, 0.1), (20, 0.5, 2.5), (500, 3.0, 4.5)])
    def test_a_key_gets_a_life_of_its_own_by_as_many_cases_as_it_has(self, cases, least, most):
        learned = Lifetimes()
        learn(learned, ("", "m1"), [600.0] * 3_000)
        learn(learned, ("", "m1", "its own"), [4.0 * DAY] * cases)
        assert least <= learned.remaining(("", "m1", "its own"), 0) / DAY < most

    def test_keys_past_the_bound_are_not_kept_and_lean_on_the_general_one(self, monkeypatch):
        monkeypatch.setattr(lifetimes, "MOST_KEYS", 10)
        learned = Lifetimes()
        for number in range(1_000):
            learned.ended(("", number), 0, 600)
            learned.remaining(("", number), 0)
        assert len(learned._lived) == len(learned._ended) == 10
        assert len(learned._expected) <= 10 and len(learned._hazards) <= 10
        assert learned.remaining(("", 999), 0) == learned.remaining(("",), 0)
