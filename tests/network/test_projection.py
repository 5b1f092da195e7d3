"""What hosts shall have, and which hosts a change may touch: the second always covers the first."""

import ipaddress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from control.kernel.cache import Change
from control.kernel.interfaces import PortRequest
from control.network.addressing import collapsed
from protos.internal.v1.hosts_pb2 import ObservedPort
from tests.network.conftest import Cloud

HOSTS = ("host-1", "host-2", "host-3")


class Watch:
    """Checks, with each change of the cache, that every host whose objects changed was named."""

    def __init__(self, cloud: Cloud):
        self._cloud = cloud
        self._before = self._state()
        self._named: set[str] = set()
        self._shared: set[str] = set()
        self._revision = 0
        self.calls = 0

    def __call__(self, change: Change) -> None:
        self.calls += 1
        projection = self._cloud.projection
        self._named |= set(projection.hosts_of(change))
        self._shared |= set(projection.shared_by(change))

    def check(self) -> set[str]:
        """The hosts that changed since the last check; all of them were named."""
        now = self._state()
        changed = {host for host in HOSTS if now[host] != self._before[host]}
        self._named |= {host for name in self._shared for host in self._cloud.projection.hosts_sharing(name)}
        assert changed <= self._named, f"{changed - self._named} changed without being named"
        named, self._named, self._shared, self._before = self._named, set(), set(), now
        return named

    def _state(self) -> dict[str, Any]:
        return {
            host: {key: each.SerializeToString(deterministic=True) for key, each in self._cloud.on(host).items()}
            for host in HOSTS
        }


async def test_a_host_has_the_network_of_its_port_with_its_own_members_its_groups_and_rules(cloud: Cloud) -> None:
    network, _ = await cloud.one.network()
    group = (await cloud.one.create("security_group", name="web"))["id"]
    default = (await cloud.one.get("/security-groups?name=default"))["security_groups"][0]["id"]
    await cloud.one.create(
        "security_group_rule", security_group_id=group, direction="ingress", protocol="tcp", port_range_min=22, port_range_max=22
    )
    await cloud.one.create(
        "security_group_rule", security_group_id=group, direction="ingress", protocol="icmp", remote_group_id=default
    )
    [here] = await cloud.boot("one", "vm-1", PortRequest(network_id=network), host="host-1", groups=("web",))
    [there] = await cloud.boot("one", "vm-2", PortRequest(network_id=network), host="host-2")
    objects = cloud.on("host-1")
    assert set(objects) == {f"network/{network}", f"port/{here}", f"security-group/{group}", f"security-group/{default}"}
    shown = objects[f"network/{network}"]
    assert (shown.mtu, shown.external, shown.dns_domain) == (1450, False, "brume.internal")
    assert [(each.cidr, each.gateway_ip, each.dhcp, each.dhcp_ip) for each in shown.subnets] == [
        ("10.0.0.0/24", "10.0.0.1", True, "10.0.0.2")
    ]
    members = {member.port_id: member for member in shown.members}
    assert (members[here].host, members[here].hostname, members[here].device_id) == ("host-1", "vm-1", "vm-1")
    assert there not in members
    assert [member.addresses[0].ip for member in shown.members if member.dhcp_agent] == ["10.0.0.2"]
    port = objects[f"port/{here}"]
    assert port.port_security and port.admin_up and list(port.security_group_ids) == [group] and port.device_id == "vm-1"
    rules = {
        (rule.ingress, rule.protocol, rule.port_min, rule.port_max, rule.remote_group_id)
        for rule in objects[f"security-group/{group}"].rules
    }
    assert rules == {(False, "", -1, -1, ""), (True, "tcp", 22, 22, ""), (True, "icmp", -1, -1, default)}
    address = (await cloud.one.show("port", there))["fixed_ips"][0]["ip_address"]
    assert list(objects[f"security-group/{default}"].members) == [address]
    assert list(objects[f"security-group/{default}"].rules) == []
    assert list(cloud.on("host-2")[f"security-group/{default}"].members) == [address]


async def test_a_router_without_a_gateway_is_on_every_host_and_one_with_a_gateway_on_one(cloud: Cloud) -> None:
    await cloud.host("host-2")
    network, subnet = await cloud.one.network()
    other, other_subnet = await cloud.one.network("10.1.0.0/24")
    router = (await cloud.one.create("router", name="r"))["id"]
    for each in (subnet, other_subnet):
        await cloud.one.interface("add", router, subnet_id=each)
    [port] = await cloud.boot("one", "vm-1", PortRequest(network_id=network), host="host-2")
    on_two = cloud.on("host-2")
    assert {f"router/{router}", f"network/{network}", f"network/{other}"} <= set(on_two)
    assert sorted(interface.address for interface in on_two[f"router/{router}"].interfaces) == ["10.0.0.1/24", "10.1.0.1/24"]
    assert not on_two[f"router/{router}"].HasField("gateway")
    assert cloud.on("host-1") == {}
    await cloud.one.update("router", router, external_gateway_info={"network_id": cloud.public})
    floating = await cloud.one.create("floatingip", floating_network_id=cloud.public, port_id=port)
    assert (await cloud.admin.show("router", router)) and set(cloud.on("host-2")) == {f"network/{network}", f"port/{port}"} | {
        key for key in on_two if key.startswith("security-group/")
    }
    on_one = cloud.on("host-1")
    assert set(on_one) == {f"router/{router}", f"network/{network}", f"network/{other}", f"network/{cloud.public}"}
    shown = on_one[f"router/{router}"]
    assert shown.gateway.gateway_ip == "172.24.4.1" and shown.gateway.snat and shown.gateway.addresses[0].endswith("/24")
    assert [(each.floating_ip, each.fixed_ip) for each in shown.floating] == [
        (floating["floating_ip_address"], floating["fixed_ip_address"])
    ]
    assert on_one[f"network/{cloud.public}"].external
    interface = next(member for member in cloud.on("host-2")[f"network/{network}"].members if member.device_id == router)
    assert interface.host == "host-1"


