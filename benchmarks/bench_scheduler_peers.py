"""The scheduler beside its peers, in one run: Placement's API beside ours, Nova's filters and weighers beside Fleet.place.

Run: python benchmarks/bench_scheduler_peers.py [--quick] [--json]. Both have the same providers. Ours is one process of uvicorn
over an etcd of its own with TLS and fsync; Placement comes from PyPI into an environment of its own, behind uwsgi with 2
workers, over SQLite, which wants one writer at a time: what writes is measured with one connection on both sides. Neither asks
an identity service. Nova's filters and weighers, those that are on by default, get their hosts ready in memory: no database, no
message bus, no Placement, so it is the least that Nova's scheduler can cost. What cannot be installed is left out, with the
reason.
"""
import argparse
import asyncio
import contextlib
import functools
import json
import multiprocessing
import os
import random
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop
from bench_store import running_etcd
from load import Client, as_row, descendants, measure

from control.gateway.app import Gateway
from control.gateway.server import listen, serve
from control.kernel import etcd_server, fleet
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.etcd_store import EtcdStore
from control.kernel.rpc import Dispatcher
from control.placement import service
from control.placement.live import LiveFleet
from control.placement.neighbours import NoServers
from scheduler.fleet import Fleet, single_row
from scheduler.types import Inventory, Request, Shape, amounts

ENVIRONMENT = Path("/var/tmp/brume-bench-openstack")
PACKAGES = ("openstack-placement", "nova", "uwsgi")
HEADERS = {"X-Auth-Token": "admin", "OpenStack-API-Version": "placement 1.39", "Content-Type": "application/json"}
INVENTORIES: dict[str, dict[str, Any]] = {
    "VCPU": {"total": 64, "allocation_ratio": 16.0}, "MEMORY_MB": {"total": 524288, "allocation_ratio": 1.5},
    "DISK_GB": {"total": 8000}}
ASKED = {"VCPU": 1, "MEMORY_MB": 1024, "DISK_GB": 10}
CANDIDATES = "/allocation_candidates?resources=" + ",".join(f"{name}:{amount}" for name, amount in ASKED.items())
LIMIT = 1000                                   # what Nova asks for

#: Figures that others published, on machines of theirs: not measured here.
QUOTED = {"kube-scheduler, the least its own tests accept at 5,000 nodes": 810, "Nomad, C1M: a million containers": 3_750}

NOVA = r"""
import datetime, json, logging, os, statistics, sys, time, uuid
hosts, rounds = json.loads(sys.argv[1])
sys.argv = ["nova-scheduler"]
os.environ["OS_NOVA_DISABLE_EVENTLET_PATCHING"] = "1"
from nova import monkey_patch
monkey_patch.patch(backend="threading")
from nova import config, objects
import nova.conf
config.parse_args(["nova-scheduler"], default_config_files=[])
objects.register_all()
logging.disable(logging.WARNING)
from nova.scheduler import filters, host_manager, weights
CONF = nova.conf.CONF
CONF.set_override("service_down_time", 1_000_000)
seen = datetime.datetime.utcnow()
states = []
for number in range(hosts):
    name = f"h{number:06}"
    node = objects.ComputeNode(
        id=number + 1, uuid=str(uuid.uuid4()), host=name, hypervisor_hostname=name, vcpus=64, vcpus_used=number % 16,
        memory_mb=524288, memory_mb_used=1024 * (number % 16), free_ram_mb=524288 - 1024 * (number % 16), local_gb=8000,
        local_gb_used=0, free_disk_gb=8000, disk_available_least=8000, hypervisor_type="QEMU", hypervisor_version=8002000,
        cpu_info="{}", numa_topology=None, stats={"num_instances": "16", "io_workload": "0", "failed_builds": "0"},
        supported_hv_specs=[objects.HVSpec.from_list(["x86_64", "kvm", "hvm"])], pci_device_pools=None, metrics="[]",
        cpu_allocation_ratio=16.0, ram_allocation_ratio=1.5, disk_allocation_ratio=1.0, host_ip="127.0.0.1",
        updated_at=seen.replace(tzinfo=datetime.timezone.utc), deleted=False)
    state = host_manager.HostState(name, name, str(uuid.uuid4()))
    state.update(node, {"host": name, "disabled": False, "last_seen_up": seen, "updated_at": seen, "created_at": seen,
                        "forced_down": False, "topic": "compute", "binary": "nova-compute"}, [], {})
    states.append(state)
every = filters.HostFilterHandler()
wanted = set(CONF.filter_scheduler.enabled_filters)
chosen = [each() for each in every.get_matching_classes(CONF.filter_scheduler.available_filters) if each.__name__ in wanted]
handler = weights.HostWeightHandler()
weighers = [each() for each in handler.get_matching_classes(CONF.filter_scheduler.weight_classes)]

def spec():
    flavor = objects.Flavor(id=1, name="m", flavorid="1", memory_mb=1024, vcpus=1, root_gb=10, ephemeral_gb=0, swap=0,
                            extra_specs={}, disabled=False, is_public=True, rxtx_factor=1.0, vcpu_weight=0, projects=[])
    image = objects.ImageMeta(properties=objects.ImageMetaProps(), min_ram=0, min_disk=0)
    return objects.RequestSpec(
        flavor=flavor, image=image, instance_uuid=str(uuid.uuid4()), project_id="p", user_id="u", num_instances=1,
        availability_zone=None, numa_topology=None, pci_requests=objects.InstancePCIRequests(requests=[]), ignore_hosts=None,
        force_hosts=None, force_nodes=None, retry=None, limits=objects.SchedulerLimits(), instance_group=None,
        scheduler_hints={}, requested_destination=None, is_bfv=False, requested_resources=[])

times = []
for _ in range(rounds + 1):
    asked = spec()
    started = time.perf_counter()
    passing = every.get_filtered_objects(chosen, states, asked)
    best = handler.get_weighed_objects(weighers, passing, asked)[0].obj
    best.consume_from_request(asked)
    times.append(time.perf_counter() - started)
    assert len(passing) == hosts, len(passing)
print(json.dumps({"p50_ms": statistics.median(times[1:]) * 1000, "filters": len(chosen), "weighers": len(weighers)}))
sys.stdout.flush()
os._exit(0)                                    # without waiting for threads of Nova's libraries
"""


