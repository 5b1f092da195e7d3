"""An agent of a simulated host, as a process of its own, that notes when each of its guests ran and when it said something.

Usage: journaling_agent.py DIRECTORY HOST PKI ENDPOINT...; the journal is DIRECTORY/journal, one JSON object a line.
"""
import asyncio
import contextlib
import json
import logging
import sys
from pathlib import Path

from agents import link, main
from agents.hypervisor.driver import Domain
from agents.hypervisor.model import Seen
from agents.hypervisor.simulated import SimulatedHypervisor
from agents.lease import boottime


class Journal:
    def __init__(self, path: Path):
        self._file = path.open("a", buffering=1)

    def note(self, what: str, about: str) -> None:
        print(json.dumps({"at": boottime(), "what": what, "about": about}), file=self._file)


class Journaling(SimulatedHypervisor):
    def __init__(self, journal: Journal):
        super().__init__()
        self._journal = journal

    def _become(self, server_id: str, domain: Domain) -> None:
        was = server_id in self.domains and self.domains[server_id].seen is Seen.RUNNING
        if was != (domain.seen is Seen.RUNNING):
            self._journal.note("off" if was else "on", server_id)
        super()._become(server_id, domain)

    async def ensure_gone(self, server_id: str) -> None:
        if server_id in self.domains:
            self._journal.note("gone", server_id)
        await super().ensure_gone(server_id)


def run(directory: Path, host: str, pki: Path, endpoints: list[str]) -> None:
    journal = Journal(directory / "journal")
    put = link.Outbox.put

    def noted(outbox: link.Outbox, key: str, message) -> None:
        journal.note("said", key)
        put(outbox, key, message)

    link.Outbox.put = noted  # type: ignore[method-assign]
    main._hypervisor = lambda config, link: contextlib.nullcontext(Journaling(journal))  # type: ignore[assignment]
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(main.run(main.AgentConfig(
        host=host, directory=directory, libvirt_directory=directory, run_directory=directory, endpoints=tuple(endpoints),
        ca=pki / "ca.crt", certificate=pki / f"{host}.crt", key=pki / f"{host}.key", hypervisor="simulated")))


if __name__ == "__main__":
    run(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
