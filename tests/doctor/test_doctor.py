"""Whatever is out of step is named and put right; and on a cloud that is well nothing is named."""
import random
from collections.abc import Callable
from typing import Any

import pytest

from control.compute.model import ACTION, DECISION, FLAVOR_NAME, SERVER
from control.doctor import service as doctor
from control.image.model import IMAGE, MEMBER
from control.kernel import fleet, quota
from control.kernel.database import Transaction
from control.network import model as network
from protos.compute.v1.records_pb2 import ActionRecord, FlavorName
from protos.image.v1.images_pb2 import Image
from protos.image.v1.members_pb2 import Member
from protos.internal.v1.fleet_pb2 import ProviderName, Usage
from protos.network.v1.records_pb2 import AllocationRecord, UseRecord, VniRecord
from tests.doctor.conftest import Cloud

pytestmark = pytest.mark.etcd

LOST = "11111111-2222-4333-8444-555555555555"


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(doctor, "CONFIRM_AFTER", 0.2)


async def test_after_any_sequence_of_calls_nothing_is_out_of_step(cloud: Cloud):
    dice = random.Random(7)
    servers: list[str] = []
    things: list[str] = []                  # paths of what can be deleted
    for number in range(60):
        match dice.choice(["server", "server", "delete", "delete", "port", "network", "floating", "group", "pair", "image",
                           "remove", "reboot", "many", "aggregate", "undo"]):
            case "server":
                servers.append(await cloud.server())
            case "many":
                await cloud("POST", "/compute/v2.1/servers", {"server": {
                    "name": f"many{number}", "imageRef": cloud.image, "flavorRef": cloud.flavor, "min_count": 1, "max_count": 3,
                    "networks": [{"uuid": cloud.network}]}})
            case "delete" if servers:
                await cloud.delete(servers.pop(dice.randrange(len(servers))))
            case "undo" if servers:         # deleted while its agent says nothing
                assert (await cloud("DELETE", f"/compute/v2.1/servers/{servers.pop()}")).status == 204
            case "reboot" if servers:
                await cloud("POST", f"/compute/v2.1/servers/{dice.choice(servers)}/action", {"reboot": {"type": "HARD"}})
            case "port":
                made = await cloud.make("/network/v2.0/ports", "port", network_id=cloud.network)
                things.append(f"/network/v2.0/ports/{made['id']}")
            case "network":
                made = await cloud.make("/network/v2.0/networks", "network", name=f"n{number}")
                await cloud.make("/network/v2.0/subnets", "subnet", network_id=made["id"], cidr=f"10.{number + 1}.0.0/24",
                                 ip_version=4)
                things.append(f"/network/v2.0/networks/{made['id']}")
            case "floating" if servers:
                port = (await cloud("GET", f"/network/v2.0/ports?device_id={dice.choice(servers)}")).json["ports"][0]["id"]
                reply = await cloud("POST", "/network/v2.0/floatingips", {"floatingip": {
                    "floating_network_id": cloud.public, "port_id": port}})
                if reply.status == 201:
                    things.append(f"/network/v2.0/floatingips/{reply.json['floatingip']['id']}")
            case "group":
                made = await cloud.make("/network/v2.0/security-groups", "security_group", name=f"g{number}")
                await cloud.make("/network/v2.0/security-group-rules", "security_group_rule", security_group_id=made["id"],
                                 direction="ingress", protocol="tcp", remote_group_id=made["id"])
                things.append(f"/network/v2.0/security-groups/{made['id']}")
            case "pair":
                await cloud.make("/compute/v2.1/os-keypairs", "keypair", name=f"k{number}")
                things.append(f"/compute/v2.1/os-keypairs/k{number}")
            case "image":
                reply = await cloud("POST", "/image/v2/images", {"name": "x"})
                things.append(f"/image/v2/images/{reply.json['id']}")
            case "aggregate":
                made = await cloud.make("/compute/v2.1/os-aggregates", "aggregate", "admin", name=f"a{number}")
                await cloud("POST", f"/compute/v2.1/os-aggregates/{made['id']}/action", {"add_host": {"host": "h1"}}, "admin")
            case "remove" if things:
                await cloud("DELETE", things.pop(dice.randrange(len(things))))
    assert await cloud.findings() == []


