"""Servers over REST, from create to gone, with a host that does what it is told."""
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from control.compute.model import ACTION, SERVER
from control.compute.projection import Projection
from control.kernel import fleet
from protos.internal.v1.hosts_pb2 import ObservedServer
from tests.compute.fakes import PORT, act, make, show, world


async def test_a_server_is_built_stopped_started_rebooted_and_deleted():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo, metadata={"a": "b"})
        fresh = await show(demo, server_id)
        assert (fresh["status"], fresh["OS-EXT-STS:task_state"]) == ("BUILD", "scheduling")
        assert fresh["OS-EXT-STS:vm_state"] == "building"
        await cloud.reconcile()
        assert (await show(demo, server_id))["OS-EXT-STS:task_state"] == "spawning"
        await cloud.settle()
        active = await show(demo, server_id)
        assert (active["status"], active["OS-EXT-STS:task_state"], active["OS-EXT-STS:power_state"]) == ("ACTIVE", None, 1)
        assert active["addresses"]["net-1"][0]["addr"].startswith("10.0.0.")
        assert active["OS-SRV-USG:launched_at"]

        assert await act(demo, server_id, os_stop=None) == 202
        assert (await show(demo, server_id))["OS-EXT-STS:task_state"] == "powering-off"
        await cloud.settle()
        assert (await show(demo, server_id))["status"] == "SHUTOFF"
        assert await act(demo, server_id, os_stop=None) == 409
        assert await act(demo, server_id, reboot={"type": "SOFT"}) == 409

        assert await act(demo, server_id, os_start=None) == 202
        await cloud.settle()
        assert (await show(demo, server_id))["status"] == "ACTIVE"

        assert await act(demo, server_id, reboot={"type": "SOFT"}) == 202
        assert (await show(demo, server_id))["status"] == "REBOOT"
        await cloud.settle()
        assert await act(demo, server_id, reboot={"type": "HARD"}) == 202
        assert (await show(demo, server_id))["status"] == "HARD_REBOOT"
        await cloud.settle()
        assert (await show(demo, server_id))["status"] == "ACTIVE"
        assert cloud.agents["node-1"].reboots[server_id] == 2

        rows = (await demo("GET", f"/servers/{server_id}/os-instance-actions")).json["instanceActions"]
        assert [row["action"] for row in rows] == ["reboot", "reboot", "start", "stop", "create"]
        one = (await demo("GET", f"/servers/{server_id}/os-instance-actions/{rows[-1]['request_id']}")).json
        event = one["instanceAction"]["events"][0]
        assert event["result"] == "Success" and event["finish_time"] and "host" not in event
        cloud.check()

        assert (await demo("DELETE", f"/servers/{server_id}")).status == 204
        assert (await show(demo, server_id))["OS-EXT-STS:task_state"] == "deleting"
        assert (await demo("DELETE", f"/servers/{server_id}")).status == 204
        assert await act(demo, server_id, os_stop=None) == 409
        await cloud.settle()
        assert (await demo("GET", f"/servers/{server_id}")).status == 404
        assert not cloud.database.cache.all(PORT) and not cloud.database.cache.all(fleet.ALLOCATION)
        cloud.check()


async def test_a_server_waits_for_its_ports_before_it_is_active():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        cloud.ports.down.add(server_id)
        await cloud.settle()
        building = await show(demo, server_id)
        assert (building["status"], building["OS-EXT-STS:task_state"]) == ("BUILD", "networking")
        cloud.ports.down.clear()
        await cloud.reconcile()
        assert (await show(demo, server_id))["status"] == "ACTIVE"


