"""Members come to a cluster one at a time, as learners first; one whose data are gone is not taken for a new one."""
import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control.kernel import etcd_members
from control.kernel.errors import Conflict, NotFound, Unavailable
from control.kernel.etcd_client import Client, rpc_pb2
from tests.conftest import Etcd


@pytest.fixture
async def three(tmp_path: Path) -> AsyncIterator[list[Etcd]]:
    if not shutil.which("etcd"):
        pytest.skip("no etcd here: apt-get install etcd-server")
    servers = [Etcd(tmp_path, name) for name in ("a", "b", "c")]
    servers[0].start()
    await servers[0].ready()
    yield servers
    for server in servers:
        server.kill()


@contextlib.asynccontextmanager
async def client(*servers: Etcd) -> AsyncIterator[Client]:
    made = Client([server.endpoint for server in servers], servers[0].credentials)
    try:
        yield made
    finally:
        await made.close()


async def add(own: Etcd, all_of_them: list[Etcd], asked: Client, within: float = 10.0) -> None:
    places = {server.config.name: server.config.peer_url for server in all_of_them}
    joins = await etcd_members.join(asked, own.config.name, own.config.peer_url, places, within)
    object.__setattr__(own.config, "joins", joins)
    own.peers = [server for server in all_of_them if server is not own and server.config.name in joins]
    own.start()


async def settled(asked: Client, names: set[str]) -> None:
    async with asyncio.timeout(20):
        while await etcd_members.settle(asked) != names:
            await asyncio.sleep(0.1)


async def test_a_cluster_of_one_grows_to_three_and_outlives_its_founder(three: list[Etcd]) -> None:
    a, b, c = three
    async with client(a) as asked:
        await asked.call(lambda member: member.kv.Put, rpc_pb2.PutRequest(key=b"k", value=b"v"))
        await add(b, three, asked)
        await settled(asked, {"a", "b"})
        await add(c, three, asked)
        await settled(asked, {"a", "b", "c"})
    a.kill()
    async with client(b, c) as asked:
        answer = await asked.call(lambda member: member.kv.Range, rpc_pb2.RangeRequest(key=b"k"))
        assert answer.kvs[0].value == b"v"


async def test_one_member_learns_at_a_time_and_one_that_never_started_is_taken_as_it_is(three: list[Etcd]) -> None:
    a, b, c = three
    places = {server.config.name: server.config.peer_url for server in three}
    async with client(a) as asked:
        for _ in range(2):
            joins = await etcd_members.join(asked, "b", b.config.peer_url, places, 5.0)
            assert joins == {"a": a.config.peer_url, "b": b.config.peer_url}
        with pytest.raises(Unavailable, match="learner"):
            await etcd_members.join(asked, "c", c.config.peer_url, places, 0.5)
        assert await etcd_members.settle(asked) == {"a"}
        await etcd_members.remove(asked, "b", b.config.peer_url)
        with pytest.raises(NotFound, match="no member b"):
            await etcd_members.remove(asked, "b", b.config.peer_url)


async def test_a_member_whose_data_are_gone_joins_only_after_it_was_removed(three: list[Etcd]) -> None:
    a, b, _ = three
    async with client(a) as asked:
        await add(b, three, asked)
        await settled(asked, {"a", "b"})
        places = {server.config.name: server.config.peer_url for server in three}
        with pytest.raises(Conflict, match="brume etcd replace b"):
            await etcd_members.join(asked, "b", b.config.peer_url, places, 5.0)
        await etcd_members.remove(asked, "b")
        b.kill()
        shutil.rmtree(b.config.data_dir)
        await add(b, three, asked)
        await settled(asked, {"a", "b"})


async def test_a_member_that_was_alone_moves_before_others_join_it(three: list[Etcd]) -> None:
    a, b, _ = three
    places = {"a": f"https://localhost:{a.config.peer_port}", "b": b.config.peer_url}
    async with client(a) as asked:
        with pytest.raises(Unavailable, match="has not moved"):
            await etcd_members.join(asked, "b", b.config.peer_url, places, 0.5)
        assert await etcd_members.settle(asked, {"a": places["a"]}) == {"a"}
        assert await etcd_members.join(asked, "b", b.config.peer_url, places, 5.0) == places
