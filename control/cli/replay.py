"""Plays a trace of virtual machines against a cloud's REST API: each is asked for when it arrives, deleted when its life is over.

Time runs `speed` times as fast as in the trace. A virtual machine that comes late, because the cloud or this machine is slow, is
asked for at once; how late is a figure of its own.
"""
import csv
import gzip
import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from control.cli.session import RestError, Session

#: Requests under way at a time. More press a slow cloud harder, fewer make arrivals late.
AT_ONCE = 32

#: Seconds between two looks at which servers have become ACTIVE or ERROR: how exact latencies are.
LOOK_EVERY = 0.1

#: Lines of a trace at most: it is kept in memory.
MAX_LINES = 10_000_000

#: The version of the compute API that has networks "none".
_HEADERS = {"OpenStack-API-Version": "compute 2.37"}


class Arrival(NamedTuple):
    """One virtual machine: when it comes and for how long, in trace seconds; RAM in MiB."""

    at: float
    lifetime: float
    vcpus: int
    ram_mib: int


def read_trace(path: Path) -> list[Arrival]:
    """The arrivals of a CSV file, gzipped or not, in order of time; a first line of names is passed over.

    Raises ValueError naming the line that makes no sense.
    """
    rows = []
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        for number, line in enumerate(csv.reader(file), 1):
            if number > MAX_LINES:
                raise ValueError(f"{path} has more than {MAX_LINES} lines")
            if not line or (number == 1 and not _is_number(line[0])):
                continue
            try:
                at, lifetime, vcpus, ram = line
                row = Arrival(float(at), float(lifetime), int(vcpus), int(ram))
            except ValueError:
                raise ValueError(f"{path}, line {number}: expected arrival and lifetime in seconds, vCPUs and MiB of RAM, "
                                 f"separated by commas") from None
            if not (math.isfinite(row.at) and row.at >= 0 and row.lifetime >= 0 and 1 <= row.vcpus <= 4096
                    and 1 <= row.ram_mib <= 1 << 26):
                raise ValueError(f"{path}, line {number}: {','.join(line)[:80]} makes no sense")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no arrivals")
    return sorted(rows)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Replay:
    """A trace on its way. `login` makes sessions of an admin, one for each thread."""

    def __init__(self, login: Callable[[], Session], rows: Sequence[Arrival], speed: float):
        self._login = login
        self._rows = rows
        self._speed = speed
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._asked: dict[str, float] = {}             # server -> when it was asked for, while it is not ACTIVE
        self._ends: list[tuple[float, str]] = []       # (when, server) of deletions that are due, a heap
        self._alive: set[str] = set()
        self._counts = {"asked": 0, "placed": 0, "refused": 0, "failed": 0, "deleted": 0}
        self._latencies: list[float] = []
        self._late = 0.0
        self._sessions = threading.local()
        self._threads: list[threading.Thread] = []
        self.done = False

    def start(self) -> None:
        """Begin, in threads of its own. Raises RestError where the cloud does not answer."""
        session = self._login()
        self._image = _image(session)
        self._flavors = {size: _flavor(session, *size) for size in {(row.vcpus, row.ram_mib) for row in self._rows}}
        self._project = session.request("GET", "compute", "/limits")
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._play, self._watch)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and delete what was made."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def figures(self) -> dict[str, Any]:
        with self._lock:
            times = sorted(self._latencies)
            return {**self._counts, "alive": len(self._alive), "late_s": round(self._late, 2), **{
                f"active_p{part}_ms": round(times[min(len(times) - 1, len(times) * part // 100)] * 1000) if times else 0
                for part in (50, 95, 99)}}

    def report(self) -> str:
        figures = self.figures()
        return (f"{figures['asked']} asked for, {figures['placed']} placed, {figures['refused']} refused for want of room, "
                f"{figures['failed']} failed; create to ACTIVE p50 {figures['active_p50_ms']} ms, "
                f"p95 {figures['active_p95_ms']} ms, p99 {figures['active_p99_ms']} ms; at most {figures['late_s']} s late")

    # In threads

    def _play(self) -> None:
        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="replay") as pool:
            arrivals = iter(self._rows)
            coming = next(arrivals, None)
            while not self._stopped.is_set():
                now = time.monotonic()
                with self._lock:
                    while self._ends and self._ends[0][0] <= now:
                        pool.submit(self._delete, heapq.heappop(self._ends)[1])
                    next_end = self._ends[0][0] if self._ends else math.inf
                    open_ends = bool(self._ends or self._asked)
                while coming is not None and (due := began + (coming.at - self._rows[0].at) / self._speed) <= now:
                    with self._lock:
                        self._counts["asked"] += 1
                        number = self._counts["asked"]
                    pool.submit(self._create, coming, number, due)
                    coming = next(arrivals, None)
                if coming is None and not open_ends and pool._work_queue.empty() and self._counts["asked"] == self._settled():
                    break
                next_arrival = began + (coming.at - self._rows[0].at) / self._speed if coming is not None else math.inf
                self._stopped.wait(min(max(min(next_end, next_arrival) - now, 0.001), 0.05))
            if self._stopped.is_set():
                for server_id in list(self._alive):
                    pool.submit(self._delete, server_id)
        self.done = True

    def _settled(self) -> int:
        return self._counts["refused"] + self._counts["failed"] + self._counts["deleted"]

    def _session(self) -> Session:
        if not hasattr(self._sessions, "session"):
            self._sessions.session = self._login()
        return self._sessions.session

    def _create(self, row: Arrival, number: int, due: float) -> None:
        asked = time.monotonic()
        try:
            server = self._session().request("POST", "compute", "/servers", {"server": {
                "name": f"trace-{number}", "imageRef": self._image, "flavorRef": self._flavors[row.vcpus, row.ram_mib],
                "networks": "none"}}, headers=_HEADERS)["server"]
        except RestError:
            with self._lock:
                self._counts["failed"] += 1
            return
        with self._lock:
            self._late = max(self._late, asked - due)
            self._asked[server["id"]] = asked
            self._alive.add(server["id"])
            heapq.heappush(self._ends, (due + row.lifetime / self._speed, server["id"]))

    def _delete(self, server_id: str) -> None:
        try:
            self._session().request("DELETE", "compute", f"/servers/{server_id}")
        except RestError as error:
            if error.status != 404 and not self._stopped.is_set():
                with self._lock:
                    heapq.heappush(self._ends, (time.monotonic() + 1.0, server_id))
                return
        with self._lock:
            self._alive.discard(server_id)
            if self._asked.pop(server_id, None) is not None:
                self._counts["failed"] += 1           # its life was over before it was ACTIVE
            else:
                self._counts["deleted"] += server_id not in self._refused
                self._refused.discard(server_id)

    def _watch(self) -> None:
        """Note which servers became ACTIVE or ERROR: one list of those that changed for each look."""
        session, since = self._login(), time.time()
        while not self.done:
            time.sleep(LOOK_EVERY)
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since - 2))
            since = time.time()
            try:
                for status in ("ACTIVE", "ERROR"):
                    rows = _all(session, f"/servers?status={status}&changes-since={moment}")
                    self._note(status, [row["id"] for row in rows])
            except RestError:
                continue

    def _note(self, status: str, ids: Sequence[str]) -> None:
        now = time.monotonic()
        with self._lock:
            for server_id in ids:
                asked = self._asked.pop(server_id, None)
                if asked is None:
                    continue
                if status == "ACTIVE":
                    self._counts["placed"] += 1
                    self._latencies.append(now - asked)
                else:
                    self._counts["refused"] += 1
                    self._refused.add(server_id)
                    heapq.heappush(self._ends, (now, server_id))

    @property
    def _refused(self) -> set[str]:
        return self.__dict__.setdefault("_refused_ids", set())


