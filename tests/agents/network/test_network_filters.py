"""The root namespace's rules as text, and the names in them."""
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.network import filters, names
from agents.network.nft import Nft, RulesRefused, replacement
from agents.network.wish import sort_out
from protos.internal.v1.hosts_pb2 import AddressPair, HostObject, HostPort
from tests.agents.network.lab import World, allow, new_id


@pytest.mark.parametrize(("rule", "match"), [
    (allow(), "meta nfproto ipv4"),
    (allow(ethertype="IPv6"), "meta nfproto ipv6"),
    (allow(cidr="0.0.0.0/0"), "meta nfproto ipv4"),
    (allow(cidr="10.0.0.7/8"), "ip saddr 10.0.0.0/8"),
    (allow(False, cidr="10.0.0.7/32"), "ip daddr 10.0.0.7"),
    (allow(protocol="tcp", low=22, high=22), "meta nfproto ipv4 tcp dport 22"),
    (allow(protocol="udp", low=1000, high=2000, cidr="192.0.2.0/24"), "ip saddr 192.0.2.0/24 udp dport 1000-2000"),
    (allow(protocol="6", low=80, high=80), "meta nfproto ipv4 tcp dport 80"),
    (allow(protocol="tcp"), "meta nfproto ipv4 meta l4proto 6"),
    (allow(protocol="tcp", low=0, high=0), "meta nfproto ipv4 meta l4proto 6"),
    (allow(protocol="icmp"), "meta nfproto ipv4 meta l4proto 1"),
    (allow(protocol="icmp", low=8), "meta nfproto ipv4 icmp type 8"),
    (allow(protocol="icmp", low=3, high=0), "meta nfproto ipv4 icmp type 3 icmp code 0"),
    (allow(protocol="icmp", low=128, ethertype="IPv6"), "meta nfproto ipv6 icmpv6 type 128"),
    (allow(protocol="vrrp"), "meta nfproto ipv4 meta l4proto 112"),
    (allow(protocol="47"), "meta nfproto ipv4 meta l4proto 47"),
    (allow(cidr="fd00::/64", ethertype="IPv6", protocol="tcp", low=1, high=65535), "ip6 saddr fd00::/64 tcp dport 1-65535"),
])
def test_a_rule_says_what_a_packet_must_be(rule, match):
    assert filters.rule_match(rule, []) == match


@pytest.mark.parametrize("rule", [
    allow(cidr="fd00::/64"), allow(cidr="10.0.0.0/8", ethertype="IPv6"), allow(protocol="nonsense"), allow(protocol="999"),
    allow(cidr="no address"), allow(group=new_id()), allow(protocol="tcp; drop"),
])
def test_a_rule_that_can_match_nothing_lets_nothing_through(rule):
    assert filters.rule_match(rule, []) is None


def test_the_same_wishes_give_the_same_version_in_any_order():
    world = World()
    network = world.network()
    for last in range(5, 9):
        world.server(network, f"10.0.0.{last}", [world.group()])
    own = names.Names("brume")
    backwards = dict(reversed(world.objects.items()))
    assert filters.ruleset(own, sort_out(world.objects)) == filters.ruleset(own, sort_out(backwards))


@pytest.mark.host
def test_the_kernel_takes_whatever_may_be_wished():
    world = World()
    inside, outside = world.network(), world.network("100.64.77.0/24", external=True)
    other = world.group()
    other.members.extend(["10.0.0.9", "10.0.0.10", "fd00::9"])
    world.put("security_group", other)
    group = world.group(
        *(allow(True, protocol, 1, 2) for protocol in (*filters.PROTOCOLS, "99")),
        *(allow(False, protocol, 1, 2, ethertype="IPv6") for protocol in (*filters.PROTOCOLS, "99")),
        allow(group=other.id), allow(group=other.id, ethertype="IPv6", protocol="tcp", low=1, high=65535), allow(), allow())
    pairs = [AddressPair(ip="10.0.0.0/25"), AddressPair(ip="10.0.0.3"), AddressPair(ip="fd00::/64", mac="fa:16:3e:00:00:01"),
             AddressPair(ip="0.0.0.0/0", mac="fa:16:3e:00:00:02"), AddressPair(ip="::/0")]
    world.server(inside, "10.0.0.5", [group, other], pairs=pairs)
    world.server(outside, "100.64.77.50", [group])
    world.server(inside, "10.0.0.6", port_security=False)
    world.server(inside, "10.0.0.7", [other], pairs=pairs)    # an address and a MAC in common, with other groups
    world.router([inside], outside, "100.64.77.7")
    own = names.Names("brume-test-text")
    version, text = filters.ruleset(own, sort_out(world.objects))
    with Nft() as nft:
        try:
            nft.run(text)
            nft.run(text)
            assert nft.has("inet", own.table, version)
            assert nft.has("bridge", own.table, version)
            assert not nft.has("inet", own.table, "v_other")
            with pytest.raises(RulesRefused, match="syntax error"):
                nft.run(text + "nonsense\n")
            assert nft.has("inet", own.table, version)
        finally:
            for family in ("inet", "bridge"):
                nft.drop(family, own.table)
    assert own.table not in subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout


def test_an_object_that_cannot_be_right_is_left_out_and_named():
    world = World()
    network = world.network()
    good = world.server(network, "10.0.0.5")
    bad = HostPort(id=new_id(), network_id=network.id, mac="FA:16:3E:00:00:00")
    evil = HostPort(id="x; flush ruleset", network_id=network.id, mac=good.mac)
    for port in (bad, evil):
        world.objects[f"port/{port.id}"] = HostObject(port=port)
    wish = sort_out(world.objects)
    assert set(wish.ports) == {good.id}
    assert set(wish.refused) == {f"port/{bad.id}", f"port/{evil.id}"}


def test_a_replacement_names_its_version_in_every_table():
    version, text = replacement({("inet", "a"): ["chain x {", "}"], ("bridge", "a"): []})
    assert text.count(f"chain {version} {{") == 2
    assert text.index("delete table inet a") < text.index("chain x {")


@given(st.sets(st.uuids().map(str), max_size=40))
def test_numbers_are_each_ones_own(ids):
    given_numbers = names.numbers(ids, 64)
    assert set(given_numbers) == ids
    assert len(set(given_numbers.values())) == len(ids)
    assert all(1 <= number < 64 for number in given_numbers.values())


@pytest.mark.parametrize("cloud", ["", "Brume", "1cloud", "a_b", "a/b", "x" * 40])
def test_a_cloud_that_could_not_be_told_apart_is_refused(cloud):
    with pytest.raises(ValueError, match="cloud name"):
        names.Names(cloud)


def test_a_cloud_knows_its_own_by_name_and_not_anothers_that_begins_alike():
    own, other = names.Names("brume"), names.Names("brume-dhcp")
    network_id = new_id()
    assert own.owns_namespace(own.dhcp_namespace(network_id))
    assert not own.owns_namespace(other.dhcp_namespace(network_id))
    assert own.owns_alias(own.alias("port", network_id))
    assert not own.owns_alias(other.alias("port", network_id))
    assert not own.owns_alias(None)
