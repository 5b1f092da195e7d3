"""Server groups over REST, and the rule that they stand for, whatever comes in parallel."""
import asyncio
from collections import Counter

import pytest

from control.compute.model import SERVER, SERVER_GROUP
from control.kernel import fleet
from tests.compute.fakes import World, act, make, show, world

UNLIMITED = {"quota_set": {"instances": -1, "cores": -1, "ram": -1, "server_group_members": -1}}


async def make_group(client, policy: str = "anti-affinity", **fields) -> str:
    reply = await client("POST", "/os-server-groups", json_body={"server_group": {"name": "g", "policy": policy, **fields}})
    assert reply.status == 200, reply.body
    return reply.json["server_group"]["id"]


async def make_in(client, group: str, name: str = "vm", hints: str = "os:scheduler_hints", **fields):
    return await client("POST", "/servers", json_body={
        "server": {"name": name, "imageRef": "img", "flavorRef": "1", "networks": "none", **fields}, hints: {"group": group}})


async def per_host(cloud: World) -> Counter:
    return Counter(server.host for server in cloud.database.cache.all(SERVER))


async def test_a_group_is_made_listed_shown_and_deleted():
    async with world() as cloud:
        demo, other, admin = cloud.client(), cloud.client("other"), cloud.client("admin")
        group = await make_group(demo, rules={"max_server_per_host": 3})
        whole = (await demo("GET", f"/os-server-groups/{group}")).json["server_group"]
        assert whole == {"id": group, "name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 3}, "members": [],
                         "project_id": "demo-project", "user_id": "demo-user"}
        assert (await demo("GET", "/os-server-groups")).json == {"server_groups": [whole]}
        assert (await other("GET", "/os-server-groups")).json == {"server_groups": []}
        assert (await admin("GET", "/os-server-groups")).json == {"server_groups": []}
        assert (await admin("GET", "/os-server-groups?all_projects=True")).json == {"server_groups": [whole]}
        assert (await other("GET", "/os-server-groups?all_projects=1")).status == 403
        for verb in ("GET", "DELETE"):
            assert (await other(verb, f"/os-server-groups/{group}")).status == 404
        assert (await cloud.client("reader")("DELETE", f"/os-server-groups/{group}")).status == 403
        assert (await demo("DELETE", f"/os-server-groups/{group}")).status == 204
        assert (await demo("GET", f"/os-server-groups/{group}")).status == 404
        cloud.check()


async def test_pages_are_by_limit_and_offset():
    async with world() as cloud:
        demo = cloud.client()
        ids = [await make_group(demo, name=f"g{index}") for index in range(5)]
        page = (await demo("GET", "/os-server-groups?limit=2&offset=1")).json["server_groups"]
        assert [row["id"] for row in page] == ids[1:3]
        assert (await demo("GET", "/os-server-groups?limit=-1")).status == 400


@pytest.mark.parametrize(("microversion", "body", "shown"), [
    ("2.1", {"policies": ["affinity"]}, {"id", "name", "policies", "members", "metadata"}),
    ("2.15", {"policies": ["soft-affinity"]}, {"id", "name", "policies", "members", "metadata", "project_id", "user_id"}),
    ("2.64", {"policy": "affinity"}, {"id", "name", "policy", "rules", "members", "project_id", "user_id"}),
])
async def test_each_microversion_has_its_own_fields(microversion, body, shown):
    async with world() as cloud:
        demo = cloud.client(microversion=microversion)
        reply = await demo("POST", "/os-server-groups", json_body={"server_group": {"name": "g", **body}})
        assert reply.status == 200 and set(reply.json["server_group"]) == shown
        if "policies" in body:
            assert reply.json["server_group"]["policies"] == body["policies"] and reply.json["server_group"]["metadata"] == {}
        else:
            assert reply.json["server_group"]["rules"] == {}


@pytest.mark.parametrize(("microversion", "body"), [
    ("2.1", {"policies": ["soft-affinity"]}), ("2.1", {"policies": []}), ("2.1", {"policies": ["affinity", "anti-affinity"]}),
    ("2.1", {"policy": "affinity"}), ("2.1", {}), ("2.64", {"policies": ["affinity"]}), ("2.64", {"policy": "legacy"}),
    ("2.64", {"policy": "affinity", "rules": {"max_server_per_host": 2}}),
    ("2.64", {"policy": "anti-affinity", "rules": {"max_server_per_host": 0}}),
    ("2.64", {"policy": "anti-affinity", "rules": {"other": 1}}), ("2.64", {"policy": "affinity", "name": ""}),
])
async def test_a_group_that_makes_no_sense_is_refused(microversion, body):
    async with world() as cloud:
        reply = await cloud.client(microversion=microversion)("POST", "/os-server-groups", json_body={
            "server_group": {"name": "g", **body}})
        assert reply.status == 400 and not cloud.database.cache.all(SERVER_GROUP)