async def test_no_valid_host_is_a_fault_that_says_why():
    async with world() as cloud:
        demo, admin = cloud.client(), cloud.client("admin")
        huge = {"id": "huge", "name": "huge", "vcpus": 1, "ram": 40000, "disk": 1}
        assert (await admin("POST", "/flavors", json_body={"flavor": huge})).status == 200
        server_id = await make(demo, flavorRef="huge")
        await cloud.settle()
        failed = await show(demo, server_id)
        assert failed["status"] == "ERROR" and failed["fault"]["code"] == 500
        assert failed["fault"]["message"].startswith("No valid host was found. ") and "ram" in failed["fault"]["message"].lower()
        actions = (await demo("GET", f"/servers/{server_id}/os-instance-actions")).json["instanceActions"]
        assert actions[0]["message"] == "Error"
        assert (await demo("DELETE", f"/servers/{server_id}")).status == 204
        await cloud.settle()
        assert (await demo("GET", f"/servers/{server_id}")).status == 404
        cloud.check()


async def test_while_no_host_is_up_a_new_server_waits_for_one_for_a_while():
    async with world(hosts=0) as cloud:
        demo = cloud.client()
        await cloud.add_host("node-1", up=False)
        server_id = await make(demo)
        reconciler = cloud.placing()
        assert await reconciler.reconcile(server_id) == 1.0
        assert (await show(demo, server_id))["status"] == "BUILD"

        later = Timestamp(seconds=cloud.database.get(SERVER, server_id).created_at.seconds + 31)
        await cloud.placing(now=lambda: later).reconcile(server_id)
        assert (await show(demo, server_id))["status"] == "ERROR"


async def test_a_guest_that_shuts_itself_down_stays_down_and_one_that_crashes_comes_back():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        await cloud.settle()
        agent = cloud.agents["node-1"]
        agent.domains[server_id] = ObservedServer.CRASHED
        wish = next(iter(cloud.projection.objects_for("node-1"))).server
        await agent.report(wish)
        crashed = await show(demo, server_id)
        assert (crashed["status"], crashed["OS-EXT-STS:task_state"]) == ("ACTIVE", "powering-on")
        await cloud.settle()
        assert (await show(demo, server_id))["OS-EXT-STS:task_state"] is None

        agent.domains[server_id] = ObservedServer.SHUTOFF
        await agent.report(wish)
        await cloud.settle()
        off = await show(demo, server_id)
        assert (off["status"], off["OS-EXT-STS:power_state"]) == ("SHUTOFF", 4)


async def test_after_a_restart_of_everything_active_servers_run_again():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        await cloud.settle()
        agent = cloud.agents["node-1"]
        agent.domains.clear()
        await agent.report(next(iter(cloud.projection.objects_for("node-1"))).server)
        assert (await show(demo, server_id))["OS-EXT-STS:vm_state"] == "active"
        await cloud.settle()
        assert agent.domains[server_id] == ObservedServer.RUNNING
        assert (await show(demo, server_id))["status"] == "ACTIVE"


async def test_a_final_fault_is_an_error_that_a_hard_reboot_repairs():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        cloud.agents["node-1"].trouble[server_id] = "qemu-img: the image is damaged"
        await cloud.settle()
        failed = await show(demo, server_id)
        assert failed["status"] == "ERROR" and failed["fault"]["message"] == "qemu-img: the image is damaged"
        assert "details" not in failed["fault"] and "details" in (await show(cloud.client("admin"), server_id))["fault"]
        cloud.agents["node-1"].trouble.clear()
        assert await act(demo, server_id, reboot={"type": "HARD"}) == 202
        await cloud.settle()
        mended = await show(demo, server_id)
        assert mended["status"] == "ACTIVE" and "fault" not in mended


async def test_an_admin_sets_and_clears_an_error():
    async with world() as cloud:
        demo, admin = cloud.client(), cloud.client("admin")
        server_id = await make(demo)
        cloud.agents["node-1"].trouble[server_id] = "no space left"
        await cloud.settle()
        assert await act(demo, server_id, os_resetState={"state": "active"}) == 403
        generation = cloud.database.require(SERVER, server_id).desired.generation
        cloud.agents["node-1"].trouble.clear()
        assert await act(admin, server_id, os_resetState={"state": "active"}) == 202
        assert cloud.database.require(SERVER, server_id).desired.generation > generation, "or its agent would not try again"
        await cloud.settle()
        assert (await show(demo, server_id))["status"] == "ACTIVE"
        assert await act(admin, server_id, os_resetState={"state": "error"}) == 202
        assert (await show(demo, server_id))["status"] == "ERROR"
        assert await act(admin, server_id, os_resetState={"state": "odd"}) == 400
        assert await act(admin, server_id, os_resetState={"state": "active"}) == 202
        assert (await show(demo, server_id))["status"] == "ACTIVE"


