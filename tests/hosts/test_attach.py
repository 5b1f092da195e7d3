"""Agents over real mTLS: they get their host's objects, what they observe arrives, and a silent host is written down."""
import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from control.hosts import leases, liveness, service
from control.hosts.liveness import Fencing
from control.hosts.service import Hosts
from control.kernel import clock, fleet, pki, replicas, rpc
from control.kernel.cache import Change, Kind
from control.kernel.database import Database
from control.kernel.errors import NotFound, Unavailable
from control.kernel.interfaces import DiskMove
from control.placement.host_providers import HostProviders
from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1 import hosts_pb2_grpc as stubs
from protos.internal.v1.fleet_pb2 import HostRecord
from protos.internal.v1.quota_pb2 import QuotaLedger
from protos.internal.v1.replicas_pb2 import ReplicaRecord
from tests.upgrade.later_store import LaterStore

#: A stand-in for a service's records: a ledger whose "service" is the host that it lives on.
THING = Kind("/test/things/", QuotaLedger, id_of=lambda thing: (thing.project_id,),
             indexes={"host": lambda thing: (thing.service,)})


class Things:
    """Projects things as routers, and keeps what it is told."""

    def __init__(self, database: Database):
        self._db = database
        self.seen: list = []
        self.made: list = []

    def hosts_of(self, change: Change):
        return {thing.service for thing in (change.before, change.after)
                if change.kind is THING and thing is not None and "shared" not in thing.used}

    def shared_by(self, change: Change):
        return ["all"] if change.kind is THING and change.after is not None and "shared" in change.after.used else []

    def hosts_sharing(self, name: str):
        return {thing.service for thing in self._db.cache.all(THING)}

    def parts_for(self, host: str):
        for thing in self._db.cache.by(THING, "host", host):
            key = f"router/{thing.project_id}"
            yield key, self._db.cache.at(THING, THING.key_of(thing))[0], functools.partial(self._make, key, thing)

    def _make(self, key: str, thing: QuotaLedger):
        self.made.append(key)
        return pb.HostObject(key=key, router=pb.HostRouter(id=thing.project_id, admin_up=bool(thing.used.get("up"))))

    def observed_server(self, transaction, host, server):
        self.seen.append((host, server.id))
        return ""

    def observed_port(self, transaction, host, port):
        self.seen.append((host, port.id))
        return ""

    async def gone(self, host, gone):
        self.seen.append((host, gone.key))


class NoImages:
    async def read(self, sha512: str) -> AsyncIterator[bytes]:
        if sha512 != "known":
            raise NotFound("image", "no such image")
        for chunk in (b"one", b"two"):
            yield chunk


class Moves:
    move = None

    def disk_move(self, server_id):
        return self.move


class Nobody:
    async def authenticate(self, token):
        raise AssertionError("agents carry certificates, not tokens")


@pytest.fixture
async def world(tmp_path: Path):
    """(database, things, hosts, a function from host name to a stub)"""
    database = Database(store := LaterStore(), [*replicas.KINDS, *fleet.KINDS, THING])
    things = Things(database)
    membership = replicas.Membership(store, replicas.new_record("control", "127.0.0.1:1"))
    hosts = Hosts(database, [things], [things], NoImages(), HostProviders(), membership, Moves())
    dispatcher = rpc.Dispatcher(Nobody())
    dispatcher.add(hosts, pb.DESCRIPTOR.services_by_name["Hosts"])
    server = grpc.aio.server()
    rpc.add_to_grpc(dispatcher, server)
    own = pki.ensure_leaf(tmp_path, "agents", ["127.0.0.1", "localhost"], server=True)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(
        [(own.key.read_bytes(), own.certificate.read_bytes())], own.ca.read_bytes(), require_client_auth=True))
    await server.start()
    channels = []

    def stub(host: str) -> stubs.HostsStub:
        leaf = pki.ensure_leaf(tmp_path, host, client=True)
        channel = grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(
            leaf.ca.read_bytes(), leaf.key.read_bytes(), leaf.certificate.read_bytes()))
        channels.append(channel)
        return stubs.HostsStub(channel)

    tasks = [asyncio.create_task(database.cache.run()), asyncio.create_task(membership.run()), asyncio.create_task(hosts.run())]
    await database.cache.ready.wait()
    await membership.term()
    yield database, things, hosts, stub
    for channel in channels:
        await channel.close()
    await server.stop(None)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def hello(host: str) -> pb.AgentMessage:
    return pb.AgentMessage(hello=pb.Hello(host=host, inventory=pb.Inventory(vcpus=4, ram_mib=8192, disk_gib=100)))


