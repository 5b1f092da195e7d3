"""The servicer of aggregates."""
from collections.abc import Sequence

from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.fleet import PROVIDER
from control.kernel.rpc import Call
from control.placement import trees
from control.placement.model import MAX_AGGREGATES, uuid_of
from protos.internal.v1.fleet_pb2 import Provider
from protos.placement.v1 import aggregates_pb2 as pb


class Aggregates:
    def __init__(self, database: Database):
        self._db = database

    async def ListAggregates(self, request: pb.ListAggregatesRequest, call: Call) -> pb.AggregatesResponse:
        return self._response(trees.require(self._db, request.uuid))

    async def SetAggregates(self, request: pb.SetAggregatesRequest, call: Call) -> pb.AggregatesResponse:
        trees.require(self._db, request.uuid)
        wanted = _wanted(request.aggregates)

        def decide(tx: Transaction) -> Provider:
            provider = trees.require(tx, request.uuid)
            if wanted != list(provider.aggregates):
                provider.aggregates[:] = wanted
                tx.put(PROVIDER, provider)
            return provider

        return self._response(await self._db.transact(decide))

    async def ReplaceAggregates(self, request: pb.ReplaceAggregatesRequest, call: Call) -> pb.AggregatesResponse:
        trees.require(self._db, request.uuid)
        wanted = _wanted(request.aggregates)

        def decide(tx: Transaction) -> Provider:
            provider = trees.require(tx, request.uuid)
            trees.expect(tx, provider, request.resource_provider_generation)
            provider.aggregates[:] = wanted
            trees.changed(tx, provider)
            return provider

        return self._response(await self._db.transact(decide))

    def _response(self, provider: Provider) -> pb.AggregatesResponse:
        return pb.AggregatesResponse(aggregates=provider.aggregates, last_modified=provider.updated_at,
                                     resource_provider_generation=trees.generation(self._db, provider))


def _wanted(aggregates: Sequence[str]) -> list[str]:
    found = [uuid_of(aggregate, "aggregates") for aggregate in aggregates]
    if len(set(found)) < len(aggregates):
        raise Invalid("provider.aggregates", "aggregates: it has non-unique elements.")
    if len(found) > MAX_AGGREGATES:
        raise Invalid("provider.aggregates", f"A provider is in at most {MAX_AGGREGATES} aggregates.")
    return found