async def test_quotas_of_groups_and_of_their_members_are_kept():
    async with world() as cloud:
        demo, admin = cloud.client(), cloud.client("admin")
        limits = {"server_groups": 2, "server_group_members": 3}
        await admin("PUT", "/os-quota-sets/demo-project", json_body={"quota_set": limits})
        replies = await asyncio.gather(*(demo("POST", "/os-server-groups", json_body={
            "server_group": {"name": "g", "policy": "soft-affinity"}}) for _ in range(5)))
        assert sorted(reply.status for reply in replies) == [200, 200, 403, 403, 403]
        group = next(reply.json["server_group"]["id"] for reply in replies if reply.status == 200)
        assert (await demo("GET", "/limits")).json["limits"]["absolute"]["totalServerGroupsUsed"] == 2
        replies = await asyncio.gather(*(make_in(demo, group) for _ in range(6)))
        assert sorted(reply.status for reply in replies) == [202] * 3 + [403] * 3
        assert "too many servers in group" in next(reply for reply in replies if reply.status == 403).json["forbidden"]["message"]
        gone = next(reply for reply in replies if reply.status == 202).json["server"]["id"]
        await demo("DELETE", f"/servers/{gone}")
        assert gone not in (await demo("GET", f"/os-server-groups/{group}")).json["server_group"]["members"]
        assert (await make_in(demo, group, min_count=1, max_count=5)).status == 202
        assert len((await demo("GET", f"/os-server-groups/{group}")).json["server_group"]["members"]) == 3
        assert (await make_in(demo, group, min_count=2)).status == 403
        cloud.check()
        await demo("DELETE", f"/os-server-groups/{group}")
        assert (await demo("GET", "/limits")).json["limits"]["absolute"]["totalServerGroupsUsed"] == 1
        cloud.check()


@pytest.mark.parametrize("hints", ["os:scheduler_hints", "OS-SCH-HNT:scheduler_hints"])
async def test_members_come_with_the_hint_and_go_with_their_server(hints):
    async with world() as cloud:
        demo = cloud.client()
        group = await make_group(demo, "soft-anti-affinity")
        member = (await make_in(demo, group, hints=hints)).json["server"]["id"]
        await make(demo, "alone")
        assert (await show(demo, member))["server_groups"] == [group]
        await cloud.settle()
        assert (await demo("GET", f"/os-server-groups/{group}")).json["server_group"]["members"] == [member]
        await demo("DELETE", f"/servers/{member}")
        await cloud.settle()
        assert (await demo("GET", f"/os-server-groups/{group}")).json["server_group"]["members"] == []


async def test_a_group_of_nobody_or_of_another_project_is_refused():
    async with world() as cloud:
        group = await make_group(cloud.client("other"))
        for name in (group, "gone", "", 7):
            reply = await make_in(cloud.client(), name)
            assert reply.status == 400 and "group" in reply.json["badRequest"]["message"]
        assert not cloud.database.cache.all(SERVER)


async def test_a_deleted_group_leaves_its_servers_on_their_own():
    async with world() as cloud:
        demo = cloud.client()
        group = await make_group(demo)
        member = (await make_in(demo, group)).json["server"]["id"]
        await demo("DELETE", f"/os-server-groups/{group}")
        await cloud.settle()
        view = await show(demo, member)
        assert (view["server_groups"], view["status"]) == ([], "ACTIVE")


async def test_affinity_keeps_servers_together_and_anti_affinity_apart():
    async with world(hosts=3) as cloud:
        demo = cloud.client()
        together, apart = await make_group(demo, "affinity"), await make_group(demo)
        near = [(await make_in(demo, together, f"near-{i}")).json["server"]["id"] for i in range(3)]
        far = [(await make_in(demo, apart, f"far-{i}")).json["server"]["id"] for i in range(4)]
        await cloud.settle()
        hosts = {server.id: server.host for server in cloud.database.cache.all(SERVER)}
        assert len({hosts[each] for each in near}) == 1
        assert sorted(hosts[each] for each in far) == ["", "node-1", "node-2", "node-3"]
        [refused] = [each for each in far if not hosts[each]]
        fault = (await show(demo, refused))["fault"]["message"]
        assert "3 holding members of the server group" in fault and "without the server group" in fault