async def test_a_report_from_another_host_or_with_nothing_new_writes_nothing():
    async with world() as cloud:
        server_id = await make(cloud.client())
        await cloud.settle()
        agent = cloud.agents["node-1"]
        wish = next(iter(cloud.projection.objects_for("node-1"))).server
        revision = cloud.database.cache.revision
        await agent.report(wish)
        await agent.report(wish, step="looking around")
        crashed = ObservedServer(id=server_id, domain=ObservedServer.CRASHED)
        await cloud.database.transact(lambda tx: cloud.observer.observed_server(tx, "node-9", crashed))
        assert cloud.database.cache.revision == revision


async def test_another_project_sees_and_touches_nothing():
    async with world() as cloud:
        demo, other, admin = cloud.client(), cloud.client("other"), cloud.client("admin")
        server_id = await make(demo)
        assert (await other("GET", f"/servers/{server_id}")).status == 404
        assert (await other("DELETE", f"/servers/{server_id}")).status == 404
        assert await act(other, server_id, os_stop=None) == 404
        assert (await other("PUT", f"/servers/{server_id}/metadata", json_body={"metadata": {}})).status == 404
        assert (await other("GET", f"/servers/{server_id}/os-instance-actions")).status == 404
        assert (await other("GET", "/servers/detail")).json["servers"] == []
        assert (await other("GET", "/servers?all_tenants=True")).status == 403
        assert (await admin("GET", "/servers")).json["servers"] == []
        assert len((await admin("GET", "/servers?all_tenants=1")).json["servers"]) == 1
        assert (await cloud.client("reader")("DELETE", f"/servers/{server_id}")).status == 403


async def test_many_servers_in_one_request_take_as_many_as_the_quota_holds():
    async with world() as cloud:
        demo = cloud.client()
        first = await make(demo, min_count=1, max_count=20)
        servers = (await demo("GET", "/servers?sort_key=display_name&sort_dir=asc")).json["servers"]
        assert len(servers) == 10 and {server["name"] for server in servers} == {f"vm-{i}" for i in range(1, 11)}
        assert first in {server["id"] for server in servers}
        refused = await demo("POST", "/servers", json_body={"server": {
            "name": "one-more", "imageRef": "img", "flavorRef": "1", "networks": "none"}})
        assert refused.status == 403 and "instances: requested 1, already used 10 of 10" in refused.json["forbidden"]["message"]
        await cloud.settle()
        assert {server["status"] for server in (await demo("GET", "/servers/detail")).json["servers"]} == {"ACTIVE"}
        cloud.check()


async def test_a_large_request_is_made_in_portions_and_undone_whole_where_one_fails():
    async with world() as cloud:
        demo, admin = cloud.client(), cloud.client("admin")
        unlimited = {"quota_set": {"instances": -1, "cores": -1, "ram": -1}}
        assert (await admin("PUT", "/os-quota-sets/demo-project", json_body=unlimited)).status == 200
        reply = await demo("POST", "/servers", json_body={"server": {
            "name": "many", "imageRef": "img", "flavorRef": "1", "networks": "auto", "min_count": 45,
            "return_reservation_id": True}})
        assert reply.status == 202 and reply.json["reservation_id"].startswith("r-") and "server" not in reply.json
        assert len(cloud.database.cache.all(SERVER)) == 45
        cloud.check()
        refused = await demo("POST", "/servers", json_body={"server": {
            "name": "more", "imageRef": "img", "flavorRef": "1", "networks": "none", "min_count": 60,
            "user_data": "A" * 60000}})
        assert refused.status == 202, "user data is kept whole, so portions get smaller"
        assert len(cloud.database.cache.all(SERVER)) == 105
        failed = await demo("POST", "/servers", json_body={"server": {
            "name": "ports", "imageRef": "img", "flavorRef": "1", "networks": "auto", "min_count": 60}})
        assert failed.status == 403
        await cloud.settle()
        assert len(cloud.database.cache.all(SERVER)) == 105
        cloud.check()


