"""Serves users. A password leaves this module as a hash; changing it, or disabling its user, ends the user's tokens."""
import uuid

from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Struct

from control.identity import access
from control.identity.authentication import Authentication
from control.identity.compliance import merge_options
from control.identity.holdings import memberships, reachable
from control.identity.logins import forgive
from control.identity.model import (
    GROUP,
    PROJECT,
    USER,
    apply_update,
    check_name,
    check_resource,
    new_resource,
    rename,
    require,
    require_domain,
    take_name,
)
from control.identity.passwords import Passwords
from control.identity.projects import listed as listed_projects
from control.identity.removal import remove_user
from control.identity.sessions import refused
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import users_pb2 as pb
from protos.identity.v1.groups_pb2 import Group, ListGroupsResponse
from protos.identity.v1.projects_pb2 import ListProjectsResponse
from protos.identity.v1.records_pb2 import UserRecord
from protos.identity.v1.tokens_pb2 import AuthUser


class Users:
    """identity.v1.Users."""

    def __init__(self, db: Database, passwords: Passwords, authentication: Authentication):
        self._db = db
        self._passwords = passwords
        self._authentication = authentication
        self._compliance = authentication.compliance

    async def CreateUser(self, request: pb.CreateUserRequest, call: Call) -> pb.CreateUserResponse:
        user = new_resource(request.user)
        user.id, user.domain_id = uuid.uuid4().hex, user.domain_id or access.home_domain(call.caller)
        user.ClearField("password")
        _check(user)
        user.options.CopyFrom(merge_options(Struct(), request.user.options))
        record = UserRecord(user=user)
        if request.user.HasField("password"):
            self._compliance.check_text(request.user.password)
            self._compliance.set_password(record, await self._passwords.hash(request.user.password), clock.now(), own=False)

        def decide(transaction: Transaction) -> None:
            require_domain(transaction, user.domain_id)
            transaction.guard_exists(PROJECT, user.domain_id)
            _check_default_project(transaction, user)
            take_name(transaction, "user", user.domain_id, user.name, user.id)
            transaction.put(USER, record)

        await self._db.transact(decide)
        return pb.CreateUserResponse(user=record.user)

    async def ListUsers(self, request: pb.ListUsersRequest, call: Call) -> pb.ListUsersResponse:
        if access.reads_all(call.caller):
            users = [record.user for record in self._db.cache.all(USER)]
        elif access.reads_domain(call.caller):
            users = [record.user for record in self._db.cache.by(USER, "domain", call.caller.domain_id)]
        else:
            access.require_name(request.filters, "list_users")
            users = [require(self._db, USER, call.caller.user_id).user]
        return listed(users, request.filters, request.limit, request.marker)

    async def GetUser(self, request: pb.GetUserRequest, call: Call) -> pb.GetUserResponse:
        access.require_self(call, request.user_id, "get_user")
        return pb.GetUserResponse(user=require(self._db, USER, request.user_id).user)

    async def UpdateUser(self, request: pb.UpdateUserRequest, call: Call) -> pb.UpdateUserResponse:
        require(self._db, USER, request.user_id)
        encoded = None
        if request.user.HasField("password"):
            self._compliance.check_text(request.user.password)
            encoded = await self._passwords.hash(request.user.password)

        def decide(transaction: Transaction) -> UserRecord:
            record = require(transaction, USER, request.user_id)
            user = record.user
            before, was_enabled = user.name, user.enabled
            options = merge_options(user.options, request.user.options)
            apply_update(user, request.user, [path for path in request.update_mask.paths if path != "password"], ("domain_id",))
            user.options.CopyFrom(options)
            _check(user)
            if "default_project_id" in request.update_mask.paths:
                _check_default_project(transaction, user)
            rename(transaction, "user", user.domain_id, before, user.name, user.id)
            if encoded is not None:
                self._compliance.set_password(record, encoded, clock.now(), own=False)
            elif "options" in request.update_mask.paths:
                self._compliance.set_expiry(record)
            if encoded is not None or (user.enabled and "enabled" in request.update_mask.paths):
                forgive(transaction, user.id, self._compliance)
            if encoded is not None or (was_enabled and not user.enabled):
                record.revoked_before.CopyFrom(clock.now())
            transaction.put(USER, record)
            return record

        return pb.UpdateUserResponse(user=(await self._db.transact(decide)).user)

    async def DeleteUser(self, request: pb.DeleteUserRequest, call: Call) -> Empty:
        await remove_user(self._db, request.user_id)
        return Empty()

    async def ChangePassword(self, request: pb.ChangePasswordRequest, call: Call) -> Empty:
        if not request.user.original_password:
            raise Invalid("identity.password.original",
                          "Invalid input for field 'user': 'original_password' is a required property.")
        held = await self._authentication.right_password(
            AuthUser(id=request.user_id, password=request.user.original_password))
        self._compliance.check_change(held, clock.now())
        self._compliance.check_text(request.user.password)
        for former in self._compliance.used_before(held):
            if await self._passwords.verify(former, request.user.password):
                raise self._compliance.repeated()
        encoded = await self._passwords.hash(request.user.password)

        def decide(transaction: Transaction) -> None:
            record = require(transaction, USER, request.user_id)
            if record.password_hash != held.password_hash:
                raise refused("auth.password")          # changed meanwhile
            self._compliance.set_password(record, encoded, clock.now(), own=True)
            record.revoked_before.CopyFrom(clock.now())
            transaction.put(USER, record)

        await self._db.transact(decide)
        return Empty()

    async def ListUserProjects(self, request: pb.ListUserProjectsRequest, call: Call) -> ListProjectsResponse:
        access.require_self(call, request.user_id, "list_user_projects")
        require(self._db, USER, request.user_id)
        return listed_projects(reachable(self._db, request.user_id, "project"), request.filters, request.limit, request.marker)

    async def ListUserGroups(self, request: pb.ListUserGroupsRequest, call: Call) -> ListGroupsResponse:
        access.require_self(call, request.user_id, "list_groups_for_user")
        require(self._db, USER, request.user_id)
        groups = [self._db.get(GROUP, member.group_id) for member in memberships(self._db, "user", request.user_id)]
        present: list[Group] = [group for group in groups if group is not None]
        rows, marker = page(select(present, request.filters), limit=request.limit, marker=request.marker,
                            sort=[(lambda group: group.name, False)])
        return ListGroupsResponse(groups=rows, next_page_marker=marker)


