"""Routers and floating IPs: what leads where, what stands against what, and who wins a race."""

import asyncio
from typing import Any

from control.network.model import FLOATING_IP, PORT, ROUTER
from control.network.service import Reconciler
from tests.network.conftest import Cloud


async def routed(cloud: Cloud, cidr: str = "10.0.0.0/24") -> tuple[str, str, str]:
    """Ids of a router with a gateway, the network behind it, and its subnet."""
    network, subnet = await cloud.one.network(cidr)
    router = await cloud.one.create("router", name="r", external_gateway_info={"network_id": cloud.public})
    assert (await cloud.one.interface("add", router["id"], subnet_id=subnet)).status == 200
    return router["id"], network, subnet


async def test_a_router_gets_its_gateway_changes_it_and_loses_it(cloud: Cloud) -> None:
    router = await cloud.one.create("router", name="r", description="d")
    assert {
        key: router[key]
        for key in (
            "external_gateway_info",
            "routes",
            "ha",
            "distributed",
            "status",
            "admin_state_up",
            "flavor_id",
            "availability_zones",
            "tags",
        )
    } == {
        "external_gateway_info": None,
        "routes": [],
        "ha": False,
        "distributed": False,
        "status": "ACTIVE",
        "admin_state_up": True,
        "flavor_id": None,
        "availability_zones": [],
        "tags": [],
    }
    with_gateway = await cloud.one.update("router", router["id"], external_gateway_info={"network_id": cloud.public})
    info = with_gateway["external_gateway_info"]
    assert info["network_id"] == cloud.public and info["enable_snat"] is True
    assert info["external_fixed_ips"][0]["ip_address"].startswith("172.24.4.")
    quiet = await cloud.one.update(
        "router", router["id"], external_gateway_info={"network_id": cloud.public, "enable_snat": False}
    )
    assert quiet["external_gateway_info"] == {**info, "enable_snat": False}
    for gone in (None, {}):
        await cloud.one.update("router", router["id"], external_gateway_info={"network_id": cloud.public})
        assert (await cloud.one.update("router", router["id"], external_gateway_info=gone))["external_gateway_info"] is None
    network, _ = await cloud.one.network()
    for target, status in (("nowhere", 404), (network, 400)):
        reply = await cloud.one("PUT", f"/routers/{router['id']}", {"router": {"external_gateway_info": {"network_id": target}}})
        assert reply.status == status
    assert await cloud.one.delete("router", router["id"]) == 204
    assert await cloud.admin.ids(f"/ports?network_id={cloud.public}") == set()


async def test_interfaces_are_added_and_removed_and_never_overlap(cloud: Cloud) -> None:
    router = (await cloud.one.create("router", name="r"))["id"]
    network, subnet = await cloud.one.network()
    added = (await cloud.one.interface("add", router, subnet_id=subnet)).json
    assert {key: added[key] for key in ("id", "subnet_id", "network_id", "subnet_ids", "tenant_id")} == {
        "id": router,
        "subnet_id": subnet,
        "network_id": network,
        "subnet_ids": [subnet],
        "tenant_id": "one",
    }
    port = await cloud.one.show("port", added["port_id"])
    assert (port["device_owner"], port["device_id"], port["status"]) == ("network:router_interface", router, "ACTIVE")
    assert port["fixed_ips"] == [{"subnet_id": subnet, "ip_address": "10.0.0.1"}]
    assert (await cloud.one.interface("add", router, subnet_id=subnet)).status == 400
    _, twin = await cloud.one.network("10.0.0.0/16")
    assert (await cloud.one.interface("add", router, subnet_id=twin)).status == 400
    assert await cloud.one.delete("port", added["port_id"]) == 409
    assert await cloud.one.delete("router", router) == 409
    second, other = await cloud.one.network("10.2.0.0/24")
    own = await cloud.one.create("port", network_id=second, fixed_ips=[{"ip_address": "10.2.0.9"}])
    assert (await cloud.one.interface("add", router, port_id=own["id"])).json["subnet_ids"] == [other]
    assert (await cloud.one.interface("add", router, port_id=own["id"])).status == 409
    assert (await cloud.one.interface("add", router)).status == 400
    assert (await cloud.one.interface("remove", router, port_id=own["id"])).status == 200
    assert (await cloud.one("GET", f"/ports/{own['id']}")).status == 404
    assert (await cloud.one.interface("remove", router, subnet_id=subnet)).status == 200
    assert (await cloud.one.interface("remove", router, subnet_id=subnet)).status == 404
    assert await cloud.one.delete("router", router) == 204
    used = await cloud.one.used()
    assert "port" not in used and "router" not in used


