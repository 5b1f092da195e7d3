"""Whatever dies, the state that was asked for is reached: processes are killed while a server is made."""
import contextlib
import os
import signal
import time
from typing import Any

import pytest

from control.cli import processes
from control.cli.session import RestError, Session
from tests.e2e.cloud import NAME, Cloud, leftovers, until

pytestmark = [pytest.mark.vm, pytest.mark.host, pytest.mark.etcd]


def retried(session: Session, method: str, service: str, path: str, body: Any = None) -> Any:
    """A request that is made again while the cloud does not answer, as a patient client does."""
    def once() -> Any:
        try:
            return session.request(method, service, path, body) or True
        except RestError as error:
            if error.status in (0, 500, 503):
                return None
            raise
    return until(once, f"{method} {path}", 60)


def create(session: Session, name: str) -> str:
    image = retried(session, "GET", "image", "/v2/images?name=tiny")["images"][0]
    flavor = next(row for row in retried(session, "GET", "compute", "/flavors")["flavors"] if row["name"] == "m1.tiny")
    network = retried(session, "GET", "network", "/v2.0/networks?name=private")["networks"][0]
    return retried(session, "POST", "compute", "/servers", {"server": {
        "name": name, "imageRef": image["id"], "flavorRef": flavor["id"], "networks": [{"uuid": network["id"]}]}})["server"]["id"]


def status(session: Session, server_id: str) -> str:
    try:
        return session.request("GET", "compute", f"/servers/{server_id}")["server"]["status"]
    except RestError as error:
        if error.status == 404:
            return "gone"
        return "unknown"


def ready(session: Session, server_id: str) -> bool:
    try:
        answer = session.request("POST", "compute", f"/servers/{server_id}/action", {"os-getConsoleOutput": {}})
        return "guest ready" in answer["output"]
    except RestError:
        return False


@pytest.mark.parametrize("process", ["control", "agent", "etcd", "libvirtd"])
@pytest.mark.parametrize("delay", [0.0, 0.4, 1.2])
def test_a_process_killed_during_server_create_ends_in_an_active_server(cloud: Cloud, process: str, delay: float) -> None:
    rows = [row["name"] for row in processes.status(cloud.config)]
    if process not in rows:
        pytest.skip(f"this machine's own {process} is used")
    session = cloud.session("demo")
    server_id = create(session, f"crash-{process}")
    try:
        time.sleep(delay)
        os.kill(until(lambda: cloud.pid(process), f"{process} runs", 20), signal.SIGKILL)
        until(lambda: status(session, server_id) == "ACTIVE", "ACTIVE", 90)
        ports = retried(session, "GET", "network", f"/v2.0/ports?device_id={server_id}")["ports"]
        assert len(ports) == 1 and ports[0]["status"] == "ACTIVE"
        assert until(lambda: ready(session, server_id), "the guest's ready line", 120)
    finally:
        with contextlib.suppress(RestError):
            retried(session, "DELETE", "compute", f"/servers/{server_id}")
        until(lambda: status(session, server_id) == "gone", "the server is gone", 60)


def test_servers_live_through_the_death_of_everything_and_are_adopted(cloud: Cloud) -> None:
    session = cloud.session("demo")
    server_id = create(session, "survivor")
    until(lambda: status(session, server_id) == "ACTIVE", "ACTIVE", 60)
    qemu = qemu_pid(server_id)
    for process in ("supervisor", "control", "agent"):
        os.kill(cloud.pid(process), signal.SIGKILL)
    cloud.up()
    session = cloud.session("demo")
    assert until(lambda: status(session, server_id) == "ACTIVE", "ACTIVE after the restart", 30)
    time.sleep(3)       # an agent that wanted to touch the domain would have done it by now
    assert qemu_pid(server_id) == qemu, "the running server was restarted"

    cloud.brume("down")
    assert leftovers(NAME) == []
    assert qemu_pid(server_id) == 0
    cloud.up()
    session = cloud.session("demo")
    until(lambda: status(session, server_id) == "ACTIVE" and qemu_pid(server_id), "ACTIVE after down and up", 60)
    assert until(lambda: ready(session, server_id), "the guest's ready line", 120)
    session.request("DELETE", "compute", f"/servers/{server_id}")
    until(lambda: status(session, server_id) == "gone", "gone", 60)


def test_up_again_is_quick_and_changes_nothing(cloud: Cloud) -> None:
    before = {row["name"]: row["pid"] for row in processes.status(cloud.config)}
    seconds = cloud.up()["seconds"]
    assert {row["name"]: row["pid"] for row in processes.status(cloud.config)} == before
    assert "start processes" not in seconds


def qemu_pid(server_id: str) -> int:
    """The QEMU process of a server, by the UUID on its command line; 0 when there is none."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    command = file.read().split(b"\0")
            except OSError:
                continue
            if b"qemu" in command[0] and server_id.encode() in command:
                return int(entry)
    return 0
