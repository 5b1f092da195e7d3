"""A large cloud at rest and at work: memory, idle CPU, long lists, watchers, the return of agents, when a host hears of a change.

Run: python benchmarks/bench_fleet.py [--quick] [--json] [--hosts N ...] [--plot FILE]. Needs root.

For each size a cloud of its own is brought up with simulated hosts (the real agents over hypervisors in memory), and filled
through the REST API: projects of 1,000 servers with a port each, made 100 to a call. All of it shares the machine with the
simulator.
"""
import argparse
import asyncio
import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
from typing import Any

import load
import simulated_cloud
from simulated_cloud import Cloud, Meter, Tenant, until

#: Servers of a project, of one create call, and those that are under way while it is filled.
PER_PROJECT, PER_CALL, UNDER_WAY = 1000, 100, 1000

#: Servers that are listed, in pages of the most that one may have.
LISTED, PAGE = 10_000, 1000

#: Who watch one project's servers.
WATCHERS = 1000

#: What the figures are to be at 10,000 hosts and 100,000 servers.
AIMS = {"control_mib": 2000.0, "list_s": 1.0, "agents_back_s": 30.0, "change_p99_ms": 50.0}


def measure(hosts: int, servers: int, *, idle_seconds: float, changes: int, processes: int) -> dict[str, Any]:
    """Figures of one size."""
    with simulated_cloud.running() as cloud:
        began = time.monotonic()
        with simulated_cloud.hosts(cloud, hosts, processes) as fleet:
            attached = time.monotonic() - began
            pids = cloud.pids() | {"simulator": fleet.pids}
            bare = {name: load.pss_mib(found) for name, found in pids.items()}
            meter, began = Meter(pids), time.monotonic()
            tenants = fill(cloud, fleet, servers)
            filled = time.monotonic() - began
            spent = meter.seconds()
            figures = said({
                "hosts": hosts, "servers": servers, "attach_s": round(attached, 1), "fill_s": round(filled, 1),
                "fill_cpu_ms_per_server": {name: round(used / max(servers, 1) * 1000, 2) for name, used in spent.items()
                                           if name in ("control", "etcd", "simulator")}})
            time.sleep(min(idle_seconds, 10))
            memory = {name: load.pss_mib(found) for name, found in pids.items()}
            meter = Meter(pids)
            time.sleep(idle_seconds)
            idle = {name: round(used / idle_seconds * 100, 1) for name, used in meter.seconds().items()}
            figures |= said({"memory_mib": memory, "memory_without_servers_mib": bare, "control_mib": memory["control"],
                             "idle_cpu_percent": idle})
            figures |= said(listing(cloud, min(LISTED, servers), pids))
            figures |= said(change(cloud, fleet, tenants[0], changes))
            figures |= said(watching(cloud, tenants[0], min(WATCHERS, servers), max(changes // 4, 5)))
            figures |= said({"agents_back_s": back(fleet, hosts, fleet.restart_agents)})
            figures |= said({"control_back_s": back(
                fleet, hosts, lambda: os.kill(cloud.pids()["control"][0], signal.SIGKILL))})
            return figures


def said(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures; told to who waits as soon as they are there, for a large cloud takes half an hour."""
    print(json.dumps(figures), file=sys.stderr, flush=True)
    return figures


def fill(cloud: Cloud, fleet: Any, servers: int) -> list[Tenant]:
    """Make the servers, and wait until all of them run; the projects."""
    tenants = cloud.tenants(-(-servers // PER_PROJECT))
    client = load.Client(cloud.config.port)
    made = 0
    while made < servers:
        tenant = tenants[made // PER_PROJECT]
        count = min(PER_CALL, servers - made, PER_PROJECT - made % PER_PROJECT)
        client.json("POST", "/compute/v2.1/servers", {"server": {
            "name": "fleet", "imageRef": cloud.image, "flavorRef": cloud.flavor, "min_count": count, "max_count": count,
            "networks": [{"uuid": tenant.network}]}}, tenant.token)
        made += count
        _until_running(fleet, made - UNDER_WAY)
    _until_running(fleet, servers)
    for tenant in tenants[-2:]:
        until(lambda tenant=tenant: not simulated_cloud.get(       # type: ignore[misc]
            cloud.config.port, "/compute/v2.1/servers?status=BUILD", tenant.token)["servers"], 60, "all servers to be ACTIVE")
    return tenants


def _until_running(fleet: Any, servers: int) -> None:
    until(lambda: fleet.totals()["running"] >= servers, 120, f"{servers} servers to run", 0.02)


def listing(cloud: Cloud, servers: int, pids: dict[str, list[int]]) -> dict[str, Any]:
    """Every server in detail, page by page, as an admin."""
    token = cloud.admin_token()
    meter, began, seen, marker = Meter(pids), time.monotonic(), 0, ""
    while seen < servers:
        path = f"/compute/v2.1/servers/detail?all_tenants=1&limit={min(PAGE, servers - seen)}"
        rows = simulated_cloud.get(cloud.config.port, path + (f"&marker={marker}" if marker else ""), token)["servers"]
        seen, marker = seen + len(rows), rows[-1]["id"]
    took, cpu = time.monotonic() - began, meter.seconds()["control"]
    began = time.monotonic()
    found = simulated_cloud.get(cloud.config.port, "/compute/v2.1/os-hypervisors/detail", token)["hypervisors"]
    return {"listed": seen, "list_s": round(took, 2), "list_cpu_s": round(cpu, 2), "hypervisors_listed": len(found),
            "hypervisors_s": round(time.monotonic() - began, 3)}


def change(cloud: Cloud, fleet: Any, tenant: Tenant, changes: int) -> dict[str, Any]:
    """How soon a server's new name is with its host's agent, from the moment that the request is sent."""
    token = cloud.admin_token()
    path = f"/compute/v2.1/servers/detail?all_tenants=1&limit=1&project_id={tenant.project}"
    row = simulated_cloud.get(cloud.config.port, path, token)["servers"][0]
    fleet.follow(row["OS-EXT-SRV-ATTR:host"])
    fleet.arrivals.clear()
    time.sleep(1.0)
    client, times = load.Client(cloud.config.port), []
    for number in range(changes):
        heard = len(fleet.arrivals)
        began = time.monotonic()
        client.json("PUT", f"/compute/v2.1/servers/{row['id']}", {"server": {"name": f"fleet-{number}"}}, tenant.token)
        until(lambda heard=heard: fleet.totals() is not None and len(fleet.arrivals) > heard,       # type: ignore[misc]
              10, "a change to reach its host", 0.002)
        times.append(fleet.arrivals[heard] - began)
        time.sleep(0.05)
    return cuts("change", times)


def cuts(name: str, times: list[float]) -> dict[str, float]:
    """Median and 99th percentile of some seconds, in ms."""
    times = sorted(times)
    return {f"{name}_p50_ms": round(statistics.median(times) * 1000, 1),
            f"{name}_p99_ms": round(times[min(len(times) - 1, int(len(times) * 0.99))] * 1000, 1)}


def watching(cloud: Cloud, tenant: Tenant, watchers: int, changes: int) -> dict[str, Any]:
    """How soon a server's new name is with everybody who watches its project over REST, the clients' own work included."""
    results = multiprocessing.get_context("fork").Queue()
    meter = Meter(cloud.pids())
    worker = multiprocessing.get_context("fork").Process(
        target=lambda: results.put(asyncio.run(_watched(cloud.config.port, tenant.token, watchers, changes))))
    worker.start()
    times = results.get(timeout=300)
    worker.join()
    return {"watchers": watchers, **cuts("all_told", times), "watching_cpu_s": round(meter.seconds()["control"], 2)}


async def _watched(port: int, token: str, watchers: int, changes: int) -> list[float]:
    """For each change the seconds from its request until the last watcher has its event."""
    client = load.Client(port)
    headers, answer = client.json("GET", "/compute/v2.1/servers?limit=1", token=token)
    server, revision = answer["servers"][0]["id"], headers["X-Brume-Revision"]
    ask = (f"GET /watch/v1/servers?from_revision={revision} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nX-Auth-Token: {token}\r\n\r\n")
    streams = []
    for _ in range(watchers):
        streams.append(await asyncio.open_connection("127.0.0.1", port))
        streams[-1][1].write(ask.encode())
    for reader, _ in streams:
        await asyncio.wait_for(reader.readuntil(b"event: BOOKMARK"), 60)
    times = []
    for number in range(changes):
        name = f"watched-{number}"
        heard = asyncio.gather(*(reader.readuntil(f'"{name}"'.encode()) for reader, _ in streams))
        began = time.monotonic()
        await asyncio.to_thread(client.json, "PUT", f"/compute/v2.1/servers/{server}", {"server": {"name": name}}, token)
        await asyncio.wait_for(heard, 30)
        times.append(time.monotonic() - began)
        await asyncio.sleep(0.2)
    for _, writer in streams:
        writer.close()
    return times


def back(fleet: Any, hosts: int, end: Any) -> float:
    """Seconds from `end` until every agent is attached anew and has said all that it sees."""
    before = fleet.totals()["attaches"]
    began = time.monotonic()
    end()
    until(lambda: (said := fleet.totals())["attaches"] >= before + hosts and said["settled"] == hosts, 200, "the agents")
    return round(time.monotonic() - began, 1)


def plot(rows: list[dict[str, Any]], path: str) -> None:
    import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6))
    names = [f"{row['hosts']:,} hosts\n{row['servers']:,} servers" for row in rows]
    for axis, parts, title in (
            (axes[0], "memory_mib", "memory, MiB"), (axes[1], "idle_cpu_percent", "CPU at rest, % of a core")):
        left = [0.0] * len(rows)
        for part in ("control", "etcd", "simulator"):
            values = [row[parts][part] for row in rows]
            axis.bar(names, values, bottom=left, label=part)
            left = [low + value for low, value in zip(left, values, strict=True)]
        axis.set_title(title)
        axis.legend()
    for place, name in enumerate(("list_s", "agents_back_s", "control_back_s")):
        axes[2].bar([number + place * 0.25 for number in range(len(rows))], [row[name] for row in rows], 0.25, label=name)
    axes[2].set_xticks([number + 0.25 for number in range(len(rows))], names)
    axes[2].set_yscale("log")
    axes[2].set_title("seconds")
    axes[2].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="50 hosts with 200 servers")
    parser.add_argument("--hosts", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--servers-per-host", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1, help="of the simulator")
    parser.add_argument("--plot", metavar="FILE", help="needs matplotlib")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("a cloud needs root: run with sudo")
    sizes = [50] if options.quick else options.hosts
    rows = []
    for hosts in sizes:
        rows.append(measure(hosts, 200 if options.quick else hosts * options.servers_per_host, processes=options.processes,
                            idle_seconds=2 if options.quick else 30, changes=20 if options.quick else 200))
        if not options.json:
            for name, value in rows[-1].items():
                print(f"{name:<28} {value}" + (f"   aim {AIMS[name]:g}" if name in AIMS else ""))
            print()
    if options.plot:
        plot(rows, options.plot)
    if options.json:
        print(json.dumps({"sizes": rows, "aims": AIMS}))


if __name__ == "__main__":
    main()
