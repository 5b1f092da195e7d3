"""Keeps the agent's certificate good: asks the control plane for a new one when its last third has begun.

The key stays, so a renewal replaces one file and no crash can leave two that are no pair. What needs cryptography is done in
a process of its own (`python -m agents.certificate CERTIFICATE KEY`), whose library would else be most of an idle agent's memory.
"""
import asyncio
import datetime
import json
import logging
import os
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from agents.hypervisor.driver import Fault

log = logging.getLogger(__name__)

#: Seconds between two looks at most; and after a renewal failed, doubling from the first to the second.
LOOK_EVERY, FIRST_RETRY, LAST_RETRY = 86_400.0, 1.0, 600.0


async def keep_renewing(certificate: Path, key: Path, renew: Callable[[bytes], Awaitable[bytes]]) -> None:
    """Renew the certificate whenever it is due, until cancelled.

    Args:
      renew: has a certificate signing request (PEM) signed; raises Fault.
    """
    retry = FIRST_RETRY
    while True:
        try:
            due, request = await _look(certificate, key)
            if due <= 0:
                _replace(certificate, key, await renew(request))
                log.info("certificate %s: renewed", certificate.name)
                wait, retry = retry, min(retry * 2, LAST_RETRY)      # one that is due at once must not be asked for at once
            else:
                wait, retry = min(due, LOOK_EVERY) + FIRST_RETRY, FIRST_RETRY
        except (Fault, OSError, ValueError) as error:
            wait, retry = retry, min(retry * 2, LAST_RETRY)
            log.warning("certificate %s could not be renewed; again in %.0f s: %s", certificate.name, wait, error)
        await asyncio.sleep(wait)


async def _look(certificate: Path, key: Path) -> tuple[float, bytes]:
    """Seconds until the last third of the certificate's life, and a request for another one."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "agents.certificate", str(certificate), str(key),
                                                   stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    out, err = await process.communicate()
    if process.returncode:
        raise ValueError(err.decode(errors="replace").strip().splitlines()[-1:] or f"status {process.returncode}")
    answer = json.loads(out)
    return answer["due"], answer["request"].encode()


def _replace(certificate: Path, key: Path, renewed: bytes) -> None:
    """Raises ValueError where what came is no certificate of this key, and changes nothing then."""
    part = certificate.with_name(f".{certificate.name}.new")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(renewed)
        file.flush()
        os.fsync(file.fileno())
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(part, key)
    except ssl.SSLError as error:
        part.unlink()
        raise ValueError(f"what the control plane sent is no certificate of this host's key ({error})") from error
    part.replace(certificate)


def main() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    leaf = x509.load_pem_x509_certificate(Path(sys.argv[1]).read_bytes())
    key = serialization.load_pem_private_key(Path(sys.argv[2]).read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        sys.exit("the key is not one of ours")
    third = (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 3
    due = (leaf.not_valid_after_utc - third - datetime.datetime.now(datetime.UTC)).total_seconds()
    request = x509.CertificateSigningRequestBuilder(leaf.subject).sign(key, hashes.SHA256())
    json.dump({"due": due, "request": request.public_bytes(serialization.Encoding.PEM).decode()}, sys.stdout)


if __name__ == "__main__":
    main()
