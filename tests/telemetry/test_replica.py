"""What a whole replica tells of itself: metrics, readiness, and the spans of a request, in a collector."""
import asyncio
import http.server
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from agents.telemetry import traces
from tests.api.client import Client
from tests.kernel.conftest import db
from tests.telemetry.test_listener import samples
from tests.watch.conftest import replica

__all__ = ["db"]       # the fixture

pytestmark = pytest.mark.etcd

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector(http.server.ThreadingHTTPServer):
    """Takes OTLP over HTTP, as a collector does."""

    def __init__(self) -> None:
        self.spans = []
        super().__init__(("127.0.0.1", 0), Take)


class Take(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip
            body = gzip.decompress(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.spans += [span for scope in resource.scope_spans for span in scope.spans]
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_request_is_one_trace_from_the_client_to_its_commit(etcd, etcd_store, tmp_path, collector):
    async with replica(etcd_store, etcd.endpoint, tmp_path / "a") as cloud:
        client = cloud.client(await cloud.token("demo"))
        traces.set_up("brume-control", f"http://127.0.0.1:{collector.server_port}", "test")
        try:
            reply = await client("POST", "/network/v2.0/networks", json_body={"network": {"name": "n"}},
                                 headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
            assert reply.status == 201 and traces.trace_id() == ""
        finally:
            await asyncio.to_thread(traces.shut_down)
    call, = (span for span in collector.spans if span.name == "/network.v1.Networks/CreateNetwork")
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, SPAN)
    commit, = (span for span in collector.spans if span.name == "commit" and span.trace_id == call.trace_id)
    assert commit.parent_span_id == call.span_id
    said = {pair.key: pair.value.string_value for pair in call.attributes}
    assert said["request_id"] == reply.headers["x-openstack-request-id"]


async def test_without_a_collector_no_tracing_is_loaded():
    process = await asyncio.create_subprocess_exec(
        __import__("sys").executable, "-c", "import sys, control.main, agents.main\nfrom agents.telemetry import traces\n"
        "traces.set_up('x', '', 'y')\nassert traces.tracer is None\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]")
    assert await process.wait() == 0


async def test_metrics_tell_calls_commits_conflicts_reads_and_watches(etcd, etcd_store, tmp_path):
    async with replica(etcd_store, etcd.endpoint, tmp_path / "a") as cloud:
        token = await cloud.token("demo")
        client = cloud.client(token)
        before = samples(cloud.replica.metrics()[1].decode())
        for _ in range(3):
            await client("GET", "/network/v2.0/networks")
        await client("GET", "/network/v2.0/networks/none")
        made = (await client("POST", "/network/v2.0/networks", json_body={"network": {"name": "n"}})).json["network"]["id"]
        async with cloud.watching(token, "networks") as stream:
            await (await stream.begin()).until_bookmark()
            replies = await asyncio.gather(*(client("PUT", f"/network/v2.0/networks/{made}", json_body={
                "network": {"name": f"n{turn}"}}) for turn in range(5)))
            assert {reply.status for reply in replies} == {200}
            found = samples(cloud.replica.metrics()[1].decode())
        ok = (("method", "/network.v1.Networks/ListNetworks"), ("outcome", "ok"))
        assert found["brume_rpc_seconds_count", tuple(sorted(ok))] == 3
        missing = (("method", "/network.v1.Networks/ShowNetwork"), ("outcome", "NotFound"))
        assert found["brume_rpc_seconds_count", missing] == 1
        assert found["brume_commits_total", ()] >= before["brume_commits_total", ()] + 6
        assert found["brume_conflicts_total", ()] >= before["brume_conflicts_total", ()]
        assert found["brume_revision", ()] == cloud.replica.database.cache.revision and found["brume_revisions_behind", ()] == 0
        assert found["brume_watches", (("kind", "networks"),)] == 1
        assert found["brume_watch_events_total", (("kind", "networks"),)] >= 1
        assert found["brume_watches_dropped_total", ()] == 0


async def test_a_replica_is_ready_while_the_store_answers_and_it_keeps_up(own_etcd, tmp_path):
    await own_etcd.ready()
    store = own_etcd.store(patience=1.0)
    async with replica(store, own_etcd.endpoint, tmp_path / "a") as cloud:
        anybody = Client(cloud.replica.gateway)
        assert [(await anybody("GET", path)).status for path in ("/healthz", "/readyz")] == [200, 200]
        own_etcd.kill()
        async with asyncio.timeout(20):
            while (reply := await anybody("GET", "/readyz")).status == 200:
                await asyncio.sleep(0.1)
        assert reply.status == 503 and reply.body == b"the store does not answer\n"
        assert (await anybody("GET", "/healthz")).status == 200
        own_etcd.start()
        await own_etcd.ready()
        async with asyncio.timeout(30):
            while (await anybody("GET", "/readyz")).status != 200:
                await asyncio.sleep(0.1)
    await store.close()


async def test_controllers_tell_how_many_keys_wait_and_for_how_long(db):
    from control.kernel import reconcile

    gate = asyncio.Event()

    async def stuck(key: str) -> None:
        await gate.wait()

    controller = reconcile.Controller("things", db.cache, kinds=(), keys_of=lambda change: [], all_keys=lambda: ["a", "b", "c"],
                                      reconcile=stuck, workers=1)
    task = asyncio.create_task(controller.run())
    await asyncio.sleep(0.1)
    assert controller in reconcile.RUNNING and controller.queue.depth == 2 and controller.queue.age > 0.05
    gate.set()
    async with asyncio.timeout(5):
        while controller.timings.count("ok") < 3:
            await asyncio.sleep(0.01)
    assert controller.queue.depth == 0 and controller.queue.age == 0
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert controller not in reconcile.RUNNING
