"""The servicer of usages: what is allocated of a provider, and to a project."""
from collections import Counter

from control.kernel.database import Database
from control.kernel.errors import Invalid
from control.kernel.fleet import ALLOCATION, USAGE
from control.kernel.rpc import Call
from control.placement import trees
from control.placement.model import bounded, upper_name
from protos.internal.v1.fleet_pb2 import Allocation
from protos.placement.v1 import usages_pb2 as pb

#: The type of a consumer that has none, and what names all types in a query.
UNKNOWN, ALL = "unknown", "all"


class Usages:
    def __init__(self, database: Database):
        self._db = database

    async def ListProviderUsages(self, request: pb.ListProviderUsagesRequest, call: Call) -> pb.ProviderUsagesResponse:
        provider = trees.require(self._db, request.uuid)
        usage = self._db.get(USAGE, provider.uuid)
        return pb.ProviderUsagesResponse(
            resource_provider_generation=trees.generation(self._db, provider),
            usages={name: usage.used.get(name, 0) if usage is not None else 0 for name in sorted(provider.inventories)})

    async def ListUsages(self, request: pb.ListUsagesRequest, call: Call) -> pb.UsagesResponse:
        total: Counter[str] = Counter()
        for allocation in self._allocations(request):
            total.update(_held(allocation))
        return pb.UsagesResponse(usages=total)

    async def ListUsagesByConsumerType(self, request: pb.ListUsagesByConsumerTypeRequest,
                                       call: Call) -> pb.UsagesByConsumerTypeResponse:
        wanted = request.consumer_type if request.HasField("consumer_type") else None
        if wanted is not None and wanted not in (UNKNOWN, ALL):
            upper_name(wanted, "consumer_type")
        found: dict[str, pb.ConsumerTypeUsages] = {}
        for allocation in self._allocations(request):
            kind = allocation.consumer_type or UNKNOWN
            if wanted not in (None, ALL, kind):
                continue
            usages = found.setdefault(ALL if wanted == ALL else kind, pb.ConsumerTypeUsages())
            usages.consumer_count += 1
            for name, amount in _held(allocation).items():
                usages.resources[name] += amount
        return pb.UsagesByConsumerTypeResponse(usages=found)

    def _allocations(self, request: pb.ListUsagesRequest | pb.ListUsagesByConsumerTypeRequest) -> list[Allocation]:
        if not request.project_id:
            raise Invalid("query.project_id", "Invalid query string parameters: 'project_id' is a required property")
        bounded(request.project_id, "project_id")
        if request.HasField("user_id"):
            bounded(request.user_id, "user_id")
        return [allocation for allocation in self._db.cache.by(ALLOCATION, "project", request.project_id)
                if not request.HasField("user_id") or allocation.user_id == request.user_id]


def _held(allocation: Allocation) -> Counter[str]:
    """What a consumer holds of all providers together, by class."""
    total: Counter[str] = Counter()
    for amounts in allocation.providers.values():
        total.update(amounts.resources)
    return total
