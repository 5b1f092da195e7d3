"""A small noun for the kernel's own tests, and a running database over each kind of store."""
import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from google.protobuf.struct_pb2 import Struct

from control.kernel.cache import Kind
from control.kernel.database import Database
from control.kernel.quota import LEDGER
from protos.internal.v1.quota_pb2 import QuotaLedger

#: A noun with an index: the ledger's message, kept elsewhere. Its id is the project, its index the service.
THING = Kind("/test/things/", QuotaLedger, id_of=lambda thing: (thing.project_id,),
             indexes={"service": lambda thing: (thing.service,), "resource": lambda thing: thing.used.keys()})
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
