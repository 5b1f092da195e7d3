"""Calls that place, in turns: all that wait are decided in one pass over one state, committed together, and answered each.

Decided at once by themselves they would choose the same best hosts, and all but one would lose. A call sees what those before it
in its turn took; what is wrong with it fails it alone. Calls of several people are not mixed, for the audit journal.
A call has a turn to itself where it has groups, wants reasons, places all or nothing of several, or is large.
"""
import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from control.kernel.acting import Author, acting, author
from control.kernel.database import Database
from control.kernel.errors import Conflict, TooLarge, Unavailable
from control.kernel.fleet import ALLOCATION
from control.kernel.store import MAX_OPERATIONS
from control.placement import ledger, portions
from control.placement.asked import MAX_REASONS, Asked, Owner, Refused, answer_of
from control.placement.live import ANY, LiveFleet
from control.placement.portions import Want
from control.placement.shapes import group_of, held_of
from protos.internal.v1.fleet_pb2 import Allocation
from protos.placement.v1 import scheduling_pb2 as pb
from scheduler.fleet import Fleet
from scheduler.numeric import Numbers, np
from scheduler.types import Choice, Held, Placement, Refusal, Request, Shape

#: How often what others took meanwhile is chosen anew.
ATTEMPTS = 30

#: Consumers that are decided in one turn, where a call does not have more. More make small calls wait longer for each other's
#: commits; fewer have less to share.
TOGETHER = 1000

#: Requests that the journal names of one turn.
MOST_NAMED = 16


@dataclass(slots=True)
class Decided:
    """Where some consumers go: hosts by name and what is held there, in their order; why others have none."""

    revision: int
    hosts: list[str]
    held: Sequence[tuple[Held, ...]]
    refused: Refused
    choices: Sequence[Choice | None] = ()


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call, and how far it is. Its consumers have the numbers from `first` on among those of its turn."""

    asked: Asked
    owner: Owner
    by: Author
    named: frozenset[str]                      # consumers that the caller named
    answer: asyncio.Future[pb.ScheduleResponse]
    first: int = 0
    wants: dict[int, Want] = field(default_factory=dict)           # what is committed
    choices: dict[int, Choice | None] = field(default_factory=dict)
    refused: dict[tuple[int, int], tuple[int, Refusal | None]] = field(default_factory=dict)
    taken: int = 0                             # consumers that were found to hold something already
    pending: int = 0                           # consumers that the last try did not reach

    @property
    def may_share(self) -> bool:
        asked, count = self.asked, len(self.asked.shape_of)
        return asked.group_of is None and not asked.explain and count <= TOGETHER and (count == 1 or not asked.all_or_nothing)

    def refuse(self, pair: tuple[int, int], count: int, why: Refusal | None) -> None:
        self.refused[pair] = self.refused.get(pair, (0, None))[0] + count, why

    def fail(self, error: BaseException) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


def _same_author(one: Author, other: Author) -> bool:
    """Whether two calls are somebody's of whom the journal may tell in one breath."""
    return one._replace(request_id="") == other._replace(request_id="")