async def test_names_are_regular_expressions_and_costly_ones_are_refused():
    async with world() as cloud:
        demo = cloud.client()
        for name in ("web-1", "web-2", "db"):
            await make(demo, name)

        async def names(query: str) -> list[str]:
            reply = await demo("GET", f"/servers?sort_key=display_name&sort_dir=asc&{query}")
            assert reply.status == 200, reply.body
            return [server["name"] for server in reply.json["servers"]]

        assert await names("name=^web") == ["web-1", "web-2"]
        assert await names("name=^db$") == ["db"]
        assert await names("name=nothing") == []
        assert await names("status=build&image=img&flavor=1") == ["db", "web-1", "web-2"]
        assert await names("status=ACTIVE") == []
        assert await names("ip=10.0.0.2") == ["web-1"]
        assert await names("nonsense=1") == ["db", "web-1", "web-2"]
        assert await names("deleted=True") == []
        assert await names("deleted=False&host=node-1") == ["db", "web-1", "web-2"], "only admins find by host"
        for costly in ("(a%2B)%2B$", "a*a*a*b", "(?=x)", "(", r"(a)\1"):
            assert (await demo("GET", f"/servers?name={costly}")).status == 400, costly


async def test_lists_come_in_pages():
    async with world() as cloud:
        demo = cloud.client()
        ids = [await make(demo, f"vm{i}") for i in range(5)]
        seen, target = [], "/servers?limit=2&sort_key=created_at&sort_dir=asc"
        while target:
            page = (await demo("GET", target)).json
            seen += [server["id"] for server in page["servers"]]
            link = next((link["href"] for link in page.get("servers_links", ()) if link["rel"] == "next"), "")
            target = link.replace("http://cloud.example:5000/compute/v2.1", "")
        assert seen == ids
        assert (await demo("GET", "/servers?marker=nowhere")).status == 400
        assert (await demo("GET", "/servers?limit=-1")).status == 400


async def test_an_admin_pages_through_everybodys_servers_newest_first():
    async with world() as cloud:
        demo, admin = cloud.client(), cloud.client("admin")
        ids = [await make(demo, f"vm{i}") for i in range(5)]
        gone = ids.pop(2)
        assert (await admin("GET", "/servers?all_tenants=1&limit=1")).status == 200
        assert (await demo("DELETE", f"/servers/{gone}")).status == 204
        await cloud.settle()
        for order in "", "&sort_key=created_at", "&sort_key=created_at&sort_dir=desc":
            first = (await admin("GET", f"/servers?all_tenants=1&limit=3{order}")).json
            assert [server["id"] for server in first["servers"]] == ids[:0:-1]
            marked = (await admin("GET", f"/servers?all_tenants=1&limit=3{order}&marker={ids[1]}")).json
            assert [server["id"] for server in marked["servers"]] == ids[:1] and "servers_links" not in marked
        named = (await admin("GET", "/servers?all_tenants=1&limit=1&name=vm[03]")).json
        assert [server["name"] for server in named["servers"]] == ["vm3"] and "vm%5B03%5D" in named["servers_links"][0]["href"]
        assert (await admin("GET", f"/servers?all_tenants=1&marker={gone}")).status == 400
        assert (await admin("GET", "/servers?all_tenants=1&limit=-1")).status == 400


