"""Many allocations in as few commits as they need: cut so that what a host gives is in one commit, written beside one another.

Each commit is whole, and compares all that its part of the decision stood on; what others changed meanwhile is handed back to be
decided anew.
"""
import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from control.kernel import fleet
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Stale, Unavailable
from control.kernel.fleet import AGGREGATE_SEQUENCE, ALLOCATION, HOST, PROVIDER, USAGE
from control.kernel.store import MAX_OPERATIONS
from control.placement import ledger
from protos.internal.v1.fleet_pb2 import Allocation
from scheduler.types import Held

#: Commits on their way at once. Fewer leave the store idle; more make others' calls wait behind them.
WINDOW = 16

#: Operations of a commit beside allocations and what they are of: the aggregates are compared.
_FIXED = 1


@dataclass(frozen=True, slots=True)
class Want:
    """What one consumer shall hold; `number` is its place in the request."""

    number: int
    host: str
    held: Sequence[Held]

    @property
    def providers(self) -> list[str]:
        return [part.row for part in self.held if part.amounts]


@dataclass(slots=True)
class Outcome:
    """What was committed, at which revision last, and what is to be decided anew. `failure`: the store did not answer."""

    written: list[Want] = field(default_factory=list)
    again: list[Want] = field(default_factory=list)
    revision: int = 0
    failure: Unavailable | None = None


def cost(wants: Iterable[Want]) -> int:
    """Operations of a commit of all of them: an allocation each, and of each provider its usage and a comparison."""
    wants = list(wants)
    return _FIXED + len(wants) + 2 * len({uuid for want in wants for uuid in want.providers})


def cut(wants: Sequence[Want]) -> list[list[list[Want]]]:
    """Portions that each fit one commit, in waves: those of one wave have no provider in common."""
    by_host: dict[str, list[Want]] = {}
    for want in wants:
        by_host.setdefault(want.host, []).append(want)
    waves: list[list[list[Want]]] = [[[]]]
    room = MAX_OPERATIONS - _FIXED
    for of_host in by_host.values():
        for late, piece in enumerate(_pieces(of_host)):
            if late >= len(waves):
                waves.append([])
            if late:
                waves[late].append(piece)
                continue
            needs = cost(piece) - _FIXED
            if needs > room:
                waves[0].append([])
                room = MAX_OPERATIONS - _FIXED
            waves[0][-1].extend(piece)
            room -= needs
    return waves


def _pieces(wants: list[Want]) -> list[list[Want]]:
    pieces: list[list[Want]] = [[]]
    providers: set[str] = set()
    for want in wants:
        own = set(want.providers)
        if _FIXED + len(pieces[-1]) + 1 + 2 * len(providers | own) > MAX_OPERATIONS:
            pieces.append([])
            providers = set()
        pieces[-1].append(want)
        providers |= own
    return pieces


async def commit(database: Database, wants: Sequence[Want], allocation_of: Callable[[Want], Allocation], read_at: int) -> Outcome:
    """Write what was decided on the state at a revision. Waits until this replica's reads show it.

    A consumer that holds something already is left as it is, and handed back. Raises Unavailable where the cache does not follow.
    """
    database.apart()
    outcome, own = Outcome(revision=read_at), dict[str, int]()
    seen = read_at

    async def one(portion: list[Want]) -> None:
        nonlocal seen
        if outcome.failure is not None or not _stands(database, portion, read_at, own):
            outcome.again += portion
            return
        transaction, allocations = Transaction(database.cache), [allocation_of(want) for want in portion]
        if any(database.get(ALLOCATION, allocation.consumer_uuid) is not None for allocation in allocations):
            outcome.again += portion
            return
        ledger.replace(transaction, allocations, checked=False)
        fleet.guard_aggregates(transaction)
        writes, guards = transaction.writes()
        try:
            revision = await database.store.commit(*writes, guards=guards)
        except Stale as stale:
            seen = max(seen, stale.revision)
            outcome.again += portion
        except Unavailable as error:
            outcome.failure = error
            outcome.again += portion
        else:
            outcome.written += portion
            own.update((uuid, revision) for want in portion for uuid in want.providers)
            outcome.revision = max(outcome.revision, revision)

    for wave in cut(wants):
        queue = iter(wave)

        async def work(queue=queue) -> None:
            for portion in queue:
                if portion:
                    await one(portion)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(WINDOW, len(wave))):
                group.create_task(work())
        await database.cache.wait(max(seen, outcome.revision))
    return outcome


def check_free(database: Database, consumers: Iterable[str]) -> None:
    """Raise Conflict where a consumer holds something already."""
    for consumer in consumers:
        if database.get(ALLOCATION, consumer) is not None:
            raise holding(consumer)


def holding(consumer: str) -> Conflict:
    return Conflict("scheduling.consumer", f"Consumer {consumer} holds an allocation already: release it first.")


def _stands(database: Database, portion: Iterable[Want], read_at: int, own: dict[str, int]) -> bool:
    """Whether all that a portion was decided on is as it was: what this call wrote itself is no news."""
    cache = database.cache
    if cache.at(AGGREGATE_SEQUENCE, AGGREGATE_SEQUENCE.key("last"))[0] > read_at:
        return False
    for host in {want.host for want in portion}:
        record = database.get(HOST, host)
        if record is None or (cache.at(HOST, HOST.key(host))[0] > read_at and (record.disabled or not record.up)):
            return False
    for uuid in {uuid for want in portion for uuid in want.providers}:
        used = cache.at(USAGE, USAGE.key(uuid))[0]
        if cache.at(PROVIDER, PROVIDER.key(uuid))[0] > read_at or (used > read_at and used != own.get(uuid)):
            return False
    return True
