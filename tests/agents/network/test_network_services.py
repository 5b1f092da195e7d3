"""What DHCP, DNS, metadata and routers are told, as text and bytes; no kernel."""
import asyncio
import json
from types import SimpleNamespace

import pytest

from agents import metadata
from agents.network import dhcp, resolver, responder, routers
from agents.network.responder import Place, Responder
from agents.network.wish import sort_out
from protos.internal.v1.hosts_pb2 import FixedAddress, NetworkMember, PublicKey, Route
from tests.agents.network.lab import World


def test_dhcp_serves_each_member_its_address_by_a_name():
    world = World()
    network = world.network()
    port = world.server(network, "10.0.0.5", name="Web")
    subnet_id = network.subnets[0].id
    network.members.append(NetworkMember(mac="fa:16:3e:00:00:01", hostname="not a name", addresses=[
        FixedAddress(subnet_id=subnet_id, ip="10.0.0.4"), FixedAddress(subnet_id="another", ip="10.0.0.3")]))
    lines = dhcp.hosts(network).splitlines()
    assert lines[1:] == ["fa:16:3e:00:00:01,10.0.0.4,host-10-0-0-4", f"{port.mac},10.0.0.5,web"]
    assert "10.0.0.5 web\n" in dhcp.host_names(network)


def test_routes_of_dhcp_have_the_metadata_and_the_way_out(tmp_path):
    network = World().network()
    network.subnets[0].routes.append(Route(destination="10.8.0.0/16", next_hop="10.0.0.9"))
    text = dhcp.configuration(network, tmp_path, "nobody")
    assert ("dhcp-option=tag:subnet0,option:classless-static-route,"
            "169.254.169.254/32,10.0.0.2,10.8.0.0/16,10.0.0.9,0.0.0.0/0,10.0.0.1\n") in text
    assert "dhcp-option=tag:subnet0,option:dns-server,10.0.0.2\n" in text
    network.subnets[0].gateway_ip = ""
    network.subnets[0].dns_nameservers.append("192.0.2.53")
    text = dhcp.configuration(network, tmp_path, "nobody")
    assert "dhcp-option=tag:subnet0,option:router\n" in text
    assert "0.0.0.0/0" not in text
    assert "option:dns-server,192.0.2.53\n" in text


def test_a_lease_stays_unless_its_address_has_become_anothers():
    leases = "1 fa:16:3e:00:00:01 10.0.0.5 web *\n2 fa:16:3e:00:00:02 10.0.0.6 db *\n"
    assert dhcp.stale_leases(leases, "fa:16:3e:00:00:01,10.0.0.5,web\n") == (leases, False)
    kept, stale = dhcp.stale_leases(leases, "fa:16:3e:00:00:01,10.0.0.5,web\nfa:16:3e:00:00:03,10.0.0.6,db\n")
    assert (kept, stale) == (leases.splitlines(keepends=True)[0], True)


def test_the_hosts_name_servers_are_read_and_nothing_else():
    text = "# nameserver 1.1.1.1\nsearch x\nnameserver 10.255.255.53\nnameserver nonsense\nnameserver fe80::1%eth0\n"
    assert resolver.parse(text) == ["10.255.255.53", "fe80::1%eth0"]
    assert resolver.Upstream(["192.0.2.1"]).servers() == ["192.0.2.1"]


def wish_of_one():
    world = World()
    network = world.network()
    port = world.server(network, "10.0.0.5", name="web")
    outside = world.network("100.64.77.0/24", external=True)
    router = world.router([network], outside, "100.64.77.7")
    world.float_address(router, "100.64.77.20", port)
    return world, network, port, router


def test_a_guest_is_known_by_where_it_asks_and_by_its_address():
    world, network, port, router = wish_of_one()
    other = world.network()
    wish = sort_out(world.objects)
    assert responder.find_port(wish, Place(network_id=network.id), "10.0.0.5") == port.id
    assert responder.find_port(wish, Place(network_id=network.id), "10.0.0.6") is None
    assert responder.find_port(wish, Place(network_id=other.id), "10.0.0.5") is None
    assert responder.find_port(wish, Place(router_id=router.id), "10.0.0.5") == port.id
    world.server(network, "10.0.0.5")
    assert responder.find_port(sort_out(world.objects), Place(network_id=network.id), "10.0.0.5") is None


@pytest.mark.parametrize(("path", "lines"), [
    ("/openstack", [*metadata.OPENSTACK_VERSIONS, "latest"]),
    ("/openstack/latest/", ["meta_data.json", "network_data.json", "vendor_data.json", "vendor_data2.json", "user_data"]),
    ("/openstack/2012-08-10", ["meta_data.json", "user_data"]),
    ("/latest", ["meta-data/", "user-data"]),
    ("/latest/meta-data/public-keys/", ["0=key", "1=other"]),
    ("/latest/meta-data/public-keys/0", ["openssh-key"]),
    ("/latest/meta-data/public-ipv4", ["100.64.77.20"]),
    ("/latest/meta-data/local-ipv4", ["10.0.0.5"]),
    ("/latest/meta-data/hostname", ["web.brume.internal"]),
    ("/latest/meta-data/placement/availability-zone", ["nova"]),
])
def test_metadata_is_listed_and_read(path, lines):
    world, network, port, _ = wish_of_one()
    server = world.objects[f"server/{port.device_id}"].server
    server.guest.keys.append(PublicKey(name="other", type="ssh", data="ssh-rsa BBBB"))
    found = responder.answer(sort_out(world.objects), Place(network_id=network.id), "10.0.0.5", path)
    assert found is not None
    assert sorted(found.decode().splitlines()) == sorted(lines)


