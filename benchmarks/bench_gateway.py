"""What the gateway costs: a list of servers to JSON beside protobuf's own json_format, one small call end to end, one body read.

    python benchmarks/bench_gateway.py [--quick] [--json]

Each figure is the median of its rounds. All runs in this process and without a socket, but for the last line: there the
gateway's own listener serves from a process of its own, and a few kept connections on loopback each send the next request
when the last one is answered. What it answers per second is limited by one core, and by what else the machine does; what
it answers per second of its CPU is not.
"""
import argparse
import asyncio
import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable

import uvloop
from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from load import cpu_seconds

from control.gateway import codec, server
from control.gateway.apis import Family
from control.gateway.app import Gateway
from control.gateway.codec import Codec
from control.gateway.context import Context
from control.kernel.caller import Caller
from control.kernel.rpc import Dispatcher
from protos.compute.v1 import flavors_pb2, servers_pb2

ROWS = 100
CONNECTIONS = 8


def median_ms(work: Callable[[], object], rounds: int) -> float:
    """Milliseconds of CPU that one call of `work` takes."""
    work()
    taken = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken) * 1000


def shown_server(number: int) -> servers_pb2.Server:
    """A server as a list in detail has it."""
    moment = Timestamp(seconds=1767225600 + number)
    made = servers_pb2.Server(
        id=f"5e3a2f0c-0000-4000-8000-{number:012d}", name=f"server-{number}", status="ACTIVE",
        tenant_id="a" * 32, user_id="b" * 32,
        created=moment, updated=moment, launched_at=Timestamp(seconds=moment.seconds, nanos=123456000),
        metadata={"role": "web", "tier": "one"}, host_hash="c" * 56, disk_config="MANUAL", availability_zone="nova",
        key_name="key", vm_state="active", power_state=1, description="", tags=["blue"], hostname=f"server-{number}",
        image=servers_pb2.ServerImage(id="1a2b3c4d-0000-4000-8000-000000000001"),
        flavor=servers_pb2.ServerFlavor(original_name="m1.small", vcpus=1, ram=2048, disk=20,
                                        extra_specs={"hw:cpu_policy": "shared"}),
        security_groups=[servers_pb2.GroupName(name="default")])
    address = made.addresses["private"].values.add().struct_value
    address.update({"version": 4, "addr": f"10.0.0.{number}", "OS-EXT-IPS:type": "fixed",
                    "OS-EXT-IPS-MAC:mac_addr": "fa:16:3e:00:00:01"})
    return made


class Anyone:
    async def authenticate(self, token: str) -> Caller:
        return Caller(user_id="u", project_id="p", roles=frozenset({"admin"}))


class Flavors:
    """Answers one call, as fast as a handler can."""

    def __init__(self, answer):
        self._answer = answer

    def __getattr__(self, name):
        async def handler(request, call):
            return self._answer
        return handler


async def request_us(app, rounds: int) -> float:
    """Microseconds of CPU of one GET through the ASGI application."""
    scope = {"type": "http", "method": "GET", "path": "", "raw_path": b"/compute/v2.1/flavors/1", "query_string": b"",
             "scheme": "http", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 5000),
             "headers": [(b"host", b"cloud:5000"), (b"x-auth-token", b"t"), (b"accept", b"application/json"),
                         (b"user-agent", b"bench"), (b"x-openstack-nova-api-version", b"2.96")]}
    status = 0

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event):
        nonlocal status
        status = event.get("status", status)

    taken = []
    for _ in range(rounds):
        started = time.process_time()
        await app(dict(scope), receive, send)
        taken.append(time.process_time() - started)
    assert status == 200, status
    return statistics.median(taken) * 1e6


def flavor_gateway() -> Gateway:
    """A gateway with one handler, which answers at once."""
    shown = flavors_pb2.FlavorResponse(flavor=flavors_pb2.Flavor(id="1", name="m1.small"))
    dispatcher = Dispatcher(Anyone())
    dispatcher.add(Flavors(shown), flavors_pb2.DESCRIPTOR.services_by_name["Flavors"])
    return Gateway(dispatcher)


def serve(listener: socket.socket) -> None:
    """Serve the gateway from this process, until it is ended."""
    uvloop.run(server.serve(flavor_gateway(), "127.0.0.1", 0, listener=listener))


WIRE = (b"GET /compute/v2.1/flavors/1 HTTP/1.1\r\nHost: cloud:5000\r\nX-Auth-Token: t\r\nAccept: application/json\r\n"
        b"User-Agent: bench\r\nX-OpenStack-Nova-API-Version: 2.96\r\n\r\n")


