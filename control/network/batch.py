"""Creation of several resources in one commit: all or none."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from control.kernel import quota
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.network.model import MAX_BATCH, SERVICE


@dataclass(frozen=True, slots=True)
class Plan:
    """A resource that is to be made: who is charged, and the decision that makes it."""

    project_id: str
    decide: Callable[[Transaction], Any]


async def make(database: Database, plans: Sequence[Plan]) -> list[Any]:
    """What the plans make, in their order. Raises Invalid for too many, or of more than one project."""
    if not 1 <= len(plans) <= MAX_BATCH:
        raise Invalid("network.batch", f"One call makes 1 to {MAX_BATCH} resources, not {len(plans)}.")
    projects = {plan.project_id for plan in plans}
    if len(projects) > 1:
        raise Invalid("network.batch", "What one call makes must belong to one project.")
    serial = quota.serial(SERVICE, plans[0].project_id)
    return await database.transact(lambda tx: [plan.decide(tx) for plan in plans], serial=serial)
