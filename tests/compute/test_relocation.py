"""Servers that change hosts: off one that is fenced, and off one that is drained, with a crash wherever it may come."""
import pytest

from control.compute.model import SERVER
from control.kernel import fleet
from protos.internal.v1.hosts_pb2 import ObservedServer
from tests.compute.fakes import act, make, show, world

RUNNING = ObservedServer.RUNNING


async def settled(cloud, *servers) -> list[str]:
    """The hosts of servers that all run, each in one place."""
    await cloud.settle()
    cloud.check()
    hosts = []
    for server_id in servers:
        record = cloud.database.get(SERVER, server_id)
        assert not record.HasField("relocation") and not record.leftovers
        assert [name for name, agent in cloud.agents.items() if server_id in agent.domains] == [record.host]
        assert (await show(cloud.client(), server_id))["status"] == "ACTIVE"
        hosts.append(record.host)
    return hosts


async def actions(cloud, server_id) -> list[tuple[str, str | None]]:
    rows = (await cloud.client()("GET", f"/servers/{server_id}/os-instance-actions")).json["instanceActions"]
    return [(row["action"], row["message"]) for row in rows]


def automatic(cloud):
    cloud.settings = type(cloud.settings)(automatic_evacuation=True)


# Evacuation

async def test_servers_of_a_fenced_host_are_started_elsewhere_where_that_is_the_clouds_way():
    async with world(hosts=3) as cloud:
        automatic(cloud)
        servers = [await make(cloud.client()) for _ in range(6)]
        before = await settled(cloud, *servers)
        lost = [server_id for server_id, host in zip(servers, before, strict=True) if host == "node-1"]
        assert lost
        await cloud.lose("node-1")
        await cloud.reconcile()
        there = await show(cloud.client(), lost[0])
        assert (there["status"], there["OS-EXT-STS:vm_state"]) == ("REBUILD", "active")
        after = await settled(cloud, *servers)
        assert "node-1" not in after
        assert (await actions(cloud, lost[0]))[0] == ("evacuate", None)


async def test_nothing_is_started_elsewhere_on_its_own_unless_that_is_the_clouds_way():
    async with world(hosts=2) as cloud:
        servers = [await make(cloud.client()) for _ in range(4)]
        before = await settled(cloud, *servers)
        await cloud.lose("node-1")
        await cloud.settle()
        assert [cloud.database.get(SERVER, server_id).host for server_id in servers] == before


async def test_a_server_is_evacuated_on_command_once_its_host_is_fenced_and_not_before():
    async with world(hosts=2) as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        server_id = await make(demo)
        (host,) = await settled(cloud, server_id)
        reply = await admin("POST", f"/servers/{server_id}/action", json_body={"evacuate": {}})
        assert reply.status == 400 and "still in use" in reply.json["badRequest"]["message"]
        await cloud.set_host(host, up=False)
        assert await act(admin, server_id, evacuate={}) == 400, "down is not off"
        await cloud.lose(host)
        assert await act(demo, server_id, evacuate={}) == 403
        assert await act(admin, server_id, evacuate={"host": host}) == 400
        assert await act(admin, server_id, evacuate={"host": "nowhere"}) == 404
        other = "node-2" if host == "node-1" else "node-1"
        assert await act(cloud.client("admin", "2.80"), server_id, evacuate={"host": other}) == 200
        assert (await show(demo, server_id))["status"] == "REBUILD"
        assert await settled(cloud, server_id) != [host]
        assert (await actions(cloud, server_id))[0] == ("evacuate", None)


async def test_from_2_95_on_an_evacuated_server_stays_stopped_and_before_2_14_it_has_a_password():
    async with world(hosts=2) as cloud:
        server_id, other = await make(cloud.client()), await make(cloud.client())
        hosts = await settled(cloud, server_id, other)
        for host in set(hosts):
            await cloud.lose(host)
        await cloud.add_host("node-9")
        assert await act(cloud.client("admin", "2.95"), server_id, evacuate={}) == 200
        old = cloud.client("admin", "2.1")
        body = {"evacuate": {"onSharedStorage": False, "adminPass": "s3"}}
        reply = await old("POST", f"/servers/{other}/action", json_body=body)
        assert (reply.status, reply.json) == (200, {"adminPass": "s3"})
        await cloud.settle()
        assert (await show(cloud.client(), server_id))["status"] == "SHUTOFF"
        assert (await show(cloud.client(), other))["status"] == "ACTIVE"


