"""The servicer of the scheduler's own verbs: many consumers placed or given back in one call, plans made and applied.

What Schedule says it allocated is committed; a dry run answers what it would have said at the same revision.
"""
import asyncio
import functools
import random
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, TooLarge, Unavailable
from control.kernel.fleet import ALLOCATION
from control.kernel.rpc import Call
from control.kernel.store import MAX_OPERATIONS
from control.placement import ledger, portions
from control.placement.live import ANY, LiveFleet
from control.placement.model import bounded, upper_name, uuid_of
from control.placement.planning import Planning
from control.placement.portions import Want
from control.placement.shapes import choice_of, group_of, held_of, refusal_of, shape_of
from protos.internal.v1.fleet_pb2 import Allocation
from protos.placement.v1 import scheduling_pb2 as pb
from scheduler.fleet import Fleet
from scheduler.numeric import Numbers, np
from scheduler.types import Choice, Held, Placement, Refusal, Request, Shape

#: Of one call. What is written is answered with names, which a message of 4 MiB must hold.
MAX_CONSUMERS, MAX_WRITTEN, MAX_EXPLAINED = 100_000, 50_000, 1000
MAX_SHAPES, MAX_GROUPS = 1000, 1000

#: Refusals of one answer that are explained; further ones are counted.
MAX_REASONS = 20

#: How often what others took meanwhile is chosen anew.
ATTEMPTS = 30


@dataclass(slots=True)
class _Asked:
    """A request, checked as far as it can be without the state."""

    shapes: list[Shape]
    shape_of: Numbers
    groups: Sequence[pb.ConsumerGroup]
    group_of: Numbers | None
    consumers: list[str]
    all_or_nothing: bool
    explain: bool


@dataclass(slots=True)
class _Decided:
    """Where some consumers go: hosts by name and what is held there, in their order; why others have none."""

    revision: int
    hosts: list[str]
    held: Sequence[tuple[Held, ...]]
    refused: dict[tuple[int, int], tuple[int, Refusal | None]]
    choices: list[Choice | None] = field(default_factory=list)


