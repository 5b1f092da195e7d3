"""Why a server is where it is, as its owner and as an admin may know it; and dry runs, which make nothing."""
from control.compute.decisions import ADVICE, decision_of
from control.compute.model import DECISION, SERVER
from control.kernel import clock
from control.kernel.fleet import Refused
from scheduler.explain import CONSTRAINTS
from scheduler.types import Fix, Refusal, Request, Shape
from tests.compute.fakes import World, make, show, world


async def decision(client, server_id: str) -> dict:
    reply = await client("GET", f"/servers/{server_id}/placement-decision")
    assert reply.status == 200, reply.body
    return reply.json["placement_decision"]


async def dry_run(client, hints: dict | None = None, **fields):
    return await client("POST", "/servers/placement-dry-run", json_body={"server": {
        "name": "vm", "imageRef": "img", "flavorRef": "1", "networks": "none", **fields}, "os:scheduler_hints": hints or {}})


async def small_hosts(cloud: World) -> None:
    await cloud.add_host("tiny-1", ram_mib=1280)
    await cloud.add_host("tiny-2", ram_mib=1024, disk_gib=5)


async def test_a_placed_servers_decision_says_how_many_hosts_would_have_done_and_why_this_one():
    async with world(hosts=3) as cloud:
        demo, admin = cloud.client(), cloud.client("admin")
        server_id = await make(demo)
        assert (await demo("GET", f"/servers/{server_id}/placement-decision")).status == 404
        await cloud.settle()
        mine = await decision(demo, server_id)
        assert (mine["fits"], mine["hosts"], mine["candidates"], mine["policy"]) == (True, 3, 3, "spread")
        assert mine["explanation"].startswith("3 of 3 hosts could take it") and mine["server_id"] == server_id
        assert "node-" not in str(mine) and not {"host", "winner", "runner_up", "revision", "nearest"} & mine.keys()
        whole = await decision(admin, server_id)
        record = cloud.database.require(SERVER, server_id)
        assert whole["host"] == whole["winner"]["host"] == record.host != whole["runner_up"]["host"]
        assert {term["resource_class"] for term in whole["winner"]["terms"]} == {"VCPU", "MEMORY_MB", "DISK_GB"}
        assert 0 < whole["revision"] <= cloud.database.cache.revision
        assert (await cloud.client("other")("GET", f"/servers/{server_id}/placement-decision")).status == 404
        await demo("DELETE", f"/servers/{server_id}")
        await cloud.settle()
        assert not cloud.database.cache.all(DECISION)


async def test_a_refusal_reaches_the_fault_the_action_and_the_decision_with_what_would_help():
    async with world(hosts=0) as cloud:
        await small_hosts(cloud)
        demo, admin = cloud.client(), cloud.client("admin")
        flavor = {"id": "2", "name": "medium", "vcpus": 1, "ram": 1024, "disk": 1}
        assert (await admin("POST", "/flavors", json_body={"flavor": flavor})).status == 200
        server_id = await make(demo, flavorRef="2")
        await cloud.settle()
        fault = (await show(demo, server_id))["fault"]
        text = ("No valid host was found. 2 hosts: 2 without enough RAM. The nearest miss lacks 256 MiB of RAM. "
                "It would fit with at most 768 MiB of RAM.")
        assert fault["message"] == text and "details" not in fault
        assert "The nearest miss, tiny-1, lacks 256" in (await show(admin, server_id))["fault"]["details"]
        [action] = (await demo("GET", f"/servers/{server_id}/os-instance-actions")).json["instanceActions"]
        path = f"/servers/{server_id}/os-instance-actions/{action['request_id']}"
        event = (await demo("GET", path)).json["instanceAction"]["events"][0]
        assert (event["result"], event["details"]) == ("Error", text)
        mine = await decision(demo, server_id)
        assert mine["ruled_out"] == {"without enough RAM": 2} and mine["lacks"] == {"MEMORY_MB": 256} and not mine["fits"]
        assert mine["fixes"] == [
            {"text": "Take a flavor with at most 768 MiB of RAM.", "without": [], "at_most": {"MEMORY_MB": 768}}]
        assert "tiny" not in str(mine) and (await decision(admin, server_id))["nearest"] == "tiny-1"


