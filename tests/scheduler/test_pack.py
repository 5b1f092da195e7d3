"""The Cython kernels and their plain-Python meaning give the same answers."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import _pack, reference


@st.composite
def clusters(draw):
    """Small numbers on purpose: ties, exact fits, empty and over-full hosts are where twins part."""
    hosts, resources = draw(st.integers(1, 8)), draw(st.integers(1, 3))
    small = st.integers(0, 4)
    capacity = [[draw(small) for _ in range(resources)] for _ in range(hosts)]
    free = [[draw(st.integers(-2, c)) for c in row] for row in capacity]
    demand = [draw(small) for _ in range(resources)]
    eligible = [draw(st.integers(0, 1)) for _ in range(hosts)]
    return np.array(free, np.int64), np.array(capacity, np.int64), np.array(demand, np.int64), np.array(eligible, np.uint8)


@settings(max_examples=1000, deadline=None)
@given(clusters(), st.sampled_from([reference.PACK, reference.SPREAD]))
def test_the_kernel_picks_what_the_reference_picks(cluster, policy):
    assert _pack.pick(*cluster, policy) == reference.pick(*cluster, policy)


@settings(max_examples=1000, deadline=None)
@given(clusters())
def test_the_kernel_counts_the_misses_that_the_reference_counts(cluster):
    assert _pack.misses(*cluster) == reference.misses(*cluster)


@pytest.mark.parametrize("engine", [_pack, reference], ids=["cython", "python"])
class TestPick:
    def test_pack_prefers_the_fuller_host_and_spread_the_emptier(self, engine):
        free, capacity, one = np.array([[8], [3]]), np.array([[8], [8]]), np.ones(2, np.uint8)
        assert engine.pick(free, capacity, np.array([2]), one, reference.PACK) == (1, 125_000)
        assert engine.pick(free, capacity, np.array([2]), one, reference.SPREAD) == (0, 750_000)

    def test_an_exact_fit_fits(self, engine):
        assert engine.pick(np.array([[2]]), np.array([[8]]), np.array([2]), np.ones(1, np.uint8), reference.PACK) == (0, 0)

    def test_nothing_fits_gives_minus_one(self, engine):
        assert engine.pick(np.array([[1]]), np.array([[8]]), np.array([2]), np.ones(1, np.uint8), reference.PACK) == (-1, 0)

    def test_mismatched_shapes_are_refused(self, engine):
        with pytest.raises(ValueError, match="disagree"):
            engine.pick(np.array([[1]]), np.array([[8]]), np.array([2, 2]), np.ones(1, np.uint8), reference.PACK)

    def test_an_unknown_policy_is_refused(self, engine):
        with pytest.raises(ValueError, match="policy"):
            engine.pick(np.array([[1]]), np.array([[8]]), np.array([2]), np.ones(1, np.uint8), 7)
