"""What servers are made from and run on, over REST: flavors, key pairs, quotas, usage, hosts."""
import pytest
from cryptography.hazmat.primitives import serialization

from control.compute.service import bootstrap
from control.kernel import fleet
from tests.compute.fakes import make, world

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0bq4FJ1XkNtUeUVVc8XlnPpZb+LnfE5nH6vMKzZzZz"


async def test_flavors_are_made_shown_listed_and_deleted():
    async with world() as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        made = (await admin("POST", "/flavors", json_body={"flavor": {
            "name": "m1", "vcpus": 2, "ram": 1024, "disk": 0, "swap": "", "rxtx_factor": 1.0, "id": None,
            "OS-FLV-EXT-DATA:ephemeral": 0, "os-flavor-access:is_public": True, "description": "some"}})).json["flavor"]
        assert made["swap"] == 0 and made["description"] == "some" and made["extra_specs"] == {}
        assert made["links"][0]["href"].endswith(f"/flavors/{made['id']}") and len(made["id"]) == 36
        old = (await cloud.client(microversion="2.1")("GET", f"/flavors/{made['id']}")).json["flavor"]
        assert old["swap"] == "" and "extra_specs" not in old and "description" not in old
        for clash in ({"name": "m1"}, {"name": "m2", "id": made["id"]}):
            reply = await admin("POST", "/flavors", json_body={"flavor": {"vcpus": 1, "ram": 1, "disk": 1, **clash}})
            assert reply.status == 409 and "conflictingRequest" in reply.json
        for bad in ({"ram": 0}, {"vcpus": 0}, {"disk": -1}, {"swap": "x"}, {"name": ""}, {"id": " x "}, {"ram": 2**31},
                    {"ram": "big"}):
            reply = await admin("POST", "/flavors", json_body={"flavor": {
                "name": "bad", "vcpus": 1, "ram": 1, "disk": 1, **bad}})
            assert reply.status == 400, bad
        assert (await demo("POST", "/flavors", json_body={"flavor": {}})).status == 403
        assert (await demo("GET", "/flavors/m1")).status == 404
        names = [row["name"] for row in (await demo("GET", "/flavors/detail?is_public=None&sort_key=memory_mb")).json["flavors"]]
        assert names == ["small", "big", "m1"] or names == ["small", "m1", "big"]
        assert [row["name"] for row in (await demo("GET", "/flavors?minRam=600&sort_key=name")).json["flavors"]] == ["big", "m1"]
        page = (await demo("GET", "/flavors?limit=1")).json
        assert len(page["flavors"]) == 1 and page["flavors_links"][0]["rel"] == "next"
        assert (await admin("DELETE", f"/flavors/{made['id']}")).status == 202
        assert (await admin("DELETE", f"/flavors/{made['id']}")).status == 404


async def test_extra_specs_have_paths_of_their_own():
    async with world() as cloud:
        admin = cloud.client("admin")
        path = "/flavors/1/os-extra_specs"
        specs = {"extra_specs": {"hw:cpu_policy": "shared", "count": 3, "on": True}}
        assert (await admin("POST", path, json_body=specs)).json == {
            "extra_specs": {"hw:cpu_policy": "shared", "count": "3", "on": "True"}}
        assert (await admin("PUT", f"{path}/count", json_body={"count": "4"})).json == {"count": "4"}
        assert (await admin("PUT", f"{path}/count", json_body={"other": "4"})).status == 400
        assert (await admin("GET", f"{path}/count")).json == {"count": "4"}
        assert (await admin("DELETE", f"{path}/count")).status == 200
        assert (await admin("GET", f"{path}/count")).status == 404
        assert set((await cloud.client()("GET", path)).json["extra_specs"]) == {"hw:cpu_policy", "on"}


