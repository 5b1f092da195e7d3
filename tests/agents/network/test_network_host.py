"""The host's networking on the real kernel: what guests get, what they reach and what they do not."""
import asyncio
import json
import socket
import struct
from pathlib import Path

import pytest

from agents.network import dhcp as dnsmasq
from agents.network import kernel, names
from tests.agents.network.lab import (
    OUTSIDE,
    Guest,
    Lab,
    Listener,
    allow,
    dhcp,
    ip,
    leftovers,
    new_mac,
    reaches,
    resolve,
    succeeds,
    within,
)

pytestmark = pytest.mark.host



async def links() -> dict[str, kernel.Link]:
    def look() -> dict[str, kernel.Link]:
        with kernel.Netlink() as netlink:
            return netlink.links()
    return await asyncio.to_thread(look)


def running(namespace: str) -> list[int]:
    """The dnsmasq processes in a namespace."""
    return [process.pid for process in dnsmasq.processes() if process.namespace == kernel.namespace_inode(namespace)]


SSH = allow(protocol="tcp", low=22, high=22)
PING = allow(protocol="icmp")


async def test_a_guest_gets_its_address_and_its_routes_by_dhcp(lab: Lab):
    network = lab.world.network()
    port = lab.world.server(network, "10.0.0.17", [lab.world.group()])
    guest = lab.guest(port)
    assert await lab.apply() == {port.id}
    lease = await guest.do(lambda: dhcp(guest.link, port.mac))
    assert lease is not None
    assert socket.inet_ntoa(lease[0]) == "10.0.0.17"
    assert socket.inet_ntoa(lease[3]) == "10.0.0.1"
    assert socket.inet_ntoa(lease[6]) == "10.0.0.2"
    assert struct.unpack("!H", lease[26])[0] == 1450
    assert lease[121] == bytes([32, 169, 254, 169, 254, 10, 0, 0, 2, 0, 10, 0, 0, 1])


async def test_a_stranger_gets_no_address(lab: Lab):
    network = lab.world.network()
    port = lab.world.server(network, "10.0.0.17", port_security=False)
    guest = lab.guest(port)
    await lab.apply()
    assert await guest.do(lambda: dhcp(guest.link, new_mac(), 1.0)) is None


async def test_an_address_that_moved_to_another_port_is_given_to_it(lab: Lab):
    network = lab.world.network()
    first = lab.world.server(network, "10.0.0.17", port_security=False)
    guest = lab.guest(first)
    await lab.apply()
    assert await guest.do(lambda: dhcp(guest.link, first.mac))
    lab.world.remove("port", first.id)
    del network.members[-1]
    second = lab.world.server(network, "10.0.0.17")
    other = lab.guest(second)
    await lab.apply()
    lease = await other.do(lambda: dhcp(other.link, second.mac))
    assert lease and socket.inet_ntoa(lease[0]) == "10.0.0.17"


async def test_each_guest_is_told_about_itself_even_where_two_have_the_same_address(lab: Lab):
    guests = []
    for name in ("red", "blue"):
        network = lab.world.network()
        port = lab.world.server(network, "10.0.0.5", [lab.world.group()], name)
        guest = lab.guest(port)
        guest.configure()
        ip("-n", guest.namespace, "route", "add", "169.254.169.254/32", "via", "10.0.0.2")
        guests.append((name, guest))
    await lab.apply()
    for name, guest in guests:
        code, body = await guest.get("/openstack/latest/meta_data.json")
        assert (code, json.loads(body)["name"]) == (200, name)
        assert await guest.get("/latest/meta-data/public-keys/0/openssh-key") == (200, b"ssh-ed25519 AAAA test")
        assert await guest.get("/latest/user-data") == (200, b"#!/bin/sh\n")
        assert (await guest.get("/latest/meta-data/nothing"))[0] == 404
        assert (await guest.get("/" + "x" * 20000))[0] == 431


