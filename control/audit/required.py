"""Where the operator wants it so: no change is made while the audit journal is not being written."""
import asyncio
import logging
import time
from pathlib import Path

from control.audit.journal import state
from control.kernel.database import Database

log = logging.getLogger(__name__)

#: Seconds without a sign of life after which the journal counts as stopped. It gives one each second.
SILENCE = 10.0


async def keep_required(database: Database, directory: Path) -> None:
    """Refuse this replica's commits while the journal in a directory stands still; until cancelled."""
    while True:
        now = await asyncio.to_thread(state, directory)
        fault = now["fault"] or ("it gives no sign of life" if time.time() - now["time"] > SILENCE else "")
        if bool(fault) != bool(database.refusing):
            log.log(logging.ERROR if fault else logging.INFO, "audit_required: changes are %s",
                    f"refused, the journal stands still: {fault}" if fault else "made again")
        database.refusing = fault and f"The audit journal is not being written ({fault}); this cloud changes nothing without it."
        await asyncio.sleep(1.0)
