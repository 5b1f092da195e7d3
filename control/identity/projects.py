"""Serves projects."""
import uuid
from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.holdings import ancestors, reachable, roles_on
from control.identity.model import (
    ENTRY,
    MAX_DEPTH,
    PROJECT,
    apply_update,
    check_name,
    check_resource,
    check_tags,
    missing,
    new_resource,
    rename,
    require,
    require_domain,
    take_name,
)
from control.identity.project_tree import check_switch, with_family
from control.identity.removal import refuse_immutable, remove_project
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.brume.v1.options_pb2 import QueryParameter
from protos.identity.v1 import projects_pb2 as pb
from protos.identity.v1.records_pb2 import Entry, ProjectRecord


class Projects:
    """identity.v1.Projects."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateProject(self, request: pb.CreateProjectRequest, call: Call) -> pb.CreateProjectResponse:
        project = new_resource(request.project)
        project.id = uuid.uuid4().hex
        noun = "domain" if project.is_domain else "project"
        check_name(noun, project.name)
        check_resource(project)
        project.is_domain = noun == "domain"          # shown also when it is false

        def decide(transaction: Transaction) -> None:
            self._place(transaction, project, access.home_domain(call.caller))
            take_name(transaction, noun, project.domain_id, project.name, project.id)
            transaction.put(PROJECT, ProjectRecord(project=project))

        await self._db.transact(decide)
        return pb.CreateProjectResponse(project=project)

    async def ListProjects(self, request: pb.ListProjectsRequest, call: Call) -> pb.ListProjectsResponse:
        if access.reads_all(call.caller):
            projects = [record.project for record in self._db.cache.all(PROJECT)]
        else:
            access.require_name(request.filters, "list_projects")
            projects = reachable(self._db, call.caller.user_id, "project")
        return listed(projects, request.filters, request.limit, request.marker)

    async def GetProject(self, request: pb.GetProjectRequest, call: Call) -> pb.GetProjectResponse:
        project = self._visible(request.project_id, call, "get_project")
        return pb.GetProjectResponse(project=with_family(self._db, project, request.query, call))

    async def UpdateProject(self, request: pb.UpdateProjectRequest, call: Call) -> pb.UpdateProjectResponse:
        def decide(transaction: Transaction) -> ProjectRecord:
            record = require(transaction, PROJECT, request.project_id)
            project = record.project
            if set(request.update_mask.paths) - {"options"}:
                refuse_immutable("project", project)
            before, was_enabled = project.name, project.enabled
            apply_update(project, request.project, request.update_mask.paths, ("domain_id", "parent_id", "is_domain"))
            if was_enabled != project.enabled:
                check_switch(self._db, project)
            noun = "domain" if project.is_domain else "project"
            check_name(noun, project.name)
            check_resource(project)
            rename(transaction, noun, project.domain_id, before, project.name, project.id)
            if was_enabled and not project.enabled:
                record.revoked_before.CopyFrom(clock.now())
            transaction.put(PROJECT, record)
            return record

        return pb.UpdateProjectResponse(project=(await self._db.transact(decide)).project)

    async def DeleteProject(self, request: pb.DeleteProjectRequest, call: Call) -> Empty:
        await remove_project(self._db, request.project_id)
        return Empty()

    # Tags

    async def ListTags(self, request: pb.ListTagsRequest, call: Call) -> pb.TagsResponse:
        return pb.TagsResponse(tags=self._visible(request.project_id, call, "list_project_tags").tags)

    async def SetTags(self, request: pb.SetTagsRequest, call: Call) -> pb.TagsResponse:
        check_tags(request.tags)
        return pb.TagsResponse(tags=await self._tag(request.project_id, lambda tags: list(request.tags)))

    async def DeleteTags(self, request: pb.DeleteTagsRequest, call: Call) -> Empty:
        await self._tag(request.project_id, lambda tags: [])
        return Empty()

    async def AddTag(self, request: pb.AddTagRequest, call: Call) -> Empty:
        await self._tag(request.project_id, lambda tags: tags if request.tag in tags else [*tags, request.tag])
        return Empty()

    async def CheckTag(self, request: pb.CheckTagRequest, call: Call) -> Empty:
        if request.tag not in self._visible(request.project_id, call, "get_project_tag").tags:
            raise missing("project tag", request.tag)
        return Empty()

    async def DeleteTag(self, request: pb.DeleteTagRequest, call: Call) -> Empty:
        def without(tags: list[str]) -> list[str]:
            if request.tag not in tags:
                raise missing("project tag", request.tag)
            return [tag for tag in tags if tag != request.tag]

        await self._tag(request.project_id, without)
        return Empty()

    async def _tag(self, project_id: str, change: Callable[[list[str]], list[str]]) -> list[str]:
        """Change a project's tags; the new ones."""
        def decide(transaction: Transaction) -> list[str]:
            record = require(transaction, PROJECT, project_id)
            refuse_immutable("project", record.project)
            tags = change(list(record.project.tags))
            check_tags(tags)
            del record.project.tags[:]
            record.project.tags.extend(tags)
            transaction.put(PROJECT, record)
            return tags

        return await self._db.transact(decide)

    def _visible(self, project_id: str, call: Call, action: str) -> pb.Project:
        if project_id != call.caller.project_id and not roles_on(self._db, call.caller.user_id, "project", project_id):
            access.require_reader(call, action)
        return require(self._db, PROJECT, project_id).project

    def _place(self, transaction: Transaction, project: pb.Project, home: str) -> None:
        """Settle a new project's domain and parent. Raises NotFound, Invalid or Denied where they cannot be so."""
        if project.is_domain:
            if project.domain_id or project.parent_id:
                raise Invalid("identity.project.domain", "A project that acts as a domain has neither a domain nor a parent.")
            project.ClearField("domain_id")
            project.ClearField("parent_id")
            return
        if project.parent_id:
            parent = require(transaction, PROJECT, project.parent_id).project
            domain_id = parent.id if parent.is_domain else parent.domain_id
            if project.domain_id and project.domain_id != domain_id:
                raise Invalid("identity.project.parent", "The project and its parent are in different domains.")
            if not parent.is_domain:
                for above in (parent, *ancestors(self._db, parent)):
                    if not above.enabled:
                        raise access.forbidden("identity.project.disabled", f"the project {above.id} above it is disabled")
                if len(list(ancestors(self._db, parent))) + 2 > MAX_DEPTH:
                    raise access.forbidden("identity.project.depth", f"max hierarchy depth reached for {parent.id} branch")
                transaction.put(ENTRY, Entry(noun="child", scope=parent.id, name=project.id, id=project.id))
            transaction.guard_exists(PROJECT, parent.id)
            project.domain_id = domain_id
        else:
            project.domain_id = project.domain_id or home
            project.parent_id = require_domain(transaction, project.domain_id).project.id
        transaction.guard_exists(PROJECT, project.domain_id)


def listed(projects: list[pb.Project], filters, limit: int, marker: str) -> pb.ListProjectsResponse:
    """One page of projects. Those that act as domains are left out unless they are asked for."""
    plain = []
    acting = QueryParameter(key="is_domain", values=["false"])
    for parameter in filters:
        match parameter.key:
            case "is_domain":
                acting = parameter
            case "tags" | "tags-any" | "not-tags" | "not-tags-any":
                projects = [project for project in projects if _tagged(project, parameter)]
            case _:
                plain.append(parameter)
    rows, next_marker = page(select(projects, [*plain, acting]), limit=limit, marker=marker,
                             sort=[(lambda project: project.name, False)])
    return pb.ListProjectsResponse(projects=rows, next_page_marker=next_marker)


def _tagged(project: pb.Project, parameter: QueryParameter) -> bool:
    wanted = {tag for value in parameter.values for tag in value.split(",")}
    held = wanted & set(project.tags)
    match parameter.key:
        case "tags":
            return held == wanted
        case "tags-any":
            return bool(held)
        case "not-tags":
            return held != wanted
    return not held