async def put(database: Database, name: str, host: str, **used: int) -> None:
    await database.transact(lambda tx: tx.put(THING, QuotaLedger(project_id=name, service=host, used=used)))


async def until(done):
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.01)


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


async def test_a_host_whose_agent_is_gone_is_written_down(world, monkeypatch):
    monkeypatch.setattr(leases, "GRACE", 0.1)
    database, _, _, stub = world
    call = stub("one").Attach()
    await call.write(hello("one"))
    await call.read()
    call.cancel()
    await until(lambda: not database.get(fleet.HOST, "one").up)


async def test_an_agent_that_waits_for_its_turn_to_be_attached_is_not_missed(world, monkeypatch):
    monkeypatch.setattr(leases, "GRACE", 0.1)
    monkeypatch.setattr(leases, "LOOK_EVERY", 0.02)
    database, _, hosts, stub = world
    hosts._slots = turns = asyncio.Semaphore(1)
    first = stub("one").Attach()
    await first.write(hello("one"))
    await first.read()
    await turns.acquire()                                   # others are attached, one after the other
    again = stub("one").Attach()
    await again.write(hello("one"))
    await until(lambda: "one" in hosts._coming)
    first.cancel()
    await until(lambda: "one" not in hosts._sessions)
    await asyncio.sleep(0.6)
    assert database.get(fleet.HOST, "one").up
    turns.release()
    assert (await again.read()).desired.snapshot
    assert not hosts._coming
    again.cancel()
    await until(lambda: not database.get(fleet.HOST, "one").up)


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


class OtherReplica:
    """Has every host, and notes what it is asked."""

    def __init__(self):
        self.asked = []

    async def ask_host(self, replica_id, host, query):
        self.asked.append((replica_id, host))
        return pb.Reply(data=b"from afar")


async def held_by(database: Database, name: str, replica: str) -> None:
    """Another replica has a host's stream."""
    def moved(tx):
        record = tx.require(fleet.HOST, name)
        record.replica = replica
        tx.put(fleet.HOST, record)

    await database.transact(moved)


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


async def test_a_host_is_written_down_by_the_replica_it_was_attached_to_or_by_the_leader_when_that_is_gone(world, monkeypatch):
    monkeypatch.setattr(leases, "GRACE", 0.1)
    database, _, hosts, stub = world
    await database.transact(lambda tx: tx.put(replicas.REPLICA, ReplicaRecord(id="there")))
    for name, replica in (("one", "there"), ("two", "gone")):
        call = stub(name).Attach()
        await call.write(hello(name))
        await call.read()
        await held_by(database, name, replica)
    leading = asyncio.create_task(hosts.liveness.lead([]))
    await until(lambda: not database.get(fleet.HOST, "two").up)
    await asyncio.sleep(0.3)
    assert database.get(fleet.HOST, "one").up
    assert not database.get(fleet.HOST, "two").HasField("fenced_at"), "down is not off"
    await database.transact(lambda tx: tx.delete(replicas.REPLICA, "there"))
    await until(lambda: not database.get(fleet.HOST, "one").up)
    leading.cancel()


