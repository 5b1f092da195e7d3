"""The listener for whoever looks after a process, and what it shows."""
import asyncio
import contextlib

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agents.telemetry import exposition, listener
from agents.telemetry.timing import BOUNDS, Timings
from tests.conftest import free_port


async def ask(port: int, path: str = "/healthz", verb: str = "GET", raw: bytes | None = None) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw if raw is not None else f"{verb} {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = (await asyncio.wait_for(reader.read(), 10)).decode()
    writer.close()
    head, _, body = answer.partition("\r\n\r\n")
    return (int(head.split()[1]), body) if head else (0, "")


@contextlib.asynccontextmanager
async def serving(wrong: list[str], timings: Timings):
    port = free_port()

    async def ready() -> list[str]:
        return wrong

    task = asyncio.create_task(listener.serve("127.0.0.1", port, ready=ready, metrics=lambda: (
        exposition.CONTENT_TYPE, exposition.text(lambda: [exposition.histogram("t_seconds", "T.", ["a"], timings)]))))
    for _ in range(100):
        with contextlib.suppress(OSError):
            await ask(port)
            break
        await asyncio.sleep(0.02)
    yield port
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def samples(text: str) -> dict[tuple[str, tuple], float]:
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


async def test_it_tells_health_readiness_and_metrics_and_nothing_else():
    timings, wrong = Timings(), []
    for seconds in (0.00005, 0.3, 1000.0):
        timings.add(("x",), seconds)
    async with serving(wrong, timings) as port:
        assert await ask(port, "/healthz") == (200, "OK\n") and await ask(port, "/readyz") == (200, "OK\n")
        wrong.append("the store does not answer")
        assert await ask(port, "/readyz") == (503, "the store does not answer\n") and (await ask(port, "/healthz"))[0] == 200
        assert (await ask(port, "/secrets"))[0] == 404 and (await ask(port, verb="POST"))[0] == 405
        status, text = await ask(port, "/metrics?x=y")
    found = samples(text)
    assert status == 200 and found["t_seconds_count", (("a", "x"),)] == 3
    assert found["t_seconds_sum", (("a", "x"),)] == pytest.approx(1000.30005)
    assert [found["t_seconds_bucket", (("a", "x"), ("le", str(bound)))] for bound in (BOUNDS[0], 0.25, 0.5, 30.0)] == [1, 1, 2, 2]
    assert found["t_seconds_bucket", (("a", "x"), ("le", "+Inf"))] == 3
    assert found["process_resident_memory_bytes", ()] > 0


async def test_what_is_no_request_gets_no_answer_and_does_no_harm():
    async with serving([], Timings()) as port:
        for raw in (b"\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET\r\n\r\n"):
            assert (await ask(port, raw=raw))[0] in (404, 405)
        assert await ask(port, raw=b"x" * 20_000 + b"\r\n\r\n") == (0, "")
        assert (await ask(port))[0] == 200


async def test_a_taken_port_is_said_and_costs_the_process_nothing(caplog):
    async with serving([], Timings()) as port:
        async with asyncio.timeout(5):
            await listener.serve("127.0.0.1", port, ready=None, metrics=None)
    assert f"no metrics and health on 127.0.0.1:{port}" in caplog.text