async def test_a_stopped_server_is_stopped_where_it_is_evacuated_to():
    async with world(hosts=2) as cloud:
        automatic(cloud)
        demo = cloud.client()
        server_id = await make(demo)
        (host,) = await settled(cloud, server_id)
        assert await act(demo, server_id, os_stop=None) == 202
        await cloud.settle()
        await cloud.lose(host)
        await cloud.settle()
        cloud.check()
        assert cloud.database.get(SERVER, server_id).host != host
        assert (await show(demo, server_id))["status"] == "SHUTOFF"
        assert await act(demo, server_id, os_start=None) == 202
        await cloud.settle()
        assert (await show(demo, server_id))["status"] == "ACTIVE"


async def test_what_fits_nowhere_keeps_its_place_with_the_reason_and_goes_when_there_is_room():
    async with world(hosts=1) as cloud:
        automatic(cloud)
        demo = cloud.client()
        server_id = await make(demo)
        await settled(cloud, server_id)
        await cloud.lose("node-1")
        await cloud.settle()
        failed = await show(demo, server_id)
        assert failed["status"] == "ERROR" and failed["fault"]["message"].startswith("No valid host was found.")
        cloud.check()
        await cloud.add_host("node-2")
        assert await settled(cloud, server_id) == ["node-2"]
        assert "fault" not in await show(demo, server_id)


async def test_a_host_that_comes_back_keeps_what_found_no_other_and_loses_what_did():
    async with world(hosts=2) as cloud:
        automatic(cloud)
        demo, admin = cloud.client(), cloud.client("admin")
        small = await make(demo)
        big = {"id": "most", "name": "most", "vcpus": 1, "ram": 15000, "disk": 1}
        assert (await admin("POST", "/flavors", json_body={"flavor": big})).status == 200
        await settled(cloud, small)
        large = await make(demo, flavorRef="most", availability_zone="nova")
        hosts = await settled(cloud, small, large)
        blocker = await make(demo, flavorRef="most")
        await settled(cloud, small, large, blocker)
        await cloud.lose(hosts[1])
        await cloud.settle()
        assert (await show(demo, large))["status"] == "ERROR"
        agent = await cloud.find(hosts[1])
        await cloud.settle()
        assert (await show(demo, large))["status"] == "ACTIVE" and large in agent.domains
        cloud.check()


async def test_nothing_is_evacuated_once_an_agent_of_the_host_has_come_back():
    async with world(hosts=2) as cloud:
        server_id = await make(cloud.client())
        (host,) = await settled(cloud, server_id)
        await cloud.lose(host)
        await cloud.set_host(host, replica="control")      # not readmitted yet
        automatic(cloud)
        await cloud.settle()
        assert cloud.database.get(SERVER, server_id).host == host
        assert await act(cloud.client("admin"), server_id, evacuate={}) == 400


async def test_affinity_groups_leave_a_fenced_host_together():
    async with world(hosts=3) as cloud:
        automatic(cloud)
        demo = cloud.client()
        group = (await demo("POST", "/os-server-groups", json_body={
            "server_group": {"name": "together", "policy": "affinity"}})).json["server_group"]["id"]
        servers = []
        for _ in range(3):
            reply = await demo("POST", "/servers", json_body={
                "server": {"name": "vm", "imageRef": "img", "flavorRef": "1", "networks": "auto"},
                "os:scheduler_hints": {"group": group}})
            servers.append(reply.json["server"]["id"])
            await cloud.settle()
        before = set(await settled(cloud, *servers))
        assert len(before) == 1
        await cloud.lose(before.pop())
        assert len(set(await settled(cloud, *servers))) == 1


async def test_deleted_servers_of_a_fenced_host_are_gone_at_once():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        await settled(cloud, server_id)
        await cloud.lose("node-1")
        assert (await demo("DELETE", f"/servers/{server_id}")).status == 204
        await cloud.settle()
        assert (await demo("GET", f"/servers/{server_id}")).status == 404
        cloud.check()


async def test_a_service_is_forced_down_and_up_again_in_both_forms():
    async with world() as cloud:
        admin = cloud.client("admin")
        (service,) = (await admin("GET", "/os-services?binary=nova-compute")).json["services"]
        assert not service["forced_down"]
        await cloud.set_host("node-1", replica="control")
        reply = await admin("PUT", f"/os-services/{service['id']}", json_body={"forced_down": True})
        assert reply.json["service"]["forced_down"] and reply.json["service"]["state"] == "down"
        record = cloud.database.get(fleet.HOST, "node-1")
        assert fleet.lost_for_good(record) and record.epoch == 1
        old = cloud.client("admin", "2.11")
        body = {"host": "node-1", "binary": "nova-compute", "forced_down": False}
        assert (await old("PUT", "/os-services/force-down", json_body=body)).json == {"service": body}
        record = cloud.database.get(fleet.HOST, "node-1")
        assert not record.forced_down and not record.up, "up is what its agent makes it"
        assert (await old("PUT", "/os-services/force-down", json_body={"host": "node-1", "binary": "nova-compute"})).status == 400
        assert (await old("PUT", "/os-services/force-down", json_body={**body, "host": "no"})).status == 404


