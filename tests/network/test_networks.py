"""Networks and subnets over REST: what clients see, what is refused, and what a deletion leaves."""

import asyncio

from tests.network.conftest import Cloud


async def test_a_network_has_every_attribute_that_clients_expect(cloud: Cloud) -> None:
    network = await cloud.one.create("network", name="n", description="d")
    assert {
        key: network[key]
        for key in (
            "name",
            "description",
            "status",
            "admin_state_up",
            "shared",
            "router:external",
            "mtu",
            "subnets",
            "tags",
            "availability_zone_hints",
            "ipv4_address_scope",
            "project_id",
            "tenant_id",
            "port_security_enabled",
            "revision_number",
        )
    } == {
        "name": "n",
        "description": "d",
        "status": "ACTIVE",
        "admin_state_up": True,
        "shared": False,
        "router:external": False,
        "mtu": 1450,
        "subnets": [],
        "tags": [],
        "availability_zone_hints": [],
        "ipv4_address_scope": None,
        "project_id": "one",
        "tenant_id": "one",
        "port_security_enabled": True,
        "revision_number": 1,
    }
    assert network["created_at"].endswith("Z")
    assert not any(key.startswith("provider:") for key in network)
    seen_by_admin = await cloud.admin.show("network", network["id"])
    assert seen_by_admin["provider:network_type"] == "vxlan"
    assert seen_by_admin["provider:segmentation_id"] > 0


async def test_each_network_has_a_vni_of_its_own_which_its_deletion_gives_back(cloud: Cloud) -> None:
    ids = [(await cloud.one.create("network", name=str(n)))["id"] for n in range(4)]
    vnis = {(await cloud.admin.show("network", each))["provider:segmentation_id"] for each in ids}
    assert len(vnis) == 4
    vni = (await cloud.admin.show("network", ids[0]))["provider:segmentation_id"]
    fields = {"name": "wish", "provider:network_type": "vxlan", "provider:segmentation_id": vni}
    assert (await cloud.admin.try_create("network", **fields)).status == 409
    assert await cloud.one.delete("network", ids[0]) == 204
    assert (await cloud.admin.create("network", **fields))["provider:segmentation_id"] == vni


async def test_only_an_admin_makes_networks_shared_or_external(cloud: Cloud) -> None:
    for fields in ({"shared": True}, {"router:external": True}, {"provider:segmentation_id": 7}, {"project_id": "two"}):
        assert (await cloud.one.try_create("network", name="n", **fields)).status == 403
    shared = await cloud.admin.create("network", name="s", shared=True)
    assert shared["id"] in await cloud.one.ids("/networks")
    assert (await cloud.one("PUT", f"/networks/{shared['id']}", {"network": {"name": "mine"}})).status == 403
    assert (await cloud.one.show("network", cloud.public))["router:external"] is True


async def test_a_project_sees_nothing_of_another(cloud: Cloud) -> None:
    network, subnet = await cloud.one.network()
    port = await cloud.one.create("port", network_id=network)
    router = await cloud.one.create("router", name="r")
    group = await cloud.one.create("security_group", name="g")
    floating = await cloud.one.create("floatingip", floating_network_id=cloud.public)
    for noun, identifier in (
        ("network", network),
        ("subnet", subnet),
        ("port", port["id"]),
        ("router", router["id"]),
        ("security_group", group["id"]),
        ("floatingip", floating["id"]),
    ):
        path = {"security_group": "security-groups"}.get(noun, noun + "s")
        assert (await cloud.two("GET", f"/{path}/{identifier}")).status == 404
        assert (await cloud.two("PUT", f"/{path}/{identifier}", {noun: {"description": "x"}})).status == 404
        assert await cloud.two.delete(noun, identifier) == 404
        assert identifier not in await cloud.two.ids(f"/{path}")
        assert identifier in await cloud.admin.ids(f"/{path}")
    assert (await cloud.two.try_create("subnet", network_id=network, cidr="10.9.0.0/24", ip_version=4)).status == 404
    assert (await cloud.two.try_create("port", network_id=network)).status == 404
    assert (await cloud.two.interface("add", router["id"], subnet_id=subnet)).status == 404
    assert (await cloud.two.try_create("floatingip", floating_network_id=cloud.public, port_id=port["id"])).status == 404
    assert (await cloud.two.try_create("security_group_rule", security_group_id=group["id"], direction="ingress")).status == 404