async def test_a_member_that_is_being_deleted_keeps_its_host_from_the_others_until_it_is_gone():
    async with world() as cloud:
        demo = cloud.client()
        group = await make_group(demo)
        first = (await make_in(demo, group)).json["server"]["id"]
        await cloud.settle()
        await demo("DELETE", f"/servers/{first}")
        second = (await make_in(demo, group)).json["server"]["id"]
        await cloud.reconcile()
        assert (await show(demo, second))["status"] == "ERROR"
        await cloud.settle()
        third = (await make_in(demo, group)).json["server"]["id"]
        await cloud.settle()
        assert (await show(demo, third))["status"] == "ACTIVE"


async def test_two_hundred_servers_made_in_parallel_never_break_anti_affinity():
    async with world(hosts=0) as cloud:
        for index in range(64):
            await cloud.add_host(f"node-{index}", vcpus=16, ram_mib=65536, disk_gib=500)
        demo, admin = cloud.client(), cloud.client("admin")
        await admin("PUT", "/os-quota-sets/demo-project", json_body=UNLIMITED)
        group = await make_group(demo, rules={"max_server_per_host": 2})
        task = asyncio.create_task(cloud.lead())
        try:
            # single ones, and several at a time, with placements going on meanwhile
            replies = await asyncio.gather(*(make_in(demo, group, f"one-{index}") for index in range(100)),
                                           *(make_in(demo, group, f"ten-{index}", min_count=10) for index in range(10)))
            assert {reply.status for reply in replies} == {202}
            async with asyncio.timeout(120):
                while any(not server.host and not server.HasField("fault") for server in cloud.database.cache.all(SERVER)):
                    assert max((await per_host_of_placed(cloud)).values(), default=0) <= 2
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        placed = await per_host_of_placed(cloud)
        assert len(placed) == 64 and set(placed.values()) == {2}
        assert sum(server.HasField("fault") for server in cloud.database.cache.all(SERVER)) == 200 - 128
        assert len(cloud.database.cache.all(fleet.ALLOCATION)) == 128
        cloud.check()


async def per_host_of_placed(cloud: World) -> Counter:
    counts = await per_host(cloud)
    del counts[""]
    return counts


async def test_servers_are_placed_beside_and_away_from_others_that_still_wait():
    async with world(hosts=3) as cloud:
        demo = cloud.client()
        first = await make(demo, "first")
        reply = await demo("POST", "/servers", json_body={
            "server": {"name": "away", "imageRef": "img", "flavorRef": "1", "networks": "none"},
            "os:scheduler_hints": {"different_host": [first]}})
        away = reply.json["server"]["id"]
        reply = await demo("POST", "/servers", json_body={
            "server": {"name": "beside", "imageRef": "img", "flavorRef": "1", "networks": "none"},
            "os:scheduler_hints": {"same_host": first, "different_host": away, "brume:lifetime": "3600"}})
        beside = reply.json["server"]["id"]
        reconciler = cloud.placing()
        assert await reconciler.reconcile(beside) is not None, "it is looked at again when the others have a host"
        await cloud.settle()
        hosts = {server.id: server.host for server in cloud.database.cache.all(SERVER)}
        assert hosts[first] == hosts[beside] != hosts[away] and hosts[away]
        assert cloud.database.require(SERVER, beside).hints.lifetime_seconds == 3600
        assert await act(demo, beside, os_stop=None) == 202


async def test_hints_that_cannot_be_kept_are_refused_before_anything_is_made():
    async with world() as cloud:
        theirs = await make(cloud.client("other"))
        for hints in ({"query": ["=", "$x", 1]}, {"build_near_host_ip": "192.0.2.1"}, {"different_cell": "c"},
                      {"different_host": "gone"}, {"same_host": [theirs]}, {"same_host": []},
                      {"different_host": [1]}, {"different_host": {"a": "b"}},
                      {"different_host": [f"s{index}" for index in range(101)]}, {"brume:lifetime": 0},
                      {"brume:lifetime": "soon"}, {"brume:lifetime": 1.5}, {"group": ["a", "b"]}):
            reply = await cloud.client()("POST", "/servers", json_body={
                "server": {"name": "vm", "imageRef": "img", "flavorRef": "1", "networks": "none"}, "os:scheduler_hints": hints})
            assert reply.status == 400 and next(iter(hints)) in reply.json["badRequest"]["message"], hints
        assert [server.id for server in cloud.database.cache.all(SERVER)] == [theirs]
