"""The whole way, as users go it: unmodified clients, a real virtual machine, and nothing left at the end."""
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import requests

from tests.e2e.cloud import Cloud, until

pytestmark = [pytest.mark.vm, pytest.mark.host, pytest.mark.etcd]


@pytest.fixture(scope="module")
def names() -> dict[str, str]:
    return {}


@pytest.fixture(scope="module")
def guest(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small guest, saved from the image that the new cloud has."""
    path = tmp_path_factory.mktemp("guest") / "tiny.qcow2"
    cloud.openstack("image", "save", "--file", str(path), "tiny")
    return path


def test_a_password_gets_a_token_by_plain_http(cloud: Cloud) -> None:
    password = (cloud.state_dir / "demo.password").read_text().strip()
    body = {"auth": {"identity": {"methods": ["password"], "password": {
        "user": {"name": "demo", "domain": {"id": "default"}, "password": password}}}}}
    answer = requests.post(f"{cloud.config.auth_url}/auth/tokens", json=body, timeout=30)
    assert answer.status_code == 201 and answer.headers["X-Subject-Token"]
    curl = subprocess.run(["curl", "-si", "-H", "Content-Type: application/json", "-d", json.dumps(body),
                           f"{cloud.config.auth_url}/auth/tokens"], capture_output=True, text=True, check=True).stdout
    assert curl.startswith("HTTP/1.1 201") and "x-subject-token: " in curl.lower()
    wrong = json.loads(json.dumps(body).replace(password, "wrong"))
    refused = requests.post(f"{cloud.config.auth_url}/auth/tokens", json=wrong, timeout=30)
    assert refused.status_code == 401 and refused.json()["error"]["title"] == "Unauthorized"


def test_the_secrets_are_readable_by_root_alone(cloud: Cloud) -> None:
    for name in ("admin.password", "demo.password", "clouds.yaml", "openrc", "cloud.json"):
        assert (cloud.state_dir / name).stat().st_mode & 0o077 == 0, name


def test_identity_by_the_openstack_client(cloud: Cloud) -> None:
    assert cloud.openstack("token", "issue", "-f", "value", "-c", "id").strip()
    catalog = {row["Type"] for row in cloud.openstack_json("catalog", "list")}
    assert {"identity", "compute", "network", "image", "placement"} <= catalog
    cloud.openstack("project", "create", "tour-p")
    cloud.openstack("user", "create", "--project", "tour-p", "--password", "s3cret-tour", "tour-u")
    cloud.openstack("role", "add", "--project", "tour-p", "--user", "tour-u", "member")
    assert "tour-u" in cloud.openstack("role", "assignment", "list", "--names", "--project", "tour-p")
    for noun in ("project", "user", "role", "service", "endpoint", "region", "domain", "group"):
        rows = cloud.openstack_json(noun, "list")
        if rows:
            row = rows[0]
            shown = cloud.openstack_json(noun, "show", row.get("ID") or row.get("Region"))
            assert shown["id" if noun != "region" else "region"] == (row.get("ID") or row.get("Region"))


def test_a_server_from_nothing_to_ssh_and_back(cloud: Cloud, guest: Path, tmp_path: Path) -> None:
    openstack, key = cloud.openstack, tmp_path / "key"
    openstack("image", "create", "--disk-format", "qcow2", "--container-format", "bare", "--file", str(guest), "tour-i")
    assert cloud.openstack_json("image", "show", "tour-i")["checksum"] == hashlib.md5(guest.read_bytes()).hexdigest()
    openstack("flavor", "create", "--ram", "192", "--disk", "1", "--vcpus", "1", "tour-f")
    key.write_text(openstack("keypair", "create", "tour-k"))
    key.chmod(0o600)
    openstack("network", "create", "tour-n")
    openstack("subnet", "create", "--network", "tour-n", "--subnet-range", "10.77.0.0/24", "tour-s")
    openstack("router", "create", "--external-gateway", "public", "tour-r")
    openstack("router", "add", "subnet", "tour-r", "tour-s")
    openstack("security", "group", "create", "tour-sg")
    openstack("security", "group", "rule", "create", "--protocol", "icmp", "tour-sg")
    ssh_rule = cloud.openstack_json("security", "group", "rule", "create", "--protocol", "tcp", "--dst-port", "22", "tour-sg")
    openstack("server", "create", "--wait", "--image", "tour-i", "--flavor", "tour-f", "--key-name", "tour-k",
              "--network", "tour-n", "--security-group", "tour-sg", "tour-vm")
    server = cloud.openstack_json("server", "show", "tour-vm")
    assert server["status"] == "ACTIVE"
    until(lambda: "guest ready" in openstack("console", "log", "show", "tour-vm"), "the guest's ready line", 120)
    address = openstack("floating", "ip", "create", "-f", "value", "-c", "floating_ip_address", "public").strip()
    openstack("server", "add", "floating", "ip", "tour-vm", address)
    until(lambda: subprocess.run(["ping", "-c1", "-W1", address], capture_output=True, check=False).returncode == 0, "ping", 30)
    def logs_in() -> bool:
        return cloud.ssh(address, key, "true").returncode == 0

    until(logs_in, "ssh", 60)
    assert "10.77.0." in cloud.ssh(address, key, "ip addr").stdout
    metadata = cloud.ssh(address, key, "wget -qO- http://169.254.169.254/openstack/latest/meta_data.json").stdout
    assert json.loads(metadata)["uuid"] == server["id"]
    assert cloud.ssh(address, key, "ping -c1 -W2 10.77.0.1").returncode == 0

    openstack("security", "group", "rule", "delete", ssh_rule["id"])
    until(lambda: not logs_in(), "SSH closed with its rule", 5)
    openstack("security", "group", "rule", "create", "--protocol", "tcp", "--dst-port", "22", "tour-sg")
    until(logs_in, "SSH open again", 10)

    openstack("server", "stop", "tour-vm")
    until(lambda: cloud.openstack_json("server", "show", "tour-vm")["status"] == "SHUTOFF", "SHUTOFF", 90)
    openstack("server", "start", "tour-vm")
    until(logs_in, "ssh after start", 90)
    openstack("server", "reboot", "--hard", "--wait", "tour-vm")
    until(logs_in, "ssh after a hard reboot", 90)
    assert "create" in openstack("server", "event", "list", "tour-vm")

    for nouns, name in ((("server",), "tour-vm"), (("image",), "tour-i"), (("flavor",), "tour-f"), (("keypair",), "tour-k"),
                        (("network",), "tour-n"), (("subnet",), "tour-s"), (("router",), "tour-r"),
                        (("security", "group"), "tour-sg"), (("floating", "ip"), address)):
        assert name in openstack(*nouns, "list"), nouns
        assert name in openstack(*nouns, "show", name), nouns
    assert openstack("port", "list", "--server", "tour-vm", "-f", "value", "-c", "ID").strip()

    user = {"OS_AUTH_URL": cloud.config.auth_url, "OS_IDENTITY_API_VERSION": "3", "OS_USERNAME": "tour-u",
            "OS_PASSWORD": "s3cret-tour", "OS_PROJECT_NAME": "tour-p", "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default"}
    for nouns in (("server",), ("router",), ("keypair",), ("floating", "ip"), ("port",)):
        assert "tour-" not in openstack(*nouns, "list", env=user), f"another project sees a {' '.join(nouns)}"
    assert "tour-n" not in openstack("network", "list", env=user)
    assert "tour-s" not in openstack("subnet", "list", env=user)
    assert "tour-sg" not in openstack("security", "group", "list", env=user)
    assert "No Server found" in openstack("server", "show", server["id"], env=user, check=False)
    openstack("flavor", "create", "--ram", "1", "--disk", "1", "--vcpus", "1", "tour-f2", env=user, check=False)
    assert "tour-f2" not in openstack("flavor", "list", "--all")

    openstack("server", "delete", "--wait", "tour-vm")
    openstack("floating", "ip", "delete", address)
    openstack("router", "remove", "subnet", "tour-r", "tour-s")
    openstack("router", "delete", "tour-r")
    openstack("network", "delete", "tour-n")
    openstack("keypair", "delete", "tour-k")
    openstack("image", "delete", "tour-i")
    openstack("flavor", "delete", "tour-f")
    openstack("security", "group", "delete", "tour-sg")
    openstack("user", "delete", "tour-u")
    openstack("project", "delete", "tour-p")


def test_the_readmes_lines_make_a_server_over_grpc(cloud: Cloud) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    program = readme.split("```python\n")[1].split("```")[0].replace("127.0.0.1:5001", f"127.0.0.1:{cloud.config.grpc_port}")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd="/", env={
        **os.environ, "PASSWORD": (cloud.state_dir / "demo.password").read_text().strip()})
    assert done.returncode == 0, done.stderr
    demo, server_id = cloud.session("demo"), done.stdout.strip()
    until(lambda: demo.request("GET", "compute", f"/servers/{server_id}")["server"]["status"] == "ACTIVE", "ACTIVE", 60)
    demo.request("DELETE", "compute", f"/servers/{server_id}")


def test_grpc_has_reflection_and_health(cloud: Cloud) -> None:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
    with grpc.insecure_channel(f"127.0.0.1:{cloud.config.grpc_port}") as channel:
        answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service="compute.v1.Servers"))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert {"compute.v1.Servers", "identity.v1.Tokens"} <= set(ProtoReflectionDescriptorDatabase(channel).get_services())


def test_no_valid_host_says_which_constraint_it_was(cloud: Cloud) -> None:
    admin, demo = cloud.session("admin"), cloud.session("demo")
    admin.request("PUT", "compute", f"/os-quota-sets/{_project(cloud, 'demo')}", {"quota_set": {"ram": -1}})
    flavor = admin.request("POST", "compute", "/flavors", {"flavor": {
        "name": "giant", "ram": 99_999_999, "disk": 1, "vcpus": 1}})["flavor"]
    image = demo.request("GET", "image", "/v2/images?name=tiny")["images"][0]
    server = demo.request("POST", "compute", "/servers", {"server": {
        "name": "giant", "imageRef": image["id"], "flavorRef": flavor["id"]}})["server"]
    try:
        shown = until(lambda: (row := demo.request("GET", "compute", f"/servers/{server['id']}")["server"])["status"] == "ERROR"
                      and row, "ERROR", 20)
        assert "RAM" in shown["fault"]["message"] and "No valid host" in shown["fault"]["message"]
    finally:
        demo.request("DELETE", "compute", f"/servers/{server['id']}")
        admin.request("DELETE", "compute", f"/flavors/{flavor['id']}")
        admin.request("DELETE", "compute", f"/os-quota-sets/{_project(cloud, 'demo')}")


def test_bad_input_gets_the_services_own_error_and_no_trace(cloud: Cloud) -> None:
    token = requests.post(f"{cloud.config.auth_url}/auth/tokens", timeout=30, json={"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": "demo", "domain": {"id": "default"}, "password": (cloud.state_dir / "demo.password").read_text().strip()}}}}},
    ).headers["X-Subject-Token"]
    url = cloud.config.url
    cases = [("POST", "/compute/v2.1/servers", b"{nonsense", 400, "badRequest"),
             ("POST", "/compute/v2.1/servers", b'{"server": {"name": 7}}', 400, "badRequest"),
             ("GET", "/compute/v2.1/servers/no-such-server", None, 404, "itemNotFound"),
             ("POST", "/network/v2.0/networks", b'{"network": {"mtu": "wide"}}', 400, "NeutronError"),
             ("GET", "/network/v2.0/networks/no-such-network", None, 404, "NeutronError"),
             ("GET", "/v3/users/no-such-user", None, (403, 404), "error"),
             ("POST", "/v3/auth/tokens", b"[]", 400, "error")]
    for method, path, body, status, envelope in cases:
        answer = requests.request(method, url + path, data=body, timeout=30,
                                  headers={"X-Auth-Token": token, "Content-Type": "application/json"})
        assert answer.status_code in (status if isinstance(status, tuple) else (status,)), (path, answer.status_code, answer.text)
        assert list(answer.json()) == [envelope], (path, answer.text)
        assert "Traceback" not in answer.text


def test_an_upload_that_is_cut_leaves_the_image_queued_and_no_bytes(cloud: Cloud) -> None:
    demo = cloud.session("demo")
    image = demo.request("POST", "image", "/v2/images", {"name": "cut", "disk_format": "raw", "container_format": "bare"})

    def half() -> object:
        yield b"\0" * 2**20
        raise ConnectionResetError("the client dies here")

    with pytest.raises(Exception, match=r"dies here|does not answer"):
        demo.request("PUT", "image", f"/v2/images/{image['id']}/file", half(),
                     headers={"Content-Type": "application/octet-stream"})
    demo = cloud.session("demo")
    until(lambda: demo.request("GET", "image", f"/v2/images/{image['id']}")["status"] == "queued", "queued again", 20)
    assert not [path for path in (cloud.state_dir / "images").rglob("*") if image["id"] in path.name]
    demo.request("PUT", "image", f"/v2/images/{image['id']}/file", b"\0" * 2**20,
                 headers={"Content-Type": "application/octet-stream"})
    assert demo.request("GET", "image", f"/v2/images/{image['id']}")["status"] == "active"
    demo.request("DELETE", "image", f"/v2/images/{image['id']}")


def _project(cloud: Cloud, name: str) -> str:
    return cloud.session("admin").request("GET", "identity", f"/projects?name={name}")["projects"][0]["id"]
