"""Certificates that are renewed while listeners and connections go on."""
import asyncio
import datetime
import functools
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from control.gateway import server as http
from control.kernel import etcd_server, pki, tls
from control.kernel.etcd_client import rpc_pb2
from control.kernel.pki import Credentials
from control.kernel.renewal import Renewal
from tests.conftest import Etcd, free_port

SHORT = datetime.timedelta(seconds=6)


def serial(leaf: Credentials) -> int:
    return x509.load_pem_x509_certificate(leaf.certificate.read_bytes()).serial_number


async def shown(port: int, ca: Path, leaf: Credentials | None = None) -> int:
    """The serial number of what a listener shows to a new connection."""
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    if leaf:
        context.load_cert_chain(leaf.certificate, leaf.key)
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return x509.load_der_x509_certificate(der).serial_number


def remake(directory: Path, name: str) -> Credentials:
    (directory / f"{name}.crt").unlink()
    return pki.ensure_leaf(directory, name, ["127.0.0.1"], server=True)


async def echo(request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
    for _ in range(3):
        yield request
        await asyncio.sleep(0.2)


async def test_a_grpc_listener_shows_the_renewed_certificate_and_streams_go_on(tmp_path: Path) -> None:
    leaf = pki.ensure_leaf(tmp_path, "listener", ["127.0.0.1"], server=True)
    client = pki.ensure_leaf(tmp_path, "client", client=True)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("t", {
        "echo": grpc.unary_stream_rpc_method_handler(echo)})])
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(leaf.certificate, leaf.key, leaf.ca))
    await server.start()
    credentials = grpc.ssl_channel_credentials(client.ca.read_bytes(), client.key.read_bytes(), client.certificate.read_bytes())
    try:
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            stream = channel.unary_stream("/t/echo")(b"x")
            assert await stream.read() == b"x"
            before = serial(leaf)
            assert await shown(port, leaf.ca, client) == before
            remake(tmp_path, "listener")
            assert await shown(port, leaf.ca, client) == serial(leaf) != before
            assert await stream.read() == b"x" and await stream.read() == b"x"
        with pytest.raises(grpc.aio.AioRpcError):
            nobody = grpc.ssl_channel_credentials(leaf.ca.read_bytes())
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", nobody) as channel:
                await channel.unary_stream("/t/echo")(b"x", timeout=2).read()
    finally:
        await server.stop(None)


async def test_a_grpc_listener_for_clients_asks_for_no_certificate(tmp_path: Path) -> None:
    leaf = pki.ensure_leaf(tmp_path, "listener", ["127.0.0.1"], server=True)
    server = grpc.aio.server()
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(leaf.certificate, leaf.key))
    await server.start()
    try:
        remake(tmp_path, "listener")
        assert await shown(port, leaf.ca) == serial(leaf)
    finally:
        await server.stop(None)


async def test_half_of_a_new_pair_is_not_shown(tmp_path: Path) -> None:
    leaf = pki.ensure_leaf(tmp_path, "listener", server=True)
    pair = tls.Pair(leaf.certificate, leaf.key)
    key = leaf.key.read_bytes()
    other = pki.ensure_leaf(tmp_path, "other", server=True)
    leaf.key.write_bytes(other.key.read_bytes())
    assert not pair.has_changed() and not pair.has_changed()
    leaf.certificate.write_bytes(other.certificate.read_bytes())
    assert pair.has_changed() and not pair.has_changed()
    leaf.key.unlink()
    assert not pair.has_changed()
    leaf.key.write_bytes(key)
    assert not pair.has_changed()


async def test_the_rest_listener_shows_the_renewed_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "LOOK_EVERY", 0.05)
    leaf = pki.ensure_leaf(tmp_path, "listener", ["127.0.0.1"], server=True)
    port, started = free_port(), asyncio.Event()

    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    serving = asyncio.create_task(http.serve(app, "127.0.0.1", port, str(leaf.certificate), str(leaf.key), started=started))
    await started.wait()
    try:
        before = await shown(port, leaf.ca)
        remake(tmp_path, "listener")
        async with asyncio.timeout(5):
            while await shown(port, leaf.ca) == before:
                await asyncio.sleep(0.05)
        assert await shown(port, leaf.ca) == serial(leaf)
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_a_store_and_its_watch_outlive_the_certificate_that_they_began_with(own_etcd: Etcd) -> None:
    own_etcd.kill()
    directory = own_etcd.credentials.ca.parent
    for name in ("control", "etcd"):
        (directory / f"{name}.crt").unlink()
    leaves = [functools.partial(etcd_server.client_credentials, directory, life=SHORT),
              functools.partial(etcd_server.server_credentials, directory, life=SHORT)]
    first = {leaf().certificate.stem: serial(leaf()) for leaf in leaves}
    own_etcd.start()
    await own_etcd.ready()
    store = own_etcd.store()
    renewal = asyncio.create_task(Renewal(leaves, store.client.renew).run())
    keys = []

    async def watch() -> None:
        async for batch in store.watch("renewal/", 0):
            keys.extend(record.key for record in batch.records)

    watching = asyncio.create_task(watch())
    try:
        end = asyncio.get_running_loop().time() + 2 * SHORT.total_seconds()
        count = 0
        while asyncio.get_running_loop().time() < end:
            count += 1
            await store.client.call(lambda member: member.kv.Put, rpc_pb2.PutRequest(key=f"renewal/{count}".encode(), value=b"x"))
            await asyncio.sleep(0.3)
        assert all(serial(leaf()) != first[leaf().certificate.stem] for leaf in leaves)
        assert await shown(own_etcd.config.client_port, own_etcd.credentials.ca, own_etcd.credentials) == serial(leaves[1]())
        async with asyncio.timeout(5):
            while len(keys) < count:
                await asyncio.sleep(0.05)
    finally:
        for task in (renewal, watching):
            task.cancel()
        await asyncio.gather(renewal, watching, return_exceptions=True)
        await store.close()