async def test_two_projects_use_the_same_prefix_and_one_network_does_not_use_it_twice(cloud: Cloud) -> None:
    network, _ = await cloud.one.network("10.0.0.0/24")
    await cloud.two.network("10.0.0.0/24")
    for cidr in ("10.0.0.0/24", "10.0.0.128/25", "10.0.0.0/16"):
        reply = await cloud.one.try_create("subnet", network_id=network, cidr=cidr, ip_version=4)
        assert reply.status == 400 and "overlaps" in reply.json["NeutronError"]["message"]
    await cloud.one.create("subnet", network_id=network, cidr="10.0.1.0/24", ip_version=4)
    await cloud.one.create("subnet", network_id=network, cidr="fd00:1::/64", ip_version=6)


async def test_a_subnet_has_its_gateway_pools_and_dhcp_by_default(cloud: Cloud) -> None:
    network, subnet = await cloud.one.network("10.0.0.0/24")
    shown = await cloud.one.show("subnet", subnet)
    assert {
        key: shown[key]
        for key in (
            "gateway_ip",
            "allocation_pools",
            "enable_dhcp",
            "dns_nameservers",
            "host_routes",
            "ipv6_ra_mode",
            "ip_version",
            "subnetpool_id",
            "service_types",
        )
    } == {
        "gateway_ip": "10.0.0.1",
        "allocation_pools": [{"start": "10.0.0.2", "end": "10.0.0.254"}],
        "enable_dhcp": True,
        "dns_nameservers": [],
        "host_routes": [],
        "ipv6_ra_mode": None,
        "ip_version": 4,
        "subnetpool_id": None,
        "service_types": [],
    }
    ports = (await cloud.one.get(f"/ports?network_id={network}&device_owner=network:dhcp"))["ports"]
    assert [port["fixed_ips"] for port in ports] == [[{"subnet_id": subnet, "ip_address": "10.0.0.2"}]]
    assert ports[0]["status"] == "ACTIVE"
    assert await cloud.one.delete("port", ports[0]["id"]) == 409
    await cloud.one.create("subnet", network_id=network, ip_version=4, cidr="10.0.1.0/24", gateway_ip=None, enable_dhcp=False)
    none = await cloud.one.create("subnet", network_id=network, ip_version=4, cidr="10.0.2.0/24", gateway_ip=None)
    assert none["gateway_ip"] is None
    assert none["allocation_pools"] == [{"start": "10.0.2.1", "end": "10.0.2.254"}]


async def test_dhcp_is_turned_off_and_on_again(cloud: Cloud) -> None:
    network, subnet = await cloud.one.network("10.0.0.0/29")
    assert len((await cloud.one.get("/ports?device_owner=network:dhcp"))["ports"]) == 1
    assert (await cloud.one.update("subnet", subnet, enable_dhcp=False))["enable_dhcp"] is False
    assert (await cloud.one.get("/ports?device_owner=network:dhcp"))["ports"] == []
    ports = [await cloud.one.create("port", network_id=network) for _ in range(5)]
    reply = await cloud.one("PUT", f"/subnets/{subnet}", {"subnet": {"enable_dhcp": True}})
    assert reply.status == 409 and "No more IP addresses" in reply.json["NeutronError"]["message"]
    await cloud.one.delete("port", ports[2]["id"])
    await cloud.one.update("subnet", subnet, enable_dhcp=True)
    dhcp = (await cloud.one.get("/ports?device_owner=network:dhcp"))["ports"][0]
    assert dhcp["fixed_ips"] == ports[2]["fixed_ips"]


