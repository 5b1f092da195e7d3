"""Ports over REST, and the ports of servers as compute makes them."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.kernel.errors import Conflict, Denied, Exhausted, Invalid
from control.kernel.interfaces import PortRequest
from control.network.model import ALLOCATION, PORT, USE
from protos.internal.v1.hosts_pb2 import ObservedPort
from tests.network.conftest import Cloud, caller_of, running


async def test_a_port_has_an_address_a_mac_and_the_default_group(cloud: Cloud) -> None:
    network, subnet = await cloud.one.network()
    port = await cloud.one.create("port", network_id=network, name="p")
    default = (await cloud.one.get("/security-groups?name=default"))["security_groups"][0]["id"]
    assert port["fixed_ips"] == [{"subnet_id": subnet, "ip_address": "10.0.0.3"}]
    assert port["mac_address"].startswith("fa:16:3e:")
    assert port["security_groups"] == [default]
    assert (port["status"], port["device_id"], port["device_owner"], port["binding:vnic_type"]) == ("DOWN", "", "", "normal")
    assert port["dns_assignment"] == [
        {"hostname": "host-10-0-0-3", "ip_address": "10.0.0.3", "fqdn": "host-10-0-0-3.brume.internal."}
    ]
    assert not {"binding:host_id", "position", "made_for_server", "charged"} & set(port)
    shown = await cloud.admin.show("port", port["id"])
    assert (shown["binding:host_id"], shown["binding:vif_type"], shown["binding:profile"]) == ("", "unbound", {})


async def test_addresses_are_what_was_asked_for_or_refused(cloud: Cloud) -> None:
    network, subnet = await cloud.one.network()
    other, other_subnet = await cloud.one.network("10.5.0.0/24")
    six = (await cloud.one.create("subnet", network_id=network, ip_version=6, cidr="fd00::/64"))["id"]
    both = await cloud.one.create("port", network_id=network)
    assert [fixed["subnet_id"] for fixed in both["fixed_ips"]] == [subnet, six]
    wished = await cloud.one.create("port", network_id=network, fixed_ips=[{"ip_address": "10.0.0.77"}, {"subnet_id": six}])
    assert wished["fixed_ips"][0] == {"subnet_id": subnet, "ip_address": "10.0.0.77"}
    assert (await cloud.one.create("port", network_id=network, fixed_ips=[]))["fixed_ips"] == []
    for fixed, status in (
        ([{"ip_address": "10.0.0.77"}], 409),
        ([{"ip_address": "10.0.0.2"}], 409),
        ([{"ip_address": "10.9.9.9"}], 400),
        ([{"ip_address": "10.0.0.255"}], 400),
        ([{"ip_address": "x"}], 400),
        ([{}], 400),
        ([{"subnet_id": other_subnet}], 400),
        ([{"subnet_id": "x"}], 400),
        ([{"ip_address": "10.0.0.80"}, {"ip_address": "10.0.0.80"}], 409),
    ):
        assert (await cloud.one.try_create("port", network_id=network, fixed_ips=fixed)).status == status, fixed
    moved = await cloud.one.update("port", wished["id"], fixed_ips=[{"ip_address": "10.0.0.78"}, {"subnet_id": six}])
    assert moved["fixed_ips"] == [{"subnet_id": subnet, "ip_address": "10.0.0.78"}, wished["fixed_ips"][1]]
    await cloud.one.create("port", network_id=network, fixed_ips=[{"ip_address": "10.0.0.77"}])
    found = await cloud.one.ids("/ports?fixed_ips=ip_address%3D10.0.0.78")
    assert found == {wished["id"]}
    assert await cloud.one.ids(f"/ports?fixed_ips=subnet_id%3D{other_subnet}") == await cloud.one.ids(
        f"/ports?network_id={other}"
    )


async def test_a_mac_is_unique_on_its_network(cloud: Cloud) -> None:
    network, _ = await cloud.one.network()
    other, _ = await cloud.one.network("10.1.0.0/24")
    mac = "02:00:00:00:00:07"
    port = await cloud.one.create("port", network_id=network, mac_address=mac.upper())
    assert port["mac_address"] == mac
    assert (await cloud.one.try_create("port", network_id=network, mac_address=mac)).status == 409
    await cloud.one.create("port", network_id=other, mac_address=mac)
    await cloud.one.update("port", port["id"], mac_address="02:00:00:00:00:08")
    await cloud.one.create("port", network_id=network, mac_address=mac)
    for bad in ("01:00:00:00:00:01", "zz", "00:00:00:00:00:00"):
        assert (await cloud.one.try_create("port", network_id=network, mac_address=bad)).status == 400


async def test_the_cloud_s_own_ports_and_foreign_networks_are_out_of_reach(cloud: Cloud) -> None:
    network, _ = await cloud.one.network()
    assert (await cloud.one.try_create("port", network_id=network, device_owner="network:dhcp")).status == 403
    assert (await cloud.one.try_create("port", network_id=cloud.public)).status == 403
    assert (await cloud.one.try_create("port", network_id=network, status="ACTIVE")).status == 400
    assert (await cloud.one.try_create("port", network_id=network, **{"binding:host_id": "host-1"})).status == 400
    shared = await cloud.admin.create("network", name="s", shared=True)
    await cloud.admin.create("subnet", network_id=shared["id"], ip_version=4, cidr="10.3.0.0/24")
    port = await cloud.one.create("port", network_id=shared["id"])
    assert port["project_id"] == "one"
    assert (await cloud.two("GET", f"/ports/{port['id']}")).status == 404
    assert (await cloud.admin("PUT", f"/networks/{shared['id']}", {"network": {"shared": False}})).status == 409
    assert (await cloud.two.try_create("port", network_id=shared["id"], security_groups=port["security_groups"])).status == 404


async def test_port_security_and_groups_agree(cloud: Cloud) -> None:
    network, _ = await cloud.one.network()
    port = await cloud.one.create("port", network_id=network, allowed_address_pairs=[{"ip_address": "10.0.0.200"}])
    assert (
        port["allowed_address_pairs"] == [{"ip_address": "10.0.0.200", "mac_address": port["mac_address"]}]
        or port["allowed_address_pairs"][0]["ip_address"] == "10.0.0.200"
    )
    assert (await cloud.one("PUT", f"/ports/{port['id']}", {"port": {"port_security_enabled": False}})).status == 409
    open_port = await cloud.one.update(
        "port", port["id"], port_security_enabled=False, security_groups=[], allowed_address_pairs=[]
    )
    assert open_port["port_security_enabled"] is False
    assert (await cloud.one.create("port", network_id=network, port_security_enabled=False))["security_groups"] == []


async def test_a_server_s_ports_are_made_bound_reported_and_given_back(any_cloud: Cloud) -> None:
    cloud = any_cloud
    network, _ = await cloud.one.network()
    own = await cloud.one.create("port", network_id=network, name="mine")
    before = await cloud.one.used()
    ids = await cloud.boot(
        "one", "vm", PortRequest(network_id=network, fixed_ip="10.0.0.50"), PortRequest(port_id=own["id"]), host="host-1"
    )
    assert cloud.ports.ids("vm") == ids and ids[1] == own["id"]
    assert [(address.network, address.ip, address.type) for address in cloud.ports.addresses("vm")] == [
        ("n", "10.0.0.50", "fixed"),
        ("n", own["fixed_ips"][0]["ip_address"], "fixed"),
    ]
    assert cloud.ports.security_groups("vm") == ["default"]
    assert not cloud.ports.wired("vm")
    for port_id in ids:
        await cloud.observe("host-2", ObservedPort(id=port_id, up=True))
    assert not cloud.ports.wired("vm")
    for port_id in ids:
        await cloud.observe("host-1", ObservedPort(id=port_id, up=True))
    revision = cloud.database.cache.revision
    await cloud.observe("host-1", ObservedPort(id=ids[0], up=True))
    assert cloud.database.cache.revision == revision
    assert cloud.ports.wired("vm")
    shown = await cloud.one.show("port", ids[0])
    assert (shown["status"], shown["device_id"], shown["device_owner"], shown["dns_name"]) == (
        "ACTIVE",
        "vm",
        "compute:nova",
        "vm",
    )
    assert (await cloud.one("PUT", f"/ports/{own['id']}", {"port": {"device_id": ""}})).status == 409
    await cloud.shut("vm")
    assert cloud.ports.ids("vm") == []
    freed = await cloud.one.show("port", own["id"])
    assert (freed["device_id"], freed["device_owner"], freed["status"]) == ("", "", "DOWN")
    assert (await cloud.one("GET", f"/ports/{ids[0]}")).status == 404
    assert await cloud.one.used() == before


async def test_what_a_server_cannot_have_is_refused_with_the_reason(cloud: Cloud) -> None:
    network, _ = await cloud.one.network()
    used = await cloud.one.create("port", network_id=network, device_id="something")
    bare = (await cloud.one.create("network", name="bare"))["id"]
    foreign, _ = await cloud.two.network()
    for request, error in (
        (PortRequest(network_id="nowhere"), Invalid),
        (PortRequest(port_id="nowhere"), Invalid),
        (PortRequest(network_id=foreign), Invalid),
        (PortRequest(port_id=used["id"]), Conflict),
        (PortRequest(network_id=bare), Invalid),
        (PortRequest(network_id=network, fixed_ip="10.9.0.1"), Invalid),
        (PortRequest(network_id=network, fixed_ip="10.0.0.2"), Conflict),
        (PortRequest(network_id=cloud.public), Denied),
    ):
        with pytest.raises(error):
            await cloud.boot("one", "vm", request)
    with pytest.raises(Invalid, match="nogroup"):
        await cloud.boot("one", "vm", PortRequest(network_id=network), groups=("nogroup",))
    await cloud.admin("PUT", "/quotas/one", {"quota": {"port": 1}})
    with pytest.raises(Exhausted):
        await cloud.boot("one", "vm", PortRequest(network_id=network))
    assert cloud.ports.ids("vm") == []


async def test_a_port_that_only_names_a_server_is_not_one_of_its_interfaces(cloud: Cloud) -> None:
    network, _ = await cloud.one.network()
    ids = await cloud.boot("one", "vm", PortRequest(network_id=network))
    stranger, _ = await cloud.two.network()
    await cloud.two.create("port", network_id=stranger, device_id="vm", device_owner="compute:nova")
    assert cloud.ports.ids("vm") == ids


async def test_auto_is_the_only_network_or_one_that_is_made(cloud: Cloud) -> None:
    [made] = cloud.ports.automatic(caller_of("one"))
    ids = await cloud.boot("one", "vm", made)
    network = (await cloud.one.show("port", ids[0]))["network_id"]
    assert network == (await cloud.one.get("/auto-allocated-topology/one"))["auto_allocated_topology"]["id"]
    assert cloud.ports.automatic(caller_of("one")) == [PortRequest(network_id=network)]
    await cloud.one.network()
    with pytest.raises(Conflict, match="Multiple possible networks"):
        cloud.ports.automatic(caller_of("one"))


async def test_deleting_a_port_or_a_network_races_with_its_use_and_nothing_is_left_hanging(any_cloud: Cloud) -> None:
    cloud = any_cloud
    for _ in range(10):
        network, subnet = await cloud.one.network()
        replies = await asyncio.gather(
            cloud.one.try_create("port", network_id=network),
            cloud.one("DELETE", f"/networks/{network}"),
            cloud.one.try_create("subnet", network_id=network, ip_version=4, cidr="10.1.0.0/24"),
            cloud.one("DELETE", f"/subnets/{subnet}"),
            cloud.one.try_create("port", network_id=network),
        )
        assert all(reply.status in (201, 204, 400, 404, 409) for reply in replies), [reply.body for reply in replies]
        check_whole(cloud)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_no_address_or_mac_is_ever_given_twice(seed: int) -> None:
    async def interleave() -> None:
        chance = random.Random(seed)
        async with running() as cloud:
            network, _ = await cloud.one.network("10.0.0.0/28")
            alive: list[str] = []

            async def make() -> None:
                wish = {"fixed_ips": [{"ip_address": f"10.0.0.{chance.randint(2, 14)}"}]} if chance.random() < 0.3 else {}
                reply = await cloud.one.try_create("port", network_id=network, **wish)
                assert reply.status in (201, 409), reply.body
                if reply.status == 201:
                    alive.append(reply.json["port"]["id"])

            async def end() -> None:
                if alive:
                    assert await cloud.one.delete("port", alive.pop(chance.randrange(len(alive)))) == 204

            for _ in range(6):
                await asyncio.gather(*(end() if chance.random() < 0.4 else make() for _ in range(6)))
                check_whole(cloud)
            while alive:
                await end()
            assert check_whole(cloud) == 0
            for _ in range(12):
                await cloud.one.create("port", network_id=network)
            assert (await cloud.one.try_create("port", network_id=network)).status == 409

    asyncio.run(interleave())


def check_whole(cloud: Cloud) -> int:
    """Every address and MAC is one port's, and every key says so; the number of addresses in use."""
    cache = cloud.database.cache
    ports = [port for port in cache.all(PORT) if port.device_owner != "network:dhcp"]
    addresses = [(fixed.subnet_id, fixed.ip_address, port.id) for port in ports for fixed in port.fixed_ips]
    assert sorted(addresses) == sorted((each.subnet_id, each.ip, each.port_id) for each in cache.all(ALLOCATION))
    assert len({address[:2] for address in addresses}) == len(addresses)
    macs = [(port.network_id, port.mac_address) for port in ports]
    assert len(set(macs)) == len(macs)
    uses = {(each.thing, each.user) for each in cache.all(USE)}
    assert uses >= set(macs) | {(group, port.id) for port in ports for group in port.security_groups}
    assert len(uses) == len(macs) + sum(len(port.security_groups) for port in ports)
    return len(addresses)
