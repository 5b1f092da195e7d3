"""The directories of all domains: asks the one that is meant, and keeps a copy of what it said.

The copies are ordinary users, groups and memberships in the store, so roles, tokens and lists read them as they read all
others. A copy is good for the directory's cache_time; after that it is not used before the directory has been asked
again, so who is disabled or gone there loses their tokens within that time, on every replica. What a directory does not
say (any more), is not there. Ids are those that Keystone gives.

Which domains have one, the operator's file says, and for others their own configuration in the store: a change of that counts
on every replica as soon as it has seen it. One that makes no sense shuts its domain, and nothing else.
"""
import asyncio
import hashlib
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from control.identity.access import forbidden
from control.identity.directory import Directory
from control.identity.directory_settings import DirectorySettings, from_options
from control.identity.domain_configs import directory_options
from control.identity.ldap_directory import LdapDirectory
from control.identity.model import DIRECTORY_ENTRY, DOMAIN_CONFIG, GROUP, MEMBER, PROJECT, USER
from control.kernel import clock
from control.kernel.cache import Change, Kind
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, Unavailable
from control.kernel.overlay import outside
from protos.identity.v1.directories_pb2 import DirectoryEntry
from protos.identity.v1.groups_pb2 import Group
from protos.identity.v1.records_pb2 import Membership, UserRecord
from protos.identity.v1.users_pb2 import User

log = logging.getLogger(__name__)

#: Answers whose age is remembered; one that is forgotten is asked for again.
REMEMBERED = 10_000

#: Entries written in one commit, two operations each; etcd takes 128.
CHUNK = 40

#: What a copy has in place of a password's hash, before the user's id: nobody's hash looks like this.
ASK = "$directory$"


def public_id(domain_id: str, entity_type: str, local_id: str) -> str:
    """The id that the API shows: Keystone's hash, so that a cloud that moves here keeps its ids."""
    return hashlib.sha256(f"{domain_id}{entity_type}{local_id}".encode()).hexdigest()


class _Unusable:
    """directory.Directory of a domain whose configuration makes no sense: it answers nothing."""

    async def _refuse(self, *_: Any) -> Any:
        raise Unavailable("identity.directory.settings", "The directory of this domain is not set up right: the log of the "
                                                         "control plane says why.")

    user = users = group = groups = groups_of = members_of = authenticate = _refuse

    def close(self) -> None:
        """Nothing is open."""


