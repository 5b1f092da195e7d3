"""Many are placed in a call as a dry run says; what is held adds up after everything; plans come true, or are refused."""
import asyncio
import contextlib
import random
import uuid

import grpc
import pytest

from control.kernel import fleet, rpc
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Conflict, Invalid, NotFound, Stale, TooLarge, Unavailable
from control.kernel.fleet import ALLOCATION, HOST, PROVIDER, USAGE
from control.kernel.rpc import Call, Dispatcher
from control.kernel.store import MAX_OPERATIONS, MemoryStore
from control.placement import ledger, portions, service
from control.placement.live import LiveFleet
from control.placement.neighbours import NoServers
from control.placement.portions import Want
from control.placement.scheduling import Scheduling
from protos.internal.v1.fleet_pb2 import HostAggregate, HostRecord, Provider, ProviderInventory, ProviderName
from protos.placement.v1 import scheduling_pb2 as pb
from protos.placement.v1 import scheduling_pb2_grpc
from scheduler.types import Held, Request, Shape
from tests.placement.conftest import Tokens

CALL = Call(caller_or_none=Caller(user_id="u", project_id="p", roles=frozenset({"admin"})))


@contextlib.asynccontextmanager
async def running(store: MemoryStore):
    database = Database(store, fleet.KINDS)
    task = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    try:
        yield database
    finally:
        task.cancel()


@pytest.fixture
async def database():
    async with running(MemoryStore()) as one:
        yield one


@pytest.fixture
def scheduling(database: Database) -> Scheduling:
    return Scheduling(database, LiveFleet(database, NoServers()))


async def add_host(database: Database, name: str, *, parts: int = 0, traits=(), **totals: int) -> str:
    """A host with inventories by class; `parts` rows below it have a CUSTOM_GPU each."""
    root = str(uuid.uuid4())

    def provider(tx, uuid: str, called: str, parent: str, stocks: dict[str, int]) -> None:
        made = Provider(uuid=uuid, name=called, parent_uuid=parent, root_uuid=root, traits=sorted(traits), generation=1)
        for resource, total in stocks.items():
            made.inventories[resource].CopyFrom(ProviderInventory(
                total=total, min_unit=1, max_unit=total, step_size=1, allocation_ratio=1.0))
        tx.put(PROVIDER, made)
        tx.put(fleet.PROVIDER_NAME, ProviderName(name=called, uuid=uuid))

    def decide(tx) -> None:
        tx.put(HOST, HostRecord(name=name, id=root, up=True))
        provider(tx, root, name, "", totals)
        for part in range(parts):
            provider(tx, str(uuid.uuid4()), f"{name}-{part}", root, {"CUSTOM_GPU": 1})

    await database.transact(decide)
    return root


def vcpus(amount: int, **more) -> pb.Shape:
    return pb.Shape(amounts={"VCPU": amount}, **more)


def where(answer: pb.ScheduleResponse) -> list[str]:
    return [answer.hosts[place] if place >= 0 else "" for place in answer.host_of]


def check_books(database: Database) -> None:
    """A usage is the sum of its allocations, and none is over capacity."""
    used: dict[str, dict[str, int]] = {}
    for held in database.rows(ALLOCATION):
        for provider, amounts in held.providers.items():
            for name, amount in amounts.resources.items():
                used.setdefault(provider, {})[name] = used.get(provider, {}).get(name, 0) + amount
    assert {usage.provider_uuid: dict(usage.used) for usage in database.rows(USAGE) if usage.used} == used
    for provider in database.rows(PROVIDER):
        for name, amount in used.get(provider.uuid, {}).items():
            assert amount <= provider.inventories[name].total


def homes(database: Database) -> dict[str, str]:
    names = {provider.uuid: database.require(PROVIDER, provider.root_uuid).name for provider in database.rows(PROVIDER)}
    return {held.consumer_uuid: names[next(iter(held.providers))] for held in database.rows(ALLOCATION)}


