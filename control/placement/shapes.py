"""Shapes, groups and refusals between the scheduling API's words and the scheduler's. Pure: every input has its limit here."""
import functools
from collections.abc import Sequence
from typing import Any

from control.kernel.errors import Invalid
from control.placement.model import MAX_AGGREGATES, MAX_TRAITS, amounts_of, bounded, upper_name
from protos.placement.v1 import scheduling_pb2 as pb
from scheduler import types
from scheduler.types import Choice, Group, Refusal, ServerGroup, Shape, amounts

MAX_ANY_OF = 100


#: Bytes of a shape that is remembered, with what was made of it: a client asks for the same few again and again.
MAX_REMEMBERED = 1024


def shape_of(given: pb.Shape, where: str) -> Shape:
    """Raises Invalid, with `where` in its text."""
    if given.ByteSize() > MAX_REMEMBERED:
        return _shape_of(given, where)
    return _remembered(given.SerializeToString(deterministic=True), where)


@functools.lru_cache(1024)
def _remembered(given: bytes, where: str) -> Shape:
    return _shape_of(pb.Shape.FromString(given), where)


def _shape_of(given: pb.Shape, where: str) -> Shape:
    if not given.amounts and not given.groups:
        raise Invalid("scheduling.shape", f"{where}: a shape asks for amounts or has groups.")
    if len(given.groups) > 32 or len(given.weights) > 100:
        raise Invalid("scheduling.shape", f"{where}: a shape has at most 32 groups and 100 weights.")
    try:
        return Shape(
            amounts(amounts_of(given.amounts, where)) if given.amounts else (), _traits(given.required, where),
            _traits(given.forbidden, where), _any_of(given.any_of, where, MAX_TRAITS),
            bounded(given.zone, "zone") if given.zone else "", _any_of(given.aggregates, where, MAX_AGGREGATES),
            _names(given.not_aggregates, where, MAX_AGGREGATES),
            tuple(Group(amounts(amounts_of(group.amounts, where)), _traits(group.required, where),
                        _traits(group.forbidden, where), _any_of(group.any_of, where, MAX_TRAITS)) for group in given.groups),
            given.isolate, (), given.policy or "pack",
            tuple(sorted((upper_name(name, "resource class"), weight) for name, weight in given.weights.items())))
    except ValueError as error:
        raise Invalid("scheduling.shape", f"{where}: {error}.") from error


def group_of(given: pb.ConsumerGroup, known: ServerGroup | None) -> ServerGroup:
    """A group as it is given, or as it is known. Raises Invalid where the two contradict, or neither has a policy."""
    bounded(given.id, "group id")
    if known is not None and given.policy in ("", known.policy) and given.most in (0, known.most):
        return known
    if known is not None:
        raise Invalid("scheduling.group", f"Server group {given.id} has the policy {known.policy}, {known.most} to a host.")
    try:
        return ServerGroup(given.id, given.policy, given.most or 1)
    except ValueError as error:
        raise Invalid("scheduling.group", f"{error}.") from error


def refusal_of(refusal: Refusal | None, count: int, shape: int = -1, group: int = -1) -> pb.Refusal:
    if refusal is None:
        return pb.Refusal(shape=shape, group=group, count=count, reason="No host takes it.")
    return pb.Refusal(shape=shape, group=group, count=count, reason=refusal.reason(name_hosts=True), nearest=refusal.nearest,
                      ruled_out=refusal.ruled_out, lacks=refusal.lacks, fixes=map(str, refusal.fixes))


def choice_of(choice: Choice | None) -> pb.HostChoice:
    if choice is None:
        return pb.HostChoice()
    second = choice.runner_up
    return pb.HostChoice(candidates=choice.candidates, score=choice.winner.score, policy=choice.policy,
                         runner_up=second.host if second else "", runner_up_score=second.score if second else 0,
                         left_ppm={term.resource: term.left_ppm for term in choice.winner.terms})


def held_of(parts: Sequence[types.Held]) -> dict[str, dict[str, int]]:
    """Amounts by class, by provider."""
    return {part.row: dict(part.amounts) for part in parts if part.amounts}


def _traits(given: Sequence[str], where: str) -> frozenset[str]:
    return frozenset(upper_name(name, "trait") for name in _names(given, where, MAX_TRAITS))


def _names(given: Sequence[str], where: str, most: int) -> frozenset[str]:
    if len(given) > most:
        raise Invalid("scheduling.names", f"{where}: at most {most} names in one place.")
    return frozenset(bounded(name, "a name") for name in given)


def _any_of(given: Sequence[Any], where: str, most: int) -> tuple[frozenset[str], ...]:
    if len(given) > MAX_ANY_OF or any(not some.names for some in given):
        raise Invalid("scheduling.names", f"{where}: at most {MAX_ANY_OF} choices, each with a name.")
    return tuple(_names(some.names, where, most) for some in given)
