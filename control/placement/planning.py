"""Plans made and applied: what would happen to the fleet, worked out on a copy beside the loop, and done if nothing moved since.

A plan stands on hosts, providers, aggregates and allocations; what else is written does not make it old. Nothing of it is kept.
"""
import asyncio
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from control.kernel import clock, fleet
from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound, Stale
from control.kernel.fleet import AGGREGATE, ALLOCATION, HOST, PROVIDER, USAGE
from control.kernel.rpc import Call
from control.kernel.store import MAX_OPERATIONS
from control.placement import ledger, trees
from control.placement.live import LiveFleet
from control.placement.model import bounded, upper_name
from control.placement.shapes import held_of, refusal_of, shape_of
from protos.internal.v1.fleet_pb2 import Allocation
from protos.placement.v1 import scheduling_pb2 as pb
from scheduler import plans
from scheduler.fleet import Fleet
from scheduler.numeric import np
from scheduler.plans import Plan
from scheduler.types import Host, ServerGroup

MAX_HOSTS, MAX_COUNT, MAX_MOVES, MAX_CLOSED = 10_000, 100_000, 1000, 1000


@dataclass(frozen=True, slots=True)
class _Step:
    """A part of a plan that one commit must hold: operations that it takes, and what writes them; one key of those."""

    cost: int
    write: Callable[[Transaction], None]
    written: tuple[Kind[Any], str]


