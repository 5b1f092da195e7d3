"""Who holds what: the only writer of allocations and usages, always of both.

An allocation and the usage of each provider that it touches are one commit, which compares the usages and inventories that it was
decided on. So a usage is the sum of its allocations at every revision, and no two replicas give the same unit away.
"""
from collections.abc import Iterable, Mapping

from control.kernel import clock
from control.kernel.database import Transaction
from control.kernel.errors import Conflict, Invalid, TooLarge
from control.kernel.fleet import ALLOCATION, PROVIDER, RESOURCE_CLASS, USAGE
from control.kernel.store import MAX_OPERATIONS
from control.placement import custom_names
from control.placement.model import capacity
from protos.internal.v1.fleet_pb2 import Allocation, Amounts, Provider, Usage


def allocation(consumer_uuid: str, project_id: str, user_id: str, consumer_type: str,
               providers: Mapping[str, Mapping[str, int]]) -> Allocation:
    """What a consumer shall hold: amounts by class, by provider."""
    return Allocation(consumer_uuid=consumer_uuid, project_id=project_id, user_id=user_id, consumer_type=consumer_type,
                      providers={uuid: Amounts(resources=amounts) for uuid, amounts in providers.items()})


def replace(transaction: Transaction, wanted: Iterable[Allocation], checked: bool = True) -> None:
    """Put allocations in the place of what their consumers hold; one that names no provider gives all back.

    What is given back counts for all of them before anything is taken.

    Args:
      checked: compare with inventories. Not: the caller has chosen by the capacity that this transaction reads.

    Raises:
      Invalid: an unknown provider or resource class.
      Conflict: a provider has none of a class, not enough left, or not in such units.
    """
    wanted = list(wanted)
    before = {new.consumer_uuid: transaction.get(ALLOCATION, new.consumer_uuid) or Allocation() for new in wanted}
    usages = _usages(transaction, wanted, before)
    was = {uuid: dict(usage.used) for uuid, usage in usages.items()}
    for new in wanted:
        _add(usages, before[new.consumer_uuid], -1)
        _add(usages, new, 1)
    if checked:
        for new in wanted:
            _check(transaction, new, usages, was)
    now = clock.now()
    for new in wanted:
        if not new.providers:
            transaction.delete(ALLOCATION, new.consumer_uuid)
            continue
        new.generation = before[new.consumer_uuid].generation + 1
        new.updated_at.CopyFrom(now)
        transaction.put(ALLOCATION, new)
    for usage in usages.values():
        for name in [name for name, amount in usage.used.items() if not amount]:
            del usage.used[name]
        usage.generation += 1
        transaction.put(USAGE, usage)
    for uuid in {uuid for new in wanted for uuid in new.providers}:
        transaction.guard_unchanged(PROVIDER, uuid)


def release(transaction: Transaction, consumer_uuid: str) -> bool:
    """Give back all that a consumer holds; whether it held anything."""
    if not transaction.has(ALLOCATION, consumer_uuid):
        return False
    replace(transaction, [Allocation(consumer_uuid=consumer_uuid)])
    return True


def check_size(transaction: Transaction) -> None:
    """Raise TooLarge where a request of any size has made a transaction that no commit can hold."""
    writes, guards = transaction.writes()
    if len(writes) + len(guards) > MAX_OPERATIONS:
        raise TooLarge("request.size", f"The request touches {len(writes) + len(guards)} records, and {MAX_OPERATIONS} at most "
                                       "can change together: split it.")


def _usages(transaction: Transaction, wanted: Iterable[Allocation], before: Mapping[str, Allocation]) -> dict[str, Usage]:
    """The usages that change, by provider. One that is gone with its host has none."""
    usages: dict[str, Usage] = {}
    gone: set[str] = set()
    for new in wanted:
        for uuid in (*new.providers, *before[new.consumer_uuid].providers):
            if uuid not in usages and uuid not in gone:
                if transaction.has(PROVIDER, uuid):
                    usages[uuid] = transaction.get(USAGE, uuid) or Usage(provider_uuid=uuid)
                else:
                    gone.add(uuid)
            if uuid in gone and uuid in new.providers:
                raise Invalid("allocation.provider", f"Allocation for resource provider '{uuid}' that does not exist.")
    return usages


def _add(usages: Mapping[str, Usage], held: Allocation, sign: int) -> None:
    for uuid, amounts in held.providers.items():
        if uuid in usages:
            for name, amount in amounts.resources.items():
                usages[uuid].used[name] += sign * amount


def _check(transaction: Transaction, new: Allocation, usages: Mapping[str, Usage], was: Mapping[str, Mapping[str, int]]) -> None:
    """Raise where a provider cannot give what a consumer shall hold. A use that is over capacity already may stay or shrink."""
    for uuid, amounts in new.providers.items():
        provider = transaction.get(PROVIDER, uuid)
        assert provider is not None
        for name, amount in amounts.resources.items():
            if name not in provider.inventories:
                if not custom_names.exists(transaction, RESOURCE_CLASS, name):
                    raise custom_names.unknown(RESOURCE_CLASS, [name])
                raise Conflict("allocation.class", f"Unable to allocate inventory: Inventory for '{name}' on resource provider "
                                                   f"'{uuid}' invalid: it has none.")
            _check_units(provider, name, amount)
            used, room = usages[uuid].used[name], capacity(provider.inventories[name])
            if used > room and used > was[uuid].get(name, 0):
                raise Conflict("allocation.capacity", f"Unable to allocate inventory: Unable to create allocation for '{name}' "
                                                      f"on resource provider '{uuid}'. The requested amount would exceed the "
                                                      f"capacity: {used} of {room}.")


def _check_units(provider: Provider, name: str, amount: int) -> None:
    have = provider.inventories[name]
    if not have.min_unit <= amount <= have.max_unit or amount % have.step_size:
        raise Conflict("allocation.units", f"Unable to allocate inventory: Unable to create allocation for '{name}' on resource "
                                           f"provider '{provider.uuid}'. The requested amount {amount} would violate inventory "
                                           f"constraints: {have.min_unit} to {have.max_unit} in steps of {have.step_size}.")
