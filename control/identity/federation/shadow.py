"""Writes down who logged in through an identity provider: their user, the groups that they are in, projects made for them.

Each step is a commit of its own that may be repeated; the next login mends what a crash leaves undone.
"""
import asyncio
import hashlib
import uuid
from collections.abc import Iterable

from google.protobuf.timestamp_pb2 import Timestamp

from control.identity.federation import mapping
from control.identity.federation.mapping import Mapped, Unmapped
from control.identity.model import (
    ASSIGNMENT,
    DIRECTORY_ENTRY,
    GROUP,
    IDENTITY_PROVIDER,
    MEMBER,
    NAME_LIMITS,
    PROJECT,
    ROLE,
    USER,
    check_name,
    free_name,
    id_by_name,
    new_resource,
    take_name,
    text,
)
from control.identity.sealing import LIFETIME
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Error
from protos.identity.v1.identity_providers_pb2 import IdentityProvider
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.records_pb2 import Assignment, Membership, ProjectRecord, UserRecord
from protos.identity.v1.users_pb2 import FederatedIdentity, FederatedProtocol, User

#: Memberships written in one commit, with a guard each; etcd takes 128 operations.
CHUNK = 40

#: Groups that one login puts a user in, and projects that it makes, at most.
MAX_GROUPS, MAX_PROJECTS = 200, 20

#: Ends of memberships are put off to the next full minute, so that logins that follow one another write nothing.
ROUND = 60_000_000


def user_id_of(domain_id: str, idp_id: str, unique_id: str) -> str:
    """The id of a provider's user: the same at each login, another one for each domain, provider and id there."""
    parts = (part.encode() for part in (domain_id, idp_id, unique_id))
    return hashlib.sha256(b"federated" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)).hexdigest()


