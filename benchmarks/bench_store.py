"""What the store costs over a real etcd on this machine: commits, reads, scans, and how soon a watch tells.

Run: python benchmarks/bench_store.py [--quick] [--json]. It starts an etcd of its own with mutual TLS and fsync in a
temporary directory. Prints one line per measurement; with --json one object on the last line.
"""
import argparse
import asyncio
import contextlib
import json
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import uvloop

from control.kernel import etcd_server
from control.kernel.etcd_store import EtcdStore
from control.kernel.store import MAX_OPERATIONS, Record

VALUE = bytes(range(256))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def running_etcd() -> Iterator[etcd_server.Config]:
    with tempfile.TemporaryDirectory(prefix="bench-store-") as directory:
        config = etcd_server.Config(Path(directory, "data"), etcd_server.server_credentials(Path(directory, "pki")),
                                    client_port=free_port(), peer_port=free_port())
        etcd_server.prepare(config)
        process = subprocess.Popen(etcd_server.command(config), env=etcd_server.environment(), stderr=subprocess.DEVNULL)
        try:
            yield config
        finally:
            process.kill()
            process.wait()


async def callers(count: int, calls: int, work: Callable[[int], Awaitable[object]]) -> tuple[float, list[float]]:
    """Calls a second of `count` callers that share `calls` calls, and the seconds that each call took."""
    numbers = iter(range(calls))
    times: list[float] = []

    async def caller() -> None:
        for number in numbers:
            started = time.perf_counter()
            await work(number)
            times.append(time.perf_counter() - started)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(count)))
    return calls / (time.perf_counter() - started), times


async def watch_latency(store: EtcdStore, changes: int) -> list[float]:
    """Seconds from a commit's start to its arrival at a watch."""
    revision = await store.commit(Record("/bench/watch/start", b""))
    started: dict[str, float] = {}
    times: list[float] = []

    async def listen() -> None:
        async with contextlib.aclosing(store.watch("/bench/watch/", revision)) as watch:
            async for batch in watch:
                times.extend(time.perf_counter() - started[record.key] for record in batch.records)
                if len(times) == changes:
                    return

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0.5)
    for number in range(changes):
        key = f"/bench/watch/{number}"
        started[key] = time.perf_counter()
        await store.commit(Record(key, VALUE))
    await listener
    return times


async def measure(quick: bool) -> dict[str, dict[str, float]]:
    share = 10 if quick else 1
    results: dict[str, dict[str, float]] = {}

    def note(name: str, rate: float, times: list[float], per: int = 1) -> None:
        cuts = statistics.quantiles(times, n=100)
        results[name] = {"per_second": round(rate * per, 1), "p50_ms": round(cuts[49] * 1000, 3),
                         "p99_ms": round(cuts[98] * 1000, 3)}
        print(f"{name:<34} {rate * per:>9.0f} /s   p50 {cuts[49] * 1000:>8.2f} ms   p99 {cuts[98] * 1000:>8.2f} ms", flush=True)

    with running_etcd() as config:
        client = etcd_server.client_credentials(config.data_dir.parent / "pki", "bench")
        await etcd_server.wait_ready([config.endpoint], client)
        store = EtcdStore([config.endpoint], client)
        for count, calls in ((1, 3000), (16, 10_000), (256, 40_000)):
            note(f"put, {count} callers", *await callers(
                count, calls // share, lambda number, count=count: store.commit(Record(f"/bench/put/{count}/{number}", VALUE))))
        note(f"put, keys of commits of {MAX_OPERATIONS}", *await callers(4, 400 // share, lambda number: store.commit(
            *(Record(f"/bench/large/{number}/{i}", VALUE) for i in range(MAX_OPERATIONS)))), per=MAX_OPERATIONS)
        note("get, 1 caller, right after a burst", *await callers(1, 200, lambda number: store.get("/bench/put/1/0")))
        await asyncio.sleep(1)
        note("get, 1 caller", *await callers(1, 3000 // share, lambda number: store.get(f"/bench/put/1/{number}")))
        note("get, 64 callers", *await callers(64, 10_000 // share, lambda number: store.get(f"/bench/put/1/{number % 100}")))
        records = len((await store.scan("/bench/put/"))[0])
        note(f"scan, records of {records}", *await callers(1, 5, lambda number: store.scan("/bench/put/")), per=records)
        times = await watch_latency(store, 1000 // share)
        note("watch, commit to arrival", len(times) / sum(times), times)
        await store.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls: some seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    results = uvloop.run(measure(arguments.quick))
    if arguments.json:
        print(json.dumps({"benchmark": "store", "quick": arguments.quick, "results": results}))


if __name__ == "__main__":
    main()
