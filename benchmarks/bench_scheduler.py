"""How fast the scheduler places, in process, in a fleet that is busy: full to 85 %, each placement with a release.

Run: python benchmarks/bench_scheduler.py [--quick] [--json] [--plot FILE.png]. Seeds are fixed. Two ways are measured:
"replay", one call for all operations, as a trace is replayed or a batch is placed, timed one by one inside; and "call", a
Python call of Fleet.place and Fleet.release for each, with names, as a service does. A figure is placements a second, each
with the release that makes room for it, on one core. Prints a line per case; with --json one object on the last line.
"""
import argparse
import json
import time
from dataclasses import dataclass, replace

import numpy as np

from scheduler.fleet import Fleet, single_row
from scheduler.types import Group, Host, Inventory, Request, Row, ServerGroup, Shape, amounts

SEED = 20171201
FULL = 0.85
MORE_CLASSES = ("CUSTOM_A", "CUSTOM_B", "CUSTOM_C", "CUSTOM_D", "CUSTOM_E")
GROUP_SIZE = 5


@dataclass
class Case:
    """A fleet, what is asked of it, and how many server groups take part (0: none)."""

    fleet: Fleet
    shapes: list[Shape]
    groups: int = 0


def inventories(classes: int) -> dict[str, Inventory]:
    has = {"VCPU": Inventory(96), "MEMORY_MB": Inventory(384 * 1024), "DISK_GB": Inventory(4000)}
    return has | {name: Inventory(64) for name in MORE_CLASSES[:classes - 3]}