def listed(users: list[pb.User], filters, limit: int, marker: str) -> pb.ListUsersResponse:
    """One page of users, by name."""
    filters = list(filters)
    if through := {parameter.key: set(parameter.values) for parameter in filters if parameter.key in _FEDERATED}:
        users = [user for user in users if _is_federated(user, through)]
    rows, next_marker = page(select(users, filters), limit=limit, marker=marker, sort=[(lambda user: user.name, False)])
    return pb.ListUsersResponse(users=rows, next_page_marker=next_marker)


_FEDERATED = frozenset({"idp_id", "protocol_id", "unique_id"})


def _is_federated(user: pb.User, wanted: dict[str, set[str]]) -> bool:
    """Whether a user is to some identity provider as a list's filters say."""
    ways = ({"idp_id": identity.idp_id, "protocol_id": protocol.protocol_id, "unique_id": protocol.unique_id}
            for identity in user.federated for protocol in identity.protocols)
    return any(all(way[key] in values for key, values in wanted.items()) for way in ways)


def _check(user: pb.User) -> None:
    check_name("user", user.name)
    check_resource(user)
    if user.HasField("default_project_id") and len(user.default_project_id) > 64:
        raise Invalid("identity.user.default_project", "Invalid input for field 'default_project_id': at most 64 characters.")


def _check_default_project(transaction: Transaction, user: pb.User) -> None:
    """A domain cannot be a default project; one that is not there (any more) only leaves tokens without scope."""
    if user.HasField("default_project_id") and not user.default_project_id:
        user.ClearField("default_project_id")
    record = transaction.get(PROJECT, user.default_project_id) if user.default_project_id else None
    if record is not None and record.project.is_domain:
        raise Invalid("identity.user.default_project", "User's default project ID cannot be a domain ID.")
