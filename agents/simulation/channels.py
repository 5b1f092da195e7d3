"""Connections that many agents share: HTTP/2 carries a stream for each, so a process needs few."""
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import grpc.aio

from agents.link import FIRST_BACKOFF, MAX_BACKOFF, OPTIONS, Credentials

log = logging.getLogger(__name__)

#: Streams that one connection carries. Fewer cost a TLS session and its buffers each; with more, one lost connection cuts off as
#: many hosts, and a slow reader holds up all that share its window.
STREAMS = 500

#: A connection of many is kept, so it must come back as soon as an agent would try: gRPC's own back-off grows to two minutes.
_RETRY = [("grpc.initial_reconnect_backoff_ms", int(FIRST_BACKOFF * 1000)), ("grpc.min_reconnect_backoff_ms", 1000),
          ("grpc.max_reconnect_backoff_ms", int(MAX_BACKOFF * 1000))]


class _Shared:
    __slots__ = ("channel", "users")

    def __init__(self, channel: grpc.aio.Channel):
        self.channel = channel
        self.users = 0


class Channels:
    """Lends channels to agents, each to at most `streams` at a time. `credentials` None: in the clear, in tests."""

    def __init__(self, credentials: Credentials | None, streams: int = STREAMS):
        self._streams = streams
        self._open: dict[str, list[_Shared]] = {}
        options = [*OPTIONS, *_RETRY]
        self._make: Callable[[str], grpc.aio.Channel] = (
            (lambda endpoint: credentials.channel(endpoint, options)) if credentials is not None
            else lambda endpoint: grpc.aio.insecure_channel(endpoint, options=options))

    @contextlib.asynccontextmanager
    async def connect(self, endpoint: str) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to an endpoint, for as long as it is needed."""
        channels = self._open.setdefault(endpoint, [])
        shared = next((shared for shared in channels if shared.users < self._streams), None)
        if shared is None:
            shared = _Shared(self._make(endpoint))
            channels.append(shared)
        shared.users += 1
        try:
            yield shared.channel
        finally:
            shared.users -= 1

    async def close(self) -> None:
        for shared in [shared for channels in self._open.values() for shared in channels]:
            await shared.channel.close()
        self._open.clear()