def test_ec2s_root_lists_its_versions_without_openstack():
    world, network, *_ = wish_of_one()
    found = responder.answer(sort_out(world.objects), Place(network_id=network.id), "10.0.0.5", "/")
    assert found is not None and set(found.decode().splitlines()) >= {"1.0", "2009-04-04", "latest"}
    assert b"openstack" not in found


def test_a_config_drive_has_the_same_files_and_ec2s_as_json():
    world, network, port, _ = wish_of_one()
    server = world.objects[f"server/{port.device_id}"].server
    found = metadata.files(server, [port], {network.id: network})
    assert json.loads(found["openstack/latest/meta_data.json"])["uuid"] == server.id
    assert found["openstack/latest/user_data"] == b"#!/bin/sh\n"
    assert json.loads(found["ec2/latest/meta-data.json"])["local-ipv4"] == "10.0.0.5"
    links = json.loads(found["openstack/latest/network_data.json"])
    assert links["links"][0]["ethernet_mac_address"] == port.mac
    assert links["networks"][0]["type"] == "ipv4_dhcp"
    assert links["services"] == [{"type": "dns", "address": "10.0.0.2"}]


def test_a_subnet_without_dhcp_is_described_in_full():
    _, network, port, _ = wish_of_one()
    network.subnets[0].dhcp = False
    data = metadata.network_data([port], {network.id: network})
    assert data["networks"][0] | {"services": None} == {
        "id": "network0", "link": f"tap{port.id[:11]}", "network_id": network.id, "type": "ipv4", "ip_address": "10.0.0.5",
        "netmask": "255.255.255.0", "services": None,
        "routes": [{"network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.0.0.1"}]}
    assert metadata.network_data([port], {})["networks"] == []


async def converse(request: bytes) -> bytes:
    """What a guest at 127.0.0.1, which nobody knows, gets for raw bytes."""
    server = await asyncio.start_server(Responder(Place(network_id="none"), lambda: sort_out({})).connected, "127.0.0.1", 0,
                                        limit=responder.HEAD)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(request)
        data = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        return data


@pytest.mark.parametrize(("request_", "code"), [
    (b"GET /latest HTTP/1.0\r\n\r\n", 404),
    (b"POST / HTTP/1.0\r\n\r\n", 405),
    (b"GET / HTTP/1.1\r\nContent-Length: 9\r\n\r\n", 413),
    (b"hello\r\n\r\n", 400),
    (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n", 431),
])
async def test_what_is_no_question_is_answered_with_its_code(request_, code):
    assert (await converse(request_)).startswith(f"HTTP/1.1 {code} ".encode())


async def test_a_connection_serves_several_questions_until_it_is_to_close():
    data = await converse(b"GET /a HTTP/1.1\r\n\r\nHEAD /b HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert data.count(b"HTTP/1.1 404 ") == 2
    assert data.endswith(b"Connection: close\r\n\r\n")


def entry(source: str, target: str, answers: str, goes_back: str) -> tuple[SimpleNamespace, SimpleNamespace]:
    return SimpleNamespace(saddr=source, daddr=target), SimpleNamespace(saddr=answers, daddr=goes_back)


@pytest.mark.parametrize(("tuples", "outdated"), [
    (entry("100.64.77.1", "100.64.77.20", "10.0.0.5", "100.64.77.1"), False),
    (entry("100.64.77.1", "100.64.77.20", "10.0.0.9", "100.64.77.1"), True),      # floats elsewhere now
    (entry("100.64.77.1", "100.64.77.21", "10.0.0.9", "100.64.77.1"), True),      # floats no longer
    (entry("10.0.0.5", "192.0.2.1", "192.0.2.1", "100.64.77.20"), False),
    (entry("10.0.0.5", "192.0.2.1", "192.0.2.1", "100.64.77.7"), False),          # older than its floating address
    (entry("10.0.0.6", "192.0.2.1", "192.0.2.1", "100.64.77.20"), True),
    (entry("10.0.0.6", "10.1.0.6", "10.1.0.6", "10.0.0.6"), False),
])
def test_connections_that_a_router_would_translate_otherwise_are_outdated(tuples, outdated):
    inward, outward = {"100.64.77.20": "10.0.0.5"}, {"10.0.0.5": "100.64.77.20"}
    assert routers.is_outdated(*tuples, inward, outward, "100.64.77.7") is outdated


def test_a_router_without_a_gateway_translates_nothing():
    world = World()
    router = world.router([world.network()])
    _, text = routers.ruleset("brume", router)
    assert "snat" not in text
    router.floating.add(floating_ip="100.64.77.20", fixed_ip="10.0.0.5")
    assert "100.64.77.20" not in routers.ruleset("brume", router)[1]
    assert routers.ruleset("brume", router) == routers.ruleset("brume", router)
