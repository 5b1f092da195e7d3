"""What goes wrong in a chaos run: a plan drawn from a seed, and the ways to do each harm and to undo it.

Harm is done to the cloud's own processes (by their pids), inside its own namespaces (nftables tables called chaos-*) and on its
own file systems; nothing else of the machine is touched, and `Faults.heal` undoes all of it, whatever was left half done.
"""
import asyncio
import contextlib
import os
import random
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

#: Seconds between the ends of two freezes of a slow disk.
PULSE = 0.4


class Parts(Protocol):
    """The cloud as faults see it."""

    def pid(self, process: str) -> int:
        """0 where it does not run at the moment."""

    def processes(self) -> Sequence[str]: ...

    def namespace(self, replica: int) -> str: ...

    def address(self, replica: int) -> str: ...

    def disk(self, replica: int) -> str:
        """The directory where the replica's own small file system is mounted."""

    def clock(self, seconds: float, replica: int = 0) -> None:
        """Put the clock of a replica (0: of all) so much ahead or, below 0, behind."""


@dataclass(frozen=True, slots=True)
class Step:
    """One harm of a plan. Seconds count from the start of the run."""

    at: float
    lasts: float
    fault: str
    process: str = ""
    replica: int = 0
    amount: float = 0.0

    def __str__(self) -> str:
        what = self.process or (f"replica {self.replica}" if self.replica else "all")
        amount = f" ({self.amount:+.2f})" if self.amount else ""
        return f"{self.at:7.1f} s: {self.fault} {what}{amount}" + (f" for {self.lasts:.1f} s" if self.lasts else "")


#: Fault -> how often it is drawn.
WEIGHTS: Mapping[str, int] = {
    "kill": 6, "pause": 4, "kill-quorum": 1, "kill-every-control": 1, "cut": 3, "cut-one-way": 2, "cut-agents": 2,
    "lose-replies": 3, "fill-disk": 1, "slow-disk": 2, "step-clock": 1}


def plan(seed: int, seconds: float, processes: Sequence[str], every: float = 4.0) -> list[Step]:
    """The harms of a run, in order of time: one each `every` seconds or so, several at once now and then.

    The last one is over before the run's last tenth.
    """
    rng = random.Random(seed)
    steps, at = [], rng.uniform(1, every)
    while at < seconds * 0.8:
        fault = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        lasts = min(rng.uniform(1, 12), seconds * 0.9 - at)
        replica = rng.randint(1, 3)
        match fault:
            case "kill":
                steps.append(Step(at, 0, fault, process=rng.choice(processes)))
            case "pause":
                process = rng.choice(processes)
                if process.startswith("fleet"):            # long enough, at times, for its hosts to be taken for dead
                    lasts = min(rng.uniform(1, 25), seconds * 0.9 - at)
                steps.append(Step(at, lasts, fault, process=process))
            case "kill-quorum" | "kill-every-control":
                steps.append(Step(at, 0, fault, replica=replica))
            case "lose-replies":
                steps.append(Step(at, lasts, fault, replica=replica, amount=rng.uniform(0.2, 0.8)))
            case "step-clock":
                steps.append(Step(at, lasts, fault, replica=replica, amount=rng.choice([-1, 1]) * rng.uniform(2, 90)))
            case _:
                steps.append(Step(at, lasts, fault, replica=replica))
        at += rng.expovariate(1 / every)
    return steps


