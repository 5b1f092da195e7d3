"""What the audit journal costs: commits a second of server records with the journal's process beside, and without it.

Run: python benchmarks/bench_audit.py [--quick] [--json]. It starts an etcd of its own with fsync in a temporary directory and
measures the two in turns; the ratio is of the medians, with all cores at work on commits. It also says how long the journal
needed after the last commit, and what one commit costs each process in microseconds of CPU, which other work blurs less.
"""
import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop
from bench_store import callers, running_etcd

from control.audit import reading
from control.audit.journal import NICE, Journal, state
from control.compute.model import SERVER
from control.kernel import etcd_server
from control.kernel.acting import Author, author
from control.kernel.etcd_store import EtcdStore
from control.kernel.pki import Credentials
from control.kernel.store import Record
from control.kinds import KINDS
from protos.compute.v1.records_pb2 import FlavorRecord, ServerRecord


def write(endpoint: str, credentials: Credentials, directory: Path) -> None:
    os.nice(NICE)

    async def run() -> None:
        await Journal(EtcdStore([endpoint], credentials), directory, KINDS).run()
    uvloop.run(run())


@contextlib.contextmanager
def journal(endpoint: str, credentials: Credentials, directory: Path) -> Iterator[int]:
    process = multiprocessing.get_context("spawn").Process(target=write, args=(endpoint, credentials, directory), daemon=True)
    process.start()
    try:
        yield process.pid or 0
    finally:
        process.terminate()
        process.join()


def server(number: int, name: str) -> Record:
    record = ServerRecord(id=f"{number:032x}", project_id="p" * 32, user_id="u" * 32, name=name, hostname=name,
                          flavor=FlavorRecord(id="1", name="m1.tiny", vcpus=1, ram_mib=192, disk_gib=1), host="host-1",
                          metadata={"role": "web", "tier": "front"}, reservation_id="r-12345678")
    return Record(SERVER.key_of(record), record.SerializeToString())


async def measure(quick: bool) -> dict[str, float]:
    rates: dict[str, list[float]] = {"without": [], "with": []}
    cpu: dict[str, list[float]] = {}
    commits = 2000 if quick else 8000
    lags: list[float] = []
    with running_etcd() as config:
        client = etcd_server.client_credentials(config.data_dir.parent / "pki", "bench")
        await etcd_server.wait_ready([config.endpoint], client)
        store = EtcdStore([config.endpoint], client)
        directory = config.data_dir.parent / "audit"
        etcd = next(int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline")
                    if f"--data-dir={config.data_dir}".encode() in path.read_bytes())
        number = 0

        async def commit(_: int) -> None:
            nonlocal number
            number += 1
            author.set(Author("user:" + "u" * 32, f"req-{number:036d}", "p" * 32, "/compute.v1.Servers/CreateServer"))
            await store.commit(server(number, f"server-{number}"))

        for turn in range(3 if quick else 9):
            for which in ("without", "with") if turn % 2 else ("with", "without"):
                with journal(config.endpoint, client, directory) if which == "with" else contextlib.nullcontext(0) as pid:
                    if which == "with":
                        await _caught_up(store, directory)
                    before = _cpu(os.getpid()), _cpu(etcd), _cpu(pid)
                    rate, _ = await callers(64, commits, commit)
                    spent = [now - then for now, then in zip((_cpu(os.getpid()), _cpu(etcd)), before, strict=False)]
                    if which == "with":
                        ended = time.perf_counter()
                        await _caught_up(store, directory)
                        lags.append(time.perf_counter() - ended)
                        cpu.setdefault("journal", []).append((_cpu(pid) - before[2]) / commits)
                for name, seconds in zip(("client", "etcd"), spent, strict=True):
                    cpu.setdefault(f"{name}_{which}", []).append(seconds / commits)
                rates[which].append(rate)
        await store.close()
        verdict = reading.verify(directory)
        assert verdict.holds and not verdict.gaps
    medians = {which: statistics.median(each) for which, each in rates.items()}
    results = {"without_per_second": round(medians["without"], 1), "with_per_second": round(medians["with"], 1),
               "ratio": round(medians["with"] / medians["without"], 3), "lag_seconds": round(statistics.median(lags), 3),
               "entries": verdict.entries,
               **{f"{name}_cpu_us": round(statistics.median(each) * 1e6, 1) for name, each in cpu.items()}}
    for name, value in results.items():
        print(f"{name:<20} {value}")
    return results


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used; 0 for none."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _caught_up(store: EtcdStore, directory: Path) -> None:
    """Return once the journal says that it has the present revision."""
    _, revision = await store.scan("/nothing/")
    while state(directory)["revision"] < revision or state(directory)["fault"]:
        await asyncio.sleep(0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls: some seconds")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    arguments = parser.parse_args()
    results = uvloop.run(measure(arguments.quick))
    if arguments.json:
        print(json.dumps({"benchmark": "audit", "quick": arguments.quick, "results": results}))


if __name__ == "__main__":
    main()
