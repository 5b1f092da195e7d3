"""What a placement costs on each way to the scheduler: a gRPC call each, batches by gRPC, and written down in a real etcd.

Run: python benchmarks/bench_placement_paths.py [--quick] [--json]. Hosts are alike, consumers of three shapes, spread. The server
has a process of its own; the durable path has an etcd of its own with fsync in a temporary directory. Also how long a fleet takes
to be rebuilt from a store's records. Prints one line per measurement; with --json one object on the last line.
"""
import argparse
import asyncio
import contextlib
import json
import multiprocessing
import statistics
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

import grpc
import uvloop
from bench_store import callers, running_etcd

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


def serve(hosts: int, pipe: Connection) -> None:
    """A process that serves a scheduler over a store in memory until it is killed."""
    async def run() -> None:
        store = MemoryStore()
        await fill(store, records(hosts, 0))
        async with scheduler(store) as servicer:
            dispatcher = Dispatcher(Anybody())
            dispatcher.add(servicer, pb.DESCRIPTOR.services_by_name["Scheduling"])
            server = grpc.aio.server(options=[("grpc.max_receive_message_length", rpc.MAX_MESSAGE)])
            rpc.add_to_grpc(dispatcher, server)
            pipe.send(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            await server.wait_for_termination()

    uvloop.run(run())


async def measure(quick: bool) -> dict[str, dict[str, float]]:
    share = 10 if quick else 1
    results: dict[str, dict[str, float]] = {}

    def note(name: str, rate: float, times: list[float], per: int = 1) -> None:
        cuts = statistics.quantiles(times, n=100)
        results[name] = {"per_second": round(rate * per, 1), "p50_ms": round(cuts[49] * 1000, 3),
                         "p99_ms": round(cuts[98] * 1000, 3)}
        print(f"{name:<52} {rate * per:>9.0f} /s   p50 {cuts[49] * 1000:>8.2f} ms   p99 {cuts[98] * 1000:>8.2f} ms", flush=True)

    for hosts in (1000, 10_000):
        await by_grpc(hosts, share, note)
        await durable(hosts, share, note)
    for hosts, allocations in ((10_000, 100_000),) if quick else ((10_000, 100_000), (100_000, 1_000_000)):
        results[f"rebuild, {hosts} hosts, {allocations} held"] = await rebuild(hosts, allocations)
    return results


async def by_grpc(hosts: int, share: int, note: Callable) -> None:
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(hosts, theirs), daemon=True)
    process.start()
    try:
        port = await asyncio.to_thread(ours.recv)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = scheduling_pb2_grpc.SchedulingStub(channel)

            def call(count: int, dry: bool) -> Callable[[int], Awaitable[object]]:
                request = pb.ScheduleRequest(shapes=SHAPES, shape_of=[number % 3 for number in range(count)], dry_run=dry)
                return lambda number: stub.Schedule(request, metadata=(("x-auth-token", "t"),))

            await call(1, True)(0)
            for dry in (True, False):
                note(f"{hosts} hosts: a call each, {'dry' if dry else 'real, store in memory'}",
                     *await callers(64, 10_000 // share, call(1, dry)))
            note(f"{hosts} hosts: {BATCH} a call, dry", *await callers(2, 200 // share, call(BATCH, True)), per=BATCH)
    finally:
        process.kill()
        process.join()


async def durable(hosts: int, share: int, note: Callable) -> None:
    with running_etcd() as config:
        client = etcd_server.client_credentials(config.data_dir.parent / "pki", "bench")
        await etcd_server.wait_ready([config.endpoint], client)
        store = EtcdStore([config.endpoint], client)
        await fill(store, records(hosts, 0))
        async with scheduler(store) as servicer:
            for policy in ("pack", "spread"):
                shapes = []
                for shape in SHAPES:
                    shapes.append(pb.Shape())
                    shapes[-1].CopyFrom(shape)
                    shapes[-1].policy = policy
                request = pb.ScheduleRequest(shapes=shapes, shape_of=[number % 3 for number in range(BATCH)])
                note(f"{hosts} hosts: {BATCH} a call, {policy}, in etcd", *await callers(
                    1, max(10 // share, 2), lambda number, request=request: servicer.Schedule(
                        request, Call(caller_or_none=ADMIN))), per=BATCH)
        await store.close()


async def rebuild(hosts: int, allocations: int) -> dict[str, float]:
    store = MemoryStore()
    await fill(store, records(hosts, allocations))
    database = Database(store, fleet.KINDS)
    live = LiveFleet(database, Anybody())
    started = time.perf_counter()
    task = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    decoded = time.perf_counter()
    live.current()
    loaded = time.perf_counter()
    task.cancel()
    print(f"rebuild, {hosts} hosts, {allocations} held: decoded in {decoded - started:.2f} s, loaded in {loaded - decoded:.2f} s",
          flush=True)
    return {"decode_s": round(decoded - started, 3), "load_s": round(loaded - decoded, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls, no large rebuild")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    results = uvloop.run(measure(arguments.quick))
    if arguments.json:
        print(json.dumps({"benchmark": "placement_paths", "quick": arguments.quick, "results": results}))


if __name__ == "__main__":
    main()
