"""Security groups and rules over REST."""

import pytest

from tests.network.conftest import Cloud


async def test_each_project_has_a_default_group_with_its_rules_from_the_first_look(cloud: Cloud) -> None:
    [group] = (await cloud.one.get("/security-groups"))["security_groups"]
    assert (group["name"], group["project_id"], group["stateful"]) == ("default", "one", True)
    rules = {(rule["direction"], rule["ethertype"], rule["remote_group_id"]) for rule in group["security_group_rules"]}
    assert rules == {
        ("egress", "IPv4", None),
        ("egress", "IPv6", None),
        ("ingress", "IPv4", group["id"]),
        ("ingress", "IPv6", group["id"]),
    }
    assert all(rule["protocol"] is None and rule["port_range_min"] is None for rule in group["security_group_rules"])
    assert (await cloud.one.try_create("security_group", name="default")).status == 409
    assert await cloud.one.delete("security_group", group["id"]) == 409
    assert (await cloud.one("PUT", f"/security-groups/{group['id']}", {"security_group": {"name": "x"}})).status == 409
    assert len((await cloud.one.get("/security-groups"))["security_groups"]) == 1


async def test_rules_are_added_listed_and_taken_out(cloud: Cloud) -> None:
    group = await cloud.one.create("security_group", name="web", description="d")
    assert [rule["direction"] for rule in group["security_group_rules"]] == ["egress", "egress"]
    ssh = await cloud.one.create(
        "security_group_rule",
        security_group_id=group["id"],
        direction="ingress",
        protocol="tcp",
        port_range_min=22,
        port_range_max=22,
        remote_ip_prefix="0.0.0.0/0",
    )
    assert (ssh["ethertype"], ssh["protocol"], ssh["port_range_min"], ssh["remote_ip_prefix"]) == ("IPv4", "tcp", 22, "0.0.0.0/0")
    same = {
        "security_group_id": group["id"],
        "direction": "ingress",
        "protocol": 6,
        "port_range_min": "22",
        "port_range_max": 22,
        "remote_ip_prefix": "0.0.0.0/0",
    }
    assert (await cloud.one.try_create("security_group_rule", **same)).status == 409
    ping = await cloud.one.create(
        "security_group_rule",
        security_group_id=group["id"],
        direction="ingress",
        protocol="icmp",
        port_range_min=8,
        port_range_max=0,
    )
    assert await cloud.one.ids(f"/security-group-rules?security_group_id={group['id']}&protocol=tcp") == {ssh["id"]}
    assert (await cloud.one.show("security_group_rule", ping["id"]))["port_range_min"] == 8
    assert await cloud.one.delete("security_group_rule", ssh["id"]) == 204
    assert await cloud.one.delete("security_group_rule", ssh["id"]) == 404
    assert len((await cloud.one.show("security_group", group["id"]))["security_group_rules"]) == 3
    assert await cloud.one.delete("security_group", group["id"]) == 204
    assert await cloud.one.used() == {"security_group": 1, "security_group_rule": 4}


@pytest.mark.parametrize(
    "fields",
    [
        {"direction": "sideways"},
        {"ethertype": "IPX"},
        {"protocol": "nonsense"},
        {"protocol": 256},
        {"protocol": "tcp", "port_range_min": 9, "port_range_max": 8},
        {"protocol": "tcp", "port_range_min": 70000, "port_range_max": 70000},
        {"port_range_min": 1, "port_range_max": 2},
        {"protocol": "icmp", "port_range_min": 300},
        {"protocol": "icmp", "port_range_max": 3},
        {"remote_ip_prefix": "bad"},
        {"remote_ip_prefix": "fd00::/64"},
        {"protocol": "gre", "port_range_min": 1},
        {"protocol": "ipv6-icmp"},
        {"id": "mine"},
        {"remote_ip_prefix": "10.0.0.0/8", "remote_group_id": "x"},
    ],
)
async def test_a_rule_that_means_nothing_is_refused(cloud: Cloud, fields: dict) -> None:
    group = await cloud.one.create("security_group", name="g")
    reply = await cloud.one.try_create(
        "security_group_rule", **{"security_group_id": group["id"], "direction": "ingress", **fields}
    )
    assert reply.status == 400, reply.body


async def test_a_group_in_use_by_a_port_or_a_rule_stays(cloud: Cloud) -> None:
    used, user = [(await cloud.one.create("security_group", name=name))["id"] for name in ("used", "user")]
    rule = await cloud.one.create("security_group_rule", security_group_id=user, direction="ingress", remote_group_id=used)
    assert (await cloud.one("DELETE", f"/security-groups/{used}")).status == 409
    await cloud.one.create("security_group_rule", security_group_id=used, direction="ingress", remote_group_id=used)
    await cloud.one.delete("security_group_rule", rule["id"])
    network, _ = await cloud.one.network()
    port = await cloud.one.create("port", network_id=network, security_groups=[used])
    assert (await cloud.one("DELETE", f"/security-groups/{used}")).status == 409
    await cloud.one.update("port", port["id"], security_groups=[user])
    assert await cloud.one.delete("security_group", used) == 204
    assert (
        await cloud.one.try_create("security_group_rule", security_group_id=user, direction="ingress", remote_group_id=used)
    ).status == 404
    assert (await cloud.one.try_create("port", network_id=network, security_groups=[used])).status == 404


async def test_quotas_count_groups_and_rules(cloud: Cloud) -> None:
    await cloud.admin("PUT", "/quotas/one", {"quota": {"security_group": 2, "security_group_rule": 7}})
    group = await cloud.one.create("security_group", name="a")
    assert (await cloud.one.try_create("security_group", name="b")).status == 409
    await cloud.one.create("security_group_rule", security_group_id=group["id"], direction="ingress", protocol="tcp")
    over = await cloud.one.try_create("security_group_rule", security_group_id=group["id"], direction="ingress", protocol="udp")
    assert over.status == 409 and over.json["NeutronError"]["type"] == "OverQuota"
