"""Renews leases over connections of its own, which wait for no event loop; any thread may use it.

It asks one member after the other, each once, beginning with the one that answered last.
"""
import threading
from collections.abc import Sequence
from typing import Any

import grpc
from aetcd.rpc import rpc_pb2, rpc_pb2_grpc

from control.kernel.errors import Unavailable
from control.kernel.etcd_client import NEED_LEADER, OPTIONS, target_of, unanswered
from control.kernel.pki import Credentials
from control.kernel.tls import grpc_channel_credentials

#: Seconds that a member has for an answer: the shortest lease lasts two, and another member must be tried within them.
DEADLINE = 0.5


class Renewer:
    """The way to renew leases of one cluster. Connections are opened when first used."""

    def __init__(self, endpoints: Sequence[str], credentials: Credentials | None):
        self._endpoints = list(endpoints)
        self._credentials = credentials
        self._channel: grpc.Channel | None = None
        self._lock = threading.Lock()
        self._closed = False

    def renew(self, lease: int) -> bool:
        """Whether a lease lives, and is renewed. Raises Unavailable where no member answers."""
        with self._lock:
            why = ""
            for _ in self._endpoints:
                if self._closed:
                    raise Unavailable("store.closed", "the store is closed")
                try:
                    return self._ask(lease) > 0
                except grpc.RpcError as error:
                    why = f"{self._endpoints[0]}: {getattr(error, 'details', lambda: '')() or error}"
                except (OSError, StopIteration, ValueError) as error:       # ValueError: the channel has just been closed
                    why = f"{self._endpoints[0]}: {error or 'it ended the stream'}"
                self._leave()
            raise unanswered(self._endpoints, why)

    def _ask(self, lease: int) -> int:
        """The seconds that a lease has, renewed; 0 where it is none any more."""
        if self._channel is None:
            self._channel = self._open(target_of(self._endpoints[0]))
        stream: Any = rpc_pb2_grpc.LeaseStub(self._channel).LeaseKeepAlive(
            iter([rpc_pb2.LeaseKeepAliveRequest(ID=lease)]), timeout=DEADLINE, metadata=NEED_LEADER)
        try:
            return next(stream).TTL
        finally:
            stream.cancel()

    def _open(self, target: str) -> grpc.Channel:
        own = self._credentials
        if own is None:
            return grpc.insecure_channel(target, OPTIONS)
        return grpc.secure_channel(target, grpc_channel_credentials(own), OPTIONS)

    def _leave(self) -> None:
        """Ask the next member from now on, over a new connection."""
        self._endpoints.append(self._endpoints.pop(0))
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def close(self) -> None:
        self._closed = True
        channel = self._channel
        if channel is not None:
            channel.close()                     # a renewal under way fails
