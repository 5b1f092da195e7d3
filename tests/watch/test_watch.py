"""What one reader of a watch sees."""
import pytest

from tests.watch.conftest import listed

pytestmark = pytest.mark.etcd


async def test_a_watch_from_the_start_tells_what_there_is_and_then_what_changes(cloud):
    token = await cloud.token("demo")
    client = cloud.client(token)
    rows, _ = await listed(client, "/network/v2.0/networks", "networks")
    async with cloud.watching(token, "networks") as stream:
        await stream.begin()
        assert stream.status == 200 and stream.headers["content-type"] == "text/event-stream"
        *first, bookmark = await stream.until_bookmark()
        assert {event["event"] for event in first} == {"ADDED"} and int(bookmark["id"]) > 0
        assert {event["object"]["id"]: event["object"] for event in first} == rows
        made = (await client("POST", "/network/v2.0/networks", json_body={"network": {"name": "n"}})).json["network"]
        added = await stream.event()
        assert (added["event"], added["object"]) == ("ADDED", made) and int(added["id"]) > int(bookmark["id"])
        await client("PUT", f"/network/v2.0/networks/{made['id']}", json_body={"network": {"name": "m"}})
        changed = await stream.event()
        assert (changed["event"], changed["object"]["name"]) == ("MODIFIED", "m")
        await client("DELETE", f"/network/v2.0/networks/{made['id']}")
        gone = await stream.event()
        assert (gone["event"], gone["object"]["id"], gone["object"]["name"]) == ("DELETED", made["id"], "m")


async def test_a_list_says_the_revision_from_which_a_watch_misses_nothing(cloud, another):
    token = await cloud.token("demo")
    client = cloud.client(token)
    _, revision = await listed(client, "/network/v2.0/networks", "networks")
    made = (await client("POST", "/network/v2.0/networks", json_body={"network": {"name": "n"}})).json["network"]
    for replica in (cloud, another):
        async with replica.watching(token, "networks", f"from_revision={revision}") as stream:
            added = await (await stream.begin()).event()
            while added["event"] == "BOOKMARK":        # this replica had not seen the commit yet
                added = await stream.event()
        assert (added["event"], added["object"]) == ("ADDED", made)
        async with replica.watching(token, "networks", f"from_revision={revision}", after=added["id"]) as stream:
            assert [event["event"] for event in await (await stream.begin()).until_bookmark()] == ["BOOKMARK"]


async def test_a_replica_that_has_just_started_goes_on_from_what_the_store_remembers(cloud, etcd, tmp_path):
    from tests.watch.conftest import replica

    token = await cloud.token("demo")
    client = cloud.client(token)
    kept = (await client("POST", "/network/v2.0/networks", json_body={"network": {"name": "kept"}})).json["network"]
    gone = (await client("POST", "/network/v2.0/networks", json_body={"network": {"name": "gone"}})).json["network"]
    _, revision = await listed(client, "/network/v2.0/networks", "networks")
    await client("PUT", f"/network/v2.0/networks/{kept['id']}", json_body={"network": {"name": "renamed"}})
    await client("DELETE", f"/network/v2.0/networks/{gone['id']}")
    made = (await client("POST", "/network/v2.0/networks", json_body={"network": {"name": "new"}})).json["network"]
    store = etcd.store()
    async with replica(store, etcd.endpoint, tmp_path / "fresh") as fresh:
        assert fresh.replica.watches.history.start > revision
        async with fresh.watching(token, "networks", after=str(revision)) as stream:
            events = await (await stream.begin()).until_bookmark()
        assert [(event["event"], event["object"].get("name")) for event in events] == [
            ("MODIFIED", "renamed"), ("DELETED", "gone"), ("ADDED", "new"), ("BOOKMARK", None)]
        assert events[2]["object"]["id"] == made["id"]
    await store.close()


async def test_what_is_compacted_is_too_old_and_says_from_where_changes_are_kept(cloud, etcd, tmp_path):
    from control.kernel.etcd_client import rpc_pb2
    from tests.watch.conftest import replica

    token = await cloud.token("demo")
    _, revision = await listed(cloud.client(token), "/network/v2.0/networks", "networks")
    for name in "ab":
        await cloud.client(token)("POST", "/network/v2.0/networks", json_body={"network": {"name": name}})
    now = cloud.replica.database.cache.revision
    await cloud.store.client.call(lambda member: member.kv.Compact, rpc_pb2.CompactionRequest(revision=now))
    store = etcd.store()
    async with replica(store, etcd.endpoint, tmp_path / "fresh") as fresh:
        async with fresh.watching(token, "networks", after=str(revision)) as stream:
            await stream.begin()
            assert stream.status == 410 and int(stream.headers["x-brume-oldest-revision"]) == now
            assert "List again" in (await stream.body())["errors"][0]["detail"]
        async with fresh.watching(token, "networks", after=str(now)) as stream:
            assert [event["event"] for event in await (await stream.begin()).until_bookmark()] == ["BOOKMARK"]
        async with fresh.watching(token, "networks", after=str(now + 10_000_000)) as stream:
            await stream.begin()
            assert stream.status == 410 and "none of this cloud's" in (await stream.body())["errors"][0]["detail"]
    await store.close()
    async with cloud.watching(token, "networks", after=str(revision)) as stream:       # this one has it in memory
        assert len(await (await stream.begin()).until_bookmark()) == 3