def _all(session: Session, path: str) -> list[dict[str, Any]]:
    """Every page of a list of servers."""
    rows: list[dict[str, Any]] = []
    for _ in itertools.count():
        page = session.request("GET", "compute", path + (f"&marker={rows[-1]['id']}" if rows else ""))
        rows += page["servers"]
        if not page.get("servers_links"):
            return rows
    raise AssertionError


def _image(session: Session) -> str:
    """An image for servers that never run: any that is there, else a small one that is made."""
    images = session.request("GET", "image", "/v2/images?name=simulated")["images"]
    if images:
        return images[0]["id"]
    image = session.request("POST", "image", "/v2/images", {
        "name": "simulated", "disk_format": "raw", "container_format": "bare", "visibility": "public"})
    session.request("PUT", "image", f"/v2/images/{image['id']}/file", bytes(512),
                    headers={"Content-Type": "application/octet-stream"})
    return image["id"]


def _flavor(session: Session, vcpus: int, ram_mib: int) -> str:
    """The flavor of a size, made where it is not there."""
    flavor_id = f"sim-{vcpus}-{ram_mib}"
    try:
        session.request("POST", "compute", "/flavors", {"flavor": {
            "id": flavor_id, "name": flavor_id, "vcpus": vcpus, "ram": ram_mib, "disk": 1}})
    except RestError as error:
        if error.status != 409:
            raise
    return flavor_id
