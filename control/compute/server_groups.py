"""The server groups' servicer. A server names its group from its making on; a group's members are the servers that name it."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.compute import access, limits, model
from control.compute.model import SERVER, SERVER_GROUP
from control.kernel import clock, listing, quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Denied, Invalid, NotFound
from control.kernel.rpc import Call
from protos.compute.v1 import server_groups_pb2 as pb
from protos.compute.v1.records_pb2 import ServerGroupRecord
from scheduler.types import GROUP_POLICIES

#: Members of one host at most that a group may ask for.
MOST_PER_HOST = 2**31 - 1


class ServerGroups:
    """Servicer of compute.v1.ServerGroups."""

    def __init__(self, database: Database):
        self._database = database

    async def CreateServerGroup(self, request: pb.CreateServerGroupRequest, call: Call) -> pb.ServerGroupResponse:
        group = _new_group(request.server_group, call)

        def decide(tx: Transaction) -> None:
            quota.charge(tx, model.QUOTA, group.project_id, model.DEFAULT_QUOTAS, server_groups=1)
            tx.put(SERVER_GROUP, group)

        await self._database.transact(decide, serial=quota.serial(model.QUOTA, group.project_id))
        return pb.ServerGroupResponse(server_group=self.view(group))

    async def ListServerGroups(self, request: pb.ListServerGroupsRequest, call: Call) -> pb.ListServerGroupsResponse:
        if request.all_projects and not call.caller.is_admin:
            raise Denied("compute.server_group.all_projects", "Only an admin may list the server groups of all projects.")
        if request.limit < 0 or request.offset < 0:
            raise Invalid("compute.server_group.limit", "limit and offset must not be negative.")
        groups = (self._database.rows(SERVER_GROUP) if request.all_projects
                  else self._database.rows(SERVER_GROUP, "project", call.caller.project_id))
        ordered = sorted(groups, key=lambda group: (group.created_at.seconds, group.created_at.nanos, group.id))
        page = ordered[request.offset:request.offset + min(request.limit or listing.MAX_PAGE, listing.MAX_PAGE)]
        return pb.ListServerGroupsResponse(server_groups=[self.view(group) for group in page])

    async def GetServerGroup(self, request: pb.GetServerGroupRequest, call: Call) -> pb.ServerGroupResponse:
        return pb.ServerGroupResponse(server_group=self.view(_find(self._database, call.caller, request.server_group_id)))

    async def DeleteServerGroup(self, request: pb.GetServerGroupRequest, call: Call) -> Empty:
        owner = _find(self._database, call.caller, request.server_group_id).project_id

        def decide(tx: Transaction) -> None:
            group = _find(tx, call.caller, request.server_group_id)
            quota.charge(tx, model.QUOTA, group.project_id, model.DEFAULT_QUOTAS, server_groups=-1)
            tx.delete(SERVER_GROUP, group.id)

        await self._database.transact(decide, serial=quota.serial(model.QUOTA, owner))
        return Empty()

    def view(self, group: ServerGroupRecord) -> pb.ServerGroup:
        """A group as users see it, with its members."""
        rules = pb.ServerGroupRules(max_server_per_host=group.max_server_per_host or None)
        return pb.ServerGroup(
            id=group.id, name=group.name, policies=[group.policy], policy=group.policy, rules=rules,
            members=members(self._database, group.id), metadata={}, project_id=group.project_id, user_id=group.user_id)


def members(reads: Database | Transaction, group_id: str) -> list[str]:
    """Ids of the servers in a group that are not being deleted, sorted."""
    return sorted(server.id for server in reads.rows(SERVER, "group", group_id) if not server.desired.deleted)


def room(tx: Transaction, group_id: str, project_id: str) -> int:
    """How many more members a group may have; -1 for any number. The commit is refused if the group is deleted meanwhile.

    Exact where the commit charges the project's ledger, as that of each new server does.
    """
    if tx.get(SERVER_GROUP, group_id) is None:
        raise Invalid("compute.server.group", f"Instance group {group_id[:80]} could not be found.")
    tx.guard_exists(SERVER_GROUP, group_id)
    most = access.limit(tx, project_id, "server_group_members")
    return most if most == quota.UNLIMITED else max(0, most - len(members(tx, group_id)))


def _find(reads: Database | Transaction, caller: Caller, group_id: str) -> ServerGroupRecord:
    group = reads.get(SERVER_GROUP, group_id)
    if group is None or not (caller.is_admin or group.project_id == caller.project_id):
        raise NotFound("compute.server_group", f"Instance group {group_id[:80]} could not be found.")
    return group


def _new_group(new: pb.NewServerGroup, call: Call) -> ServerGroupRecord:
    if not call.caller.project_id:
        raise Invalid("compute.server_group.project", "A server group belongs to a project: use a token that is scoped to one.")
    if len(new.policies) + new.HasField("policy") != 1:
        raise Invalid("compute.server_group.policy", f"A server group has one policy of {', '.join(GROUP_POLICIES)}.")
    policy = new.policy or "".join(new.policies)
    before_soft = call.microversion is not None and call.microversion < (2, 15)
    if policy not in GROUP_POLICIES or (policy.startswith("soft-") and before_soft):
        raise Invalid("compute.server_group.policy", f"policy {policy[:80]!r} is not one of {', '.join(GROUP_POLICIES)}; the "
                                                     "soft ones are there from microversion 2.15 on.")
    most = new.rules.max_server_per_host
    if new.rules.HasField("max_server_per_host"):
        if policy != "anti-affinity":
            raise Invalid("compute.server_group.rules", "Only the anti-affinity policy has rules: max_server_per_host.")
        if not 1 <= most <= MOST_PER_HOST:
            raise Invalid("compute.server_group.rules", f"max_server_per_host is from 1 to {MOST_PER_HOST}, not {most}.")
    return ServerGroupRecord(
        id=str(uuid.uuid4()), project_id=call.caller.project_id, user_id=call.caller.user_id,
        name=limits.name(new.name, "server group"), policy=policy, max_server_per_host=most, created_at=clock.now())
