"""What a placement costs on each way to the scheduler: a gRPC call each, over streams, in batches, and written down in an etcd.

Run: python benchmarks/bench_placement_paths.py [--quick] [--only calls,durable,rebuild] [--json]. Hosts are alike, consumers of
three shapes, spread. Server and client are a process each, both on uvloop, with 64 placements under way between them.
Floor is a servicer that does nothing. What is durable has an etcd of its own with fsync in a temporary directory. Also how long a
fleet takes to be rebuilt from a store's records. Each line is the median of three runs; CPU is user and system time, of the
server's process and the client's, for one placement. With --json one object on the last line.
"""
import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import grpc
import uvloop
from bench_store import callers, running_etcd
from load import cpu_seconds

from control.kernel import etcd_server, fleet, rpc
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.etcd_store import EtcdStore
from control.kernel.fleet import ALLOCATION, HOST, PROVIDER, USAGE
from control.kernel.rpc import Call, Dispatcher
from control.kernel.store import MemoryStore, Record
from control.placement import ledger
from control.placement.live import LiveFleet
from control.placement.scheduling import Scheduling
from protos.internal.v1.fleet_pb2 import HostRecord, Provider, ProviderInventory, Usage
from protos.placement.v1 import scheduling_pb2 as pb
from protos.placement.v1 import scheduling_pb2_grpc
from scheduler.types import ServerGroup

ADMIN = Caller(user_id="u", project_id="p", roles=frozenset({"admin"}))
HAS = {"VCPU": 512, "MEMORY_MB": 1 << 20, "DISK_GB": 20_000}
SHAPES = [pb.Shape(amounts={"VCPU": cpus, "MEMORY_MB": 2048 * cpus, "DISK_GB": 10}, policy="spread") for cpus in (1, 2, 4)]
BATCH = 10_000


class Anybody:
    """Every token is the admin's: what tokens cost is measured elsewhere. Nothing that is held is a server."""

    async def authenticate(self, token: str) -> Caller:
        return ADMIN

    def demand_of(self, server_id: str) -> None:
        return None

    def group_of(self, server_id: str) -> None:
        return None

    def groups(self) -> dict[str, ServerGroup]:
        return {}

    def shape_of(self, flavor: str) -> None:
        return None


def records(hosts: int, allocations: int) -> list[Record]:
    """A fleet as the store has it, `allocations` of one vCPU dealt out evenly."""
    made, roots = [], [str(uuid.UUID(int=number + 1)) for number in range(hosts)]

    def put(kind: Any, message: Any) -> None:
        made.append(Record(kind.key_of(message), message.SerializeToString(), 0))

    for number, root in enumerate(roots):
        provider = Provider(uuid=root, name=f"host-{number:06}", root_uuid=root, generation=1)
        for name, total in HAS.items():
            provider.inventories[name].CopyFrom(
                ProviderInventory(total=total, min_unit=1, max_unit=total, step_size=1, allocation_ratio=1.0))
        put(HOST, HostRecord(name=provider.name, id=root, up=True))
        put(PROVIDER, provider)
        here = allocations // hosts + (number < allocations % hosts)
        if here:
            put(USAGE, Usage(provider_uuid=root, used={"VCPU": here, "MEMORY_MB": 2048 * here}, generation=here))
    for number in range(allocations):
        put(ALLOCATION, ledger.allocation(str(uuid.UUID(int=(1 << 64) + number)), "p", "u", "INSTANCE",
                                          {roots[number % hosts]: {"VCPU": 1, "MEMORY_MB": 2048}}))
    return made


async def fill(store: Any, made: list[Record]) -> None:
    if isinstance(store, MemoryStore):
        store._apply(made)           # as one revision: no commit holds so many
        return
    cut = iter([made[start:start + 120] for start in range(0, len(made), 120)])

    async def work() -> None:
        for part in cut:
            await store.commit(*part)

    await asyncio.gather(*(work() for _ in range(8)))


@contextlib.asynccontextmanager
async def scheduler(store: Any) -> AsyncIterator[Scheduling]:
    database = Database(store, fleet.KINDS)
    live = LiveFleet(database, Anybody())
    task = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    live.current()
    try:
        yield Scheduling(database, live)
    finally:
        task.cancel()