class Faults:
    """Does what a plan says to a cloud."""

    def __init__(self, parts: Parts, say: Callable[[str], None]):
        self._parts = parts
        self._say = say
        self._tables: dict[str, str] = {}                   # nft table -> namespace
        self._paused: set[int] = set()
        self._frozen: set[str] = set()
        self._filled: set[str] = set()
        self.done: dict[str, int] = {}

    async def follow(self, steps: Sequence[Step]) -> None:
        """Do each step at its time; all is healed at the end, also when cancelled."""
        started = asyncio.get_running_loop().time()
        try:
            async with asyncio.TaskGroup() as group:
                for number, step in enumerate(steps):
                    await asyncio.sleep(max(0.0, started + step.at - asyncio.get_running_loop().time()))
                    self._say(str(step))
                    self.done[step.fault] = self.done.get(step.fault, 0) + 1
                    group.create_task(self._do(number, step))
        finally:
            self.heal()

    async def _do(self, number: int, step: Step) -> None:
        match step.fault:
            case "kill":
                self._kill(step.process)
            case "kill-quorum":
                for replica in {1, 2, 3} - {step.replica}:
                    self._kill(f"etcd-{replica}")
            case "kill-every-control":
                for replica in (1, 2, 3):
                    self._kill(f"control-{replica}")
            case "pause":
                await self._pause(step.process, step.lasts)
            case "cut" | "cut-one-way" | "cut-agents" | "lose-replies":
                await self._filter(number, step)
            case "fill-disk":
                await self._fill(self._parts.disk(step.replica), step.lasts)
            case "slow-disk":
                await self._slow(self._parts.disk(step.replica), step.lasts)
            case "step-clock":
                self._parts.clock(step.amount, step.replica)
                await asyncio.sleep(step.lasts)
                self._parts.clock(0, step.replica)

    def heal(self) -> None:
        """Undo all that is still done."""
        for pid in self._paused:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for table, namespace in list(self._tables.items()):
            self._remove(table, namespace)
        for disk in list(self._frozen):
            self._thaw(disk)
        for file in list(self._filled):
            self._empty(file)
        self._paused.clear()
        self._parts.clock(0)

    # The ways

    def _kill(self, process: str) -> None:
        if pid := self._parts.pid(process):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def _pause(self, process: str, lasts: float) -> None:
        pid = self._parts.pid(process)
        if not pid:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            self._paused.add(pid)
            await asyncio.sleep(lasts)
            os.kill(pid, signal.SIGCONT)
        self._paused.discard(pid)

    async def _filter(self, number: int, step: Step) -> None:
        """Drop some of what goes between a replica and others, for a while."""
        parts, table = self._parts, f"chaos-{number}"
        others = ", ".join(parts.address(replica) for replica in (1, 2, 3) if replica != step.replica)
        away, back = {
            "cut": (f"ip daddr {{ {others} }} drop", f"ip saddr {{ {others} }} drop"),
            "cut-one-way": (f"ip daddr {{ {others} }} drop", ""),
            "cut-agents": (f"ip daddr != {{ {others}, 127.0.0.0/8, {parts.address(step.replica)} }} drop",
                           f"ip saddr != {{ {others}, 127.0.0.0/8, {parts.address(step.replica)} }} drop"),
            "lose-replies": (f"ip daddr != {{ {others} }} numgen random mod 1000 < {step.amount * 1000:.0f} drop", ""),
        }[step.fault]
        namespace = parts.namespace(step.replica)
        rules = (f"table inet {table} {{\n"
                 f"chain away {{ type filter hook output priority 0; oif != lo {away}; }}\n"
                 + (f"chain back {{ type filter hook input priority 0; iif != lo {back}; }}\n" if back else "") + "}\n")
        self._tables[table] = namespace
        await asyncio.to_thread(_nft, namespace, rules)
        await asyncio.sleep(step.lasts)
        self._remove(table, namespace)

    def _remove(self, table: str, namespace: str) -> None:
        if self._tables.pop(table, None):
            _nft(namespace, f"delete table inet {table}\n", check=False)

    async def _fill(self, disk: str, lasts: float) -> None:
        """Leave no free block on a replica's disk."""
        file = os.path.join(disk, ".chaos")
        self._filled.add(file)
        await asyncio.to_thread(_fill_up, file)
        await asyncio.sleep(lasts)
        self._empty(file)

    def _empty(self, file: str) -> None:
        self._filled.discard(file)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)

    async def _slow(self, disk: str, lasts: float) -> None:
        """Writes to a replica's disk wait up to PULSE, over and over."""
        end = asyncio.get_running_loop().time() + lasts
        while asyncio.get_running_loop().time() < end:
            self._frozen.add(disk)
            await asyncio.to_thread(subprocess.run, ["fsfreeze", "-f", disk], check=False)
            await asyncio.sleep(PULSE)
            await asyncio.to_thread(self._thaw, disk)
            await asyncio.sleep(PULSE / 4)

    def _thaw(self, disk: str) -> None:
        subprocess.run(["fsfreeze", "-u", disk], check=False, stderr=subprocess.DEVNULL)
        self._frozen.discard(disk)


def _nft(namespace: str, rules: str, check: bool = True) -> None:
    subprocess.run(["ip", "netns", "exec", namespace, "nft", "-f", "-"], input=rules, text=True, check=check,
                   stderr=None if check else subprocess.DEVNULL)


def _fill_up(file: str) -> None:
    with contextlib.suppress(OSError), open(file, "wb", buffering=0) as full:
        size = 1 << 24
        while size >= 4096:
            try:
                os.posix_fallocate(full.fileno(), os.fstat(full.fileno()).st_size, size)
            except OSError:
                size //= 4