def flavors(classes: int) -> list[dict[str, int]]:
    """16 of them: 1 to 8 vCPU, 2 to 8 GiB each, and a little of the other classes here and there."""
    made = []
    for number in range(16):
        vcpus = 2 ** (number % 4)
        flavor = {"VCPU": vcpus, "MEMORY_MB": vcpus * (2048, 4096, 8192, 4096)[number // 4], "DISK_GB": 20 * (1 + number % 5)}
        if classes > 3:
            flavor[MORE_CLASSES[number % (classes - 3)]] = 1 + number % 2
        made.append(flavor)
    return made


def plain(hosts: int, classes: int) -> Case:
    has = inventories(classes)
    return Case(Fleet(single_row(f"h{n:06}", has) for n in range(hosts)), [Shape(amounts(flavor)) for flavor in flavors(classes)])


def constrained(hosts: int, classes: int) -> Case:
    """Four zones, aggregates of 200 hosts, traits on some hosts; 96 shapes that ask for this or that of them."""
    has = inventories(classes)
    fleet = Fleet(single_row(f"h{n:06}", has, zone=f"z{n % 4}", aggregates=frozenset({f"a{n // 200}"}),
                             traits=frozenset(trait for trait, every in (("SSD", 2), ("AVX512", 3), ("OLD", 7))
                                              if n // 4 % every == 0))
                  for n in range(hosts))
    asked = [{"zone": "z0"}, {"zone": "z1", "forbidden": frozenset({"OLD"})}, {"zone": "z2"}, {"zone": "z3"}]
    shapes = [Shape(amounts(flavor), **more) for flavor in flavors(classes) for more in asked]
    some = [replace(shape, required=frozenset({"SSD"})) for shape in shapes[::4]]
    return Case(fleet, shapes + some + [replace(shape, any_of=(frozenset({"SSD", "AVX512"}),)) for shape in shapes[1::4]])


def apart(hosts: int, classes: int) -> Case:
    """Everyone is in an anti-affinity group of five."""
    case = plain(hosts, classes)
    case.groups = max(int(hosts * 96 * FULL / 3.75) // GROUP_SIZE, 1)
    for number in range(case.groups):
        case.fleet.set_group(ServerGroup(f"g{number}", "anti-affinity"))
    return case


def numa(hosts: int, classes: int) -> Case:
    """Hosts of two cells with dedicated CPUs and memory; guests of one cell, and of two on different ones."""
    cell = (("MEMORY_MB", Inventory(192 * 1024)), ("PCPU", Inventory(48)))
    fleet = Fleet(Host(f"h{n:06}", (Row("host", (("DISK_GB", Inventory(4000)),)), Row("cell0", cell), Row("cell1", cell)))
                  for n in range(hosts))
    shapes = []
    for number in range(8):
        half = Group(amounts({"PCPU": 2 ** (number % 3), "MEMORY_MB": 4096 * 2 ** (number % 3)}))
        shapes.append(Shape(amounts({"DISK_GB": 20}), groups=(half,) if number < 4 else (half, half), isolate=number >= 4))
    return Case(fleet, shapes)


CASES = {"plain": plain, "traits and zones": constrained, "anti-affinity": apart, "NUMA": numa}


def size(shape: Shape) -> int:
    asked = [*shape.amounts, *(pair for group in shape.groups for pair in group.amounts)]
    return sum(amount for name, amount in asked if name in ("VCPU", "PCPU"))


def operations(case: Case, churn: int) -> tuple[np.ndarray, np.ndarray, int]:
    """What `Engine.replay` is given: placements to FULL, then pairs of a release and a placement; how many the first are."""
    seed = np.random.default_rng(SEED)
    shapes = [case.fleet.shape_number(shape) for shape in case.shapes]
    total = len(case.fleet.hosts) * 96 * FULL
    fill = int(total / (sum(map(size, case.shapes)) / len(shapes)))
    asked = np.array(shapes, np.int32)[seed.integers(len(shapes), size=fill + churn)]
    ops = np.empty(fill + 2 * churn, np.int32)
    ops[:fill] = asked[:fill]
    ops[fill + 1::2] = asked[fill:]
    leaving = seed.integers(fill, size=churn)
    place = np.arange(fill)                      # where the claim of each slot was placed
    releases = np.empty(churn, np.int32)
    for step, slot in enumerate(leaving):
        releases[step] = -1 - place[slot]
        place[slot] = fill + 2 * step + 1
    ops[fill::2] = releases
    groups = np.full(len(ops), -1, np.int32)
    if case.groups:
        groups[:fill] = np.arange(fill) // GROUP_SIZE % case.groups
        owner = groups[:fill].copy()
        groups[fill + 1::2] = owner[leaving]     # who leaves is replaced by one of its own group
    return ops, groups, fill


def replay(case: Case, churn: int) -> dict[str, float]:
    ops, groups, fill = operations(case, churn)
    claims, hosts, taken = np.empty(len(ops), np.int32), np.empty(len(ops), np.int32), np.empty(len(ops), np.int64)
    started = time.process_time()
    case.fleet.engine.replay(ops[:fill], groups[:fill], claims[:fill], hosts[:fill])
    filled = time.process_time() - started
    case.fleet.engine.release_many(claims[:fill][claims[:fill] >= 0])
    case.fleet.engine.replay(ops, groups, claims, hosts, taken)
    placements, busy = taken[fill + 1::2], taken[fill:].sum() / 1e9
    used = case.fleet.engine.bytes_used()
    return {"placements/s": churn / busy, "fill/s": fill / filled, "p50 us": float(np.percentile(placements, 50)) / 1e3,
            "p99 us": float(np.percentile(placements, 99)) / 1e3, "placed": float((hosts[fill + 1::2] >= 0).mean()),
            "bytes/host": used["hosts"] / len(case.fleet.hosts), "bytes/VM": used["claims"] / max(fill, 1)}


def calls(case: Case, churn: int) -> float:
    """Placements a second by Fleet.place and Fleet.release, names and all."""
    seed = np.random.default_rng(SEED)
    mean = sum(map(size, case.shapes)) / len(case.shapes)
    fill = min(int(len(case.fleet.hosts) * 96 * 0.6 / mean), 50_000)    # little is refused: explaining it is another cost
    asked = [case.shapes[number] for number in seed.integers(len(case.shapes), size=fill + churn)]
    for number in range(fill):
        case.fleet.place(Request(f"s{number}", asked[number], f"g{number // GROUP_SIZE}" if case.groups else ""))
    leaving = [f"s{number}" for number in seed.permutation(fill)[:churn]]
    started = time.process_time()
    for number, consumer in enumerate(leaving):
        if consumer in case.fleet.claims:
            group = case.fleet.request(consumer).group
            case.fleet.release(consumer)
            case.fleet.place(Request(f"t{number}", asked[fill + number], group))
    return len(leaving) / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="small fleets and few operations")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--plot", metavar="FILE", help="write speed against hosts as PNG; needs matplotlib")
    given = parser.parse_args()
    sizes = (1_000,) if given.quick else (1_000, 10_000, 100_000)
    churn = 20_000 if given.quick else 300_000
    results: dict[str, dict[str, float]] = {}
    for kind, make in CASES.items():
        for hosts in sizes:
            for classes in ((3,) if kind == "NUMA" else (4, 8)):
                if hosts == 100_000 and kind == "anti-affinity" and classes == 8:
                    continue                     # two million members twice: a minute more, and no news
                name = f"{kind}, {hosts:,} hosts, {classes} classes"
                made = replay(make(hosts, classes), churn)
                if hosts <= 10_000 and classes < 8:
                    made["calls/s"] = calls(make(hosts, classes), churn // 20)
                results[name] = made
                print(f"{name:42} {made['placements/s']:>11,.0f}/s  p50 {made['p50 us']:6.2f} us  p99 {made['p99 us']:6.2f} us"
                      f"  placed {made['placed']:.3f}  {made['bytes/host']:.0f} B/host  {made['bytes/VM']:.0f} B/VM"
                      + (f"  by calls {made['calls/s']:,.0f}/s" if "calls/s" in made else ""), flush=True)
    if given.plot:
        plot(results, given.plot)
    if given.json:
        print(json.dumps(results))


def plot(results: dict[str, dict[str, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for kind in CASES:
        rows = [(int(name.split(", ")[1].split()[0].replace(",", "")), made["placements/s"]) for name, made in results.items()
                if name.startswith(kind) and not name.endswith("8 classes")]
        axes.loglog(*zip(*rows, strict=True), marker="o", label=kind)
    axes.set(xlabel="hosts", ylabel="placements a second, one core", title="Placing in a fleet that is 85 % full")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