async def test_overlapping_interfaces_added_at_the_same_time_do_not_both_win(any_cloud: Cloud) -> None:
    cloud = any_cloud
    router = (await cloud.one.create("router", name="r"))["id"]
    subnets = [(await cloud.one.network("10.0.0.0/24"))[1] for _ in range(4)]
    replies = await asyncio.gather(*(cloud.one.interface("add", router, subnet_id=subnet) for subnet in subnets))
    assert sorted(reply.status for reply in replies) == [200, 400, 400, 400]


async def test_routes_lead_through_what_is_connected(cloud: Cloud) -> None:
    router, _, subnet = await routed(cloud)
    route = {"destination": "10.99.0.0/24", "nexthop": "10.0.0.50"}
    assert (await cloud.one.update("router", router, routes=[route]))["routes"] == [route]
    for bad in (
        {"destination": "10.99.0.0/24", "nexthop": "10.7.0.1"},
        {"destination": "x", "nexthop": "10.0.0.50"},
        {"destination": "10.99.0.0/24", "nexthop": "10.0.0.1"},
    ):
        assert (await cloud.one("PUT", f"/routers/{router}", {"router": {"routes": [bad]}})).status == 400
    assert (await cloud.one.interface("remove", router, subnet_id=subnet)).status == 409
    more = {"destination": "10.98.0.0/24", "nexthop": "10.0.0.51"}
    added = await cloud.one("PUT", f"/routers/{router}/add_extraroutes", {"router": {"routes": [more, route]}})
    assert added.json["router"]["routes"] == [more, route]
    left = await cloud.one("PUT", f"/routers/{router}/remove_extraroutes", {"router": {"routes": [more]}})
    assert left.json["router"]["routes"] == [route]
    await cloud.one.update("router", router, routes=[])
    assert (await cloud.one.interface("remove", router, subnet_id=subnet)).status == 200


async def test_a_floating_ip_is_taken_led_moved_and_given_back(cloud: Cloud) -> None:
    router, network, subnet = await routed(cloud)
    ports = [await cloud.one.create("port", network_id=network, name=name) for name in "ab"]
    floating = await cloud.one.create("floatingip", floating_network_id=cloud.public)
    assert {
        key: floating[key]
        for key in (
            "status",
            "port_id",
            "fixed_ip_address",
            "router_id",
            "port_details",
            "tenant_id",
            "port_forwardings",
            "qos_policy_id",
        )
    } == {
        "status": "DOWN",
        "port_id": None,
        "fixed_ip_address": None,
        "router_id": None,
        "port_details": None,
        "tenant_id": "one",
        "port_forwardings": [],
        "qos_policy_id": None,
    }
    led = await cloud.one.update("floatingip", floating["id"], port_id=ports[0]["id"])
    assert (led["status"], led["router_id"], led["fixed_ip_address"]) == (
        "ACTIVE",
        router,
        ports[0]["fixed_ips"][0]["ip_address"],
    )
    assert led["port_details"]["name"] == "a"
    second = await cloud.one.try_create("floatingip", floating_network_id=cloud.public, port_id=ports[0]["id"])
    assert second.status == 409
    assert (await cloud.one.interface("remove", router, subnet_id=subnet)).status == 409
    assert (await cloud.one("PUT", f"/routers/{router}", {"router": {"external_gateway_info": None}})).status == 409
    moved = await cloud.one.update("floatingip", floating["id"], port_id=ports[1]["id"])
    assert moved["port_details"]["name"] == "b"
    assert await cloud.one.ids(f"/floatingips?port_id={ports[1]['id']}") == {floating["id"]}
    assert await cloud.one.delete("port", ports[1]["id"]) == 204
    free = await cloud.one.show("floatingip", floating["id"])
    assert (free["status"], free["port_id"], free["router_id"]) == ("DOWN", None, None)
    await cloud.one.update("floatingip", floating["id"], port_id=ports[0]["id"])
    assert (await cloud.one.update("floatingip", floating["id"], port_id=None))["status"] == "DOWN"
    assert await cloud.one.delete("floatingip", floating["id"]) == 204
    assert (await cloud.one.interface("remove", router, subnet_id=subnet)).status == 200
    assert (await cloud.one.used()).get("floatingip") is None


