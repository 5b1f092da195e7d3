"""Shows hosts and claims through the Placement API; changes nothing."""
from google.protobuf.descriptor import ServiceDescriptor

from control.kernel import fleet
from control.kernel.database import Database
from control.kernel.errors import NotFound
from control.kernel.rpc import Call
from control.placement.placer import CLASSES, FleetPlacer
from protos.internal.v1.fleet_pb2 import Claim, HostRecord
from protos.placement.v1 import api_pb2  # noqa: F401 - the API's own entry
from protos.placement.v1 import providers_pb2 as pb


class ResourceProviders:
    def __init__(self, database: Database, placer: FleetPlacer):
        self._db = database
        self._placer = placer

    async def ListResourceProviders(self, request: pb.ListResourceProvidersRequest,
                                    call: Call) -> pb.ListResourceProvidersResponse:
        hosts = [host for host in self._db.cache.all(fleet.HOST)
                 if request.name in ("", host.name) and request.uuid in ("", host.id)]
        return pb.ListResourceProvidersResponse(
            resource_providers=[self._provider(host) for host in sorted(hosts, key=lambda host: host.name)])

    async def GetResourceProvider(self, request: pb.GetResourceProviderRequest, call: Call) -> pb.GetResourceProviderResponse:
        return pb.GetResourceProviderResponse(resource_provider=self._provider(self._host(request.uuid)))

    async def ListInventories(self, request: pb.ListInventoriesRequest, call: Call) -> pb.ListInventoriesResponse:
        host = self._host(request.uuid)
        return pb.ListInventoriesResponse(
            resource_provider_generation=self._generation(host),
            inventories={name: pb.Inventory(
                total=getattr(host.inventory, field), reserved=self._placer.reserved[field], min_unit=1,
                max_unit=getattr(host.inventory, field), step_size=1, allocation_ratio=self._placer.ratios[field])
                for name, field in CLASSES.items()})

    async def ListUsages(self, request: pb.ListUsagesRequest, call: Call) -> pb.ListUsagesResponse:
        host = self._host(request.uuid)
        claims = self._db.cache.by(fleet.CLAIM, "host", host.name)
        return pb.ListUsagesResponse(
            resource_provider_generation=self._generation(host),
            usages={name: sum(getattr(claim, field) for claim in claims) for name, field in CLASSES.items()})

    async def ListAllocations(self, request: pb.ListAllocationsRequest, call: Call) -> pb.ListAllocationsResponse:
        claim = self._db.get(fleet.CLAIM, request.consumer)
        host = self._db.get(fleet.HOST, claim.host) if claim else None
        if claim is None or host is None:
            return pb.ListAllocationsResponse()
        return pb.ListAllocationsResponse(allocations={host.id: self._allocation(host, claim)})

    def _allocation(self, host: HostRecord, claim: Claim) -> pb.Allocation:
        return pb.Allocation(generation=self._generation(host),
                             resources={name: getattr(claim, field) for name, field in CLASSES.items()})

    def _host(self, provider_id: str) -> HostRecord:
        for host in self._db.cache.all(fleet.HOST):
            if host.id == provider_id:
                return host
        raise NotFound("placement.provider", f"No resource provider with uuid {provider_id} found")

    def _provider(self, host: HostRecord) -> pb.ResourceProvider:
        return pb.ResourceProvider(uuid=host.id, name=host.name, generation=self._generation(host))

    def _generation(self, host: HostRecord) -> int:
        return self._db.cache.at(fleet.HOST, fleet.HOST.key(host.name))[0]


def servicers(database: Database, placer: FleetPlacer) -> list[tuple[object, ServiceDescriptor]]:
    return [(ResourceProviders(database, placer), pb.DESCRIPTOR.services_by_name["ResourceProviders"])]
