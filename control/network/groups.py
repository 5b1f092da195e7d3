"""Security groups and their rules, which stand in the group's own record.

Each project has a group named "default", made with whatever first needs it: its members reach each other and anything
outside, nothing else reaches them.
"""

import uuid
from collections.abc import Iterable

from google.protobuf.empty_pb2 import Empty

from control.kernel import quota
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Exhausted, Invalid
from control.kernel.rpc import Call
from control.network.access import group_of, owner_of, owns
from control.network.attributes import body, check_texts, given, in_use, stamp
from control.network.model import DEFAULT_GROUP, GROUP, MAX_REMOTES, MAX_RULES, PORT, QUOTA, SERVICE, USE, absent
from control.network.pages import listed
from control.network.rules import checked_rule, meaning, new_rule
from protos.network.v1 import security_groups_pb2 as pb
from protos.network.v1.records_pb2 import DefaultGroupRecord, UseRecord
from protos.network.v1.security_groups_pb2 import SecurityGroup, SecurityGroupRule

DEFAULT = "default"


class SecurityGroups:
    def __init__(self, database: Database):
        self._database = database

    async def CreateSecurityGroup(self, request: pb.CreateSecurityGroupRequest, call: Call) -> pb.CreateSecurityGroupResponse:
        wish = body(request, "security_group")
        given(wish, request.update_mask, settable=("name", "description", "project_id", "tenant_id"), verb="POST")
        check_texts(wish, "name", "description")
        project_id = owner_of(call.caller, wish)

        def decide(tx: Transaction) -> SecurityGroup:
            ensure_default(tx, project_id)
            if wish.name == DEFAULT:
                raise Conflict("network.security_group.default", "Default security group already exists.")
            return _new_group(tx, project_id, wish.name, wish.description, _outward(project_id))

        group = await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return pb.CreateSecurityGroupResponse(security_group=group)

    async def ShowSecurityGroup(self, request: pb.ShowSecurityGroupRequest, call: Call) -> pb.ShowSecurityGroupResponse:
        return pb.ShowSecurityGroupResponse(security_group=group_of(self._database, call.caller, request.id))

    async def ListSecurityGroups(self, request: pb.ListSecurityGroupsRequest, call: Call) -> pb.ListSecurityGroupsResponse:
        project_id = call.caller.project_id
        if project_id and self._database.get(DEFAULT_GROUP, project_id) is None:
            await self._database.transact(lambda tx: ensure_default(tx, project_id), serial=quota.serial(SERVICE, project_id))
        groups, marker = listed(_visible(self._database, call.caller), request, lambda group: group)
        return pb.ListSecurityGroupsResponse(security_groups=groups, next_page_marker=marker)

    async def UpdateSecurityGroup(self, request: pb.UpdateSecurityGroupRequest, call: Call) -> pb.UpdateSecurityGroupResponse:
        wish = body(request, "security_group")
        names = given(wish, request.update_mask, settable=("name", "description"), verb="PUT")
        check_texts(wish, "name", "description")

        def decide(tx: Transaction) -> SecurityGroup:
            group = group_of(tx, call.caller, request.id)
            if "name" in names and wish.name != group.name and DEFAULT in (wish.name, group.name):
                raise Conflict(
                    "network.security_group.default", "The name of the default security group cannot be given or taken."
                )
            for name in names:
                setattr(group, name, getattr(wish, name))
            stamp(group)
            tx.put(GROUP, group)
            return group

        return pb.UpdateSecurityGroupResponse(security_group=await self._database.transact(decide))

    async def DeleteSecurityGroup(self, request: pb.DeleteSecurityGroupRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            group = group_of(tx, call.caller, request.id)
            if group.name == DEFAULT and not call.caller.is_admin:
                raise Conflict("network.security_group.default", "Insufficient rights for removing default security group.")
            drop_group(tx, group)

        project_id = group_of(self._database, call.caller, request.id).project_id
        await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return Empty()


class SecurityGroupRules:
    def __init__(self, database: Database):
        self._database = database

    async def CreateSecurityGroupRule(
        self, request: pb.CreateSecurityGroupRuleRequest, call: Call
    ) -> pb.CreateSecurityGroupRuleResponse:
        wish = body(request, "security_group_rule")
        given(
            wish,
            request.update_mask,
            verb="POST",
            settable=(
                "description",
                "project_id",
                "tenant_id",
                "security_group_id",
                "direction",
                "ethertype",
                "protocol",
                "port_range_min",
                "port_range_max",
                "remote_ip_prefix",
                "remote_group_id",
            ),
        )
        owner_of(call.caller, wish)
        rule = checked_rule(wish)
        project_id = group_of(self._database, call.caller, wish.security_group_id).project_id

        def decide(tx: Transaction) -> SecurityGroupRule:
            group = group_of(tx, call.caller, wish.security_group_id)
            if rule.remote_group_id:
                _use_remote(tx, group, group_of(tx, call.caller, rule.remote_group_id))
            new = SecurityGroupRule()
            new.CopyFrom(rule)
            return _add_rule(tx, group, new)

        made = await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return pb.CreateSecurityGroupRuleResponse(security_group_rule=made)

    async def ShowSecurityGroupRule(
        self, request: pb.ShowSecurityGroupRuleRequest, call: Call
    ) -> pb.ShowSecurityGroupRuleResponse:
        return pb.ShowSecurityGroupRuleResponse(security_group_rule=self._find(call.caller, request.id)[1])

    async def ListSecurityGroupRules(
        self, request: pb.ListSecurityGroupRulesRequest, call: Call
    ) -> pb.ListSecurityGroupRulesResponse:
        rules = [rule for group in _visible(self._database, call.caller) for rule in group.security_group_rules]
        for parameter in request.filters:
            if parameter.key == "protocol":
                rules = [rule for rule in rules if rule.protocol.string_value in parameter.values]
        page, marker = listed(rules, request, lambda rule: rule, skip=("protocol",))
        return pb.ListSecurityGroupRulesResponse(security_group_rules=page, next_page_marker=marker)

    async def DeleteSecurityGroupRule(self, request: pb.DeleteSecurityGroupRuleRequest, call: Call) -> Empty:
        group_id, project_id = (group := self._find(call.caller, request.id)[0]).id, group.project_id

        def decide(tx: Transaction) -> None:
            group = group_of(tx, call.caller, group_id)
            gone = [rule for rule in group.security_group_rules if rule.id == request.id]
            if not gone:
                raise absent("security_group_rule", request.id)
            kept = [rule for rule in group.security_group_rules if rule.id != request.id]
            remote = gone[0].remote_group_id
            if remote and remote != group.id and all(rule.remote_group_id != remote for rule in kept):
                tx.delete(USE, remote, group.id)
            del group.security_group_rules[:]
            group.security_group_rules.extend(kept)
            stamp(group)
            tx.put(GROUP, group)
            quota.charge(tx, SERVICE, group.project_id, QUOTA, security_group_rule=-1)

        await self._database.transact(decide, serial=quota.serial(SERVICE, project_id))
        return Empty()

    def _find(self, caller: Caller, rule_id: str) -> tuple[SecurityGroup, SecurityGroupRule]:
        for group in self._database.cache.by(GROUP, "rule", rule_id):
            if owns(caller, group):
                return group, next(rule for rule in group.security_group_rules if rule.id == rule_id)
        raise absent("security_group_rule", rule_id)


def ensure_default(tx: Transaction, project_id: str) -> str:
    """The id of a project's default group, which is made if it is not there."""
    record = tx.get(DEFAULT_GROUP, project_id)
    if record is not None:
        return record.security_group_id
    group_id = str(uuid.uuid4())
    rules = _outward(project_id)
    for version in ("IPv4", "IPv6"):
        rules.append(new_rule(project_id, "ingress", version, remote_group_id=group_id))
    tx.put(DEFAULT_GROUP, DefaultGroupRecord(project_id=project_id, security_group_id=group_id))
    _new_group(tx, project_id, DEFAULT, "Default security group", rules, group_id)
    return group_id


def drop_group(tx: Transaction, group: SecurityGroup) -> None:
    """Delete a group with its rules. Raises Conflict while a port or another group's rule names it."""
    users = tx.rows(USE, "thing", group.id)
    if users:
        what = "a port has it" if tx.get(PORT, users[0].user) is not None else "a rule of another group names it"
        raise in_use("security_group", group.id, f"Security Group {group.id} in use: {what}.")
    tx.guard_empty(USE, group.id)
    for remote in sorted({rule.remote_group_id for rule in group.security_group_rules} - {"", group.id}):
        tx.delete(USE, remote, group.id)
    if group.name == DEFAULT:
        tx.delete(DEFAULT_GROUP, group.project_id)
    tx.delete(GROUP, group.id)
    quota.charge(tx, SERVICE, group.project_id, QUOTA, security_group=-1, security_group_rule=-len(group.security_group_rules))


def named_groups(tx: Transaction, project_id: str, names: Iterable[str]) -> list[str]:
    """Ids of a project's groups that are given by id or name. Raises Invalid for one that is not there or a name of several."""
    ids = []
    for name in names:
        own = tx.rows(GROUP, "project", project_id)
        found = [group.id for group in own if group.id == name] or [group.id for group in own if group.name == name]
        if not found and name == DEFAULT:
            found = [ensure_default(tx, project_id)]
        if not found:
            raise Invalid("network.security_group.name", f"Security group {name[:80]} not found for project {project_id}.")
        if len(found) > 1:
            raise Invalid("network.security_group.name", f"Several security groups are named {name[:80]}: name one by its id.")
        ids.append(found[0])
    return list(dict.fromkeys(ids))


def _outward(project_id: str) -> list[SecurityGroupRule]:
    return [new_rule(project_id, "egress", version) for version in ("IPv4", "IPv6")]


def _new_group(
    tx: Transaction, project_id: str, name: str, description: str, rules: Iterable[SecurityGroupRule], group_id: str = ""
) -> SecurityGroup:
    group = SecurityGroup(
        id=group_id or str(uuid.uuid4()),
        name=name,
        description=description,
        project_id=project_id,
        tenant_id=project_id,
        stateful=True,
        security_group_rules=rules,
    )
    stamp(group)
    for rule in group.security_group_rules:
        rule.security_group_id = group.id
        rule.belongs_to_default_sg = name == DEFAULT
        stamp(rule)
    tx.put(GROUP, group)
    quota.charge(tx, SERVICE, project_id, QUOTA, security_group=1, security_group_rule=len(group.security_group_rules))
    return group


def _add_rule(tx: Transaction, group: SecurityGroup, rule: SecurityGroupRule) -> SecurityGroupRule:
    said = meaning(rule)
    for other in group.security_group_rules:
        if meaning(other) == said:
            raise Conflict("network.security_group_rule.exists", f"Security group rule already exists. Rule id is {other.id}.")
    if len(group.security_group_rules) >= MAX_RULES:
        raise Exhausted(
            "network.security_group_rule.many", f"Security group {group.id} has {MAX_RULES} rules, the most that one can have."
        )
    rule.id = str(uuid.uuid4())
    rule.project_id = rule.tenant_id = group.project_id
    rule.security_group_id = group.id
    rule.belongs_to_default_sg = group.name == DEFAULT
    stamp(rule)
    group.security_group_rules.append(rule)
    stamp(group)
    tx.put(GROUP, group)
    quota.charge(tx, SERVICE, group.project_id, QUOTA, security_group_rule=1)
    return rule


def _use_remote(tx: Transaction, group: SecurityGroup, remote: SecurityGroup) -> None:
    if remote.id == group.id:
        return
    remotes = {rule.remote_group_id for rule in group.security_group_rules} - {"", group.id}
    if remote.id not in remotes:
        if len(remotes) >= MAX_REMOTES:
            raise Exhausted(
                "network.security_group_rule.remotes",
                f"The rules of security group {group.id} name {MAX_REMOTES} other groups, the most that they can.",
            )
        tx.put(USE, UseRecord(thing=remote.id, user=group.id))
    tx.guard_exists(GROUP, remote.id)


def _visible(database: Database, caller: Caller) -> list[SecurityGroup]:
    if caller.is_admin:
        return database.cache.all(GROUP)
    return database.cache.by(GROUP, "project", caller.project_id) if caller.project_id else []