@pytest.mark.parametrize("seed", range(12))
async def test_what_is_placed_is_what_the_dry_run_said(database, scheduling, seed):
    draw = random.Random(seed)
    for number in range(draw.randint(1, 6)):
        await add_host(database, f"h{number}", parts=draw.choice([0, 0, 2]), traits=draw.choice([[], ["CUSTOM_A"]]),
                       VCPU=draw.choice([4, 8, 300]), MEMORY_MB=64)
    shapes = [vcpus(1), vcpus(3, policy="spread"), vcpus(2, required=["CUSTOM_A"]),
              pb.Shape(amounts={"VCPU": 1}, groups=[pb.ShapeGroup(amounts={"CUSTOM_GPU": 1})] * 2, isolate=True)]
    groups = [pb.ConsumerGroup(id="g", policy="anti-affinity"), pb.ConsumerGroup(id="s", policy="soft-affinity")]
    for count in (draw.randint(1, 30), draw.randint(100, 400)):
        request = pb.ScheduleRequest(shapes=shapes, shape_of=draw.choices(range(4), k=count), dry_run=True)
        if draw.random() < 0.6:
            request.groups.extend(groups)
            request.group_of.extend(draw.choices([-1, -1, 0, 1], k=count))
        before = database.cache.revision
        dry = await scheduling.Schedule(request, CALL)
        explained = pb.ScheduleRequest()
        explained.CopyFrom(request)
        explained.explain = True
        assert where(await scheduling.Schedule(explained, CALL)) == where(dry)
        assert database.cache.revision == dry.revision == before
        request.dry_run = False
        real = await scheduling.Schedule(request, CALL)
        assert where(real) == where(dry) and real.placed == dry.placed
        assert sum(refusal.count for refusal in real.refusals) == count - real.placed
        assert list(real.refusals) == list(dry.refusals)
        held = homes(database)
        assert [held.get(consumer, "") for consumer in real.consumer_ids] == (where(real) if real.placed else [])
        check_books(database)
    everyone = list(homes(database))
    if everyone:
        assert (await scheduling.Release(pb.ReleaseRequest(consumer_ids=everyone), CALL)).released == len(everyone)
        assert (await scheduling.Release(pb.ReleaseRequest(consumer_ids=everyone), CALL)).released == 0
    assert not database.rows(ALLOCATION)
    check_books(database)


async def test_all_or_nothing_leaves_no_trace_where_one_does_not_fit(database, scheduling):
    await add_host(database, "a", VCPU=4)
    before = database.cache.revision
    request = pb.ScheduleRequest(shapes=[vcpus(1), vcpus(3)], shape_of=[0, 0, 1], all_or_nothing=True)
    answer = await scheduling.Schedule(request, CALL)
    assert where(answer) == ["", "", ""] and answer.placed == 0 and not answer.consumer_ids
    [refusal] = answer.refusals
    assert refusal.shape == 0 and refusal.count == 1 and "vCPU" in refusal.reason   # the largest is tried first
    assert database.cache.revision == before
    del request.shape_of[:]
    request.shape_of.extend([0, 1])
    assert where(await scheduling.Schedule(request, CALL)) == ["a", "a"]
    check_books(database)


async def test_all_or_nothing_beyond_one_commit_is_refused_with_the_limit(database, scheduling):
    await add_host(database, "a", VCPU=1000)
    with pytest.raises(TooLarge, match=f"holds {MAX_OPERATIONS} records"):
        await scheduling.Schedule(pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0] * 200, all_or_nothing=True), CALL)
    assert not database.rows(ALLOCATION)


async def test_what_another_takes_meanwhile_is_chosen_anew(database, scheduling):
    roots = [await add_host(database, name, VCPU=200) for name in "ab"]
    commit, once = database.store.commit, []

    async def interfering(*writes, guards=()):
        if not once:
            once.append(True)
            await Database(database.store, fleet.KINDS).store.commit()
            other = Scheduling(database, LiveFleet(database, NoServers()))
            assert where(await other.Schedule(pb.ScheduleRequest(shapes=[vcpus(150)], shape_of=[0]), CALL)) == ["a"]
        return await commit(*writes, guards=guards)

    database.store.commit = interfering
    answer = await scheduling.Schedule(pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0] * 240), CALL)
    assert answer.placed == 240 and {name: where(answer).count(name) for name in "ab"}.keys() == {"a", "b"}
    assert database.require(USAGE, roots[0]).used["VCPU"] <= 200
    check_books(database)


async def test_a_hundred_calls_at_once_all_place(database, scheduling):
    await add_host(database, "a", VCPU=200)
    await add_host(database, "b", VCPU=200)
    request = pb.ScheduleRequest(shapes=[vcpus(2, policy="spread")], shape_of=[0])
    answers = await asyncio.gather(*(scheduling.Schedule(request, CALL) for _ in range(100)))
    assert sorted(where(answer)[0] for answer in answers) == ["a"] * 50 + ["b"] * 50
    check_books(database)


