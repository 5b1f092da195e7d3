"""Serves role assignments: gives roles, takes them back, and says who has which on what."""
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.holdings import SYSTEM, ancestors, below, expand, memberships
from control.identity.model import ASSIGNMENT, GROUP, PROJECT, ROLE, USER, missing, pair, require
from control.identity.roles import listed
from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.rpc import Call
from protos.identity.v1 import assignments_pb2 as pb
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.records_pb2 import Assignment
from protos.identity.v1.roles_pb2 import ListRolesResponse, Role

_ACTORS: dict[str, Kind] = {"user": USER, "group": GROUP}


class Assignments:
    """identity.v1.Assignments."""

    def __init__(self, db: Database):
        self._db = db

    async def AssignRole(self, request: pb.AssignRoleRequest, call: Call) -> Empty:
        return await self._assign(_wanted(request, _target(request)))

    async def CheckRole(self, request: pb.CheckRoleRequest, call: Call) -> Empty:
        return self._check(call, _wanted(request, _target(request)))

    async def UnassignRole(self, request: pb.UnassignRoleRequest, call: Call) -> Empty:
        return await self._unassign(_wanted(request, _target(request)))

    async def ListAssignedRoles(self, request: pb.ListAssignedRolesRequest, call: Call) -> ListRolesResponse:
        return self._listed(call, _wanted(request, _target(request)))

    async def AssignInheritedRole(self, request: pb.AssignRoleRequest, call: Call) -> Empty:
        return await self._assign(_wanted(request, _target(request), inherited=True))

    async def CheckInheritedRole(self, request: pb.CheckRoleRequest, call: Call) -> Empty:
        return self._check(call, _wanted(request, _target(request), inherited=True))

    async def UnassignInheritedRole(self, request: pb.UnassignRoleRequest, call: Call) -> Empty:
        return await self._unassign(_wanted(request, _target(request), inherited=True))

    async def ListInheritedRoles(self, request: pb.ListAssignedRolesRequest, call: Call) -> ListRolesResponse:
        return self._listed(call, _wanted(request, _target(request), inherited=True))

    async def AssignSystemRole(self, request: pb.AssignSystemRoleRequest, call: Call) -> Empty:
        return await self._assign(_wanted(request, SYSTEM))

    async def CheckSystemRole(self, request: pb.CheckSystemRoleRequest, call: Call) -> Empty:
        return self._check(call, _wanted(request, SYSTEM))

    async def UnassignSystemRole(self, request: pb.UnassignSystemRoleRequest, call: Call) -> Empty:
        return await self._unassign(_wanted(request, SYSTEM))

    async def ListAssignedSystemRoles(self, request: pb.ListAssignedSystemRolesRequest, call: Call) -> ListRolesResponse:
        return self._listed(call, _wanted(request, SYSTEM))

    async def ListRoleAssignments(self, request: pb.ListRoleAssignmentsRequest, call: Call) -> pb.ListRoleAssignmentsResponse:
        query = {parameter.key: list(parameter.values) for parameter in request.query}
        query = {key: values for key, values in query.items() if key in _FILTERS or key in _FLAGS}
        if query.get("user.id") != [call.caller.user_id]:
            access.require_reader(call, "list_role_assignments")
        flags = {flag for flag in _FLAGS if flag in query and (query[flag] or [""])[0].lower() not in _NO}
        effective = "effective" in flags
        if effective and "group.id" in query:
            raise Invalid("identity.assignments.effective",
                          "Combining effective and group filter will always result in an empty list.")
        rows = (_Effective(row, row) for row in self._db.cache.all(ASSIGNMENT))
        if effective:
            rows = (spelled for row in rows for spelled in self._effective(row))
        wanted = self._filters(query, subtree="include_subtree" in flags)
        shown = (self._shown(row, names="include_names" in flags) for row in rows if wanted(row))
        return pb.ListRoleAssignmentsResponse(role_assignments=[row for row in shown if row is not None])

    # Giving and taking

    async def _assign(self, wanted: Assignment) -> Empty:
        def decide(transaction: Transaction) -> None:
            self._require_ends(wanted, transaction)
            transaction.guard_exists(ROLE, wanted.role_id)
            transaction.guard_exists(_ACTORS[wanted.actor_type], wanted.actor_id)
            if wanted.target_type != "system":
                transaction.guard_exists(PROJECT, wanted.target_id)
            if transaction.get(ASSIGNMENT, *ASSIGNMENT.id_of(wanted)) is None:
                transaction.put(ASSIGNMENT, wanted)

        await self._db.transact(decide)
        return Empty()

    async def _unassign(self, wanted: Assignment) -> Empty:
        def decide(transaction: Transaction) -> None:
            if transaction.get(ASSIGNMENT, *ASSIGNMENT.id_of(wanted)) is None:
                self._require_ends(wanted, transaction)
                raise _not_assigned(wanted)
            transaction.delete(ASSIGNMENT, *ASSIGNMENT.id_of(wanted))

        await self._db.transact(decide)
        return Empty()

    def _check(self, call: Call, wanted: Assignment) -> Empty:
        access.require_reader(call, "check_grant")
        self._require_ends(wanted, self._db)
        if self._db.get(ASSIGNMENT, *ASSIGNMENT.id_of(wanted)) is None:
            raise _not_assigned(wanted)
        return Empty()

    def _listed(self, call: Call, wanted: Assignment) -> ListRolesResponse:
        access.require_reader(call, "list_grants")
        self._require_ends(wanted, self._db)
        held = self._db.cache.by(ASSIGNMENT, "pair", pair((wanted.actor_type, wanted.actor_id),
                                                          (wanted.target_type, wanted.target_id, wanted.inherited)))
        roles = (self._db.get(ROLE, row.role_id) for row in held)
        return listed([role for role in roles if role is not None])

    def _require_ends(self, wanted: Assignment, reader: Database | Transaction) -> None:
        """Raise NotFound for the role, the actor or the target that is not there."""
        role: Role | None = require(reader, ROLE, wanted.role_id) if wanted.role_id else None
        require(reader, _ACTORS[wanted.actor_type], wanted.actor_id)
        if wanted.target_type == "system":
            return
        target = reader.get(PROJECT, wanted.target_id)
        if target is None or (wanted.target_type == "domain" and not target.project.is_domain):
            raise missing(wanted.target_type, wanted.target_id)
        if role is not None and role.domain_id and role.domain_id not in (target.project.id, target.project.domain_id):
            raise access.forbidden("identity.role.domain", f"the role {role.name} is private to another domain")

    # Listing

    def _effective(self, row: "_Effective") -> Iterator["_Effective"]:
        """An assignment as single users' single roles on what it counts on."""
        source = row.row
        users = [source.actor_id] if source.actor_type == "user" else [
            member.user_id for member in memberships(self._db, "group", source.actor_id)]
        targets = [(source.target_type, source.target_id)] if not source.inherited else [
            ("project", project_id) for project_id in below(self._db, source.target_id)]
        for role in expand(self._db, [source.role_id]):
            for user_id in users:
                for target_type, target_id in targets:
                    yield _Effective(Assignment(actor_type="user", actor_id=user_id, target_type=target_type, target_id=target_id,
                                                role_id=role.id), source)

    def _filters(self, query: dict[str, list[str]], *, subtree: bool):
        """The predicate of a list's query."""
        def matches(effective: _Effective) -> bool:
            row = effective.row
            for key, values in query.items():
                match key:
                    case "user.id" | "group.id":
                        holds = row.actor_type == key.partition(".")[0] and row.actor_id in values
                    case "role.id":
                        holds = row.role_id in values
                    case "scope.project.id":
                        holds = row.target_type == "project" and (
                            row.target_id in values or (subtree and self._under(row, values)))
                    case "scope.domain.id":
                        holds = row.target_type == "domain" and row.target_id in values
                    case "scope.system":
                        holds = row.target_type == "system"
                    case "scope.OS-INHERIT:inherited_to":
                        holds = effective.source.inherited and values == ["projects"]
                    case _:
                        holds = True
                if not holds:
                    return False
            return True

        return matches

    def _under(self, row: Assignment, project_ids: Iterable[str]) -> bool:
        record = self._db.get(PROJECT, row.target_id)
        return record is not None and any(above.id in project_ids for above in ancestors(self._db, record.project))

    def _shown(self, row: "_Effective", *, names: bool) -> pb.RoleAssignment | None:
        """As the API shows it; None where one of its ends is gone."""
        role = self._db.get(ROLE, row.row.role_id)
        actor = self._actor(row.row)
        if role is None or actor is None:
            return None
        shown = pb.RoleAssignment(role=pb.Named(id=role.id), links=_links(row))
        if names:
            shown.role.name = role.name
            if role.domain_id:
                shown.role.domain.CopyFrom(self._domain(role.domain_id))
            name, domain_id = actor
            end = pb.Named(id=row.row.actor_id, name=name, domain=self._domain(domain_id))
        else:
            end = pb.Named(id=row.row.actor_id)
        getattr(shown, row.row.actor_type).CopyFrom(end)
        if row.row.inherited:
            shown.scope.inherited_to = "projects"
        if row.row.target_type == "system":
            shown.scope.system.all = True
            return shown
        target = self._db.get(PROJECT, row.row.target_id)
        if target is None:
            return None
        place = getattr(shown.scope, row.row.target_type)
        place.id = target.project.id
        if names:
            place.name = target.project.name
            if row.row.target_type == "project":
                place.domain.CopyFrom(self._domain(target.project.domain_id or target.project.id))
        return shown

    def _actor(self, row: Assignment) -> tuple[str, str] | None:
        """Name and domain of who has the role."""
        if row.actor_type == "group":
            group = self._db.get(GROUP, row.actor_id)
            return (group.name, group.domain_id) if group else None
        record = self._db.get(USER, row.actor_id)
        return (record.user.name, record.user.domain_id) if record else None

    def _domain(self, domain_id: str) -> pb.NamedDomain:
        record = self._db.get(PROJECT, domain_id)
        return pb.NamedDomain(id=domain_id, name=(record.project if record else Project()).name)