async def test_bad_requests_say_what_is_wrong_and_make_nothing():
    async with world() as cloud:
        demo = cloud.client()
        good = {"name": "vm", "imageRef": "img", "flavorRef": "1", "networks": "none"}
        cases = [
            ({"name": ""}, "name"), ({"name": "x" * 256}, "name"), ({"imageRef": "gone"}, "gone"),
            ({"flavorRef": "gone"}, "Flavor"),
            ({"imageRef": "cd"}, "disk format iso"), ({"key_name": "gone"}, "key_name"), ({"networks": "some"}, "networks"),
            ({"networks": [{"uuid": "gone"}]}, "gone"), ({"networks": [{}]}, "networks[0]"),
            ({"networks": [{"nic": "x"}]}, "nic"),
            ({"networks": [{"port": "p", "fixed_ip": "10.0.0.9"}]}, "fixed_ip"), ({"user_data": "not base64!"}, "base64"),
            ({"user_data": "A" * 65536}, "65535"), ({"metadata": {"k": "v" * 256}}, "255"),
            ({"metadata": {"k": 1}}, "metadata.k"),
            ({"min_count": 0}, "min_count"), ({"min_count": 3, "max_count": 2}, "max_count"), ({"tags": ["a,b"]}, "tag"),
            ({"hostname": "-x"}, "host name"), ({"security_groups": [{"name": "gone"}], "networks": "auto"}, "security_group"),
            ({"availability_zone": "mars"}, "mars"), ({"personality": []}, "personality"), ({"surprise": 1}, "surprise"),
            ({"block_device_mapping_v2": [{"source_type": "volume", "uuid": "v"}]}, "volumes"),
            ({"OS-DCF:diskConfig": "SOME"}, "diskConfig"), ({"accessIPv4": "::1"}, "accessIPv4"),
        ]
        for change, text in cases:
            reply = await demo("POST", "/servers", json_body={"server": {**good, **change}})
            assert reply.status == 400 and text in reply.json["badRequest"]["message"], (change, reply.body)
        reply = await demo("POST", "/servers", json_body={"server": {**good, "availability_zone": "nova:node-1"}})
        assert reply.status == 403
        reply = await demo("POST", "/servers", json_body={"server": good, "os:scheduler_hints": {"group": "g"}})
        assert reply.status == 400 and "group" in reply.json["badRequest"]["message"]
        reply = await demo("POST", "/servers", json_body={"server": {**good, "metadata": {str(i): "" for i in range(129)}}})
        assert reply.status == 403
        assert not cloud.database.cache.all(SERVER)
        cloud.check()


async def test_what_hosts_get_holds_the_boot_image_and_the_guests_data():
    async with world() as cloud:
        demo = cloud.client()
        key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0bq4FJ1XkNtUeUVVc8XlnPpZb+LnfE5nH6vMKzZzZz me"
        assert (await demo("POST", "/os-keypairs", json_body={"keypair": {"name": "k", "public_key": key}})).status == 201
        await make(demo, "My VM 1", imageRef="split", key_name="k", user_data="aGVsbG8=", metadata={"role": "web"},
                   config_drive=True, networks=[{"uuid": "net-1"}, {"uuid": "net-2"}])
        await cloud.reconcile()
        wish = next(iter(cloud.projection.objects_for("node-1"))).server
        assert wish.image.disk_format == "raw" and wish.image.kernel.id == "kern" and wish.image.ramdisk.id == "rd"
        assert wish.image.kernel_arguments == "console=ttyS0" and wish.image.properties["hw_disk_bus"] == "virtio"
        assert len(wish.image.kernel.sha512) == 128
        guest = wish.guest
        assert (guest.hostname, guest.user_data, guest.metadata["role"], guest.keys[0].data) == ("my-vm-1", b"hello", "web", key)
        assert len(wish.port_ids) == 2 and wish.config_drive and guest.availability_zone == "nova"


async def test_locked_servers_are_changed_by_who_may_unlock_them_only():
    async with world() as cloud:
        demo, admin = cloud.client(), cloud.client("admin")
        server_id = await make(demo)
        await cloud.settle()
        assert await act(demo, server_id, lock={"locked_reason": "mine"}) == 202
        view = await show(demo, server_id)
        assert view["locked"] is True and view["locked_reason"] == "mine"
        assert await act(demo, server_id, os_stop=None) == 409
        assert (await demo("DELETE", f"/servers/{server_id}")).status == 409
        assert await act(demo, server_id, unlock=None) == 202
        assert await act(admin, server_id, lock=None) == 202
        assert await act(demo, server_id, unlock=None) == 403
        assert await act(admin, server_id, unlock=None) == 202
        assert await act(demo, server_id, os_stop=None) == 202


