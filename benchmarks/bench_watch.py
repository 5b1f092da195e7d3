"""A change told to many watchers: from the commit until the last one has it, and what one watcher costs the server's CPU.

The gateway, the watch service and the network service in one process over the store's twin, watchers in process, too: what is
measured is the server's own work without sockets. Once all watch one project, once each its own of which one has the change.
"""
import argparse
import asyncio
import json
import time
from typing import Any

import uvloop

from control.gateway.app import Gateway
from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.rpc import Dispatcher
from control.kernel.store import MemoryStore
from control.network import service as network
from control.watch import service as watch


class Tokens:
    """A token is its project's name."""

    async def authenticate(self, token: str) -> Caller:
        return self.known.setdefault(token, Caller(user_id=token, project_id=token, roles=frozenset({"member"})))

    def __init__(self) -> None:
        self.known: dict[str, Caller] = {}


def scope(verb: str, path: str, token: str) -> dict[str, Any]:
    return {"type": "http", "method": verb, "path": path, "raw_path": path.encode(), "query_string": b"", "scheme": "http",
            "client": ("192.0.2.1", 1), "server": ("127.0.0.1", 5000), "http_version": "1.1",
            "headers": [(b"host", b"cloud.example"), (b"x-auth-token", token.encode()), (b"content-type", b"application/json")]}


class Watcher:
    def __init__(self, gateway: Gateway, project: str):
        self.pieces, self.something = 0, asyncio.Event()
        self.task = asyncio.create_task(gateway(scope("GET", "/watch/v1/networks", project), self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        if self.pieces == 0:
            return {"type": "http.request", "body": b"", "more_body": False}
        await asyncio.Event().wait()
        raise AssertionError

    async def _send(self, message: dict[str, Any]) -> None:
        if b"event: MODIFIED" in message.get("body", b"") or b"event: BOOKMARK" in message.get("body", b""):
            self.pieces += 1
            self.something.set()

    async def more(self, than: int) -> None:
        while self.pieces <= than:
            self.something.clear()
            await self.something.wait()


async def call(gateway: Gateway, verb: str, path: str, token: str, body: Any) -> Any:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await gateway(scope(verb, path, token), receive, send)
    return json.loads(sent[-1]["body"])


async def run(watchers: int, changes: int, alone: bool) -> dict[str, Any]:
    database = Database(MemoryStore(), (*quota.KINDS, *network.KINDS))
    following = asyncio.create_task(database.cache.run())
    await database.cache.ready.wait()
    dispatcher = Dispatcher(Tokens(), revision=lambda: database.cache.revision)
    hub = watch.Hub(database, network.watchables(database), readers_per_user=watchers)
    for servicer, descriptor in (*network.servicers(database), *watch.servicers(database, hub, dispatcher.admit)):
        dispatcher.add(servicer, descriptor)
    gateway = Gateway(dispatcher)
    made = (await call(gateway, "POST", "/network/v2.0/networks", "p0", {"network": {"name": "n"}}))["network"]["id"]
    all_of_them = [Watcher(gateway, f"p{number if alone else 0}") for number in range(watchers)]
    await asyncio.gather(*(watcher.more(0) for watcher in all_of_them))
    told = all_of_them[:1] if alone else all_of_them
    seconds, cpu = [], time.process_time()
    for change in range(changes):
        begun, before = time.perf_counter(), [watcher.pieces for watcher in told]
        await call(gateway, "PUT", f"/network/v2.0/networks/{made}", "p0", {"network": {"name": f"n{change}"}})
        await asyncio.gather(*(watcher.more(pieces) for watcher, pieces in zip(told, before, strict=True)))
        seconds.append(time.perf_counter() - begun)
    cpu = time.process_time() - cpu
    for watcher in all_of_them:
        watcher.task.cancel()
    following.cancel()
    await asyncio.gather(following, *(watcher.task for watcher in all_of_them), return_exceptions=True)
    seconds.sort()
    return {"watchers": watchers, "projects": watchers if alone else 1, "told": len(told),
            "p50_ms": round(seconds[len(seconds) // 2] * 1e3, 2), "p99_ms": round(seconds[int(len(seconds) * 0.99)] * 1e3, 2),
            "cpu_us_per_event": round(cpu / changes / len(told) * 1e6, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for watchers in ((10, 100) if options.quick else (1, 100, 1000, 5000)):
        for alone in (False, True):
            row = uvloop.run(run(watchers, 20 if options.quick else 100, alone))
            print(json.dumps(row) if options.json else "  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
