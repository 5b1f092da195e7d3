"""Calls to the other replicas of the control plane: what only one of them has, every one can answer.

Connections are mutual TLS with the control plane's own certificate, to the address in the replica's record, and are kept.
"""
import logging
import random
from collections.abc import AsyncIterator

import grpc
import grpc.aio

from control.kernel.database import Database
from control.kernel.errors import Unavailable
from control.kernel.pki import Credentials
from control.kernel.replicas import REPLICA
from control.kernel.tls import grpc_channel_credentials
from protos.internal.v1 import hosts_pb2, peers_pb2
from protos.internal.v1.peers_pb2_grpc import PeersStub
from protos.internal.v1.replicas_pb2 import ReplicaRecord

log = logging.getLogger(__name__)

#: Seconds for a question to a host by way of another replica: more than that one gives the host itself.
ASK_WITHIN = 12.0

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 3_000),      # finds a dead peer under a silent stream
    ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 1000),
)


class Peers:
    """The other replicas, as one of them calls them."""

    def __init__(self, database: Database, own_id: str, credentials: Credentials):
        self._database = database
        self._own_id = own_id
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}

    def alive(self, replica_id: str) -> bool:
        """Whether another replica of that id lives, or died a moment ago."""
        return replica_id != self._own_id and bool(replica_id) and self._database.get(REPLICA, replica_id) is not None

    async def ask_host(self, replica_id: str, host: str, query: hosts_pb2.Query) -> hosts_pb2.Reply:
        """A host's answer, by way of the replica that its agent is attached to. Raises Unavailable."""
        record = self._database.get(REPLICA, replica_id)
        if record is None or not self.alive(replica_id):
            raise Unavailable("host.gone", f"Host {host} is not attached at the moment: try again later.")
        try:
            return await self._stub(record).AskHost(peers_pb2.AskHostRequest(host=host, query=query), timeout=ASK_WITHIN)
        except grpc.aio.AioRpcError as error:
            raise Unavailable("host.gone", f"Host {host} could not be asked: {error.details() or error.code().name}") from error

    async def read_image_data(self, file: str, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """A file of image data, or a range of it, from those who have it; what one breaks off, another goes on with.

        Raises Unavailable where no replica that can be reached has (the rest of) it.
        """
        others = [record for record in self._database.cache.all(REPLICA) if record.id != self._own_id]
        random.shuffle(others)
        for record in others:
            request = peers_pb2.ReadImageDataRequest(file=file, start=start, length=length)
            try:
                async for response in self._stub(record).ReadImageData(request):
                    start += len(response.data)
                    length = None if length is None else length - len(response.data)
                    yield response.data
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    log.warning("image data %s: replica %s at %s: %s", file, record.id, record.address, error.details())
        raise Unavailable("image.data.elsewhere", "The image's data is on no replica that can be reached now: try again later.")

    async def close(self) -> None:
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    def _stub(self, record: ReplicaRecord) -> PeersStub:
        for gone in self._channels.keys() - {each.id for each in self._database.cache.all(REPLICA)}:
            del self._channels[gone]            # closes with its last call
        if record.id not in self._channels:
            self._channels[record.id] = grpc.aio.secure_channel(
                record.address, grpc_channel_credentials(self._credentials), _OPTIONS)
        return PeersStub(self._channels[record.id])
