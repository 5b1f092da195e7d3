"""Quota ledgers: what a project may use of a service and what it uses, charged in the commit that uses it.

The ledger equals a recount at every revision: nothing uses or gives back an amount but in the commit that charges it.
Queue callers of one ledger with `serial=quota.serial(...)`, or they race.
"""
from collections.abc import Mapping

from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from control.kernel.errors import Exhausted
from protos.internal.v1.quota_pb2 import QuotaLedger

LEDGER = Kind("/quota/ledgers/", QuotaLedger, id_of=lambda ledger: (ledger.service, ledger.project_id))
KINDS = (LEDGER,)

UNLIMITED = -1


def serial(service: str, project_id: str) -> str:
    """The name under which decisions on one ledger queue (Database.transact's `serial`)."""
    return f"quota/{service}/{project_id}"


def charge(transaction: Transaction, service: str, project_id: str, defaults: Mapping[str, int], **amounts: int) -> None:
    """Add amounts (negative: give back) to what a project uses; `defaults` are the service's limits by resource.

    Raises Exhausted, naming each resource that would be over its limit; giving back always succeeds.
    """
    ledger = transaction.get(LEDGER, service, project_id) or QuotaLedger(service=service, project_id=project_id)
    over = []
    for resource, amount in amounts.items():
        used, limit = ledger.used.get(resource, 0), limit_of(ledger, defaults, resource)
        if amount > 0 and limit != UNLIMITED and used + amount > limit:
            over.append(f"{resource}: requested {amount}, already used {used} of {limit}")
        ledger.used[resource] = max(used + amount, 0)
    if over:
        raise Exhausted(f"quota.{service}", f"Quota exceeded for {'; '.join(over)}")
    transaction.put(LEDGER, ledger)


def limit_of(ledger: QuotaLedger, defaults: Mapping[str, int], resource: str) -> int:
    return ledger.limits.get(resource, defaults.get(resource, UNLIMITED))


def ledger_of(database: Database | Transaction, service: str, project_id: str) -> QuotaLedger:
    """A project's ledger, an empty one where it has none yet. Do not change it."""
    return database.get(LEDGER, service, project_id) or QuotaLedger(service=service, project_id=project_id)