# Drains

async def drain(cloud, host, **settings):
    reply = await cloud.client("admin")("POST", f"/os-hosts/{host}/drain", json_body={"drain": settings})
    assert reply.status == 202, reply.body
    return reply.json["drain"]


async def progress(cloud, host):
    return (await cloud.client("admin")("GET", f"/os-hosts/{host}/drain")).json["drain"]


async def test_a_drain_empties_a_host_and_the_disks_come_along():
    async with world(hosts=3) as cloud:
        servers = [await make(cloud.client()) for _ in range(9)]
        before = await settled(cloud, *servers)
        leaving = before.count("node-1")
        begun = await drain(cloud, "node-1", reason="new fans", at_once=2)
        assert (begun["status"], begun["total"], begun["done"]) == ("running", leaving, 0)
        after = await settled(cloud, *servers)
        assert "node-1" not in after and not cloud.agents["node-1"].disks
        done = await progress(cloud, "node-1")
        assert (done["status"], done["total"], done["done"], done["servers"]) == ("done", leaving, leaving, [])
        host = cloud.database.get(fleet.HOST, "node-1")
        assert host.disabled and host.disabled_reason == "new fans"
        moved = next(server_id for server_id, host in zip(servers, before, strict=True) if host == "node-1")
        assert (await actions(cloud, moved))[0] == ("migrate", None)
        assert (await cloud.client("admin")("DELETE", "/os-hosts/node-1/drain")).status == 204
        assert not cloud.database.get(fleet.HOST, "node-1").disabled
        assert (await cloud.client("admin")("GET", "/os-hosts/node-1/drain")).status == 404


async def test_no_more_are_on_their_way_than_was_said():
    async with world(hosts=2) as cloud:
        servers = [await make(cloud.client()) for _ in range(8)]
        await settled(cloud, *servers)
        cloud.copying = False
        await drain(cloud, "node-1", at_once=3)
        for _ in range(3):
            await cloud.settle()
        waiting = [server["step"] for server in (await progress(cloud, "node-1"))["servers"]]
        assert waiting.count("copying") == 3 and waiting.count("waiting") == 1
        moving = next(server for server in (await progress(cloud, "node-1"))["servers"] if server["step"] == "copying")
        shown = await show(cloud.client(), moving["server_id"])
        assert (shown["status"], shown["OS-EXT-STS:task_state"]) == ("RESIZE", "resize_migrating")
        assert await act(cloud.client(), moving["server_id"], os_start=None) == 409
        cloud.check()
        cloud.copying = True
        assert set(await settled(cloud, *servers)) == {"node-2"}


async def test_a_server_that_is_stopped_is_stopped_where_it_arrives():
    async with world(hosts=2) as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        (host,) = await settled(cloud, server_id)
        await act(demo, server_id, os_stop=None)
        await cloud.settle()
        await drain(cloud, host)
        await cloud.settle()
        cloud.check()
        record = cloud.database.get(SERVER, server_id)
        assert record.host != host and not record.HasField("relocation")
        assert server_id in cloud.agents[record.host].disks and server_id not in cloud.agents[host].disks
        assert (await show(demo, server_id))["status"] == "SHUTOFF"


async def test_what_has_no_place_runs_on_where_it_is_and_the_drain_says_why():
    async with world(hosts=1) as cloud:
        server_id = await make(cloud.client())
        await settled(cloud, server_id)
        await drain(cloud, "node-1")
        await cloud.settle()
        stuck = await progress(cloud, "node-1")
        assert stuck["status"] == "waiting" and stuck["servers"][0]["step"] == "refused"
        assert stuck["servers"][0]["problem"] and (await show(cloud.client(), server_id))["status"] == "ACTIVE"
        assert await act(cloud.client(), server_id, reboot={"type": "HARD"}) == 202
        await cloud.settle()
        assert (await cloud.client("admin")("DELETE", "/os-hosts/node-1/drain")).status == 204
        assert await settled(cloud, server_id) == ["node-1"]


async def test_a_target_that_goes_down_is_given_up_and_cleaned():
    async with world(hosts=2) as cloud:
        server_id = await make(cloud.client())
        (source,) = await settled(cloud, server_id)
        cloud.copying = False
        await drain(cloud, source)
        await cloud.settle()
        target = cloud.database.get(SERVER, server_id).relocation.target
        await cloud.set_host(target, up=False)
        away = cloud.agents.pop(target)
        await cloud.settle()
        assert list(cloud.database.get(SERVER, server_id).leftovers) == [target]
        assert (await show(cloud.client(), server_id))["status"] == "ACTIVE" and server_id in cloud.agents[source].domains
        cloud.check()
        cloud.copying = True
        cloud.agents[target] = away
        await cloud.set_host(target, up=True)
        assert await settled(cloud, server_id) == [target]