class Turns:
    def __init__(self, database: Database, live: LiveFleet):
        self._db = database
        self._live = live
        self._waiting: deque[_Waiting] = deque()
        self._working: asyncio.Task[None] | None = None

    async def place(self, asked: Asked, owner: Owner, named: bool) -> pb.ScheduleResponse:
        """Place and commit. `named`: the caller chose the consumers' ids, so that they may hold something already."""
        one = _Waiting(asked, owner, acting(), frozenset(asked.consumers if named else ()),
                       asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        if self._working is None:
            # By nobody's call in particular: one that is cancelled takes no other with it, and nothing of its context is theirs.
            self._working = asyncio.get_running_loop().create_task(self._work(), context=contextvars.Context())
        return await one.answer

    async def _work(self) -> None:
        calls: list[_Waiting] = []
        try:
            while self._waiting:
                calls = self._next()
                try:
                    await self._turn([one for one in calls if not one.answer.done()])
                except Exception as error:
                    for one in calls:
                        one.fail(error)
        finally:
            self._working = None
            for one in (*calls, *self._waiting):           # nothing, unless this was cancelled
                one.answer.cancel()

    def _next(self) -> list[_Waiting]:
        """The first that waits, and those that may go with it, in order of arrival."""
        calls = [self._waiting.popleft()]
        if not calls[0].may_share:
            return calls
        room, named, left = TOGETHER - len(calls[0].asked.shape_of), set(calls[0].named), deque[_Waiting]()
        while self._waiting:
            one = self._waiting.popleft()
            if (one.may_share and len(one.asked.shape_of) <= room and named.isdisjoint(one.named)
                    and _same_author(one.by, calls[0].by)):
                room -= len(one.asked.shape_of)
                named |= one.named
                calls.append(one)
            else:
                left.append(one)
        self._waiting = left
        return calls

    async def _turn(self, calls: list[_Waiting]) -> None:
        for one in calls:
            try:
                portions.check_free(self._db, one.named)
            except Conflict as error:
                one.fail(error)
        calls = [one for one in calls if not one.answer.done()]
        if not calls:
            return
        author.set(calls[0].by._replace(request_id=" ".join(one.by.request_id for one in calls[:MOST_NAMED])))
        asked, call_of = _joint(calls)
        revision, trouble = await self._place(asked, calls, call_of)
        for one in calls:
            if not one.answer.done():
                _finish(one, revision, trouble)

    async def _place(self, asked: Asked, calls: list[_Waiting], call_of: Sequence[_Waiting]) -> tuple[int, str]:
        """Decide and commit until nobody is left; at which revision, and what kept those that are."""
        def allocation_of(want: Want) -> Allocation:
            owner = call_of[want.number].owner
            return ledger.allocation(asked.consumers[want.number], owner.project_id, owner.user_id, owner.consumer_type,
                                     held_of(want.held))

        pending, revision = np.arange(len(asked.shape_of)), self._db.cache.revision
        trouble = "others took what was chosen, again and again: try once more"
        for attempt in range(ATTEMPTS):
            if attempt > 2:
                await asyncio.sleep(random.uniform(0, 0.005 * attempt))  # noqa: S311 - spreads retries, no secret
            decided = decide(self._live, asked, pending, calls, MAX_REASONS * len(calls))
            wants = _note(asked, calls, call_of, pending.tolist(), decided)
            if asked.all_or_nothing and portions.cost(wants) > MAX_OPERATIONS:
                raise TooLarge("scheduling.size", f"All or nothing is one commit, which holds {MAX_OPERATIONS} records; these "
                                                  f"consumers need {portions.cost(wants)}: ask for fewer, or for best effort.")
            outcome = await portions.commit(self._db, wants, allocation_of, decided.revision)
            for want in outcome.written:
                call_of[want.number].wants[want.number] = want
            revision = max(revision, outcome.revision)
            again = sorted(want.number for want in outcome.again)
            if outcome.failure is not None:
                trouble = f"the store does not answer: {outcome.failure}"
            else:
                again = self._free(asked, call_of, again)
            pending = np.array(again, np.int64)
            if outcome.failure is not None or not again:
                break
        for number in pending.tolist():
            call_of[number].pending += 1
        return revision, trouble

    def _free(self, asked: Asked, call_of: Sequence[_Waiting], numbers: list[int]) -> list[int]:
        """Those that hold nothing by now. A call that has placed none yet fails where one of its does."""
        left = []
        for number in numbers:
            one = call_of[number]
            if self._db.get(ALLOCATION, asked.consumers[number]) is None:
                left.append(number)
            elif one.wants:
                one.taken += 1
            else:
                one.fail(portions.holding(asked.consumers[number]))
        return [number for number in left if not call_of[number].answer.done()]


def decide(live: LiveFleet, asked: Asked, numbers: Numbers, calls: Sequence[_Waiting] = (),
           reasons: int = MAX_REASONS) -> Decided:
    """Where some of the consumers would go from the present state; `calls` know those of them that are placed already."""
    hosts = fleet_for(live, asked, calls)
    names = [group.id for group in asked.groups]
    which, groups = asked.shape_of[numbers], asked.group_of[numbers] if asked.group_of is not None else None
    if asked.explain:
        return _explained(hosts, asked, numbers, names)
    tried = hosts.place_many(asked.shapes, which, groups, names, all_or_nothing=asked.all_or_nothing, held=True, reasons=reasons)
    return Decided(hosts.revision, [hosts.names[host] if host >= 0 else "" for host in tried.hosts.tolist()], tried.held,
                   tried.refused)


def fleet_for(live: LiveFleet, asked: Asked, calls: Sequence[_Waiting] = ()) -> Fleet:
    """The fleet to choose from: with groups a copy, which has these and those of their members that are placed already."""
    hosts = live.current()
    if asked.group_of is None:
        return hosts
    hosts = hosts.copy()
    for given in asked.groups:
        hosts.set_group(group_of(given, hosts.groups.get(given.id)))
    for number, want in ((number, want) for one in calls for number, want in one.wants.items()):
        if asked.group_of[number] >= 0:
            consumer = asked.consumers[number]
            hosts.release(consumer)
            hosts.hold(Request(consumer, ANY, asked.groups[asked.group_of[number]].id), want.host, want.held)
    return hosts


def _explained(hosts: Fleet, asked: Asked, numbers: Numbers, names: Sequence[str]) -> Decided:
    pairs = [_pair(asked, number) for number in numbers.tolist()]
    answers = hosts.dry_run([Request(str(number), asked.shapes[shape], names[group] if group >= 0 else "")
                             for number, (shape, group) in zip(numbers.tolist(), pairs, strict=True)], explain=True)
    refused: dict[tuple[int, int], tuple[int, Refusal | None]] = {}
    for pair, answer in zip(pairs, answers, strict=True):
        if isinstance(answer, Refusal):
            count, why = refused.get(pair, (0, answer))
            refused[pair] = count + 1, why
    placed = [answer if isinstance(answer, Placement) else None for answer in answers]
    return Decided(hosts.revision, [each.host if each else "" for each in placed],
                   [each.held if each else () for each in placed], refused, [each.choice if each else None for each in placed])


def _pair(asked: Asked, number: int) -> tuple[int, int]:
    return int(asked.shape_of[number]), int(asked.group_of[number]) if asked.group_of is not None else -1


def _joint(calls: Sequence[_Waiting]) -> tuple[Asked, Sequence[_Waiting]]:
    """One request of all calls' consumers, and whose each is."""
    if len(calls) == 1:
        return calls[0].asked, [calls[0]] * len(calls[0].asked.shape_of)
    shapes: dict[Shape, int] = {}
    which: list[int] = []
    consumers: list[str] = []
    call_of: list[_Waiting] = []
    for one in calls:
        one.first = len(which)
        which += [shapes.setdefault(one.asked.shapes[shape], len(shapes)) for shape in one.asked.shape_of.tolist()]
        consumers += one.asked.consumers
        call_of += [one] * len(one.asked.consumers)
    return Asked(list(shapes), np.array(which, np.int32), (), None, consumers, False, False), call_of


def _note(asked: Asked, calls: Sequence[_Waiting], call_of: Sequence[_Waiting], numbers: list[int],
          decided: Decided) -> list[Want]:
    """What was decided, noted with each call; what is to be committed of it."""
    for number, choice in zip(numbers, decided.choices, strict=False):
        call_of[number].choices[number] = choice
    if len(calls) == 1:
        for pair, (count, why) in decided.refused.items():
            calls[0].refuse(pair, count, why)
    elif decided.refused:
        for number, host in zip(numbers, decided.hosts, strict=True):
            if not host:
                one = call_of[number]
                one.refuse(_pair(one.asked, number - one.first), 1, decided.refused[_pair(asked, number)][1])
    return [Want(number, host, held) for number, host, held in
            zip(numbers, decided.hosts, decided.held or [()] * len(numbers), strict=True) if host]


def _finish(one: _Waiting, revision: int, trouble: str) -> None:
    """Answer a call whose turn is over."""
    if one.pending and not one.wants:
        return one.fail(Unavailable("scheduling.contended", trouble))
    numbers = range(one.first, one.first + len(one.asked.shape_of))
    hosts = [one.wants[number].host if number in one.wants else "" for number in numbers]
    answer = answer_of(one.asked, revision, hosts, one.refused,
                       [one.choices.get(number) for number in numbers] if one.asked.explain else ())
    if one.taken:
        answer.refusals.append(pb.Refusal(shape=-1, group=-1, count=one.taken, reason="It holds an allocation already."))
    if one.pending:
        answer.refusals.append(pb.Refusal(shape=-1, group=-1, count=one.pending, reason=trouble.capitalize() + "."))
    one.answer.set_result(answer)
