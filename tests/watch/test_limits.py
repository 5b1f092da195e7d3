"""What keeps readers from harming the replica, and one another."""
import asyncio

import pytest

from control.gateway import exchange
from control.watch import hub as hubs
from tests.watch.conftest import Served

pytestmark = pytest.mark.etcd


async def rename(cloud: Served, token: str, network: str, times: int) -> None:
    for turn in range(times):
        body = {"network": {"name": f"n{turn}", "description": "x" * 200}}
        assert (await cloud.client(token)("PUT", f"/network/v2.0/networks/{network}", json_body=body)).status == 200


async def test_a_slow_reader_is_dropped_and_told_where_to_go_on_while_others_miss_nothing(cloud, monkeypatch):
    monkeypatch.setattr(hubs, "MAX_WAITING", 20)
    token = await cloud.token("demo")
    network = (await cloud.client(token)("POST", "/network/v2.0/networks", json_body={"network": {"name": "n"}})).json["network"]
    hub = cloud.replica.watches
    async with cloud.watching(token, "networks") as quick:
        *_, bookmark = await (await quick.begin()).until_bookmark()
        (group,) = hub._groups[hub.watchables["networks"]].values()
        slow = hubs.Reader(group, "slow", hub.revision)          # one that takes nothing
        group.readers[slow] = None
        await rename(cloud, token, network["id"], 40)
        names = []
        while len(names) < 40:
            event = await quick.event()
            names += [event["object"]["name"]] if event["event"] == "MODIFIED" else []
        assert names == [f"n{turn}" for turn in range(40)]
        with pytest.raises(hubs.Slow) as caught:
            await slow.take(1)
        assert dict(caught.value.headers)["X-Brume-Resume-From"] == bookmark["id"] and not slow._waiting
        group.readers.pop(slow)
    async with cloud.watching(token, "networks", after=bookmark["id"]) as again:
        first, _ = await (await again.begin()).until_bookmark()
        assert first["object"]["name"] == "n39"


async def test_a_client_that_reads_nothing_at_all_is_cut_off_and_the_replica_forgets_it(cloud, monkeypatch):
    monkeypatch.setattr(exchange, "READ_TIMEOUT", 0.3)
    monkeypatch.setattr("control.gateway.server.LINGER", 0.3)
    token = await cloud.token("demo")
    network = (await cloud.client(token)("POST", "/network/v2.0/networks", json_body={"network": {"name": "n"}})).json["network"]
    hub = cloud.replica.watches
    async with cloud.watching(token, "networks") as stuck:
        await stuck.begin()
        stuck.reader._transport.pause_reading()
        (group,) = hub._groups[hub.watchables["networks"]].values()
        (reader,) = group.readers
        event = group.event(hubs.WatchEvent.MODIFIED, cloud.replica.database.rows(
            hub.watchables["networks"].kind)[0], {})
        async with asyncio.timeout(30):
            while hub._groups:           # more and more, until sockets and queue are full
                for _ in range(100):
                    reader.put(hubs.Told((event,), 1, 1))
                await asyncio.sleep(0)
        assert not hub._users and network
    async with cloud.watching(token, "networks") as fine:
        assert (await fine.begin()).status == 200


async def test_a_user_has_so_many_watches_and_no_more(cloud):
    cloud.replica.watches._most_per_user = 2
    demo, admin = await cloud.token("demo"), await cloud.token("admin")
    async with cloud.watching(demo, "networks") as one, cloud.watching(demo, "ports") as two:
        assert [(await stream.begin()).status for stream in (one, two)] == [200, 200]
        async with cloud.watching(demo, "images") as three:
            await three.begin()
            assert three.status == 429 and "too many watches" in (await three.body())["errors"][0]["detail"]
        async with cloud.watching(admin, "images") as other:
            assert (await other.begin()).status == 200
    async with asyncio.timeout(5):
        while cloud.replica.watches._users:
            await asyncio.sleep(0.01)
    async with cloud.watching(demo, "images") as again:
        assert (await again.begin()).status == 200


async def test_what_is_told_to_many_is_made_once(cloud):
    token = await cloud.token("demo")
    hub = cloud.replica.watches
    watchable = hub.watchables["networks"]
    made = []
    view = watchable.view
    object.__setattr__(watchable, "view", lambda record, call: made.append(record) or view(record, call))
    streams = [cloud.watching(token, "networks") for _ in range(20)]
    try:
        opened = [await (await stream.__aenter__()).begin() for stream in streams]
        for stream in opened:
            await stream.until_bookmark()
        made.clear()
        await cloud.client(token)("POST", "/network/v2.0/networks", json_body={"network": {"name": "n"}})
        told = [await stream.event() for stream in opened]
        assert {event["object"]["name"] for event in told} == {"n"} and len(made) == 1
    finally:
        for stream in streams:
            await stream.__aexit__(None, None, None)


async def test_a_native_client_that_reads_nothing_is_cut_off_too(cloud, monkeypatch):
    import grpc

    from control.kernel import rpc
    from protos.watch.v1 import watches_pb2, watches_pb2_grpc

    monkeypatch.setattr(rpc, "WRITE_TIMEOUT", 0.3)
    token = await cloud.token("demo")
    hub = cloud.replica.watches
    server = grpc.aio.server()
    rpc.add_to_grpc(cloud.replica.dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = watches_pb2_grpc.WatchesStub(channel).Watch(watches_pb2.WatchRequest(kind="networks"),
                                                               metadata=(("x-auth-token", token),))
            await call.read()
            (group,) = hub._groups[hub.watchables["networks"]].values()
            (reader,) = group.readers
            event = hubs.WatchEvent(type=hubs.WatchEvent.MODIFIED)
            event.object.value = b"x" * 1_000_000
            async with asyncio.timeout(30):
                while hub._groups:
                    reader.put(hubs.Told((event,), 1, 1))
                    await asyncio.sleep(0.001)
            assert not hub._users
            call.cancel()
    finally:
        await server.stop(0)
