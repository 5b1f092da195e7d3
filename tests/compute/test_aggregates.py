"""Host aggregates over REST: their hosts, their metadata, and the zones that they make."""
import asyncio

from control.kernel import fleet
from tests.compute.fakes import make, show, world


async def make_aggregate(client, name: str = "ssd", **fields) -> int:
    reply = await client("POST", "/os-aggregates", json_body={"aggregate": {"name": name, **fields}})
    assert reply.status == 200, reply.body
    return reply.json["aggregate"]["id"]


async def do(client, number: int, **action):
    return await client("POST", f"/os-aggregates/{number}/action", json_body=action)


async def add(client, number: int, host: str = "node-1"):
    return await do(client, number, add_host={"host": host})


async def zones(client) -> dict[str, set[str]]:
    rows = (await client("GET", "/os-availability-zone/detail")).json["availabilityZoneInfo"]
    return {row["zoneName"]: set(row["hosts"]) for row in rows if row["zoneName"] != "internal"}


async def test_an_aggregate_is_made_changed_and_deleted():
    async with world(hosts=2) as cloud:
        admin = cloud.client("admin")
        reply = await admin("POST", "/os-aggregates", json_body={"aggregate": {"name": "ssd", "availability_zone": "east"}})
        made = reply.json["aggregate"]
        assert (made["id"], made["name"], made["availability_zone"], made["deleted"]) == (1, "ssd", "east", False)
        assert "hosts" not in made and "metadata" not in made and made["updated_at"] is None
        assert (await add(admin, 1, "node-2")).json["aggregate"]["hosts"] == ["node-2"]
        assert (await add(admin, 1, "node-1")).json["aggregate"]["hosts"] == ["node-1", "node-2"]
        shown = (await do(admin, 1, set_metadata={"metadata": {"ssd": "true", "none": None}})).json["aggregate"]
        assert shown["metadata"] == {"ssd": "true", "availability_zone": "east"} and shown["uuid"] == made["uuid"]
        assert (await admin("GET", "/os-aggregates/1")).json["aggregate"] == shown
        assert (await admin("GET", "/os-aggregates")).json["aggregates"] == [shown]
        assert "uuid" not in (await cloud.client("admin", "2.40")("GET", "/os-aggregates/1")).json["aggregate"]
        shown = (await do(admin, 1, set_metadata={"metadata": {"ssd": None}})).json["aggregate"]
        assert shown["metadata"] == {"availability_zone": "east"}
        changed = await admin("PUT", "/os-aggregates/1", json_body={"aggregate": {"name": "nvme", "availability_zone": "west"}})
        renamed = changed.json["aggregate"]
        assert (renamed["name"], renamed["metadata"]) == ("nvme", {"availability_zone": "west"})
        assert (await admin("DELETE", "/os-aggregates/1")).status == 400, "it has hosts"
        for host in ("node-1", "node-2"):
            assert (await do(admin, 1, remove_host={"host": host})).status == 200
        assert (await admin("DELETE", "/os-aggregates/1")).status == 200
        assert (await admin("GET", "/os-aggregates/1")).status == 404
        assert await make_aggregate(admin, "ssd") == 2, "numbers are not used again"


async def test_only_admins_see_aggregates():
    async with world() as cloud:
        await make_aggregate(cloud.client("admin"))
        for verb, path in (("GET", "/os-aggregates"), ("GET", "/os-aggregates/1"), ("DELETE", "/os-aggregates/1")):
            assert (await cloud.client()(verb, path)).status == 403


async def test_what_cannot_be_is_refused():
    async with world() as cloud:
        admin = cloud.client("admin")
        number = await make_aggregate(admin)
        for body, status in (({"name": "ssd"}, 409), ({"name": ""}, 400), ({"name": "x" * 256}, 400), ({}, 400),
                             ({"name": "a", "availability_zone": "a:b"}, 400), ({"name": "a", "availability_zone": ""}, 400)):
            assert (await admin("POST", "/os-aggregates", json_body={"aggregate": body})).status == status, body
        for action, status in (({"add_host": {"host": "node-9"}}, 404), ({"remove_host": {"host": "node-1"}}, 404),
                               ({"set_metadata": {"metadata": {"a": 1}}}, 400),
                               ({"set_metadata": {"metadata": {"a": "b" * 256}}}, 400), ({"other": {}}, 400),
                               ({"set_metadata": {"metadata": {"availability_zone": "a:b"}}}, 400),
                               ({"set_metadata": {"metadata": {f"k{index}": "v" for index in range(129)}}}, 403)):
            assert (await do(admin, number, **action)).status == status, action
        await add(admin, number)
        assert (await add(admin, number)).status == 409
        assert (await add(admin, 99)).status == 404
        other = await make_aggregate(admin, "other")
        assert (await admin("PUT", f"/os-aggregates/{other}", json_body={"aggregate": {"name": "ssd"}})).status == 409
        assert (await admin("PUT", f"/os-aggregates/{other}", json_body={"aggregate": {}})).status == 400


async def test_an_aggregates_zone_is_its_hosts_zone_and_servers_go_there():
    async with world(hosts=3) as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        assert await zones(admin) == {"nova": {"node-1", "node-2", "node-3"}}
        number = await make_aggregate(admin, availability_zone="east")
        await add(admin, number, "node-3")
        assert await zones(admin) == {"nova": {"node-1", "node-2"}, "east": {"node-3"}}
        services = (await admin("GET", "/os-services?binary=nova-compute&host=node-3")).json["services"]
        assert services[0]["zone"] == "east"
        names = [row["zoneName"] for row in (await demo("GET", "/os-availability-zone")).json["availabilityZoneInfo"]]
        assert names == ["east", "nova"]
        servers = [await make(demo, availability_zone="east") for _ in range(3)]
        await cloud.settle()
        for server_id in servers:
            assert (await show(admin, server_id))["OS-EXT-SRV-ATTR:host"] == "node-3"
            assert (await show(demo, server_id))["OS-EXT-AZ:availability_zone"] == "east"
        assert (await demo("POST", "/servers", json_body={"server": {
            "name": "vm", "imageRef": "img", "flavorRef": "1", "networks": "none", "availability_zone": "west"}})).status == 400


