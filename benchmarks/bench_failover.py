"""What clients see when the leader of a control plane of three is killed, over and over, while they work.

Run: python benchmarks/bench_failover.py [--quick] [--json] [--kills N] [--plot FILE]. Needs root.

A cloud of its own is brought up: three replicas in network namespaces with an etcd member each, haproxy before them, simulated
hosts. Each time the replica that leads the scheduler is killed with SIGKILL; its supervisor starts it again. Meanwhile clients
write (key pairs, made and deleted), read (lists of servers) and boot servers through haproxy, and try again, with idempotency
keys, what was not answered; one client reads from the two other replicas without haproxy. A gap is the longest time without a
good answer of a kind around a kill.
"""
import argparse
import asyncio
import itertools
import json
import os
import signal
import time
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import httpx
import simulated_cloud
import uvloop
from simulated_cloud import Cloud, Tenant

from control.kernel import etcd_server
from control.kernel.database import Database
from control.kernel.etcd_store import EtcdStore
from control.kernel.replicas import LEADERSHIP, REPLICA
from control.kinds import KINDS

#: Seconds between two kills: what a killed replica needs to be back, threefold; and long enough for its supervisor to start it
#: again at once the next time. The first ones warm up.
EVERY, WARM_UP = 7.0, 3.0

#: Seconds that one try may take, and that a call is tried for before it counts as an error.
TRY_WITHIN, PATIENCE = 5.0, 60.0

#: Seconds after a kill that gaps may begin in and belong to it.
AFTER = 5.0

#: Clients that write, and that read.
WRITERS, READERS, BOOTERS = 6, 2, 4


class Clients:
    """Everybody who works on the cloud; when each had a good answer, by what it does."""

    def __init__(self, cloud: Cloud, tenant: Tenant):
        self.good: dict[str, list[list[float]]] = defaultdict(list)     # kind -> for each client, moments
        self.errors: list[str] = []
        self.calls = 0
        self.repeated = 0
        self.others: list[str] = []                                     # endpoints that are not about to be killed
        self._cloud, self._tenant = cloud, tenant
        self._front = cloud.config.url

    async def run(self, until: float) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._write(number, until))
            for _ in range(READERS):
                group.create_task(self._read(until))
            for number in range(BOOTERS):
                group.create_task(self._boot(number, until))
            group.create_task(self._read_others(until))

    async def _write(self, number: int, until: float) -> None:
        good = self._begin("write")
        async with self._http() as http:
            while time.monotonic() < until:
                await self._call(http, "POST", "/compute/v2.1/os-keypairs", {"keypair": {
                    "name": f"writer-{number}", "public_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ" + "A" * 42 + " bench"}})
                good.append(time.monotonic())
                await self._call(http, "DELETE", f"/compute/v2.1/os-keypairs/writer-{number}")
                good.append(time.monotonic())
                await asyncio.sleep(0.02)

    async def _read(self, until: float) -> None:
        good = self._begin("read")
        async with self._http() as http:
            while time.monotonic() < until:
                await self._call(http, "GET", "/compute/v2.1/servers?limit=10")
                good.append(time.monotonic())
                await asyncio.sleep(0.02)

    async def _read_others(self, until: float) -> None:
        good = self._begin("read from the others")
        async with self._http() as http:
            turn = 0
            while time.monotonic() < until:
                turn += 1
                if self.others:
                    try:
                        answer = await http.get(self.others[turn % len(self.others)] + "/compute/v2.1/servers?limit=10",
                                                headers={"X-Auth-Token": self._tenant.token})
                        if answer.status_code == 200:
                            good.append(time.monotonic())
                        else:
                            self.errors.append(f"GET of another replica: {answer.status_code}")
                    except httpx.HTTPError as error:
                        self.errors.append(f"GET of another replica: {type(error).__name__}")
                await asyncio.sleep(0.02)

    async def _boot(self, number: int, until: float) -> None:
        """Servers from REST to ACTIVE: a good answer is one that has become ACTIVE."""
        good, count = self._begin("boot"), 0
        async with self._http() as http:
            while time.monotonic() < until:
                count += 1
                made = await self._call(http, "POST", "/compute/v2.1/servers", {"server": {
                    "name": f"boot-{number}-{count}", "imageRef": self._cloud.image, "flavorRef": self._cloud.flavor,
                    "networks": [{"uuid": self._tenant.network}]}})
                path = f"/compute/v2.1/servers/{made['server']['id']}" if made else ""
                while made and time.monotonic() < until + PATIENCE:
                    status = (await self._call(http, "GET", path) or {"server": {"status": ""}})["server"]["status"]
                    if status == "ERROR":
                        self.errors.append(f"server {made['server']['id']} is in ERROR")
                    if status in ("ACTIVE", "ERROR"):
                        break
                    await asyncio.sleep(0.05)
                good.append(time.monotonic())
                if made:
                    await self._call(http, "DELETE", path)

    def _begin(self, kind: str) -> list[float]:
        moments: list[float] = []
        self.good[kind].append(moments)
        return moments

    @staticmethod
    def _http() -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=httpx.Timeout(TRY_WITHIN, connect=1.0))

    async def _call(self, http: httpx.AsyncClient, method: str, path: str, body: Any = None) -> Any:
        """The answer to a call that is tried until it is answered for good; None, and an error, where it never is."""
        headers = {"X-Auth-Token": self._tenant.token, "Idempotency-Key": str(uuid.uuid4())}
        self.calls += 1
        limit, said = time.monotonic() + PATIENCE, ""
        while time.monotonic() < limit:
            try:
                answer = await http.request(method, self._front + path, json=body, headers=headers)
                if answer.status_code < 400 or (method == "DELETE" and answer.status_code == 404):
                    return answer.json() if answer.content else {}
                said = f"{answer.status_code} {answer.text[:200]}"
                if answer.status_code < 500 and "Retry-After" not in answer.headers:
                    break
            except httpx.HTTPError as error:
                said = type(error).__name__
            self.repeated += 1
            await asyncio.sleep(0.05)
        self.errors.append(f"{method} {path}: {said}")
        return None


