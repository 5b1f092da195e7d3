"""Closed-loop HTTP load from processes of its own, and what a server's processes used meanwhile."""
import http.client
import json
import multiprocessing
import os
import queue
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: One request: method, path, headers, body. Called with a number that differs between all calls.
Request = Callable[[int], tuple[str, str, dict[str, str], bytes | None]]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load came to. `per_cpu_second` is requests for each second of the server's CPU: its speed per core."""

    per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    per_cpu_second: float
    errors: int


class Client:
    """One connection, opened again when the server closes it."""

    def __init__(self, port: int):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def call(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> tuple[int, Any, bytes]:
        for again in (False, True):
            try:
                self._connection.request(method, path, body, headers)
                answer = self._connection.getresponse()
                return answer.status, answer.headers, answer.read()
            except (http.client.HTTPException, OSError):
                self._connection.close()
                if again:
                    raise
        raise AssertionError

    def json(self, method: str, path: str, body: Any = None, token: str = "") -> tuple[Any, Any]:
        """A JSON call that must succeed; headers and body of the answer."""
        headers = {"Content-Type": "application/json", **({"X-Auth-Token": token} if token else {})}
        status, answered, data = self.call(method, path, headers, json.dumps(body).encode() if body is not None else None)
        if status >= 400:
            raise SystemExit(f"{method} {path}: {status} {data[:300]!r}")
        return answered, json.loads(data) if data else None


def _work(port: int, request: Request, first: int, seconds: float, results: Any) -> None:
    client, times, errors, number = Client(port), [], 0, first
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        method, path, headers, body = request(number)
        number += 1
        started = time.perf_counter()
        status, _, _ = client.call(method, path, headers, body)
        times.append(time.perf_counter() - started)
        errors += status >= 400
    results.put((times, errors))


def measure(port: int, request: Request, pids: Iterable[int], *, clients: int, seconds: float) -> Figures:
    """Figures of `clients` closed loops against a port for some seconds; `pids` are the server's processes."""
    pids = list(pids)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_work, args=(port, request, (os.getpid() * 100 + number) * 1_000_000, seconds, results))
               for number in range(clients)]
    cpu, started = sum(map(cpu_seconds, pids)), time.monotonic()
    for worker in workers:
        worker.start()
    answers = [_answer(results, workers) for _ in workers]
    for worker in workers:
        worker.join()
    took, used = time.monotonic() - started, sum(map(cpu_seconds, pids)) - cpu
    times = sorted(value for found, _ in answers for value in found)
    return Figures(
        round(len(times) / took, 1), round(statistics.median(times) * 1000, 2), round(times[int(len(times) * 0.99)] * 1000, 2),
        round(used / len(times) * 1000, 3), round(len(times) / max(used, 0.001), 1), sum(errors for _, errors in answers))


def _answer(results: Any, workers: Iterable[Any]) -> tuple[list[float], int]:
    """What one worker measured. Raises SystemExit where one has died, which would never answer."""
    while True:
        try:
            return results.get(timeout=1)
        except queue.Empty:
            if failed := [worker for worker in workers if worker.exitcode]:
                for worker in workers:
                    worker.terminate()
                raise SystemExit(f"{len(failed)} clients failed: the server did not answer them") from None


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, its threads included."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def descendants(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def pss_mib(pids: Iterable[int]) -> float:
    """Proportional memory of processes together."""
    total = 0
    for pid in pids:
        try:
            total += next(int(line.split()[1]) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                          if line.startswith("Pss:"))
        except OSError:
            continue
    return round(total / 1024, 1)


def as_row(figures: Figures) -> dict[str, Any]:
    return asdict(figures)
