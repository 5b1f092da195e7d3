"""How tightly each policy packs a public cloud's requests: the time average of hosts in use over the volume bound.

Run: python benchmarks/bench_packing.py [--quick] [--json] [--plot FILE.png]. The trace is the Azure Public Dataset of 2017
(benchmarks/data/README.md), on 4,000 hosts of 48 vCPU and 192 GB. A lifetime is drawn uniformly within its bounds, with a fixed
seed; who is still there when the trace ends stays until then; of what happens in one second departures come first. The bound is
what no packing goes below: at each moment the demand for vCPU or memory, whichever needs more hosts, in hosts.

"known lifetimes" are told each end when it begins, which no cloud is; "learned lifetimes" are told ends only as they happen.
"""
import argparse
import heapq
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scheduler import _engine
from scheduler.lifetimes import Lifetimes
from scheduler.types import POLICIES

TRACE = Path(__file__).parent / "data" / "azure2017.npz"
SEED = 7
HOSTS = 4_000
HOST = np.array([48, 192 * 1024])              # vCPU, MiB
PERIOD = 300                                   # seconds

#: What the learned lifetimes are to come to.
AIM = 1.060


@dataclass
class Trace:
    """Requests in the order in which they came; times in seconds from the first. Flavors are rows of `demand`."""

    arrival: np.ndarray
    departure: np.ndarray                      # past `end` for those that are still there
    flavor: np.ndarray
    batch_size: np.ndarray
    demand: np.ndarray                         # (flavors, 2)
    end: int
    hosts: int

    def events(self) -> np.ndarray:
        """(events, 3): when, whether it is an arrival, which request. Requests that end as they begin are left out."""
        lasting = np.flatnonzero(self.departure > self.arrival)
        leaving = lasting[self.departure[lasting] <= self.end]
        rows = np.concatenate([np.stack([self.arrival[lasting], np.ones_like(lasting), lasting], 1),
                               np.stack([self.departure[leaving], np.zeros_like(leaving), leaving], 1)])
        return rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]


def load(requests: int | None = None, hosts: int = HOSTS) -> Trace:
    """The trace, or what came of its first requests by the time that the next one came."""
    with np.load(TRACE) as data:
        arrival = np.cumsum(data["arrival_periods"].astype(np.int64))
        arrival = (arrival - arrival[0]) * PERIOD
        bounds = data["bounds_s"][data["duration"]].astype(np.int64)
        batch = np.cumsum(data["batch_starts"])
        draws = np.random.default_rng(SEED).random(len(arrival))
        duration = (bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * draws).astype(np.int64)
        departure = np.where(data["censored"], arrival[-1] + 1, arrival + duration)
        departure[duration == 0] = arrival[duration == 0]
        end = int(arrival[-1] if requests is None else arrival[requests])
        return Trace(arrival[:requests], departure[:requests], data["flavor"][:requests].astype(np.int32),
                     np.bincount(batch)[batch][:requests], np.stack([data["vcpus"], data["memory_mib"]], 1).astype(np.int64),
                     end, hosts)


def engine(trace: Trace, policy: str) -> _engine.Engine:
    """The fleet, empty; its shapes are the trace's flavors."""
    made = _engine.Engine(2)
    for host in range(trace.hosts):
        made.set_host(host, 0, [HOST.tolist()])
    for demand in trace.demand.tolist():
        made.judge(made.add_shape([demand], 0, False, [], POLICIES[policy], [1, 1]), b"\0")
    return made


# Policies: each gives the host of every request, -1 for those that it did not place.