async def test_a_private_flavor_is_for_the_projects_that_were_given_it():
    async with world() as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        await admin("POST", "/flavors", json_body={"flavor": {
            "id": "private", "name": "private", "vcpus": 1, "ram": 64, "disk": 1, "os-flavor-access:is_public": False}})
        assert (await demo("GET", "/flavors/private")).status == 404
        give = {"addTenantAccess": {"tenant": "demo-project"}}
        assert (await admin("POST", "/flavors/private/action", json_body=give)).json == {
            "flavor_access": [{"flavor_id": "private", "tenant_id": "demo-project"}]}
        assert (await admin("POST", "/flavors/private/action", json_body=give)).status == 409
        assert (await demo("GET", "/flavors/private")).status == 200
        await make(demo, flavorRef="private")
        assert "private" in [row["id"] for row in (await admin("GET", "/flavors?is_public=False")).json["flavors"]]
        assert "private" not in [row["id"] for row in (await admin("GET", "/flavors")).json["flavors"]]
        take = {"removeTenantAccess": {"tenant": "demo-project"}}
        assert (await admin("POST", "/flavors/private/action", json_body=take)).json == {"flavor_access": []}
        assert (await demo("GET", "/flavors/private")).status == 404
        assert (await admin("GET", "/flavors/1/os-flavor-access")).status == 404


async def test_key_pairs_are_imported_made_and_their_users_own():
    async with world() as cloud:
        demo, other, old = cloud.client(), cloud.client("other"), cloud.client(microversion="2.1")
        reply = await demo("POST", "/os-keypairs", json_body={"keypair": {"name": "mine", "public_key": KEY}})
        assert reply.status == 201 and "private_key" not in reply.json["keypair"]
        assert len(reply.json["keypair"]["fingerprint"]) == 47
        made = await old("POST", "/os-keypairs", json_body={"keypair": {"name": "made"}})
        assert made.status == 200 and "type" not in made.json["keypair"]
        private = serialization.load_ssh_private_key(made.json["keypair"]["private_key"].encode(), None)
        public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
        assert made.json["keypair"]["public_key"].startswith(public)
        assert (await demo("POST", "/os-keypairs", json_body={"keypair": {"name": "none"}})).status == 400
        assert (await demo("POST", "/os-keypairs", json_body={"keypair": {"name": "mine", "public_key": KEY}})).status == 409
        for bad in ("ssh-rsa", "ssh-rsa !!!", "ssh-rsa AAAA", f"{KEY}\n{KEY}", "x" * 20000):
            reply = await demo("POST", "/os-keypairs", json_body={"keypair": {"name": "bad", "public_key": bad}})
            assert reply.status == 400, bad
        rows = (await demo("GET", "/os-keypairs")).json["keypairs"]
        assert [row["keypair"]["name"] for row in rows] == ["made", "mine"] and rows[0]["keypair"]["type"] == "ssh"
        shown = (await demo("GET", "/os-keypairs/mine")).json["keypair"]
        assert shown["user_id"] == "demo-user" and shown["deleted"] is False and shown["deleted_at"] is None
        assert (await other("GET", "/os-keypairs")).json["keypairs"] == []
        assert (await other("DELETE", "/os-keypairs/mine")).status == 404
        assert (await other("GET", "/os-keypairs?user_id=demo-user")).status == 403
        theirs = (await cloud.client("admin")("GET", "/os-keypairs?user_id=demo-user")).json["keypairs"]
        assert len(theirs) == 2
        assert (await old("DELETE", "/os-keypairs/made")).status == 202
        assert (await demo("DELETE", "/os-keypairs/mine")).status == 204


async def test_key_pairs_have_a_quota_of_each_user():
    async with world() as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        await admin("PUT", "/os-quota-sets/demo-project", json_body={"quota_set": {"key_pairs": 1}})
        for name, status in (("a", 201), ("b", 403)):
            reply = await demo("POST", "/os-keypairs", json_body={"keypair": {"name": name, "public_key": KEY}})
            assert reply.status == status
        assert (await demo("DELETE", "/os-keypairs/a")).status == 204
        assert (await demo("POST", "/os-keypairs", json_body={"keypair": {"name": "b", "public_key": KEY}})).status == 201


