"""Agents over real mTLS: they get their host's objects, what they observe arrives, what they are asked is answered."""
import asyncio

import grpc
import pytest

from control.kernel import fleet
from control.kernel.errors import Unavailable
from control.kernel.interfaces import DiskMove
from protos.internal.v1 import hosts_pb2 as pb
from tests.hosts.world import THING, OtherReplica, attached, held_by, hello, put, until


async def test_an_agent_gets_a_snapshot_of_its_own_host_and_then_only_what_changes(world):
    database, _, _, stub = world
    await put(database, "a", "one")
    await put(database, "b", "two")
    call = stub("one").Attach()
    await call.write(hello("one"))
    snapshot = (await call.read()).desired
    assert snapshot.snapshot and [thing.key for thing in snapshot.upserts] == ["router/a"]
    await put(database, "b", "two", up=1)
    await put(database, "c", "one")
    change = (await call.read()).desired
    assert not change.snapshot and [thing.key for thing in change.upserts] == ["router/c"] and not change.removed
    await database.transact(lambda tx: tx.delete(THING, "a"))
    assert list((await call.read()).desired.removed) == ["router/a"]
    call.cancel()


async def test_the_hosts_record_says_what_it_has_and_that_it_is_up(world):
    database, _, _, stub = world
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    record = database.get(fleet.HOST, "one")
    assert record.up and record.inventory.ram_mib == 8192 and record.id
    provider = database.get(fleet.PROVIDER, record.id)
    assert provider.name == "one" and provider.inventories["MEMORY_MB"].total == 8192
    revision, _ = database.cache.at(fleet.HOST, fleet.HOST.key("one"))
    assert database.cache.at(fleet.PROVIDER, fleet.PROVIDER.key(record.id))[0] == revision, "one commit"
    call.cancel()


async def test_what_an_agent_observes_reaches_the_observers(world):
    _, things, _, stub = world
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    await call.write(pb.AgentMessage(server=pb.ObservedServer(id="s")))
    await call.write(pb.AgentMessage(port=pb.ObservedPort(id="p")))
    await call.write(pb.AgentMessage(gone=pb.Gone(key="server/s")))
    await until(lambda: things.seen == [("one", "s"), ("one", "p"), ("one", "server/s")])
    call.cancel()


async def test_servers_that_the_state_does_not_know_are_written_down_with_their_host(world):
    database, _, _, stub = world
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    await call.write(pb.AgentMessage(strangers=pb.Strangers(server_ids=["b", "a"])))
    await until(lambda: list(database.get(fleet.HOST, "one").strangers) == ["a", "b"])
    await call.write(pb.AgentMessage(strangers=pb.Strangers()))
    await until(lambda: not database.get(fleet.HOST, "one").strangers)
    call.cancel()