async def test_update_changes_what_is_named_and_nothing_else():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo, description="old")
        path = f"/servers/{server_id}"
        changed = (await demo("PUT", path, json_body={"server": {"name": "new"}})).json["server"]
        assert (changed["name"], changed["description"]) == ("new", "old")
        changed = (await demo("PUT", path, json_body={"server": {"description": None}})).json["server"]
        assert (changed["name"], changed["description"]) == ("new", None)
        changed = (await demo("PUT", path, json_body={"server": {"hostname": "host-1"}})).json["server"]
        assert changed["OS-EXT-SRV-ATTR:hostname"] == "host-1"
        assert (await cloud.client(microversion="2.18")("PUT", path, json_body={"server": {"description": "x"}})).status == 400


async def test_metadata_tags_and_addresses_have_paths_of_their_own():
    async with world() as cloud:
        demo = cloud.client()
        path = f"/servers/{await make(demo, metadata={'a': '1'})}"
        added = await demo("POST", f"{path}/metadata", json_body={"metadata": {"b": "2"}})
        assert added.json == {"metadata": {"a": "1", "b": "2"}}
        assert (await demo("PUT", f"{path}/metadata/c", json_body={"meta": {"c": "3"}})).json == {"meta": {"c": "3"}}
        assert (await demo("PUT", f"{path}/metadata/c", json_body={"meta": {"d": "3"}})).status == 400
        assert (await demo("GET", f"{path}/metadata/c")).json == {"meta": {"c": "3"}}
        assert (await demo("DELETE", f"{path}/metadata/c")).status == 204
        assert (await demo("DELETE", f"{path}/metadata/c")).status == 404
        assert (await demo("PUT", f"{path}/metadata", json_body={"metadata": {"z": "9"}})).json == {"metadata": {"z": "9"}}
        assert (await demo("PUT", f"{path}/tags/x")).status == 201
        assert (await demo("PUT", f"{path}/tags/x")).status == 204
        assert (await demo("GET", f"{path}/tags/x")).status == 204
        assert (await demo("PUT", f"{path}/tags", json_body={"tags": ["b", "a", "b"]})).json == {"tags": ["a", "b"]}
        assert (await demo("DELETE", f"{path}/tags/x")).status == 404
        assert (await demo("GET", "/servers?tags=a,b")).json["servers"]
        assert not (await demo("GET", "/servers?not-tags-any=a")).json["servers"]
        assert (await demo("DELETE", f"{path}/tags")).status == 204
        addresses = (await demo("GET", f"{path}/ips")).json["addresses"]
        assert addresses == {"net-1": [{"version": 4, "addr": "10.0.0.2"}]}
        assert (await demo("GET", f"{path}/ips/net-1")).json == addresses
        assert (await demo("GET", f"{path}/ips/net-9")).status == 404


async def test_interfaces_are_shown_with_their_ports():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo, networks=[{"uuid": "net-1"}, {"uuid": "net-2"}])
        rows = (await demo("GET", f"/servers/{server_id}/os-interface")).json["interfaceAttachments"]
        assert [row["net_id"] for row in rows] == ["net-1", "net-2"]
        assert rows[0] == {
            "port_id": f"{server_id}:0", "net_id": "net-1", "mac_addr": "fa:16:3e:00:00:00", "port_state": "ACTIVE", "tag": None,
            "fixed_ips": [{"subnet_id": "sub-1", "ip_address": "10.0.0.2"}]}
        second = await demo("GET", f"/servers/{server_id}/os-interface/{rows[1]['port_id']}")
        assert second.json == {"interfaceAttachment": rows[1]}
        assert (await demo("GET", f"/servers/{server_id}/os-interface/other")).status == 404
        assert (await demo("GET", f"/servers/{server_id}/os-security-groups")).json == {"security_groups": [{"name": "default"}]}
        assert (await demo("GET", f"/servers/{server_id}/os-volume_attachments")).json == {"volumeAttachments": []}


