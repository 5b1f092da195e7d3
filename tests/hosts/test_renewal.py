"""A host's certificate: renewed for the key that it has, for nobody else's name, while the agent runs."""
import asyncio
import contextlib
import datetime
import functools
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from agents.certificate import keep_renewing
from agents.hypervisor.driver import Fault
from control.hosts.service import Hosts
from control.kernel import fleet, pki, replicas, rpc, tls
from control.kernel.database import Database
from control.kernel.store import MemoryStore
from control.placement.host_providers import HostProviders
from protos.internal.v1 import hosts_pb2 as pb
from protos.internal.v1 import hosts_pb2_grpc as stubs
from tests.hosts.world import Moves, Nobody, NoImages, Things


@pytest.fixture
async def renew(tmp_path: Path):
    """A call of Renew as the host "one"."""
    database = Database(store := MemoryStore(), fleet.KINDS)
    membership = replicas.Membership(store, replicas.new_record("control", "127.0.0.1:1"))
    hosts = Hosts(database, [], [Things(database)], NoImages(), HostProviders(), membership, Moves(),
                  certify=functools.partial(pki.certify, tmp_path))
    dispatcher = rpc.Dispatcher(Nobody())
    dispatcher.add(hosts, pb.DESCRIPTOR.services_by_name["Hosts"])
    server = grpc.aio.server()
    rpc.add_to_grpc(dispatcher, server)
    own = pki.ensure_leaf(tmp_path, "agents", ["localhost"], server=True)
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_server_credentials(own.certificate, own.key, own.ca))
    await server.start()
    leaf = pki.ensure_leaf(tmp_path, "one", client=True)
    async with grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(
            leaf.ca.read_bytes(), leaf.key.read_bytes(), leaf.certificate.read_bytes())) as channel:
        yield lambda data: stubs.HostsStub(channel).Renew(pb.RenewRequest(request=data))
    await server.stop(None)


def request(name: str, key) -> bytes:
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder(subject).sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


async def test_a_host_gets_a_certificate_for_its_own_name_and_key_that_is_for_clients_only(renew) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = x509.load_pem_x509_certificate((await renew(request("one", key))).certificate)
    assert leaf.public_key() == key.public_key()
    assert leaf.subject.rfc4514_string() == "CN=one"
    assert leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == ["one"]
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("what", ["another name", "the control plane's", "no request", "too much", "another kind of key"])
async def test_what_is_not_the_hosts_own_request_is_refused(renew, what: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    data = {"another name": lambda: request("two", key), "the control plane's": lambda: request("control", key),
            "no request": lambda: b"junk", "too much": lambda: b"x" * (16 << 10) + b"x",
            "another kind of key": lambda: request("one", rsa.generate_private_key(65537, 2048))}[what]()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await renew(data)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_replica_without_the_authoritys_key_says_that_another_may_have_it(renew, tmp_path: Path) -> None:
    (tmp_path / "ca.key").unlink()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await renew(request("one", ec.generate_private_key(ec.SECP256R1())))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE and "another" in (refused.value.details() or "")


async def test_an_agent_renews_its_certificate_in_its_last_third_and_tries_again_when_that_fails(tmp_path: Path) -> None:
    leaf = pki.ensure_leaf(tmp_path, "one", client=True, life=datetime.timedelta(seconds=6))
    first, key = leaf.certificate.read_bytes(), leaf.key.read_bytes()
    asked = []

    async def sign(data: bytes) -> bytes:
        asked.append(asyncio.get_running_loop().time())
        match len(asked):
            case 1:
                raise Fault("not connected")
            case 2:
                return pki.issue(tmp_path, "one")[0]       # of another key
        return pki.certify(tmp_path, "one", data, life=datetime.timedelta(days=1))

    begun = asyncio.get_running_loop().time()
    task = asyncio.create_task(keep_renewing(leaf.certificate, leaf.key, sign))
    try:
        async with asyncio.timeout(20):
            while len(asked) < 2:
                await asyncio.sleep(0.05)
            assert asked[0] - begun > 2, "it was not in its last third"
            assert leaf.certificate.read_bytes() == first
            while leaf.certificate.read_bytes() == first:
                await asyncio.sleep(0.05)
        await asyncio.sleep(2)
        assert len(asked) == 3, "one that is good for a day was asked for again"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert leaf.key.read_bytes() == key and leaf.certificate.stat().st_mode & 0o777 == 0o600
    assert x509.load_pem_x509_certificate(leaf.certificate.read_bytes()).public_key() == serialization.load_pem_private_key(
        key, None).public_key()
