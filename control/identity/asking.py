"""What each rpc asks a directory before its handler reads the store: one table, so that handlers know one kind of user.

Nothing but reads goes through to a directory; what would write there is refused here.
"""
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from control.identity import access
from control.identity.directories import Directories
from control.identity.model import ASSIGNMENT, GROUP, USER, id_by_name
from control.kernel.database import Database
from control.kernel.rpc import Call
from protos.brume.v1.options_pb2 import QueryParameter
from protos.identity.v1.tokens_pb2 import AuthUser


def asking(servicers: Iterable[tuple[object, ServiceDescriptor]], db: Database,
           directories: Directories) -> list[tuple[object, ServiceDescriptor]]:
    """Identity's servicers, asking."""
    return [(Asking(servicer, db, directories), descriptor) for servicer, descriptor in servicers]


class Asking:
    """A servicer whose handlers find in the store what directories say now."""

    def __init__(self, servicer: Any, db: Database, directories: Directories):
        self._servicer = servicer
        self._db = db
        self._before = Before(db, directories)

    def __getattr__(self, name: str) -> Any:
        handler, before, after = getattr(self._servicer, name), _BEFORE.get(name), _AFTER.get(name)
        if before is None and after is None:
            return handler

        async def asked(request: Any, call: Call) -> Any:
            if before is not None:
                await before(self._before, request, call)
            if after is not None:
                self._db.apart()            # what comes after looks at what was committed
            answer = await handler(request, call)
            if after is not None:
                await after(self._before, request, call)
            return answer

        return asked


class Before:
    """The questions, by what a request is about."""

    def __init__(self, db: Database, directories: Directories):
        self._db = db
        self._directories = directories

    async def log_in(self, request: Any, call: Call) -> None:
        """The users that credentials name; one of a directory by their id from now on: it knows best who is meant by a name."""
        for field, method in request.auth.identity.ListFields():
            if not field.is_repeated and "user" in field.message_type.fields_by_name:
                await self._resolve(method.user)

    async def _resolve(self, user: AuthUser) -> None:
        if user.id:
            await self._directories.see_user(user.id)
            return
        domain_id = user.domain.id or (id_by_name(self._db, "domain", "", user.domain.name) if user.domain.name else "")
        if user.name and self._directories.is_external(domain_id):
            user.id = await self._directories.see_users(domain_id, user.name) or "-"
            await self._directories.see_user(user.id)

    async def create_user(self, request: Any, call: Call) -> None:
        self._directories.refuse_write(request.user.domain_id or access.home_domain(call.caller))

    async def create_group(self, request: Any, call: Call) -> None:
        self._directories.refuse_write(request.group.domain_id or access.home_domain(call.caller))

    async def create_identity_provider(self, request: Any, call: Call) -> None:
        if request.identity_provider.domain_id:
            self._directories.refuse_write(request.identity_provider.domain_id)

    async def configured(self, request: Any, call: Call) -> None:
        """A domain's configuration is another one: it may have no directory any more."""
        await self._directories.forget_orphans(request.domain_id)

    async def write_user(self, request: Any, call: Call) -> None:
        if (record := self._db.get(USER, request.user_id)) is not None:
            self._directories.refuse_write(record.user.domain_id)

    async def write_group(self, request: Any, call: Call) -> None:
        if (group := self._db.get(GROUP, request.group_id)) is not None:
            self._directories.refuse_write(group.domain_id)

    async def write_member(self, request: Any, call: Call) -> None:
        record = self._db.get(USER, request.user_id)
        group = self._db.get(GROUP, request.group_id)
        if record is None or group is None:
            return
        ends = {record.user.domain_id, group.domain_id}
        if len(ends) == 2 and any(map(self._directories.is_external, ends)):
            raise access.forbidden("identity.directory.member", "Group membership across backend boundaries is not allowed. "
                                   f"Group in question is {request.group_id}, user is {request.user_id}")
        self._directories.refuse_write(group.domain_id)

    async def see_user(self, request: Any, call: Call) -> None:
        await self._directories.see_user(request.user_id)

    async def see_users(self, request: Any, call: Call) -> None:
        for domain_id in _values(request.filters, "domain_id")[:1]:
            await self._directories.see_users(domain_id, next(iter(_values(request.filters, "name")), ""))

    async def see_group(self, request: Any, call: Call) -> None:
        await self._directories.see_group(request.group_id)

    async def see_groups(self, request: Any, call: Call) -> None:
        for domain_id in _values(request.filters, "domain_id")[:1]:
            await self._directories.see_groups(domain_id, next(iter(_values(request.filters, "name")), ""))

    async def see_members(self, request: Any, call: Call) -> None:
        await self._directories.see_group(request.group_id, members=True)

    async def see_both(self, request: Any, call: Call) -> None:
        """Whoever a role is about: a user, a group, or both where membership is meant."""
        await self._directories.see_user(request.user_id)
        await self._directories.see_group(request.group_id)

    async def see_assigned(self, request: Any, call: Call) -> None:
        """The members of all groups that have a role somewhere: an effective list spells them out."""
        if not any(parameter.key == "effective" for parameter in request.query) or not access.reads_all(call.caller):
            return
        for group_id in {row.actor_id for row in self._db.cache.all(ASSIGNMENT) if row.actor_type == "group"}:
            await self._directories.see_group(group_id, members=True)


def _values(filters: Iterable[QueryParameter], key: str) -> list[str]:
    return [value for parameter in filters if parameter.key == key for value in parameter.values]


_AFTER: dict[str, Callable[[Before, Any, Call], Awaitable[None]]] = {
    "SetDomainConfig": Before.configured, "UpdateDomainConfig": Before.configured, "DeleteDomainConfig": Before.configured,
}

_BEFORE: dict[str, Callable[[Before, Any, Call], Awaitable[None]]] = {
    "IssueToken": Before.log_in,
    "CreateUser": Before.create_user, "UpdateUser": Before.write_user, "DeleteUser": Before.write_user,
    "ChangePassword": Before.write_user, "GetUser": Before.see_user, "ListUsers": Before.see_users,
    "ListUserProjects": Before.see_user, "ListUserGroups": Before.see_user,
    "CreateGroup": Before.create_group, "UpdateGroup": Before.write_group, "DeleteGroup": Before.write_group,
    "GetGroup": Before.see_group, "ListGroups": Before.see_groups, "ListMembers": Before.see_members,
    "AddMember": Before.write_member, "RemoveMember": Before.write_member, "CheckMember": Before.see_both,
    "ListRoleAssignments": Before.see_assigned, "CreateIdentityProvider": Before.create_identity_provider,
    **{f"{verb}{kind}Role": Before.see_both for verb in ("Assign", "Check") for kind in ("", "System", "Inherited")},
    "ListAssignedRoles": Before.see_both, "ListAssignedSystemRoles": Before.see_both, "ListInheritedRoles": Before.see_both,
}