class Asking(asyncio.Protocol):
    """A kept connection that asks for one flavor, waits for the whole answer and asks again."""

    def __init__(self) -> None:
        self.answers = 0
        self._size = self._left = 0

    def connection_made(self, transport) -> None:
        self._transport = transport
        transport.write(WIRE)

    def data_received(self, data: bytes) -> None:
        if not self._size:                    # all answers have the first one's size, which is little and comes in one piece
            head, _, _ = data.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), data
            self._size = self._left = len(head) + 4 + int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        self._left -= len(data)
        if self._left == 0:
            self._left = self._size
            self.answers += 1
            self._transport.write(WIRE)


async def load(port: int, pid: int, seconds: float) -> tuple[float, float]:
    """Answers per second of time, and per second of the server's CPU."""
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(Asking, "127.0.0.1", port) for _ in range(CONNECTIONS)]

    def figures() -> tuple[int, float, float]:
        return sum(asking.answers for _, asking in made), cpu_seconds(pid), time.perf_counter()

    await asyncio.sleep(seconds / 5)          # warm
    answers, cpu, started = figures()
    await asyncio.sleep(seconds)
    answers, cpu, took = (after - before for after, before in zip(figures(), (answers, cpu, started), strict=True))
    for transport, _ in made:
        transport.abort()
    return answers / took, answers / max(cpu, 0.01)


def through_uvicorn(seconds: float, rounds: int) -> tuple[float, float]:
    """What one process answers per second, and per second of its CPU: the best and the median of the rounds.

    The best counts for the first, which other work on the machine can only lower.
    """
    with server.listen("127.0.0.1", 0) as listener:
        process = multiprocessing.get_context("fork").Process(target=serve, args=(listener,), daemon=True)
        process.start()
        try:
            assert process.pid is not None
            taken = [uvloop.run(load(listener.getsockname()[1], process.pid, seconds)) for _ in range(rounds)]
        finally:
            process.terminate()
            process.join()
    return max(answers for answers, _ in taken), statistics.median(per_cpu for _, per_cpu in taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, for a test")
    parser.add_argument("--json", action="store_true", help="one object on the last line")
    options = parser.parse_args()
    rounds = 5 if options.quick else 100

    listing = servers_pb2.ListServersDetailResponse(servers=[shown_server(number) for number in range(ROWS)])
    made = Codec(Family.NOVA, {})
    encoder = made.encoders.of(listing.DESCRIPTOR)
    context = Context(base="http://cloud:5000", mount="/compute", prefix="/v2.1")
    size = len(codec.encode(listing, encoder, context))

    data = listing.SerializeToString()

    body = json.dumps({"server": {
        "name": "web-1", "imageRef": "5e3a2f0c-0000-4000-8000-000000000001", "flavorRef": "1", "min_count": 1, "max_count": 1,
        "networks": [{"uuid": "5e3a2f0c-0000-4000-8000-000000000002"}], "key_name": "k", "metadata": {"role": "web"},
        "security_groups": [{"name": "default"}]}}).encode()
    fields = made.decoders.of(servers_pb2.CreateServerRequest.DESCRIPTOR)

    def decode() -> None:
        codec.decode(codec.parse(body), servers_pb2.CreateServerRequest(), fields, context)

    result = {
        "rows": ROWS, "bytes": size,
        "encode_ms": median_ms(lambda: codec.encode(listing, encoder, context), rounds),
        "transcode_ms": median_ms(lambda: encoder.table.transcode(data, context), rounds),
        "reference_ms": median_ms(lambda: codec.encode_slowly(listing, encoder, context), rounds),
        "json_format_ms": median_ms(lambda: json_format.MessageToJson(listing, preserving_proto_field_name=True, indent=None,
                                                                      always_print_fields_with_no_presence=True), rounds),
        "decode_us": median_ms(decode, rounds * 10) * 1000,
        "get_us": uvloop.run(request_us(flavor_gateway(), rounds * 10)),
    }
    result["uvicorn_per_s"], result["uvicorn_per_cpu_s"] = through_uvicorn(*(0.5, 1) if options.quick else (2.0, 5))
    result["times_json_format"] = result["json_format_ms"] / result["encode_ms"]
    print(f"list of {ROWS} servers in detail ({size} bytes)   gateway {result['encode_ms']:8.3f} ms, of which transcoding "
          f"{result['transcode_ms']:.3f} ms")
    print(f"    the reference {result['reference_ms']:8.2f} ms   json_format {result['json_format_ms']:8.2f} ms   "
          f"json_format / gateway {result['times_json_format']:.1f}")
    print(f"server create body to message    {result['decode_us']:8.1f} us")
    print(f"GET of one flavor through ASGI   {result['get_us']:8.1f} us")
    print(f"the same through uvicorn, {CONNECTIONS} connections {result['uvicorn_per_s']:8.0f} /s, "
          f"{result['uvicorn_per_cpu_s']:.0f} per second of its CPU")
    if options.json:
        print(json.dumps({key: round(value, 3) for key, value in result.items()}))


if __name__ == "__main__":
    main()
