"""Which control processes live: each holds one lease, and all that shall die with it hangs on that.

A record in the cache is a replica that lives, or that died less than TTL and etcd's own half second ago. One lease, renewed
by one thread, carries the replica's record and every role that it leads, however many they are.
"""
import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib.metadata import version

from control.kernel import clock
from control.kernel.cache import Kind
from control.kernel.errors import Stale, Unavailable
from control.kernel.lease_keeper import LeaseKeeper
from control.kernel.store import Record, Store
from protos.internal.v1.replicas_pb2 import Leadership, ReplicaRecord

log = logging.getLogger(__name__)

REPLICA = Kind("/replicas/", ReplicaRecord)
LEADERSHIP = Kind("/leaders/", Leadership, id_of=lambda leader: (
    leader.role, f"{leader.shard}-of-{leader.shards}"))
KINDS = (REPLICA, LEADERSHIP)

#: Seconds for which a replica that vanished is still listed: the least that etcd gives. Each third of it the lease is renewed.
TTL = 2

#: Seconds without an answer about the lease after which it is given up. An etcd that elects a leader answers nothing for one
#: or two and then extends every lease by itself, so a shorter silence says nothing; fences make a longer belief harmless.
SILENCE = 3 * TTL

#: Seconds before another try after the store failed.
PAUSE = 0.2


def new_record(host_name: str, address: str, roles: Iterable[str] = ()) -> ReplicaRecord:
    """The record of a process that starts now."""
    return ReplicaRecord(id=str(uuid.uuid4()), host_name=host_name, address=address, version=version("brume"),
                         started_at=clock.now(), roles=roles)


@dataclass(eq=False)
class Term:
    """The time from getting a lease until it is lost."""

    lease: int
    over: asyncio.Event = field(default_factory=asyncio.Event)


class Membership:
    """One replica's place among the others, while run() runs."""

    def __init__(self, store: Store, record: ReplicaRecord, ttl: int = TTL):
        self.record = record
        self._store = store
        self._ttl = ttl
        self._term: Term | None = None
        self._begun = asyncio.Event()
        self._granted = 0.0                     # when it was asked for, on the monotonic clock
        self._keeper: LeaseKeeper | None = None

    def sure(self) -> int:
        """The lease of the present term where it is certain, at this moment, that it has not ended in the store; else 0.

        What a replica promises while it is sure, it promises before any other one can see it gone.
        """
        term, keeper = self._term, self._keeper
        if term is None or keeper is None:
            return 0
        # etcd cannot have let it end before; not by the loop's clock, which stands still while the loop is busy
        return term.lease if time.monotonic() < max(self._granted, keeper.asked) + self._ttl else 0

    @property
    def id(self) -> str:
        return self.record.id

    async def term(self) -> Term:
        """The present term, once there is one."""
        while self._term is None:
            await self._begun.wait()
        return self._term

    async def run(self) -> None:
        """Be listed until cancelled; begins anew, with a new lease, when the lease was lost. Cancelled, it revokes the lease."""
        while True:
            try:
                asked = time.monotonic()
                lease = await self._store.grant(self._ttl)
                self._granted, self._keeper = asked, None
            except Unavailable as error:
                log.warning("replica %s: %s", self.id, error)
                await asyncio.sleep(PAUSE)
                continue
            try:
                await self._keep(lease)
            finally:
                await self._end(lease)
            log.warning("replica %s: its lease was lost, it begins anew", self.id)

    async def _keep(self, lease: int) -> None:
        """Write the record, begin a term, and keep the lease until it is lost."""
        key = REPLICA.key_of(self.record)
        try:
            # what an earlier term left there dies with its lease, but perhaps not yet
            left = await self._store.get(key)
            await self._store.commit(Record(key, self.record.SerializeToString(deterministic=True), left.revision, lease=lease))
        except (Stale, Unavailable) as error:
            log.warning("replica %s: not listed: %s", self.id, error)
            await asyncio.sleep(PAUSE)
            return
        self._term = Term(lease)
        self._begun.set()
        log.info("replica %s: listed, at %s", self.id, self.record.address)
        try:
            with LeaseKeeper(self._store.renewer(), lease, every=self._ttl / 3, silence=SILENCE) as self._keeper:
                await self._keeper.lost.wait()
        finally:
            self._term.over.set()
            self._term = None
            self._begun.clear()

    async def _end(self, lease: int) -> None:
        """Revoke the lease; where that fails it ends by itself."""
        revoking = asyncio.ensure_future(self._store.revoke(lease))
        try:
            await asyncio.shield(revoking)
        except Unavailable as error:
            log.info("replica %s: its lease ends by itself: %s", self.id, error)
        except asyncio.CancelledError:
            with contextlib.suppress(Unavailable):
                await revoking
            raise