async def test_calls_that_wait_are_decided_together_and_answered_each(database, scheduling):
    roots = [await add_host(database, name, VCPU=8) for name in "ab"]
    turns, turn = [], scheduling._turns._turn

    async def counted(calls):
        turns.append(len(calls))
        await turn(calls)

    scheduling._turns._turn = counted
    requests = [pb.ScheduleRequest(shapes=[vcpus(1), vcpus(3), vcpus(100)], shape_of=[0, 1], project_id=f"p{number}",
                                   consumer_type=f"T{number}") for number in range(3)]
    requests.append(pb.ScheduleRequest(shapes=[vcpus(1, required=["CUSTOM_A"]), vcpus(1)], shape_of=[0, 1, 0]))
    answers = await asyncio.gather(*(scheduling.Schedule(request, CALL) for request in requests))
    assert turns == [4]
    for number, answer in enumerate(answers[:3]):
        assert answer.placed == 2 and not answer.refusals and answer.revision == database.cache.revision
        for consumer, host in zip(answer.consumer_ids, where(answer), strict=True):
            held = database.require(ALLOCATION, consumer)
            assert (held.project_id, held.consumer_type) == (f"p{number}", f"T{number}") and homes(database)[consumer] == host
    assert list(answers[3].host_of).count(-1) == 2 and answers[3].placed == 1
    [refusal] = answers[3].refusals
    assert (refusal.shape, refusal.group, refusal.count) == (0, -1, 2) and "trait" in refusal.reason
    assert sum(database.require(USAGE, root).used["VCPU"] for root in roots) == 13
    check_books(database)


async def test_what_is_wrong_with_a_call_fails_it_alone(database, scheduling):
    await add_host(database, "a", VCPU=100)
    name = str(uuid.uuid4())
    one, named = pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0]), pb.ScheduleRequest(
        shapes=[vcpus(2)], shape_of=[0], consumer_ids=[name])
    requests = [one, named, pb.ScheduleRequest(shapes=[vcpus(1, policy="x")], shape_of=[0]), named, one,
                pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0] * 2, all_or_nothing=True,
                                   groups=[pb.ConsumerGroup(id="g", policy="anti-affinity")], group_of=[0, 0]),
                pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0], groups=[pb.ConsumerGroup(id="g", policy="o")], group_of=[0]),
                one]
    answers = await asyncio.gather(*(scheduling.Schedule(request, CALL) for request in requests), return_exceptions=True)
    assert [getattr(answer, "placed", type(answer)) for answer in answers] == [1, 1, Invalid, Conflict, 1, 0, Invalid, 1]
    assert len(database.rows(ALLOCATION)) == 4 and name in homes(database)
    check_books(database)