async def test_every_change_names_the_hosts_that_it_touches_and_a_status_names_none(cloud: Cloud) -> None:
    await cloud.host("host-2")
    watch = Watch(cloud)
    with cloud.database.cache.listening(watch):
        network, subnet = await cloud.one.network()
        other, other_subnet = await cloud.one.network("10.1.0.0/24")
        group = (await cloud.one.create("security_group", name="web"))["id"]
        assert watch.check() == set()
        [first] = await cloud.boot("one", "vm-1", PortRequest(network_id=network), host="host-1")
        assert watch.check() == {"host-1"}
        await cloud.boot("one", "vm-2", PortRequest(network_id=other), host="host-2", groups=("web",))
        assert watch.check() == {"host-2"}
        await cloud.observe("host-1", ObservedPort(id=first, up=True))
        await cloud.one.update("port", first, name="new name", description="d")
        await cloud.one.update("network", network, name="new name")
        assert watch.check() == set()
        default = (await cloud.one.show("port", first))["security_groups"][0]
        rule = await cloud.one.create(
            "security_group_rule", security_group_id=group, direction="ingress", remote_group_id=default
        )
        assert watch.check() == {"host-2"}
        steps = [
            lambda: cloud.one.create("port", network_id=network),
            lambda: cloud.one.update("port", first, security_groups=[group]),
            lambda: cloud.one.update("port", first, security_groups=[default]),
            lambda: cloud.one.update("port", first, fixed_ips=[{"ip_address": "10.0.0.99"}]),
            lambda: cloud.one.update("port", first, allowed_address_pairs=[{"ip_address": "10.0.0.98"}]),
            lambda: cloud.one.update("subnet", subnet, dns_nameservers=["9.9.9.9"]),
            lambda: cloud.one.update("network", network, admin_state_up=False),
            lambda: cloud.one.create("subnet", network_id=network, ip_version=4, cidr="10.4.0.0/24"),
            lambda: cloud.one.delete("security_group_rule", rule["id"]),
        ]
        for step in steps:
            await step()
            watch.check()
        router = (await cloud.one.create("router", name="r"))["id"]
        for each in (subnet, other_subnet):
            await cloud.one.interface("add", router, subnet_id=each)
            watch.check()
        for info in ({"network_id": cloud.public}, None, {"network_id": cloud.public, "enable_snat": False}):
            await cloud.one.update("router", router, external_gateway_info=info)
            watch.check()
        floating = await cloud.one.create("floatingip", floating_network_id=cloud.public, port_id=first)
        watch.check()
        await cloud.one.update("floatingip", floating["id"], port_id=None)
        watch.check()
        await cloud.one.delete("floatingip", floating["id"])
        await cloud.one.update("router", router, admin_state_up=False)
        watch.check()
        for each in (other_subnet, subnet):
            await cloud.one.interface("remove", router, subnet_id=each)
            watch.check()
        await cloud.one.delete("router", router)
        watch.check()
        for server in ("vm-1", "vm-2"):
            await cloud.shut(server)
            watch.check()
        assert all(cloud.on(host) == {} for host in HOSTS)


@given(st.sets(st.integers(0, 300)), st.sets(st.integers(0, 5)))
def test_members_of_a_group_are_as_few_prefixes_as_have_exactly_them(fours, sixes):
    addresses = {str(ipaddress.IPv4Address("10.0.0.0") + number) for number in fours}
    addresses |= {str(ipaddress.IPv6Address("fd00::") + number) for number in sixes}
    networks = [ipaddress.ip_network(text) for text in collapsed(addresses)]
    assert {str(address) for network in networks for address in network} == addresses
    assert sum(network.num_addresses for network in networks) == len(addresses)
    for version in (4, 6):
        own = [network for network in networks if network.version == version]
        assert own == list(ipaddress.collapse_addresses(own))


def test_a_prefix_among_a_groups_members_takes_in_the_addresses_that_it_has():
    assert collapsed(["10.0.0.5", "10.0.0.0/25", "10.0.0.128/25", "10.0.1.7", "::/0"]) == ["10.0.0.0/24", "10.0.1.7", "::/0"]