class Anyone:
    """Everybody is an administrator, as with Placement's noauth2."""

    async def authenticate(self, token: str) -> Caller:
        return Caller(user_id="u", project_id="p", roles=frozenset({"admin"}))


@dataclass(frozen=True, slots=True)
class Server:
    """A placement API that runs. `fill` makes providers with inventories."""

    port: int
    path: str
    pids: list[int]
    fill: Callable[[list[str]], None]


def serve_placement(listener: socket.socket, endpoint: str, pki: Path) -> None:
    """Serve our placement API from this process, until it is ended."""
    async def run() -> None:
        client = etcd_server.client_credentials(pki, "bench")
        await etcd_server.wait_ready([endpoint], client)
        database = Database(EtcdStore([endpoint], client), fleet.KINDS)
        dispatcher = Dispatcher(Anyone())
        for servicer, descriptor in service.servicers(database, LiveFleet(database, NoServers())):
            dispatcher.add(servicer, descriptor)
        await asyncio.gather(database.cache.run(), serve(Gateway(dispatcher), "127.0.0.1", 0, listener=listener))
    uvloop.run(run())


@contextlib.contextmanager
def brume() -> Iterator[Server]:
    """Our placement API."""
    with running_etcd() as config, listen("127.0.0.1", 0) as listener:
        arguments = (listener, config.endpoint, config.data_dir.parent / "pki")
        process = multiprocessing.get_context("fork").Process(target=serve_placement, args=arguments, daemon=True)
        process.start()
        try:
            port = listener.getsockname()[1]
            wait(port, "/placement")
            pids = [pid for pid in descendants(os.getpid()) if pid == process.pid or command(pid) == "etcd"]
            yield Server(port, "/placement", pids, functools.partial(fill_by_calls, port, "/placement"))
        finally:
            process.terminate()
            process.join()