async def test_quotas_are_shown_set_within_reason_and_taken_back():
    async with world() as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        path = "/os-quota-sets/demo-project"
        assert (await demo("GET", path)).json["quota_set"]["instances"] == 10
        assert (await cloud.client("other")("GET", path)).status == 403
        assert (await demo("PUT", path, json_body={"quota_set": {"instances": 11}})).status == 403
        await make(demo, min_count=3)
        assert (await admin("PUT", path, json_body={"quota_set": {"instances": 2}})).status == 400
        assert (await admin("PUT", path, json_body={"quota_set": {"instances": -2}})).status == 400
        forced = await admin("PUT", path, json_body={"quota_set": {"instances": 2, "force": True}})
        assert forced.json["quota_set"]["instances"] == 2
        detail = (await demo("GET", f"{path}/detail")).json["quota_set"]
        assert detail["instances"] == {"limit": 2, "in_use": 3, "reserved": 0} and detail["ram"]["in_use"] == 1536
        assert (await demo("GET", f"{path}/defaults")).json["quota_set"]["instances"] == 10
        assert (await demo("GET", "/os-quota-class-sets/default")).json["quota_class_set"]["cores"] == 20
        limits = (await demo("GET", "/limits")).json["limits"]
        assert limits["rate"] == []
        assert (limits["absolute"]["maxTotalInstances"], limits["absolute"]["totalRAMUsed"]) == (2, 1536)
        assert "maxTotalFloatingIps" not in limits["absolute"]
        assert "fixed_ips" in (await cloud.client(microversion="2.1")("GET", path)).json["quota_set"]
        assert (await admin("DELETE", path)).status == 202
        assert (await demo("GET", path)).json["quota_set"]["instances"] == 10


async def test_usage_sums_what_the_servers_of_a_project_had():
    async with world() as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        await make(demo, min_count=2)
        rows = (await admin("GET", "/os-simple-tenant-usage?detailed=1")).json["tenant_usages"]
        assert [row["tenant_id"] for row in rows] == ["demo-project"] and len(rows[0]["server_usages"]) == 2
        mine = (await demo("GET", "/os-simple-tenant-usage/demo-project")).json["tenant_usage"]
        assert mine["server_usages"][0]["memory_mb"] == 512 and mine["server_usages"][0]["ended_at"] is None
        assert (await demo("GET", "/os-simple-tenant-usage")).status == 403
        assert (await demo("GET", "/os-simple-tenant-usage/other-project")).status == 403
        assert (await admin("GET", "/os-simple-tenant-usage?start=2030-01-02T00:00:00&end=2030-01-01T00:00:00")).status == 400


async def test_the_operators_own_project_has_no_limits_and_keeps_what_it_is_given():
    async with world() as cloud:
        admin = cloud.client("admin")
        await bootstrap(cloud.database, "admin-project")
        assert (await admin("GET", "/os-quota-sets/admin-project")).json["quota_set"]["ram"] == -1
        await admin("PUT", "/os-quota-sets/admin-project", json_body={"quota_set": {"ram": 4096}})
        await bootstrap(cloud.database, "admin-project")
        assert (await admin("GET", "/os-quota-sets/admin-project")).json["quota_set"]["ram"] == 4096


async def test_a_host_that_is_gone_for_good_is_forgotten_with_its_deleted_servers():
    async with world() as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        server_id = await make(demo)
        await cloud.settle()
        service = (await admin("GET", "/os-services?binary=nova-compute")).json["services"][0]["id"]
        assert (await admin("DELETE", f"/os-services/{service}")).status == 409

        def down(tx):
            host = tx.require(fleet.HOST, "node-1")
            host.up = False
            tx.put(fleet.HOST, host)

        await cloud.database.transact(down)
        assert (await admin("DELETE", f"/os-services/{service}")).status == 409
        assert (await demo("DELETE", f"/servers/{server_id}")).status == 204
        assert (await demo("GET", f"/servers/{server_id}")).json["server"]["OS-EXT-STS:task_state"] == "waiting-for-host"
        assert (await admin("DELETE", f"/os-services/{service}")).status == 204
        await cloud.reconcile()
        assert (await demo("GET", f"/servers/{server_id}")).status == 404
        cloud.check()


