"""The store's part of a backup: read at one revision, adjusted, and written into an empty store.

Revisions, and all that counts by them, begin anew after a restore. What agents compare is made to grow instead: a server's
generation becomes the time of the restore in milliseconds, above any that an agent can have seen (they grow by one).
"""
import asyncio
import gzip
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterable

from control.audit.journal import ORIGIN
from control.compute.model import SERVER
from control.identity.model import TOKEN_KEY
from control.image.model import GARBAGE, IMAGE
from control.kernel import replicas
from control.kernel.acting import Author, author
from control.kernel.errors import Conflict, Unavailable
from control.kernel.etcd_client import AioRpcError, prefix_range, rpc_pb2
from control.kernel.etcd_commit import MARKS
from control.kernel.etcd_maintenance import TOUCHED
from control.kernel.etcd_pages import pages
from control.kernel.etcd_store import EtcdStore
from control.kernel.fleet import HOST
from control.kernel.store import MAX_BYTES, MAX_OPERATIONS, Record, size_of
from protos.compute.v1.records_pb2 import ServerRecord
from protos.image.v1.records_pb2 import ImageRecord
from protos.internal.v1.audit_pb2 import AuditOrigin
from protos.internal.v1.backup_pb2 import StateChunk
from protos.internal.v1.fleet_pb2 import HostRecord

log = logging.getLogger(__name__)

#: Keys that say something of running processes only.
PASSING = (MARKS, *(kind.prefix for kind in replicas.KINDS), TOUCHED.decode())

#: In the store while a restore goes on: what is there beside it may be thrown away.
LOADING = "restore/loading"

#: Stands for the servers of a host that the state does not know, until its agent has said which there are.
NOT_HEARD = "?"

#: Commits under way at once while a state is loaded.
FLIGHTS = 8


async def dump(store: EtcdStore) -> AsyncIterator[tuple[int, StateChunk]]:
    """(revision, chunk) of every key that outlives processes, all at one revision.

    Raises Unavailable where etcd forgets that revision meanwhile.
    """
    try:
        async for page in pages(store.client, ""):
            chunk = StateChunk()
            for kv in page.kvs:
                key = kv.key.decode()
                if not kv.lease and not key.startswith(PASSING):
                    chunk.entries.add(key=key, value=kv.value)
            yield page.header.revision, chunk
    except AioRpcError as error:
        raise Unavailable("backup.compacted", "etcd has forgotten the backup's revision before all of it was read: try again "
                                              f"({error.details()})") from error


def pack(chunk: StateChunk) -> bytes:
    return gzip.compress(chunk.SerializeToString(), 4, mtime=0)


def unpack(data: bytes) -> StateChunk:
    return StateChunk.FromString(gzip.decompress(data))


def adjusted(key: str, value: bytes, now_ms: int, image_directory: str) -> bytes | None:
    """What a record of a backup becomes in the restored state; None: it is left out.

    All image data is in one directory afterwards, of the id `image_directory`; what was to be deleted of others is not in it.
    """
    if key.startswith((TOKEN_KEY.prefix, GARBAGE.prefix)):
        return None
    if key.startswith(IMAGE.prefix):
        image = ImageRecord.FromString(value)
        if image.directory_id:
            image.directory_id = image_directory
        return image.SerializeToString(deterministic=True)
    if key.startswith(SERVER.prefix):
        server = ServerRecord.FromString(value)
        server.desired.generation = max(server.desired.generation + 1, now_ms)
        return server.SerializeToString(deterministic=True)
    if key.startswith(HOST.prefix):
        host = HostRecord.FromString(value)
        host.strangers[:] = [NOT_HEARD]
        return host.SerializeToString(deterministic=True)
    if key == ORIGIN:
        origin = AuditOrigin.FromString(value)
        origin.era = secrets.token_hex(8)
        return origin.SerializeToString()
    return value


async def load(store: EtcdStore, chunks: Iterable[bytes], now_ms: int, image_directory: str) -> dict[str, int]:
    """Write packed chunks into a store that is empty, or in which an earlier load was cut off; how many records of each kind.

    Raises Conflict where the store has a state.
    """
    author.set(Author("control:restore"))
    if (await store.get(LOADING)).value is None:
        _, chunk = await anext(dump(store))
        if chunk.entries:
            raise Conflict("restore.state", f"etcd has a state already ({chunk.entries[0].key} and more): restore into an empty "
                                            "one")
    else:
        log.warning("an earlier restore was cut off: beginning anew")
        await store.client.call(lambda member: member.kv.DeleteRange, rpc_pb2.DeleteRangeRequest(**prefix_range("")))
    loading = await store.commit(Record(LOADING, b""))
    counts: Counter[str] = Counter()
    flights: set[asyncio.Task[int]] = set()
    group: list[Record] = []
    size = 0
    for data in chunks:
        for entry in unpack(data).entries:
            value = adjusted(entry.key, entry.value, now_ms, image_directory)
            if value is None:
                continue
            record = Record(entry.key, value)
            counts[kind_of(entry.key)] += 1
            own = size_of([record], ())
            if group and (len(group) >= MAX_OPERATIONS or size + own > MAX_BYTES):
                flights.add(asyncio.create_task(store.commit(*group)))
                group, size = [], 0
                while len(flights) >= FLIGHTS:
                    done, flights = await asyncio.wait(flights, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
            group.append(record)
            size += own
    if group:
        flights.add(asyncio.create_task(store.commit(*group)))
    await asyncio.gather(*flights)
    await store.commit(Record(LOADING, None, loading))
    return dict(counts)


def kind_of(key: str) -> str:
    """The place of a key: "compute/servers"."""
    return "/".join(key.strip("/").split("/")[:2])