class Planning:
    """The half of the Scheduling servicer that plans."""

    def __init__(self, database: Database, live: LiveFleet):
        self._db = database
        self._live = live
        self._planning = asyncio.Lock()        # a plan takes a processor; the calls of others go on meanwhile

    async def _plan(self, make: Callable[[Fleet], Plan], *, ratios: Sequence[pb.RatioChange] = ()) -> pb.Plan:
        async with self._planning:
            plan = await asyncio.to_thread(make, self._live.what_if())
        refused: dict[str, pb.Refusal] = {}
        for refusal in plan.refused:
            one = refusal_of(refusal, 0)
            one = refused.setdefault(one.reason, one)
            one.count += 1
            one.consumer_ids.append(refusal.request.id)
        return pb.Plan(
            revision=plan.revision, closed=plan.closed, ratios=ratios, refused=refused.values(), overfull=plan.overfull,
            moves=[pb.Move(consumer_id=move.consumer, source=move.source, target=move.target,
                           server=self._live.is_server(move.consumer)) for move in plan.moves])

    async def PlanDrain(self, request: pb.PlanDrainRequest, call: Call) -> pb.Plan:
        names = set(_hosts(request.hosts))
        if request.aggregate:
            names |= set(self._db.require(AGGREGATE, request.aggregate).hosts)
        if request.zone:
            names |= {host.name for host in self._db.rows(HOST) if fleet.zone_of(self._db, host) == request.zone}
        if not names:
            raise Invalid("plan.hosts", "Name hosts, an aggregate or a zone that has some.")
        self._check_known(names)
        return await self._plan(lambda twin: plans.drain(twin, names))

    async def PlanAdd(self, request: pb.PlanAddRequest, call: Call) -> pb.Plan:
        if not 1 <= request.count <= MAX_COUNT:
            raise Invalid("plan.count", f"count must be 1 to {MAX_COUNT}.")
        if request.HasField("shape") == bool(request.flavor):
            raise Invalid("plan.shape", "Give a shape or a flavor, one of both.")
        shape = self._live.shape_of(request.flavor) if request.flavor else shape_of(request.shape, "shape")
        if shape is None:
            raise NotFound("plan.flavor", f"Flavor {request.flavor[:255]} could not be found.")
        twin, group = self._live.current().copy(), str(uuid.uuid4())
        try:
            members = [ServerGroup(group, request.group_policy)] if request.group_policy else []
        except ValueError as error:
            raise Invalid("plan.group_policy", f"{request.group_policy[:40]!r} is no policy of server groups.") from error
        for member in members:
            twin.set_group(member)
        everyone = np.zeros(request.count, np.int32)
        tried = await asyncio.to_thread(
            lambda: twin.place_many([shape], everyone, everyone if members else None, [group] if members else (), reasons=1))
        hosts, counts = np.unique(tried.hosts[tried.hosts >= 0], return_counts=True)
        return pb.Plan(
            revision=twin.revision,
            placed={twin.names[host]: count for host, count in zip(hosts.tolist(), counts.tolist(), strict=True)},
            refused=[refusal_of(why, count) for count, why in tried.refused.values()])

    async def PlanRatio(self, request: pb.PlanRatioRequest, call: Call) -> pb.Plan:
        change = pb.RatioChange(resource_class=request.resource_class, ratio=request.ratio, hosts=request.hosts)
        if not request.hosts:
            hosts = self._live.current().hosts
            change.hosts.extend(sorted(name for name, host in hosts.items() if _has(host, request.resource_class)))
        self._check_ratio(change)
        if not request.hosts and len(change.hosts) > MAX_HOSTS:
            raise Invalid("plan.hosts", f"{len(change.hosts)} hosts have {request.resource_class}: name {MAX_HOSTS} at most.")
        return await self._plan(lambda twin: plans.change_ratio(twin, change.resource_class, change.ratio, change.hosts),
                                ratios=[change])

    async def PlanBalance(self, request: pb.PlanBalanceRequest, call: Call) -> pb.Plan:
        threshold = request.threshold_ppm if request.HasField("threshold_ppm") else 100_000
        if not 0 <= threshold <= 1_000_000:
            raise Invalid("plan.threshold_ppm", "threshold_ppm must be 0 to 1000000.")
        most = _most_moves(request.most_moves)
        return await self._plan(lambda twin: plans.balance(twin, most_moves=most, threshold_ppm=threshold))

    async def PlanConsolidate(self, request: pb.PlanConsolidateRequest, call: Call) -> pb.Plan:
        most = _most_moves(request.most_moves)
        return await self._plan(lambda twin: plans.consolidate(twin, most_moves=most))

    # Applying

    async def ApplyPlan(self, request: pb.ApplyPlanRequest, call: Call) -> pb.ApplyPlanResponse:
        plan, reason = request.plan, bounded(request.reason or "drained", "reason")
        self._check(plan)
        if servers := [move for move in plan.moves if self._live.is_server(move.consumer_id)]:
            raise Conflict("plan.servers", f"{len(servers)} of the moves are of servers, {servers[0].consumer_id} first: moving "
                                           "a server is a migration, which this call does not do. Leave those moves out.")
        self._check_still(plan.revision)
        async with self._planning:
            moves = await asyncio.to_thread(self._rehearse, self._live.what_if(), plan)
        steps = [self._closing(name, reason) for name in plan.closed]
        steps += [self._ratio(uuid, change) for change in plan.ratios for uuid in self._providers_with(change)]
        steps += moves
        stands = plan.revision
        for done, portion in enumerate(_portions(steps)):
            def decide(tx: Transaction, portion: list[_Step] = portion, stands: int = stands, done: int = done) -> None:
                self._check_still(stands, done)
                for step in portion:
                    step.write(tx)

            await self._db.transact(decide)
            stands = max([stands, *(self._db.cache.at(kind, kind.key(key))[0] for kind, key in
                                    (step.written for step in portion))])
        return pb.ApplyPlanResponse(revision=stands, closed=len(plan.closed), moved=len(plan.moves),
                                    changed=len({host for change in plan.ratios for host in change.hosts}))

    def _check_still(self, revision: int, done: int = 0) -> None:
        """Raise Stale where something that a plan stands on changed after a revision."""
        if self._live.moved > revision:
            raise Stale("plan.moved", f"The world moved at revision {self._live.moved}, after the plan's {revision}"
                                      f"{f'; {done} parts of it are done' if done else ''}: make the plan anew.")

    def _rehearse(self, twin: Fleet, plan: pb.Plan) -> list[_Step]:
        """Do a plan on a copy: the moves of its portions, with what the consumers then hold.

        Raises Stale where it cannot be done, Conflict where only all moves together could, and one commit does not hold them.
        """
        for change in plan.ratios:
            for host in plans.change_ratio(twin, change.resource_class, change.ratio, change.hosts).changed:
                twin.set_host(host)
        moves = [plans.Move(move.consumer_id, move.source, move.target) for move in plan.moves]
        for move in moves:
            if move.consumer not in twin.claims or twin.host_of(move.consumer) != move.source:
                raise Stale("plan.moved", f"Consumer {move.consumer} is not on {move.source}: make the plan anew.")
        for name in plan.closed:
            twin.set_host(replace(twin.hosts[name], closed=twin.hosts[name].closed or "drained"))
        steps = []
        portions = _cut_moves(twin, moves)
        for portion in portions:
            before = {part.row for move in portion for part in twin.held(move.consumer)}
            try:
                plans.apply(twin, Plan(twin.revision, tuple(portion)))
            except plans.Moved as error:
                if len(portions) > 1:
                    raise Conflict("plan.moves", f"These moves fit only together, and are more than one commit holds: {error}. "
                                                 "Plan with fewer moves.") from error
                raise Stale("plan.moved", f"{error}. Make the plan anew.") from error
            held = {move.consumer: held_of(twin.held(move.consumer)) for move in portion}
            after = {uuid for providers in held.values() for uuid in providers}
            steps.append(_Step(len(portion) + 2 * len(before | after), self._moving(held, {move.source for move in portion}),
                               (ALLOCATION, portion[0].consumer)))
        return steps

    def _moving(self, held: dict[str, dict[str, dict[str, int]]], sources: set[str]) -> Callable[[Transaction], None]:
        def write(tx: Transaction) -> None:
            wanted = []
            for consumer, providers in held.items():
                new = tx.require(ALLOCATION, consumer)
                for provider in list(new.providers):
                    known = tx.get(PROVIDER, provider)
                    if known is not None and self._live.host_with(known.root_uuid) in sources:
                        del new.providers[provider]
                for provider, resources in providers.items():
                    new.providers[provider].resources.update(resources)
                wanted.append(Allocation(consumer_uuid=consumer, project_id=new.project_id, user_id=new.user_id,
                                         consumer_type=new.consumer_type, providers=new.providers))
            ledger.replace(tx, wanted)

        return write

    def _closing(self, name: str, reason: str) -> _Step:
        def write(tx: Transaction) -> None:
            host = tx.require(HOST, name)
            if not host.disabled:
                host.disabled, host.disabled_reason = True, reason
                host.updated_at.CopyFrom(clock.now())
                tx.put(HOST, host)

        return _Step(1, write, (HOST, name))

    def _ratio(self, provider_uuid: str, change: pb.RatioChange) -> _Step:
        def write(tx: Transaction) -> None:
            provider = trees.require(tx, provider_uuid)
            if provider.inventories[change.resource_class].allocation_ratio != change.ratio:
                provider.inventories[change.resource_class].allocation_ratio = change.ratio
                tx.guard_unchanged(USAGE, provider_uuid)
                trees.changed(tx, provider)

        return _Step(2, write, (PROVIDER, provider_uuid))

    def _providers_with(self, change: pb.RatioChange) -> list[str]:
        roots = [self._db.require(HOST, name).id for name in change.hosts]
        return [provider.uuid for root in roots for provider in self._db.rows(PROVIDER, "root", root)
                if change.resource_class in provider.inventories]

    def _check(self, plan: pb.Plan) -> None:
        """Raise Invalid or NotFound for what is no plan that can be applied."""
        if len(plan.closed) > MAX_CLOSED or len(plan.moves) > MAX_MOVES or len(plan.ratios) > 100:
            raise Invalid("plan.size", f"A plan closes at most {MAX_CLOSED} hosts, moves {MAX_MOVES} consumers and changes 100 "
                                       "ratios.")
        if plan.placed and not (plan.closed or plan.moves or plan.ratios):
            raise Invalid("plan.placed", "The plan only places new consumers: Schedule does that.")
        if len({move.consumer_id for move in plan.moves}) < len(plan.moves):
            raise Invalid("plan.moves", "The plan moves one consumer twice.")
        self._check_known({*plan.closed, *(name for move in plan.moves for name in (move.source, move.target))})
        for change in plan.ratios:
            self._check_ratio(change)
        if sum(len(change.hosts) for change in plan.ratios) > MAX_HOSTS:
            raise Invalid("plan.hosts", f"A plan changes ratios of at most {MAX_HOSTS} hosts.")

    def _check_ratio(self, change: pb.RatioChange) -> None:
        upper_name(change.resource_class, "resource class")
        if not 0 < change.ratio <= 1e6:
            raise Invalid("plan.ratio", "ratio must be above 0 and at most 1000000.")
        self._check_known(_hosts(change.hosts))
        hosts = self._live.current().hosts
        without = [name for name in change.hosts if not _has(hosts[name], change.resource_class)]
        if not change.hosts or without:
            raise Invalid("plan.resource_class", f"{f'Host {without[0]} has no' if without else 'No host has'} "
                                                 f"{change.resource_class}.")

    def _check_known(self, names: Iterable[str]) -> None:
        known = self._live.current().hosts
        if unknown := sorted(name for name in names if name not in known):
            raise NotFound("plan.host", f"Host {unknown[0][:255]} could not be found, or has no resource provider.")


