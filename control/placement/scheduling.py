"""The servicer of the scheduler's own verbs: many consumers placed or given back in one call, plans made and applied.

What Schedule says it allocated is committed; a dry run answers what it would have said at the same revision.
"""
import asyncio
import functools
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterable

from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Error, Invalid
from control.kernel.fleet import ALLOCATION
from control.kernel.rpc import Call
from control.kernel.store import MAX_OPERATIONS
from control.placement import ledger, portions, turns
from control.placement.asked import MAX_CONSUMERS, MAX_REASONS, Asked, answer_of, asked_of, owner_of
from control.placement.live import LiveFleet
from control.placement.model import uuid_of
from control.placement.planning import Planning
from control.placement.shapes import refusal_of
from control.placement.turns import Turns
from protos.internal.v1.fleet_pb2 import Allocation
from protos.placement.v1 import scheduling_pb2 as pb
from scheduler.numeric import np

#: Requests of one stream at once.
UNDER_WAY = 256


class Scheduling(Planning):
    def __init__(self, database: Database, live: LiveFleet):
        super().__init__(database, live)
        self._db = database
        self._live = live
        self._turns = Turns(database, live)

    async def Schedule(self, request: pb.ScheduleRequest, call: Call) -> pb.ScheduleResponse:
        asked = asked_of(request)
        portions.check_free(self._db, asked.consumers)
        if request.dry_run:
            return self._explained(asked) if request.explain else self._tried(asked)
        owner = owner_of(request, call.caller.project_id, call.caller.user_id)
        named = bool(asked.consumers)
        if not named:
            asked.consumers = [str(uuid.uuid4()) for _ in asked.shape_of]
        answer = await self._turns.place(asked, owner, named)
        if not named and answer.placed:
            answer.consumer_ids.extend(asked.consumers)
        return answer

    async def ScheduleStream(self, requests: AsyncIterator[pb.ScheduleRequest],
                             call: Call) -> AsyncGenerator[pb.ScheduleAnswer, None]:
        under_way: asyncio.Queue[asyncio.Task[pb.ScheduleAnswer] | None] = asyncio.Queue()
        room = asyncio.Semaphore(UNDER_WAY)

        async def read() -> None:
            async for request in requests:
                await room.acquire()
                under_way.put_nowait(asyncio.create_task(self._answered(request, call)))

        reading = asyncio.create_task(read())
        reading.add_done_callback(lambda _: under_way.put_nowait(None))
        try:
            while (answer := await under_way.get()) is not None:
                yield await answer
                room.release()
            reading.result()
        finally:
            for task in (reading, *(under_way.get_nowait() for _ in range(under_way.qsize()))):
                if task is not None:
                    task.cancel()

    async def _answered(self, request: pb.ScheduleRequest, call: Call) -> pb.ScheduleAnswer:
        try:
            return pb.ScheduleAnswer(response=await self.Schedule(request, call))
        except Error as error:
            return pb.ScheduleAnswer(error=pb.ScheduleError(code=error.status.value[0], reason=error.reason, message=str(error)))

    def _explained(self, asked: Asked) -> pb.ScheduleResponse:
        decided = turns.decide(self._live, asked, np.arange(len(asked.shape_of)))
        return answer_of(asked, decided.revision, decided.hosts, decided.refused, decided.choices)

    def _tried(self, asked: Asked) -> pb.ScheduleResponse:
        """A dry run without a name for each consumer's host."""
        hosts = turns.fleet_for(self._live, asked)
        tried = hosts.place_many(asked.shapes, asked.shape_of, asked.group_of, [group.id for group in asked.groups],
                                 all_or_nothing=asked.all_or_nothing, reasons=MAX_REASONS)
        where = tried.hosts.tolist()
        places = {number: place for place, number in enumerate(sorted(set(where) - {-1}))}
        return pb.ScheduleResponse(
            revision=hosts.revision, hosts=[hosts.names[number] for number in places],
            host_of=[places.get(number, -1) for number in where], placed=len(where) - where.count(-1),
            refusals=[refusal_of(why, count, *pair) for pair, (count, why) in tried.refused.items()])


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
