"""A ledger equals a recount, however many charge it at once."""
import asyncio
import random

import pytest

from control.kernel import quota
from control.kernel.database import Database
from control.kernel.errors import Exhausted
from protos.internal.v1.quota_pb2 import QuotaLedger

DEFAULTS = {"cores": 10, "ram": 100}


def charging(**amounts: int):
    return lambda tx: quota.charge(tx, "compute", "p", DEFAULTS, **amounts)


async def test_what_fits_is_charged_and_the_rest_refused_whole(db: Database):
    await db.transact(charging(cores=8, ram=50))
    with pytest.raises(Exhausted) as error:
        await db.transact(charging(cores=3, ram=60))
    assert str(error.value) == ("Quota exceeded for cores: requested 3, already used 8 of 10; "
                                "ram: requested 60, already used 50 of 100")
    assert dict(quota.ledger_of(db, "compute", "p").used) == {"cores": 8, "ram": 50}
    await db.transact(charging(cores=2, ram=50))


async def test_giving_back_always_succeeds_even_over_the_limit(db: Database):
    await db.transact(lambda tx: tx.put(quota.LEDGER, QuotaLedger(service="compute", project_id="p", used={"cores": 20})))
    await db.transact(charging(cores=-5))
    assert quota.ledger_of(db, "compute", "p").used["cores"] == 15


async def test_a_limit_of_its_own_stands_above_the_default_and_minus_one_is_none(db: Database):
    await db.transact(lambda tx: tx.put(quota.LEDGER, QuotaLedger(service="compute", project_id="p",
                                                                  limits={"cores": -1, "ram": 1})))
    await db.transact(charging(cores=1000, ram=1, other=10**9))
    with pytest.raises(Exhausted, match="ram"):
        await db.transact(charging(ram=1))


async def test_projects_and_services_have_ledgers_of_their_own(db: Database):
    for service, project in (("compute", "p"), ("compute", "q"), ("network", "p")):
        await db.transact(lambda tx, service=service, project=project: quota.charge(tx, service, project, DEFAULTS, cores=10))
    assert quota.ledger_of(db, "volume", "p").used == {}


@pytest.mark.parametrize("serial", ["", quota.serial("compute", "p")])
async def test_concurrent_charges_never_pass_the_limit_and_equal_a_recount(db: Database, serial: str):
    draw = random.Random(7)

    async def use(cores: int) -> int:
        try:
            await db.transact(charging(cores=cores), serial=serial)
        except Exhausted:
            return 0
        return cores

    used = sum(await asyncio.gather(*(use(draw.randint(1, 3)) for _ in range(60))))
    assert used == quota.ledger_of(db, "compute", "p").used["cores"] <= 10
    assert used >= 8
