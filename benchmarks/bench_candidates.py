"""What allocation candidates cost on a large fleet: a search, the whole REST call, and following one change of use.

Run: python benchmarks/bench_candidates.py [--quick] [--json]. Hosts are one provider each with three classes and 100 traits,
every hundredth with the trait that one request asks for. Prints one line per size.
"""
import argparse
import asyncio
import json
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable

from control.gateway.app import Gateway
from control.kernel import fleet
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.rpc import Dispatcher
from control.kernel.store import MemoryStore, Record
from control.placement import service
from control.placement.live import LiveFleet
from control.placement.model import STANDARD_TRAITS
from control.placement.neighbours import NoServers
from protos.internal.v1.fleet_pb2 import Provider, ProviderInventory
from tests.api.client import Client

COMMON = sorted(name for name in STANDARD_TRAITS if name.startswith("HW_CPU"))[:99]
RARE = "COMPUTE_TRUSTED_CERTS"
WIDE = "/placement/allocation_candidates?resources=VCPU:2,MEMORY_MB:4096,DISK_GB:20"


class Admins:
    async def authenticate(self, token: str) -> Caller:
        return Caller("admin", project_id="admin", roles=frozenset({"admin"}))


def host(number: int) -> Provider:
    identifier = str(uuid.UUID(int=number + 1))
    stocks = {name: ProviderInventory(total=total, min_unit=1, max_unit=total, step_size=1, allocation_ratio=1.0)
              for name, total in (("VCPU", 64), ("MEMORY_MB", 262144), ("DISK_GB", 2000))}
    return Provider(uuid=identifier, name=f"host-{number}", root_uuid=identifier, inventories=stocks,
                    traits=[*COMMON, RARE] if number % 100 == 0 else COMMON)


async def median_ms(repeat: int, work: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        await work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


async def measure(hosts: int, repeat: int) -> dict[str, float]:
    store = MemoryStore()
    for number in range(hosts):
        provider = host(number)
        await store.commit(Record(fleet.PROVIDER.key_of(provider), provider.SerializeToString()))
    database = Database(store, fleet.KINDS)
    dispatcher = Dispatcher(Admins())
    for servicer, descriptor in service.servicers(database, LiveFleet(database, NoServers())):
        dispatcher.add(servicer, descriptor)
    client = Client(Gateway(dispatcher), {"x-auth-token": "admin", "openstack-api-version": "placement 1.39"})
    started = time.perf_counter()
    following = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    loaded = time.perf_counter() - started

    async def allocate() -> None:
        answer = await client("PUT", f"/placement/allocations/{uuid.uuid4()}", json_body={
            "allocations": {str(uuid.UUID(int=1)): {"resources": {"VCPU": 1}}}, "project_id": "p", "user_id": "u",
            "consumer_generation": None, "consumer_type": "INSTANCE"})
        assert answer.status == 204, answer.body

    row = {
        "hosts": hosts, "load_s": loaded,
        "wide_ms": await median_ms(repeat, lambda: client("GET", WIDE)),
        "limit_10_ms": await median_ms(repeat, lambda: client("GET", f"{WIDE}&limit=10")),
        "rare_trait_ms": await median_ms(repeat, lambda: client("GET", f"{WIDE}&required={RARE}")),
        "allocate_ms": await median_ms(repeat, allocate)}
    following.cancel()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [asyncio.run(measure(hosts, 5 if options.quick else 30)) for hosts in ((200,) if options.quick else (1000, 5000))]
    for row in rows:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