_FILTERS = frozenset({"user.id", "group.id", "role.id", "scope.project.id", "scope.domain.id", "scope.system",
                      "scope.OS-INHERIT:inherited_to"})
_FLAGS = frozenset({"effective", "include_names", "include_subtree"})
_NO = frozenset({"0", "false", "no", "off", "n", "f"})


@dataclass(frozen=True, slots=True)
class _Effective:
    """An assignment as it counts, and the one that is kept."""

    row: Assignment
    source: Assignment


def _target(request) -> tuple[str, str]:
    """The project or the domain of a request. Raises Invalid unless it is exactly one."""
    if bool(request.project_id) == bool(request.domain_id):
        raise Invalid("identity.assignment.target", "Exactly one of project_id and domain_id is required.")
    return ("project", request.project_id) if request.project_id else ("domain", request.domain_id)


def _wanted(request, target: tuple[str, str], *, inherited: bool = False) -> Assignment:
    if bool(request.user_id) == bool(request.group_id):
        raise Invalid("identity.assignment.actor", "Exactly one of user_id and group_id is required.")
    return Assignment(actor_type="user" if request.user_id else "group", actor_id=request.user_id or request.group_id,
                      target_type=target[0], target_id=target[1], role_id=getattr(request, "role_id", ""),
                      inherited=inherited)


def _not_assigned(wanted: Assignment):
    return missing("role assignment", f"role {wanted.role_id} of {wanted.actor_type} {wanted.actor_id} "
                                      f"on {wanted.target_type} {wanted.target_id}")


def _links(row: _Effective) -> pb.AssignmentLinks:
    source = row.source
    place = "/system" if source.target_type == "system" else f"/{source.target_type}s/{source.target_id}"
    links = pb.AssignmentLinks(assignment=f"{place}/{source.actor_type}s/{source.actor_id}/roles/{source.role_id}")
    if source.inherited:
        links.assignment = f"/OS-INHERIT{links.assignment}/inherited_to_projects"
    if source.actor_type == "group" and row.row.actor_type == "user":
        links.membership = f"/groups/{source.actor_id}/users/{row.row.actor_id}"
    if row.row.role_id != source.role_id:
        links.prior_role = f"/roles/{source.role_id}/implies/{row.row.role_id}"
    return links