class Directories:
    """Every domain's directory, by its id. `settings` are those of the operator's file, by the domain's name."""

    def __init__(self, db: Database, settings: Mapping[str, DirectorySettings]):
        self._db = db
        self._file = settings
        self._configured: dict[str, DirectorySettings | None] = {}      # by domain id; None: they make no sense
        self._made: dict[str, LdapDirectory | _Unusable] = {}
        self._changes = 0           # of configurations: what was asked before one is not remembered after it
        self._listening = db.cache.listening(self._on_change, DOMAIN_CONFIG, PROJECT)
        self._listening.__enter__()
        self._good_until: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._asking: dict[tuple[str, ...], asyncio.Task[None]] = {}

    def is_external(self, domain_id: str) -> bool:
        """Whether a domain's users are another system's, which the cloud reads and never writes."""
        return self._external(domain_id) is not None

    def is_external_id(self, identifier: str) -> bool:
        """Whether an id is that of a user or a group of another system."""
        entry = self._entry(identifier)
        return entry is not None and self.is_external(entry.domain_id)

    def is_orphan(self, identifier: str) -> bool:
        """Whether an id is that of a user or a group of a directory that their domain does not have any more."""
        entry = self._entry(identifier)
        return entry is not None and not self.is_external(entry.domain_id)

    def refuse_write(self, domain_id: str) -> None:
        """Raise Denied, in Keystone's words, where a domain's users cannot be written."""
        if self.is_external(domain_id):
            raise forbidden("identity.directory.read_only", "LDAP does not support write operations")

    def good_until(self, user_id: str) -> float:
        """Until when what was read of a user is good, as seconds since 1970; infinite for the store's own."""
        if not self.is_external_id(user_id):
            return math.inf
        return time.time() + self._good_until.get(("user", user_id), 0.0) - time.monotonic()

    async def authenticate(self, user_id: str, password: str) -> bool:
        """Whether a password is that of a directory's user; no, for whom no directory has."""
        entry = self._entry(user_id)
        directory = self._external(entry.domain_id) if entry is not None else None
        return entry is not None and directory is not None and await directory.authenticate(entry.local_id, password)

    async def forget_orphans(self, domain_id: str) -> None:
        """Delete the copies of a directory that a domain does not have any more. Roles stay, for when it has it again."""
        if not self.is_external(domain_id):
            copies = [entry.id for entry in self._db.cache.by(DIRECTORY_ENTRY, "domain", domain_id)]
            await self._forget(USER, [identifier for identifier in copies if self._db.get(USER, identifier) is not None])
            await self._forget(GROUP, [identifier for identifier in copies if self._db.get(GROUP, identifier) is not None])

    def close(self) -> None:
        self._listening.__exit__(None, None, None)
        for directory in self._made.values():
            directory.close()

    # Asking. Afterwards the store has what the directory says.

    async def see_user(self, user_id: str) -> None:
        """A user, with the groups that they are in."""
        entry, directory = self._entry(user_id), None
        if entry is not None and entry.entity_type == "user":
            directory = self._external(entry.domain_id)
        if entry is None or directory is None:
            return
        found, domain_id, local_id = directory, entry.domain_id, entry.local_id

        async def ask() -> None:
            user = await found.user(local_id)
            if user is None:
                await self._forget(USER, [user_id])
                return
            groups = await found.groups_of(local_id)
            await self._copy_users(domain_id, [user])
            await self._copy_groups(domain_id, groups)
            wanted = {(public_id(domain_id, "group", group.id), user_id) for group in groups}
            await self._copy_members("user", user_id, wanted)

        await self._fresh(("user", user_id), domain_id, ask)

    async def see_users(self, domain_id: str, name: str = "") -> str:
        """All users of a domain, or those of a name; the id of the first of these, "" for none."""
        directory = self._external(domain_id)
        if directory is None:
            return ""
        first = ""

        async def ask() -> None:
            nonlocal first
            users = await directory.users(name)
            first = public_id(domain_id, "user", users[0].id) if users else ""
            await self._copy_users(domain_id, users)
            if name or len(users) < self._limit(domain_id):
                present = {public_id(domain_id, "user", user.id) for user in users}
                await self._forget(USER, [record.user.id for record in self._db.cache.by(USER, "domain", domain_id)
                                          if record.user.id not in present and name in ("", record.user.name)
                                          and self._entry(record.user.id) is not None])

        if name:            # a login, mostly: what it is for is asked anew
            await ask()
        else:
            await self._fresh(("users", domain_id), domain_id, ask)
        return first

    async def see_group(self, group_id: str, *, members: bool = False) -> None:
        """A group; and who is in it."""
        entry, directory = self._entry(group_id), None
        if entry is not None and entry.entity_type == "group":
            directory = self._external(entry.domain_id)
        if entry is None or directory is None:
            return
        found, domain_id, local_id = directory, entry.domain_id, entry.local_id

        async def ask() -> None:
            group = await found.group(local_id)
            if group is None:
                await self._forget(GROUP, [group_id])
                return
            await self._copy_groups(domain_id, [group])
            if members:
                users = await found.members_of(local_id)
                await self._copy_users(domain_id, users)
                wanted = {(group_id, public_id(domain_id, "user", user.id)) for user in users}
                await self._copy_members("group", group_id, wanted)

        await self._fresh(("members" if members else "group", group_id), domain_id, ask)

    async def see_groups(self, domain_id: str, name: str = "") -> None:
        """All groups of a domain, or those of a name."""
        directory = self._external(domain_id)
        if directory is None:
            return

        async def ask() -> None:
            groups = await directory.groups(name)
            await self._copy_groups(domain_id, groups)
            if name or len(groups) < self._limit(domain_id):
                present = {public_id(domain_id, "group", group.id) for group in groups}
                await self._forget(GROUP, [group.id for group in self._db.cache.by(GROUP, "domain", domain_id)
                                           if group.id not in present and name in ("", group.name)
                                           and self._entry(group.id) is not None])

        await self._fresh(("groups", domain_id, name), domain_id, ask)

    def _external(self, domain_id: str) -> Directory | None:
        made = self._made.get(domain_id)
        if made is None:
            if not self._file and self._db.get(DOMAIN_CONFIG, domain_id) is None:
                return None
            if not self._has_directory(domain_id):
                return None
            settings = self._settings_of(domain_id)
            made = self._made[domain_id] = LdapDirectory(domain_id, settings) if settings is not None else _Unusable()
        return made

    def _entry(self, identifier: str) -> DirectoryEntry | None:
        return self._db.get(DIRECTORY_ENTRY, identifier) if identifier else None

    def _has_directory(self, domain_id: str) -> bool:
        return self._of_file(domain_id) is not None or directory_options(self._db, domain_id) is not None

    def _of_file(self, domain_id: str) -> DirectorySettings | None:
        record = self._db.get(PROJECT, domain_id) if self._file else None
        return self._file.get(record.project.name) if record is not None and record.project.is_domain else None

    def _settings_of(self, domain_id: str) -> DirectorySettings | None:
        """A domain's settings; None where its configuration makes no sense, which is logged once."""
        if (settings := self._of_file(domain_id)) is not None:
            return settings
        if domain_id not in self._configured:
            self._configured[domain_id] = None
            if (options := directory_options(self._db, domain_id)) is not None:
                try:
                    self._configured[domain_id] = from_options(domain_id, *options)
                except Invalid as error:
                    log.warning("%s; nobody of this domain can log in until that is put right", error)
        return self._configured[domain_id]

    def _on_change(self, change: Change) -> None:
        if change.kind is DOMAIN_CONFIG or (change.kind is PROJECT and self._file):      # the file has domains by name
            domain_id = change.key.removeprefix(change.kind.prefix)
            if change.kind is PROJECT and domain_id not in self._made:
                return
            self._configured.pop(domain_id, None)
            if (made := self._made.pop(domain_id, None)) is not None:
                made.close()
            self._good_until.clear()
            self._changes += 1

    def _limit(self, domain_id: str) -> int:
        return (self._settings_of(domain_id) or DirectorySettings()).list_limit

    async def _fresh(self, key: tuple[str, ...], domain_id: str, ask: Callable[[], Awaitable[None]]) -> None:
        """Ask, unless an answer is still good; callers at the same time share one question."""
        if self._good_until.get(key, 0.0) > time.monotonic():
            return
        if key not in self._asking:
            with outside():                 # what it writes is for all who wait for it
                self._asking[key] = task = asyncio.create_task(self._ask(key, domain_id, ask))
            task.add_done_callback(lambda done: self._ended(key, done))
        await asyncio.shield(self._asking[key])

    async def _ask(self, key: tuple[str, ...], domain_id: str, ask: Callable[[], Awaitable[None]]) -> None:
        asked, changes = time.monotonic(), self._changes
        await ask()
        if changes != self._changes:
            return
        self._good_until[key] = asked + (self._settings_of(domain_id) or DirectorySettings()).cache_time
        self._good_until.move_to_end(key)
        if len(self._good_until) > REMEMBERED:
            self._good_until.popitem(last=False)

    def _ended(self, key: tuple[str, ...], task: asyncio.Task[None]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled():
            task.exception()        # its callers have it

    # Copies

    async def _copy_users(self, domain_id: str, users: Iterable[User]) -> None:
        def copy(transaction: Transaction, user: User, identifier: str) -> None:
            record = transaction.get(USER, identifier) or UserRecord()
            shown = User()
            shown.CopyFrom(user)
            shown.id, shown.domain_id = identifier, domain_id
            if record.user != shown:
                if record.user.enabled and not shown.enabled:
                    record.revoked_before.CopyFrom(clock.now())
                record.user.CopyFrom(shown)
                record.password_hash = ASK + identifier
                transaction.put(USER, record)

        await self._copy(domain_id, "user", list(users), copy)

    async def _copy_groups(self, domain_id: str, groups: Iterable[Group]) -> None:
        def copy(transaction: Transaction, group: Group, identifier: str) -> None:
            shown = Group()
            shown.CopyFrom(group)
            shown.id, shown.domain_id = identifier, domain_id
            if transaction.get(GROUP, identifier) != shown:
                transaction.put(GROUP, shown)

        await self._copy(domain_id, "group", list(groups), copy)

    async def _copy(self, domain_id: str, entity_type: str, entities: list,
                    copy: Callable[[Transaction, Any, str], None]) -> None:
        for start in range(0, len(entities), CHUNK):
            def decide(transaction: Transaction, chunk=entities[start:start + CHUNK]) -> None:
                transaction.guard_exists(PROJECT, domain_id)
                for entity in chunk:
                    identifier = public_id(domain_id, entity_type, entity.id)
                    if transaction.get(DIRECTORY_ENTRY, identifier) is None:
                        transaction.put(DIRECTORY_ENTRY, DirectoryEntry(id=identifier, domain_id=domain_id,
                                                                        entity_type=entity_type, local_id=entity.id))
                    copy(transaction, entity, identifier)

            await self._db.transact(decide)

    async def _copy_members(self, index: str, value: str, wanted: set[tuple[str, str]]) -> None:
        """Make the memberships of a user or a group (group, user) those that are wanted."""
        def step(transaction: Transaction) -> bool:
            present = {(row.group_id, row.user_id) for row in transaction.rows(MEMBER, index, value)}
            changes = sorted(present ^ wanted)
            for group_id, user_id in changes[:CHUNK]:
                if (group_id, user_id) in present:
                    transaction.delete(MEMBER, group_id, user_id)
                else:
                    transaction.put(MEMBER, Membership(group_id=group_id, user_id=user_id))
            return len(changes) <= CHUNK

        while not await self._db.transact(step):
            pass

    async def _forget(self, kind: Kind, identifiers: list[str]) -> None:
        """Delete copies of what the directory has no more, with their memberships. Roles stay: they are the same person's."""
        index = "user" if kind is USER else "group"
        for identifier in identifiers:
            await self._copy_members(index, identifier, set())

            def decide(transaction: Transaction, gone: str = identifier) -> None:
                transaction.delete(kind, gone)

            await self._db.transact(decide)
