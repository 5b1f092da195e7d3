"""One chaos run: python -m tests.chaos.run --minutes 30 --seed 7. Ends with status 1 where something was lost, doubled or stuck.

The same seed gives the same faults at the same times and the same choices of each client; how they meet differs from run to run.
"""
import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from control.kernel import etcd_server
from control.kernel.database import Database
from control.kernel.etcd_store import EtcdStore
from control.main import KINDS
from tests.chaos import faults, invariants, linearizable
from tests.chaos.clients import Client, Given
from tests.chaos.history import History
from tests.chaos.setting import Setting, brought_up

#: Seconds that a cloud has, when all is healed, until nothing is in a passing state.
REST_WITHIN = 60.0


@dataclass(slots=True)
class Report:
    """What a run came to. `wrong` is empty where all holds."""

    seed: int
    seconds: float
    clients: int
    hosts: int
    operations: dict[str, int] = field(default_factory=dict)       # by verb and outcome
    faults: dict[str, int] = field(default_factory=dict)
    longest_gap: float = 0.0                                        # seconds that one operation was tried for
    rest_after: float = 0.0                                         # seconds from the last fault's end
    wrong: list[str] = field(default_factory=list)


def run(seed: int, seconds: float, *, clients: int = 8, hosts: int = 20, every: float = 4.0, directory: Path | None = None,
        say: Any = print) -> Report:
    """A whole run on a cloud of its own, which is taken down again."""
    report = Report(seed, seconds, clients, hosts)
    with tempfile.TemporaryDirectory(prefix="brume-chaos-", dir="/var/tmp") as made:
        Path(made).chmod(0o711)                    # the balancer runs as a user of its own
        where = directory or Path(made) / "run"
        with brought_up(where, seed, hosts) as setting:
            say(f"the cloud is up; seed {seed}, {seconds:.0f} s, {clients} clients, {hosts} hosts")
            given = setting.prepare()
            with (where / "history.jsonl").open("w") as lines:
                history = History(lines)
                asyncio.run(_storm(setting, given, history, report, every, say))
            asyncio.run(_judge(setting, history, report, say))
            if report.wrong and directory is None:
                kept = Path(tempfile.mkdtemp(prefix="brume-chaos-wrong-", dir="/var/tmp"))
                _keep(where, kept)
                say(f"the history and the logs are in {kept}")
    return report


async def _storm(setting: Setting, given: Given, history: History, report: Report, every: float, say: Any) -> None:
    """Clients at work while faults happen; at the end all faults are healed and all clients are done."""
    harm = faults.Faults(setting, say)
    workers = [Client(f"client-{number}", given, history, random.Random(f"{report.seed}/{number}"))
               for number in range(report.clients)]
    until = time.monotonic() + report.seconds

    async def look_after_the_hosts() -> None:
        while True:
            setting.watch_fleets()
            await asyncio.sleep(0.5)

    keeper = asyncio.create_task(look_after_the_hosts())
    async with asyncio.TaskGroup() as group:
        for worker in workers:
            group.create_task(worker.work(until))
        group.create_task(harm.follow(faults.plan(report.seed, report.seconds, setting.processes(), every)))
    keeper.cancel()
    setting.watch_fleets()
    report.faults = harm.done
    report.operations = dict(sorted(Counter(f"{each.verb} {each.outcome}" for each in history).items()))
    report.longest_gap = round(max((gap for worker in workers for gap in worker.gaps), default=0.0), 2)
    report.wrong += [breach for worker in workers for breach in worker.breaches]


async def _judge(setting: Setting, history: History, report: Report, say: Any) -> None:
    """Wait until the cloud is at rest, and hold what is there against what must be."""
    store = EtcdStore(setting.config.etcd_endpoints, etcd_server.client_credentials(setting.config.pki_dir))
    database = Database(store, KINDS)
    following = asyncio.create_task(database.cache.run())
    try:
        async with asyncio.timeout(60):
            await database.cache.ready.wait()
        began = time.monotonic()
        stuck = list(invariants.at_rest(database))
        while stuck and time.monotonic() - began < REST_WITHIN:
            await asyncio.sleep(0.5)
            stuck = list(invariants.at_rest(database))
        report.rest_after = round(time.monotonic() - began, 1)
        say(f"at rest after {report.rest_after} s" if not stuck else f"{len(stuck)} servers are not at rest")
        await asyncio.sleep(1.0)                       # what the hosts do after their last report
        report.wrong += invariants.findings(database)
        report.wrong += invariants.against_history(database, history)
        report.wrong += invariants.against_world(database, await asyncio.to_thread(setting.domains))
        report.wrong += await asyncio.to_thread(setting.out_of_step)
        for thing in (*history.by_thing("keypair/").items(), *history.by_thing("address/").items()):
            report.wrong += _impossible(*thing)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await store.close()


def _impossible(thing: str, operations: Sequence[Any]) -> list[str]:
    longest = linearizable.explain(operations)
    if longest is None:
        return []
    after = [each for each in operations if each not in longest]
    return [f"{thing}: its {len(operations)} operations could not have happened one after another; after {len(longest)} of them "
            f"comes {after[0] if after else 'nothing'}"]


def _keep(where: Path, kept: Path) -> None:
    """The history and all logs of a run that went wrong."""
    for file in (where / "history.jsonl", *where.glob("fleet-*.log"), *(where / "state").glob("log/*"),
                 *(where / "state").glob("replica-*/log/*")):
        if file.is_file():
            (kept / f"{file.parent.parent.name}-{file.name}").write_bytes(file.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description="A cloud under fire, and what must still hold.")
    parser.add_argument("--seed", type=int, default=None, help="drawn where it is not given")
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--hosts", type=int, default=20)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between faults, on average")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    options = parser.parse_args()
    seed = random.randrange(1_000_000) if options.seed is None else options.seed
    report = run(seed, options.minutes * 60, clients=options.clients, hosts=options.hosts, every=options.every,
                 say=lambda text: print(text, file=sys.stderr, flush=True))
    if options.json:
        print(json.dumps(asdict(report)))
    else:
        for name, value in asdict(report).items():
            print(f"{name:12}", *(value if isinstance(value, list) else [value]), sep="\n             " if value and
                  isinstance(value, list) else " ")
    sys.exit(1 if report.wrong else 0)


if __name__ == "__main__":
    main()
