"""The supervisor on a disk that is full: what it runs goes on, and is started again when it dies."""
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from control.cli import processes, supervisor
from control.kernel.config import Config


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    if os.geteuid():
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=True)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path) -> Path:
    filler = place / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"\0" * 4096)
    return filler


def until(done: Callable[[], Any]) -> Any:
    limit = time.monotonic() + 15
    while not (answer := done()):
        assert time.monotonic() < limit
        time.sleep(0.05)
    return answer


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_full_disk_stops_neither_the_supervisor_nor_what_it_starts_again(small_disk: Path) -> None:
    for part in ("run", "log"):
        (small_disk / part).mkdir()
    (small_disk / "run" / "processes.json").write_text(json.dumps([{"name": "sleeper", "argv": ["sleep", "1000"]}]))
    running = subprocess.Popen([sys.executable, "-S", supervisor.__file__, str(small_disk)],
                               stderr=(small_disk / "log" / "supervisor.log").open("ab"))
    try:
        first = until(lambda: children(running.pid))[0]
        until(lambda: (small_disk / "run" / "sleeper.pid").exists())
        filler = fill(small_disk)
        os.kill(first, signal.SIGKILL)
        second = until(lambda: [child for child in children(running.pid) if child != first])[0]
        time.sleep(0.5)
        assert running.poll() is None and children(running.pid) == [second]
        filler.unlink()
        until(lambda: processes._read_pid(small_disk / "run" / "sleeper.pid") == second)
        config = Config(state_dir=small_disk)
        assert processes.supervisor_pid(config) == running.pid
    finally:
        running.terminate()
        assert running.wait(20) == 0
