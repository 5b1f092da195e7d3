"""Whether a history of creates and deletes of one name could have happened one after another.

The name is there or it is not. Each operation takes effect at one moment between its begin and its end: a create that was OK
found the name free, one that was REFUSED found it taken; a delete the reverse. What is UNKNOWN may have taken effect at any
moment after its begin, or never. So may each earlier try of a delete that was tried again: it has no idempotency key, and a copy
that was held up in the network may arrive when its client has long been answered. The search is Wing and Gong's ("Testing and
Verifying Concurrent Objects", 1993) with Lowe's memory of configurations that were seen; for one bit of state it is quick.
"""
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from tests.chaos.history import Operation, Outcome

#: The name is free, and it is taken.
FREE, TAKEN = False, True


def effects(operation: Operation, state: bool) -> tuple[bool, ...]:
    """The states that an operation may leave when it takes effect in `state`; none where it cannot take effect there."""
    creates = operation.verb == "create"
    before, after = (FREE, TAKEN) if creates else (TAKEN, FREE)
    match operation.outcome:
        case Outcome.OK:
            return (after,) if state is before else ()
        case Outcome.REFUSED:
            return (state,) if state is after else ()
        case Outcome.UNKNOWN:
            return (after,) if state is before else ()                 # without effect it says nothing: it need not be placed
    return (state,)                                                    # FAILED: without effect, at any time


def _tries(operations: Iterable[Operation]) -> Iterator[Operation]:
    """All that may take effect: what a FAILED operation says is nothing, and an earlier try of a delete is one of its own."""
    for each in operations:
        if each.outcome is not Outcome.FAILED:
            yield each
            if each.repeated and each.verb == "delete":
                yield from [replace(each, outcome=Outcome.UNKNOWN, ended=math.inf, tries=1)] * (each.tries - 1)


def explain(operations: Iterable[Operation], start: bool = FREE) -> list[Operation] | None:
    """None where the history is linearizable; else the longest part of it that is, and after that nothing fits.

    An operation without an effect that FAILED says nothing and is passed over.
    """
    ordered = sorted(_tries(operations), key=lambda each: each.began)
    certain = sum(1 << place for place, each in enumerate(ordered) if each.outcome is not Outcome.UNKNOWN)
    longest: tuple[Operation, ...] = ()
    seen: set[tuple[int, bool]] = set()
    stack: list[tuple[int, bool, tuple[int, ...]]] = [(0, start, ())]
    while stack:
        done, state, path = stack.pop()
        if done & certain == certain:
            return None
        if len(path) > len(longest):
            longest = tuple(ordered[place] for place in path)
        for place in _next(ordered, done):
            for after in effects(ordered[place], state):
                step = (done | 1 << place, after)
                if step not in seen:
                    seen.add(step)
                    stack.append((*step, (*path, place)))
    return list(longest)


def _next(ordered: Sequence[Operation], done: int) -> list[int]:
    """The operations that may take effect next: those that began before any other that is not done has ended.

    Of the unknown ones of a verb only the first: one stands for the other, and all their orders would take for ever.
    """
    left = [place for place in range(len(ordered)) if not done >> place & 1]
    bound = min((ordered[place].ended for place in left), default=float("inf"))
    found, unknown = [], set()
    for place in left:
        each = ordered[place]
        if each.began <= bound and not (each.outcome is Outcome.UNKNOWN and each.verb in unknown):
            found.append(place)
            if each.outcome is Outcome.UNKNOWN:
                unknown.add(each.verb)
    return found
