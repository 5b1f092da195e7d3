"""Half of the hosts of a chaos run, as a process of its own: they write down, when told by SIGUSR1, what is on them.

python -m tests.chaos.fleet FILE FIRST COUNT SEED CA CERTIFICATE KEY ENDPOINT...
"""
import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import uvloop

from agents.hypervisor.model import Seen
from agents.simulation.fleet import Fleet, Plan


def domains(fleet: Fleet) -> dict[str, dict[str, str]]:
    """What is on each host: "running" or "shutoff" by server id."""
    return {host.name: {server_id: "running" if domain.seen in (Seen.RUNNING, Seen.PAUSED) else "shutoff"
                        for server_id, domain in host.hypervisor.domains.items()} for host in fleet.hosts}


async def main(file: Path, plan: Plan) -> None:
    fleet = Fleet(plan)

    def write() -> None:
        part = file.with_suffix(".part")
        part.write_text(json.dumps(domains(fleet)))
        os.replace(part, file)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, write)
    work = asyncio.ensure_future(fleet.run())
    loop.add_signal_handler(signal.SIGTERM, work.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await work


if __name__ == "__main__":
    output, first, count, seed, ca, certificate, key, *endpoints = sys.argv[1:]
    uvloop.run(main(Path(output), Plan(
        first=int(first), count=int(count), seed=int(seed), latency="start=0.02..0.4,stop=0.01..0.2",
        endpoints=tuple(endpoints), ca=Path(ca),
        certificate=Path(certificate), key=Path(key))))