@contextlib.contextmanager
def placement(environment: Path) -> Iterator[Server]:
    """Placement from PyPI behind uwsgi."""
    directory = Path(tempfile.mkdtemp(prefix="placement-"))
    file = directory / "placement.conf"
    file.write_text(f"[DEFAULT]\nlog_file={directory}/placement.log\n[api]\nauth_strategy=noauth2\n"
                    f"[placement_database]\nconnection=sqlite:///{directory}/placement.db\n")
    subprocess.run([str(environment / "bin" / "placement-manage"), "--config-file", str(file), "db", "sync"], check=True,
                   capture_output=True)
    # The first start writes traits and classes: two workers that do so at once lock SQLite, and uwsgi gives up.
    subprocess.run([str(environment / "bin" / "python"), "-c", "import placement.wsgi.api"], check=True, capture_output=True,
                   env={**os.environ, "OS_PLACEMENT_CONFIG_DIR": str(directory)})
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [str(environment / "bin" / "uwsgi"), "--http-socket", f"127.0.0.1:{port}", "--processes", "2", "--master", "--lazy-apps",
         "--enable-threads", "--disable-logging", "--need-app", "--buffer-size", "65535", "--virtualenv", str(environment),
         "--module", "placement.wsgi.api:application", "--add-header", "Connection: close", "--die-on-term"],
        env={**os.environ, "OS_PLACEMENT_CONFIG_DIR": str(directory)}, cwd=directory,
        stdout=(directory / "uwsgi.log").open("wb"), stderr=subprocess.STDOUT)
    try:
        wait(port, "")
        yield Server(port, "", descendants(process.pid), functools.partial(fill_database, directory / "placement.db"))
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def wait(port: int, path: str) -> None:
    """Until the API answers."""
    for _ in range(600):
        try:
            if Client(port).call("GET", f"{path}/resource_classes", HEADERS)[0] == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"no placement API answers on port {port}")


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def call(client: Client, method: str, path: str, body: Any = None) -> Any:
    status, _, data = client.call(method, path, HEADERS, None if body is None else json.dumps(body).encode())
    if status >= 400:
        raise SystemExit(f"{method} {path}: {status} {data[:300]!r}")
    return json.loads(data) if data else None


def fill_by_calls(port: int, path: str, names: list[str]) -> None:
    """Providers with inventories, through the API."""
    client = Client(port)
    for name in names:
        call(client, "POST", f"{path}/resource_providers", {"name": name, "uuid": provider_of(name)})
        call(client, "PUT", f"{path}/resource_providers/{provider_of(name)}/inventories",
             {"resource_provider_generation": 0, "inventories": INVENTORIES})


def fill_database(file: Path, names: list[str]) -> None:
    """The same, into Placement's tables: by calls it would take minutes."""
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database, database:
        classes = dict(database.execute("SELECT name, id FROM resource_classes"))
        for name in names:
            number = database.execute("INSERT INTO resource_providers (uuid, name, generation) VALUES (?, ?, 1)",
                                      (provider_of(name), name)).lastrowid
            database.execute("UPDATE resource_providers SET root_provider_id = id WHERE id = ?", (number,))
            database.executemany(
                "INSERT INTO inventories (resource_provider_id, resource_class_id, total, reserved, min_unit, max_unit, "
                "step_size, allocation_ratio) VALUES (?, ?, ?, 0, 1, ?, 1, ?)",
                [(number, classes[kind], has["total"], has["total"], has.get("allocation_ratio", 1.0))
                 for kind, has in INVENTORIES.items()])
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
        database.execute("ANALYZE")