class Shadows:
    """The users of identity providers, as the store has them."""

    def __init__(self, db: Database):
        self._db = db

    async def settle(self, provider: IdentityProvider, protocol_id: str, mapped: Mapped) -> str:
        """The id of who logged in, after everything that the mapping says of them is so.

        Raises Unmapped where it cannot be so.
        """
        if mapped.user.local:
            user_id = self._local(mapped.user)
        else:
            groups = self._group_ids(mapped.groups)
            user_id = await self._user(provider, protocol_id, mapped.user)
            await self._put_in(provider, user_id, groups)
        if len(mapped.projects) > MAX_PROJECTS:
            raise Unmapped("mapping.projects", f"the rules name {len(mapped.projects)} projects; {MAX_PROJECTS} are allowed")
        for project in mapped.projects:
            await self._provide(provider, user_id, project)
        return user_id

    # Users

    def _local(self, wanted: mapping.User) -> str:
        """The id of a user of the cloud's own."""
        if wanted.id:
            found = wanted.id
        elif wanted.domain is None:
            raise Unmapped("mapping.user", "a local user needs an id, or a name and a domain")
        else:
            domain_id = self._domain_id(wanted.domain)
            found = id_by_name(self._db, "user", domain_id, wanted.name)
            if not found and self._db.cache.count(DIRECTORY_ENTRY, "domain", domain_id):      # whose users take no names
                found = next((record.user.id for record in self._db.cache.by(USER, "domain", domain_id)
                              if record.user.name == wanted.name), "")
        record = self._db.get(USER, found) if found else None
        if record is None or record.user.federated:
            raise Unmapped("mapping.user", f"there is no local user {wanted.id or wanted.name!r}")
        return record.user.id

    async def _user(self, provider: IdentityProvider, protocol_id: str, wanted: mapping.User) -> str:
        """The id of a provider's user, whose record is made or brought up to date."""
        domain_id = self._domain_id(wanted.domain) if wanted.domain is not None else provider.domain_id
        unique_id, name = wanted.id or wanted.name, wanted.name or wanted.id
        if max(len(unique_id), len(name), len(wanted.email)) > NAME_LIMITS["user"] or not name.strip():
            raise Unmapped("mapping.user", f"ids, names and addresses of users have 1 to {NAME_LIMITS['user']} characters")
        if self._db.cache.count(DIRECTORY_ENTRY, "domain", domain_id):
            raise Unmapped("mapping.domain", f"the users of the domain {domain_id} are a directory's")
        user_id = user_id_of(domain_id, provider.id, unique_id)

        def decide(transaction: Transaction) -> None:
            transaction.guard_exists(PROJECT, domain_id)
            transaction.guard_unchanged(IDENTITY_PROVIDER, provider.id)         # whoever deletes it disables it first
            present = transaction.get(IDENTITY_PROVIDER, provider.id)
            if present is None or not present.identity_provider.enabled:
                raise Unmapped("mapping.provider", "it was disabled meanwhile")
            before = transaction.get(USER, user_id)
            record = UserRecord()
            if before is None:
                record.user.CopyFrom(new_resource(User(id=user_id, name=name, domain_id=domain_id)))
                record.user.id = user_id
                record.revoked_before.CopyFrom(clock.now())        # tokens of a user of the id, who was deleted, stay dead
            else:
                record.CopyFrom(before)
                if record.user.name != name:
                    free_name(transaction, "user", domain_id, record.user.name, user_id)
                    record.user.name = name
            if wanted.email:
                record.user.extra["email"].CopyFrom(text(wanted.email))
            _note(record.user, provider.id, protocol_id, unique_id)
            if record != before:
                transaction.put(USER, record)

        await self._db.transact(decide)
        return user_id

    def _domain_id(self, wanted: mapping.Domain) -> str:
        found = wanted.id or id_by_name(self._db, "domain", "", wanted.name)
        record = self._db.get(PROJECT, found) if found else None
        if record is None or not record.project.is_domain:
            raise Unmapped("mapping.domain", f"there is no domain {wanted.id or wanted.name!r}")
        return found

    # Groups

    def _group_ids(self, wanted: Iterable[mapping.Group]) -> list[str]:
        """The groups that there are: a provider may know of more than the cloud does."""
        found = []
        for group in wanted:
            group_id = group.id
            if not group_id and group.domain is not None:
                group_id = id_by_name(self._db, "group", self._domain_id(group.domain), group.name)
            if group_id and self._db.get(GROUP, group_id) is not None:
                found.append(group_id)
        if len(found) > MAX_GROUPS:
            raise Unmapped("mapping.groups", f"the user is in {len(found)} groups; {MAX_GROUPS} are allowed")
        return list(dict.fromkeys(found))

    async def _put_in(self, provider: IdentityProvider, user_id: str, group_ids: list[str]) -> None:
        """Have a user be in these groups until the provider's time is over, and in no other because of it."""
        lasting = provider.authorization_ttl * 60_000_000 or int(LIFETIME.total_seconds() * 1e6)
        ends = Timestamp()
        ends.FromMicroseconds(-(-(clock.now().ToMicroseconds() + lasting) // ROUND) * ROUND)
        wanted = {group_id: Membership(group_id=group_id, user_id=user_id, idp_id=provider.id, expires_at=ends)
                  for group_id in group_ids}

        def step(transaction: Transaction) -> bool:
            present = {row.group_id: row for row in transaction.rows(MEMBER, "user", user_id)}
            surplus = [row for row in present.values() if row.idp_id == provider.id and row.group_id not in wanted]
            due = [row for row in wanted.values() if (before := present.get(row.group_id)) is None
                   or (before.idp_id and before != row)]          # one without is an administrator's, and lasts
            for row in surplus[:CHUNK]:
                transaction.delete(MEMBER, *MEMBER.id_of(row))
            for row in due[:CHUNK]:
                transaction.guard_exists(GROUP, row.group_id)
                transaction.guard_exists(USER, user_id)
                transaction.put(MEMBER, row)
            return len(surplus) <= CHUNK and len(due) <= CHUNK

        while not await self._db.transact(step):
            pass

    # Projects

    async def _provide(self, provider: IdentityProvider, user_id: str, wanted: mapping.Project) -> None:
        """Have a project be there, and a user have roles on it."""
        domain_id = self._domain_id(wanted.domain) if wanted.domain is not None else provider.domain_id
        try:
            check_name("project", wanted.name)
        except Error as error:
            raise Unmapped("mapping.projects", f"a project cannot be named {wanted.name[:80]!r}") from error
        role_ids = [id_by_name(self._db, "role", "", name) or id_by_name(self._db, "role", domain_id, name)
                    for name in wanted.roles]
        if not all(role_ids):
            raise Unmapped("mapping.roles", f"there is no role {wanted.roles[role_ids.index('')]!r}")
        new_id = uuid.uuid4().hex

        def decide(transaction: Transaction) -> None:
            transaction.guard_exists(PROJECT, domain_id)
            transaction.guard_exists(USER, user_id)
            project_id = id_by_name(transaction, "project", domain_id, wanted.name)
            if not project_id:
                project_id = new_id
                project = new_resource(Project(name=wanted.name, domain_id=domain_id, parent_id=domain_id, is_domain=False))
                project.id = project_id
                take_name(transaction, "project", domain_id, wanted.name, project_id)
                transaction.put(PROJECT, ProjectRecord(project=project))
            for role_id in role_ids:
                row = Assignment(actor_type="user", actor_id=user_id, target_type="project", target_id=project_id,
                                 role_id=role_id)
                if transaction.get(ASSIGNMENT, *ASSIGNMENT.id_of(row)) is None:
                    transaction.guard_exists(ROLE, role_id)
                    transaction.put(ASSIGNMENT, row)

        await self._db.transact(decide)


def _note(user: User, idp_id: str, protocol_id: str, unique_id: str) -> None:
    """Note that a user has come through a protocol."""
    identity = next((each for each in user.federated if each.idp_id == idp_id), None)
    if identity is None:
        identity = user.federated.add()
        identity.CopyFrom(FederatedIdentity(idp_id=idp_id))
    if not any(each.protocol_id == protocol_id for each in identity.protocols):
        identity.protocols.append(FederatedProtocol(protocol_id=protocol_id, unique_id=unique_id))


async def sweep(db: Database) -> None:
    """Delete memberships that have ended by themselves."""
    def step(transaction: Transaction) -> bool:
        now = clock.now().ToMicroseconds()
        ended = [row for row in transaction.rows(MEMBER) if row.HasField("expires_at") and row.expires_at.ToMicroseconds() <= now]
        for row in ended[:CHUNK]:
            transaction.delete(MEMBER, *MEMBER.id_of(row))
        return len(ended) <= CHUNK

    while not await db.transact(step):
        pass


async def keep_sweeping(db: Database) -> None:
    """Sweep now and then, until cancelled: a part of the leader's work."""
    while True:
        await sweep(db)
        await asyncio.sleep(600)