def by_engine(policy: str) -> Callable[[Trace, np.ndarray], np.ndarray]:
    """One of the engine's policies."""
    def run(trace: Trace, events: np.ndarray) -> np.ndarray:
        arrives, request = events[:, 1] == 1, events[:, 2]
        placed_by = np.zeros(len(trace.arrival), np.int64)
        placed_by[request[arrives]] = np.flatnonzero(arrives)
        operations = np.where(arrives, trace.flavor[request], -1 - placed_by[request]).astype(np.int32)
        claims, hosts = np.empty(len(operations), np.int32), np.empty(len(operations), np.int32)
        engine(trace, policy).replay(operations, np.full(len(operations), -1, np.int32), claims, hosts)
        chosen = np.full(len(trace.arrival), -1)
        chosen[request[arrives]] = hosts[arrives]
        return chosen
    return run


def by_score(score: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[[Trace, np.ndarray], np.ndarray]:
    """The host in use with the least score, by what is free (hosts, 2) and the demand (2,); a new one where none fits.

    Of both resources a host has the same, in units that make all amounts whole numbers: ties are ties.
    """
    whole = np.lcm.reduce(HOST)

    def run(trace: Trace, events: np.ndarray) -> np.ndarray:
        free = np.full((trace.hosts, 2), whole)
        members = np.zeros(trace.hosts, np.int64)
        demands, flavors = trace.demand * (whole // HOST), trace.flavor.tolist()
        chosen, opened = [-1] * len(flavors), 0
        for _, arrives, request in events.tolist():
            demand, host = demands[flavors[request]], chosen[request]
            if arrives:
                room = free[:opened]
                fits = np.flatnonzero((room[:, 0] >= demand[0]) & (room[:, 1] >= demand[1]) & (members[:opened] > 0))
                if len(fits):
                    host = int(fits[score(room[fits], demand).argmin()])
                else:
                    host = int(members.argmin())
                    if members[host]:
                        continue
                opened = max(opened, host + 1)
                free[host] -= demand
                members[host] += 1
                chosen[request] = host
            elif host >= 0:
                free[host] += demand
                members[host] -= 1
        return np.array(chosen)
    return run


def known_lifetimes(trace: Trace, events: np.ndarray) -> np.ndarray:
    """Each request says when it will end."""
    fleet = engine(trace, "pack")
    flavors, ends = trace.flavor.tolist(), trace.departure.tolist()
    claims, chosen = [-1] * len(flavors), [-1] * len(flavors)
    for now, arrives, request in events.tolist():
        if arrives:
            fleet.now = now
            claims[request], chosen[request] = fleet.place(flavors[request], -1, None, (), ends[request])
        elif claims[request] >= 0:
            fleet.release(claims[request])
    return np.array(chosen)


def learned_lifetimes(trace: Trace, events: np.ndarray) -> np.ndarray:
    """Each request is expected to live as those of its flavor in batches as large did; of who outlives that more is expected."""
    fleet, lifetimes = engine(trace, "pack"), Lifetimes()
    flavors, sizes, arrival = trace.flavor.tolist(), trace.batch_size.tolist(), trace.arrival.tolist()
    claims, chosen, told = [-1] * len(flavors), [-1] * len(flavors), [0] * len(flavors)
    due: list[tuple[int, int]] = []            # (expected end, request)
    for now, arrives, request in events.tolist():
        while due and due[0][0] <= now:
            then, late = heapq.heappop(due)
            if claims[late] >= 0:
                keys, age = keys_of(flavors[late], sizes[late]), then - arrival[late]
                lifetimes.outlived(keys, told[late], age)
                told[late] = age
                until = then + lifetimes.remaining(keys, age)
                fleet.extend(claims[late], until)
                heapq.heappush(due, (until, late))
        if arrives:
            fleet.now = now
            until = now + lifetimes.remaining(keys_of(flavors[request], sizes[request]), 0)
            claims[request], chosen[request] = fleet.place(flavors[request], -1, None, (), until)
            heapq.heappush(due, (until, request))
        elif claims[request] >= 0:
            fleet.release(claims[request])
            claims[request] = -1
            lifetimes.ended(keys_of(flavors[request], sizes[request]), told[request], now - arrival[request])
    return np.array(chosen)


def keys_of(flavor: int, batch_size: int) -> tuple[Any, ...]:
    return "", flavor, (flavor, int(batch_size).bit_length(), "about"), (flavor, batch_size)


POLICIES_BESIDE: dict[str, Callable[[Trace, np.ndarray], np.ndarray]] = {
    "worst-fit (spread)": by_engine("spread"),
    "dot product": by_score(lambda free, demand: -(free @ demand)),
    "first-fit": by_engine("first"),
    "best-fit, L1": by_score(lambda free, demand: free.sum(1)),
    "best-fit, L2 (pack)": by_engine("pack"),
    "learned lifetimes": learned_lifetimes,
    "known lifetimes": known_lifetimes,
}


# What came of it

def hosts_in_use(events: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(events,) after each event."""
    hosts = chosen[events[:, 2]]
    order = np.argsort(hosts, kind="stable")
    change = np.where(events[order, 1] == 1, 1, -1)
    change[hosts[order] < 0] = 0
    members = np.cumsum(change)
    first = np.flatnonzero(np.diff(hosts[order], prepend=-2))
    members -= np.repeat((members - change)[first], np.diff(np.append(first, len(order))))
    opens = (members == 1) & (change == 1)
    closes = (members == 0) & (change == -1)
    steps = np.zeros(len(events), np.int64)
    steps[order] = opens.astype(np.int64) - closes
    return np.cumsum(steps)


def bound(trace: Trace, events: np.ndarray) -> np.ndarray:
    """(events,) hosts that the demand after each event needs at least."""
    signs = np.where(events[:, 1:2] == 1, 1, -1)
    return (np.cumsum(signs * trace.demand[trace.flavor[events[:, 2]]], 0) / HOST).max(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the first requests, on fewer hosts: says little")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--plot", metavar="FILE", help="write hosts in use over time as PNG; needs matplotlib")
    given = parser.parse_args()
    trace = load(20_000, 1_000) if given.quick else load()
    events = trace.events()
    lasts = np.diff(np.append(events[:, 0], trace.end))
    least = bound(trace, events)
    area = float((least * lasts).sum())
    asked = int((events[:, 1] == 1).sum())
    print(f"{asked:,} requests on {trace.hosts:,} hosts; the bound is {area / lasts.sum():.1f} hosts on average")
    results: dict[str, Any] = {"requests": asked, "hosts": trace.hosts, "bound": area / lasts.sum(), "aim": AIM, "policies": {}}
    lines = {"the bound": least}
    for name, run in POLICIES_BESIDE.items():
        started = time.process_time()
        chosen = run(trace, events)
        took = time.process_time() - started
        lines[name] = used = hosts_in_use(events, chosen)
        row = {"over bound": float((used * lasts).sum()) / area, "mean": float((used * lasts).sum() / lasts.sum()),
               "most": int(used.max()), "placed": int((chosen >= 0).sum()), "seconds": took}
        results["policies"][name] = row
        print(f"{name:20} {row['over bound']:.4f} of the bound   {row['mean']:7.1f} hosts, at most {row['most']:5,}   "
              f"placed {row['placed'] / asked:.4f}   {took:6.1f} s", flush=True)
    if given.plot:
        plot(events, lines, given.plot)
    if given.json:
        print(json.dumps(results))


def plot(events: np.ndarray, lines: dict[str, np.ndarray], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    moments, places = np.unique(events[:, 0], return_index=True)
    last = np.append(places[1:], len(events)) - 1
    for name, line in lines.items():
        if name != "worst-fit (spread)":       # three times as many: it would flatten the others
            axes.plot(moments / 86400, line[last], label=name, linewidth=0.9, color="black" if name == "the bound" else None)
    axes.set(xlabel="days", ylabel="hosts in use", title="Packing a public cloud's requests (Azure, 2017)")
    axes.set_ylim(bottom=0)
    axes.grid(True, alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