async def test_a_host_is_in_one_zone_and_keeps_it_while_it_has_servers():
    async with world(hosts=2) as cloud:
        admin = cloud.client("admin")
        east, west, plain = [await make_aggregate(admin, name, **fields) for name, fields in (
            ("east", {"availability_zone": "east"}), ("west", {"availability_zone": "west"}), ("plain", {}))]
        await add(admin, east)
        assert (await add(admin, plain)).status == 200
        reply = await add(admin, west)
        assert reply.status == 409 and "zones east and west" in reply.json["conflictingRequest"]["message"]
        reply = await do(admin, plain, set_metadata={"metadata": {"availability_zone": "west"}})
        assert reply.status == 400 and "east and west" in reply.json["badRequest"]["message"]
        server_id = await make(admin, availability_zone="east")
        await cloud.settle()
        assert (await do(admin, east, remove_host={"host": "node-1"})).status == 409
        for body in ({"availability_zone": "west"}, {"availability_zone": None}):
            reply = await admin("PUT", f"/os-aggregates/{east}", json_body={"aggregate": body})
            assert reply.status == 400 and "node-1 has servers in zone east" in reply.json["badRequest"]["message"]
        assert (await do(admin, east, set_metadata={"metadata": {"availability_zone": None}})).status == 400
        assert (await do(admin, east, set_metadata={"metadata": {"rack": "7"}})).status == 200, "the zone stays"
        assert (await do(admin, plain, remove_host={"host": "node-1"})).status == 200, "the zone stays"
        await admin("DELETE", f"/servers/{server_id}")
        await cloud.settle()
        assert (await do(admin, east, remove_host={"host": "node-1"})).status == 200
        assert await zones(admin) == {"nova": {"node-1", "node-2"}}


async def test_changes_in_parallel_leave_a_host_in_one_zone():
    async with world() as cloud:
        admin = cloud.client("admin")
        numbers = [await make_aggregate(admin, f"zone-{index}", availability_zone=f"z{index}") for index in range(8)]
        replies = await asyncio.gather(*(add(admin, number) for number in numbers))
        assert sorted(reply.status for reply in replies) == [200] + [409] * 7
        same = {"aggregate": {"name": "same"}}
        replies = await asyncio.gather(*(admin("POST", "/os-aggregates", json_body=same) for _ in range(5)))
        assert sorted(reply.status for reply in replies) == [200] + [409] * 4


async def test_flavors_find_hosts_by_the_metadata_of_their_aggregates():
    async with world(hosts=3) as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        number = await make_aggregate(admin)
        await do(admin, number, set_metadata={"metadata": {"ssd": "true"}})
        specs = {"extra_specs": {"aggregate_instance_extra_specs:ssd": "true"}}
        assert (await admin("POST", "/flavors/1/os-extra_specs", json_body=specs)).status == 200
        before = await make(demo, "before")
        await cloud.settle()
        fault = (await show(demo, before))["fault"]["message"]
        assert "3 outside the aggregates asked for" in fault and "without the aggregates" in fault
        await add(admin, number, "node-2")
        after = await make(demo, "after")
        await cloud.settle()
        assert (await show(admin, after))["OS-EXT-SRV-ATTR:host"] == "node-2"


async def test_a_host_that_is_forgotten_leaves_its_aggregates():
    async with world(hosts=2) as cloud:
        admin = cloud.client("admin")
        number = await make_aggregate(admin)
        await add(admin, number, "node-1")
        await add(admin, number, "node-2")

        def down(tx):
            host = tx.require(fleet.HOST, "node-1")
            host.up = False
            tx.put(fleet.HOST, host)

        await cloud.database.transact(down)
        [service] = (await admin("GET", "/os-services?binary=nova-compute&host=node-1")).json["services"]
        assert (await admin("DELETE", f"/os-services/{service['id']}")).status == 204
        assert (await admin("GET", f"/os-aggregates/{number}")).json["aggregate"]["hosts"] == ["node-2"]


async def test_specs_that_no_host_could_understand_are_refused_when_they_are_set_or_used():
    async with world() as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        for key, value in (("resources:CPUS", "1"), ("trait:CUSTOM_A", "maybe"), ("hw:numa_nodes", "none"),
                           ("brume:policy", "first")):
            reply = await admin("POST", "/flavors/1/os-extra_specs", json_body={"extra_specs": {key: value}})
            assert reply.status == 400 and key in reply.json["badRequest"]["message"]
            assert (await admin("PUT", f"/flavors/1/os-extra_specs/{key}", json_body={key: value})).status == 400
        assert (await admin("POST", "/flavors/1/os-extra_specs", json_body={"extra_specs": {
            "pci_passthrough:alias": "gpu:1"}})).status == 200
        reply = await demo("POST", "/servers", json_body={"server": {
            "name": "vm", "imageRef": "img", "flavorRef": "1", "networks": "none"}})
        assert reply.status == 400 and "no PCI devices under the alias 'gpu'" in reply.json["badRequest"]["message"]
        assert not cloud.database.cache.all(fleet.ALLOCATION)
        cloud.check()
