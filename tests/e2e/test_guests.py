"""What guests are given: addresses of their own network alone, metadata, user data, a config drive, a kernel from an image."""
import base64
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.cli.session import RestError, Session
from tests.e2e.cloud import Cloud, until

pytestmark = [pytest.mark.vm, pytest.mark.host, pytest.mark.etcd]


class Tenant:
    """A project of its own with a key, a network behind a router, and servers that SSH reaches."""

    def __init__(self, cloud: Cloud, name: str, cidr: str, directory: Path):
        self.cloud, self.name = cloud, name
        admin, password = cloud.session("admin"), secrets.token_urlsafe()
        self.project = admin.request("POST", "identity", "/projects", {"project": {"name": name}})["project"]["id"]
        user = admin.request("POST", "identity", "/users", {"user": {"name": name, "password": password}})["user"]["id"]
        member = admin.request("GET", "identity", "/roles?name=member")["roles"][0]["id"]
        admin.request("PUT", "identity", f"/projects/{self.project}/users/{user}/roles/{member}")
        self.session = Session(cloud.config, name, password, name)
        self.key = directory / f"{name}.key"
        self.key.write_text(self.make("compute", "/os-keypairs", "keypair", name=name)["private_key"])
        self.key.chmod(0o600)
        self.network = self.make("network", "/v2.0/networks", "network", name="net")["id"]
        subnet = self.make("network", "/v2.0/subnets", "subnet", network_id=self.network, cidr=cidr, ip_version=4)["id"]
        self.external = self.session.request("GET", "network", "/v2.0/networks?name=public")["networks"][0]["id"]
        router = self.make("network", "/v2.0/routers", "router", external_gateway_info={"network_id": self.external})["id"]
        self.session.request("PUT", "network", f"/v2.0/routers/{router}/add_router_interface", {"subnet_id": subnet})
        group = self.session.request("GET", "network", "/v2.0/security-groups?name=default")["security_groups"][0]["id"]
        self.make("network", "/v2.0/security-group-rules", "security_group_rule", security_group_id=group, direction="ingress")
        self.servers: list[str] = []

    def make(self, service: str, path: str, noun: str, **what: Any) -> dict[str, Any]:
        return self.session.request("POST", service, path, {noun: what})[noun]

    def boot(self, name: str, **more: Any) -> tuple[dict[str, Any], str]:
        """A server that answers SSH, and its floating address."""
        tiny = self.session.request("GET", "image", "/v2/images?name=tiny")["images"][0]
        flavor = next(row for row in self.session.request("GET", "compute", "/flavors")["flavors"] if row["name"] == "m1.tiny")
        server = self.make("compute", "/servers", "server", **{
            "name": name, "imageRef": tiny["id"], "flavorRef": flavor["id"], "key_name": self.name,
            "networks": [{"uuid": self.network}], **more})
        self.servers.append(server["id"])
        server = until(lambda: (row := self.session.request("GET", "compute", f"/servers/{server['id']}")["server"])["status"]
                       in ("ACTIVE", "ERROR") and row, "ACTIVE", 60)
        assert server["status"] == "ACTIVE", server.get("fault")
        port = self.session.request("GET", "network", f"/v2.0/ports?device_id={server['id']}")["ports"][0]
        address = self.make("network", "/v2.0/floatingips", "floatingip", floating_network_id=self.external,
                            port_id=port["id"])["floating_ip_address"]
        until(lambda: self.cloud.ssh(address, self.key, "true").returncode == 0, f"SSH to {name}", 120)
        return server, address

    def run(self, address: str, command: str) -> str:
        return self.cloud.ssh(address, self.key, command).stdout

    def close(self) -> None:
        for server_id in self.servers:
            self.session.request("DELETE", "compute", f"/servers/{server_id}")


@pytest.fixture
def tenants(cloud: Cloud, tmp_path: Path) -> Iterator[Any]:
    made: list[Tenant] = []

    def make(cidr: str = "10.9.0.0/24") -> Tenant:
        made.append(Tenant(cloud, f"tenant-{secrets.token_hex(3)}", cidr, tmp_path))
        return made[-1]

    yield make
    for tenant in made:
        tenant.close()


