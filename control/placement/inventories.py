"""The servicer of inventories: what a provider has. What is allocated of may be made less, but not taken away."""
from collections.abc import Mapping

from google.protobuf.empty_pb2 import Empty

from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid, NotFound
from control.kernel.fleet import RESOURCE_CLASS, USAGE
from control.kernel.rpc import Call
from control.placement import custom_names, ledger, trees
from control.placement.model import MAX_CLASSES, inventory_of
from control.placement.query import minor
from protos.internal.v1.fleet_pb2 import Provider, ProviderInventory
from protos.placement.v1 import inventories_pb2 as pb


def parsed(inventories: Mapping[str, pb.Inventory], call: Call) -> dict[str, ProviderInventory]:
    """Inventories of a request, by class. Raises Invalid."""
    if len(inventories) > MAX_CLASSES:
        raise Invalid("inventory.classes", f"A provider has inventories of at most {MAX_CLASSES} resource classes.")
    return {name: inventory_of(item, name, may_be_empty=minor(call) >= 26) for name, item in inventories.items()}


def replace(tx: Transaction, provider: Provider, inventories: Mapping[str, ProviderInventory]) -> None:
    """Give a provider other inventories. Raises Invalid for an unknown class; does not look at what is allocated."""
    custom_names.take_up(tx, RESOURCE_CLASS, inventories.keys() - set(provider.inventories))
    provider.inventories.clear()
    for name, item in inventories.items():
        provider.inventories[name].CopyFrom(item)
    trees.changed(tx, provider)


def check_none_lost(tx: Transaction, provider: Provider) -> None:
    """Raise Conflict where something is allocated of a provider that it has no inventory of."""
    tx.guard_unchanged(USAGE, provider.uuid)
    usage = tx.get(USAGE, provider.uuid)
    lost = sorted(name for name in usage.used if name not in provider.inventories) if usage is not None else []
    if lost:
        raise Conflict("placement.inventory.inuse", f"update conflict: Inventory for '{', '.join(lost)}' on resource provider "
                                                    f"'{provider.uuid}' in use.")


class Inventories:
    def __init__(self, database: Database):
        self._db = database

    async def ListInventories(self, request: pb.ListInventoriesRequest, call: Call) -> pb.InventoriesResponse:
        return self._all(trees.require(self._db, request.uuid))

    async def ReplaceInventories(self, request: pb.ReplaceInventoriesRequest, call: Call) -> pb.InventoriesResponse:
        trees.require(self._db, request.uuid)
        inventories = parsed(request.inventories, call)

        def decide(tx: Transaction) -> Provider:
            provider = trees.require(tx, request.uuid)
            trees.expect(tx, provider, request.resource_provider_generation)
            replace(tx, provider, inventories)
            check_none_lost(tx, provider)
            ledger.check_size(tx)
            return provider

        return self._all(await self._db.transact(decide))

    async def CreateInventory(self, request: pb.CreateInventoryRequest, call: Call) -> pb.InventoryResponse:
        trees.require(self._db, request.uuid)
        made = inventory_of(request, request.resource_class, may_be_empty=minor(call) >= 26)

        def decide(tx: Transaction) -> Provider:
            provider = trees.require(tx, request.uuid)
            if request.HasField("resource_provider_generation"):
                trees.expect(tx, provider, request.resource_provider_generation)
            if request.resource_class in provider.inventories:
                raise Conflict("placement.concurrent_update", f"Update conflict: the resource provider {provider.uuid} has "
                                                              f"inventory of {request.resource_class} already.")
            if len(provider.inventories) >= MAX_CLASSES:
                raise Invalid("inventory.classes", f"A provider has inventories of at most {MAX_CLASSES} resource classes.")
            replace(tx, provider, {**provider.inventories, request.resource_class: made})
            return provider

        return self._one(await self._db.transact(decide), request.resource_class)

    async def DeleteInventories(self, request: pb.ListInventoriesRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            provider = trees.require(tx, request.uuid)
            replace(tx, provider, {})
            check_none_lost(tx, provider)

        await self._db.transact(decide)
        return Empty()

    async def GetInventory(self, request: pb.GetInventoryRequest, call: Call) -> pb.InventoryResponse:
        provider = trees.require(self._db, request.uuid)
        if request.resource_class not in provider.inventories:
            raise _no_inventory(request)
        return self._one(provider, request.resource_class)

    async def UpdateInventory(self, request: pb.UpdateInventoryRequest, call: Call) -> pb.InventoryResponse:
        trees.require(self._db, request.uuid)
        made = inventory_of(request, request.resource_class, may_be_empty=minor(call) >= 26)

        def decide(tx: Transaction) -> Provider:
            provider = trees.require(tx, request.uuid)
            trees.expect(tx, provider, request.resource_provider_generation)
            if request.resource_class not in provider.inventories:
                raise Invalid("inventory.missing", f"No inventory record with resource class {request.resource_class} for "
                                                   f"resource provider {provider.uuid}.")
            replace(tx, provider, {**provider.inventories, request.resource_class: made})
            return provider

        return self._one(await self._db.transact(decide), request.resource_class)

    async def DeleteInventory(self, request: pb.GetInventoryRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            provider = trees.require(tx, request.uuid)
            if request.resource_class not in provider.inventories:
                raise _no_inventory(request, " found for delete")
            del provider.inventories[request.resource_class]
            check_none_lost(tx, provider)
            trees.changed(tx, provider)

        await self._db.transact(decide)
        return Empty()

    def _all(self, provider: Provider) -> pb.InventoriesResponse:
        return pb.InventoriesResponse(
            resource_provider_generation=trees.generation(self._db, provider), last_modified=provider.updated_at,
            inventories={name: pb.Inventory(**_fields(item)) for name, item in sorted(provider.inventories.items())})

    def _one(self, provider: Provider, resource_class: str) -> pb.InventoryResponse:
        return pb.InventoryResponse(
            **_fields(provider.inventories[resource_class]), resource_provider_generation=trees.generation(self._db, provider),
            last_modified=provider.updated_at, uuid=provider.uuid, resource_class=resource_class)


def _fields(item: ProviderInventory) -> dict:
    return {name: getattr(item, name) for name in ("total", "reserved", "min_unit", "max_unit", "step_size", "allocation_ratio")}


def _no_inventory(request: pb.GetInventoryRequest, why: str = "") -> NotFound:
    return NotFound("inventory.missing", f"No inventory of class {request.resource_class[:255]}{why}: {request.uuid} has none.")