async def test_a_subnet_is_changed_where_that_hurts_nobody(cloud: Cloud) -> None:
    network, _ = await cloud.one.network()
    subnet = await cloud.one.create(
        "subnet",
        network_id=network,
        ip_version=4,
        cidr="10.1.0.0/24",
        allocation_pools=[{"start": "10.1.0.10", "end": "10.1.0.20"}],
    )
    changed = await cloud.one.update(
        "subnet",
        subnet["id"],
        gateway_ip="10.1.0.2",
        dns_nameservers=["9.9.9.9", "1.1.1.1"],
        host_routes=[{"destination": "10.9.0.0/16", "nexthop": "10.1.0.9"}],
        name="new",
    )
    assert changed["gateway_ip"] == "10.1.0.2"
    assert changed["dns_nameservers"] == ["9.9.9.9", "1.1.1.1"]
    assert changed["host_routes"] == [{"destination": "10.9.0.0/16", "nexthop": "10.1.0.9"}]
    assert changed["name"] == "new"
    assert (await cloud.one.update("subnet", subnet["id"], gateway_ip=None))["gateway_ip"] is None
    assert (await cloud.one("PUT", f"/subnets/{subnet['id']}", {"subnet": {"gateway_ip": "10.1.0.12"}})).status == 409
    await cloud.one.create("port", network_id=network, fixed_ips=[{"ip_address": "10.1.0.5"}])
    assert (await cloud.one("PUT", f"/subnets/{subnet['id']}", {"subnet": {"gateway_ip": "10.1.0.5"}})).status == 409
    assert (await cloud.one("PUT", f"/subnets/{subnet['id']}", {"subnet": {"cidr": "10.2.0.0/24"}})).status == 400


async def test_bad_subnets_are_refused_with_the_reason(cloud: Cloud) -> None:
    network = (await cloud.one.create("network", name="n"))["id"]
    for fields, reason in (
        ({"cidr": "10.0.0.5/24"}, "10.0.0.0/24"),
        ({"cidr": "nonsense"}, "not a valid IP subnet"),
        ({"cidr": "10.0.0.0/31"}, "no room"),
        ({"cidr": "127.0.0.0/24"}, "not for hosts"),
        ({"cidr": "224.0.0.0/24"}, "not for hosts"),
        ({"cidr": "0.0.0.0/0"}, "not for hosts"),
        ({"cidr": "10.0.0.0/24", "ip_version": 6}, "do not agree"),
        ({"cidr": "10.0.0.0/24", "gateway_ip": "10.0.1.1"}, "Gateway"),
        ({"cidr": "10.0.0.0/24", "gateway_ip": "10.0.0.255"}, "Gateway"),
        ({"cidr": "10.0.0.0/24", "allocation_pools": [{"start": "10.0.1.1", "end": "10.0.1.9"}]}, "spans beyond"),
        ({"cidr": "10.0.0.0/24", "allocation_pools": [{"start": "10.0.0.9", "end": "10.0.0.2"}]}, "not valid"),
        ({"cidr": "10.0.0.0/24", "dns_nameservers": ["x"]}, "dns_nameservers"),
        ({"cidr": "10.0.0.0/24", "host_routes": [{"destination": "x", "nexthop": "10.0.0.1"}]}, "host_routes"),
        ({"cidr": "10.0.0.0/24", "ipv6_ra_mode": "slaac"}, "ipv6_ra_mode"),
        ({"cidr": "10.0.0.0/24", "id": "x"}, "not allowed"),
        ({"cidr": "10.0.0.0/24", "subnetpool_id": "x"}, "subnetpool_id"),
    ):
        reply = await cloud.one.try_create("subnet", **{"network_id": network, "ip_version": 4, **fields})
        assert reply.status == 400, (fields, reply.body)
        assert reason in reply.json["NeutronError"]["message"], reply.body
    assert (await cloud.one.show("network", network))["subnets"] == []


