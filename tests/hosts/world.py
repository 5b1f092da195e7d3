"""A control plane's end of agents' streams over real mTLS, with a stand-in for the services behind it."""
import asyncio
import functools
from collections.abc import AsyncIterator

from control.hosts.liveness import Fencing
from control.hosts.service import Hosts
from control.kernel import fleet
from control.kernel.cache import Change, Kind
from control.kernel.database import Database
from control.kernel.errors import NotFound
from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1.quota_pb2 import QuotaLedger

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


def hello(host: str) -> pb.AgentMessage:
    return pb.AgentMessage(hello=pb.Hello(host=host, inventory=pb.Inventory(vcpus=4, ram_mib=8192, disk_gib=100)))


async def put(database: Database, name: str, host: str, **used: int) -> None:
    await database.transact(lambda tx: tx.put(THING, QuotaLedger(project_id=name, service=host, used=used)))


async def until(done):
    async with asyncio.timeout(5):
        while not done():
            await asyncio.sleep(0.01)


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