Inject = Callable[[Cloud, Transaction, str], None]


def wrong_usage(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    usage = tx.require(fleet.USAGE, next(iter(tx.require(fleet.ALLOCATION, server_id).providers)))
    usage.used["VCPU"] += 3
    tx.put(fleet.USAGE, usage)


def usage_without_provider(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.put(fleet.USAGE, Usage(provider_uuid=LOST, used={"VCPU": 1}))


def allocation_of_nothing(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    held = tx.require(fleet.ALLOCATION, server_id)
    held.providers[LOST].resources["VCPU"] = 1
    tx.put(fleet.ALLOCATION, held)


def name_of_nothing(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.put(fleet.PROVIDER_NAME, ProviderName(name="lost", uuid=LOST))


def name_lost(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.delete(fleet.PROVIDER_NAME, "h1")


def allocation_without_server(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    held = tx.require(fleet.ALLOCATION, server_id)
    held.consumer_uuid = LOST
    tx.put(fleet.ALLOCATION, held)
    for uuid, amounts in held.providers.items():
        usage = tx.require(fleet.USAGE, uuid)
        for name, amount in amounts.resources.items():
            usage.used[name] += amount
        tx.put(fleet.USAGE, usage)


def server_without_allocation(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    cloud.replica.placer.release(tx, server_id)


def server_elsewhere(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    server = tx.require(SERVER, server_id)
    server.host = "h2" if server.host == "h1" else "h1"
    tx.put(SERVER, server)
    cloud.replica.ports.bind(tx, server_id, server.host)


def server_without_host(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    server = tx.require(SERVER, server_id)
    server.host = ""
    server.fault.message = "lost"
    tx.put(SERVER, server)
    cloud.replica.ports.bind(tx, server_id, "")


def ports_astray(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    cloud.replica.ports.bind(tx, server_id, "h9")


def ports_left_behind(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    for port in list(tx.rows(network.PORT, "device", server_id)):
        moved = tx.require(network.PORT, port.id)
        moved.device_id = LOST
        tx.put(network.PORT, moved)


def decision_left_behind(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    decision = tx.require(DECISION, server_id)
    decision.server_id = LOST
    tx.put(DECISION, decision)


def flavor_name_of_nothing(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.put(FLAVOR_NAME, FlavorName(name="lost", flavor_id=LOST))


def flavor_name_lost(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.delete(FLAVOR_NAME, "f")


def aggregate_of_nothing(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    aggregate = tx.require(fleet.AGGREGATE, tx.rows(fleet.AGGREGATE)[0].id)
    aggregate.hosts.append("h9")
    tx.put(fleet.AGGREGATE, aggregate)


def ledger(service: str, resource: str, user: bool = False) -> Inject:
    def inject(cloud: Cloud, tx: Transaction, server_id: str) -> None:
        owner = next(row.project_id for row in tx.rows(quota.LEDGER) if row.service == service) if user else cloud.project
        wrong = tx.require(quota.LEDGER, service, owner)
        wrong.used[resource] += 5
        tx.put(quota.LEDGER, wrong)
    inject.__name__ = f"ledger of {service}"
    return inject


def ledger_lost(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.delete(quota.LEDGER, "compute", cloud.project)


def address_of_nothing(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    subnet = tx.rows(network.SUBNET, "network", cloud.network)[0]
    tx.put(network.ALLOCATION, AllocationRecord(subnet_id=subnet.id, ip="10.0.0.200", port_id=LOST))


def address_lost(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    fixed = next(iter(tx.rows(network.PORT, "device", server_id))).fixed_ips[0]
    tx.delete(network.ALLOCATION, fixed.subnet_id, fixed.ip_address)


def mac_of_nothing(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.put(network.USE, UseRecord(thing=cloud.network, user="fa:16:3e:00:00:01"))


def mac_lost(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    port = next(iter(tx.rows(network.PORT, "device", server_id)))
    tx.delete(network.USE, port.network_id, port.mac_address)


def group_use_lost(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    port = next(iter(tx.rows(network.PORT, "device", server_id)))
    tx.delete(network.USE, port.security_groups[0], port.id)


def vni_of_nothing(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.put(network.VNI, VniRecord(vni=4000, network_id=LOST))


def vni_lost(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.delete(network.VNI, str(tx.require(network.NETWORK, cloud.network).provider_segmentation_id))


def floating_ip_to_nothing(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    leading = tx.require(network.FLOATING_IP, tx.rows(network.FLOATING_IP)[0].id)
    leading.port_id = LOST
    tx.put(network.FLOATING_IP, leading)


def member_of_nothing(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    tx.put(MEMBER, Member(image_id=LOST, member_id=cloud.project))


def upload_without_end(cloud: Cloud, tx: Transaction, server_id: str) -> None:
    record = tx.require(IMAGE, cloud.image)
    record.image.id = LOST
    record.image.status = Image.SAVING
    record.image.updated_at.seconds = 1_000_000_000
    record.image.size = 0
    record.directory_id, record.file = "another replica's", "f"
    tx.put(IMAGE, record)
    quota.charge(tx, "image", record.image.owner, {}, image_count_total=1)


DRIFTS: list[tuple[str, Inject]] = [
    ("placement.usage", wrong_usage), ("placement.usage", usage_without_provider), ("placement.providers", allocation_of_nothing),
    ("placement.names", name_of_nothing), ("placement.names", name_lost),
    ("compute.allocations", allocation_without_server), ("compute.allocations", server_without_allocation),
    ("compute.allocations", server_elsewhere), ("compute.allocations", server_without_host),
    ("compute.ports", ports_astray), ("compute.ports", ports_left_behind), ("compute.history", decision_left_behind),
    ("compute.flavors", flavor_name_of_nothing), ("compute.flavors", flavor_name_lost),
    ("compute.aggregates", aggregate_of_nothing), ("compute.quota", ledger("compute", "cores")), ("compute.quota", ledger_lost),
    ("compute.key_pairs", ledger("compute.user", "key_pairs", user=True)), ("network.quota", ledger("network", "port")),
    ("image.quota", ledger("image", "image_size_total")),
    ("network.addresses", address_of_nothing), ("network.addresses", address_lost), ("network.uses", mac_of_nothing),
    ("network.uses", mac_lost), ("network.uses", group_use_lost), ("network.vnis", vni_of_nothing), ("network.vnis", vni_lost),
    ("network.floating_ips", floating_ip_to_nothing), ("image.members", member_of_nothing),
    ("image.arriving", upload_without_end)]


async def test_each_drift_is_named_and_put_right_and_leaves_nothing_behind(cloud: Cloud):
    aggregate = await cloud.make("/compute/v2.1/os-aggregates", "aggregate", "admin", name="a")
    await cloud("POST", f"/compute/v2.1/os-aggregates/{aggregate['id']}/action", {"add_host": {"host": "h1"}}, "admin")
    await cloud.make("/compute/v2.1/os-keypairs", "keypair", name="k")
    for name, inject in DRIFTS:
        server_id = await cloud.server()
        port = (await cloud("GET", f"/network/v2.0/ports?device_id={server_id}")).json["ports"][0]["id"]
        floating = await cloud.make("/network/v2.0/floatingips", "floatingip", floating_network_id=cloud.public, port_id=port)
        assert await cloud.findings() == [], inject.__name__
        await cloud.database.transact(lambda tx, inject=inject, server_id=server_id: inject(cloud, tx, server_id))
        found = await cloud.findings()
        assert name in {finding["check"] for finding in found}, inject.__name__
        assert all(finding["repairable"] and finding["why"] and finding["remedy"] for finding in found), (inject.__name__, found)
        report = await cloud.repair()
        assert name in {finding["check"] for finding in report["repaired"]}, inject.__name__
        assert report["findings"] == [], inject.__name__
        assert (await cloud.repair())["repaired"] == [], inject.__name__
        await cloud("DELETE", f"/network/v2.0/floatingips/{floating['id']}")
        if cloud.record(server_id).host:
            await cloud.delete(server_id)
        else:
            await cloud("DELETE", f"/compute/v2.1/servers/{server_id}")
        if inject is upload_without_end:
            assert cloud.database.require(IMAGE, LOST).image.status == Image.QUEUED
    await cloud.until(lambda: not cloud.database.rows(SERVER))
    assert await cloud.findings() == []


async def test_history_that_the_leader_forgot_goes(cloud: Cloud, monkeypatch):
    from control.compute.reconciler import Settling

    async def forgets(self: Any, server_id: str) -> None:
        return None

    monkeypatch.setattr(Settling, "_forget", forgets)
    await cloud.database.transact(lambda tx: tx.put(ACTION, ActionRecord(server_id=LOST, request_id="req-1")))
    assert [finding["check"] for finding in await cloud.findings()] == ["compute.history"]
    assert (await cloud.repair())["findings"] == [] and cloud.database.rows(ACTION, "server", LOST) == []


async def test_what_is_mended_is_looked_at_again_in_the_commit_that_mends(cloud: Cloud):
    """Between the finding and its repair somebody else has put it right, and more has changed."""
    server_id = await cloud.server()
    cores = cloud.database.require(quota.LEDGER, "compute", cloud.project).used["cores"]
    await cloud.database.transact(lambda tx: ledger("compute", "cores")(cloud, tx, server_id))
    assert await cloud.findings("compute.quota")
    await cloud.server()
    assert [finding["check"] for finding in (await cloud.repair("compute.quota"))["repaired"]] == ["compute.quota"]
    assert cloud.database.require(quota.LEDGER, "compute", cloud.project).used["cores"] == cores + 1


async def test_what_nobody_but_an_operator_can_mend_is_named_with_what_to_do(cloud: Cloud):
    server_id = await cloud.server()
    data = cloud.replica.images._directory.path
    for path in data.iterdir():
        if not path.name.startswith("directory-id"):
            path.unlink()
    (data / "stray").write_bytes(b"x")

    def drift(tx: Transaction) -> None:
        host = tx.require(fleet.HOST, "h2")
        host.up = False
        tx.put(fleet.HOST, host)
        server = tx.require(SERVER, server_id)
        server.desired.deleted = True
        server.updated_at.seconds = 1_000_000_000
        tx.put(SERVER, server)

    await cloud.database.transact(drift)
    found = {(finding["check"], finding["severity"], finding["repairable"]) for finding in await cloud.findings()}
    assert found == {("hosts.attached", "warning", False), ("compute.passing", "warning", False), ("image.files", "error", False),
                     ("image.files", "warning", True)}
    assert [finding["subject"] for finding in (await cloud.repair())["repaired"]] == ["file stray"]
    assert not (data / "stray").exists()


async def test_the_doctor_is_for_admins_and_knows_its_checks(cloud: Cloud):
    assert (await cloud("GET", "/doctor/v1/findings")).status == 403
    assert (await cloud("POST", "/doctor/v1/repairs", {"checks": []})).status == 403
    wrong = await cloud("GET", "/doctor/v1/findings?check=compute.nothing", user="admin")
    assert wrong.status == 400 and "compute.quota" in wrong.json["errors"][0]["detail"]
    names = [check["name"] for check in (await cloud.report())["checks"]]
    assert len(names) == len(set(names)) > 20
    assert [check["name"] for check in (await cloud.report("compute.quota"))["checks"]] == ["compute.quota"]
