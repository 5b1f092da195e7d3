"""The image service over gRPC: streams in and out, and a stream that its client breaks off."""
import asyncio
import contextlib

import grpc
import pytest

from control.image import service
from control.kernel import quota
from control.kernel.database import Database
from control.kernel.rpc import Dispatcher, add_to_grpc
from control.kernel.store import MemoryStore
from protos.image.v1 import data_pb2, data_pb2_grpc, images_pb2, images_pb2_grpc
from protos.image.v1.images_pb2 import Image
from tests.image.conftest import Tokens

ONE = (("x-auth-token", "one"),)


@pytest.fixture
async def channel(tmp_path):
    database = Database(MemoryStore(), (*service.KINDS, *quota.KINDS))
    images = service.ImageService(database, tmp_path / "images")
    dispatcher = Dispatcher(Tokens())
    for servicer, descriptor in images.servicers():
        dispatcher.add(servicer, descriptor)
    server = grpc.aio.server()
    add_to_grpc(dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tasks = [asyncio.create_task(database.cache.run()), asyncio.create_task(images.run())]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def create(channel) -> Image:
    request = images_pb2.CreateImageRequest(image=Image(name="i", disk_format="raw", container_format="bare"))
    return await images_pb2_grpc.ImagesStub(channel).CreateImage(request, metadata=ONE)


async def test_data_goes_in_and_out_as_streams(channel):
    image, data = await create(channel), data_pb2_grpc.ImageDataStub(channel)
    pieces = [bytes([number]) * 1_000_000 for number in range(5)]

    async def requests():
        yield data_pb2.UploadImageDataRequest(image_id=image.id, size=5_000_000)
        for piece in pieces:
            yield data_pb2.UploadImageDataRequest(data=piece)

    await data.UploadImageData(requests(), metadata=ONE)
    shown = await images_pb2_grpc.ImagesStub(channel).GetImage(images_pb2.GetImageRequest(image_id=image.id), metadata=ONE)
    assert shown.status == Image.ACTIVE and shown.size == 5_000_000
    received = [answer.data async for answer in data.DownloadImageData(
        data_pb2.DownloadImageDataRequest(image_id=image.id), metadata=ONE)]
    assert b"".join(received) == b"".join(pieces) and max(map(len, received)) <= 2**20


async def test_a_stream_that_its_client_breaks_off_leaves_the_image_queued(channel, tmp_path):
    image = await create(channel)
    images = images_pb2_grpc.ImagesStub(channel)
    call = data_pb2_grpc.ImageDataStub(channel).UploadImageData(metadata=ONE)
    await call.write(data_pb2.UploadImageDataRequest(image_id=image.id, data=b"half"))

    async def until(status: int) -> None:
        async with asyncio.timeout(10):
            while (await images.GetImage(images_pb2.GetImageRequest(image_id=image.id), metadata=ONE)).status != status:
                await asyncio.sleep(0.02)

    await until(Image.SAVING)
    call.cancel()
    await until(Image.QUEUED)
    async with asyncio.timeout(10):
        while len(list((tmp_path / "images").iterdir())) > 1:      # the directory's id stays
            await asyncio.sleep(0.02)
