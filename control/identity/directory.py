"""What a back end of identity is: who the users and groups of one domain are, and whether a password is a user's.

Ids are the back end's own; what the API shows for those of other systems, `directories` makes of them.
"""
from typing import Protocol

from control.identity.model import GROUP, MEMBER, USER, id_by_name
from control.identity.passwords import Passwords
from control.kernel.database import Database
from protos.identity.v1.groups_pb2 import Group
from protos.identity.v1.users_pb2 import User


class Directory(Protocol):
    """The users and groups of one domain, to be read. Verbs may be repeated, and raise Unavailable in place of an answer."""

    async def user(self, user_id: str) -> User | None:
        """The user of an id."""

    async def users(self, name: str = "") -> list[User]:
        """All users, as many as a list has at most; or those of a name, which is one or none."""

    async def group(self, group_id: str) -> Group | None:
        """The group of an id."""

    async def groups(self, name: str = "") -> list[Group]:
        """All groups, as many as a list has at most; or those of a name, which is one or none."""

    async def groups_of(self, user_id: str) -> list[Group]:
        """The groups that a user is in; none for a user who is not there."""

    async def members_of(self, group_id: str) -> list[User]:
        """The users in a group; none for a group that is not there."""

    async def authenticate(self, user_id: str, password: str) -> bool:
        """Whether a password is a user's. An empty one is nobody's."""


class StoreDirectory:
    """The users and groups of a domain that the cloud itself keeps."""

    def __init__(self, db: Database, passwords: Passwords, domain_id: str):
        self._db = db
        self._passwords = passwords
        self._domain_id = domain_id

    async def user(self, user_id: str) -> User | None:
        record = self._db.get(USER, user_id)
        return record.user if record is not None and record.user.domain_id == self._domain_id else None

    async def users(self, name: str = "") -> list[User]:
        if not name:
            return [record.user for record in self._db.cache.by(USER, "domain", self._domain_id)]
        found = await self.user(id_by_name(self._db, "user", self._domain_id, name))
        return [found] if found is not None else []

    async def group(self, group_id: str) -> Group | None:
        found = self._db.get(GROUP, group_id)
        return found if found is not None and found.domain_id == self._domain_id else None

    async def groups(self, name: str = "") -> list[Group]:
        if not name:
            return self._db.cache.by(GROUP, "domain", self._domain_id)
        found = await self.group(id_by_name(self._db, "group", self._domain_id, name))
        return [found] if found is not None else []

    async def groups_of(self, user_id: str) -> list[Group]:
        found = [await self.group(row.group_id) for row in self._db.cache.by(MEMBER, "user", user_id)]
        return [group for group in found if group is not None]

    async def members_of(self, group_id: str) -> list[User]:
        found = [await self.user(row.user_id) for row in self._db.cache.by(MEMBER, "group", group_id)]
        return [user for user in found if user is not None]

    async def authenticate(self, user_id: str, password: str) -> bool:
        record = self._db.get(USER, user_id)
        mine = record is not None and record.user.domain_id == self._domain_id
        return await self._passwords.verify(record.password_hash if record is not None and mine else "", password)
