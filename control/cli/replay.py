"""Plays a trace of virtual machines against a cloud's REST API: each is asked for when it arrives, deleted when its life is over.

Time runs `speed` times as fast as in the trace. A virtual machine that comes late, because the cloud or this machine is slow, is
asked for at once; how late is a figure of its own.
"""
import csv
import gzip
import heapq
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from control.cli.session import RestError, Session

#: Requests under way at a time. More press a slow cloud harder, fewer make arrivals late.
AT_ONCE = 32

#: Seconds between two looks at which servers have become ACTIVE or ERROR: how exact latencies are.
LOOK_EVERY = 0.1

#: Seconds that such a look goes back. A server that is ACTIVE for less between two looks would count as over early.
LOOK_BACK = 10

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
        self._lock = threading.Lock()                  # of all that follows
        self._asked: dict[str, float] = {}             # server -> when it was asked for, until it is ACTIVE or ERROR
        self._refused: set[str] = set()                # servers in ERROR
        self._ends: list[tuple[float, str]] = []       # (when, server) of deletions to come, a heap
        self._counts = dict.fromkeys(("asked", "placed", "refused", "early", "failed", "deleted"), 0)
        self._finished = 0
        self._latencies: list[float] = []
        self._late = 0.0
        self._sessions = threading.local()
        self._stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self.done = False

    def start(self) -> None:
        """Begin, in threads of its own. Raises RestError where the cloud does not answer."""
        session = self._login()
        self._image = _image(session)
        self._flavors = {size: _flavor(session, *size) for size in {(row.vcpus, row.ram_mib) for row in self._rows}}
        _lift_quota(session)
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._play, self._watch)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; servers that are still there are deleted."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def figures(self) -> dict[str, Any]:
        """What came of it so far; latencies are from the request to ACTIVE, in milliseconds."""
        with self._lock:
            times = sorted(self._latencies)
            return {**self._counts, "alive": len(self._ends), "late_s": round(self._late, 2), **{
                f"active_p{part}_ms": round(times[min(len(times) - 1, len(times) * part // 100)] * 1000) if times else 0
                for part in (50, 95, 99)}}

    def report(self) -> str:
        """The same in a sentence."""
        figures = self.figures()
        return ("{asked} asked for, {placed} placed, {refused} refused for want of room, {early} over before they ran, {failed} "
                "not taken; create to ACTIVE p50 {active_p50_ms} ms, p95 {active_p95_ms} ms, p99 {active_p99_ms} ms; at most "
                "{late_s} s late").format(**figures)

    # In threads of its own

    def _play(self) -> None:
        """Ask for each server when its time has come, and delete it when its life is over."""
        began, first = time.monotonic(), self._rows[0].at
        coming = 0
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="replay") as pool:
            while self._finished < len(self._rows) and not self._stopped.is_set():
                now = time.monotonic()
                while coming < len(self._rows) and (due := began + (self._rows[coming].at - first) / self._speed) <= now:
                    coming += 1
                    pool.submit(self._create, self._rows[coming - 1], coming, due)
                for server_id in self._over(now):
                    pool.submit(self._delete, server_id)
                self._stopped.wait(0.005)
            for server_id in self._over(math.inf):
                pool.submit(self._delete, server_id)
        self.done = True

    def _over(self, now: float) -> list[str]:
        """The servers whose lives are over; they are not among those to come any more."""
        with self._lock:
            over = []
            while self._ends and self._ends[0][0] <= now:
                over.append(heapq.heappop(self._ends)[1])
            return over

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
                self._counts["asked"] += 1
                self._counts["failed"] += 1
                self._finished += 1
            return
        with self._lock:
            self._counts["asked"] += 1
            self._late = max(self._late, asked - due)
            self._asked[server["id"]] = asked
            heapq.heappush(self._ends, (max(due + row.lifetime / self._speed, asked), server["id"]))

    def _delete(self, server_id: str) -> None:
        try:
            self._session().request("DELETE", "compute", f"/servers/{server_id}")
        except RestError as error:
            if error.status != 404 and not self._stopped.is_set():
                with self._lock:
                    heapq.heappush(self._ends, (time.monotonic() + 1.0, server_id))
                return
        with self._lock:
            self._finished += 1
            if self._asked.pop(server_id, None) is not None:
                self._counts["early"] += 1             # its life was over before it was ACTIVE
            elif server_id in self._refused:
                self._refused.discard(server_id)
            else:
                self._counts["deleted"] += 1

    def _watch(self) -> None:
        """Note which servers have become ACTIVE or ERROR: a list for each of the two, of those that changed lately."""
        session = self._login()
        while not self.done:
            since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - LOOK_BACK))
            try:
                for status in ("ACTIVE", "ERROR"):
                    self._note(status, _all(session, f"/servers?status={status}&changes-since={since}"))
            except RestError:
                pass                                   # it is asked again
            time.sleep(LOOK_EVERY)

    def _note(self, status: str, ids: Iterable[str]) -> None:
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


def _all(session: Session, path: str) -> list[str]:
    """The ids on every page of a list of servers."""
    ids: list[str] = []
    while True:
        page = session.request("GET", "compute", path + (f"&marker={ids[-1]}" if ids else ""), headers=_HEADERS)
        ids += [row["id"] for row in page["servers"]]
        if not page.get("servers_links"):
            return ids


def _lift_quota(session: Session) -> None:
    """Let the admin's project have as many servers as the hosts hold."""
    project = session.request("GET", "identity", "/auth/projects")["projects"]
    for row in project:
        if row["name"] == "admin":
            session.request("PUT", "compute", f"/os-quota-sets/{row['id']}", {"quota_set": {
                "instances": -1, "cores": -1, "ram": -1}})


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
