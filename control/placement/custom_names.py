"""Custom resource classes and traits: made once, used by any number of providers, deleted only while nobody uses them.

A provider that takes a name up compares the name's record, or writes `in_use` into it; who deletes first writes `in_use` away and
then compares that. So of one who takes a name up and one who deletes it at the same moment, one is decided again.
"""
from collections.abc import Iterable

from control.kernel import clock
from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound
from control.kernel.fleet import PROVIDER, RESOURCE_CLASS, TRAIT
from control.placement.model import STANDARD_CLASSES, STANDARD_TRAITS, custom_name
from protos.internal.v1.fleet_pb2 import CustomName, Provider

_NOUNS = {id(RESOURCE_CLASS): "resource class", id(TRAIT): "trait"}
_STANDARD = {id(RESOURCE_CLASS): frozenset(STANDARD_CLASSES), id(TRAIT): STANDARD_TRAITS}


def is_standard(kind: Kind[CustomName], name: str) -> bool:
    return name in _STANDARD[id(kind)]


def exists(database: Database | Transaction, kind: Kind[CustomName], name: str) -> bool:
    """Whether there is a standard or custom name."""
    return is_standard(kind, name) or database.get(kind, name) is not None


def unknown(kind: Kind[CustomName], names: Iterable[str]) -> Invalid:
    noun = "trait(s):" if kind is TRAIT else "resource class"
    return Invalid("name.unknown", f"No such {noun} {', '.join(sorted(name[:80] for name in names))}.")


def taken(kind: Kind[CustomName], name: str) -> Conflict:
    return Conflict("name.taken", f"Conflicting {_NOUNS[id(kind)]} already exists: {name}")


def take_up(transaction: Transaction, kind: Kind[CustomName], names: Iterable[str]) -> None:
    """Keep names, which a provider gets in this transaction, from going meanwhile. Raises Invalid where one is not there."""
    missing = []
    for name in names:
        if is_standard(kind, name):
            continue
        record = transaction.get(kind, name)
        if record is None:
            missing.append(name)
        elif record.in_use:
            transaction.guard_unchanged(kind, name)
        else:
            record.in_use = True
            transaction.put(kind, record)
    if missing:
        raise unknown(kind, missing)


async def create(database: Database, kind: Kind[CustomName], name: str) -> tuple[CustomName, bool]:
    """A custom name's record, and whether it was made now. Raises Invalid for a name that no custom one can have."""
    custom_name(name, _NOUNS[id(kind)])

    def decide(tx: Transaction) -> tuple[CustomName, bool]:
        if record := tx.get(kind, name):
            return record, False
        tx.put(kind, record := CustomName(name=name, created_at=clock.now()))
        return record, True

    return await database.transact(decide)


async def delete(database: Database, kind: Kind[CustomName], name: str, successor: str = "") -> None:
    """Delete a custom name, or put another in its place.

    Raises NotFound, Invalid for a standard one, Conflict while a provider has it or where the successor is there already.
    """
    noun = _NOUNS[id(kind)]
    if is_standard(kind, name):
        raise Invalid("name.standard", f"Cannot {'update' if successor else 'delete'} standard {noun} {name}.")

    def decide(tx: Transaction) -> bool:
        record = tx.get(kind, name)
        if record is None:
            raise NotFound("name.missing", f"No such {noun} {name[:255]}.")
        for provider in tx.rows(PROVIDER, "custom", name):
            if name in _of(kind, provider):
                raise Conflict("name.in_use", f"The {noun} {name} is in use by a resource provider: {provider.uuid}.")
        if record.in_use:
            record.in_use = False
            tx.put(kind, record)
            return False
        tx.delete(kind, name)
        if successor:
            if tx.get(kind, successor) is not None:
                raise taken(kind, successor)
            tx.put(kind, CustomName(name=successor, created_at=clock.now()))
        return True

    while not await database.transact(decide):
        pass


def _of(kind: Kind[CustomName], provider: Provider) -> Iterable[str]:
    return provider.inventories if kind is RESOURCE_CLASS else provider.traits