async def test_numbers_may_come_as_text():
    async with world() as cloud:
        await make(cloud.client(), min_count="2", max_count="2")
        assert len(cloud.database.cache.all(SERVER)) == 2


async def test_the_console_comes_from_the_host_and_says_when_it_cannot():
    async with world(hosts=2) as cloud:
        admin = cloud.client("admin")
        for zone in ("nova:node-1", "nova:node-2"):
            server_id = await make(admin, availability_zone=zone)
            path = f"/servers/{server_id}/action"
            assert (await admin("POST", path, json_body={"os-getConsoleOutput": {}})).status == 409
            await cloud.settle()
            reply = await admin("POST", path, json_body={"os-getConsoleOutput": {"length": "5"}})
            if zone == "nova:node-2":
                assert reply.status == 503
            else:
                assert reply.json["output"] == f"last 5 lines of {server_id}\N{REPLACEMENT CHARACTER}\n"
                assert (await admin("POST", path, json_body={"os-getConsoleOutput": None})).status == 200
                assert (await admin("POST", path, json_body={"os-getConsoleOutput": {"length": "x"}})).status == 400


async def test_deleting_a_host_lets_its_deleted_servers_go():
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        await cloud.settle()
        await demo("DELETE", f"/servers/{server_id}")
        await cloud.reconcile()
        assert cloud.database.get(SERVER, server_id), "its host may still have it"
        await cloud.database.transact(
            lambda tx: fleet.delete_host(tx, tx.require(fleet.HOST, "node-1"), leaving={server_id}))
        await cloud.reconcile()
        assert cloud.database.get(SERVER, server_id) is None
        cloud.check()


@pytest.mark.parametrize(("microversion", "has", "has_not"), [
    ("2.1", {"id", "links", "image", "flavor", "hostId", "OS-EXT-STS:task_state", "addresses"},
     {"locked", "description", "tags"}),
    ("2.46", {"locked", "description", "tags"}, {"server_groups", "locked_reason"}),
    ("2.96", {"server_groups", "locked_reason", "pinned_availability_zone", "trusted_image_certificates",
              "OS-EXT-SRV-ATTR:hostname"}, {"OS-EXT-SRV-ATTR:host", "host_status"}),
])
async def test_each_microversion_shows_its_own_fields(microversion, has, has_not):
    async with world() as cloud:
        server_id = await make(cloud.client())
        view = await show(cloud.client(microversion=microversion), server_id)
        assert has <= set(view) and not has_not & set(view)
        assert set(view["flavor"]) == ({"id", "links"} if microversion != "2.96" else {
            "original_name", "vcpus", "ram", "disk", "ephemeral", "swap", "extra_specs"})
        assert (await show(cloud.client("admin"), server_id))["OS-EXT-SRV-ATTR:instance_name"].startswith("instance-")


async def test_the_ids_of_a_request_come_to_the_host_that_carries_it_out():
    given = "req-11111111-2222-4333-8444-555555555555"
    async with world() as cloud:
        demo = cloud.client()
        server_id = await make(demo)
        await cloud.settle()
        reply = await demo("POST", f"/servers/{server_id}/action", json_body={"os-stop": None},
                           headers={"x-openstack-request-id": given})
        assert reply.status == 202
        own = reply.headers["x-openstack-request-id"]
        action = cloud.database.get(ACTION, server_id, own)
        assert action.global_request_id == given
        projection = Projection(cloud.database, cloud.ports)
        thing, = projection.objects_for("node-1")
        assert list(thing.server.request_ids) == [own, given] != [given]
        await cloud.settle()
        assert await act(demo, server_id, os_start=None) == 202
        thing, = projection.objects_for("node-1")
        assert len(thing.server.request_ids) == 1 and thing.server.request_ids[0] not in (own, given)
        bad = await demo("POST", f"/servers/{server_id}/action", json_body={"os-stop": None},
                         headers={"x-openstack-request-id": "req-nonsense\r\nx"})
        assert bad.status in (202, 409) and all("nonsense" not in each for each in cloud.database.get(
            SERVER, server_id).desired.request_ids)