async def test_a_cancelled_call_takes_no_other_with_it(database, scheduling):
    await add_host(database, "a", VCPU=100)
    commit, going = database.store.commit, asyncio.Event()

    async def slow(*writes, guards=()):
        going.set()
        await asyncio.sleep(0.05)
        return await commit(*writes, guards=guards)

    database.store.commit = slow
    request = pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0])
    calls = [asyncio.create_task(scheduling.Schedule(request, CALL)) for _ in range(3)]
    await going.wait()
    calls += [asyncio.create_task(scheduling.Schedule(request, CALL)) for _ in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()          # on its way to the store
    calls[3].cancel()          # still waiting
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [isinstance(answer, asyncio.CancelledError) for answer in answers] == [True, False, False, True, False, False]
    assert all(answer.placed == 1 for answer in answers if not isinstance(answer, BaseException))
    assert len(database.rows(ALLOCATION)) == 5
    check_books(database)


@pytest.mark.parametrize("seed", range(8))
async def test_calls_at_once_never_take_more_than_there_is(database, scheduling, seed):
    draw = random.Random(seed)
    for number in range(draw.randint(1, 5)):
        await add_host(database, f"h{number}", parts=draw.choice([0, 0, 2]), VCPU=draw.choice([3, 8, 150]))
    gpu = pb.ShapeGroup(amounts={"CUSTOM_GPU": 1})
    shapes = [vcpus(1), vcpus(2, policy="spread"), pb.Shape(amounts={"VCPU": 1}, groups=[gpu])]
    other = Scheduling(database, LiveFleet(database, NoServers()))       # as another replica: it shares no turns

    def request(count: int) -> pb.ScheduleRequest:
        made = pb.ScheduleRequest(shapes=shapes, shape_of=draw.choices(range(3), k=count), all_or_nothing=draw.random() < 0.4,
                                  explain=draw.random() < 0.2)
        if made.all_or_nothing:
            made.explain = False
        if draw.random() < 0.3:
            made.groups.add(id="g", policy=draw.choice(["anti-affinity", "soft-affinity"]))
            made.group_of.extend(draw.choices([-1, 0], k=count))
        return made

    requests = [request(draw.choice([1, 1, 1, 2, 5, 20])) for _ in range(60)]
    answers = await asyncio.gather(*(draw.choice([scheduling, scheduling, other]).Schedule(each, CALL) for each in requests))
    held = homes(database)
    for each, answer in zip(requests, answers, strict=True):
        assert sum(refusal.count for refusal in answer.refusals) == len(each.shape_of) - answer.placed or each.all_or_nothing
        assert not each.all_or_nothing or answer.placed in (0, len(each.shape_of))
        assert len(answer.choices) == (len(each.shape_of) if each.explain else 0)
        assert where(answer) == ([held.get(consumer, "") for consumer in answer.consumer_ids] or [""] * len(each.shape_of))
    assert len(held) == sum(answer.placed for answer in answers)
    check_books(database)


async def test_a_store_that_does_not_answer_fails_those_that_waited_for_it_and_no_later_one(database, scheduling):
    await add_host(database, "a", VCPU=100)
    commit = database.store.commit

    async def silent(*writes, guards=()):
        raise Unavailable("store", "no quorum")

    database.store.commit = silent
    request = pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0])
    answers = await asyncio.gather(*(scheduling.Schedule(request, CALL) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(answer, Unavailable) and "no quorum" in str(answer) for answer in answers)
    database.store.commit = commit
    assert (await scheduling.Schedule(request, CALL)).placed == 1


async def test_consumers_that_hold_something_are_refused_before_anything_is_done(database, scheduling):
    await add_host(database, "a", VCPU=10)
    names = [str(uuid.uuid4()) for _ in range(3)]
    await scheduling.Schedule(pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0], consumer_ids=names[:1]), CALL)
    with pytest.raises(Conflict, match=names[0]):
        await scheduling.Schedule(pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0] * 3, consumer_ids=names), CALL)
    assert len(database.rows(ALLOCATION)) == 1
    held = database.require(ALLOCATION, names[0])
    assert (held.project_id, held.user_id) == ("p", "u")


@pytest.mark.parametrize("request_of", [
    dict(shapes=[vcpus(1)], shape_of=[]), dict(shapes=[], shape_of=[0]), dict(shapes=[vcpus(1)], shape_of=[1]),
    dict(shapes=[pb.Shape()], shape_of=[0]), dict(shapes=[vcpus(0)], shape_of=[0]),
    dict(shapes=[vcpus(1, policy="x")], shape_of=[0]),
    dict(shapes=[vcpus(1, required=["A"], forbidden=["A"])], shape_of=[0]), dict(shapes=[vcpus(1)], shape_of=[0], group_of=[0]),
    dict(shapes=[vcpus(1)], shape_of=[0], group_of=[0], groups=[pb.ConsumerGroup(id="g")]),
    dict(shapes=[vcpus(1)], shape_of=[0], consumer_ids=["x"]), dict(shapes=[vcpus(1)] * 1001, shape_of=[0]),
    dict(shapes=[vcpus(1)], shape_of=[0] * 50_001), dict(shapes=[vcpus(1)], shape_of=[0] * 1001, explain=True),
    dict(shapes=[vcpus(1, weights={"VCPU": 101})], shape_of=[0])])
async def test_input_over_a_limit_or_against_itself_is_refused(scheduling, request_of):
    with pytest.raises(Invalid):
        await scheduling.Schedule(pb.ScheduleRequest(**request_of), CALL)


def test_no_portion_is_more_than_a_commit_and_none_of_a_wave_share_a_provider():
    draw = random.Random(1)
    wants = [Want(number, f"h{host}", tuple(Held(f"h{host}-{row}", (("VCPU", 1),)) for row in range(draw.randint(1, 3))))
             for number in range(2000) for host in [draw.choice([0, draw.randint(0, 60)])]]
    waves = portions.cut(wants)
    assert sorted(want.number for wave in waves for portion in wave for want in portion) == list(range(2000))
    for wave in waves:
        taken: set[str] = set()
        for portion in wave:
            assert portions.cost(portion) <= MAX_OPERATIONS
            own = {uuid for want in portion for uuid in want.providers}
            assert not own & taken
            taken |= own