def provider_of(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def claim_body(provider: str) -> dict[str, Any]:
    return {"allocations": {provider: {"resources": ASKED}}, "project_id": "p", "user_id": "u", "consumer_generation": None,
            "consumer_type": "INSTANCE"}


def full_claims(port: int, path: str, seconds: float) -> dict[str, Any]:
    """Candidates, one of them at random, and the claim of it: as Nova does for a server, one after the other."""
    client, chance = Client(port), random.Random(1)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        started = time.perf_counter()
        answer = call(client, "GET", f"{path}{CANDIDATES}&limit={LIMIT}")
        [provider] = chance.choice(answer["allocation_requests"])["allocations"]
        call(client, "PUT", f"{path}/allocations/{uuid.uuid4()}", claim_body(provider))
        times.append(time.perf_counter() - started)
    return {"per_second": len(times) / sum(times), "p50_ms": statistics.median(times) * 1000}


def api(server: Server, hosts: int, present: int, seconds: float, clients: int) -> dict[str, Any]:
    """What the API does with so many providers, of which some are there already."""
    port, path, pids = server.port, server.path, server.pids
    names = [f"h{number:06}" for number in range(hosts)]
    server.fill(names[present:])
    found = call(Client(port), "GET", f"{path}{CANDIDATES}&limit={LIMIT}")["allocation_requests"]
    if len(found) != min(hosts, LIMIT):
        raise SystemExit(f"{len(found)} candidates of {hosts} providers")
    providers = [provider_of(name) for name in names]
    loads = {
        f"candidates, limit {LIMIT}": lambda n: ("GET", f"{path}{CANDIDATES}&limit={LIMIT}", HEADERS, None),
        "candidates, limit 1": lambda n: ("GET", f"{path}{CANDIDATES}&limit=1", HEADERS, None),
        "PUT allocations": lambda n: ("PUT", f"{path}/allocations/{uuid.UUID(int=random.getrandbits(128))}", HEADERS,
                                      json.dumps(claim_body(random.choice(providers))).encode()),
    }
    rows: dict[str, Any] = {
        name: as_row(measure(port, request, pids, clients=1 if name.startswith("PUT") else clients, seconds=seconds))
        for name, request in loads.items()}
    return {**rows, "full claim": full_claims(port, path, seconds)}


def in_process(hosts: int, calls: int) -> float:
    """Milliseconds of one Fleet.place, the median."""
    has = {name: Inventory(given["total"], allocation_ratio=given.get("allocation_ratio", 1.0))
           for name, given in INVENTORIES.items()}
    made, shape, times = Fleet(single_row(f"h{number:06}", has) for number in range(hosts)), Shape(amounts(ASKED)), []
    for number in range(calls):
        started = time.perf_counter()
        made.place(Request(f"s{number}", shape))
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def nova(environment: Path, hosts: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        answer = subprocess.run([str(environment / "bin" / "python"), "-W", "ignore", "-c", NOVA, json.dumps([hosts, rounds])],
                                capture_output=True, text=True, cwd=directory)
    if answer.returncode:
        raise SystemExit(f"nova's filters and weighers failed:\n{answer.stderr[-3000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def installed(path: Path) -> str:
    """The reason why the peers are not to be had; "" once their environment is there."""
    if all((path / "bin" / name).exists() for name in ("placement-manage", "nova-manage", "uwsgi")):
        return ""
    print(f"installing {', '.join(PACKAGES)} into {path}", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True, capture_output=True, text=True)
        subprocess.run([str(path / "bin" / "pip"), "install", "-q", *PACKAGES], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        return f"they cannot be installed: {error.stderr.strip().splitlines()[-1] if error.stderr else error}"
    return ""


def versions(path: Path) -> dict[str, str]:
    program = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {PACKAGES!r}}}))"
    return json.loads(subprocess.run([str(path / "bin" / "python"), "-c", program], check=True, capture_output=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="few providers, short, and without the peers")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--peers", type=Path, default=ENVIRONMENT, metavar="DIR",
                        help="the peers' environment, made when it is not there  [default: %(default)s]")
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    sizes, seconds = ((100,), 0.3) if given.quick else ((1_000, 5_000), 5.0)
    skipped = "--quick is ours only" if given.quick else installed(given.peers)
    environment = None if skipped else given.peers
    figures: dict[str, Any] = {"clients": given.clients, "quoted": QUOTED, "sizes": {size: {} for size in sizes}}
    if environment:
        figures["versions"] = versions(environment)
    else:
        figures["skipped"] = skipped
        print(f"peers skipped: {skipped}")
    servers: dict[str, Any] = {"brume": brume} | ({"placement": lambda: placement(environment)} if environment else {})
    for name, start in servers.items():
        with start() as server:
            for present, size in zip((0, *sizes), sizes, strict=False):
                figures["sizes"][size][name] = api(server, size, present, seconds, given.clients)
                show(name, size, figures["sizes"][size][name])
    for size in sizes:
        row = figures["sizes"][size]
        row["Fleet.place"] = {"p50_ms": in_process(size, 2_000 if given.quick else 20_000)}
        if environment:
            row["nova"] = nova(environment, size, 30)
            row["ratios"] = {load: {key: round(ours[key] / row["placement"][load][key], 2) for key in ours if key in (
                "per_second", "per_cpu_second")} for load, ours in row["brume"].items()}
            row["ratios"]["filters and weighers"] = {"per_second": round(row["nova"]["p50_ms"] / row["Fleet.place"]["p50_ms"])}
        print(f"{size:,} hosts: Fleet.place {row['Fleet.place']['p50_ms'] * 1000:.1f} us" + (
            f", nova's {row['nova']['filters']} filters and {row['nova']['weighers']} weighers {row['nova']['p50_ms']:.1f} ms"
            if environment else ""))
        for load, ratio in row.get("ratios", {}).items():
            print(f"    {load:22} ours / theirs  {ratio['per_second']:>8,.1f} a second" + (
                f"   {ratio['per_cpu_second']:>8,.1f} a CPU second" if "per_cpu_second" in ratio else ""))
    for name, rate in QUOTED.items():
        print(f"quoted, not measured: {name}, {rate:,} a second")
    if given.json:
        print(json.dumps(figures))


def show(name: str, size: int, rows: dict[str, Any]) -> None:
    for load, row in rows.items():
        print(f"{name:10} {size:>6,} providers  {load:22} {row['per_second']:>9,.1f}/s  p50 {row['p50_ms']:8.2f} ms" + (
            f"  {row['per_cpu_second']:>9,.1f} per CPU second  {row['errors']} errors" if "errors" in row else ""), flush=True)


if __name__ == "__main__":
    main()