async def test_an_object_is_written_at_the_microversion_that_the_request_asks_of_its_api(cloud):
    token = await cloud.token("admin")
    for headers in ({}, {"OpenStack-API-Version": "compute 2.96"}):
        rows, _ = await listed(cloud.client(token), "/compute/v2.1/flavors/detail", "flavors", headers)
        async with cloud.watching(token, "flavors", headers=headers) as stream:
            *events, _ = await (await stream.begin()).until_bookmark()
        assert {event["object"]["id"]: event["object"] for event in events} == rows
    async with cloud.watching(token, "flavors", headers={"OpenStack-API-Version": "compute 2.999"}) as stream:
        assert (await stream.begin()).status == 406


@pytest.mark.parametrize(("kind", "path", "key", "version"), [
    ("users", "/v3/users", "users", {}), ("projects", "/v3/projects", "projects", {}), ("domains", "/v3/domains", "domains", {}),
    ("roles", "/v3/roles", "roles", {}), ("groups", "/v3/groups", "groups", {}),
    ("images", "/image/v2/images", "images", {}), ("networks", "/network/v2.0/networks", "networks", {}),
    ("subnets", "/network/v2.0/subnets", "subnets", {}), ("ports", "/network/v2.0/ports", "ports", {}),
    ("routers", "/network/v2.0/routers", "routers", {}), ("floatingips", "/network/v2.0/floatingips", "floatingips", {}),
    ("security-groups", "/network/v2.0/security-groups", "security_groups", {}),
    ("hypervisors", "/compute/v2.1/os-hypervisors/detail", "hypervisors", {"OpenStack-API-Version": "compute 2.96"}),
    ("aggregates", "/compute/v2.1/os-aggregates", "aggregates", {}),
    ("flavors", "/compute/v2.1/flavors/detail", "flavors", {}),
    ("servers", "/compute/v2.1/servers/detail?all_tenants=1", "servers", {})])
async def test_every_kind_begins_with_the_admins_list_of_it(cloud, kind, path, key, version):
    token = await cloud.token("admin")
    rows, _ = await listed(cloud.client(token), path, key, version)
    async with cloud.watching(token, kind, "all_projects=true", headers=version) as stream:
        *events, _ = await (await stream.begin()).until_bookmark()
    assert {event["object"]["id"]: event["object"] for event in events} == rows


async def test_who_may_not_list_may_not_watch(cloud):
    demo, admin = await cloud.token("demo"), await cloud.token("admin")
    for kind, query, token, status in (
            ("hypervisors", "", demo, 403), ("users", "", demo, 403), ("projects", "", demo, 403), ("roles", "", demo, 403),
            ("networks", "all_projects=true", demo, 403), ("networks", "project_id=another", demo, 403),
            ("networks", "project_id=another&all_projects=true", admin, 400), ("volumes", "", admin, 404),
            ("networks", "from_revision=-1", admin, 400), ("networks", "bogus=1", admin, 400), ("networks", "", "nonsense", 401)):
        async with cloud.watching(token, kind, query) as stream:
            assert (await stream.begin()).status == status, (kind, query)
    async with cloud.watching(demo, "networks", after="nonsense") as stream:
        assert (await stream.begin()).status == 400


async def test_what_is_shared_comes_into_sight_and_goes_out_of_it_again(cloud):
    admin, demo = await cloud.token("admin"), await cloud.token("demo")
    client = cloud.client(admin)
    network = (await client("POST", "/network/v2.0/networks", json_body={"network": {"name": "n"}})).json["network"]["id"]
    await client("POST", "/network/v2.0/subnets", json_body={"subnet": {
        "network_id": network, "ip_version": 4, "cidr": "10.9.0.0/24", "name": "s"}})
    async with cloud.watching(demo, "networks") as networks, cloud.watching(demo, "subnets") as subnets:
        for stream in (networks, subnets):
            assert network not in {event["object"].get("id") for event in await (await stream.begin()).until_bookmark()}
        for shared, expected in ((True, "ADDED"), (False, "DELETED")):
            await client("PUT", f"/network/v2.0/networks/{network}", json_body={"network": {"shared": shared}})
            event = await networks.event()
            assert (event["event"], event["object"]["id"]) == (expected, network)
            assert "provider:segmentation_id" not in event["object"]
            event = await subnets.event()
            assert (event["event"], event["object"]["name"]) == (expected, "s")


