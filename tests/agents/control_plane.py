"""The control plane's end of an agent's stream, as far as an agent sees it."""
import asyncio

import grpc
import grpc.aio

from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1.hosts_pb2_grpc import HostsServicer, add_HostsServicer_to_server


class Control(HostsServicer):
    """Serves agents on loopback, in the clear: `objects` are the snapshot, `said` what arrives."""

    def __init__(self, *objects):
        self.objects = list(objects)
        self.hellos = []
        self.said = asyncio.Queue()
        self.images = {}
        self.cut = 0
        self.queries = asyncio.Queue()
        self.server = None
        self.port = 0

    async def start(self):
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_HostsServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def Attach(self, requests, context):
        async def read():
            async for message in requests:
                if message.HasField("hello"):
                    self.hellos.append(message.hello)
                else:
                    self.said.put_nowait(message)

        reader = asyncio.create_task(read())
        try:
            yield pb.ControlMessage(desired=pb.Desired(snapshot=True, upserts=self.objects))
            while True:
                yield await self.queries.get()
        finally:
            reader.cancel()

    def farewell(self):
        self.queries.put_nowait(pb.ControlMessage(farewell=pb.Farewell()))

    async def FetchImage(self, request, context):
        data = self.images.get(request.sha512)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such image")
        yield pb.FetchImageResponse(data=data[:5])
        if self.cut:
            self.cut -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
        yield pb.FetchImageResponse(data=data[5:])

    async def until(self, condition):
        async with asyncio.timeout(10):
            while not condition(message := await self.said.get()):
                pass
            return message

    def change(self, *objects, removed=()):
        """Send a change to the agent that is attached."""
        self.queries.put_nowait(pb.ControlMessage(desired=pb.Desired(upserts=objects, removed=removed)))
