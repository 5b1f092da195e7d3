"""Several resources in one call: all or none."""

from control.network.model import MAX_BATCH
from tests.network.conftest import Cloud


async def test_several_networks_subnets_and_ports_are_made_in_the_order_of_the_call(cloud: Cloud) -> None:
    reply = await cloud.one("POST", "/networks", {"networks": [{"name": "a"}, {"name": "b", "mtu": 1300}]})
    assert reply.status == 201
    first, second = reply.json["networks"]
    assert (first["name"], second["name"], second["mtu"]) == ("a", "b", 1300)
    reply = await cloud.one("POST", "/subnets", {"subnets": [
        {"network_id": first["id"], "ip_version": 4, "cidr": "10.0.0.0/24", "gateway_ip": None},
        {"network_id": second["id"], "ip_version": 4, "cidr": "10.0.1.0/24"}]})
    assert reply.status == 201
    assert [subnet["gateway_ip"] for subnet in reply.json["subnets"]] == [None, "10.0.1.1"]
    names = [f"p{n}" for n in range(MAX_BATCH)]
    reply = await cloud.one("POST", "/ports", {"ports": [{"network_id": second["id"], "name": name} for name in names]})
    assert reply.status == 201
    ports = reply.json["ports"]
    assert [port["name"] for port in ports] == names
    assert len({port["fixed_ips"][0]["ip_address"] for port in ports}) == MAX_BATCH
    assert len({port["mac_address"] for port in ports}) == MAX_BATCH
    assert {port["id"] for port in (await cloud.one.get(f"/ports?network_id={second['id']}"))["ports"]} >= {
        port["id"] for port in ports}


async def test_one_wrong_request_makes_none_and_says_where_it_is_wrong(cloud: Cloud) -> None:
    network, _ = await cloud.one.network()
    before = (await cloud.one.get("/ports"))["ports"]
    for wrong in ({"network_id": network, "fixed_ips": [{"ip_address": "192.0.2.1"}]}, {"network_id": "nowhere"}, {}):
        assert (await cloud.one("POST", "/ports", {"ports": [{"network_id": network}, wrong]})).status in (400, 404)
    reply = await cloud.one("POST", "/ports", {"ports": [{"network_id": network}, {"name": 5}]})
    assert reply.status == 400 and "ports[1].name" in reply.json["NeutronError"]["message"]
    assert (await cloud.one.get("/ports"))["ports"] == before


async def test_a_call_makes_at_least_one_and_not_too_many(cloud: Cloud) -> None:
    for networks in ([], [{}] * (MAX_BATCH + 1), None, {}, [None]):
        assert (await cloud.one("POST", "/networks", {"networks": networks})).status == 400
    assert (await cloud.one("POST", "/networks", {"networks": [{}], "network": {}})).status == 400
    assert (await cloud.one("POST", "/networks", {"nets": [{}]})).status == 400


async def test_the_quota_holds_for_all_of_a_call(cloud: Cloud) -> None:
    assert (await cloud.admin("PUT", "/quotas/one", {"quota": {"network": 2}})).status == 200
    assert (await cloud.one("POST", "/networks", {"networks": [{}] * 3})).status == 409
    assert (await cloud.one("POST", "/networks", {"networks": [{}] * 2})).status == 201


async def test_subnets_of_one_call_may_not_overlap(cloud: Cloud) -> None:
    network = (await cloud.one.create("network"))["id"]
    same = {"network_id": network, "ip_version": 4, "cidr": "10.0.0.0/24"}
    assert (await cloud.one("POST", "/subnets", {"subnets": [same, same]})).status == 400
    both = await cloud.one("POST", "/subnets", {"subnets": [same, {**same, "cidr": "10.0.1.0/24"}]})
    assert both.status == 201 and len((await cloud.one.show("network", network))["subnets"]) == 2


async def test_subnets_of_external_networks_say_so(cloud: Cloud) -> None:
    public = (await cloud.admin.create("network", **{"router:external": True}))["id"]
    subnet = await cloud.admin.create("subnet", network_id=public, ip_version=4, cidr="192.0.2.0/24")
    assert (await cloud.one.show("subnet", subnet["id"]))["router:external"] is True
    _, inner = await cloud.one.network()
    assert (await cloud.one.show("subnet", inner))["router:external"] is False
