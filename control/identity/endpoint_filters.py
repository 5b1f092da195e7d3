"""Serves endpoint groups, and which endpoints the catalogs of which projects have. A project that was given none has all."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.addresses import granted, in_group
from control.identity.model import (
    ENDPOINT,
    ENDPOINT_GRANT,
    ENDPOINT_GROUP,
    ENTRY,
    MAX_DESCRIPTION,
    PROJECT,
    check_name,
    missing,
    new_resource,
    rename,
    require,
    take_name,
)
from control.identity.removal import remove
from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import endpoint_filters_pb2 as pb
from protos.identity.v1.catalog_pb2 import Endpoint, ListEndpointsResponse
from protos.identity.v1.projects_pb2 import ListProjectsResponse
from protos.identity.v1.records_pb2 import EndpointGrant

FILTERS = frozenset({"interface", "service_id", "region_id", "enabled", "name"})
NOUN = "endpoint group"


class EndpointFilters:
    """identity.v1.EndpointFilters."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateEndpointGroup(self, request: pb.CreateEndpointGroupRequest, call: Call) -> pb.CreateEndpointGroupResponse:
        group = new_resource(request.endpoint_group)
        group.id = uuid.uuid4().hex
        _check(group)

        def decide(transaction: Transaction) -> None:
            take_name(transaction, NOUN, "", group.name, group.id)
            transaction.put(ENDPOINT_GROUP, group)

        await self._db.transact(decide)
        return pb.CreateEndpointGroupResponse(endpoint_group=group)

    async def ListEndpointGroups(self, request: pb.ListEndpointGroupsRequest, call: Call) -> pb.ListEndpointGroupsResponse:
        access.require_reader(call, "list_endpoint_groups")
        rows, marker = page(select(self._db.cache.all(ENDPOINT_GROUP), request.filters), limit=request.limit,
                            marker=request.marker)
        return pb.ListEndpointGroupsResponse(endpoint_groups=rows, next_page_marker=marker)

    async def GetEndpointGroup(self, request: pb.GetEndpointGroupRequest, call: Call) -> pb.GetEndpointGroupResponse:
        access.require_reader(call, "get_endpoint_group")
        return pb.GetEndpointGroupResponse(endpoint_group=require(self._db, ENDPOINT_GROUP, request.endpoint_group_id))

    async def UpdateEndpointGroup(self, request: pb.UpdateEndpointGroupRequest, call: Call) -> pb.UpdateEndpointGroupResponse:
        def decide(transaction: Transaction) -> pb.EndpointGroup:
            group = require(transaction, ENDPOINT_GROUP, request.endpoint_group_id)
            before, wanted = group.name, request.endpoint_group
            for path in request.update_mask.paths:
                if path == "name":
                    group.name = wanted.name
                elif path == "filters" and wanted.filters.fields:      # clients send {} where they change none
                    group.filters.CopyFrom(wanted.filters)
                elif path == "description":
                    group.ClearField("description")
                    if wanted.HasField("description"):
                        group.description = wanted.description
            _check(group)
            rename(transaction, NOUN, "", before, group.name, group.id)
            transaction.put(ENDPOINT_GROUP, group)
            return group

        return pb.UpdateEndpointGroupResponse(endpoint_group=await self._db.transact(decide))

    async def DeleteEndpointGroup(self, request: pb.DeleteEndpointGroupRequest, call: Call) -> Empty:
        def check(transaction: Transaction) -> None:
            require(transaction, ENDPOINT_GROUP, request.endpoint_group_id)

        def delete(transaction: Transaction) -> None:
            group = require(transaction, ENDPOINT_GROUP, request.endpoint_group_id)
            transaction.delete(ENDPOINT_GROUP, group.id)
            transaction.delete(ENTRY, NOUN, "", group.name)

        await remove(self._db, check, lambda: [
            (ENDPOINT_GRANT, ENDPOINT_GRANT.id_of(grant))
            for grant in self._db.cache.by(ENDPOINT_GRANT, "given", f"group/{request.endpoint_group_id}")], delete)
        return Empty()

    async def ListGroupedEndpoints(self, request: pb.ListGroupedEndpointsRequest, call: Call) -> ListEndpointsResponse:
        group = require(self._db, ENDPOINT_GROUP, request.endpoint_group_id)
        return ListEndpointsResponse(endpoints=[row for row in self._db.cache.all(ENDPOINT) if in_group(row, group)])

    async def ListGroupProjects(self, request: pb.ListGroupProjectsRequest, call: Call) -> ListProjectsResponse:
        require(self._db, ENDPOINT_GROUP, request.endpoint_group_id)
        return self._projects({grant.project_id for grant in
                               self._db.cache.by(ENDPOINT_GRANT, "given", f"group/{request.endpoint_group_id}")})

    async def ListProjectEndpointGroups(self, request: pb.ListProjectEndpointGroupsRequest,
                                        call: Call) -> pb.ListEndpointGroupsResponse:
        require(self._db, PROJECT, request.project_id)
        held = (self._db.get(ENDPOINT_GROUP, grant.id) for grant in
                self._db.cache.by(ENDPOINT_GRANT, "project", request.project_id) if grant.what == "group")
        return pb.ListEndpointGroupsResponse(endpoint_groups=[group for group in held if group is not None])

    # What projects are given

    async def AddGroupProject(self, request: pb.AddGroupProjectRequest, call: Call) -> Empty:
        return await self._give(EndpointGrant(what="group", id=request.endpoint_group_id, project_id=request.project_id))

    async def GetGroupProject(self, request: pb.GetGroupProjectRequest, call: Call) -> pb.GetEndpointGroupResponse:
        self._require_given(EndpointGrant(what="group", id=request.endpoint_group_id, project_id=request.project_id))
        return pb.GetEndpointGroupResponse(endpoint_group=require(self._db, ENDPOINT_GROUP, request.endpoint_group_id))

    async def CheckGroupProject(self, request: pb.CheckGroupProjectRequest, call: Call) -> Empty:
        self._require_given(EndpointGrant(what="group", id=request.endpoint_group_id, project_id=request.project_id))
        return Empty()

    async def RemoveGroupProject(self, request: pb.RemoveGroupProjectRequest, call: Call) -> Empty:
        return await self._take(EndpointGrant(what="group", id=request.endpoint_group_id, project_id=request.project_id))

    async def AddProjectEndpoint(self, request: pb.AddProjectEndpointRequest, call: Call) -> Empty:
        return await self._give(EndpointGrant(what="endpoint", id=request.endpoint_id, project_id=request.project_id))

    async def CheckProjectEndpoint(self, request: pb.CheckProjectEndpointRequest, call: Call) -> Empty:
        self._require_given(EndpointGrant(what="endpoint", id=request.endpoint_id, project_id=request.project_id))
        return Empty()

    async def RemoveProjectEndpoint(self, request: pb.RemoveProjectEndpointRequest, call: Call) -> Empty:
        return await self._take(EndpointGrant(what="endpoint", id=request.endpoint_id, project_id=request.project_id))

    async def ListProjectEndpoints(self, request: pb.ListProjectEndpointsRequest, call: Call) -> ListEndpointsResponse:
        require(self._db, PROJECT, request.project_id)
        is_given = granted(self._db, request.project_id)
        return ListEndpointsResponse(endpoints=[row for row in self._db.cache.all(ENDPOINT) if is_given and is_given(row)])

    async def ListEndpointProjects(self, request: pb.ListEndpointProjectsRequest, call: Call) -> ListProjectsResponse:
        endpoint = require(self._db, ENDPOINT, request.endpoint_id)
        return self._projects({grant.project_id for grant in self._db.cache.all(ENDPOINT_GRANT) if self._covers(grant, endpoint)})

    def _covers(self, grant: EndpointGrant, endpoint: Endpoint) -> bool:
        if grant.what == "endpoint":
            return grant.id == endpoint.id
        group = self._db.get(ENDPOINT_GROUP, grant.id)
        return group is not None and in_group(endpoint, group)

    def _projects(self, identifiers: set[str]) -> ListProjectsResponse:
        records = (self._db.get(PROJECT, identifier) for identifier in sorted(identifiers))
        return ListProjectsResponse(projects=[record.project for record in records if record is not None])

    async def _give(self, grant: EndpointGrant) -> Empty:
        kind: Kind = ENDPOINT_GROUP if grant.what == "group" else ENDPOINT

        def decide(transaction: Transaction) -> None:
            require(transaction, kind, grant.id)
            require(transaction, PROJECT, grant.project_id)
            transaction.guard_exists(kind, grant.id)
            transaction.guard_exists(PROJECT, grant.project_id)
            transaction.put(ENDPOINT_GRANT, grant)

        await self._db.transact(decide)
        return Empty()

    async def _take(self, grant: EndpointGrant) -> Empty:
        def decide(transaction: Transaction) -> None:
            self._require_given(grant)
            transaction.delete(ENDPOINT_GRANT, *ENDPOINT_GRANT.id_of(grant))

        await self._db.transact(decide)
        return Empty()

    def _require_given(self, grant: EndpointGrant) -> None:
        if self._db.get(ENDPOINT_GRANT, *ENDPOINT_GRANT.id_of(grant)) is None:
            raise missing("endpoint group" if grant.what == "group" else "endpoint", f"{grant.id} of project {grant.project_id}")


def _check(group: pb.EndpointGroup) -> None:
    check_name(NOUN, group.name)
    if len(group.description) > MAX_DESCRIPTION:
        raise Invalid("identity.description", f"Invalid input for field 'description': at most {MAX_DESCRIPTION} characters.")
    if not group.filters.fields or set(group.filters.fields) - FILTERS or group.filters.ByteSize() > 4096:
        raise Invalid("identity.endpoint_group.filters",
                      f"Invalid input for field 'filters': one or more of {', '.join(sorted(FILTERS))}.")