async def test_an_image_that_is_shared_with_a_project_is_added_when_it_accepts(cloud):
    admin, demo = await cloud.token("admin"), await cloud.token("demo")
    client = cloud.client(admin)
    image = (await client("POST", "/image/v2/images", json_body={
        "name": "i", "visibility": "shared", "disk_format": "raw", "container_format": "bare"})).json["id"]
    project = (await cloud.client(demo)("GET", "/v3/auth/projects")).json["projects"][0]["id"]
    async with cloud.watching(demo, "images") as stream:
        await (await stream.begin()).until_bookmark()
        await client("POST", f"/image/v2/images/{image}/members", json_body={"member": project})
        await cloud.client(demo)("PUT", f"/image/v2/images/{image}/members/{project}", json_body={"status": "accepted"})
        event = await stream.event()
        assert (event["event"], event["object"]["id"]) == ("ADDED", image)
        await client("DELETE", f"/image/v2/images/{image}/members/{project}")
        event = await stream.event()
        assert (event["event"], event["object"]["id"]) == ("DELETED", image)


async def test_a_revoked_token_ends_its_watches_before_anything_more_is_told(cloud):
    token, other = await cloud.token("demo"), await cloud.token("demo")
    async with cloud.watching(token, "networks") as stream:
        await (await stream.begin()).until_bookmark()
        await cloud.client(other)("DELETE", "/v3/auth/tokens", headers={"x-subject-token": token})
        await cloud.client(other)("POST", "/network/v2.0/networks", json_body={"network": {"name": "secret"}})
        error = await stream.event()
        assert (error["event"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 401, "token.ended")
        assert await stream.event() is None


async def test_signs_of_life_say_how_far_a_quiet_watch_is(cloud):
    token = await cloud.token("demo")
    cloud.replica.dispatcher.methods["/watch.v1.Watches/Watch"].handler.__self__._keep_alive = 0.2
    async with cloud.watching(token, "networks") as stream:
        *_, first = await (await stream.begin()).until_bookmark()
        await cloud.client(token)("POST", "/compute/v2.1/os-keypairs", json_body={"keypair": {"name": "k"}})
        (later,) = await stream.until_bookmark()
        while later["id"] == first["id"]:
            (later,) = await stream.until_bookmark()
        assert int(later["id"]) > int(first["id"])


async def test_a_native_client_gets_the_same_objects_and_the_revision_of_its_lists(cloud):
    import grpc

    from control.kernel import rpc
    from protos.network.v1 import networks_pb2, networks_pb2_grpc
    from protos.watch.v1 import watches_pb2, watches_pb2_grpc

    token = await cloud.token("demo")
    server = grpc.aio.server()
    rpc.add_to_grpc(cloud.replica.dispatcher, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            metadata = (("x-auth-token", token),)
            call = networks_pb2_grpc.NetworksStub(channel).ListNetworks(networks_pb2.ListNetworksRequest(), metadata=metadata)
            rows = {network.id: network for network in (await call).networks}
            revision = int(dict(await call.trailing_metadata())["x-brume-revision"])
            stub = watches_pb2_grpc.WatchesStub(channel)
            seen, told = {}, 0
            async for event in stub.Watch(watches_pb2.WatchRequest(kind="networks"), metadata=metadata):
                told = event.revision
                if event.type == watches_pb2.WatchEvent.BOOKMARK:
                    break
                network = networks_pb2.Network()
                assert event.object.Unpack(network)
                seen[network.id] = network
            assert seen == rows and told >= revision
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                async for _ in stub.Watch(watches_pb2.WatchRequest(kind="networks", from_revision=10**12), metadata=metadata):
                    pass
            assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
    finally:
        await server.stop(0)


async def test_a_stopping_replica_sends_its_readers_away_at_once(cloud, another):
    token = await another.token("demo")
    async with another.watching(token, "networks") as stream:
        *_, bookmark = await (await stream.begin()).until_bookmark()
        another.watches.cancel()
        error = await stream.event()
        assert (error["event"], error["object"]["code"]) == ("ERROR", 503)
    async with cloud.watching(token, "networks", after=bookmark["id"]) as stream:
        assert (await (await stream.begin()).until_bookmark())[-1]["event"] == "BOOKMARK"