async def test_a_network_in_use_stays_and_an_unused_one_goes_with_all_that_is_its_own(cloud: Cloud) -> None:
    before = await cloud.one.used()
    network, subnet = await cloud.one.network()
    port = await cloud.one.create("port", network_id=network)
    reply = await cloud.one("DELETE", f"/networks/{network}")
    assert reply.status == 409 and "ports still in use" in reply.json["NeutronError"]["message"]
    assert await cloud.one.delete("subnet", subnet) == 409
    assert await cloud.one.delete("port", port["id"]) == 204
    assert await cloud.one.delete("network", network) == 204
    assert (await cloud.one("GET", f"/subnets/{subnet}")).status == 404
    assert await cloud.one.ids("/ports") == set()
    assert {key: value for key, value in (await cloud.one.used()).items() if not key.startswith("security")} == before
    left = [
        record.key for record in (await cloud.database.store.scan("/network/"))[0] if network in record.value.decode("latin-1")
    ]
    assert left == []


async def test_lists_are_filtered_sorted_and_paged(cloud: Cloud) -> None:
    for name in ("c", "a", "b"):
        await cloud.one.create("network", name=name, admin_state_up=name != "b", tags=["t", name])
    names = [
        each["name"]
        for each in (await cloud.one.get("/networks?sort_key=name&sort_dir=desc&shared=False"))["networks"]
        if each["name"] != "public"
    ]
    assert names == ["c", "b", "a"]
    page = await cloud.one.get("/networks?limit=2&sort_key=name")
    assert [each["name"] for each in page["networks"]] == ["a", "b"]
    assert page["networks_links"][0]["rel"] == "next"
    rest = await cloud.one.get(f"/networks?limit=2&sort_key=name&marker={page['networks'][-1]['id']}")
    assert [each["name"] for each in rest["networks"]] == ["c", "public"]
    assert [each["name"] for each in (await cloud.one.get("/networks?admin_state_up=false"))["networks"]] == ["b"]
    assert [each["name"] for each in (await cloud.one.get("/networks?router:external=True"))["networks"]] == ["public"]
    assert [each["name"] for each in (await cloud.one.get("/networks?tags=t,a"))["networks"]] == ["a"]
    assert [each["name"] for each in (await cloud.one.get("/networks?name=a&name=c&sort_key=name&fields=name"))["networks"]] == [
        "a",
        "c",
    ]


async def test_labels_are_added_replaced_and_taken_off(cloud: Cloud) -> None:
    network = (await cloud.one.create("network", name="n"))["id"]
    assert (await cloud.one("PUT", f"/networks/{network}/tags/red")).status == 201
    assert (await cloud.one("PUT", f"/networks/{network}/tags", {"tags": ["blue", "green"]})).json == {"tags": ["blue", "green"]}
    assert (await cloud.one("GET", f"/networks/{network}/tags/blue")).status == 204
    assert (await cloud.one("GET", f"/networks/{network}/tags/red")).status == 404
    assert (await cloud.one("DELETE", f"/networks/{network}/tags/blue")).status == 204
    assert (await cloud.one.show("network", network))["tags"] == ["green"]
    assert (await cloud.one("DELETE", f"/networks/{network}/tags")).status == 204
    assert (await cloud.one.get(f"/networks/{network}/tags")) == {"tags": []}
    assert (await cloud.two("PUT", f"/networks/{network}/tags/red")).status == 404
    assert (await cloud.two("PUT", f"/networks/{cloud.public}/tags/red")).status == 403


