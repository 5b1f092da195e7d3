"""The Cython engine and its plain-Python meaning give the same answers, and neither ever exceeds a capacity."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import _engine, reference

POLICIES = st.sampled_from([reference.PACK, reference.SPREAD, reference.FIRST])
GROUP_POLICIES = st.integers(0, reference.SOFT_AFFINITY)
small = st.integers(0, 4)


@st.composite
def hosts(draw, resources):
    """Small numbers on purpose: ties, exact fits and empty hosts are where twins part."""
    rows = draw(st.integers(1, 3))
    capacity = [[draw(small) for _ in range(resources)] for _ in range(rows)]
    parents = [draw(st.integers(0, max(row - 1, 0))) for row in range(rows)]
    return draw(st.integers(0, 2)), capacity, [draw(st.integers(0, 1)) for _ in range(rows)], parents


@st.composite
def shapes(draw, resources):
    parts = draw(st.lists(st.lists(small, min_size=resources, max_size=resources), min_size=1, max_size=3))
    groups = draw(st.integers(0, len(parts)))
    subtrees = [draw(st.lists(st.integers(0, groups - 1), min_size=1, max_size=2))] if groups and draw(st.booleans()) else []
    weights = draw(st.lists(st.sampled_from([0, 1, 3]), min_size=resources, max_size=resources))
    codes = bytes(draw(st.lists(st.sampled_from([0, 0, 0, 7]), min_size=2, max_size=3)))
    row_codes = [bytes(draw(st.lists(st.sampled_from([0, 0, 1]), min_size=1, max_size=2))) for _ in parts]
    return (parts, groups, draw(st.booleans()), subtrees, draw(POLICIES), weights), codes, row_codes


class Pair:
    """Both engines, asked the same things; a different answer fails."""

    def __init__(self, resources):
        self.engines = [_engine.Engine(resources), reference.Engine(resources)]

    def __getattr__(self, verb):
        def both(*args, **more):
            answers = []
            for engine in self.engines:
                try:
                    answers.append(getattr(engine, verb)(*args, **more))
                except ValueError as error:
                    answers.append(str(error))
            assert answers[0] == answers[1], verb
            return answers[0]

        return both

    def copy(self):
        twin = Pair(self.engines[0].resources)
        twin.engines = [engine.copy() for engine in self.engines]
        return twin


def add_shape(pair, drawn):
    shape, codes, row_codes = drawn
    number = pair.add_shape(*shape)
    pair.judge(number, codes)
    for part, row in enumerate(row_codes):
        pair.judge_rows(number, part, row)
    return number


OPERATIONS = ["place"] * 6 + ["release"] * 3 + [
    "extend", "hold", "set_host", "remove_host", "misses", "copy", "set_group", "judge", "now"]


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_the_engine_does_what_the_reference_does(data):
    draw, resources = data.draw, data.draw(st.integers(1, 3))
    pair = Pair(resources)
    present, claims = set(), set()
    for host in range(draw(st.integers(0, 6))):
        pair.set_host(host, *draw(hosts(resources)))
        present.add(host)
    kinds = [add_shape(pair, draw(shapes(resources))) for _ in range(draw(st.integers(1, 3)))]
    for group in range(3):
        pair.set_group(group, draw(GROUP_POLICIES), draw(st.integers(1, 2)))
    some_hosts = st.lists(st.integers(0, 7), max_size=4)
    perhaps_hosts = st.one_of(st.none(), some_hosts)
    for _ in range(draw(st.integers(1, 14))):
        match draw(st.sampled_from(OPERATIONS)):
            case "place":
                claim, host = pair.place(
                    draw(st.sampled_from(kinds)), draw(st.integers(-1, 2)), draw(perhaps_hosts), draw(some_hosts),
                    draw(st.sampled_from([0, 0, 1, 1024, 1025, 4096])))
                if claim >= 0:
                    claims.add(claim)
                    assert pair.host_of(claim) == host
                    pair.parts_of(claim)
            case "release" if claims:
                claim = draw(st.sampled_from(sorted(claims)))
                claims.remove(claim)
                pair.release(claim)
            case "extend" if claims:
                pair.extend(draw(st.sampled_from(sorted(claims))), draw(st.sampled_from([0, 900, 3000])))
            case "hold" if present:
                host = draw(st.sampled_from(sorted(present)))
                rows = len(pair.free(host))
                part = st.tuples(st.integers(0, rows - 1), st.tuples(*[small] * resources))
                parts = draw(st.lists(part, min_size=1, max_size=2))
                claims.add(pair.hold(host, parts, draw(st.integers(-1, 2)), draw(st.sampled_from([0, 1500]))))
            case "set_host":
                host = draw(st.integers(0, 7))
                pair.set_host(host, *draw(hosts(resources)))
                present.add(host)
            case "remove_host" if present:
                host = draw(st.sampled_from(sorted(present)))
                if pair.remove_host(host) is None:
                    present.remove(host)
            case "misses":
                kind, group, only, avoid = (draw(some) for some in (st.sampled_from(kinds), st.integers(-1, 2), perhaps_hosts,
                                                                    some_hosts))
                found = pair.misses(kind, group, only, avoid)
                assert found.hosts == len(present)
                claim, _ = pair.place(kind, group, only, avoid)
                assert (claim >= 0) == (found.taking > 0)
                if claim >= 0:
                    pair.release(claim)
            case "copy":
                pair = pair.copy()
            case "set_group":
                pair.set_group(draw(st.integers(0, 2)), draw(GROUP_POLICIES), draw(st.integers(1, 2)))
            case "judge":
                pair.judge(draw(st.sampled_from(kinds)), bytes(draw(st.lists(st.sampled_from([0, 0, 7]), max_size=3))))
            case "now":
                for engine in pair.engines:
                    engine.now = 1100
        for host in present:
            pair.free(host)
            for kind in kinds:
                pair.score(kind, host)


@pytest.mark.parametrize("policy", [reference.PACK, reference.SPREAD, reference.FIRST])
def test_over_many_hosts_the_index_finds_what_a_search_finds(policy):
    """Several levels of minima, and a log that indexes fall behind of."""
    pair, seed = Pair(2), np.random.default_rng(7)
    for host in range(600):
        pair.set_host(host, host % 3, [[int(amount) for amount in seed.integers(4, 40, 2)]])
    kinds = []
    for amounts in ([1, 2], [4, 1], [3, 3]):
        kinds.append(pair.add_shape([amounts], 0, False, [], policy, [1, 2]))
        pair.judge(kinds[-1], b"\0\0\0" if len(kinds) < 3 else b"\0\1\0")
    pair.set_group(0, reference.ANTI_AFFINITY)
    claims = []
    for step in range(500):
        kind = kinds[0] if step % 100 < 90 else kinds[int(seed.integers(3))]
        claim, _ = pair.place(kind, 0 if step % 5 == 0 else -1)
        if claim >= 0:
            claims.append(claim)
        if len(claims) > 50:
            pair.release(claims.pop(int(seed.integers(len(claims)))))


def test_a_group_larger_than_can_be_hidden_one_by_one_is_still_kept():
    pair = Pair(1)
    for host in range(200):
        pair.set_host(host, 0, [[2]])
    kind = pair.add_shape([[1]], 0, False, [], reference.PACK, [1])
    pair.judge(kind, b"\0")
    pair.set_group(0, reference.ANTI_AFFINITY)
    assert [pair.place(kind, 0)[1] for _ in range(201)] == [*range(200), -1]


def test_a_copy_is_planned_on_without_a_trace():
    pair = Pair(1)
    pair.set_host(0, 0, [[3], [1]], [0, 0], [0, 0])
    kind = pair.add_shape([[1], [1]], 2, True, [], reference.PACK, [1])
    pair.judge(kind, b"\0")
    pair.judge_rows(kind, 0, b"\0")
    pair.judge_rows(kind, 1, b"\0")
    first = pair.place(kind)
    twin = pair.copy()
    twin.release(first[0])
    twin.place(kind)
    assert pair.free(0) == [[2], [0]] and pair.place(kind) == (-1, -1)


class TestMany:
    def engine(self, capacity=3, hosts=4):
        engine = _engine.Engine(1)
        for host in range(hosts):
            engine.set_host(host, 0, [[capacity]])
        engine.judge(engine.add_shape([[1]], 0, False, [], reference.PACK, [1]), b"\0")
        return engine

    def test_many_at_once_go_where_one_by_one_they_would(self):
        one, many = self.engine(), self.engine()
        claims = np.empty(14, np.int32)
        assert many.place_many(np.zeros(14, np.int32), np.full(14, -1, np.int32), claims) == 12
        assert [many.host_of(claim) if claim >= 0 else -1 for claim in claims] == [one.place(0)[1] for _ in range(14)]

    def test_all_or_nothing_leaves_no_trace_of_what_does_not_fit_together(self):
        engine, claims = self.engine(), np.empty(13, np.int32)
        assert engine.place_many(np.zeros(13, np.int32), np.full(13, -1, np.int32), claims, True) == 0
        assert (claims == -1).all() and all(engine.free(host) == [[3]] for host in range(4))
        claims = np.empty(12, np.int32)
        assert engine.place_many(np.zeros(12, np.int32), np.full(12, -1, np.int32), claims, True) == 12
        assert all(engine.free(host) == [[0]] for host in range(4))

    def test_a_replay_releases_what_it_placed_once(self):
        engine = self.engine(capacity=1, hosts=2)
        operations = np.array([0, 0, 0, -1, -1, 0], np.int32)
        claims, hosts, taken = np.empty(6, np.int32), np.empty(6, np.int32), np.empty(6, np.int64)
        assert engine.replay(operations, np.full(6, -1, np.int32), claims, hosts, taken) == 3
        assert hosts.tolist() == [0, 1, -1, 0, -1, 0]
        assert [engine.free(host) for host in (0, 1)] == [[[0]], [[0]]]

    @pytest.mark.parametrize("operations", [[-1], [0, -3], [0, -1, -2]])
    def test_a_replay_that_releases_what_is_not_placed_before_is_refused(self, operations):
        groups, claims, hosts = (np.full(len(operations), -1, np.int32) for _ in range(3))
        with pytest.raises(ValueError, match="not placed before"):
            self.engine().replay(np.array(operations, np.int32), groups, claims, hosts)

    def test_what_is_so_already_is_held_even_where_it_does_not_fit(self):
        engine, claims = self.engine(capacity=1, hosts=1), np.empty(2, np.int32)
        engine.hold_many(np.zeros(2, np.int32), np.zeros(2, np.int32), np.full(2, -1, np.int32), claims)
        assert engine.free(0) == [[-1]] and engine.place(0) == (-1, -1)
        engine.release_many(claims)
        assert engine.free(0) == [[1]]


@pytest.mark.parametrize("engine", [_engine.Engine, reference.Engine], ids=["cython", "python"])
class TestBadInput:
    @pytest.mark.parametrize("call, error", [
        (lambda e: e.set_host(0, 0, [[2**40 + 1]]), "outside 0 to"),
        (lambda e: e.set_host(0, 0, [[-1]]), "outside 0 to"),
        (lambda e: e.set_host(0, 0, [[1, 1]]), "classes"),
        (lambda e: e.set_host(-1, 0, [[1]]), "disagree"),
        (lambda e: e.set_host(0, 0, [[1], [1]], [0, 0], [0, 1]), "parent"),
        (lambda e: e.add_shape([[-1]], 0, False, [], 0, [1]), "outside 0 to"),
        (lambda e: e.add_shape([[1]], 0, False, [], 9, [1]), "policy"),
        (lambda e: e.add_shape([[1]], 0, False, [], 0, [101]), "weight"),
        (lambda e: e.add_shape([], 0, False, [], 0, [1]), "1 to 32"),
        (lambda e: e.add_shape([[1]], 1, False, [[1]], 0, [1]), "subtree"),
        (lambda e: e.set_group(0, 4), "policy"),
        (lambda e: e.set_group(0, 0, 0), "fewer than one"),
        (lambda e: e.place(0), "no shape"),
        (lambda e: e.release(0), "no claim"),
        (lambda e: e.remove_host(3), "no host"),
        (lambda e: e.hold(3, [(0, [1])]), "no host"),
    ])
    def test_it_is_refused_with_its_reason(self, engine, call, error):
        with pytest.raises(ValueError, match=error):
            call(engine(1))

    def test_a_host_with_claims_stays_and_its_rows_too(self, engine):
        made = engine(1)
        made.set_host(0, 0, [[1], [2]], [0, 0], [0, 0])
        made.hold(0, [(1, [2])])
        with pytest.raises(ValueError, match="holds claims"):
            made.remove_host(0)
        with pytest.raises(ValueError, match="row that is to go"):
            made.set_host(0, 0, [[1]])
        assert made.free(0) == [[1], [0]]
