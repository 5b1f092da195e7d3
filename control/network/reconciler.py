"""Which host each router's external addresses are on: chosen with the gateway, moved here when that host is lost.

A router whose host is down moves to one that is up; where none is, it stays, so that a single host's restart moves nothing.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

from control.kernel import fleet
from control.kernel.cache import Change
from control.kernel.database import Database, Transaction
from control.kernel.reconcile import Controller
from control.kernel.store import Guard
from control.network.model import ROUTER
from control.network.routers import choose_host

log = logging.getLogger(__name__)


class Reconciler:
    def __init__(self, database: Database, guards: Sequence[Guard] = ()):
        """`guards`: the leader's fence, added to each commit."""
        self._database = database
        self._guards = guards

    def controller(self, mine: Callable[[str], bool] = lambda key: True) -> Controller:
        """What calls reconcile() with each router that may have to move, of those whose store keys are this leader's."""
        return Controller(
            "network.gateways",
            self._database.cache,
            kinds=(ROUTER, fleet.HOST),
            keys_of=self._keys_of,
            all_keys=self._all_keys,
            reconcile=self.reconcile,
            mine=mine,
            workers=2,
        )

    async def reconcile(self, key: str) -> float | None:
        """One step for the router under a store key."""
        router = self._database.cache.at(ROUTER, key)[1]
        if router is None or not router.gateway_port_id or self._serves(router.gateway_host):
            return None

        def decide(tx: Transaction) -> str:
            now = tx.get(ROUTER, router.id)
            if now is None or not now.gateway_port_id or self._serves(now.gateway_host):
                return ""
            host = choose_host(tx)
            if host and host != now.gateway_host:
                now.gateway_host = host
                tx.put(ROUTER, now)
                return host
            return ""

        host = await self._database.transact(decide, guards=self._guards)
        if host:
            log.info("router %s: its gateway is on host %s now", router.id, host)
        return None

    def _serves(self, host: str) -> bool:
        record = self._database.get(fleet.HOST, host) if host else None
        return record is not None and record.up

    def _keys_of(self, change: Change) -> Iterable[str]:
        if change.kind is ROUTER:
            return (change.key,)
        if change.kind is fleet.HOST and (change.before is None or change.after is None or change.before.up != change.after.up):
            return self._all_keys()
        return ()

    def _all_keys(self) -> Iterable[str]:
        return [ROUTER.key_of(router) for router in self._database.cache.all(ROUTER) if router.gateway_port_id]