class Scheduling(Planning):
    def __init__(self, database: Database, live: LiveFleet):
        super().__init__(database, live)
        self._db = database
        self._live = live
        self._writing = asyncio.Lock()         # calls decided at once would choose the same best hosts, and all but one lose

    async def Schedule(self, request: pb.ScheduleRequest, call: Call) -> pb.ScheduleResponse:
        asked = _asked(request)
        portions.check_free(self._db, asked.consumers)
        if request.dry_run and not request.explain:
            return self._tried(asked)
        everyone = np.arange(len(asked.shape_of))
        if request.dry_run:
            decided = self._decide(asked, everyone, {})
            return _answer(asked, decided.revision, dict(enumerate(decided.hosts)), decided.refused,
                           dict(enumerate(decided.choices)))
        project, user = request.project_id or call.caller.project_id, request.user_id or call.caller.user_id
        kind = upper_name(request.consumer_type, "consumer_type") if request.consumer_type else ""
        bounded(project, "project_id")
        bounded(user, "user_id")
        made = not asked.consumers
        if made:
            asked.consumers = [str(uuid.uuid4()) for _ in everyone]

        def allocation_of(want: Want) -> Allocation:
            return ledger.allocation(asked.consumers[want.number], project, user, kind, held_of(want.held))

        async with self._writing:
            answer = await self._place(asked, allocation_of)
        if made and answer.placed:
            answer.consumer_ids.extend(asked.consumers)
        return answer

    def _tried(self, asked: _Asked) -> pb.ScheduleResponse:
        """A dry run without a Python object for each consumer."""
        hosts = self._fleet(asked, {})
        tried = hosts.place_many(asked.shapes, asked.shape_of, asked.group_of, [group.id for group in asked.groups],
                                 all_or_nothing=asked.all_or_nothing, reasons=MAX_REASONS)
        taken, place = np.unique(tried.hosts, return_inverse=True)
        first = int(taken[0] < 0)
        return pb.ScheduleResponse(
            revision=hosts.revision, hosts=[hosts.names[number] for number in taken[first:].tolist()],
            host_of=(place - first).tolist(), placed=int((tried.hosts >= 0).sum()),
            refusals=[refusal_of(why, count, *pair) for pair, (count, why) in tried.refused.items()])

    async def _place(self, asked: _Asked, allocation_of: Callable[[Want], Allocation]) -> pb.ScheduleResponse:
        pending, placed = np.arange(len(asked.shape_of)), dict[int, Want]()
        choices: dict[int, Choice | None] = {}
        refused: dict[tuple[int, int], tuple[int, Refusal | None]] = {}
        revision, trouble = self._db.cache.revision, "others took what was chosen, again and again: try once more"
        taken = 0
        for attempt in range(ATTEMPTS):
            if attempt > 2:
                await asyncio.sleep(random.uniform(0, 0.005 * attempt))  # noqa: S311 - spreads retries, no secret
            decided = self._decide(asked, pending, placed)
            for pair, (count, why) in decided.refused.items():
                refused[pair] = refused.get(pair, (0, None))[0] + count, why
            wants = [Want(number, host, held) for number, host, held in
                     zip(pending.tolist(), decided.hosts, decided.held or [()] * len(pending), strict=True) if host]
            choices.update(zip(pending.tolist(), decided.choices, strict=False))
            if asked.all_or_nothing and portions.cost(wants) > MAX_OPERATIONS:
                raise TooLarge("scheduling.size", f"All or nothing is one commit, which holds {MAX_OPERATIONS} records; these "
                                                  f"consumers need {portions.cost(wants)}: ask for fewer, or for best effort.")
            outcome = await portions.commit(self._db, wants, allocation_of, decided.revision)
            placed.update((want.number, want) for want in outcome.written)
            revision = max(revision, outcome.revision)
            pending = np.array(sorted(want.number for want in outcome.again), np.int64)
            if outcome.failure is not None:
                trouble = f"the store does not answer: {outcome.failure}"
                break
            if not len(pending):
                break
            portions.check_free(self._db, [asked.consumers[number] for number in pending.tolist()] if not placed else ())
            held = np.array([self._db.get(ALLOCATION, asked.consumers[number]) is not None for number in pending.tolist()])
            pending, taken = pending[~held], taken + int(held.sum())
        if len(pending) and not placed:
            raise Unavailable("scheduling.contended", trouble)
        answer = _answer(asked, revision, {number: want.host for number, want in placed.items()}, refused, choices)
        if taken:
            answer.refusals.append(pb.Refusal(shape=-1, group=-1, count=taken, reason="It holds an allocation already."))
        if len(pending):
            answer.refusals.append(pb.Refusal(shape=-1, group=-1, count=len(pending), reason=trouble.capitalize() + "."))
        return answer

    def _decide(self, asked: _Asked, numbers: Numbers, placed: dict[int, Want]) -> _Decided:
        hosts = self._fleet(asked, placed)
        names = [group.id for group in asked.groups]
        which, groups = asked.shape_of[numbers], asked.group_of[numbers] if asked.group_of is not None else None
        if asked.explain:
            return _explained(hosts, asked, numbers, names)
        tried = hosts.place_many(asked.shapes, which, groups, names, all_or_nothing=asked.all_or_nothing, held=True,
                                 reasons=MAX_REASONS)
        return _Decided(hosts.revision, [hosts.names[host] if host >= 0 else "" for host in tried.hosts.tolist()], tried.held,
                        dict(tried.refused))

    def _fleet(self, asked: _Asked, placed: dict[int, Want]) -> Fleet:
        """The fleet to choose from: with groups a copy, which has these and those of their members that are placed already."""
        hosts = self._live.current()
        if asked.group_of is None:
            return hosts
        hosts = hosts.copy()
        for given in asked.groups:
            hosts.set_group(group_of(given, hosts.groups.get(given.id)))
        for number, want in placed.items():
            if asked.group_of[number] >= 0:
                consumer = asked.consumers[number]
                hosts.release(consumer)
                hosts.hold(Request(consumer, ANY, asked.groups[asked.group_of[number]].id), want.host, want.held)
        return hosts

    async def Release(self, request: pb.ReleaseRequest, call: Call) -> pb.ReleaseResponse:
        if not 1 <= len(request.consumer_ids) <= MAX_CONSUMERS:
            raise Invalid("scheduling.consumers", f"A call releases 1 to {MAX_CONSUMERS} consumers.")
        consumers = dict.fromkeys(uuid_of(given, "consumer") for given in request.consumer_ids)
        holding = [held for held in (self._db.get(ALLOCATION, consumer) for consumer in consumers) if held is not None]
        if server := next((held for held in holding if self._live.is_server(held.consumer_uuid)), None):
            raise Conflict("scheduling.server", f"Consumer {server.consumer_uuid} is a server: what it holds goes with it. "
                                                "Delete the server, or leave it out.")
        queue = iter(_cut_releases(holding))
        released = 0

        async def work() -> None:
            nonlocal released
            for portion in queue:
                count = await self._db.transact(functools.partial(_release, consumers=portion))
                released += count

        async with asyncio.TaskGroup() as group:
            for _ in range(portions.WINDOW):
                group.create_task(work())
        return pb.ReleaseResponse(released=released)