async def test_quotas_refuse_what_is_over_them_and_say_what_is_used(cloud: Cloud) -> None:
    assert (await cloud.one("PUT", "/quotas/one", {"quota": {"network": 1}})).status == 403
    reply = await cloud.admin("PUT", "/quotas/one", {"quota": {"network": 1, "port": 1}})
    assert reply.status == 200 and reply.json["quota"]["network"] == 1 and reply.json["quota"]["subnet"] == 100
    network, _ = await cloud.one.network()
    over = await cloud.one.try_create("network", name="more")
    assert over.status == 409 and over.json["NeutronError"]["type"] == "OverQuota"
    await cloud.one.create("port", network_id=network)
    assert (await cloud.one.try_create("port", network_id=network)).status == 409
    assert (await cloud.one.used()) == {"network": 1, "subnet": 1, "port": 1, "security_group": 1, "security_group_rule": 4}
    checked = await cloud.admin("PUT", "/quotas/one", {"quota": {"port": 0, "check_limit": True}})
    assert checked.status == 409
    assert [quota["project_id"] for quota in (await cloud.admin.get("/quotas"))["quotas"]] == ["one"]
    assert (await cloud.two("GET", "/quotas/one")).status == 404
    assert (await cloud.admin("DELETE", "/quotas/one")).status == 204
    assert (await cloud.one.get("/quotas/one"))["quota"]["network"] == 100
    assert (await cloud.one.get("/quotas/one/default"))["quota"]["router"] == 10


async def test_what_clients_ask_about_the_cloud_is_answered(cloud: Cloud) -> None:
    aliases = {each["alias"] for each in (await cloud.one.get("/extensions"))["extensions"]}
    assert {"router", "external-net", "security-group", "quotas", "net-mtu", "port-security"} <= aliases
    assert (await cloud.one.get("/extensions/router"))["extension"]["alias"] == "router"
    assert (await cloud.one("GET", "/extensions/bgp")).status == 404
    agents = (await cloud.admin.get("/agents"))["agents"]
    assert [(agent["host"], agent["alive"]) for agent in agents] == [("host-1", True)]
    assert (await cloud.one("GET", "/agents")).status == 403
    zones = (await cloud.one.get("/availability_zones"))["availability_zones"]
    assert {"name": "nova", "resource": "network", "state": "available"} in zones
    network, _ = await cloud.one.network()
    fill = (await cloud.admin.get(f"/network-ip-availabilities/{network}"))["network_ip_availability"]
    assert (fill["total_ips"], fill["used_ips"]) == (253, 1)


async def test_the_automatic_topology_is_made_once_and_goes_when_unused(cloud: Cloud) -> None:
    assert (await cloud.one("GET", "/auto-allocated-topology/None?fields=dry-run")).status == 200
    assert await cloud.one.ids("/routers") == set()
    made = (await cloud.one.get("/auto-allocated-topology/one"))["auto_allocated_topology"]
    assert made == (await cloud.one.get("/auto-allocated-topology/one"))["auto_allocated_topology"]
    assert made["id"] in await cloud.one.ids("/networks")
    assert (await cloud.two("GET", "/auto-allocated-topology/one")).status == 404
    port = await cloud.one.create("port", network_id=made["id"])
    assert (await cloud.one("DELETE", "/auto-allocated-topology/one")).status == 409
    await cloud.one.delete("port", port["id"])
    assert (await cloud.one("DELETE", "/auto-allocated-topology/one")).status == 204
    assert made["id"] not in await cloud.one.ids("/networks")
    assert await cloud.one.ids("/routers") == set()


async def test_a_request_without_its_resource_is_refused(cloud: Cloud) -> None:
    network, subnet = await cloud.one.network()
    for path in ("networks", "subnets", "ports", "routers", "floatingips", "security-groups", "security-group-rules"):
        reply = await cloud.one("POST", f"/{path}", {})
        assert reply.status == 400 and "must have the key" in reply.json["NeutronError"]["message"], reply.body
    assert (await cloud.one("PUT", f"/networks/{network}", {})).status == 400
    assert (await cloud.one("PUT", f"/subnets/{subnet}", {})).status == 400


async def test_a_body_that_is_null_is_refused_and_not_waited_for(cloud: Cloud) -> None:
    async with asyncio.timeout(5):
        reply = await cloud.one._client("POST", "/network/v2.0/networks", body=b"null")
    assert reply.status == 400
