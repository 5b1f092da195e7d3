"""openstacksdk and the `openstack` command, unmodified, against server groups, aggregates and hints."""
import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openstack
import pytest
from openstack import exceptions

from control.gateway.server import listen, serve
from tests.compute.fakes import world


class Cloud:
    """A world of three hosts in a thread of its own, behind a loopback port, whose servers come up by themselves."""

    def __init__(self) -> None:
        self._started = threading.Event()
        self._listener = listen("127.0.0.1", 0)
        self.url = "http://{}:{}/compute/v2.1".format(*self._listener.getsockname())
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._started.wait(30)

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with world(hosts=3) as it:
            tasks = [asyncio.create_task(work) for work in (
                serve(it.gateway, "127.0.0.1", 0, listener=self._listener), it.lead(), self._step(it))]
            self._started.set()
            await self._stop.wait()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @staticmethod
    async def _step(it: Any) -> None:
        while True:
            for agent in it.agents.values():
                await agent.step()
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)

    def connect(self, token: str) -> Any:
        return openstack.connection.Connection(
            auth_type="admin_token", auth={"endpoint": self.url, "token": token}, compute_endpoint_override=self.url,
            compute_api_version="2", compute_default_microversion="2.96", region_name="RegionOne").compute

    def run(self, token: str, *arguments: str) -> Any:
        """An `openstack` command: what it printed, parsed where it is JSON."""
        machine = [] if {"delete", "set", "unset"} & set(arguments) else ["-f", "json"]
        done = subprocess.run(
            [str(Path(sys.executable).with_name("openstack")), "--os-auth-type", "admin_token", "--os-endpoint", self.url,
             "--os-token", token, "--os-compute-api-version", "2.96", *arguments, *machine],
            capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout) if machine else done.stdout


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    running = Cloud()
    yield running
    running.stop()


def test_the_sdk_makes_groups_and_servers_in_them(cloud):
    demo, admin = cloud.connect("demo"), cloud.connect("admin")
    group = demo.create_server_group(name="apart", policy="anti-affinity", rules={"max_server_per_host": 1})
    servers = [demo.wait_for_server(demo.create_server(
        name=f"s{index}", image_id="img", flavor_id="1", networks="none", scheduler_hints={"group": group.id}),
        interval=0.2, wait=30)
        for index in range(3)]
    assert {admin.get_server(server.id).compute_host for server in servers} == {"node-1", "node-2", "node-3"}
    shown = demo.get_server_group(group)
    assert shown.member_ids == sorted(server.id for server in servers) and shown.rules == {"max_server_per_host": 1}
    assert demo.find_server_group("apart").id == group.id
    assert demo.get_server(servers[0].id).server_groups == [group.id]
    fourth = demo.create_server(name="s4", image_id="img", flavor_id="1", networks="none", scheduler_hints={"group": group.id})
    with pytest.raises(exceptions.ResourceFailure):
        demo.wait_for_server(fourth, interval=0.2, wait=30)
    assert "without the server group" in demo.get_server(fourth.id).fault["message"]
    assert [each.id for each in admin.server_groups(all_projects=True)] == [group.id] and not list(admin.server_groups())
    demo.delete_server(servers[0])
    demo.wait_for_delete(servers[0], interval=0.2, wait=30)
    assert servers[0].id not in demo.get_server_group(group).member_ids
    demo.delete_server_group(group)
    with pytest.raises(exceptions.NotFoundException):
        demo.get_server_group(group.id)


def test_the_sdk_makes_aggregates(cloud):
    admin = cloud.connect("admin")
    aggregate = admin.create_aggregate(name="ssd", availability_zone="east")
    admin.add_host_to_aggregate(aggregate, "node-2")
    admin.set_aggregate_metadata(aggregate, {"ssd": "true"})
    shown = admin.get_aggregate(aggregate.id)
    assert (shown.hosts, shown.metadata) == (["node-2"], {"ssd": "true", "availability_zone": "east"})
    server = admin.create_server(name="s", image_id="img", flavor_id="1", networks="none", availability_zone="east")
    assert admin.wait_for_server(server, interval=0.2, wait=30).compute_host == "node-2"
    with pytest.raises(exceptions.ConflictException, match="node-2 has servers in zone east"):
        admin.remove_host_from_aggregate(aggregate, "node-2")
    assert {zone.name for zone in admin.availability_zones()} == {"nova", "east"}


def test_every_aggregate_command_works(cloud):
    made = cloud.run("admin", "aggregate", "create", "--zone", "east", "--property", "ssd=true", "racks")
    assert (made["name"], made["availability_zone"]) == ("racks", "east")
    assert cloud.run("admin", "aggregate", "add", "host", "racks", "node-1")["hosts"] == ["node-1"]
    cloud.run("admin", "aggregate", "set", "--name", "rack", "--property", "level=2", "racks")
    shown = cloud.run("admin", "aggregate", "show", "rack")
    assert shown["properties"] == {"ssd": "true", "level": "2"} and shown["availability_zone"] == "east"
    cloud.run("admin", "aggregate", "unset", "--property", "ssd", "rack")
    cloud.run("admin", "aggregate", "set", "--no-property", "--property", "new=1", "--zone", "west", "rack")
    [row] = cloud.run("admin", "aggregate", "list", "--long")
    assert row["Properties"] == {"new": "1"} and row["Availability Zone"] == "west" and row["Hosts"] == ["node-1"]
    assert cloud.run("admin", "aggregate", "remove", "host", "rack", "node-1")["hosts"] == []
    cloud.run("admin", "aggregate", "delete", "rack")
    assert cloud.run("admin", "aggregate", "list") == []


def test_every_server_group_command_works(cloud):
    made = cloud.run("demo", "server", "group", "create", "--policy", "anti-affinity", "--rule", "max_server_per_host=2", "apart")
    assert (made["policy"], made["rules"]) == ("anti-affinity", {"max_server_per_host": 2})
    shown = cloud.run("demo", "server", "group", "show", "apart")
    assert shown["id"] == made["id"] and shown["members"] in ("", [])
    assert [row["Name"] for row in cloud.run("demo", "server", "group", "list", "--long")] == ["apart"]
    assert [row["Name"] for row in cloud.run("admin", "server", "group", "list", "--all-projects")] == ["apart"]
    cloud.run("demo", "server", "group", "delete", "apart")
    assert cloud.run("demo", "server", "group", "list") == []
