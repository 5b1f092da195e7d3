"""Exchanges that do not go to their end: bodies too large, cut, or read by nobody; answers that break."""
import asyncio
import dataclasses

import pytest
from toyimage.v1 import images_pb2 as image

from control.gateway.app import Gateway
from control.gateway.codec import MAX_BODY
from control.gateway.exchange import Exchange
from tests.api.client import Client


def servicer(dispatcher, name):
    return dispatcher.methods[name].handler.__self__


async def test_a_json_body_over_the_limit_is_413_whether_announced_or_not(client):
    big = b'{"text": "' + b"x" * MAX_BODY + b'"}'
    announced = await client("POST", "/compute/v2.1/echo", body=b"", headers={"content-length": str(len(big))})
    assert announced.status == 413 and announced.json["overLimit"]["code"] == 413
    pieces = [big[start:start + 65536] for start in range(0, len(big), 65536)]
    assert (await client("POST", "/compute/v2.1/echo", body=pieces)).status == 413


async def test_an_upload_that_is_cut_reaches_the_handler_as_an_error_and_stores_nothing(client, dispatcher):
    reply = await client("PUT", "/image/v2/images/i1/file", body=[b"half"], cut=True,
                         headers={"content-type": "application/octet-stream", "accept": "application/json"})
    assert reply.status == 400 and "cut off after 4 bytes" in reply.json["message"]
    assert servicer(dispatcher, "/toyimage.v1.Images/UploadData").stored == {}


async def test_an_upload_is_handed_over_piece_by_piece_and_has_no_limit(client, dispatcher):
    reply = await client("PUT", "/image/v2/images/i1/file", body=(b"x" * 65536 for _ in range(64)),
                         headers={"content-type": "application/octet-stream", "x-openstack-image-size": str(64 * 65536)})
    assert reply.status == 204 and "i1" in servicer(dispatcher, "/toyimage.v1.Images/UploadData").stored


async def test_a_cut_json_body_calls_no_handler(client):
    assert (await client("POST", "/compute/v2.1/echo", body=[b'{"text"'], cut=True)).status == 400


async def test_a_download_that_breaks_never_ends_as_if_it_were_whole(client):
    reply = await client("GET", "/image/v2/images/breaks/file")
    assert reply.status == 200 and reply.body == b"first " and not reply.complete


async def test_a_download_stops_when_the_client_is_gone(dispatcher):
    name = "/toyimage.v1.Images/DownloadData"
    yielded = []

    async def endless(request, call):
        while True:
            yielded.append(1)
            yield image.DataResponse(data=b"x")
            await asyncio.sleep(0)
    dispatcher.methods[name] = dataclasses.replace(dispatcher.methods[name], handler=endless)
    gateway = Gateway(dispatcher)
    sent = []

    async def receive():
        while len(sent) < 3:
            await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(event):
        sent.append(event)
    scope = {"type": "http", "method": "GET", "path": "", "raw_path": b"/image/v2/images/i1/file", "query_string": b"",
             "headers": [(b"x-auth-token", b"member")]}
    await asyncio.wait_for(gateway(scope, receive, send), 10)
    assert 3 <= len(yielded) < 100


@pytest.mark.parametrize(("host", "address", "base"), [
    ("cloud:5000", ("192.0.2.1", 5000), "http://cloud:5000"), ("[::1]:5000", ("::1", 5000), "http://[::1]:5000"),
    ("", ("192.0.2.1", 5000), "http://192.0.2.1:5000"), ("a/b", ("::1", 5000), "http://[::1]:5000"),
    ("h" * 300, ("192.0.2.1", 80), "http://192.0.2.1:80"), ("a b", None, "http://localhost")])
def test_links_begin_with_the_host_that_was_written_or_else_with_the_listeners_address(host, address, base):
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", host.encode())], "scheme": "http",
             "server": address}
    assert Exchange(scope, None, None).base_url(None, ()) == base


async def test_forwarded_headers_count_from_a_trusted_proxy_and_a_base_url_overrides_all(dispatcher):
    headers = {"x-auth-token": "member", "x-forwarded-proto": "https", "x-forwarded-host": "cloud.example"}
    proxied = Client(Gateway(dispatcher, trusted_proxies=["10.0.0.1"]), headers)
    reply = await proxied("GET", "/compute", peer="10.0.0.1")
    assert reply.json["versions"][0]["links"][0]["href"] == "https://cloud.example/compute/v2/"
    reply = await proxied("GET", "/compute", peer="10.0.0.2")
    assert reply.json["versions"][0]["links"][0]["href"].startswith("http://cloud.example:5000/")
    fixed = Client(Gateway(dispatcher, base_url="https://fixed.example/"), headers)
    assert (await fixed("GET", "/compute")).json["versions"][0]["links"][0]["href"] == "https://fixed.example/compute/v2/"


async def test_every_version_link_leads_to_a_document_that_says_the_same(client):
    for version in (await client("GET", "/compute")).json["versions"]:
        path = version["links"][0]["href"].removeprefix("http://cloud.example:5000")
        found = (await client("GET", path)).json["version"]
        assert found["id"] == version["id"] and found["links"][0] == version["links"][0]


async def test_the_log_of_a_bug_has_the_trace_and_the_answer_has_not(client, caplog):
    reply = await client("GET", "/compute/v2.1/break/s1")
    assert reply.status == 500 and b"secret" not in reply.body
    assert "a secret of the inside" in caplog.text


async def test_a_bug_of_the_gateway_itself_is_answered_in_the_familys_envelope(client, gateway, monkeypatch):
    def broken(*args):
        raise RuntimeError("a secret of the inside")
    rule = gateway.routes.find("GET", "/compute/v2.1/servers/s1").endpoint.rules[0]
    monkeypatch.setattr(rule.answering, "answer", broken)
    reply = await client("GET", "/compute/v2.1/servers/s1")
    assert reply.status == 500 and reply.json["computeFault"]["code"] == 500 and b"secret" not in reply.body


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_not_http_is_ended_politely(gateway, kind):
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent = []

    async def receive():
        return events.pop(0)

    async def send(event):
        sent.append(event["type"])
    await gateway({"type": kind}, receive, send)
    assert sent == (["websocket.close"] if kind == "websocket" else ["lifespan.startup.complete", "lifespan.shutdown.complete"])