def _has(host: Host, resource: str) -> bool:
    return any(name == resource for row in host.rows for name, _ in row.inventories)


def _hosts(names: Sequence[str]) -> Sequence[str]:
    if len(names) > MAX_HOSTS:
        raise Invalid("plan.hosts", f"A call names at most {MAX_HOSTS} hosts.")
    return names


def _most_moves(given: int) -> int:
    if not 0 <= given <= MAX_MOVES:
        raise Invalid("plan.most_moves", f"most_moves must be 1 to {MAX_MOVES}.")
    return given or 100


def _portions(steps: Iterable[_Step]) -> list[list[_Step]]:
    """Steps in order, as many to a commit as it holds."""
    cut: list[list[_Step]] = []
    room = 0
    for step in steps:
        if step.cost > room:
            cut.append([])
            room = MAX_OPERATIONS
        cut[-1].append(step)
        room -= step.cost
    return cut


def _cut_moves(hosts: Fleet, moves: Sequence[plans.Move]) -> list[list[plans.Move]]:
    """Moves in order, as many together as one commit surely holds: the rows of a target that it takes are not known before."""
    cut: list[list[plans.Move]] = []
    rows: set[str] = set()
    for move in moves:
        own = {part.row for part in hosts.held(move.consumer)} | {row.name for row in hosts.hosts[move.target].rows}
        if not cut or len(cut[-1]) + 1 + 2 * len(rows | own) > MAX_OPERATIONS:
            cut.append([])
            rows = set()
        cut[-1].append(move)
        rows |= own
    return cut