async def test_names_of_the_network_are_known_and_others_are_asked_of_the_hosts_servers(lab: Lab):
    network = lab.world.network()
    port = lab.world.server(network, "10.0.0.5", [lab.world.group()], "web")
    guest = lab.guest(port)
    guest.configure()
    asked: list[bytes] = []

    class Upstream(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            asked.append(data)
            end = data.index(b"\0", 12) + 5
            self.transport.sendto(data[:2] + bytes.fromhex("81800001000100000000") + data[12:end]
                                  + bytes.fromhex("c00c000100010000003c0004") + socket.inet_aton("192.0.2.80"), addr)

    lab.networking = lab.fresh(nameservers=["127.0.53.1"])
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(Upstream, local_addr=("127.0.53.1", 53))
    lab.undo.append(transport.close)
    await lab.apply()
    assert await guest.do(lambda: resolve("10.0.0.2", "web.brume.internal")) == ["10.0.0.5"]
    assert not asked
    assert await guest.do(lambda: resolve("10.0.0.2", "example.test")) == ["192.0.2.80"]


async def test_networks_with_the_same_addresses_are_apart(lab: Lab):
    group = lab.world.group(allow())
    red, blue = lab.world.network(), lab.world.network()
    ports = {"red": [lab.world.server(red, ip_, [group]) for ip_ in ("10.0.0.5", "10.0.0.6")],
             "blue": [lab.world.server(blue, "10.0.0.5", [group])]}
    guests = {name: [lab.guest(port) for port in its] for name, its in ports.items()}
    for its in guests.values():
        for guest in its:
            guest.configure()
    await lab.apply()
    assert await guests["red"][0].pings("10.0.0.6")
    assert not await guests["blue"][0].pings("10.0.0.6", tries=1)
    listeners = [await Listener(guest.namespace, 80).start() for guest in guests["red"]]
    assert await reaches(guests["red"][0].namespace, "10.0.0.6", 80)
    assert not await reaches(guests["blue"][0].namespace, "10.0.0.6", 80)
    for listener in listeners:
        listener.close()


async def test_a_guest_does_not_reach_the_host_through_its_bridge(lab: Lab):
    network = lab.world.network()
    port = lab.world.server(network, "10.0.0.5", port_security=False)
    guest = lab.guest(port)
    guest.configure()
    await lab.apply()
    mac = (await links())[names.bridge(network.id)].mac
    # whatever it knows: the host's address, the bridge's MAC
    ip("addr", "add", "100.64.78.1/32", "dev", "lo")
    lab.undo.append(lambda: ip("addr", "del", "100.64.78.1/32", "dev", "lo"))
    ip("-n", guest.namespace, "route", "add", "100.64.78.1/32", "dev", guest.link)
    assert not await guest.pings("100.64.78.1", tries=1)
    ip("-n", guest.namespace, "neigh", "replace", "100.64.78.1", "lladdr", mac, "dev", guest.link)
    assert not await guest.pings("100.64.78.1", tries=1)


async def test_a_security_group_opens_and_closes_also_for_connections_that_are_there(lab: Lab):
    network = lab.world.network()
    group = lab.world.group()
    client = lab.guest(lab.world.server(network, "10.0.0.5", [group]))
    server = lab.guest(lab.world.server(network, "10.0.0.6", [group]))
    for guest in (client, server):
        guest.configure()
    await lab.apply()
    listener = await Listener(server.namespace, 22).start()
    lab.undo.append(listener.close)
    assert not await reaches(client.namespace, "10.0.0.6", 22)
    group.rules.append(SSH)
    lab.world.put("security_group", group)
    await lab.apply()
    assert await reaches(client.namespace, "10.0.0.6", 22)
    assert not await client.pings("10.0.0.6", tries=1)

    def connect() -> socket.socket:
        connection = socket.create_connection(("10.0.0.6", 22), 2.0)
        assert connection.recv(5) == b"hello"
        return connection

    def echoes(connection: socket.socket) -> bool:
        connection.settimeout(1.0)
        connection.sendall(b"again")
        try:
            return connection.recv(5) == b"again"
        except TimeoutError:
            return False

    connection = await client.do(connect)
    assert await asyncio.to_thread(echoes, connection)
    del group.rules[-1]
    lab.world.put("security_group", group)
    await lab.apply()
    assert not await asyncio.to_thread(echoes, connection)
    assert not await reaches(client.namespace, "10.0.0.6", 22)
    connection.close()


async def test_a_rule_may_name_a_group_and_egress_is_kept_too(lab: Lab):
    network = lab.world.network()
    friends = lab.world.group()
    friends.members.append("10.0.0.5")
    lab.world.put("security_group", friends)
    mute = lab.world.group(allow())
    del mute.rules[:2]
    lab.world.put("security_group", mute)
    open_to_friends = lab.world.group(allow(group=friends.id))
    friend = lab.guest(lab.world.server(network, "10.0.0.5", [friends, lab.world.group(allow())]))
    stranger = lab.guest(lab.world.server(network, "10.0.0.6", [lab.world.group()]))
    silent = lab.guest(lab.world.server(network, "10.0.0.8", [mute]))
    lab.guest(lab.world.server(network, "10.0.0.7", [open_to_friends])).configure()
    for guest in (friend, stranger, silent):
        guest.configure()
    await lab.apply()
    assert await friend.pings("10.0.0.7")
    assert not await stranger.pings("10.0.0.7", tries=1)
    assert not await silent.pings("10.0.0.5", tries=1)
    assert await friend.pings("10.0.0.8")    # an answer is no egress of its own


async def test_a_guest_sends_from_its_own_addresses_only(lab: Lab):
    network = lab.world.network()
    group = lab.world.group(allow())
    liar = lab.guest(lab.world.server(network, "10.0.0.5", [group]))
    victim = lab.guest(lab.world.server(network, "10.0.0.6", [group]))
    for guest in (liar, victim):
        guest.configure()
    await lab.apply()
    assert await liar.pings("10.0.0.6")
    ip("-n", liar.namespace, "addr", "add", "10.0.0.66/24", "dev", liar.link)
    assert not await pings_from(liar, "10.0.0.66", "10.0.0.6")
    ip("-n", liar.namespace, "link", "set", liar.link, "address", new_mac())
    assert not await liar.pings("10.0.0.6", tries=1)
    ip("-n", liar.namespace, "link", "set", liar.link, "address", liar.port.mac)
    assert await liar.pings("10.0.0.6")
    liar.port.allowed_pairs.add(ip="10.0.0.64/28")
    lab.world.put("port", liar.port)
    await lab.apply()
    assert await pings_from(liar, "10.0.0.66", "10.0.0.6")


async def pings_from(guest: Guest, source: str, target: str) -> bool:
    return await succeeds("ip", "netns", "exec", guest.namespace, "ping", "-c2", "-W1", "-I", source, target)


async def test_a_router_joins_networks_hides_them_outside_and_floats_addresses(lab: Lab):
    outside = lab.world.network(OUTSIDE, mtu=1500, external=True)
    red, blue = lab.world.network("10.1.0.0/24"), lab.world.network("10.2.0.0/24")
    group = lab.world.group(allow())
    first = lab.guest(lab.world.server(red, "10.1.0.5", [group]))
    second = lab.guest(lab.world.server(blue, "10.2.0.5", [group]))
    first.configure(gateway="10.1.0.1")
    second.configure(gateway="10.2.0.1")
    router = lab.world.router([red, blue], outside, "100.64.77.7")
    lab.world.float_address(router, "100.64.77.20", second.port)
    await lab.apply()
    assert await first.pings("10.1.0.1")
    assert await first.pings("10.2.0.5")
    # out: by the gateway's address to the host, by the host's to the world beyond it
    world = f"{lab.cloud}-beyond"
    kernel.ensure_namespace(world)
    lab.undo.append(lambda: kernel.remove_namespace(world))
    ip("link", "add", f"{lab.cloud}o", "type", "veth", "peer", "name", "eth0", "netns", world)
    lab.undo.append(lambda: ip("link", "del", f"{lab.cloud}o"))
    ip("addr", "add", "100.64.79.1/24", "dev", f"{lab.cloud}o")
    ip("link", "set", f"{lab.cloud}o", "up")
    ip("-n", world, "addr", "add", "100.64.79.2/24", "dev", "eth0")
    ip("-n", world, "link", "set", "eth0", "up")
    beyond, on_host = await Listener(world, 8080).start(), await Listener("", 18080).start()
    served = await Listener(second.namespace, 22).start()
    lab.undo += [beyond.close, on_host.close, served.close]
    assert await reaches(first.namespace, "100.64.79.2", 8080)
    assert beyond.peers == ["100.64.79.1"]
    assert await reaches(first.namespace, "100.64.77.1", 18080)
    assert await reaches(second.namespace, "100.64.77.1", 18080)
    assert on_host.peers == ["100.64.77.7", "100.64.77.20"]
    # in: from the host, and from inside by the same address
    assert await reaches("", "100.64.77.20", 22)
    assert served.peers == ["100.64.77.1"]
    assert await reaches(first.namespace, "100.64.77.20", 22)
    assert await reaches(second.namespace, "100.64.77.20", 22)
    # metadata by the router, for who has no route to DHCP's
    code, body = await second.get("/latest/meta-data/public-ipv4")
    assert (code, body) == (200, b"100.64.77.20")
    # nothing else comes in
    ip("route", "add", "10.1.0.0/24", "via", "100.64.77.7")
    lab.undo.append(lambda: ip("route", "del", "10.1.0.0/24", "via", "100.64.77.7"))
    hidden = await Listener(first.namespace, 22).start()
    lab.undo.append(hidden.close)
    assert not await reaches("", "10.1.0.5", 22)
    # the floating address moves, and what was established with the one before does not
    connection = await asyncio.to_thread(socket.create_connection, ("100.64.77.20", 22), 2.0)
    del router.floating[:]
    lab.world.float_address(router, "100.64.77.20", first.port)
    await lab.apply()
    connection.settimeout(1.0)
    try:
        connection.recv(5)
        connection.sendall(b"more")
        assert await asyncio.to_thread(connection.recv, 5) != b"more"
    except OSError:
        pass
    connection.close()
    hidden.peers.clear()
    assert await reaches("", "100.64.77.20", 22)
    assert hidden.peers == ["100.64.77.1"]
    del router.floating[:]
    lab.world.put("router", router)
    await lab.apply()
    assert not await reaches("", "100.64.77.20", 22)


async def fingerprint(cloud: str) -> list[str]:
    """What would change if something were made anew."""
    found = [f"{link.name} {link.index} {link.master}" for link in (await links()).values()
             if link.alias.startswith(cloud + "/")]
    for name in kernel.namespace_names():
        if name.startswith(cloud):
            found.append(f"{name} {kernel.namespace_inode(name)} {running(name)}")
            found.append(ip("-n", name, "-o", "link"))
            found.append(ip("-n", name, "-o", "addr"))
            found.append(ip("-n", name, "route"))
    return found


async def test_an_agent_that_starts_again_changes_nothing(lab: Lab):
    outside = lab.world.network(OUTSIDE, mtu=1500, external=True)
    network = lab.world.network()
    port = lab.world.server(network, "10.0.0.5", [lab.world.group()])
    router = lab.world.router([network], outside, "100.64.77.7")
    lab.world.float_address(router, "100.64.77.20", port)
    await lab.apply()
    before = await fingerprint(lab.cloud)
    await lab.networking.close()
    lab.networking = lab.fresh()
    assert await lab.apply() == {port.id}
    assert await fingerprint(lab.cloud) == before
    assert await lab.apply() == {port.id}
    assert await fingerprint(lab.cloud) == before


async def test_what_is_no_longer_wished_for_goes_and_nothing_else(lab: Lab):
    network, other = lab.world.network(), lab.world.network()
    port = lab.world.server(network, "10.0.0.5", [lab.world.group()])
    stays = lab.world.server(other, "10.0.0.5", [lab.world.group()])
    router = lab.world.router([network])
    assert await lab.apply() == {port.id, stays.id}
    for kind, object_id in (("port", port.id), ("router", router.id), ("network", network.id)):
        lab.world.remove(kind, object_id)
    assert await lab.apply() == {stays.id}
    assert {link.name for link in (await links()).values() if link.alias.startswith(lab.cloud + "/")} == {
        names.bridge(other.id), names.tap(stays.id), names.service_veth(other.id)}
    assert [name for name in kernel.namespace_names() if name.startswith(lab.cloud)] == [f"{lab.cloud}-dhcp-{other.id}"]


async def test_what_somebody_broke_is_made_again(lab: Lab, monkeypatch: pytest.MonkeyPatch):
    network = lab.world.network()
    port = lab.world.server(network, "10.0.0.5", [lab.world.group()])
    await lab.apply()
    namespace = f"{lab.cloud}-dhcp-{network.id}"
    for pid in running(namespace):
        dnsmasq.end_process(pid)
    await lab.apply()
    assert len(running(namespace)) == 1
    ip("link", "del", names.bridge(network.id))
    monkeypatch.setattr("agents.network.host.LOOK", 0.0)
    assert await lab.apply() == {port.id}
    there = await links()
    assert there[names.tap(port.id)].master == there[names.bridge(network.id)].index


async def test_a_half_made_host_is_finished(lab: Lab):
    """Each thing may be there without what comes next, as a killed agent leaves it."""
    network = lab.world.network()
    port = lab.world.server(network, "10.0.0.5", [lab.world.group()])
    namespace = f"{lab.cloud}-dhcp-{network.id}"
    (kernel.NAMESPACES / namespace).parent.mkdir(exist_ok=True)
    (kernel.NAMESPACES / namespace).touch()
    ip("link", "add", names.bridge(network.id), "type", "bridge")
    kernel.add_tap(names.tap(port.id), None)
    assert await lab.apply() == {port.id}
    ip("netns", "del", namespace)
    await lab.networking.close()
    lab.networking = lab.fresh()
    await lab.apply()
    assert len(running(namespace)) == 1


async def test_a_link_of_somebody_elses_is_left_alone_and_its_port_is_not_wired(lab: Lab):
    network = lab.world.network()
    port = lab.world.server(network, "10.0.0.5", [lab.world.group()])
    kernel.add_tap(names.tap(port.id), None)
    lab.undo.append(lambda: ip("link", "del", names.tap(port.id)))
    ip("link", "set", names.tap(port.id), "alias", "another/port/x")
    assert await lab.apply() == set()


async def test_a_teardown_without_memory_leaves_nothing_and_touches_no_other_cloud(lab: Lab):
    other = Lab(lab.run_dir / "other")
    try:
        for one in (lab, other):
            network = one.world.network()
            one.world.server(network, "10.0.0.5", [one.world.group()])
            one.world.router([network], one.world.network(OUTSIDE if one is lab else "100.64.76.0/24", external=True),
                             "100.64.77.7" if one is lab else "100.64.76.7")
            await one.apply()
        before = await fingerprint(other.cloud)
        await lab.networking.close()
        lab.networking = lab.fresh()
        await lab.networking.teardown()
        assert leftovers(lab.cloud) == []
        assert await fingerprint(other.cloud) == before
    finally:
        await other.networking.teardown()
        await other.networking.close()


async def test_forwarding_is_turned_on_for_external_networks_and_off_by_the_last_to_go(lab: Lab):
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    if switch.read_text().strip() == "1":
        pytest.skip("the host forwards packets already")
    lab.world.network(OUTSIDE, external=True)
    await lab.apply()
    assert switch.read_text().strip() == "1"
    await lab.networking.teardown()
    assert switch.read_text().strip() == "0"


async def test_the_namespace_of_dhcp_leads_nowhere(lab: Lab):
    network = lab.world.network()
    lab.world.server(network, "10.0.0.5")
    await lab.apply()
    namespace = f"{lab.cloud}-dhcp-{network.id}"
    assert ip("-n", namespace, "route", "show", "default") == ""
    forwarding = await within(namespace, Path("/proc/sys/net/ipv4/ip_forward").read_text)
    assert forwarding.strip() == "0"
