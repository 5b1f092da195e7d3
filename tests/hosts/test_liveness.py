"""Heartbeats, leases and fencing: a silent host is written down, and one that only waits is not."""
import asyncio

import grpc
import pytest

from control.hosts import leases, liveness, service
from control.kernel import clock, fleet, replicas
from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1.fleet_pb2 import HostRecord
from protos.internal.v1.replicas_pb2 import ReplicaRecord
from tests.hosts.world import attached, automatic, held_by, hello, until


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