async def test_an_agent_cannot_speak_for_another_host(world):
    _, _, _, stub = world
    call = stub("one").Attach()
    await call.write(hello("two"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_question_is_answered_by_the_hosts_agent_and_fails_plainly_without_one(world):
    _, _, hosts, stub = world
    with pytest.raises(Unavailable, match="not attached"):
        await hosts.console_log("one", "s", 10)
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    asked = asyncio.create_task(hosts.console_log("one", "s", 10))
    query = (await call.read()).query
    assert (query.console_log.server_id, query.console_log.lines) == ("s", 10)
    await call.write(pb.AgentMessage(reply=pb.Reply(id=query.id, data=b"boot")))
    assert await asked == b"boot"
    asked = asyncio.create_task(hosts.console_log("one", "s", 10))
    await call.read()
    call.cancel()
    with pytest.raises(Unavailable):
        await asked


async def test_a_second_stream_of_a_host_replaces_the_first(world):
    database, _, _, stub = world
    first = stub("one").Attach()
    await first.write(hello("one"))
    await first.read()
    second = stub("one").Attach()
    await second.write(hello("one"))
    await second.read()
    assert await first.read() is grpc.aio.EOF
    await put(database, "a", "one")
    assert [thing.key for thing in (await second.read()).desired.upserts] == ["router/a"]
    second.cancel()


async def test_a_replica_that_stops_says_farewell_to_its_agents_and_to_those_who_come_too_late(world):
    _, _, hosts, stub = world
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    asked = asyncio.create_task(hosts.console_log("one", "s", 10))
    query = (await call.read()).query
    hosts.leave()
    await call.write(pb.AgentMessage(reply=pb.Reply(id=query.id, data=b"boot")))
    assert await asked == b"boot", "what was asked is answered first"
    assert (await call.read()).HasField("farewell") and await call.read() is grpc.aio.EOF
    late = stub("two").Attach()
    await late.write(hello("two"))
    assert (await late.read()).HasField("farewell") and await late.read() is grpc.aio.EOF


async def test_a_host_that_is_attached_elsewhere_is_asked_by_way_of_that_replica_and_its_stream_here_ends(world):
    database, _, hosts, stub = world
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    await held_by(database, "one", "there")
    assert await call.read() is grpc.aio.EOF
    hosts._peers = other = OtherReplica()
    assert await hosts.console_log("one", "s", 10) == b"from afar" and other.asked == [("there", "one")]
    with pytest.raises(Unavailable, match="not attached"):
        await hosts.console_log("nobody", "s", 10)


async def test_a_disk_goes_from_one_agent_to_the_other_and_to_nobody_else(world):
    _, _, hosts, stub = world
    hosts._disks._moves.move = DiskMove("m", "source", "target")
    asked = pb.FetchDiskRequest(server_id="s", move_id="m")

    async def refused(call) -> grpc.StatusCode:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        return caught.value.code()

    assert await refused(stub("target").FetchDisk(asked)) is grpc.StatusCode.UNAVAILABLE, "the source is not attached"
    assert await refused(stub("thief").FetchDisk(asked)) is grpc.StatusCode.PERMISSION_DENIED
    stale = pb.FetchDiskRequest(server_id="s", move_id="old")
    assert await refused(stub("target").FetchDisk(stale)) is grpc.StatusCode.FAILED_PRECONDITION
    source, _ = await attached(stub, "source")
    fetching = stub("target").FetchDisk(asked)
    query = (await source.read()).query
    assert query.disk == pb.DiskQuery(server_id="s", move_id="m")

    async def disk(*parts):
        yield pb.DiskChunk(head=pb.DiskHead(move_id="m"))
        for part in parts:
            yield pb.DiskChunk(data=part)
        yield pb.DiskChunk(tail=pb.DiskTail(size=6, sha256="x"))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub("thief").SendDisk(disk(b"bad"))
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await stub("source").SendDisk(disk(b"one", b"two"))
    arrived = [chunk async for chunk in fetching]
    assert arrived[0].HasField("head") and b"".join(chunk.data for chunk in arrived) == b"onetwo" and arrived[-1].HasField("tail")
    fetching = stub("target").FetchDisk(asked)
    query = (await source.read()).query
    await source.write(pb.AgentMessage(reply=pb.Reply(id=query.id, error="it is on")))
    assert await refused(fetching) is grpc.StatusCode.UNAVAILABLE
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub("source").SendDisk(disk())
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    source.cancel()


async def test_images_are_streamed_and_an_unknown_one_is_not_found(world):
    _, _, _, stub = world
    chunks = [answer.data async for answer in stub("one").FetchImage(pb.FetchImageRequest(sha512="known"))]
    assert b"".join(chunks) == b"onetwo"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub("one").FetchImage(pb.FetchImageRequest(sha512="other")).read()
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_host_that_is_up_without_a_provider_gets_it_when_its_agent_attaches_again(world):
    database, _, _, stub = world
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    record = database.get(fleet.HOST, "one")
    await database.transact(lambda tx: [tx.delete(fleet.PROVIDER, record.id), tx.delete(fleet.PROVIDER_NAME, "one")])
    again = stub("one").Attach()
    await again.write(hello("one"))
    await again.read()
    assert database.get(fleet.PROVIDER, record.id).inventories["MEMORY_MB"].total == 8192
    again.cancel()
    call.cancel()


async def test_a_familys_certificate_attaches_its_hosts_and_no_others(world):
    _, _, _, stub = world
    call = stub("*.sim").Attach()
    await call.write(hello("one.sim"))
    assert (await call.read()).desired.snapshot
    call.cancel()
    call = stub("*.sim").Attach()
    await call.write(hello("one"))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call.read()
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_what_was_observed_together_is_taken_in_together_ports_first(world):
    _, things, _, stub = world
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    await call.write(pb.AgentMessage(observations=pb.Observations(
        servers=[pb.ObservedServer(id=f"s{number}") for number in range(25)], ports=[pb.ObservedPort(id="p")],
        gone=[pb.Gone(key="server/g")])))
    await until(lambda: len(things.seen) == 27)
    assert things.seen[0] == ("one", "p") and things.seen[-1] == ("one", "server/g")
    assert {name for _, name in things.seen[1:-1]} == {f"s{number}" for number in range(25)}
    call.cancel()


async def test_hosts_that_share_a_thing_hear_of_it_a_little_later(world):
    database, _, _, stub = world
    await put(database, "a", "one")
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    for number in range(20):
        await put(database, "b", "one", shared=number)
    heard = (await call.read()).desired
    assert [thing.key for thing in heard.upserts] == ["router/b"]
    assert heard.revision == database.cache.revision, "many changes at a time"
    call.cancel()


async def test_an_object_whose_version_stays_is_not_made_again_and_one_that_comes_out_the_same_is_not_sent(world):
    database, things, _, stub = world
    await put(database, "a", "one")
    await put(database, "b", "one")
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    assert sorted(things.made) == ["router/a", "router/b"]
    things.made.clear()
    await put(database, "a", "one", colour=7)
    await until(lambda: things.made == ["router/a"])
    await put(database, "b", "one", up=1)
    change = (await call.read()).desired
    assert [thing.key for thing in change.upserts] == ["router/b"] and things.made == ["router/a", "router/b"]
    call.cancel()