class Killer:
    """Kills who leads the scheduler, and knows when all that it led is led by others."""

    def __init__(self, cloud: Cloud, clients: Clients, database: Database):
        self.kills: list[float] = []
        self.handed_over: list[float] = []
        self._cloud, self._clients, self._database = cloud, clients, database

    async def run(self, kills: int) -> None:
        await asyncio.sleep(WARM_UP)
        for _ in range(kills):
            await self._kill(*await self._settled())
            await asyncio.sleep(max(0.0, self.kills[-1] + EVERY - time.monotonic()))

    async def _settled(self) -> tuple[str, int]:
        """(id of the replica that leads the scheduler, its number), once three are listed and lead everything."""
        places = [place.address for place in self._cloud.config.places]
        while True:
            alive = {each.id: each.address.rsplit(":", 1)[0] for each in self._database.rows(REPLICA)}
            leaders = {(each.role, each.shard): each.replica_id for each in self._database.rows(LEADERSHIP)}
            leader = leaders.get(("scheduler", 0), "")
            if len(alive) == 3 and leader in alive and set(leaders.values()) <= set(alive):
                return leader, places.index(alive[leader]) + 1
            await asyncio.sleep(0.05)

    async def _kill(self, leader: str, number: int) -> None:
        config = self._cloud.config
        self._clients.others[:] = [f"http://{place.address}:{config.port}" for place in config.places
                                   if place.name != f"replica-{number}"]
        await asyncio.sleep(0.2)
        jobs = {(each.role, each.shard) for each in self._database.rows(LEADERSHIP)}
        os.kill(int(config.path("run", f"control-{number}.pid").read_text()), signal.SIGKILL)
        self.kills.append(at := time.monotonic())
        while any(each.replica_id == leader for each in self._database.rows(LEADERSHIP)) or jobs - {
                (each.role, each.shard) for each in self._database.rows(LEADERSHIP)}:
            await asyncio.sleep(0.01)
        self.handed_over.append(time.monotonic() - at)


def gaps(kills: list[float], clients: list[list[float]]) -> list[float]:
    """For each kill the longest time that a client of a kind went without a good answer around it."""
    found = []
    for kill in kills:
        longest = 0.0
        for moments in clients:
            longest = max([longest, *(later - earlier for earlier, later in itertools.pairwise(moments)
                                      if later > kill and earlier < kill + AFTER)])
        found.append(longest)
    return found


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": round(ordered[len(ordered) // 2], 2),
            "p99": round(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 2), "max": round(ordered[-1], 2)}


async def measure(cloud: Cloud, kills: int) -> dict[str, Any]:
    tenant = (await asyncio.to_thread(cloud.tenants, 1))[0]
    clients = Clients(cloud, tenant)
    store = EtcdStore(cloud.config.etcd_endpoints, etcd_server.client_credentials(cloud.config.pki_dir))
    database = Database(store, KINDS)
    following = asyncio.create_task(database.cache.run())
    try:
        await database.cache.ready.wait()
        killer = Killer(cloud, clients, database)
        working = asyncio.create_task(clients.run(time.monotonic() + 1e9))
        try:
            await killer.run(kills)
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()
    found = {kind: gaps(killer.kills, moments) for kind, moments in clients.good.items()}
    return {"kills": len(killer.kills), "calls": clients.calls, "repeated": clients.repeated, "errors": len(clients.errors),
            "first errors": clients.errors[:5], "roles led by others after, s": summary(killer.handed_over),
            **{f"gap, {kind}, s": summary(values) for kind, values in found.items()}, "all gaps": found}


def plot(file: Path, found: dict[str, list[float]]) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(8, 4))
    for kind, values in found.items():
        ordered = sorted(values)
        axes.step(ordered, [(place + 1) / len(ordered) * 100 for place in range(len(ordered))], label=kind, where="post")
    axes.set(xlabel="longest time without a good answer around a kill, s", ylabel="% of kills", xlim=(0, None), ylim=(0, 100))
    axes.legend()
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="The leader is killed, over and over, while clients work.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--quick", action="store_true", help="two kills")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path, help="write a picture of the gaps (needs matplotlib)")
    options = parser.parse_args()
    with simulated_cloud.running(replicas=3) as cloud, simulated_cloud.hosts(cloud, options.hosts):
        figures = uvloop.run(measure(cloud, 2 if options.quick else options.kills))
    found = figures.pop("all gaps")
    if options.plot:
        plot(options.plot, found)
    if options.json:
        print(json.dumps(figures))
    else:
        for name, value in figures.items():
            print(f"{name:32} {value}")


if __name__ == "__main__":
    main()
