"""Providers as trees: made, moved and deleted so that a root is always its parent's and nothing is below itself.

Who puts something below a provider writes that provider too, unchanged, so that it is decided again where the provider goes or
moves at the same moment.
"""
from control.kernel import clock, fleet
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound, Stale
from control.kernel.fleet import PROVIDER, PROVIDER_NAME, USAGE
from control.placement import model
from control.placement.model import MAX_DEPTH, MAX_TREE
from protos.internal.v1.fleet_pb2 import Provider, ProviderName


def require(database: Database | Transaction, uuid: str) -> Provider:
    """A provider. Raises NotFound."""
    provider = database.get(PROVIDER, uuid)
    if provider is None:
        raise missing(uuid)
    return provider


def missing(uuid: str) -> NotFound:
    return NotFound("provider.missing", f"No resource provider with uuid {uuid[:80]} found.")


def generation(database: Database | Transaction, provider: Provider) -> int:
    """A provider's generation in the API."""
    return model.generation(provider, database.get(USAGE, provider.uuid))


def expect(tx: Transaction, provider: Provider, given: int) -> None:
    """Keep a provider as it is until the transaction commits. Raises Stale where its generation is not the given one."""
    if generation(tx, provider) != given:
        raise Stale("provider.generation", f"resource provider generation conflict for provider {provider.uuid}: actual: "
                                           f"{generation(tx, provider)}, given: {given}. Please update the generation and try "
                                           "again.")
    tx.guard_unchanged(USAGE, provider.uuid)


def changed(tx: Transaction, provider: Provider) -> None:
    """Write a provider whose inventories, traits or aggregates have changed, with its next generation."""
    provider.generation += 1
    provider.updated_at.CopyFrom(clock.now())
    tx.put(PROVIDER, provider)


def create(tx: Transaction, uuid: str, name: str, parent_uuid: str = "") -> Provider:
    """A new provider without inventory. Raises Conflict (UUID or name taken) and Invalid (the parent)."""
    if tx.get(PROVIDER, uuid) is not None:
        raise Conflict("placement.duplicate_name", f"Conflicting resource provider uuid: {uuid} already exists.")
    provider = Provider(uuid=uuid, root_uuid=uuid, created_at=clock.now(), updated_at=clock.now())
    _name(tx, provider, name)
    if parent_uuid:
        _put_below(tx, [provider], parent_uuid)
    tx.put(PROVIDER, provider)
    return provider


def rename(tx: Transaction, provider: Provider, name: str) -> None:
    """Give a provider another name, where it is another. Raises Conflict (taken, or a host's)."""
    if name == provider.name:
        return
    _not_of_host(tx, provider, "renamed")
    tx.delete(PROVIDER_NAME, provider.name)
    _name(tx, provider, name)
    provider.updated_at.CopyFrom(clock.now())
    tx.put(PROVIDER, provider)


def move(tx: Transaction, provider: Provider, parent_uuid: str, may_leave: bool) -> None:
    """Put a provider, with all below it, under another parent; "": under none.

    Args:
      may_leave: also where it has a parent.

    Raises Invalid (a parent that is not there or below it, one that it may not leave), Conflict (a host's).
    """
    if parent_uuid == provider.parent_uuid:
        return
    if provider.parent_uuid and not may_leave:
        raise Invalid("provider.parent", f"Unable to save resource provider {provider.uuid}: "
                                         f"{'re' if parent_uuid else 'un'}-parenting a provider is not currently allowed.")
    _not_of_host(tx, provider, "put under another provider")
    moved = _with_all_below(tx, provider)
    if parent_uuid:
        _put_below(tx, moved, parent_uuid)
    else:
        provider.parent_uuid = ""
        for each in moved:
            each.root_uuid = provider.uuid
    for each in moved:
        each.updated_at.CopyFrom(clock.now())
        tx.put(PROVIDER, each)


def delete(tx: Transaction, uuid: str) -> None:
    """Delete a provider. Raises NotFound, Conflict (something below it or allocated of it, or a host's)."""
    provider = require(tx, uuid)
    if tx.rows(PROVIDER, "parent", uuid):
        raise Conflict("placement.resource_provider.cannot_delete_parent",
                       f"Unable to delete parent resource provider {uuid}: It has child resource providers.")
    usage = tx.get(USAGE, uuid)
    if usage is not None and usage.used:
        raise Conflict("placement.resource_provider.inuse", f"Unable to delete resource provider {uuid}: Resource provider has "
                                                            "allocations.")
    _not_of_host(tx, provider, "deleted")
    tx.guard_unchanged(USAGE, uuid)
    tx.delete(USAGE, uuid)
    tx.delete(PROVIDER_NAME, provider.name)
    tx.delete(PROVIDER, uuid)


def _name(tx: Transaction, provider: Provider, name: str) -> None:
    if tx.get(PROVIDER_NAME, name) is not None:
        raise Conflict("placement.duplicate_name", f"Conflicting resource provider name: {name} already exists.")
    provider.name = name
    tx.put(PROVIDER_NAME, ProviderName(name=name, uuid=provider.uuid))


def _put_below(tx: Transaction, moved: list[Provider], parent_uuid: str) -> None:
    """Make a provider, the first of its own part of a tree, a child. The others' records are copies."""
    top = moved[0]
    if parent_uuid == top.uuid or any(parent_uuid == each.uuid for each in moved):
        raise Invalid("provider.parent", f"Unable to save resource provider {top.uuid}: creating loop in the provider tree is "
                                         "not allowed.")
    parent = tx.get(PROVIDER, parent_uuid)
    if parent is None:
        raise Invalid("provider.parent", f"Unable to save resource provider {top.uuid}: parent provider UUID does not exist.")
    parents = {each.uuid: each.parent_uuid for each in tx.rows(PROVIDER, "root", parent.root_uuid)}
    own = {each.uuid: each.parent_uuid for each in moved}
    if len(parents.keys() | own.keys()) > MAX_TREE:
        raise Invalid("provider.tree", f"A tree of providers has at most {MAX_TREE}.")
    if _depth(parents, parent_uuid) + max(_depth(own, each.uuid) for each in moved) > MAX_DEPTH:
        raise Invalid("provider.depth", f"A tree of providers has at most {MAX_DEPTH} levels.")
    tx.put(PROVIDER, parent)
    top.parent_uuid = parent_uuid
    for each in moved:
        each.root_uuid = parent.root_uuid


def _depth(parents: dict[str, str], uuid: str) -> int:
    """Levels from a provider up to the highest one that is known, both counted."""
    levels = 0
    while uuid in parents:
        uuid = parents[uuid]
        levels += 1
    return levels


def _with_all_below(tx: Transaction, top: Provider) -> list[Provider]:
    """A provider and copies of all below it, parents before children."""
    children: dict[str, list[str]] = {}
    for each in tx.rows(PROVIDER, "root", top.root_uuid):
        children.setdefault(each.parent_uuid, []).append(each.uuid)
    found = [top]
    for each in found:
        found += [require(tx, uuid) for uuid in children.get(each.uuid, ())]
    return found


def _not_of_host(tx: Transaction, provider: Provider, done: str) -> None:
    for host in tx.rows(fleet.HOST, "id", provider.uuid):
        raise Conflict("placement.resource_provider.inuse", f"Resource provider {provider.uuid} is the root of host {host.name} "
                                                            f"and cannot be {done}: it follows its host.")
