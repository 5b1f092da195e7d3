"""The listener on a real socket."""
import asyncio
import contextlib
import os
import ssl
import subprocess

import pytest

from control.gateway import server


@contextlib.asynccontextmanager
async def serving(app, **options):
    """A listener on a free port of the loopback; gives the port."""
    listener, started = server.listen("127.0.0.1", 0), asyncio.Event()
    task = asyncio.ensure_future(server.serve(app, "127.0.0.1", 0, listener=listener, started=started, **options))
    await asyncio.wait_for(started.wait(), 10)
    try:
        yield listener.getsockname()[1]
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def talk(port: int, request: bytes, context=None) -> bytes:
    """Send bytes and read until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_a_request_over_a_socket_is_answered(gateway):
    async with serving(gateway) as port:
        answer = await talk(port, b"GET /compute/v2.1/servers/s%31 HTTP/1.1\r\nHost: h:1\r\nX-Auth-Token: member\r\n"
                                  b"Connection: close\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200") and b'"id":"s1"' in body and b"http://h:1/compute/v2.1/servers/s1" in body


async def test_an_answer_leaves_in_one_piece_and_a_head_without_a_body_leaves_too(gateway):
    request = b" /compute/v2.1/servers/s1 HTTP/1.1\r\nHost: h:1\r\nX-Auth-Token: member\r\n\r\n"
    async with serving(gateway) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for verb in (b"GET", b"HEAD", b"GET"):          # on one connection: a head that was held back would come late, or twice
            writer.write(verb + request)
            head, _, body = (await asyncio.wait_for(reader.read(65536), 10)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and body.endswith(b"}") == (verb == b"GET")
        writer.close()


async def test_an_upload_cut_on_the_wire_stores_nothing(gateway, dispatcher):
    toy = dispatcher.methods["/toyimage.v1.Images/UploadData"].handler.__self__
    async with serving(gateway) as port:
        for framing in (b"Content-Length: 100\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"PUT /image/v2/images/cut/file HTTP/1.1\r\nHost: h\r\nX-Auth-Token: member\r\n"
                         b"Content-Type: application/octet-stream\r\n" + framing)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        whole = await talk(port, b"PUT /image/v2/images/whole/file HTTP/1.1\r\nHost: h\r\nX-Auth-Token: member\r\n"
                                 b"Connection: close\r\nContent-Type: application/octet-stream\r\nContent-Length: 4\r\n\r\nfull")
    assert whole.startswith(b"HTTP/1.1 204") and toy.stored.keys() == {"whole"}


async def test_a_broken_download_ends_the_connection_before_its_length(gateway):
    async with serving(gateway) as port:
        answer = await talk(port, b"GET /image/v2/images/breaks/file HTTP/1.1\r\nHost: h\r\nX-Auth-Token: member\r\n\r\n")
    assert b"first " in answer and not answer.endswith(b"0\r\n\r\n")


async def test_a_port_in_use_is_named_with_its_owner(gateway):
    async with serving(gateway) as port:
        with pytest.raises(server.CannotListen, match=rf"port {port} on 127.0.0.1 is in use by pid {os.getpid()} .*--port"):
            server.listen("127.0.0.1", port)


def test_an_address_that_is_not_ours_is_refused_in_words():
    with pytest.raises(server.CannotListen, match=r"cannot listen on port 5000 of 203\.0\.113\.1"):
        server.listen("203.0.113.1", 5000)
    with pytest.raises(server.CannotListen, match="no address to listen on"):
        server.listen("no such host", 5000)


async def test_with_a_certificate_it_speaks_tls_and_links_say_so(gateway, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-days", "1", "-subj", "/CN=h", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    async with serving(gateway, certificate=str(certificate), key=str(key)) as port:
        answer = await talk(port, b"GET /compute HTTP/1.1\r\nHost: h:5000\r\nConnection: close\r\n\r\n", context)
    assert b'"https://h:5000/compute/v2.1/"' in answer