async def test_where_many_hosts_are_missed_at_once_they_get_more_time_and_the_rest_goes_on(world, monkeypatch):
    monkeypatch.setattr(leases, "GRACE", 0.1)
    monkeypatch.setattr(liveness, "MANY", 10)
    monkeypatch.setattr(liveness, "MANY_PATIENCE", 1.5)
    database, _, hosts, _ = world
    names = [f"host-{number}" for number in range(40)]
    for name in names:
        await database.transact(lambda tx, name=name: tx.put(fleet.HOST, HostRecord(name=name, id=name, up=True, replica="gone")))

    def up() -> int:
        return sum(host.up for host in database.cache.all(fleet.HOST))

    leading = asyncio.create_task(hosts.liveness.lead([]))
    started = asyncio.get_running_loop().time()
    await until(lambda: up() == 0)
    assert asyncio.get_running_loop().time() - started > 1.5, "all forty at once are more likely our fault"
    for name in names[:10]:                                    # of forty, ten are lost and no more
        await database.transact(lambda tx, name=name: tx.put(fleet.HOST, HostRecord(name=name, id=name, up=True, replica="lost")))
    started = asyncio.get_running_loop().time()
    await until(lambda: up() == 0)
    assert asyncio.get_running_loop().time() - started < 1.5
    leading.cancel()


# Leases

def automatic(hosts: Hosts, *command: str) -> None:
    hosts._fencing = hosts.liveness._fencing = Fencing(True, command)


async def attached(stub, name: str, **fields):
    """A stream of a host, and the first message on it."""
    call = stub(name).Attach()
    message = hello(name)
    for field, value in fields.items():
        setattr(message.hello, field, value)
    await call.write(message)
    return call, await call.read()


async def test_hello_and_heartbeats_are_acknowledged_and_give_leases_where_servers_are_evacuated_on_their_own(world):
    _, _, hosts, stub = world
    call, first = await attached(stub, "one")
    assert first.HasField("desired") and (first.lease.heartbeat, first.lease.seconds, first.lease.epoch) == (0, 0, 0)
    automatic(hosts)
    await call.write(pb.AgentMessage(heartbeat=pb.Heartbeat(number=1)))
    assert (await call.read()).lease == pb.Lease(heartbeat=1, seconds=leases.LEASE)
    call.cancel()