def test_two_projects_use_the_same_addresses_and_do_not_meet(tenants: Any) -> None:
    one, other = tenants("10.9.0.0/24"), tenants("10.9.0.0/24")
    server, address = one.boot("web", networks=[{"uuid": one.network, "fixed_ip": "10.9.0.50"}])
    twin, twin_address = other.boot("web", networks=[{"uuid": other.network, "fixed_ip": "10.9.0.50"}])
    for tenant, own, at in ((one, server, address), (other, twin, twin_address)):
        assert "10.9.0.50" in tenant.run(at, "ip addr")
        told = json.loads(tenant.run(at, "wget -qO- http://169.254.169.254/openstack/latest/meta_data.json"))
        assert told["uuid"] == own["id"] and told["project_id"] == tenant.project
    # A third machine in the first network meets the first's server at that address, not the other's.
    third, third_address = one.boot("third")
    assert one.run(third_address, "ping -c1 -W2 10.9.0.50 >/dev/null && echo reached").strip() == "reached"
    assert other.cloud.ssh(twin_address, one.key, "true").returncode != 0, "one project's key opens the other's server"
    ports = [port["device_id"] for port in other.session.request("GET", "network", "/v2.0/ports")["ports"]]
    assert server["id"] not in ports and third["id"] not in ports


def test_a_guest_gets_metadata_user_data_a_config_drive_and_a_way_out(tenants: Any) -> None:
    tenant = tenants()
    script = "#!/bin/sh\necho from-user-data > /run/marker\n"
    server, address = tenant.boot("told", config_drive=True, metadata={"role": "test"},
                                  user_data=base64.b64encode(script.encode()).decode())
    assert until(lambda: tenant.run(address, "cat /run/marker").strip(), "user data ran", 30) == "from-user-data"
    told = json.loads(tenant.run(address, "wget -qO- http://169.254.169.254/openstack/latest/meta_data.json"))
    assert told["meta"] == {"role": "test"} and told["name"] == "told"
    drive = tenant.run(address, "mkdir -p /mnt; for d in /dev/vd? /dev/sr?; do mount -t iso9660 -o ro $d /mnt 2>/dev/null && "
                                "break; done; cat /mnt/openstack/latest/meta_data.json")
    assert json.loads(drive)["uuid"] == server["id"]
    assert tenant.run(address, "hostname").strip().split(".")[0] == "told"
    host = tenant.session.request("GET", "network", f"/v2.0/networks/{tenant.external}")
    assert host["network"]["router:external"] is True
    gateway = tenant.cloud.config.public_cidr.replace(".0/24", ".1")
    assert tenant.run(address, f"ping -c1 -W2 {gateway} >/dev/null && echo out").strip() == "out"


def test_a_server_boots_from_kernel_and_ramdisk_images(tenants: Any, cloud: Cloud) -> None:
    tenant = tenants()
    [kernel_file] = cloud.state_dir.glob("guest/*/vmlinuz")

    def upload(name: str, disk_format: str, path: Path, **properties: str) -> str:
        image = tenant.session.request("POST", "image", "/v2/images", {
            "name": name, "disk_format": disk_format, "container_format": disk_format if disk_format != "raw" else "bare",
            **properties})
        tenant.session.request("PUT", "image", f"/v2/images/{image['id']}/file", path.read_bytes(),
                               headers={"Content-Type": "application/octet-stream"})
        return image["id"]

    disk = kernel_file.with_name("empty")
    disk.write_bytes(b"\0" * 2**20)
    kernel = upload("kernel", "aki", kernel_file)
    ramdisk = upload("ramdisk", "ari", kernel_file.with_name("initrd.gz"))
    image = upload("direct", "ami", disk, kernel_id=kernel, ramdisk_id=ramdisk)
    _, address = tenant.boot("direct", imageRef=image)
    assert "Linux" in tenant.run(address, "uname -a")


def test_over_quota_is_refused_with_what_is_used_and_charges_nothing(tenants: Any, cloud: Cloud) -> None:
    tenant, admin = tenants(), cloud.session("admin")
    admin.request("PUT", "compute", f"/os-quota-sets/{tenant.project}", {"quota_set": {"instances": 0}})
    with pytest.raises(RestError, match=r"403.*[Qq]uota exceeded.*instances") as refused:
        tenant.boot("none")
    assert refused.value.status == 403
    usage = tenant.session.request("GET", "compute", "/limits")["limits"]["absolute"]
    assert usage["totalInstancesUsed"] == 0 and usage["totalRAMUsed"] == 0
    assert tenant.session.request("GET", "network", "/v2.0/ports?device_owner=compute:nova")["ports"] == []
