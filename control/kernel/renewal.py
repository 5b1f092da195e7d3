"""Renews the certificates of a replica's parts in their last third, while all of them run.

Whoever uses a certificate takes the new one up by itself: etcd reads its files at each handshake, listeners follow theirs
(kernel/tls.py), and what holds connections is told here.
"""
import asyncio
import logging
from collections.abc import Callable, Sequence

from cryptography import x509

from control.kernel.pki import Credentials, until_due

log = logging.getLogger(__name__)

#: Seconds between two looks: at most EVERY, sooner when one is due before that.
EVERY, LEAST = 3600.0, 1.0


class Renewal:
    """Keeps leaves good.

    Args:
      leaves: each makes sure of one (kernel/pki.py:ensure_leaf) and says where it is.
      renewed: called in the event loop after any of them has changed.
    """

    def __init__(self, leaves: Sequence[Callable[[], Credentials]], renewed: Callable[[], None]):
        self._leaves = leaves
        self._renewed = renewed
        self._seen: dict[str, bytes] = {}

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            wait = EVERY
            try:
                changed, wait = await asyncio.to_thread(self._look)
                if changed:
                    self._renewed()
            except (OSError, ValueError) as error:
                log.warning("certificates could not be renewed, and will be tried again in %.0f s: %s", wait, error)
            await asyncio.sleep(wait)

    def _look(self) -> tuple[bool, float]:
        """Whether a leaf is another than at the last look, and seconds until the next is due."""
        changed, wait = False, EVERY
        for ensure in self._leaves:
            leaf = ensure()
            data = leaf.certificate.read_bytes()
            before = self._seen.get(str(leaf.certificate))
            if before is not None and before != data:
                changed = True
                log.info("certificate %s: renewed", leaf.certificate.stem)
            self._seen[str(leaf.certificate)] = data
            wait = min(wait, until_due(x509.load_pem_x509_certificate(data)) + LEAST)
        return changed, max(wait, LEAST)
