"""Serves services, endpoints and regions: what catalogs are made of."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.model import (
    ENDPOINT,
    ENTRY,
    NAME_LIMITS,
    REGION,
    SERVICE,
    apply_update,
    check_resource,
    drop_links,
    new_resource,
    require,
)
from control.identity.removal import of_endpoint, of_service, remove
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import catalog_pb2 as pb
from protos.identity.v1.records_pb2 import Entry

INTERFACES = ("public", "internal", "admin")
MAX_URL, MAX_ID = 2048, 255


class Catalog:
    """identity.v1.Catalog."""

    def __init__(self, db: Database):
        self._db = db

    # Services

    async def CreateService(self, request: pb.CreateServiceRequest, call: Call) -> pb.CreateServiceResponse:
        service = new_resource(request.service)
        service.id = uuid.uuid4().hex
        _check_service(service)
        await self._db.transact(lambda transaction: transaction.put(SERVICE, service))
        return pb.CreateServiceResponse(service=service)

    async def ListServices(self, request: pb.ListServicesRequest, call: Call) -> pb.ListServicesResponse:
        access.require_reader(call, "list_services")
        rows, marker = page(select(self._db.cache.all(SERVICE), request.filters), limit=request.limit, marker=request.marker,
                            sort=[(lambda service: service.type, False)])
        return pb.ListServicesResponse(services=rows, next_page_marker=marker)

    async def GetService(self, request: pb.GetServiceRequest, call: Call) -> pb.GetServiceResponse:
        access.require_reader(call, "get_service")
        return pb.GetServiceResponse(service=require(self._db, SERVICE, request.service_id))

    async def UpdateService(self, request: pb.UpdateServiceRequest, call: Call) -> pb.UpdateServiceResponse:
        def decide(transaction: Transaction) -> pb.Service:
            service = require(transaction, SERVICE, request.service_id)
            apply_update(service, request.service, request.update_mask.paths)
            _check_service(service)
            transaction.put(SERVICE, service)
            return service

        return pb.UpdateServiceResponse(service=await self._db.transact(decide))

    async def DeleteService(self, request: pb.DeleteServiceRequest, call: Call) -> Empty:
        def check(transaction: Transaction) -> None:
            require(transaction, SERVICE, request.service_id)

        def endpoints():
            found = [dependent for endpoint in self._db.cache.by(ENDPOINT, "service", request.service_id)
                     for dependent in ((ENDPOINT, (endpoint.id,)), (ENTRY, ("in-region", endpoint.region_id, endpoint.id)),
                                       *of_endpoint(self._db, endpoint.id))]
            return found + of_service(self._db, request.service_id)

        await remove(self._db, check, endpoints, lambda transaction: transaction.delete(SERVICE, request.service_id))
        return Empty()

    # Endpoints

    async def CreateEndpoint(self, request: pb.CreateEndpointRequest, call: Call) -> pb.CreateEndpointResponse:
        endpoint = new_resource(request.endpoint)
        endpoint.id = uuid.uuid4().hex
        if not endpoint.region_id and endpoint.region:
            endpoint.region_id = endpoint.region

        def decide(transaction: Transaction) -> None:
            if endpoint.region_id == request.endpoint.region:
                _ensure_region(transaction, endpoint.region_id)
            self._put_endpoint(transaction, endpoint, "")

        _check_endpoint(endpoint)
        await self._db.transact(decide)
        return pb.CreateEndpointResponse(endpoint=endpoint)

    async def ListEndpoints(self, request: pb.ListEndpointsRequest, call: Call) -> pb.ListEndpointsResponse:
        access.require_reader(call, "list_endpoints")
        rows, marker = page(select(self._db.cache.all(ENDPOINT), request.filters), limit=request.limit, marker=request.marker)
        return pb.ListEndpointsResponse(endpoints=rows, next_page_marker=marker)

    async def GetEndpoint(self, request: pb.GetEndpointRequest, call: Call) -> pb.GetEndpointResponse:
        access.require_reader(call, "get_endpoint")
        return pb.GetEndpointResponse(endpoint=require(self._db, ENDPOINT, request.endpoint_id))

    async def UpdateEndpoint(self, request: pb.UpdateEndpointRequest, call: Call) -> pb.UpdateEndpointResponse:
        def decide(transaction: Transaction) -> pb.Endpoint:
            endpoint = require(transaction, ENDPOINT, request.endpoint_id)
            before, paths = endpoint.region_id, set(request.update_mask.paths)
            apply_update(endpoint, request.endpoint, paths)
            if "region" in paths and "region_id" not in paths:
                endpoint.region_id = endpoint.region
            _check_endpoint(endpoint)
            if "region_id" not in paths:
                _ensure_region(transaction, endpoint.region_id)
            self._put_endpoint(transaction, endpoint, before)
            return endpoint

        return pb.UpdateEndpointResponse(endpoint=await self._db.transact(decide))

    async def DeleteEndpoint(self, request: pb.DeleteEndpointRequest, call: Call) -> Empty:
        def check(transaction: Transaction) -> None:
            require(transaction, ENDPOINT, request.endpoint_id)

        def delete(transaction: Transaction) -> None:
            endpoint = require(transaction, ENDPOINT, request.endpoint_id)
            transaction.delete(ENDPOINT, endpoint.id)
            transaction.delete(ENTRY, "in-region", endpoint.region_id, endpoint.id)

        await remove(self._db, check, lambda: of_endpoint(self._db, request.endpoint_id), delete)
        return Empty()

    def _put_endpoint(self, transaction: Transaction, endpoint: pb.Endpoint, before: str) -> None:
        """Write an endpoint and its place in its region; `before` is the region that it was in."""
        if transaction.get(SERVICE, endpoint.service_id) is None:
            raise Invalid("identity.endpoint.service",
                          f"Endpoint's service_id is not valid: could not find service {endpoint.service_id}.")
        transaction.guard_exists(SERVICE, endpoint.service_id)
        if endpoint.region_id:
            if transaction.get(REGION, endpoint.region_id) is None:
                raise Invalid("identity.endpoint.region",
                              f"Endpoint's region_id is not valid: could not find region {endpoint.region_id}.")
            transaction.guard_exists(REGION, endpoint.region_id)
            endpoint.region = endpoint.region_id
        else:
            endpoint.ClearField("region_id")
            endpoint.ClearField("region")
        if before and before != endpoint.region_id:
            transaction.delete(ENTRY, "in-region", before, endpoint.id)
        if endpoint.region_id and endpoint.region_id != before:
            transaction.put(ENTRY, Entry(noun="in-region", scope=endpoint.region_id, name=endpoint.id, id=endpoint.id))
        transaction.put(ENDPOINT, endpoint)

    # Regions

    async def CreateRegion(self, request: pb.CreateRegionRequest, call: Call) -> pb.CreateRegionResponse:
        region = pb.Region()
        region.CopyFrom(request.region)
        if request.region_id and region.id not in ("", request.region_id):
            raise Invalid("identity.region.id", "The region's id in the body is not the one in the path.")
        region.id = request.region_id or region.id or uuid.uuid4().hex
        drop_links(region)
        _check_region(region)

        def decide(transaction: Transaction) -> None:
            if transaction.get(REGION, region.id) is not None:
                raise Conflict("identity.region.duplicate",
                               f"Conflict occurred attempting to store region - Duplicate ID, {region.id}.")
            self._put_region(transaction, region, "")

        await self._db.transact(decide)
        return pb.CreateRegionResponse(region=region)

    async def ListRegions(self, request: pb.ListRegionsRequest, call: Call) -> pb.ListRegionsResponse:
        rows, marker = page(select(self._db.cache.all(REGION), request.filters), limit=request.limit, marker=request.marker)
        return pb.ListRegionsResponse(regions=rows, next_page_marker=marker)

    async def GetRegion(self, request: pb.GetRegionRequest, call: Call) -> pb.GetRegionResponse:
        return pb.GetRegionResponse(region=require(self._db, REGION, request.region_id))

    async def UpdateRegion(self, request: pb.UpdateRegionRequest, call: Call) -> pb.UpdateRegionResponse:
        def decide(transaction: Transaction) -> pb.Region:
            region = require(transaction, REGION, request.region_id)
            before = region.parent_region_id
            apply_update(region, request.region, request.update_mask.paths)
            _check_region(region)
            self._put_region(transaction, region, before)
            return region

        return pb.UpdateRegionResponse(region=await self._db.transact(decide, serial="identity/regions"))

    async def DeleteRegion(self, request: pb.DeleteRegionRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            region = require(transaction, REGION, request.region_id)
            if self._db.cache.count(REGION, "parent", region.id) or self._db.cache.count(ENDPOINT, "region", region.id):
                raise access.forbidden("identity.region.used", f"the region {region.id} has child regions or endpoints")
            transaction.guard_empty(ENTRY, "in-region", region.id)
            transaction.delete(REGION, region.id)
            transaction.delete(ENTRY, "in-region", region.parent_region_id, f"region:{region.id}")

        await self._db.transact(decide)
        return Empty()

    def _put_region(self, transaction: Transaction, region: pb.Region, before: str) -> None:
        above, seen = region.parent_region_id, {region.id}
        while above:
            if above in seen:
                raise Invalid("identity.region.circle", f"The region {region.id} would be a part of itself.")
            seen.add(above)
            above = require(transaction, REGION, above).parent_region_id
        if not region.parent_region_id:
            region.ClearField("parent_region_id")
        if before and before != region.parent_region_id:
            transaction.delete(ENTRY, "in-region", before, f"region:{region.id}")
        if region.parent_region_id:
            transaction.guard_exists(REGION, region.parent_region_id)
            transaction.put(ENTRY, Entry(noun="in-region", scope=region.parent_region_id, name=f"region:{region.id}",
                                         id=region.id))
        transaction.put(REGION, region)


def _ensure_region(transaction: Transaction, region_id: str) -> None:
    """Make the region that an endpoint names as `region`, the older of the two fields, unless there is one."""
    if region_id and transaction.get(REGION, region_id) is None:
        transaction.put(REGION, pb.Region(id=region_id))


def _check_service(service: pb.Service) -> None:
    if not 1 <= len(service.type) <= NAME_LIMITS["service"] or len(service.name) > NAME_LIMITS["service"]:
        raise Invalid("identity.service.type", "Invalid input for field 'type': a service has a type of 1 to 255 characters, "
                                               "and a name of at most 255.")
    check_resource(service)


def _check_endpoint(endpoint: pb.Endpoint) -> None:
    if endpoint.interface not in INTERFACES:
        raise Invalid("identity.endpoint.interface", f"Invalid input for field 'interface': {endpoint.interface!r} is none of "
                                                     f"{', '.join(INTERFACES)}.")
    if not 1 <= len(endpoint.url) <= MAX_URL:
        raise Invalid("identity.endpoint.url", f"Invalid input for field 'url': 1 to {MAX_URL} characters.")
    if len(endpoint.region_id) > MAX_ID:
        raise Invalid("identity.endpoint.region", f"Invalid input for field 'region_id': at most {MAX_ID} characters.")
    check_resource(endpoint)


def _check_region(region: pb.Region) -> None:
    if not 1 <= len(region.id) <= MAX_ID:
        raise Invalid("identity.region.id", f"Invalid input for field 'id': 1 to {MAX_ID} characters.")
    check_resource(region)
