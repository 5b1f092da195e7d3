"""Calls to an etcd cluster: one channel per member, deadlines, and the next member when one does not answer.

Every request that is sent here may be sent again: a caller makes it so that applying it twice is the same as once.
"""
import asyncio
import logging
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc
from grpc.aio import AioRpcError

from control.kernel.errors import Unavailable
from control.kernel.pki import Credentials
from control.kernel.tls import grpc_channel_credentials

log = logging.getLogger(__name__)

#: Seconds for one try. A call in flight when a member dies hangs to its deadline, so it is short; but above the time of
#: an election in etcd (1 s), or each election would fail all calls twice.
DEADLINE = 1.5
#: Seconds after which a call that no member answered is given up. Long enough to sit out a restart of etcd.
PATIENCE = 6.0
#: Seconds between two looks whether etcd is full: maintenance makes room then.
GUARD_EVERY = 10.0
#: Seconds between two rounds over the members.
PAUSE = 0.1

OPTIONS = (
    ("grpc.max_receive_message_length", -1),       # a page of records, a fragment of a watch: etcd bounds them
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),            # finds a dead peer under a silent watch; etcd allows one ping in 5 s
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
)

#: Statuses after which another try is worth it; whether the call took effect is not known.
_AGAIN = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED,
                    grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.ABORTED,
                    grpc.StatusCode.RESOURCE_EXHAUSTED})

#: Asks a member to end a stream when it has lost its leader, so that the client moves on to a member that has one.
NEED_LEADER = (("hasleader", "true"),)


def target_of(endpoint: str) -> str:
    """What gRPC calls an endpoint: without its scheme."""
    return endpoint.removeprefix("https://").removeprefix("http://").rstrip("/")


class Member:
    """One endpoint and its stubs."""

    def __init__(self, endpoint: str, credentials: grpc.ChannelCredentials | None):
        self.endpoint = endpoint
        target = target_of(endpoint)
        if credentials is None:
            self.channel = grpc.aio.insecure_channel(target, OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(target, credentials, OPTIONS)
        self.kv = rpc_pb2_grpc.KVStub(self.channel)
        self.lease = rpc_pb2_grpc.LeaseStub(self.channel)
        self.watch = rpc_pb2_grpc.WatchStub(self.channel)
        self.maintenance = rpc_pb2_grpc.MaintenanceStub(self.channel)
        self.cluster = rpc_pb2_grpc.ClusterStub(self.channel)


class Client:
    """The members of one cluster, the one in use first. Make and use it within one event loop."""

    def __init__(self, endpoints: Sequence[str], credentials: Credentials | None = None, *, patience: float = PATIENCE):
        if not endpoints:
            raise ValueError("etcd needs at least one endpoint")
        self.endpoints = tuple(endpoints)
        self.closed = False
        self._patience = patience
        self._credentials = credentials
        self._members: dict[str, Member] = {}
        self._former: weakref.WeakSet[Member] = weakref.WeakSet()     # of before renew(), while calls on them last
        self._current = 0
        self.renew()

    def renew(self) -> None:
        """Read the certificate's files again. New calls and streams use it; what is under way ends where it began."""
        self._channel_credentials = self._credentials and grpc_channel_credentials(self._credentials)
        self._former.update(self._members.values())
        self._members = {}

    @property
    def member(self) -> Member:
        """The member to use now."""
        return self.at(self.endpoints[self._current])

    def at(self, endpoint: str) -> Member:
        """The member behind an endpoint."""
        self.check_open()
        if endpoint not in self._members:
            self._members[endpoint] = Member(endpoint, self._channel_credentials)
        return self._members[endpoint]

    def failed(self, member: Member) -> None:
        """Use the next member from now on, unless somebody has moved on already."""
        if len(self.endpoints) > 1 and self.endpoints[self._current] == member.endpoint:
            self._current = (self._current + 1) % len(self.endpoints)
            log.info("etcd: leaving %s for %s", member.endpoint, self.endpoints[self._current])

    async def call(self, rpc: Callable[[Member], Any], request: Any, *, deadline: float = DEADLINE) -> Any:
        """The answer of the first member that gives one.

        Raises AioRpcError for what etcd refused for good (not found, out of range, precondition, argument), and
        Unavailable when no member answered within the client's patience: the request may have taken effect then.
        """
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._patience
        tries = 0
        while True:
            member = self.member
            try:
                return await rpc(member)(request, timeout=deadline)
            except AioRpcError as error:
                self.check_open()
                _refuse(member, error)
                tries += 1
                self.failed(member)
                if loop.time() >= give_up:
                    raise unanswered(self.endpoints, f"{member.endpoint}: {error.details()}") from error
            except asyncio.CancelledError:
                self.cancelled()
                raise
            if tries % len(self.endpoints) == 0:
                await asyncio.sleep(PAUSE)

    def check_open(self) -> None:
        if self.closed:
            raise Unavailable("store.closed", "the store is closed")

    def cancelled(self) -> None:
        """Raise Unavailable for a CancelledError that closing the channels made, rather than someone who cancels the task."""
        task = asyncio.current_task()
        if self.closed and not (task and task.cancelling()):
            raise Unavailable("store.closed", "the store is closed") from None

    async def close(self) -> None:
        self.closed = True
        members, self._members = [*self._members.values(), *self._former], {}
        for member in members:
            await member.channel.close()


def unanswered(endpoints: Sequence[str], why: str) -> Unavailable:
    """What a caller is told where no member answers."""
    return Unavailable("store.unavailable", f"etcd at {', '.join(endpoints)} does not answer ({why}). Check that etcd runs there "
                       "and that its certificates are this cloud's; a change that was under way may still have been made.")


def _refuse(member: Member, error: AioRpcError) -> None:
    """Raise where another try is no use."""
    details = error.details() or ""
    if "database space exceeded" in details:
        raise Unavailable("store.full", "The cloud's database is full: there is no space for changes, what is there can be read. "
                          "Room is made by itself, unless the state itself has outgrown etcd_quota_mib.") from error
    if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
        raise Unavailable("store.denied", f"etcd at {member.endpoint} refuses this client ({details}): it must allow the whole "
                          "keyspace to this cloud's client certificate") from error
    if error.code() not in _AGAIN:
        raise error


def range_end(prefix: bytes) -> bytes:
    """The end of the range of all keys that start with `prefix`; all keys there are for an empty one."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def prefix_range(prefix: str) -> dict[str, bytes]:
    """The two fields by which etcd's requests name a prefix."""
    start = prefix.encode()
    return {"key": start or b"\0", "range_end": range_end(start)}


__all__ = ["DEADLINE", "GUARD_EVERY", "NEED_LEADER", "OPTIONS", "PATIENCE", "AioRpcError", "Client", "Member", "prefix_range",
           "range_end", "rpc_pb2", "target_of", "unanswered"]
