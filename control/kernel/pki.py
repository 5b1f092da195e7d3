"""The cloud's own certificate authority: who may speak to etcd, who is a replica, and who is an agent.

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


def ensure_leaf(directory: Path, name: str, sans: Iterable[str] = (), *, server: bool = False, client: bool = False,
                life: datetime.timedelta = LEAF_LIFE) -> Credentials:
    """A certificate of the authority in `directory` for `name` (<name>.crt, <name>.key), renewed in its last third.

    Args:
      name: the common name; letters, digits, dots, dashes, at most 64.
      sans: DNS names and IP addresses that it holds for, beside the name itself.
      server, client: what it may be used for; etcd's own needs both.
      life: from now on, where it is made anew.
    """
    _check_name(name)
    authority = ensure_ca(directory)
    files = Credentials(authority.ca, directory / f"{name}.crt", directory / f"{name}.key")
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
            _write(files, _sign(ca, ca_key, _subject(name), key.public_key(), names, usages, life), key)
    return files


def issue(directory: Path, name: str, *, life: datetime.timedelta = LEAF_LIFE) -> tuple[bytes, bytes]:
    """A new client certificate and its key (PEM) for another machine; nothing of them stays here. Raises as certify()."""
    _check_name(name)
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder(_subject(name)).sign(key, hashes.SHA256())
    return certify(directory, name, request.public_bytes(serialization.Encoding.PEM), life=life), _pem(key)


def certify(directory: Path, name: str, request: bytes, *, life: datetime.timedelta = LEAF_LIFE) -> bytes:
    """A new client certificate (PEM) of the authority in `directory` for the key of a certificate signing request (PEM).

    Raises ValueError where the request is none, is not for `name`, is not signed with its own key or has a key of another
    kind than ours; LookupError where the authority's key is not here.
    """
    asked = x509.load_pem_x509_csr(request)
    key = asked.public_key()
    if asked.subject != _subject(name) or not asked.is_signature_valid:
        raise ValueError(f"the request is not {name}'s own")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("the request's key is not one of curve P-256")
    pair = _read(Credentials(directory / "ca.crt", directory / "ca.crt", directory / "ca.key"))
    if pair is None:
        raise LookupError(f"{directory / 'ca.key'} is not there")
    certificate = _sign(*pair, _subject(name), key, _general_names([name]), [ExtendedKeyUsageOID.CLIENT_AUTH], life)
    return certificate.public_bytes(serialization.Encoding.PEM)


def expiries(directory: Path) -> dict[str, datetime.datetime]:
    """Until when each certificate in `directory` is good, by name; "ca" is the authority's own."""
    return {file.stem: until for file in sorted(directory.glob("*.crt")) if (until := expiry(file))}


def expiry(file: Path) -> datetime.datetime | None:
    """Until when the first certificate in a PEM file is good; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return x509.load_pem_x509_certificate(file.read_bytes()).not_valid_after_utc
    return None


def _sign(ca: x509.Certificate, ca_key: ec.EllipticCurvePrivateKey, subject: x509.Name, key: ec.EllipticCurvePublicKey,
          names: Sequence[x509.GeneralName], usages: Sequence[x509.ObjectIdentifier],
          life: datetime.timedelta) -> x509.Certificate:
    builder = _builder(subject, ca.subject, key, life)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(ca_key, hashes.SHA256())


def _check_name(name: str) -> None:
    if not 0 < len(name) <= 64 or not all(c.isalnum() or c in ".-" for c in name) or name.startswith(".") or name == "ca":
        raise ValueError(f"{name!r} cannot be the name of a certificate")


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _still_good(leaf: x509.Certificate, ca: x509.Certificate, names: Sequence[x509.GeneralName],
                usages: Sequence[x509.ObjectIdentifier]) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
        has = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        may = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value if usages else ()
    except Exception:
        return False
    return set(has) == set(names) and set(may) == set(usages) and until_due(leaf) > 0


def until_due(leaf: x509.Certificate) -> float:
    """Seconds until the last third of a certificate's life begins; below 0 within it."""
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return (leaf.not_valid_after_utc - life / 3 - datetime.datetime.now(datetime.UTC)).total_seconds()


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
    begin = now - min(CLOCK_SKEW, life / 20)         # hardly a part of its life
    return (x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number(), begin, now + life)
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
    _replace(files.key, _pem(key))
    _replace(files.certificate, certificate.public_bytes(serialization.Encoding.PEM))


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


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
