"""Listeners whose certificate follows its files: what is renewed on disk is what the next handshake shows.

A pair that is not one (a file was replaced and the other not yet, or is damaged) is passed over until it is.
"""
import asyncio
import logging
import ssl
from pathlib import Path

import grpc

from control.kernel.pki import Credentials

log = logging.getLogger(__name__)

#: Seconds between two looks at the files of a listener that does not ask at each handshake.
LOOK_EVERY = 2.0


class Pair:
    """A certificate chain and its key, as PEM files."""

    def __init__(self, certificate: Path, key: Path):
        self.certificate = certificate
        self.key = key
        self._seen = self._signature()
        self._complained = self._seen

    def has_changed(self) -> bool:
        """Whether the files hold another good pair than at the last call, or when this was made."""
        now = self._signature()
        if now == self._seen:
            return False
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key)
        except OSError as error:           # ssl.SSLError is one
            if now != self._complained:
                log.warning("certificate %s is not taken up: %s", self.certificate, error)
                self._complained = now
            return False
        self._seen = now
        return True

    def _signature(self) -> tuple[object, ...]:
        try:
            return tuple((status.st_ino, status.st_mtime_ns, status.st_size)
                         for status in (self.certificate.stat(), self.key.stat()))
        except OSError:
            return ()


def grpc_channel_credentials(own: Credentials) -> grpc.ChannelCredentials:
    """Credentials of a gRPC client, of the files as they are now: one that is renewed counts from the next channel on."""
    return grpc.ssl_channel_credentials(own.ca.read_bytes(), own.key.read_bytes(), own.certificate.read_bytes())


def grpc_server_credentials(certificate: Path, key: Path, ca: Path | None = None) -> grpc.ServerCredentials:
    """Credentials of a gRPC listener that follow the files; with `ca`, clients must have a certificate of that authority."""
    pair = Pair(certificate, key)

    def read() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(key.read_bytes(), certificate.read_bytes())],
                                                         ca.read_bytes() if ca else None)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        if not pair.has_changed():
            return None
        log.info("certificate %s: the renewed one is shown from now on", certificate)
        return read()

    return grpc.dynamic_ssl_server_credentials(read(), fetch, require_client_authentication=ca is not None)


async def follow(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Have a listener's context follow the files, until cancelled."""
    pair = Pair(certificate, key)
    while True:
        await asyncio.sleep(LOOK_EVERY)
        if pair.has_changed():
            context.load_cert_chain(certificate, key)
            log.info("certificate %s: the renewed one is shown from now on", certificate)