async def test_a_floating_ip_leads_only_where_a_router_does(cloud: Cloud) -> None:
    network, _ = await cloud.one.network()
    port = await cloud.one.create("port", network_id=network)
    reply = await cloud.one.try_create("floatingip", floating_network_id=cloud.public, port_id=port["id"])
    assert reply.status == 404 and "not reachable" in reply.json["NeutronError"]["message"]
    assert (await cloud.one.try_create("floatingip", floating_network_id=network)).status == 400
    assert (await cloud.one.try_create("floatingip", floating_network_id="nowhere")).status == 404
    assert (
        await cloud.one.try_create("floatingip", floating_network_id=cloud.public, floating_ip_address="172.24.4.50")
    ).status == 403
    chosen = await cloud.admin.create("floatingip", floating_network_id=cloud.public, floating_ip_address="172.24.4.50")
    assert chosen["floating_ip_address"] == "172.24.4.50"
    assert (
        await cloud.admin.try_create("floatingip", floating_network_id=cloud.public, floating_ip_address="172.24.4.50")
    ).status == 409
    assert (await cloud.admin("DELETE", f"/networks/{cloud.public}")).status == 409


async def test_whatever_races_with_a_floating_ip_leaves_no_end_loose(any_cloud: Cloud) -> None:
    cloud = any_cloud
    router, network, subnet = await routed(cloud)
    floating = await cloud.one.create("floatingip", floating_network_id=cloud.public)
    for _ in range(10):
        port = await cloud.one.create("port", network_id=network)
        replies = await asyncio.gather(
            cloud.one("PUT", f"/floatingips/{floating['id']}", {"floatingip": {"port_id": port["id"]}}),
            cloud.one("DELETE", f"/ports/{port['id']}"),
            cloud.one.interface("remove", router, subnet_id=subnet),
            cloud.one("PUT", f"/routers/{router}", {"router": {"external_gateway_info": None}}),
        )
        assert all(reply.status in (200, 204, 404, 409) for reply in replies), [reply.body for reply in replies]
        check_led(cloud)
        await cloud.one.update("router", router, external_gateway_info={"network_id": cloud.public})
        await cloud.one.interface("add", router, subnet_id=subnet)


def check_led(cloud: Cloud) -> None:
    """Each floating IP that leads somewhere leads through ports that are there."""
    for floating in cloud.database.cache.all(FLOATING_IP):
        named = [floating.holder_port_id]
        if floating.port_id:
            named += [floating.port_id, floating.interface_port_id, floating.gateway_port_id]
            assert cloud.database.get(ROUTER, floating.router_id) is not None
        assert all(cloud.database.get(PORT, port_id) is not None for port_id in named)


async def test_a_gateway_moves_when_its_host_is_lost_and_only_then(cloud: Cloud) -> None:
    router, _, _ = await routed(cloud)
    reconciler = Reconciler(cloud.database)

    async def settle() -> Any:
        await reconciler.reconcile(ROUTER.key(router))
        return cloud.database.require(ROUTER, router).gateway_host

    assert await settle() == "host-1"
    await cloud.host("host-1", up=False)
    assert await settle() == "host-1"
    await cloud.host("host-2")
    assert await settle() == "host-2"
    await cloud.host("host-1")
    assert await settle() == "host-2"