class Nothing:
    """A servicer that answers at once: what a call costs before anybody decides anything."""

    def __getattr__(self, name: str) -> Callable:
        async def answer(request: object, call: Call) -> pb.ScheduleResponse:
            return pb.ScheduleResponse(revision=1, hosts=["host-000000"], host_of=[0], placed=1)

        return answer


def serve(hosts: int, store_kind: str, pipe: Connection) -> None:
    """A process that serves a scheduler, over a store in memory or in an etcd of its own, until the pipe says so."""
    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            if store_kind == "none":
                servicer: object = Nothing()
            elif store_kind == "etcd":
                servicer = await stack.enter_async_context(etcd_scheduler(hosts))
            else:
                store = MemoryStore()
                await fill(store, records(hosts, 0))
                servicer = await stack.enter_async_context(scheduler(store))
            dispatcher = Dispatcher(Anybody())
            dispatcher.add(servicer, pb.DESCRIPTOR.services_by_name["Scheduling"])
            server = grpc.aio.server(options=[("grpc.max_receive_message_length", rpc.MAX_MESSAGE)])
            rpc.add_to_grpc(dispatcher, server)
            pipe.send(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            await asyncio.to_thread(pipe.recv)
            await server.stop(0)

    uvloop.run(run())


@contextlib.asynccontextmanager
async def etcd_scheduler(hosts: int) -> AsyncIterator[Scheduling]:
    with running_etcd() as config:
        client = etcd_server.client_credentials(config.data_dir.parent / "pki", "bench")
        await etcd_server.wait_ready([config.endpoint], client)
        store = EtcdStore([config.endpoint], client)
        await fill(store, records(hosts, 0))
        async with scheduler(store) as servicer:
            yield servicer
        await store.close()


class Results(dict[str, dict[str, float]]):
    """What was measured, by name; a measurement is made three times, and the median counts."""

    async def measure(self, name: str, once: Callable[[], Awaitable[tuple[float, list[float]]]], pids: Sequence[int] = (),
                      calls: int = 1, per: int = 1) -> None:
        runs = []
        for _ in range(3):
            before = [*map(cpu_seconds, pids), time.process_time()]
            rate, times = await once()
            used = [(after - then) / calls / per * 1e6 for after, then in
                    zip([*map(cpu_seconds, pids), time.process_time()], before, strict=True)]
            runs.append((rate * per, statistics.quantiles(times, n=100), used))
        rate, cuts, used = sorted(runs, key=lambda run: run[0])[1]
        self[name] = {"per_second": round(rate, 1), "p50_ms": round(cuts[49] * 1000, 3), "p99_ms": round(cuts[98] * 1000, 3),
                      **{f"{who}_cpu_us": round(cpu, 1) for who, cpu in zip(("server", "client") if pids else ("ours",), used,
                                                                            strict=True)}}
        print(f"{name:<56} {rate:>9.0f} /s   p50 {cuts[49] * 1000:>8.2f} ms   p99 {cuts[98] * 1000:>8.2f} ms   CPU "
              + " + ".join(f"{cpu:.0f}" for cpu in used) + f" us   load {os.getloadavg()[0]:.1f}", flush=True)


async def measure(quick: bool, only: Sequence[str]) -> dict[str, dict[str, float]]:
    share = 10 if quick else 1
    results = Results()
    if "calls" in only:
        await by_grpc(1000, "none", share, results)
    for hosts in (1000, 10_000):
        for store in ("memory", "etcd") if "calls" in only else ():
            await by_grpc(hosts, store, share, results)
        if "durable" in only:
            await durable(hosts, share, results)
    sizes = ((10_000, 100_000),) if quick else ((10_000, 100_000), (100_000, 1_000_000))
    for hosts, allocations in sizes if "rebuild" in only else ():
        results[f"rebuild, {hosts} hosts, {allocations} held"] = await rebuild(hosts, allocations)
    return results


async def by_grpc(hosts: int, store: str, share: int, results: Results) -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(hosts, store, theirs))
    process.start()
    try:
        port = await asyncio.to_thread(ours.recv)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub, token = scheduling_pb2_grpc.SchedulingStub(channel), (("x-auth-token", "t"),)
            title = {"none": "floor", "memory": f"{hosts} hosts, in memory", "etcd": f"{hosts} hosts, in etcd"}[store]
            calls, pids = 10_000 // share, [process.pid or 0]

            def request(count: int, dry: bool) -> pb.ScheduleRequest:
                return pb.ScheduleRequest(shapes=SHAPES, shape_of=[number % 3 for number in range(count)], dry_run=dry)

            def unary(asked: pb.ScheduleRequest, callers_: int, calls: int) -> Callable[[], Awaitable[tuple[float, list[float]]]]:
                return lambda: callers(callers_, calls, lambda number: stub.Schedule(asked, metadata=token))

            await stub.Schedule(request(1, True), metadata=token)
            for dry in {"none": (True,), "memory": (True, False), "etcd": (False,)}[store]:
                how = "" if store == "none" else ", dry" if dry else ", real"
                await results.measure(f"{title}: a call each{how}", unary(request(1, dry), 64, calls), pids, calls)
                if store != "none":
                    await results.measure(f"{title}: 8 streams{how}", lambda dry=dry: streams(  # type: ignore[misc]
                        stub, request(1, dry), token, 8, 8, calls), pids, calls)
            if store == "memory":
                await results.measure(f"{title}: {BATCH} a call, dry", unary(request(BATCH, True), 2, 200 // share), pids,
                                      200 // share, per=BATCH)
    finally:
        ours.send("stop")
        process.join(20)
        process.kill()


async def streams(stub: Any, request: pb.ScheduleRequest, token: Any, count: int, ahead: int,
                  calls: int) -> tuple[float, list[float]]:
    """Placements a second over some streams, each with so many requests ahead of its answers, and the seconds of each."""
    times: list[float] = []

    async def one() -> None:
        stream, room, sent = stub.ScheduleStream(metadata=token), asyncio.Semaphore(ahead), deque[float]()

        async def write() -> None:
            for _ in range(calls // count):
                await room.acquire()
                sent.append(time.perf_counter())
                await stream.write(request)
            await stream.done_writing()

        writing = asyncio.create_task(write())
        while (answer := await stream.read()) is not grpc.aio.EOF:
            if not answer.response.placed:
                raise SystemExit(f"nothing was placed: {answer}")
            times.append(time.perf_counter() - sent.popleft())
            room.release()
        await writing

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(count)))
    return len(times) / (time.perf_counter() - started), times


async def durable(hosts: int, share: int, results: Results) -> None:
    async with etcd_scheduler(hosts) as servicer:
        for policy in ("pack", "spread"):
            shapes = []
            for shape in SHAPES:
                shapes.append(pb.Shape())
                shapes[-1].CopyFrom(shape)
                shapes[-1].policy = policy
            request = pb.ScheduleRequest(shapes=shapes, shape_of=[number % 3 for number in range(BATCH)])
            calls = max(4 // share, 2)
            await results.measure(
                f"{hosts} hosts, in etcd: {BATCH} a call, {policy}", lambda request=request, calls=calls: callers(
                    1, calls, lambda number: servicer.Schedule(request, Call(caller_or_none=ADMIN))), calls=calls, per=BATCH)


async def rebuild(hosts: int, allocations: int) -> dict[str, float]:
    store = MemoryStore()
    await fill(store, records(hosts, allocations))
    database = Database(store, fleet.KINDS)
    live = LiveFleet(database, Anybody())
    started, used = time.perf_counter(), time.process_time()
    task = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    decoded = time.perf_counter()
    live.current()
    loaded, used = time.perf_counter(), time.process_time() - used
    task.cancel()
    print(f"rebuild, {hosts} hosts, {allocations} held: decoded in {decoded - started:.2f} s, "
          f"loaded in {loaded - decoded:.2f} s, CPU {used:.2f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    return {"decode_s": round(decoded - started, 3), "load_s": round(loaded - decoded, 3), "cpu_s": round(used, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls, no large rebuild")
    parser.add_argument("--only", default="calls,durable,rebuild", help="some of calls, durable and rebuild")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    results = uvloop.run(measure(arguments.quick, arguments.only.split(",")))
    if arguments.json:
        print(json.dumps({"benchmark": "placement_paths", "quick": arguments.quick, "results": results}))


if __name__ == "__main__":
    main()
