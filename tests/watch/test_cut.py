"""However often and wherever a watch is cut, whoever reads it ends with what the list says; and never reads more than that."""
import asyncio
import contextlib
import random
from typing import Any

import pytest

from tests.watch.conftest import Served, Stream, listed, parse

pytestmark = pytest.mark.etcd

CUTS = 1000


class Copy:
    """A client's copy of a list, as simple as one can be: it applies each event when it comes."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.id = ""
        self.deleted: dict[str, int] = {}

    def apply(self, event: dict[str, Any]) -> None:
        if event["event"] in ("ADDED", "MODIFIED"):
            self.rows[event["object"]["id"]] = event["object"]
        elif event["event"] == "DELETED":
            self.rows.pop(event["object"]["id"], None)
        else:
            assert event["event"] == "BOOKMARK", event
        if event["id"]:
            assert int(event["id"]) >= int(self.id or 0), "a revision came back"
            self.id = event["id"]


async def read_cut(cloud: Served, token: str, kind: str, copy: Copy, bytes_left: int) -> None:
    """Connect where the copy is, read so many bytes of the body, and go away in the middle of whatever it is."""
    if not copy.id:
        copy.rows.clear()
    async with cloud.watching(token, kind, after=copy.id) as stream:
        await stream.begin()
        assert stream.status == 200, (stream.status, copy.id)
        raw = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                while len(raw) < bytes_left:
                    piece = await stream.reader.read(bytes_left - len(raw))
                    if not piece:
                        break
                    raw += piece
    text = whole_chunks(raw)
    *blocks, _ = text.split(b"\n\n")
    for block in blocks:
        event = parse(block)
        if event is not None:
            copy.apply(event)


def whole_chunks(raw: bytes) -> bytes:
    """What has arrived of a chunked body."""
    text = b""
    while raw:
        size, found, rest = raw.partition(b"\r\n")
        if not found:
            break
        text += rest[:int(size, 16)]
        raw = rest[int(size, 16) + 2:]
    return text


async def write(cloud: Served, token: str, seed: int, done: asyncio.Event) -> None:
    """Make, change, share and delete networks with subnets and ports, until told to stop."""
    dice, client, mine = random.Random(seed), cloud.client(token), []
    while not done.is_set():
        await asyncio.sleep(dice.uniform(0, 0.02))
        if len(mine) < 3 or (len(mine) < 12 and dice.random() < 0.4):
            reply = await client("POST", "/network/v2.0/networks", json_body={"network": {"name": f"n{dice.random()}"}})
            assert reply.status == 201, reply.body
            mine.append(reply.json["network"]["id"])
            reply = await client("POST", "/network/v2.0/subnets", json_body={"subnet": {
                "network_id": mine[-1], "ip_version": 4, "cidr": "10.8.0.0/24"}})
            assert reply.status == 201, reply.body
        elif dice.random() < 0.3:
            reply = await client("DELETE", f"/network/v2.0/networks/{mine.pop(dice.randrange(len(mine)))}")
            assert reply.status == 204, reply.body
        else:
            change = {"name": f"m{dice.random()}"} if dice.random() < 0.7 or not token.startswith("admin") else {
                "shared": dice.random() < 0.5}
            reply = await client("PUT", f"/network/v2.0/networks/{dice.choice(mine)}", json_body={"network": change})
            assert reply.status == 200, reply.body


@contextlib.asynccontextmanager
async def writing(*writers):
    done = asyncio.Event()
    tasks = [asyncio.create_task(write(*writer, done)) for writer in writers]
    try:
        yield
    finally:
        done.set()
        await asyncio.gather(*tasks)


async def caught_up(cloud: Served, token: str, kind: str, copy: Copy, revision: int) -> None:
    async with cloud.watching(token, kind, after=copy.id) as stream:
        stream = await stream.begin()
        while not copy.id or int(copy.id) < revision:
            event = await stream.event()
            assert event is not None
            copy.apply(event)


@pytest.mark.parametrize(("kind", "path", "key"), [("networks", "networks", "networks"), ("subnets", "subnets", "subnets"),
                                                    ("ports", "ports", "ports")])
async def test_a_watch_that_is_cut_a_thousand_times_replays_to_the_final_list(cloud, another, kind, path, key):
    admin, demo = await cloud.token("admin"), await cloud.token("demo")
    for replica in (cloud, another):
        replica.replica.dispatcher.methods["/watch.v1.Watches/Watch"].handler.__self__._keep_alive = 0.05
    dice, copy = random.Random(kind), Copy()
    async with writing((cloud, demo, 1), (another, demo, 2), (cloud, admin, 3)):
        for cut in range(CUTS if kind == "subnets" else CUTS // 4):
            await read_cut((cloud, another)[cut % 2], demo, kind, copy, int(dice.expovariate(1 / 1500)) + 1)
    rows, revision = await listed(cloud.client(demo), f"/network/v2.0/{path}", key)
    await caught_up(another, demo, kind, copy, revision)
    assert copy.rows == rows and len(rows) > 2


async def test_a_caller_never_gets_an_event_of_what_its_list_would_not_show(cloud, another):
    """Every object that is told is one that the caller's list had at a revision since the last one that was told."""
    admin, demo = await cloud.token("admin"), await cloud.token("demo")
    project = (await cloud.client(demo)("GET", "/v3/auth/projects")).json["projects"][0]["id"]
    events: list[dict[str, Any]] = []

    async def follow(stream: Stream) -> None:
        while (event := await stream.event()) is not None:
            events.append(event)

    async with cloud.watching(demo, "networks") as stream, cloud.watching(admin, "networks", "all_projects=true") as everything:
        await stream.begin()
        seen: list[dict[str, Any]] = []
        following = asyncio.create_task(follow(stream))
        await everything.begin()
        every = asyncio.create_task(collect(everything, seen))
        client, dice, mine = cloud.client(admin), random.Random(5), []
        for turn in range(150):
            if len(mine) < 3 or turn % 10 == 0:
                reply = await client("POST", "/network/v2.0/networks", json_body={"network": {
                    "name": f"n{turn}", "shared": dice.random() < 0.3}})
                mine.append(reply.json["network"]["id"])
            change = {"shared": dice.random() < 0.5} if dice.random() < 0.5 else {"name": f"m{turn}"}
            await client("PUT", f"/network/v2.0/networks/{dice.choice(mine)}", json_body={"network": change})
        await asyncio.sleep(0.3)
        following.cancel()
        every.cancel()
        await asyncio.gather(following, every, return_exceptions=True)
    visible: dict[str, bool] = {}
    expected = []
    for event in seen:
        if event["event"] == "BOOKMARK":
            continue
        row = event["object"]
        was, now = visible.get(row["id"], False), event["event"] != "DELETED" and (
            row["project_id"] == project or row["shared"] or row["router:external"])
        visible[row["id"]] = now
        if was or now:
            expected.append(("DELETED" if not now else "MODIFIED" if was else "ADDED", row["id"]))
    told = [(event["event"], event["object"]["id"]) for event in events if event["event"] != "BOOKMARK"]
    assert told == expected and {event for event, _ in told} == {"ADDED", "MODIFIED", "DELETED"}
    rows = [event["object"] for event in events if event["event"] in ("ADDED", "MODIFIED")]
    assert all(row["shared"] or row["project_id"] == project or row["router:external"] for row in rows)


async def collect(stream: Stream, events: list[dict[str, Any]]) -> None:
    while (event := await stream.event()) is not None:
        events.append(event)
