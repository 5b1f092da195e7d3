"""A cloud of several machines, each with its own state directory and network namespace: three replicas, and a host.

Hosts are simulated here: what is tried is how the machines find each other, and what goes on when one dies.
"""
import os
import shutil
import signal
import socket
import ssl
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509

from agents.network import kernel
from control.cli import credentials
from control.cli.session import RestError, Session
from control.kernel import pki
from tests.e2e import machines
from tests.e2e.cloud import until
from tests.e2e.machines import Machine
from tests.e2e.test_crashes import retried
from tests.log_secrets import WATCH

pytestmark = [pytest.mark.host, pytest.mark.etcd, pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")]

#: A certificate is renewed after a minute.
LIFE_DAYS = 90 / 86400

SETTINGS = f"""
name = "brumemach"
port = 5600
hypervisor = "simulated"
certificate_days = {LIFE_DAYS}
"""


@pytest.fixture(scope="module")
def cloud() -> Iterator[dict[str, Machine]]:
    directory = Path(tempfile.mkdtemp(prefix="brume-", dir="/var/tmp"))
    file = directory / "brume.toml"
    made = {name: Machine(name, number, directory, ["--host", name, "--config", str(file), "--no-seed"])
            for number, name in enumerate(("r1", "r2", "r3", "h1"), 1)}
    file.write_text(SETTINGS + "".join(f'[[replicas]]\nname = "{name}"\naddress = "{made[name].address}"\n'
                                       for name in ("r1", "r2", "r3")))
    machines.disconnect()
    machines.connect(list(made.values()))
    try:
        yield made
    finally:
        for machine in made.values():
            machine.cut_off()
            for secret in machine.state_dir.glob("*.password"):
                WATCH.note(secret.read_text().strip())
            if (machine.state_dir / "log").exists():
                WATCH.read(machine.state_dir / "log")
                if keep := os.environ.get("BRUME_KEEP_LOGS"):
                    shutil.copytree(machine.state_dir / "log", Path(keep, machine.name), dirs_exist_ok=True)
            machine.brume("down", "--purge", "--yes", check=False)
        machines.disconnect()
        shutil.rmtree(directory)


def session(machine: Machine, user: str = "admin") -> Session:
    """Of the API of this machine, and no other: the catalog's addresses are passed over."""
    config = replace(machine.config, public_url=f"http://{machine.address}:{machine.config.port}")
    own = credentials.ensure(config)[user].session(config)
    url = own._url
    own._url = lambda service, path: url(service, path).replace(  # type: ignore[method-assign]
        machine.config.url, config.public_url)
    return own


def server(own: Session, name: str) -> str:
    image = retried(own, "POST", "image", "/v2/images", {"name": name, "disk_format": "raw", "container_format": "bare"})
    own.request("PUT", "image", f"/v2/images/{image['id']}/file", b"\0" * 512,
                headers={"Content-Type": "application/octet-stream"})
    network = retried(own, "GET", "network", "/v2.0/networks?name=private")["networks"][0]
    return retried(own, "POST", "compute", "/servers", {"server": {
        "name": name, "imageRef": image["id"], "flavorRef": "tiny", "networks": [{"uuid": network["id"]}]}})["server"]["id"]


def is_active(own: Session, server_id: str) -> bool:
    try:
        return own.request("GET", "compute", f"/servers/{server_id}")["server"]["status"] == "ACTIVE"
    except RestError:
        return False


def voters(machine: Machine) -> int:
    table = machine.brume("etcd", "list").stdout
    return table.count("voter") + table.count("leader")


def test_a_machine_without_certificates_of_the_cloud_is_told_how_to_get_them(cloud: dict[str, Machine]) -> None:
    refused = cloud["r2"].brume("up", *cloud["r2"].flags, check=False)
    assert refused.returncode == 1 and "brume certificate replica r2" in refused.stderr
    refused = cloud["h1"].brume("up", *cloud["h1"].flags, check=False)
    assert refused.returncode == 1 and "brume certificate host h1" in refused.stderr


def join(by: Machine, machine: Machine) -> None:
    """The machine becomes what it is for the cloud, by a bundle that another one of its made."""
    kind = "host" if machine.name == "h1" else "replica"
    by.brume("certificate", kind, machine.name, "--output", f"{machine.name}.tar")
    bundle = by.directory / f"{machine.name}.tar"
    assert bundle.stat().st_mode & 0o777 == 0o600
    machine.brume("join", str(bundle))
    bundle.unlink()


def test_a_cloud_on_one_machine_becomes_one_of_three_replicas_and_a_host(cloud: dict[str, Machine]) -> None:
    r1 = cloud["r1"]
    alone = r1.directory / "alone.toml"
    alone.write_text(SETTINGS)
    r1.brume("up", "--host", "r1", "--config", str(alone), "--no-seed")
    assert r1.config.auth_url == "http://127.0.0.1:5600/v3"
    r1.up()
    session(r1).request("PUT", "compute", "/os-services/disable", {"host": "r1", "binary": "nova-compute"})    # a host no more
    session(r1).request("POST", "compute", "/flavors", {"flavor": {
        "id": "tiny", "name": "tiny", "vcpus": 1, "ram": 64, "disk": 0}})
    for name in ("r2", "r3", "h1"):
        join(r1, cloud[name])
    assert not (cloud["h1"].state_dir / "pki" / "ca.key").exists(), "a host can make certificates"
    for name in ("r2", "r3", "h1"):
        cloud[name].up()
    assert voters(cloud["r3"]) == 3
    for name in ("r1", "r2", "r3"):
        assert session(cloud[name], "demo").request("GET", "compute", "/flavors/tiny")["flavor"]["name"] == "tiny"


def test_a_bundle_of_another_cloud_and_a_file_that_is_none_are_refused(cloud: dict[str, Machine], tmp_path: Path) -> None:
    other = Machine("other", 9, tmp_path)
    junk = tmp_path / "junk.tar"
    junk.write_bytes(b"junk" * 1000)
    assert "no bundle" in cloud["r1"].brume("join", str(junk), check=False).stderr
    cloud["r1"].brume("certificate", "host", "h2", "--output", str(tmp_path / "h2.tar"))
    pki.ensure_ca(other.state_dir / "pki")
    refused = Machine("r1", 1, tmp_path)
    (tmp_path / "other").rename(refused.state_dir)
    done = refused.brume("join", str(tmp_path / "h2.tar"), check=False)
    assert done.returncode == 1 and "another cloud" in done.stderr
    for taken in ("control", "etcd", "control-7", "r2"):
        assert cloud["r1"].brume("certificate", "host", taken, check=False).returncode


def test_a_hosts_certificate_opens_neither_etcd_nor_its_peers_port(cloud: dict[str, Machine]) -> None:
    host, replica = cloud["h1"], cloud["r1"]
    for port in (replica.config.port + 3, replica.config.port + 4):
        for machine, name, opens in ((host, "h1", False), (replica, "etcd", True)):
            context = ssl.create_default_context(cafile=str(machine.state_dir / "pki" / "ca.crt"))
            context.load_cert_chain(machine.state_dir / "pki" / f"{name}.crt", machine.state_dir / "pki" / f"{name}.key")
            with kernel.inside(machine.namespace):         # etcd holds peers to the addresses of their certificates, too
                assert answers(context, replica.address, port) is opens, (port, name)


def answers(context: ssl.SSLContext, address: str, port: int) -> bool:
    """Whether a listener lets a certificate in: with TLS 1.3 it is only told after the handshake."""
    with socket.create_connection((address, port), timeout=5) as plain, \
            context.wrap_socket(plain, server_hostname=address) as secured:
        try:
            secured.sendall(b"GET /health HTTP/1.1\r\nHost: etcd\r\n\r\n")
            return bool(secured.recv(1))
        except (ssl.SSLError, ConnectionError):
            return False


@pytest.mark.parametrize("victim, loses_its_disk", [("r1", False), ("r3", True)])
def test_the_cloud_goes_on_without_any_one_replica_which_comes_back(cloud: dict[str, Machine], victim: str,
                                                                    loses_its_disk: bool) -> None:
    machine = cloud[victim]
    machine.cut_off()
    others = [cloud[name] for name in ("r1", "r2", "r3") if name != victim]
    server_id = server(session(others[0], "demo"), f"without-{victim}")
    assert until(lambda: is_active(session(others[1], "demo"), server_id), f"ACTIVE without {victim}", 30)
    if loses_its_disk:
        shutil.rmtree(machine.state_dir)
        assert "certificate" in machine.brume("up", *machine.flags, check=False).stderr, "it founded another cloud"
        others[1].brume("etcd", "replace", victim, "--yes")
        join(others[1], machine)
    machine.up()
    assert is_active(session(machine, "demo"), server_id)
    until(lambda: voters(others[0]) == 3, "three voters", 30)


def test_a_host_whose_machine_is_lost_is_replaced_under_its_name(cloud: dict[str, Machine]) -> None:
    host = cloud["h1"]
    host.cut_off()
    shutil.rmtree(host.state_dir)
    join(cloud["r2"], host)
    host.up()
    own = session(cloud["r1"], "demo")
    server_id = server(own, "replaced")
    assert until(lambda: is_active(own, server_id), "ACTIVE on the new machine", 30)


def test_a_replica_is_upgraded_while_the_others_serve(cloud: dict[str, Machine]) -> None:
    before = cloud["r2"].pids()
    cloud["r2"].brume("down", "--keep-servers")
    assert session(cloud["r1"]).request("GET", "compute", "/flavors/tiny")
    cloud["r2"].brume("up")
    after = cloud["r2"].pids()
    assert all(after.values()) and not set(after.values()) & set(before.values())
    assert session(cloud["r2"]).request("GET", "compute", "/flavors/tiny")


def test_a_replicas_etcd_is_made_anew_by_one_command(cloud: dict[str, Machine]) -> None:
    lost = cloud["r2"]
    shutil.rmtree(lost.state_dir / "etcd" / "member")
    os.kill(lost.pids()["etcd"], signal.SIGKILL)
    until(lambda: "brume etcd replace r2" in (lost.state_dir / "log" / "etcd.log").read_text(), "etcd says what to do", 30)
    assert "does not answer" in cloud["r1"].brume("etcd", "list").stdout
    lost.brume("etcd", "replace", "r2", "--yes")
    until(lambda: voters(cloud["r1"]) == 3, "three voters", 30)
    assert session(lost).request("GET", "compute", "/flavors/tiny")


def test_certificates_are_renewed_while_all_goes_on(cloud: dict[str, Machine]) -> None:
    files = {f"{name}/{part}": cloud[name].state_dir / "pki" / f"{part}.crt"
             for name, parts in (("r1", ("control", "agents", "etcd")), ("h1", ("h1",))) for part in parts}
    before = {name: serial(file) for name, file in files.items()}
    pids = {name: cloud[name].pids() for name in ("r1", "h1")}
    until(lambda: all(serial(file) != before[name] for name, file in files.items()), "all are renewed", 100)
    port = cloud["r1"].config.port
    assert shown_by(cloud["r1"], port + 2) == serial(files["r1/agents"])
    assert shown_by(cloud["r1"], port + 3) == serial(files["r1/etcd"])
    own = session(cloud["r1"], "demo")
    own.request("POST", "network", "/v2.0/networks", {"network": {"name": "renewed"}})
    assert until(lambda: session(cloud["r3"], "demo").request("GET", "network", "/v2.0/networks?name=renewed")["networks"],
                 "what one replica wrote another has read", 10)
    assert {name: cloud[name].pids() for name in ("r1", "h1")} == pids, "something was started again"
    os.kill(pids["h1"]["agent"], signal.SIGKILL)        # it attaches anew, with its renewed certificate
    server_id = server(own, "renewed")
    assert until(lambda: is_active(own, server_id), "ACTIVE after the renewal", 30)


def shown_by(machine: Machine, port: int) -> int:
    """The serial number of the certificate that a listener shows now."""
    pem = ssl.get_server_certificate((machine.address, port), timeout=5)
    return x509.load_pem_x509_certificate(pem.encode()).serial_number


def serial(file: Path) -> int:
    try:
        return x509.load_pem_x509_certificate(file.read_bytes()).serial_number
    except (FileNotFoundError, ValueError):
        return 0
