"""The authority and what it signs: made once, kept while good, private to their directory."""
import datetime
import ipaddress
import ssl
import threading

import pytest
from cryptography import x509

from control.kernel import pki


def certificate(credentials: pki.Credentials) -> x509.Certificate:
    return x509.load_pem_x509_certificate(credentials.certificate.read_bytes())


def test_everything_is_private_to_its_directory(tmp_path):
    directory = tmp_path / "pki"
    pki.ensure_leaf(directory, "etcd", ["127.0.0.1"], server=True)
    assert directory.stat().st_mode & 0o777 == 0o700
    files = [path for path in directory.iterdir() if not path.name.startswith(".")]
    assert {path.name for path in files} == {"ca.crt", "ca.key", "etcd.crt", "etcd.key"}
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}


def test_what_is_good_is_left_alone(tmp_path):
    first = pki.ensure_leaf(tmp_path, "etcd", ["127.0.0.1", "localhost"], server=True, client=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert pki.ensure_leaf(tmp_path, "etcd", ["localhost", "127.0.0.1"], server=True, client=True) == first
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_leaf_holds_for_its_name_and_addresses_and_what_it_is_for(tmp_path):
    leaf = certificate(pki.ensure_leaf(tmp_path, "agent-1", ["10.0.0.7", "fd00::7", "host.example"], client=True))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert set(names.get_values_for_type(x509.DNSName)) == {"agent-1", "host.example"}
    assert set(names.get_values_for_type(x509.IPAddress)) == {ipaddress.ip_address("10.0.0.7"), ipaddress.ip_address("fd00::7")}
    assert list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [x509.ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize("damage", ["names", "uses", "key gone", "certificate gone", "garbage", "another's key", "old",
                                    "authority"])
def test_a_leaf_that_is_no_good_is_made_anew(tmp_path, damage):
    leaf = pki.ensure_leaf(tmp_path, "etcd", ["127.0.0.1"], server=True)
    before = leaf.certificate.read_bytes()
    sans, client = ["127.0.0.1"], False
    match damage:
        case "names":
            sans = ["127.0.0.2"]
        case "uses":
            client = True
        case "old":
            leaf.certificate.unlink()
            pki.ensure_leaf(tmp_path, "etcd", ["127.0.0.1"], server=True, life=datetime.timedelta(milliseconds=1))
        case "key gone":
            leaf.key.unlink()
        case "certificate gone":
            leaf.certificate.unlink()
        case "garbage":
            leaf.certificate.write_text("garbage")
        case "another's key":
            leaf.key.write_bytes(pki.ensure_leaf(tmp_path, "other").key.read_bytes())
        case "authority":
            (tmp_path / "ca.crt").unlink()
            (tmp_path / "ca.key").unlink()
    assert pki.ensure_leaf(tmp_path, "etcd", sans, server=True, client=client) == leaf
    assert leaf.certificate.read_bytes() != before
    ssl.create_default_context(cafile=leaf.ca).load_cert_chain(leaf.certificate, leaf.key)
    certificate(leaf).verify_directly_issued_by(x509.load_pem_x509_certificate(leaf.ca.read_bytes()))


def test_half_an_authority_is_an_error_and_not_a_new_one(tmp_path):
    pki.ensure_ca(tmp_path)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(ValueError, match="no pair"):
        pki.ensure_ca(tmp_path)


@pytest.mark.parametrize("name", ["", "ca", "a/b", "../x", ".hidden", "x" * 65, "a b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        pki.ensure_leaf(tmp_path, name)


def test_many_at_once_make_one_authority(tmp_path):
    threads = [threading.Thread(target=pki.ensure_leaf, args=(tmp_path / "pki", f"host-{i}")) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ca = x509.load_pem_x509_certificate((tmp_path / "pki" / "ca.crt").read_bytes())
    for i in range(8):
        x509.load_pem_x509_certificate((tmp_path / "pki" / f"host-{i}.crt").read_bytes()).verify_directly_issued_by(ca)


def test_python_and_grpc_believe_it_and_only_it(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    server = pki.ensure_leaf(mine, "server", ["127.0.0.1"], server=True)
    for client, accepted in ((pki.ensure_leaf(mine, "client", client=True), True),
                             (pki.ensure_leaf(other, "client", client=True), False)):
        serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=server.ca)
        serving.load_cert_chain(server.certificate, server.key)
        serving.verify_mode = ssl.CERT_REQUIRED
        calling = ssl.create_default_context(cafile=server.ca)
        calling.load_cert_chain(client.certificate, client.key)
        assert shake_hands(serving, calling) is accepted


def shake_hands(serving: ssl.SSLContext, calling: ssl.SSLContext) -> bool:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    client = calling.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    done = set()
    for _ in range(10):
        for end in (client, server):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError:
                return False
    return len(done) == 2
