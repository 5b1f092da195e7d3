"""Passwords and tokens of users whose home is another system's directory.

To the rest of identity they are users like all others: their record has, instead of a hash, a mark that says whom to ask.
"""
from argon2 import PasswordHasher

from control.identity.directories import ASK, Directories
from control.identity.passwords import Passwords
from control.identity.sessions import Session, TokenAuthenticator, refused
from control.kernel.database import Database


class DirectoryPasswords(Passwords):
    """Passwords of the store's users and of directories'."""

    def __init__(self, directories: Directories, hasher: PasswordHasher | None = None):
        super().__init__(hasher)
        self._directories = directories

    async def verify(self, encoded: str, password: str) -> bool:
        if encoded.startswith(ASK):
            return await self._directories.authenticate(encoded.removeprefix(ASK), password)
        return await super().verify(encoded, password)

    def outdated(self, encoded: str) -> bool:
        return not encoded.startswith(ASK) and super().outdated(encoded)


class DirectoryAuthenticator(TokenAuthenticator):
    """Judges tokens by what directories say now, or said no longer ago than it is good for."""

    def __init__(self, db: Database, directories: Directories):
        super().__init__(db)
        self._directories = directories

    def _good_until(self, session: Session) -> float:
        return min(super()._good_until(session), self._directories.good_until(session.user.id))

    async def session(self, token: str) -> Session:
        session = await super().session(token)
        if self._directories.is_orphan(session.user.id):
            raise refused("token.user")
        if not self._directories.is_external_id(session.user.id):
            return session
        await self._directories.see_user(session.user.id)
        return await super().session(token)
