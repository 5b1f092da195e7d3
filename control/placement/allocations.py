"""The servicer of allocations: what consumers hold, read and replaced."""
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.empty_pb2 import Empty

from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, NotFound, Stale
from control.kernel.fleet import ALLOCATION, PROVIDER
from control.kernel.rpc import Call
from control.placement import ledger, trees
from control.placement.model import MAX_CONSUMERS, MAX_PROVIDERS, NOBODY, amounts_of, bounded, upper_name, uuid_of
from control.placement.query import minor
from control.placement.usages import UNKNOWN
from protos.internal.v1.fleet_pb2 import Allocation
from protos.placement.v1 import allocations_pb2 as pb


class Wish:
    """What a request wants one consumer to hold, checked as far as it can be without the store."""

    def __init__(self, consumer_uuid: str, request: Any, providers: Mapping[str, Mapping[str, int]], version: int):
        """Raises Invalid. `request` has project, user, generation, type and mappings, as far as its microversion knows them."""
        self.consumer_uuid = consumer_uuid
        self.providers = providers
        self._project_id = bounded(request.project_id, "project_id") if version >= 8 else NOBODY
        self._user_id = bounded(request.user_id, "user_id") if version >= 8 else NOBODY
        self._has_type = version >= 38
        self._type = upper_name(request.consumer_type, "consumer_type") if self._has_type else ""
        self._compared = version >= 28
        self._generation = request.consumer_generation if self._compared and request.HasField("consumer_generation") else None
        if version >= 34:
            _check_mappings(request.mappings)

    def allocation(self, tx: Transaction) -> Allocation:
        """What shall be written. Raises Stale where the consumer's generation is not the given one."""
        present = tx.get(ALLOCATION, self.consumer_uuid)
        generation = present.generation if present is not None else None
        if self._compared and generation != self._generation:
            words = ["null" if each is None else str(each) for each in (generation, self._generation)]
            raise Stale("consumer.generation", f"consumer generation conflict - expected {words[0]} but got {words[1]}")
        kind = self._type if self._has_type or present is None else present.consumer_type
        return ledger.allocation(self.consumer_uuid, self._project_id, self._user_id, kind, self.providers)


def wishes(consumers: Mapping[str, pb.ConsumerAllocations], call: Call) -> list[Wish]:
    """The wishes of a request for several consumers. Raises Invalid."""
    if len(consumers) > MAX_CONSUMERS:
        raise Invalid("allocation.consumers", f"One request may name at most {MAX_CONSUMERS} consumers.")
    found = [Wish(uuid_of(uuid, "consumer"), wish, _providers(wish.allocations), minor(call)) for uuid, wish in consumers.items()]
    if len({wish.consumer_uuid for wish in found}) < len(found):
        raise Invalid("allocation.consumers", "The request names one consumer twice.")
    return found


class Allocations:
    def __init__(self, database: Database):
        self._db = database

    async def ListAllocations(self, request: pb.ListAllocationsRequest, call: Call) -> pb.ListAllocationsResponse:
        held = self._db.get(ALLOCATION, request.consumer_uuid)
        if held is None:
            return pb.ListAllocationsResponse()
        return pb.ListAllocationsResponse(
            allocations={uuid: self._of_provider(uuid, amounts.resources) for uuid, amounts in held.providers.items()},
            project_id=held.project_id, user_id=held.user_id, consumer_generation=held.generation,
            consumer_type=held.consumer_type or UNKNOWN, last_modified=held.updated_at)

    def _of_provider(self, uuid: str, resources: Mapping[str, int]) -> pb.ProviderAllocation:
        provider = self._db.get(PROVIDER, uuid)
        return pb.ProviderAllocation(resources=resources, generation=trees.generation(self._db, provider) if provider else None)

    async def ListProviderAllocations(self, request: pb.ListProviderAllocationsRequest,
                                      call: Call) -> pb.ProviderAllocationsResponse:
        provider = trees.require(self._db, request.uuid)
        return pb.ProviderAllocationsResponse(
            resource_provider_generation=trees.generation(self._db, provider),
            allocations={held.consumer_uuid: pb.ConsumerAllocation(
                resources=held.providers[provider.uuid].resources, consumer_generation=held.generation)
                for held in self._db.cache.by(ALLOCATION, "provider", provider.uuid)})

    async def PutAllocationList(self, request: pb.PutAllocationListRequest, call: Call) -> Empty:
        if not request.allocations:
            raise Invalid("allocation.providers", "allocations: it must not be empty.")
        if len(request.allocations) > MAX_PROVIDERS:
            raise Invalid("allocation.providers", f"One consumer holds allocations of at most {MAX_PROVIDERS} providers.")
        providers = _providers({item.resource_provider.uuid: item for item in request.allocations})
        consumer = uuid_of(request.consumer_uuid, "consumer_uuid")
        return await self._write([Wish(consumer, request, providers, min(minor(call), 11))])

    async def PutAllocations(self, request: pb.PutAllocationsRequest, call: Call) -> Empty:
        if not request.allocations and minor(call) < 28:
            raise Invalid("allocation.providers", "allocations: it must not be empty.")
        providers = _providers(request.allocations)
        return await self._write([Wish(uuid_of(request.consumer_uuid, "consumer_uuid"), request, providers, minor(call))])

    async def DeleteAllocations(self, request: pb.ListAllocationsRequest, call: Call) -> Empty:
        if not await self._db.transact(lambda tx: ledger.release(tx, request.consumer_uuid)):
            raise NotFound("allocation.missing", f"No allocations for consumer '{request.consumer_uuid[:80]}'")
        return Empty()

    async def ManageAllocations(self, request: pb.ManageAllocationsRequest, call: Call) -> Empty:
        if not request.consumers:
            raise Invalid("allocation.consumers", "The request names no consumer: it does not have enough properties.")
        return await self._write(wishes(request.consumers, call))

    async def _write(self, wanted: Iterable[Wish]) -> Empty:
        def decide(tx: Transaction) -> None:
            ledger.replace(tx, [wish.allocation(tx) for wish in wanted])
            ledger.check_size(tx)

        await self._db.transact(decide)
        return Empty()


def _providers(allocations: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Amounts by provider and class. Raises Invalid."""
    if len(allocations) > MAX_PROVIDERS:
        raise Invalid("allocation.providers", f"One consumer holds allocations of at most {MAX_PROVIDERS} providers.")
    found = {uuid_of(uuid, "resource provider"): amounts_of(item.resources, f"allocations.{uuid}")
             for uuid, item in allocations.items()}
    if len(found) < len(allocations):
        raise Invalid("allocation.providers", "The request names one provider twice.")
    return found


def _check_mappings(mappings: Mapping[str, Any]) -> None:
    """Mappings say which provider serves which group; they are not kept, but a broken one is told."""
    if len(mappings) > MAX_PROVIDERS:
        raise Invalid("allocation.mappings", f"mappings name at most {MAX_PROVIDERS} groups.")
    for suffix, uuids in mappings.items():
        if len(suffix) > 64 or not len(uuids.values):
            raise Invalid("allocation.mappings", "mappings: a group has a name of at most 64 characters and a provider.")
        for value in uuids.values:
            uuid_of(value.string_value, "mappings")
