"""A Schedule call as it was checked, and what it is answered. Pure: every input has its limit here."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from control.kernel.errors import Invalid
from control.placement.model import bounded, upper_name, uuid_of
from control.placement.shapes import choice_of, refusal_of, shape_of
from protos.placement.v1 import scheduling_pb2 as pb
from scheduler.numeric import Numbers, np
from scheduler.types import Choice, Refusal, Shape

#: Of one call. What is written is answered with names, which a message of 4 MiB must hold.
MAX_CONSUMERS, MAX_WRITTEN, MAX_EXPLAINED = 100_000, 50_000, 1000
MAX_SHAPES, MAX_GROUPS = 1000, 1000

#: Refusals of one answer that are explained; further ones are counted.
MAX_REASONS = 20

#: How many consumers of a shape and group have no host, and why.
Refused = Mapping[tuple[int, int], tuple[int, Refusal | None]]


@dataclass(slots=True)
class Asked:
    """A request, checked as far as it can be without the state. A consumer is a number from 0 on."""

    shapes: Sequence[Shape]
    shape_of: Numbers
    groups: Sequence[pb.ConsumerGroup]
    group_of: Numbers | None
    consumers: list[str]
    all_or_nothing: bool
    explain: bool


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose allocations are."""

    project_id: str
    user_id: str
    consumer_type: str


def asked_of(request: pb.ScheduleRequest) -> Asked:
    """Raises Invalid."""
    count = len(request.shape_of)
    most = MAX_EXPLAINED if request.explain else MAX_CONSUMERS if request.dry_run else MAX_WRITTEN
    if not 1 <= count <= most:
        raise Invalid("scheduling.consumers", f"shape_of: such a call places 1 to {most} consumers, not {count}.")
    if not 1 <= len(request.shapes) <= MAX_SHAPES or len(request.groups) > MAX_GROUPS:
        raise Invalid("scheduling.shapes", f"A call has 1 to {MAX_SHAPES} shapes and at most {MAX_GROUPS} groups.")
    if request.explain and request.all_or_nothing:
        raise Invalid("scheduling.explain", "explain goes with best effort only.")
    shapes = [shape_of(shape, f"shapes[{place}]") for place, shape in enumerate(request.shapes)]
    which = np.array(request.shape_of, np.int64)
    if which.max() >= len(shapes):
        raise Invalid("scheduling.shape_of", f"shape_of: there is no shape {which.max()}, only {len(shapes)}.")
    groups = None
    if request.group_of:
        groups = np.array(request.group_of, np.int64)
        if len(groups) != count or groups.min() < -1 or groups.max() >= len(request.groups):
            raise Invalid("scheduling.group_of", "group_of: it must name a group, or -1, for each consumer.")
        if len({group.id for group in request.groups}) < len(request.groups):
            raise Invalid("scheduling.groups", "groups: two have one id.")
    consumers = [uuid_of(given, "consumer") for given in request.consumer_ids]
    if consumers and (len(consumers) != count or len(set(consumers)) < count):
        raise Invalid("scheduling.consumer_ids", "consumer_ids: there must be one for each consumer, all different, or none.")
    return Asked(shapes, which.astype(np.int32), request.groups, groups.astype(np.int32) if groups is not None else None,
                 consumers, request.all_or_nothing, request.explain)


def owner_of(request: pb.ScheduleRequest, project_id: str, user_id: str) -> Owner:
    """Whose the allocations shall be; the caller's where the request does not say. Raises Invalid."""
    kind = upper_name(request.consumer_type, "consumer_type") if request.consumer_type else ""
    return Owner(bounded(request.project_id or project_id, "project_id"), bounded(request.user_id or user_id, "user_id"), kind)


def answer_of(asked: Asked, revision: int, hosts: Sequence[str], refused: Refused,
              choices: Sequence[Choice | None] = ()) -> pb.ScheduleResponse:
    """An answer: for each consumer the name of its host, "" for none, and with explain why it was taken."""
    table = {host: place for place, host in enumerate(sorted(set(hosts) - {""}))}
    places = [table.get(host, -1) for host in hosts]
    said = [choice_of(choice if host else None) for host, choice in zip(hosts, choices, strict=True)] if asked.explain else ()
    return pb.ScheduleResponse(
        revision=revision, hosts=table, host_of=places, placed=len(places) - places.count(-1), choices=said,
        refusals=[refusal_of(why, many, *pair) for pair, (many, why) in sorted(refused.items(), key=lambda item: item[0])])