# Plans


@pytest.mark.parametrize("seed", range(10))
async def test_a_plan_applied_on_an_idle_cluster_comes_true_exactly(database, scheduling, seed):
    draw = random.Random(seed)
    names = [f"h{number}" for number in range(draw.randint(2, 5))]
    for name in names:
        await add_host(database, name, parts=draw.choice([0, 0, 1]), VCPU=draw.choice([6, 12]))
    shapes = [vcpus(1, policy="spread"), vcpus(2),
              pb.Shape(amounts={"VCPU": 1}, groups=[pb.ShapeGroup(amounts={"CUSTOM_GPU": 1})])]
    await scheduling.Schedule(pb.ScheduleRequest(shapes=shapes, shape_of=draw.choices(range(3), k=draw.randint(3, 10))), CALL)
    if draw.random() < 0.5:
        scheduling = Scheduling(database, LiveFleet(database, NoServers()))
    plan = await draw.choice([
        lambda: scheduling.PlanDrain(pb.PlanDrainRequest(hosts=draw.sample(names, 1)), CALL),
        lambda: scheduling.PlanBalance(pb.PlanBalanceRequest(threshold_ppm=0), CALL),
        lambda: scheduling.PlanConsolidate(pb.PlanConsolidateRequest(), CALL)])()
    before = homes(database)
    assert all(before[move.consumer_id] == move.source != move.target for move in plan.moves)
    done = await scheduling.ApplyPlan(pb.ApplyPlanRequest(plan=plan), CALL)
    assert homes(database) == before | {move.consumer_id: move.target for move in plan.moves}
    assert {host.name for host in database.rows(HOST) if host.disabled} == set(plan.closed)
    assert (done.moved, done.closed) == (len(plan.moves), len(plan.closed))
    check_books(database)


async def test_a_drain_says_who_has_no_place_and_why(database, scheduling):
    await add_host(database, "a", VCPU=8)
    await add_host(database, "b", VCPU=3)
    made = await scheduling.Schedule(pb.ScheduleRequest(shapes=[vcpus(2, policy="first")], shape_of=[0] * 3), CALL)
    plan = await scheduling.PlanDrain(pb.PlanDrainRequest(hosts=["a"]), CALL)
    assert [(move.source, move.target) for move in plan.moves] == [("a", "b")] and list(plan.closed) == ["a"]
    [refusal] = plan.refused
    assert refusal.count == 2 and set(refusal.consumer_ids) < set(made.consumer_ids) and "vCPU" in refusal.reason
    with pytest.raises(NotFound, match="nowhere"):
        await scheduling.PlanDrain(pb.PlanDrainRequest(hosts=["nowhere"]), CALL)
    await database.transact(lambda tx: tx.put(fleet.AGGREGATE, HostAggregate(
        id="rack", number=1, name="rack", hosts=["b"], metadata={"availability_zone": "east"})))
    for request in (pb.PlanDrainRequest(aggregate="rack"), pb.PlanDrainRequest(zone="east")):
        assert list((await scheduling.PlanDrain(request, CALL)).closed) == ["b"]


async def test_adding_says_how_many_fit_and_why_no_more(database, scheduling):
    await add_host(database, "a", VCPU=8)
    await add_host(database, "b", VCPU=3)
    plan = await scheduling.PlanAdd(pb.PlanAddRequest(shape=vcpus(2), count=10), CALL)
    assert dict(plan.placed) == {"a": 4, "b": 1} and plan.refused[0].count == 5 and "vCPU" in plan.refused[0].reason
    apart = await scheduling.PlanAdd(pb.PlanAddRequest(shape=vcpus(2), count=3, group_policy="anti-affinity"), CALL)
    assert dict(apart.placed) == {"a": 1, "b": 1} and apart.refused[0].count == 1
    assert not database.rows(ALLOCATION)
    with pytest.raises(NotFound):
        await scheduling.PlanAdd(pb.PlanAddRequest(flavor="none", count=1), CALL)


