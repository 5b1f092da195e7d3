"""The cloud's own certificate authority: who may speak to etcd, and who is an agent.

Everything here is safe to repeat: what is on disk and still good is left alone, what is missing, damaged, about to
expire or made for other names is made anew. Keys never leave their directory (0700, files 0600).
"""
import contextlib
import datetime
import fcntl
import ipaddress
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: The CA outlives what it signs by far: replacing it means touching every host. A leaf is renewed in its last third, so
#: a cloud that is started at least every four months never sees one expire.
CA_LIFE, LEAF_LIFE = datetime.timedelta(days=20 * 365), datetime.timedelta(days=365)
#: How far clocks of two machines may be apart.
CLOCK_SKEW = datetime.timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files of one end of mutual TLS: whom it believes, who it is, and the proof."""

    ca: Path
    certificate: Path
    key: Path


def ensure_ca(directory: Path) -> Credentials:
    """The authority in `directory` (ca.crt, ca.key), made at the first call.

    Raises ValueError when only one of its two files is there or they do not belong together: what it signed would stop
    working if another took its place silently.
    """
    files = Credentials(directory / "ca.crt", directory / "ca.crt", directory / "ca.key")
    with _locked(directory):
        if not files.certificate.exists() and not files.key.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Brume CA {secrets.token_hex(4)}")])
            builder = _builder(name, name, key.public_key(), CA_LIFE)
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            builder = builder.add_extension(_usage(authority=True), critical=True)
            _write(files, builder.sign(key, hashes.SHA256()), key)
        elif _read(files) is None:
            raise ValueError(f"{files.certificate} and {files.key} are no pair: restore them from a backup, or remove both "
                             "(every certificate that they signed is then made anew, on every host)")
    return files


def ensure_leaf(directory: Path, name: str, sans: Iterable[str] = (), *, server: bool = False,
                client: bool = False) -> Credentials:
    """A certificate of the authority in `directory` for `name` (<name>.crt, <name>.key), renewed in its last third.

    Args:
      name: the common name; letters, digits, dots, dashes, at most 64. "*.sim" is for every host of one label before ".sim"; its
        files are called "_.sim".
      sans: DNS names and IP addresses that it holds for, beside the name itself.
      server, client: what it may be used for; etcd's own needs both.
    """
    plain = name.removeprefix("*.")
    if not 0 < len(name) <= 64 or not all(c.isalnum() or c in ".-" for c in plain) or plain.startswith(".") or name == "ca":
        raise ValueError(f"{name!r} cannot be the name of a certificate")
    authority = ensure_ca(directory)
    stem = name.replace("*", "_")
    files = Credentials(authority.ca, directory / f"{stem}.crt", directory / f"{stem}.key")
    names = _general_names([name, *sans])
    usages = [usage for wanted, usage in ((server, ExtendedKeyUsageOID.SERVER_AUTH), (client, ExtendedKeyUsageOID.CLIENT_AUTH))
              if wanted]
    with _locked(directory):
        pair = _read(authority)
        if pair is None:
            raise ValueError(f"{authority.certificate} changed while {name}'s was made: try again")
        ca, ca_key = pair
        leaf = _read(files)
        if leaf is None or not _still_good(leaf[0], ca, names, usages):
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
            builder = _builder(subject, ca.subject, key.public_key(), LEAF_LIFE)
            builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            builder = builder.add_extension(_usage(authority=False), critical=True)
            issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
            builder = builder.add_extension(issuer, critical=False)
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
            if usages:
                builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            _write(files, builder.sign(ca_key, hashes.SHA256()), key)
    return files


def speaks_for(common_name: str, host: str) -> bool:
    """Whether a certificate is for a host: its own, or that of a family ("*.sim") of which the host is one."""
    first, _, family = common_name.partition(".")
    if first != "*":
        return common_name == host
    label, _, rest = host.partition(".")
    return bool(family) and rest == family and label not in ("", "*")


def _still_good(leaf: x509.Certificate, ca: x509.Certificate, names: Sequence[x509.GeneralName],
                usages: Sequence[x509.ObjectIdentifier]) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
        has = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        may = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value if usages else ()
    except Exception:
        return False
    left = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return set(has) == set(names) and set(may) == set(usages) and left > LEAF_LIFE / 3


def _general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    general: dict[x509.GeneralName, None] = {}
    for name in names:
        try:
            general[x509.IPAddress(ipaddress.ip_address(name))] = None
        except ValueError:
            general[x509.DNSName(name)] = None
    return list(general)


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey,
             life: datetime.timedelta) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), now - CLOCK_SKEW, now + life)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False))


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(digital_signature=True, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
                         key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                         decipher_only=False)


def _read(files: Credentials) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None:
    """The pair as it is on disk; None where a file is missing, damaged, or belongs to another pair."""
    try:
        certificate = x509.load_pem_x509_certificate(files.certificate.read_bytes())
        key = serialization.load_pem_private_key(files.key.read_bytes(), None)
    except (FileNotFoundError, ValueError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        return None
    return certificate, key


def _write(files: Credentials, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
    """Replace both files. A crash between them leaves two that are no pair, which the next call sees."""
    _replace(files.key, key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                          serialization.NoEncryption()))
    _replace(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time; makes the directory."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    with open(os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