async def test_hosts_are_zones_hypervisors_and_services():
    async with world() as cloud:
        admin, demo = cloud.client("admin"), cloud.client()
        server_id = await make(demo)
        await cloud.settle()
        zones = (await demo("GET", "/os-availability-zone")).json["availabilityZoneInfo"]
        assert zones == [{"zoneName": "nova", "zoneState": {"available": True}, "hosts": None}]
        detail = (await admin("GET", "/os-availability-zone/detail")).json["availabilityZoneInfo"]
        assert detail[0]["hosts"]["node-1"]["nova-compute"]["active"] is True
        assert (await demo("GET", "/os-hypervisors")).status == 403
        row = (await admin("GET", "/os-hypervisors")).json["hypervisors"][0]
        assert (row["hypervisor_hostname"], row["state"], row["status"]) == ("node-1", "up", "enabled") and len(row["id"]) == 36
        shown = (await admin("GET", f"/os-hypervisors/{row['id']}?with_servers=True")).json["hypervisor"]
        assert shown["servers"] == [{"uuid": server_id, "name": "vm"}] and "vcpus" not in shown and shown["uptime"] is None
        old = cloud.client("admin", "2.1")
        first = (await old("GET", "/os-hypervisors/detail")).json["hypervisors"][0]
        assert isinstance(first["id"], int) and (first["vcpus"], first["vcpus_used"], first["memory_mb_used"]) == (8, 1, 512)
        assert isinstance(first["cpu_info"], str)
        assert (await old("GET", f"/os-hypervisors/{first['id']}")).status == 200
        assert (await old("GET", "/os-hypervisors/statistics")).json["hypervisor_statistics"]["running_vms"] == 1
        assert (await admin("GET", "/os-hypervisors?hypervisor_hostname_pattern=nope")).status == 404
        assert (await admin("GET", "/os-aggregates")).json == {"aggregates": []}
        assert (await demo("GET", "/extensions")).json == {"extensions": []}


@pytest.mark.parametrize("microversion", ["2.1", "2.96"])
async def test_a_disabled_host_takes_no_new_servers(microversion):
    async with world() as cloud:
        admin, demo = cloud.client("admin", microversion), cloud.client()
        services = (await admin("GET", "/os-services")).json["services"]
        assert [service["binary"] for service in services] == ["nova-conductor", "nova-scheduler", "nova-compute"]
        own, compute = services[0], services[2]
        if microversion == "2.1":
            reply = await admin("PUT", "/os-services/disable-log-reason", json_body={
                "host": "node-1", "binary": "nova-compute", "disabled_reason": "repair"})
            assert reply.json["service"]["status"] == "disabled"
        else:
            path = f"/os-services/{compute['id']}"
            assert (await admin("PUT", f"/os-services/{own['id']}", json_body={"status": "disabled"})).status == 400
            assert (await admin("PUT", path, json_body={"status": "enabled", "disabled_reason": "x"})).status == 400
            reply = await admin("PUT", path, json_body={"status": "disabled", "disabled_reason": "repair"})
            assert reply.json["service"]["disabled_reason"] == "repair"
        assert cloud.database.require(fleet.HOST, "node-1").disabled
        only = (await admin("GET", "/os-services?binary=nova-compute&host=node-1")).json["services"]
        assert len(only) == 1 and only[0]["status"] == "disabled"
        await make(demo)
        assert (await demo("GET", "/os-availability-zone")).json["availabilityZoneInfo"][0]["zoneState"] == {
            "available": False}
        await cloud.reconcile()
        if microversion == "2.1":
            await admin("PUT", "/os-services/enable", json_body={"host": "node-1", "binary": "nova-compute"})
        else:
            await admin("PUT", path, json_body={"status": "enabled"})
        await cloud.settle()
        assert [row["status"] for row in (await demo("GET", "/servers/detail")).json["servers"]] == ["ACTIVE"]
