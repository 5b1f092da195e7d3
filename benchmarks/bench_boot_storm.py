"""Servers a second, from REST to the host and away: clients make servers with a port each, see them ACTIVE and delete them.

Run: python benchmarks/bench_boot_storm.py [--quick] [--json] [--hosts N] [--clients N] [--window N] [--seconds S]. Needs root.

A cloud of its own is brought up, with simulated hosts (the real agent over hypervisors in memory, whose servers start at
once): control plane, etcd with fsync, the hosts and the clients share the machine. Each client is a project with a network of
its own and keeps `window` servers on their way: it makes one, deletes it once it is ACTIVE, and makes the next once it is gone.
To see what became of them it lists its servers in detail, one list for all of them, not a GET for each: 100 ms after it asked
for something or saw a change, then half as long again each time that nothing changed, up to half a second.
"""
import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import sys
import time
from typing import Any

import load
import simulated_cloud
import uvloop
from simulated_cloud import Cloud, Meter, Tenant

#: Seconds between two lists of a client: while things change, growing by half to the second while nothing does. Latencies are
#: exact to that; shorter costs a request more for each.
LOOK_EVERY, LOOK_AT_LEAST = 0.1, 0.5

#: What the figures are to be.
AIMS = {"boots_per_second": 300.0, "active_p95_ms": 300.0}