async def test_a_ratio_says_who_is_overfull_and_is_applied(database, scheduling):
    root = await add_host(database, "a", VCPU=8)
    await add_host(database, "b", VCPU=8)
    await scheduling.Schedule(pb.ScheduleRequest(shapes=[vcpus(6)], shape_of=[0]), CALL)
    plan = await scheduling.PlanRatio(pb.PlanRatioRequest(resource_class="VCPU", ratio=0.5), CALL)
    assert list(plan.overfull) == ["a"] and list(plan.ratios[0].hosts) == ["a", "b"]
    plan = await scheduling.PlanRatio(pb.PlanRatioRequest(resource_class="VCPU", ratio=2, hosts=["a"]), CALL)
    assert not plan.overfull
    assert (await scheduling.ApplyPlan(pb.ApplyPlanRequest(plan=plan), CALL)).changed == 1
    assert database.require(PROVIDER, root).inventories["VCPU"].allocation_ratio == 2
    assert dict((await scheduling.PlanAdd(pb.PlanAddRequest(shape=vcpus(8), count=9), CALL)).placed) == {"a": 1, "b": 1}
    with pytest.raises(Invalid):
        await scheduling.PlanRatio(pb.PlanRatioRequest(resource_class="CUSTOM_NONE", ratio=2), CALL)


async def test_a_plan_is_refused_where_the_world_moved_and_not_for_what_it_did_not_read(database, scheduling):
    await add_host(database, "a", VCPU=8)
    await add_host(database, "b", VCPU=8)
    made = await scheduling.Schedule(pb.ScheduleRequest(shapes=[vcpus(2)], shape_of=[0] * 2), CALL)
    plan = await scheduling.PlanDrain(pb.PlanDrainRequest(hosts=["a"]), CALL)
    await scheduling.Release(pb.ReleaseRequest(consumer_ids=made.consumer_ids[:1]), CALL)
    with pytest.raises(Stale, match="make the plan anew"):
        await scheduling.ApplyPlan(pb.ApplyPlanRequest(plan=plan), CALL)
    assert set(homes(database).values()) == {"a"} and not any(host.disabled for host in database.rows(HOST))
    plan = await scheduling.PlanDrain(pb.PlanDrainRequest(hosts=["a"]), CALL)
    await database.transact(lambda tx: tx.put(fleet.TRAIT, fleet.CustomName(name="CUSTOM_X")))
    await scheduling.ApplyPlan(pb.ApplyPlanRequest(plan=plan, reason="for repair"), CALL)
    assert set(homes(database).values()) == {"b"} and database.require(HOST, "a").disabled_reason == "for repair"
    with pytest.raises(Stale):
        await scheduling.ApplyPlan(pb.ApplyPlanRequest(plan=plan), CALL)


async def test_a_plan_of_many_commits_is_done_in_portions(database, scheduling):
    names = [f"h{number:03}" for number in range(150)]
    for name in names:
        await add_host(database, name, VCPU=4)
    await scheduling.Schedule(pb.ScheduleRequest(shapes=[vcpus(1, policy="spread")], shape_of=[0] * 150), CALL)
    plan = await scheduling.PlanDrain(pb.PlanDrainRequest(hosts=names[:70]), CALL)
    plan.ratios.add(resource_class="VCPU", ratio=3, hosts=names)
    done = await scheduling.ApplyPlan(pb.ApplyPlanRequest(plan=plan), CALL)
    assert (done.closed, done.changed, done.moved) == (70, 150, 70) and done.revision == database.cache.revision
    assert set(homes(database).values()) <= set(names[70:]) and len(homes(database)) == 150
    check_books(database)


async def test_servers_are_neither_moved_nor_released_here(database):
    class Servers(NoServers):
        def demand_of(self, server_id: str):
            return Request(server_id, Shape((("VCPU", 2),), required=frozenset({"CUSTOM_A"}))), None

    scheduling = Scheduling(database, LiveFleet(database, Servers()))
    await add_host(database, "a", traits=["CUSTOM_A"], VCPU=8)
    await add_host(database, "b", VCPU=8)
    server = str(uuid.uuid4())
    await database.transact(lambda tx: ledger.replace(tx, [ledger.allocation(
        server, "p", "u", "INSTANCE", {database.require(HOST, "a").id: {"VCPU": 2}})]))
    plan = await scheduling.PlanDrain(pb.PlanDrainRequest(hosts=["a"]), CALL)
    assert not plan.moves and list(plan.refused[0].consumer_ids) == [server]           # b lacks the trait that it asks for
    await add_host(database, "c", traits=["CUSTOM_A"], VCPU=8)
    plan = await scheduling.PlanDrain(pb.PlanDrainRequest(hosts=["a"]), CALL)
    assert list(plan.moves) == [pb.Move(consumer_id=server, source="a", target="c", server=True)]
    with pytest.raises(Conflict, match="migration"):
        await scheduling.ApplyPlan(pb.ApplyPlanRequest(plan=plan), CALL)
    with pytest.raises(Conflict, match="is a server"):
        await scheduling.Release(pb.ReleaseRequest(consumer_ids=[server]), CALL)
    assert not database.require(HOST, "a").disabled
    del plan.moves[:]
    await scheduling.ApplyPlan(pb.ApplyPlanRequest(plan=plan), CALL)
    assert database.require(HOST, "a").disabled and homes(database) == {server: "a"}


