"""A simulated fleet over several processes, each with its share of the hosts; the caller's process only adds up and asks.

A child ends when it is told to, and when the process that started it is gone: its end of the pipe says so.
"""
import asyncio
import contextlib
import dataclasses
import gc
import itertools
import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from agents.simulation.fleet import Fleet, Plan

#: Seconds between two reports of a child, and that it has to end.
REPORT_EVERY, END_WITHIN = 0.5, 10.0

#: How the children's gRPC and malloc are to be: quiet, ready for no fork, and with one heap for all threads.
_ENVIRONMENT = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0", "MALLOC_ARENA_MAX": "1"}


class Processes:
    """The processes of a fleet that runs; made by `running`."""

    def __init__(self, children: Sequence[tuple[BaseProcess, Connection]]):
        self._children = children
        self._last: list[Mapping[str, int]] = [{} for _ in children]
        self.arrivals: list[float] = []

    @property
    def pids(self) -> list[int]:
        return [child.pid for child, _ in self._children if child.pid]

    def totals(self) -> Counter[str]:
        """What all of them said last. Raises RuntimeError where one has ended."""
        for number, (child, pipe) in enumerate(self._children):
            try:
                while pipe.poll():
                    what, said = pipe.recv()
                    if what == "totals":
                        self._last[number] = said
                    else:
                        self.arrivals.append(said)
            except EOFError:
                raise RuntimeError(f"a process of the simulation ended with status {child.exitcode}; its messages say why") \
                    from None
        total: Counter[str] = Counter()
        for said in self._last:
            total.update(said)
        return total

    def restart_agents(self) -> None:
        for _, pipe in self._children:
            pipe.send(("restart", ""))

    def follow(self, host: str) -> None:
        """Have `arrivals` note when changes of what a host shall have reach its agent (time.monotonic); read with `totals`."""
        for _, pipe in self._children:
            pipe.send(("follow", host))


@contextlib.contextmanager
def running(plan: Plan, processes: int = 1, log_level: int = logging.ERROR) -> Iterator[Processes]:
    """Run a plan's hosts in so many processes for as long as the context lasts."""
    context = multiprocessing.get_context("spawn")
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    children = []
    try:
        for part in _shares(plan, processes):
            ours, theirs = context.Pipe()
            child = context.Process(target=_child, args=(part, theirs, log_level), daemon=True)
            child.start()
            theirs.close()
            children.append((child, ours))
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    try:
        yield Processes(children)
    finally:
        for _, pipe in children:
            pipe.close()
        for child, _ in children:
            child.join(END_WITHIN)
            if child.is_alive():
                child.kill()
                child.join()


def _shares(plan: Plan, processes: int) -> list[Plan]:
    processes = min(processes, plan.count)
    bounds = [plan.first + plan.count * number // max(processes, 1) for number in range(processes + 1)]
    return [dataclasses.replace(plan, first=low, count=high - low) for low, high in itertools.pairwise(bounds)]


def _child(plan: Plan, pipe: Connection, log_level: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)       # Ctrl-C is the caller's, and it tells us
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    gc.set_threshold(50_000, 20, 100)                  # an agent is many objects that stay
    import uvloop
    uvloop.run(_serve(plan, pipe))


async def _serve(plan: Plan, pipe: Connection) -> None:
    fleet = Fleet(plan)
    work = asyncio.create_task(fleet.run())

    def told() -> None:
        try:
            while pipe.poll():
                match pipe.recv():
                    case ("restart", _):
                        fleet.restart_agents()
                    case ("follow", name):
                        fleet.follow(name, lambda: pipe.send(("arrived", time.monotonic())))
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(pipe.fileno())
            work.cancel()

    async def report() -> None:
        while True:
            with contextlib.suppress(OSError):         # the reader hears of it, too
                pipe.send(("totals", fleet.totals()))
            await asyncio.sleep(REPORT_EVERY)

    asyncio.get_running_loop().add_reader(pipe.fileno(), told)
    reporter = asyncio.create_task(report())
    try:
        await work
    except asyncio.CancelledError:
        pass
    finally:
        reporter.cancel()
