"""Serves groups and who is in them."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.holdings import lasts, memberships
from control.identity.model import (
    GROUP,
    MEMBER,
    PROJECT,
    USER,
    apply_update,
    check_name,
    check_resource,
    missing,
    new_resource,
    rename,
    require,
    require_domain,
    take_name,
)
from control.identity.removal import remove_group
from control.identity.users import listed as listed_users
from control.kernel.database import Database, Transaction
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import groups_pb2 as pb
from protos.identity.v1.memberships_pb2 import ListMembersRequest
from protos.identity.v1.records_pb2 import Membership
from protos.identity.v1.users_pb2 import ListUsersResponse


class Groups:
    """identity.v1.Groups."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateGroup(self, request: pb.CreateGroupRequest, call: Call) -> pb.CreateGroupResponse:
        group = new_resource(request.group)
        group.id, group.domain_id = uuid.uuid4().hex, group.domain_id or access.home_domain(call.caller)
        check_name("group", group.name)
        check_resource(group)

        def decide(transaction: Transaction) -> None:
            require_domain(transaction, group.domain_id)
            transaction.guard_exists(PROJECT, group.domain_id)
            take_name(transaction, "group", group.domain_id, group.name, group.id)
            transaction.put(GROUP, group)

        await self._db.transact(decide)
        return pb.CreateGroupResponse(group=group)

    async def ListGroups(self, request: pb.ListGroupsRequest, call: Call) -> pb.ListGroupsResponse:
        if access.reads_domain(call.caller) and not access.reads_all(call.caller):
            groups = self._db.cache.by(GROUP, "domain", call.caller.domain_id)
        else:
            access.require_reader(call, "list_groups")
            groups = self._db.cache.all(GROUP)
        rows, marker = page(select(groups, request.filters), limit=request.limit, marker=request.marker,
                            sort=[(lambda group: group.name, False)])
        return pb.ListGroupsResponse(groups=rows, next_page_marker=marker)

    async def GetGroup(self, request: pb.GetGroupRequest, call: Call) -> pb.GetGroupResponse:
        access.require_reader(call, "get_group")
        return pb.GetGroupResponse(group=require(self._db, GROUP, request.group_id))

    async def UpdateGroup(self, request: pb.UpdateGroupRequest, call: Call) -> pb.UpdateGroupResponse:
        def decide(transaction: Transaction) -> pb.Group:
            group = require(transaction, GROUP, request.group_id)
            before = group.name
            apply_update(group, request.group, request.update_mask.paths, ("domain_id",))
            check_name("group", group.name)
            check_resource(group)
            rename(transaction, "group", group.domain_id, before, group.name, group.id)
            transaction.put(GROUP, group)
            return group

        return pb.UpdateGroupResponse(group=await self._db.transact(decide))

    async def DeleteGroup(self, request: pb.DeleteGroupRequest, call: Call) -> Empty:
        await remove_group(self._db, request.group_id)
        return Empty()

    async def AddMember(self, request: pb.AddMemberRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            require(transaction, GROUP, request.group_id)
            require(transaction, USER, request.user_id)
            present = transaction.get(MEMBER, request.group_id, request.user_id)
            if present is None or present.HasField("expires_at"):
                transaction.guard_exists(GROUP, request.group_id)
                transaction.guard_exists(USER, request.user_id)
                transaction.put(MEMBER, Membership(group_id=request.group_id, user_id=request.user_id))

        await self._db.transact(decide)
        return Empty()

    async def CheckMember(self, request: pb.CheckMemberRequest, call: Call) -> Empty:
        access.require_self(call, request.user_id, "check_user_in_group")
        require(self._db, GROUP, request.group_id)
        require(self._db, USER, request.user_id)
        if not lasts(self._db.get(MEMBER, request.group_id, request.user_id)):
            raise missing("user", f"{request.user_id} in group: {request.group_id}")
        return Empty()

    async def RemoveMember(self, request: pb.RemoveMemberRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            require(transaction, GROUP, request.group_id)
            require(transaction, USER, request.user_id)
            if transaction.get(MEMBER, request.group_id, request.user_id) is None:
                raise missing("user", f"{request.user_id} in group: {request.group_id}")
            transaction.delete(MEMBER, request.group_id, request.user_id)

        await self._db.transact(decide)
        return Empty()


class Memberships:
    """identity.v1.Memberships."""

    def __init__(self, db: Database):
        self._db = db

    async def ListMembers(self, request: ListMembersRequest, call: Call) -> ListUsersResponse:
        access.require_reader(call, "list_users_in_group")
        require(self._db, GROUP, request.group_id)
        records = [self._db.get(USER, member.user_id) for member in memberships(self._db, "group", request.group_id)]
        users = [record.user for record in records if record is not None]
        return listed_users(users, request.filters, request.limit, request.marker)