def _release(tx: Transaction, consumers: Iterable[str]) -> int:
    there = [Allocation(consumer_uuid=consumer) for consumer in consumers if tx.get(ALLOCATION, consumer) is not None]
    ledger.replace(tx, there)
    return len(there)


def _cut_releases(holding: list[Allocation]) -> list[list[str]]:
    """Consumers that one commit can release together, those of one host side by side."""
    cut: list[list[str]] = [[]]
    providers: set[str] = set()
    for held in sorted(holding, key=lambda held: sorted(held.providers)):
        providers |= set(held.providers)
        if len(cut[-1]) + 1 + len(providers) > MAX_OPERATIONS:
            cut.append([])
            providers = set(held.providers)
        cut[-1].append(held.consumer_uuid)
    return [portion for portion in cut if portion]


def _explained(hosts: Fleet, asked: _Asked, numbers: Numbers, names: Sequence[str]) -> _Decided:
    pairs = [(int(asked.shape_of[number]), int(asked.group_of[number]) if asked.group_of is not None else -1)
             for number in numbers.tolist()]
    answers = hosts.dry_run([Request(str(number), asked.shapes[shape], names[group] if group >= 0 else "")
                             for number, (shape, group) in zip(numbers.tolist(), pairs, strict=True)], explain=True)
    refused: dict[tuple[int, int], tuple[int, Refusal | None]] = {}
    for pair, answer in zip(pairs, answers, strict=True):
        if isinstance(answer, Refusal):
            count, why = refused.get(pair, (0, answer))
            refused[pair] = count + 1, why
    placed = [answer if isinstance(answer, Placement) else None for answer in answers]
    return _Decided(hosts.revision, [each.host if each else "" for each in placed],
                    [each.held if each else () for each in placed], refused, [each.choice if each else None for each in placed])


def _answer(asked: _Asked, revision: int, host_of: dict[int, str], refused: dict[tuple[int, int], tuple[int, Refusal | None]],
            choices: dict[int, Choice | None]) -> pb.ScheduleResponse:
    count = len(asked.shape_of)
    table = {host: place for place, host in enumerate(sorted({host for host in host_of.values() if host}))}
    places = [table.get(host_of.get(number, ""), -1) for number in range(count)]
    said = [choice_of(choices.get(number) if places[number] >= 0 else None) for number in range(count)] if asked.explain else ()
    return pb.ScheduleResponse(
        revision=revision, hosts=table, host_of=places, placed=sum(place >= 0 for place in places), choices=said,
        refusals=[refusal_of(why, many, *pair) for pair, (many, why) in refused.items()])


def _asked(request: pb.ScheduleRequest) -> _Asked:
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
    return _Asked(shapes, which.astype(np.int32), request.groups, groups.astype(np.int32) if groups is not None else None,
                  consumers, request.all_or_nothing, request.explain)
