"""Disks on their way from one host's agent to another's, through the replica that both are connected to; none is kept here.

Each move is a pipe of a few chunks: the target asks, the source is asked to send, and is held up while the target is behind. What
is cut off begins anew; that a disk is whole says its last chunk, which the target checks.
"""
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from control.hosts.neighbours import DiskMoves
from control.kernel import fleet, pki
from control.kernel.database import Database
from control.kernel.errors import Conflict, Denied, Invalid, NotFound, Unavailable
from control.kernel.replicas import REPLICA
from control.kernel.rpc import Call
from protos.internal.v1 import hosts_pb2 as pb

#: Chunks between source and target, of at most 1 MiB; and seconds that either may let the other wait.
BETWEEN, STALL = 8, 60.0

#: Bytes that one chunk may have.
MAX_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Pipe:
    """One move's chunks on their way."""

    source: str
    chunks: asyncio.Queue[pb.DiskChunk] = field(default_factory=lambda: asyncio.Queue(BETWEEN))


class Disks:
    """The two rpcs for disks. `ask` asks a host's agent something and waits as long as it takes."""

    def __init__(self, database: Database, replica: str, moves: DiskMoves, ask: Callable[[str, pb.Query], Awaitable[pb.Reply]]):
        self._db = database
        self._replica = replica
        self._moves = moves
        self._ask = ask
        self._pipes: dict[str, Pipe] = {}

    async def fetch(self, request: pb.FetchDiskRequest, call: Call) -> AsyncIterator[pb.DiskChunk]:
        move = self._moves.disk_move(request.server_id)
        if move is None or move.id != request.move_id:
            raise Conflict("host.disk", f"Server {request.server_id[:80]} does not move, or not any more.")
        if not pki.speaks_for(call.peer, move.target):
            raise Denied("host.disk", f"Server {request.server_id} does not move to {call.peer!r}.")
        source = self._db.get(fleet.HOST, move.source)
        if source is None or not source.replica:
            raise Unavailable("host.gone", f"Host {move.source} is not attached at the moment: try again later.")
        if source.replica != self._replica:
            there = self._db.get(REPLICA, source.replica)
            if there is None:
                raise Unavailable("host.gone", f"Host {move.source} is not attached at the moment: try again later.")
            yield pb.DiskChunk(elsewhere=there.address)
            return
        if request.move_id in self._pipes:
            raise Unavailable("host.disk", "The disk is being sent already: try again later.")
        pipe = self._pipes[request.move_id] = Pipe(move.source)
        sending = asyncio.ensure_future(self._ask(move.source, pb.Query(disk=pb.DiskQuery(
            server_id=request.server_id, move_id=request.move_id))))
        try:
            while True:
                chunk = await self._next(pipe.chunks, sending)
                yield chunk
                if chunk.HasField("tail"):
                    return
        finally:
            sending.cancel()
            del self._pipes[request.move_id]

    async def _next(self, pipe: "asyncio.Queue[pb.DiskChunk]", sending: "asyncio.Future[pb.Reply]") -> pb.DiskChunk:
        """The next chunk. Raises Unavailable where the source says that it cannot send, or stalls."""
        getting = asyncio.ensure_future(pipe.get())
        try:
            async with asyncio.timeout(STALL):
                waiting: set[asyncio.Future[Any]] = {getting, sending}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    reply = sending.result()
                    if reply.error:
                        raise Unavailable("host.disk", f"The disk cannot be sent: {reply.error}")
                return await getting
        except TimeoutError as error:
            raise Unavailable("host.disk", f"The disk has not come on for {STALL:.0f} s.") from error
        finally:
            getting.cancel()

    async def send(self, requests: AsyncIterator[pb.DiskChunk], call: Call) -> pb.SendDiskResponse:
        pipe: Pipe | None = None
        move_id = ""
        async for chunk in requests:
            if pipe is None:
                move_id = chunk.head.move_id
                pipe = self._pipes.get(move_id)
                if not chunk.HasField("head") or pipe is None:
                    raise NotFound("host.disk", "Nobody waits for that disk here.")
                if not pki.speaks_for(call.peer, pipe.source):
                    raise Denied("host.disk", f"{call.peer!r} is not the host that the disk is on.")
            elif chunk.HasField("head") or not (chunk.HasField("tail") or 1 <= len(chunk.data) <= MAX_CHUNK):
                raise Invalid("host.disk", f"A disk is sent as a head, chunks of 1 to {MAX_CHUNK} bytes, and a tail.")
            try:
                async with asyncio.timeout(STALL):
                    await pipe.chunks.put(chunk)
            except TimeoutError as error:
                raise Unavailable("host.disk", f"The disk was not taken for {STALL:.0f} s.") from error
            if self._pipes.get(move_id) is not pipe:
                raise Unavailable("host.disk", "Nobody waits for the disk any more.")
        return pb.SendDiskResponse()
