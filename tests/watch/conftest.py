"""Replicas of a whole control plane over one etcd, with the HTTP listeners that clients have; nothing but hosts is missing."""
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from control.gateway import server
from control.kernel import etcd_server
from control.kernel.config import Config
from control.kernel.etcd_store import EtcdStore
from control.main import Replica
from tests.api.client import Client, Reply

PASSWORDS = {"admin": "adm1n-of-watch", "demo": "dem0-of-watch"}


class Served:
    """One replica, its port, and ways to call it."""

    def __init__(self, replica: Replica, port: int):
        self.replica, self.port = replica, port
        self.watches: asyncio.Task | None = None      # what its watches live by

    @property
    def store(self) -> EtcdStore:
        return self.replica.store

    def client(self, token: str) -> Client:
        return Client(self.replica.gateway, {"x-auth-token": token}, host=f"127.0.0.1:{self.port}")

    async def token(self, user: str, project: str | None = None) -> str:
        reply = await Client(self.replica.gateway)("POST", "/v3/auth/tokens", json_body={"auth": {
            "identity": {"methods": ["password"], "password": {"user": {
                "name": user, "domain": {"id": "default"}, "password": PASSWORDS[user]}}},
            "scope": {"project": {"name": project or user, "domain": {"id": "default"}}}}})
        assert reply.status == 201, reply.body
        return reply.headers["x-subject-token"]

    @contextlib.asynccontextmanager
    async def watching(self, token: str, kind: str, query: str = "", after: str = "",
                       headers: dict[str, str] | None = None) -> AsyncIterator["Stream"]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        stream = Stream(reader)
        try:
            lines = [f"GET /watch/v1/{kind}{'?' + query if query else ''} HTTP/1.1", f"Host: 127.0.0.1:{self.port}",
                     f"X-Auth-Token: {token}", *(f"{name}: {value}" for name, value in (headers or {}).items())]
            if after:
                lines.append(f"Last-Event-ID: {after}")
            writer.write("\r\n".join([*lines, "", ""]).encode())
            yield stream
        finally:
            writer.transport.abort()


class Stream:
    """What a client reads of one answer: as a browser's EventSource, it takes an event when its empty line is there."""

    def __init__(self, reader: asyncio.StreamReader):
        self.reader = reader
        self.status = 0
        self.headers: dict[str, str] = {}
        self._text = b""

    async def begin(self) -> "Stream":
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)).decode().split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in head[1:] if line}
        return self

    async def body(self) -> Any:
        """The whole of an answer that is no stream."""
        return json.loads(await self.reader.readexactly(int(self.headers["content-length"])))

    async def event(self, timeout: float = 20) -> dict[str, Any] | None:
        """The next event; None at the end of the answer."""
        async with asyncio.timeout(timeout):
            while True:
                block, found, rest = self._text.partition(b"\n\n")
                if found:
                    self._text = rest
                    event = parse(block)
                    if event is not None:
                        return event
                    continue
                size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
                piece = await self.reader.readexactly(size + 2)
                if size == 0:
                    return None
                self._text += piece[:-2]

    async def until_bookmark(self) -> list[dict[str, Any]]:
        events = []
        while (event := await self.event()) is not None:
            events.append(event)
            if event["event"] == "BOOKMARK":
                break
        return events


def parse(block: bytes) -> dict[str, Any] | None:
    """One event of text/event-stream; None for what is none."""
    fields = dict(line.split(": ", 1) for line in block.decode().splitlines() if ": " in line)
    if "data" not in fields:
        return None
    return {"event": fields["event"], "id": fields.get("id", ""), "object": json.loads(fields["data"])}


@contextlib.asynccontextmanager
async def replica(store: EtcdStore, endpoint: str, directory: Path) -> AsyncIterator[Served]:
    directory.mkdir(exist_ok=True)
    for user, password in PASSWORDS.items():
        (directory / f"{user}.password").write_text(password)
    started = asyncio.Event()
    listener = server.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    config = Config(state_dir=directory, etcd=(endpoint,), port=port)
    made = Replica(config, store, etcd_server.client_credentials(config.pki_dir))
    served = Served(made, port)
    async with contextlib.AsyncExitStack() as stack:
        tasks = [asyncio.create_task(made.database.cache.run())]
        stack.push_async_callback(_end, tasks)
        await made.database.cache.ready.wait()
        await made.bootstrap()
        served.watches = asyncio.create_task(made.watches.run())
        serving = server.serve(made.gateway, "127.0.0.1", 0, listener=listener, started=started)
        tasks += [served.watches, asyncio.create_task(serving)]
        await started.wait()
        yield served


async def _end(tasks: list[asyncio.Task]) -> None:
    for task in reversed(tasks):
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def cloud(etcd, etcd_store, tmp_path) -> AsyncIterator[Served]:
    async with replica(etcd_store, etcd.endpoint, tmp_path / "a") as made:
        yield made


@pytest.fixture
async def another(cloud, etcd, tmp_path) -> AsyncIterator[Served]:
    """A second replica of the same cloud."""
    store = etcd.store()
    async with replica(store, etcd.endpoint, tmp_path / "b") as made:
        yield made
    await store.close()


async def listed(client: Client, path: str, key: str, headers: dict[str, str] | None = None) -> tuple[dict[str, Any], int]:
    """A list's rows by id, and its revision."""
    reply: Reply = await client("GET", path, headers=headers)
    assert reply.status == 200, reply.body
    return {row["id"]: row for row in reply.json[key]}, int(reply.headers["x-brume-revision"])
