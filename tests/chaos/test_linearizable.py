"""The judge of histories is right about those that are known to be possible, and about those that are not."""
import itertools
import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.history import History, Operation, Outcome, read
from tests.chaos.linearizable import FREE, effects, explain


def op(verb: str, began: float, ended: float, outcome: Outcome = Outcome.OK, tries: int = 1) -> Operation:
    return Operation("c", verb, "name", began, ended, outcome, tries=tries)


def test_one_after_another_is_possible():
    assert explain([op("create", 0, 1), op("delete", 2, 3), op("create", 4, 5)]) is None


def test_two_creates_that_both_succeed_without_a_delete_between_are_not():
    assert explain([op("create", 0, 3), op("create", 1, 2)]) is not None


def test_of_two_creates_at_once_one_may_be_refused():
    assert explain([op("create", 0, 3), op("create", 1, 2, Outcome.REFUSED)]) is None


def test_a_create_that_is_refused_where_nothing_was_ever_there_is_not_possible():
    assert explain([op("create", 0, 1, Outcome.REFUSED)]) is not None


def test_a_delete_that_finds_nothing_after_a_create_ended_is_not_possible():
    assert explain([op("create", 0, 1), op("delete", 2, 3, Outcome.REFUSED)]) is not None


def test_a_delete_that_was_repeated_may_be_told_that_nothing_is_there():
    assert explain([op("create", 0, 1), op("delete", 2, 3, Outcome.REFUSED, tries=2), op("create", 4, 5)]) is None


def test_an_earlier_try_of_a_delete_may_arrive_after_its_client_was_answered():
    made, again = op("create", 0, 1), op("create", 8, 9)
    assert explain([made, op("delete", 2, 3, tries=2), op("create", 4, 5), again]) is None
    assert explain([made, op("delete", 2, 3, tries=2), op("create", 4, 5), again, op("create", 10, 11)]) is not None, "once"
    assert explain([made, op("delete", 2, 3, tries=3), op("create", 4, 5), again, op("create", 10, 11)]) is None
    assert explain([made, op("delete", 2, 3), op("create", 4, 5), again]) is not None
    assert explain([made, op("create", 4, 5, tries=2), again]) is not None, "a create has a key"


def test_an_unknown_create_may_take_effect_late_or_never():
    unknown = op("create", 0, math.inf, Outcome.UNKNOWN)
    assert explain([unknown, op("create", 5, 6), op("delete", 7, 8)]) is None
    assert explain([unknown, op("create", 5, 6, Outcome.REFUSED)]) is None
    assert explain([op("create", 5, 6, Outcome.REFUSED), op("create", 7, math.inf, Outcome.UNKNOWN)]) is not None


def test_the_part_that_is_possible_is_told():
    first, second, lost = op("create", 0, 1), op("delete", 2, 3), op("delete", 4, 5)
    assert explain([first, second, lost]) == [first, second]


def test_a_long_history_of_many_clients_is_judged_quickly():
    """A thousand operations of six clients at once on a name that behaves."""
    assert explain(_behaved(random.Random(7), 1000, 6)) is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["create", "delete"]), st.integers(0, 6), st.integers(0, 4),
                          st.sampled_from([Outcome.OK, Outcome.REFUSED, Outcome.UNKNOWN])), max_size=5))
def test_it_agrees_with_trying_every_order(drawn):
    operations = [op(verb, began, math.inf if outcome is Outcome.UNKNOWN else began + length, outcome)
                  for verb, began, length, outcome in drawn]
    assert (explain(operations) is None) == any(map(_possible, _orders(operations)))


def test_a_history_that_was_written_is_read_again(tmp_path):
    file = tmp_path / "history"
    with file.open("w") as lines:
        history = History(lines)
        history.add(op("create", 0.5, 1))
        history.add(op("delete", 2, math.inf, Outcome.UNKNOWN, tries=3))
    assert list(read(file)) == list(history)


def _orders(operations: list[Operation]):
    """Every order of every choice of the unknown ones."""
    unknown = [each for each in operations if each.outcome is Outcome.UNKNOWN]
    for count in range(len(unknown) + 1):
        for left_out in itertools.combinations(range(len(unknown)), count):
            dropped = [unknown[place] for place in left_out]
            yield from itertools.permutations([each for each in operations if not any(each is one for one in dropped)])


def _possible(order: tuple[Operation, ...]) -> bool:
    if any(later.ended < earlier.began for earlier, later in itertools.combinations(order, 2)):
        return False
    state = FREE
    for operation in order:
        left = effects(operation, state)
        if not left:
            return False
        state = left[0]
    return True


def _behaved(rng: random.Random, count: int, clients: int) -> list[Operation]:
    """A history that a true name gave: each operation takes effect at a moment, and its begin and end lie around that."""
    state, operations, free_at = FREE, [], [0.0] * clients
    for moment in range(1, count + 1):
        client = min(range(clients), key=free_at.__getitem__)
        began = max(free_at[client], moment - rng.random() * 3)
        verb = rng.choice(["create", "delete"])
        ok = (verb == "create") is (state is FREE)
        if ok:
            state = not state
        ended = moment + rng.random() * 3
        free_at[client] = ended
        operations.append(op(verb, min(began, moment), ended, Outcome.OK if ok else Outcome.REFUSED))
    return operations