# From outside


async def test_an_admin_schedules_by_grpc_and_others_do_not(database):
    await add_host(database, "a", VCPU=8)
    dispatcher = Dispatcher(Tokens())
    for servicer, descriptor in service.servicers(database, LiveFleet(database, NoServers())):
        dispatcher.add(servicer, descriptor)
    server = grpc.aio.server()
    rpc.add_to_grpc(dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = scheduling_pb2_grpc.SchedulingStub(channel)
            request = pb.ScheduleRequest(shapes=[vcpus(2)], shape_of=[0] * 5, explain=True)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Schedule(request, metadata=(("x-auth-token", "member"),))
            assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
            metadata = (("x-auth-token", "admin"),)
            answer = await stub.Schedule(request, metadata=metadata)
            assert where(answer) == ["a"] * 4 + [""] and answer.choices[0].candidates == 1
            assert answer.refusals[0].nearest == "a"
            plan = await stub.PlanDrain(pb.PlanDrainRequest(hosts=["a"]), metadata=metadata)
            assert plan.refused[0].count == 4
            assert (await stub.Release(pb.ReleaseRequest(consumer_ids=answer.consumer_ids[:2]), metadata=metadata)).released == 2
            with pytest.raises(grpc.aio.AioRpcError) as moved:
                await stub.ApplyPlan(pb.ApplyPlanRequest(plan=plan), metadata=metadata)
            requests = [pb.ScheduleRequest(shapes=[vcpus(amount)], shape_of=[0]) for amount in (1, 0, 1, 9, 2)]
            with pytest.raises(grpc.aio.AioRpcError) as streamed:
                await stub.ScheduleStream(metadata=(("x-auth-token", "member"),)).read()
            assert streamed.value.code() == grpc.StatusCode.PERMISSION_DENIED
            answers = [each async for each in stub.ScheduleStream(requests, metadata=metadata)]
            assert [each.response.placed for each in answers] == [1, 0, 1, 0, 1]
            assert [each.WhichOneof("answer") for each in answers] == ["response", "error", "response", "response", "response"]
            assert answers[1].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0] and "VCPU" in answers[1].error.message
            many = [pb.ScheduleRequest(shapes=[vcpus(1)], shape_of=[0], dry_run=True)] * 1000
            assert len([each async for each in stub.ScheduleStream(many, metadata=metadata)]) == 1000
            broken = stub.ScheduleStream(metadata=metadata)
            await broken.write(many[0])
            assert (await broken.read()).response.revision
            broken.cancel()
            assert (await stub.Schedule(many[0], metadata=metadata)).revision        # whoever leaves takes nobody along
            assert moved.value.code() == grpc.StatusCode.ABORTED and "make the plan anew" in moved.value.details()
    finally:
        await server.stop(None)


def test_the_same_by_rest(cloud, admin):
    cloud.run(add_host(cloud.database, "a", VCPU=8))
    answer = admin.post("/scheduling/schedule", json={"shapes": [{"amounts": {"VCPU": 2}}], "shape_of": [0, 0]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["hosts"] == ["a"] and answer.json()["host_of"] == [0, 0] and len(answer.json()["consumer_ids"]) == 2
    plan = admin.post("/scheduling/plans/add", json={"shape": {"amounts": {"VCPU": 3}}, "count": 5})
    assert plan.status_code == 200, plan.text
    assert plan.json()["placed"] == {"a": 1} and plan.json()["refused"][0]["count"] == 4
    assert admin.at("1.39", "member").post("/scheduling/plans/add", json={}).status_code == 403