async def test_nothing_is_acknowledged_by_a_replica_that_may_have_been_taken_for_gone(world, monkeypatch):
    _, _, hosts, stub = world
    call, _ = await attached(stub, "one")
    terms = [0]
    monkeypatch.setattr(hosts._membership, "sure", lambda: terms[0])
    await call.write(pb.AgentMessage(heartbeat=pb.Heartbeat(number=1)))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.2):
            await call.read()
    late = stub("two").Attach()
    await late.write(hello("two"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await late.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    call, terms[0] = stub("three").Attach(), 4711
    await call.write(hello("three"))
    await call.read()
    terms[0] = 4712                         # it was listed anew
    await call.write(pb.AgentMessage(heartbeat=pb.Heartbeat(number=1)))
    assert await call.read() is grpc.aio.EOF


async def test_a_host_is_fenced_when_its_lease_is_over_and_let_in_when_it_holds_nothing_old(world, monkeypatch):
    monkeypatch.setattr(leases, "GRACE", 0.2)
    database, _, hosts, stub = world
    automatic(hosts)
    leading = asyncio.create_task(hosts.liveness.lead([]))
    call, _ = await attached(stub, "one")
    await call.write(pb.AgentMessage(heartbeat=pb.Heartbeat(number=1, leased=True)))
    await until(lambda: database.get(fleet.HOST, "one").leased)
    call.cancel()
    await until(lambda: fleet.lost_for_good(database.get(fleet.HOST, "one")))
    record = database.get(fleet.HOST, "one")
    assert (record.up, record.epoch, record.replica) == (False, 1, "")
    monkeypatch.setattr(leases, "GRACE", 15.0)
    call, first = await attached(stub, "one", leased=True)
    assert first.lease.epoch == 1 and first.desired.snapshot
    record = database.get(fleet.HOST, "one")
    assert not record.up and not fleet.lost_for_good(record), "neither placed on nor evacuated"
    await call.write(pb.AgentMessage(readmit=pb.Readmit(epoch=0)))
    await call.write(pb.AgentMessage(readmit=pb.Readmit(epoch=1)))
    await until(lambda: database.get(fleet.HOST, "one").up)
    assert not database.get(fleet.HOST, "one").HasField("fenced_at")
    call.cancel()
    call, first = await attached(stub, "one", epoch=1)
    assert database.get(fleet.HOST, "one").up and first.lease.epoch == 1
    call.cancel()
    leading.cancel()


async def test_a_host_whose_guests_are_not_bound_is_down_and_not_fenced_unless_its_power_can_be_cut(world, monkeypatch, tmp_path):
    monkeypatch.setattr(leases, "GRACE", 0.2)
    database, _, hosts, stub = world
    automatic(hosts)
    leading = asyncio.create_task(hosts.liveness.lead([]))
    call, _ = await attached(stub, "one")
    call.cancel()
    await until(lambda: not database.get(fleet.HOST, "one").up)
    await asyncio.sleep(0.3)
    assert not database.get(fleet.HOST, "one").HasField("fenced_at")
    script = tmp_path / "off"
    script.write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/asked\ntest -e {tmp_path}/works\n")
    script.chmod(0o755)
    automatic(hosts, str(script), "--off")
    leading.cancel()
    leading = asyncio.create_task(hosts.liveness.lead([]))
    await until(lambda: (tmp_path / "asked").exists())
    await asyncio.sleep(0.3)
    assert not database.get(fleet.HOST, "one").HasField("fenced_at"), "the command failed"
    (tmp_path / "works").touch()
    await until(lambda: fleet.lost_for_good(database.get(fleet.HOST, "one")))
    assert set((tmp_path / "asked").read_text().splitlines()) == {"--off one"}
    leading.cancel()


async def test_no_agent_of_a_host_that_is_forced_down_is_let_in(world):
    database, _, _, stub = world
    call, _ = await attached(stub, "one")

    def force(tx, down=True):
        record = tx.require(fleet.HOST, "one")
        record.forced_down = down
        if down:
            fleet.fence(record, clock.now())
        tx.put(fleet.HOST, record)

    await database.transact(force)
    assert await call.read() is grpc.aio.EOF
    again = stub("one").Attach()
    await again.write(hello("one"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await again.read()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    await database.transact(lambda tx: force(tx, False))
    again, first = await attached(stub, "one")
    assert first.lease.epoch == 1 and not database.get(fleet.HOST, "one").up
    again.cancel()


async def test_a_host_that_goes_to_another_replica_in_time_was_never_down(world, monkeypatch):
    monkeypatch.setattr(leases, "GRACE", 0.3)
    database, _, hosts, stub = world
    leading = asyncio.create_task(hosts.liveness.lead([]))
    call, _ = await attached(stub, "one")
    await held_by(database, "one", "gone")
    await asyncio.sleep(0.1)
    call, _ = await attached(stub, "one")
    await asyncio.sleep(0.6)
    record = database.get(fleet.HOST, "one")
    assert record.up and record.epoch == 0 and record.replica == hosts._membership.id
    call.cancel()
    leading.cancel()


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


async def test_agents_are_told_how_often_to_say_that_they_live_and_when_that_changes(world, monkeypatch):
    monkeypatch.setattr(service, "HEARTBEATS", 0.1)
    _, _, _, stub = world
    calls = []
    for name, seconds in (("one", 10.0), ("two", 20.0)):
        call = stub(name).Attach()
        await call.write(hello(name))
        assert (await call.read()).welcome.heartbeat_seconds == seconds
        calls.append(call)
    for heartbeat_seconds in (20.0, 0.0):                    # told once
        number = 1 if heartbeat_seconds else 2
        await calls[0].write(pb.AgentMessage(heartbeat=pb.Heartbeat(number=number)))
        assert (await calls[0].read()).lease == pb.Lease(heartbeat=number, heartbeat_seconds=heartbeat_seconds)
    for call in calls:
        call.cancel()


async def test_a_host_whose_stream_just_broke_is_given_time_to_come_back_however_long_it_was_quiet(world, monkeypatch):
    database, _, hosts, stub = world
    call, _ = await attached(stub, "one")
    hosts._leases._acknowledged["one"] -= 60                 # with many hosts each says little
    call.cancel()
    await until(lambda: "one" not in hosts._sessions)
    await asyncio.sleep(1.2)
    assert database.get(fleet.HOST, "one").up
    monkeypatch.setattr(leases, "GRACE", 0.1)
    await until(lambda: not database.get(fleet.HOST, "one").up)


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
