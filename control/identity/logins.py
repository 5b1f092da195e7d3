"""Counts how users log in: wrong guesses in a row lock, on all replicas as on one.

A guess counts when its commit is made; a right one is let through only after a read of the store itself, so guesses that
were made at the same time elsewhere count, too.
"""
from google.protobuf.message import Message

from control.identity.compliance import Compliance
from control.identity.model import LOGIN, USER
from control.identity.sessions import refused
from control.kernel import clock
from control.kernel.database import Database, Transaction
from protos.identity.v1.records_pb2 import Login, UserRecord


class Logins:
    """Failures and successes of users."""

    def __init__(self, db: Database, compliance: Compliance):
        self._db = db
        self._compliance = compliance

    def closed(self, record: UserRecord) -> bool:
        """Whether a user cannot log in, by what this replica knows: disabled, locked, or away for too long."""
        login, now = self._db.get(LOGIN, record.user.id), clock.now()
        return (not record.user.enabled or self._compliance.locked(record.user, login, now)
                or self._compliance.inactive(record, login, now))

    async def failed(self, record: UserRecord) -> None:
        """Count a wrong guess. Those that are made while the user is locked do not count: the lock ends on time."""
        user_id = record.user.id
        if not self._compliance.counts(record.user):
            return

        def decide(transaction: Transaction) -> None:
            if transaction.get(USER, user_id) is None:
                return
            login, now = transaction.get(LOGIN, user_id) or Login(user_id=user_id), clock.now()
            if self._compliance.locked(record.user, login, now):
                return
            login.failures = 1 if self._compliance.forgotten(login, now) else login.failures + 1
            login.failed_at.CopyFrom(now)
            transaction.put(LOGIN, login)

        await self._db.transact(decide, serial=f"login/{user_id}")

    async def succeeded(self, record: UserRecord, step: int = 0) -> None:
        """Note a right guess. Raises Unauthenticated where the user is locked by now.

        Args:
          step: of a passcode, which counts once.
        """
        user, user_id = record.user, record.user.id
        if self._compliance.counts(user) or step:
            latest = await self._db.store.get(LOGIN.key(user_id))
            await self._db.cache.wait(latest.revision)

        def decide(transaction: Transaction) -> None:
            before, now = transaction.get(LOGIN, user_id), clock.now()
            if self._compliance.locked(user, before, now) or (step and before is not None and before.passcode_step >= step):
                raise refused("auth.locked")
            after = Login(user_id=user_id, passcode_step=max(step, before.passcode_step if before is not None else 0))
            if self._compliance.disable_user_account_days_inactive:
                after.active_at.seconds = now.seconds // 86400 * 86400
            elif before is not None and before.HasField("active_at"):
                after.active_at.CopyFrom(before.active_at)
            if not _same(before, after):
                transaction.put(LOGIN, after)

        await self._db.transact(decide)


def forgive(transaction: Transaction, user_id: str, compliance: Compliance) -> None:
    """Unlock a user: what an administrator does with a new password, or by enabling them."""
    login = transaction.get(LOGIN, user_id) or Login(user_id=user_id)
    if login.failures or compliance.disable_user_account_days_inactive:
        login.failures = 0
        login.active_at.CopyFrom(clock.now())
        transaction.put(LOGIN, login)


def _same(before: Message | None, after: Login) -> bool:
    return before == after if before is not None else after == Login(user_id=after.user_id)
