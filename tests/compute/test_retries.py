"""Requests that are sent again and again with one idempotency key, to replicas that die: one server, one port, one charge."""
import asyncio
import shutil
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import requests

from control.cli import credentials
from control.cli.session import Session
from control.kernel import config as settings
from protos.compute.v1 import keypairs_pb2, keypairs_pb2_grpc
from tests.conftest import Etcd, unique
from tests.cutting_proxy import CuttingProxy
from tests.identity.test_replicas import Plane

pytestmark = pytest.mark.etcd


@dataclass
class Site:
    """Two replicas on one etcd, a proxy before them, and what a server needs."""

    planes: tuple[Plane, Plane]
    proxy: CuttingProxy
    image: str = ""
    flavor: str = ""
    network: str = ""

    def session(self, user: str = "demo", number: int = 0) -> Session:
        return credentials.ensure(self.planes[number].config)[user].session(self.planes[number].config)

    def token(self, user: str = "demo") -> str:
        session = self.session(user)
        session.request("GET", "compute", "/servers")
        return session._token

    def set_up(self) -> "Site":
        admin, demo = self.session("admin"), self.session()
        self.flavor = admin.request("POST", "compute", "/flavors", {"flavor": {
            "name": unique("f"), "vcpus": 1, "ram": 64, "disk": 1}})["flavor"]["id"]
        self.network = demo.request("GET", "network", "/v2.0/networks?name=private")["networks"][0]["id"]
        self.image = demo.request("POST", "image", "/v2/images", {
            "name": "i", "disk_format": "raw", "container_format": "bare"})["id"]
        demo.request("PUT", "image", f"/v2/images/{self.image}/file", bytes(1 << 16),
                     headers={"Content-Type": "application/octet-stream"})
        return self

    def body(self, name: str, **more: Any) -> dict[str, Any]:
        return {"server": {"name": name, "imageRef": self.image, "flavorRef": self.flavor,
                           "networks": [{"uuid": self.network}], **more}}

    def used(self) -> tuple[int, int]:
        """Instances and ports that the project's quotas say are in use."""
        demo = self.session()
        project = demo.request("GET", "network", "/v2.0/networks?name=private")["networks"][0]["project_id"]
        return (demo.request("GET", "compute", "/limits")["limits"]["absolute"]["totalInstancesUsed"],
                demo.request("GET", "network", f"/v2.0/quotas/{project}/details.json")["quota"]["port"]["used"])

    def servers(self, name: str) -> list[str]:
        return [server["id"] for server in self.session().request("GET", "compute", f"/servers?name=^{name}")["servers"]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if not shutil.which("etcd"):
        pytest.skip("no etcd here: apt-get install etcd-server")
    own = Etcd(tmp_path_factory.mktemp("retries"))
    own.start()
    planes: list[Plane] = []
    try:
        asyncio.run(own.ready())
        for _ in range(2):
            plane = Plane(tmp_path_factory.getbasetemp() / unique("plane"), own, own.credentials.ca.parent)
            planes.append(plane)
            for login, held in credentials.ensure(planes[0].config).items():
                settings.write_private(plane.config.path(f"{login}.password"), held.password.encode())
            plane.start()
            plane.wait()
        proxy = CuttingProxy([plane.config.port for plane in planes])
        yield Site(tuple(planes), proxy).set_up()  # type: ignore[arg-type]
        proxy.close()
    finally:
        for plane in planes:
            plane.stop()
        own.kill()


def post(site: Site, token: str, key: str, body: dict[str, Any]) -> requests.Response | None:
    """One try through the proxy; None where there was no whole answer."""
    try:
        answer = requests.post(
            f"http://127.0.0.1:{site.proxy.port}/compute/v2.1/servers", json=body, timeout=30,
            headers={"X-Auth-Token": token, "Idempotency-Key": key, "OpenStack-API-Version": "compute 2.96",
                     "Connection": "close"})
    except requests.RequestException:
        return None
    return answer if answer.content else None         # headers that were cut off look like an empty answer


def test_a_hundred_retries_through_a_proxy_that_drops_replies_make_one_server(site: Site):
    name, key, token, before = unique("vm"), str(uuid.uuid4()), site.token(), site.used()
    passed = site.proxy.passed
    for _ in range(100):
        assert post(site, token, key, site.body(name)) is None
    assert site.proxy.passed - passed > 80
    with site.proxy.calm():
        answers = [post(site, token, key, site.body(name)) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {202} and len({answer.content for answer in answers}) == 1
    assert {answer.headers["Idempotency-Replayed"] for answer in answers} == {"true"}
    assert {answer.headers["Location"].rpartition("/")[2] for answer in answers} == {answers[0].json()["server"]["id"]}
    assert site.servers(name) == [answers[0].json()["server"]["id"]]
    ports = site.session().request("GET", "network", f"/v2.0/ports?device_id={site.servers(name)[0]}")["ports"]
    assert len(ports) == 1
    assert site.used() == (before[0] + 1, before[1] + 1)


def test_neither_twins_at_both_replicas_nor_their_death_make_a_second_server(site: Site):
    token, before = site.token(), site.used()
    keys = {unique("vm"): str(uuid.uuid4()) for _ in range(6)}
    with ThreadPoolExecutor(8) as pool:
        tries = [pool.submit(post, site, token, key, site.body(name))
                 for _ in range(20) for name, key in keys.items()]
        for plane in (*site.planes, *site.planes):
            time.sleep(0.3)
            plane.process.kill()
            plane.process.wait()
            plane.start()
            plane.wait()
    assert [each.result() for each in tries] == [None] * len(tries)
    with site.proxy.calm():
        for name, key in keys.items():
            one, two = (post(site, token, key, site.body(name)) for _ in range(2))
            assert one is not None and two is not None
            assert one.status_code == 202 and one.content == two.content
            assert site.servers(name) == [one.json()["server"]["id"]]
    assert site.used() == (before[0] + 6, before[1] + 6)


def test_a_key_that_comes_with_another_request_is_refused_in_the_apis_own_words(site: Site):
    plane, token, key = site.planes[0], site.token(), str(uuid.uuid4())
    headers = {"X-Auth-Token": token, "Idempotency-Key": key}
    network = plane.url.removesuffix("/v3") + "/network/v2.0/security-groups"
    first = requests.post(network, json={"security_group": {"name": "one"}}, headers=headers, timeout=30)
    assert first.status_code == 201 and "Idempotency-Replayed" not in first.headers
    other = requests.post(network, json={"security_group": {"name": "two"}}, headers=headers, timeout=30)
    assert other.status_code == 409 and "another request" in other.json()["NeutronError"]["message"]
    elsewhere = requests.post(plane.url.removesuffix("/v3") + "/compute/v2.1/os-keypairs", json={"keypair": {"name": "k"}},
                              headers=headers, timeout=30)
    assert elsewhere.status_code == 409 and "another request" in elsewhere.json()["conflictingRequest"]["message"]
    again = requests.post(network, json={"security_group": {"name": "one"}}, headers=headers, timeout=30)
    assert (again.status_code, again.content, again.headers["Idempotency-Replayed"]) == (201, first.content, "true")
    wrong = requests.post(network, json={"security_group": {"name": "one"}}, headers=headers | {"Idempotency-Key": "x" * 256},
                          timeout=30)
    assert wrong.status_code == 400
    groups = site.session().request("GET", "network", "/v2.0/security-groups")["security_groups"]
    assert [group["name"] for group in groups if group["name"] in ("one", "two")] == ["one"]


def test_a_secret_is_answered_again_to_who_has_the_key_and_to_nobody_else(site: Site):
    """A private key that the cloud makes and does not keep: only the idempotency key opens what is kept of the answer."""
    key, name = str(uuid.uuid4()), unique("pair")
    url = site.planes[0].url.removesuffix("/v3") + "/compute/v2.1/os-keypairs"
    headers = {"X-Auth-Token": site.token(), "Idempotency-Key": key}
    answers = [requests.post(url, json={"keypair": {"name": name}}, headers=headers, timeout=30) for _ in range(2)]
    assert "PRIVATE KEY" in answers[0].json()["keypair"]["private_key"]
    assert answers[0].content == answers[1].content
    stranger = requests.post(url, json={"keypair": {"name": name}}, timeout=30,
                             headers={"X-Auth-Token": site.token("admin"), "Idempotency-Key": key})
    assert stranger.json()["keypair"]["private_key"] != answers[0].json()["keypair"]["private_key"]


def test_grpc_takes_the_key_as_metadata(site: Site):
    config, name = site.planes[0].config, unique("pair")
    with grpc.insecure_channel(f"127.0.0.1:{config.grpc_port}") as channel:
        stub = keypairs_pb2_grpc.KeyPairsStub(channel)
        request = keypairs_pb2.CreateKeyPairRequest(keypair=keypairs_pb2.NewKeyPair(name=name))
        metadata = [("x-auth-token", site.token()), ("idempotency-key", str(uuid.uuid4()))]
        first, call = stub.CreateKeyPair.with_call(request, metadata=metadata, timeout=30)
        assert not dict(call.trailing_metadata()).get("idempotency-replayed")
        again, call = stub.CreateKeyPair.with_call(request, metadata=metadata, timeout=30)
        assert again == first and dict(call.trailing_metadata())["idempotency-replayed"] == "true"
        request.keypair.name = unique("other")
        with pytest.raises(grpc.RpcError) as refused:
            stub.CreateKeyPair(request, metadata=metadata, timeout=30)
        assert dict(refused.value.trailing_metadata())["reason"] == "idempotency.reused"
        with pytest.raises(grpc.RpcError) as refused:
            stub.CreateKeyPair(request, metadata=[metadata[0], ("idempotency-key", " " * 300)], timeout=30)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_many_servers_of_one_request_are_made_once(site: Site):
    """They are more than one commit holds."""
    admin, name, key = site.session("admin"), unique("many"), str(uuid.uuid4())
    project = site.session().request("GET", "network", "/v2.0/networks?name=private")["networks"][0]["project_id"]
    admin.request("PUT", "compute", f"/os-quota-sets/{project}", {"quota_set": {"instances": -1, "cores": -1, "ram": -1}})
    admin.request("PUT", "network", f"/v2.0/quotas/{project}", {"quota": {"port": -1}})
    body = site.body(name, min_count=30, max_count=30)
    with site.proxy.calm():
        answers = [post(site, site.token(), key, body) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {202}, [answer.text for answer in answers]
    assert len({answer.content for answer in answers}) == 1 and len(site.servers(name)) == 30


def test_the_command_line_gets_its_answer_while_its_replica_dies(site: Site):
    """What `brume` sends it sends until it is answered; each time the proxy drops the answer, and once the replica is killed."""
    plane, proxy, name = site.planes[0], site.proxy, unique("cli")
    session = site.session()
    session.request("GET", "compute", "/servers")
    for service, url in session._endpoints.items():
        session._endpoints[service] = url.replace(f":{plane.config.port}", f":{proxy.port}")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(session.request, "POST", "compute", "/servers", site.body(name))
        time.sleep(0.5)
        plane.process.kill()
        plane.process.wait()
        plane.start()
        plane.wait()
        with proxy.calm():
            server = asked.result()["server"]
    assert site.servers(name) == [server["id"]]


def test_two_hundred_creates_at_once_at_quota_minus_one_admit_one(site: Site):
    admin, demo = site.session("admin"), site.session()
    project = demo.request("GET", "network", "/v2.0/networks?name=private")["networks"][0]["project_id"]
    instances, ports = site.used()
    admin.request("PUT", "compute", f"/os-quota-sets/{project}", {"quota_set": {"instances": instances + 1, "cores": -1}})
    name, token = unique("race"), site.token()

    def create(number: int) -> int:
        return requests.post(f"{site.planes[number % 2].root}/compute/v2.1/servers", json=site.body(f"{name}-{number}"),
                             headers={"X-Auth-Token": token}, timeout=60).status_code

    try:
        with ThreadPoolExecutor(50) as many:
            answers = sorted(many.map(create, range(200)))
        assert answers == [202] + [403] * 199
        assert len(site.servers(name)) == 1 and site.used() == (instances + 1, ports + 1)
    finally:
        admin.request("DELETE", "compute", f"/os-quota-sets/{project}")