async def test_a_disk_that_cannot_come_leaves_the_server_where_it_is():
    async with world(hosts=2) as cloud:
        server_id = await make(cloud.client())
        (source,) = await settled(cloud, server_id)
        cloud.copying = False
        await drain(cloud, source)
        await cloud.settle()
        target = cloud.database.get(SERVER, server_id).relocation.target
        gone = ObservedServer(id=server_id, fault="The image is gone.", fault_final=True)
        await cloud.database.transact(lambda tx: cloud.observer.observed_server(tx, target, gone))
        await cloud.settle()
        assert cloud.database.get(SERVER, server_id).host == source and server_id in cloud.agents[source].domains
        cloud.check()
        stuck = await progress(cloud, source)
        assert stuck["status"] == "waiting" and stuck["servers"][0]["problem"] == "The image is gone."


@pytest.mark.parametrize("copying", [False, True])
async def test_a_server_that_is_deleted_on_its_way_leaves_nothing_anywhere(copying):
    async with world(hosts=2) as cloud:
        server_id = await make(cloud.client())
        (source,) = await settled(cloud, server_id)
        cloud.copying = False
        await drain(cloud, source)
        await cloud.settle()
        cloud.copying = copying
        assert (await cloud.client()("DELETE", f"/servers/{server_id}")).status == 204
        await cloud.settle()
        assert (await cloud.client()("GET", f"/servers/{server_id}")).status == 404
        assert not any(agent.disks or agent.domains for agent in cloud.agents.values())
        assert not cloud.database.cache.all(fleet.ALLOCATION)
        cloud.check()


async def test_a_source_that_is_lost_on_the_way_is_evacuated():
    async with world(hosts=3) as cloud:
        automatic(cloud)
        server_id = await make(cloud.client())
        (source,) = await settled(cloud, server_id)
        cloud.copying = False
        await drain(cloud, source)
        await cloud.settle()
        await cloud.lose(source)
        assert await settled(cloud, server_id) != [source]


# Single moves

async def test_a_server_is_migrated_with_its_disk_where_the_scheduler_or_an_admin_says():
    async with world(hosts=3) as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        server_id = await make(demo)
        (source,) = await settled(cloud, server_id)
        assert await act(demo, server_id, migrate=None) == 403
        assert await act(admin, server_id, migrate={"host": source}) == 400
        assert await act(admin, server_id, migrate={"host": "nowhere"}) == 404
        assert await act(admin, server_id, migrate=None) == 202
        shown = await show(demo, server_id)
        assert (shown["status"], shown["OS-EXT-STS:task_state"]) == ("RESIZE", "resize_prep")
        assert await act(admin, server_id, migrate=None) == 409
        (there,) = await settled(cloud, server_id)
        assert there != source and server_id not in cloud.agents[source].disks
        assert (await actions(cloud, server_id))[0] == ("migrate", None)
        assert await act(admin, server_id, migrate={"host": source}) == 202
        assert await settled(cloud, server_id) == [source]


async def test_a_migration_without_room_is_given_up_and_says_so():
    async with world() as cloud:
        server_id = await make(cloud.client())
        await settled(cloud, server_id)
        assert await act(cloud.client("admin"), server_id, migrate=None) == 202
        assert await settled(cloud, server_id) == ["node-1"]
        assert (await actions(cloud, server_id))[0] == ("migrate", "Error")


async def test_a_migration_whose_disk_cannot_come_is_given_up_and_says_so():
    async with world(hosts=2) as cloud:
        server_id = await make(cloud.client())
        (source,) = await settled(cloud, server_id)
        cloud.copying = False
        assert await act(cloud.client("admin"), server_id, migrate=None) == 202
        await cloud.settle()
        target = cloud.database.get(SERVER, server_id).relocation.target
        gone = ObservedServer(id=server_id, fault="The image is gone.", fault_final=True)
        await cloud.database.transact(lambda tx: cloud.observer.observed_server(tx, target, gone))
        assert await settled(cloud, server_id) == [source]
        assert (await actions(cloud, server_id))[0] == ("migrate", "Error")


async def test_who_may_drain_and_what():
    async with world() as cloud:
        assert (await cloud.client()("POST", "/os-hosts/node-1/drain", json_body={"drain": {}})).status == 403
        admin = cloud.client("admin")
        assert (await admin("POST", "/os-hosts/nowhere/drain", json_body={"drain": {}})).status == 404
        assert (await admin("POST", "/os-hosts/node-1/drain", json_body={"drain": {"at_once": 101}})).status == 400
        await drain(cloud, "node-1")
        assert [one["host"] for one in (await admin("GET", "/os-hosts/drains")).json["drains"]] == ["node-1"]