async def test_a_fix_names_what_the_user_would_change():
    async with world(hosts=2) as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        await admin("POST", "/os-aggregates", json_body={"aggregate": {"name": "e", "availability_zone": "east"}})
        await admin("POST", "/os-aggregates/1/action", json_body={"add_host": {"host": "node-2"}})
        first = await make(demo, availability_zone="east")
        await cloud.settle()
        reply = await dry_run(demo, {"different_host": first}, availability_zone="east")
        [refused] = reply.json["decisions"]
        assert not reply.json["fits"] and refused["ruled_out"] == {"to be avoided": 1, "not in zone east": 1}
        assert [fix["text"] for fix in refused["fixes"]] == ["Leave out the hint different_host.",
                                                            "Name another availability zone, or none."]


def test_every_constraint_that_a_fix_may_leave_out_has_its_advice():
    assert set(ADVICE) == set(CONSTRAINTS)
    fixes = (Fix(("the zone", "the traits"), (("VCPU", 2), ("DISK_GB", 5))),)
    answer = Refused(Refusal(Request("s", Shape(())), 1, fixes=fixes))
    [fix] = decision_of(answer, hosts=1, revision=1, now=clock.now()).fixes
    assert fix.text == ("Name another availability zone, or none and take a flavor and an image that ask for other traits and "
                        "take a flavor with at most 2 vCPU and at most 5 GiB of disk.")


async def test_a_dry_run_sees_its_servers_one_after_another_and_makes_nothing():
    async with world(hosts=2) as cloud:
        demo, admin = cloud.client(), cloud.client("admin")
        before = await records(cloud)
        reply = await dry_run(admin, flavorRef="big", min_count=9, max_count=9)
        decisions = reply.json["decisions"]
        assert not reply.json["fits"] and [each["fits"] for each in decisions] == [True] * 8 + [False]
        assert [each.get("host") for each in decisions] == ["node-1", "node-2"] * 4 + [None]
        assert "server_id" not in decisions[0] and decisions[8]["ruled_out"] == {"without enough vCPU": 2}
        mine = (await dry_run(demo)).json
        assert mine["fits"] and "host" not in mine["decisions"][0] and "winner" not in mine["decisions"][0]
        assert (await dry_run(admin, availability_zone="nova:node-2")).json["decisions"][0]["host"] == "node-2"
        for fields in ({"flavorRef": "gone"}, {"max_count": 101}, {"availability_zone": "mars"}, {"min_count": 0}):
            assert (await dry_run(admin, **fields)).status == 400
        assert (await dry_run(demo, {"group": "gone"})).status == 400
        assert (await dry_run(cloud.client("reader"))).status == 403
        assert await records(cloud) == before and not cloud.database.cache.all(SERVER)


async def records(cloud) -> list[tuple[str, int]]:
    """The state's keys and revisions; what calls with keys leave beside it is none."""
    return [(record.key, record.revision) for record in (await cloud.database.store.scan("/"))[0]
            if not record.key.startswith("/kernel/")]


async def test_a_host_may_be_named_in_every_way_that_nova_has():
    async with world(hosts=2) as cloud:
        admin = cloud.client("admin")
        for fields in ({"availability_zone": "nova:node-2"}, {"availability_zone": "nova:node-2:node-2"},
                       {"availability_zone": ":node-2"}, {"availability_zone": "nova::node-2"}, {"host": "node-2"},
                       {"hypervisor_hostname": "node-2"},
                       {"availability_zone": "nova", "host": "node-2", "hypervisor_hostname": "node-2"}):
            assert (await dry_run(admin, **fields)).json["decisions"][0]["host"] == "node-2"
        for fields in ({"host": "node-9"}, {"availability_zone": "nova:node-1:node-2"}, {"availability_zone": "a:b:c:d"}):
            assert (await dry_run(admin, **fields)).status == 400
        assert (await dry_run(cloud.client(), host="node-2")).status == 403
