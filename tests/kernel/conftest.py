"""A small noun for the kernel's own tests, and a running database over each kind of store."""
import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
from google.protobuf.struct_pb2 import Struct

from control.kernel.cache import Kind
from control.kernel.database import Database
from control.kernel.etcd_client import rpc_pb2
from control.kernel.etcd_store import EtcdStore
from control.kernel.quota import LEDGER
from protos.internal.v1.quota_pb2 import QuotaLedger
from tests.conftest import Etcd

#: A noun with an index: the ledger's message, kept elsewhere. Its id is the project, its index the service. Its order has ties.
THING = Kind("/test/things/", QuotaLedger, id_of=lambda thing: (thing.project_id,),
             indexes={"service": lambda thing: (thing.service,), "resource": lambda thing: thing.used.keys()},
             order=lambda thing: (-thing.used.get("r1", 0), thing.used.get("r2", 0)))
#: Another, whose ids have two parts: a thing's and its own.
PART = Kind("/test/parts/", Struct, id_of=lambda part: (part["thing"], part["name"]))


def thing(name: str, service: str = "", **used: int) -> QuotaLedger:
    return QuotaLedger(project_id=name, service=service, used=used)


def part(of: str, name: str) -> Struct:
    message = Struct()
    message.update({"thing": of, "name": name})
    return message


@pytest.fixture
async def db(store) -> AsyncIterator[Database]:
    """A database whose cache follows the store."""
    database = Database(store, [THING, PART, LEDGER])
    task = asyncio.create_task(database.cache.run())
    async with asyncio.timeout(10):
        await database.cache.ready.wait()
    yield database
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.fixture
def cluster(tmp_path) -> Iterator[list[Etcd]]:
    """Three members of one cluster."""
    members = [Etcd(tmp_path, name) for name in ("one", "two", "three")]
    for member in members:
        member.peers = [other for other in members if other is not member]
        member.start()
    yield members
    for member in members:
        member.kill()


async def etcd_leader(store: EtcdStore, cluster: list[Etcd]) -> Etcd:
    """The member that leads a cluster."""
    status = await store.client.call(lambda member: member.maintenance.Status, rpc_pb2.StatusRequest())
    [leader] = [member for member in cluster if (await store.client.at(member.endpoint).maintenance.Status(
        rpc_pb2.StatusRequest())).header.member_id == status.leader]
    return leader
