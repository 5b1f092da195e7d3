"""The servicer of the reshaper: inventories move between providers together with what is allocated of them."""
from google.protobuf.empty_pb2 import Empty

from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.fleet import PROVIDER
from control.kernel.rpc import Call
from control.placement import inventories, ledger, trees
from control.placement.allocations import wishes
from control.placement.model import MAX_PROVIDERS, uuid_of
from protos.placement.v1 import reshaper_pb2 as pb


class Reshaper:
    def __init__(self, database: Database):
        self._db = database

    async def Reshape(self, request: pb.ReshapeRequest, call: Call) -> Empty:
        if not 1 <= len(request.inventories) <= MAX_PROVIDERS:
            raise Invalid("reshape.inventories", f"inventories must name 1 to {MAX_PROVIDERS} providers.")
        shapes = {uuid_of(uuid, "resource provider"): (item.resource_provider_generation,
                                                       inventories.parsed(item.inventories, call))
                  for uuid, item in request.inventories.items()}
        wanted = wishes(request.allocations, call)

        def decide(tx: Transaction) -> None:
            for uuid, (generation, shape) in shapes.items():
                provider = tx.get(PROVIDER, uuid)
                if provider is None:
                    raise Invalid("placement.resource_provider.not_found", f"Resource provider {uuid} in inventories not found.")
                trees.expect(tx, provider, generation)
                inventories.replace(tx, provider, shape)
            if wanted:
                ledger.replace(tx, [wish.allocation(tx) for wish in wanted])
            for uuid in shapes:
                inventories.check_none_lost(tx, trees.require(tx, uuid))
            ledger.check_size(tx)

        await self._db.transact(decide)
        return Empty()
