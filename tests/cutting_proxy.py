"""A proxy on loopback that passes requests on and cuts off what comes back."""
import asyncio
import contextlib
import itertools
import random
import threading
from collections.abc import Iterator, Sequence


class CuttingProxy:
    """Takes TCP connections for other ports, in turn. While `cuts` is set no answer arrives whole.

    Of each answer it passes on a random part, perhaps none; sometimes it leaves at once, or before the request is sent whole.
    """

    def __init__(self, targets: Sequence[int], seed: int = 0):
        self._targets = itertools.cycle(targets)
        self.cuts = True
        self.passed = 0                   # requests that were passed on whole
        self._dice = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)

    @contextlib.contextmanager
    def calm(self) -> Iterator[None]:
        """Cut nothing for a while."""
        self.cuts = False
        try:
            yield
        finally:
            self.cuts = True

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._end = asyncio.Event()

        async def serve() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = server.sockets[0].getsockname()[1]
            started.set()
            await self._end.wait()
            server.close()

        self._loop.run_until_complete(serve())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        cuts, how = self.cuts, self._dice.random()
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", next(self._targets))
        except OSError:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
            request = head + await reader.readexactly(length)
            if cuts and how < 0.1:
                upstream.write(request[:self._dice.randrange(len(request))])
                await upstream.drain()
            else:
                upstream.write(request)
                await upstream.drain()
                self.passed += 1
                if not cuts:
                    while piece := await upstream_reader.read(65536):
                        writer.write(piece)
                        await writer.drain()
                elif how < 0.9:
                    piece = await upstream_reader.read(65536)
                    writer.write(piece[:self._dice.randrange(len(piece) or 1)])
                    await writer.drain()
        for each in (writer, upstream):
            if cuts:
                each.transport.abort()
            else:
                each.close()