class Connection:
    """A kept connection, over which one request at a time goes."""

    def __init__(self, port: int, token: str):
        self._port = port
        self._head = f"Host: 127.0.0.1:{port}\r\nX-Auth-Token: {token}\r\nContent-Type: application/json\r\n"
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        async with self._lock:
            if self._writer is None:
                self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
            assert self._reader is not None
            self._writer.write(f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
            status = int(head[9:12])
            length = head.find(b"content-length: ")
            size = int(head[length + 16:head.index(b"\r\n", length)]) if length >= 0 else 0
            return status, await self._reader.readexactly(size) if size else b""


class Client:
    """One project's closed loop."""

    def __init__(self, port: int, tenant: Tenant, cloud: dict[str, str], window: int):
        self._port = port
        self._tenant = tenant
        self._connection = Connection(port, tenant.token)
        self._window = window
        self._body = json.dumps({"server": {
            "name": "storm", "imageRef": cloud["image"], "flavorRef": cloud["flavor"],
            "networks": [{"uuid": tenant.network}]}}).encode()
        self._waiting: dict[str, tuple[str, asyncio.Future[bool]]] = {}     # server -> (state, told once it is there)
        self.active: list[tuple[float, float]] = []      # (when, seconds from the request to ACTIVE as the client saw it)
        self.gone: list[float] = []                      # when servers that were deleted had gone
        self.errors: list[str] = []
        self.lists = 0

    async def run(self, until: float) -> None:
        loops = [asyncio.create_task(self._loop(until)) for _ in range(self._window)]
        watcher = asyncio.create_task(self._watch())
        await asyncio.gather(*loops)
        watcher.cancel()

    async def _loop(self, until: float) -> None:
        connection = Connection(self._port, self._tenant.token)
        while time.monotonic() < until:
            asked = time.monotonic()
            status, data = await connection.request("POST", "/compute/v2.1/servers", self._body)
            if status != 202:
                self.errors.append(f"POST: {status} {data[:200]!r}")
                await asyncio.sleep(0.1)
                continue
            server_id = json.loads(data)["server"]["id"]
            if await self._until(server_id, "ACTIVE"):
                now = time.monotonic()
                self.active.append((now, now - asked))
            else:
                self.errors.append(f"{server_id} is in ERROR")
            status, data = await connection.request("DELETE", f"/compute/v2.1/servers/{server_id}")
            if status != 204:
                self.errors.append(f"DELETE: {status} {data[:200]!r}")
            await self._until(server_id, "")
            self.gone.append(time.monotonic())

    async def _until(self, server_id: str, state: str) -> bool:
        """Wait until the list has a server in a state ("" for: no more); whether it is not in ERROR."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[server_id] = state, future
        return await future

    async def _watch(self) -> None:
        pause, asked_before = LOOK_EVERY, set()
        while True:
            await asyncio.sleep(pause)
            asked = set(self._waiting)
            if not asked:
                continue
            pause = min(pause * 1.5, LOOK_AT_LEAST) if asked == asked_before else LOOK_EVERY
            asked_before = asked
            self.lists += 1
            status, data = await self._connection.request("GET", "/compute/v2.1/servers/detail?limit=1000")
            if status != 200:
                self.errors.append(f"GET: {status} {data[:200]!r}")
                continue
            states = {row["id"]: row["status"] for row in json.loads(data)["servers"]}
            for server_id in asked:
                state, future = self._waiting[server_id]
                found = states.get(server_id, "")
                if found == state or (found == "ERROR" and state):
                    del self._waiting[server_id]
                    pause = LOOK_EVERY
                    future.set_result(found == state)


def _clients(port: int, tenants: list[Tenant], cloud: dict[str, str], window: int, seconds: float, results: Any) -> None:
    async def run() -> list[Client]:
        until = time.monotonic() + seconds
        clients = [Client(port, tenant, cloud, window) for tenant in tenants]
        await asyncio.gather(*(client.run(until) for client in clients))
        return clients

    clients = uvloop.run(run())
    results.put((load.cpu_seconds(os.getpid()), [time for client in clients for time in client.active],
                 [when for client in clients for when in client.gone], [error for client in clients for error in client.errors],
                 sum(client.lists for client in clients)))


def storm(cloud: Cloud, fleet: Any, tenants: list[Tenant], *, window: int, seconds: float, warm_up: float) -> dict[str, Any]:
    """Figures of a storm; what happens in the first `warm_up` seconds and after the last second counts for CPU alone."""
    pids = cloud.pids() | {"simulator": fleet.pids}
    meter, began = Meter(pids), time.monotonic()
    results = multiprocessing.get_context("fork").Queue()
    worker = multiprocessing.get_context("fork").Process(target=_clients, args=(
        cloud.config.port, tenants, {"image": cloud.image, "flavor": cloud.flavor}, window, warm_up + seconds, results))
    worker.start()
    clients_cpu, active, gone, errors, lists = results.get()
    worker.join()
    cpu = meter.seconds() | {"clients": clients_cpu}
    low, high = began + warm_up, began + warm_up + seconds
    times = sorted(took for when, took in active if low <= when <= high)
    counted = sum(low <= when <= high for when in gone)
    if not times:
        raise SystemExit(f"no server became ACTIVE: {errors[:3]}")
    return {
        "boots_per_second": round(counted / seconds, 1), "active_p50_ms": round(statistics.median(times) * 1000),
        "active_p95_ms": round(times[int(len(times) * 0.95)] * 1000),
        "active_p99_ms": round(times[int(len(times) * 0.99)] * 1000),
        "boots": len(gone), "lists_per_boot": round(lists / max(len(gone), 1), 1), "errors": len(errors),
        "first_errors": errors[:3],
        "cpu_ms_per_boot": {name: round(used / max(len(gone), 1) * 1000, 2) for name, used in cpu.items()
                            if name not in ("supervisor", "agent")},
        "cpu_ms_per_boot_in_all": round(sum(cpu.values()) / max(len(gone), 1) * 1000, 2),
        "memory_mib": {name: load.pss_mib(found) for name, found in pids.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="50 hosts and 10 clients for 4 seconds")
    parser.add_argument("--hosts", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--window", type=int, default=2, help="servers that each client has on their way")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("a cloud needs root: run with sudo")
    if options.quick:
        options.hosts, options.clients, options.seconds = 50, 10, 4.0
    with simulated_cloud.running() as cloud, simulated_cloud.hosts(cloud, options.hosts) as fleet:
        figures = storm(cloud, fleet, cloud.tenants(options.clients), window=options.window, seconds=options.seconds,
                        warm_up=min(5.0, options.seconds / 4))
    figures = {"hosts": options.hosts, "clients": options.clients, "window": options.window, **figures, "aims": AIMS}
    if options.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        if name not in ("aims", "first_errors") or (name == "first_errors" and value):
            print(f"{name:<24} {value}" + (f"   aim {AIMS[name]:g}" if name in AIMS else ""))


if __name__ == "__main__":
    main()
