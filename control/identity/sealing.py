"""Seals what a token says into text and opens it again, with keys that every replica has.

A token is sealed with the newest key whose time has come and opened with any: a new key reaches every replica before the
first token that needs it, and an old one stays until the last token that was sealed with it has expired.
"""
import asyncio
import itertools
import time
import uuid
from datetime import timedelta

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from google.protobuf.message import DecodeError

from control.identity.model import TOKEN_KEY
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Unauthenticated, Unavailable
from protos.identity.v1.records_pb2 import TokenKey, TokenPayload

#: How long a token lasts.
LIFETIME = timedelta(hours=1)

#: From making a key to sealing with it. Too short: replicas that lag refuse good tokens; too long delays a rotation.
LEAD = timedelta(seconds=60)

#: Age of the newest key at which the leader makes another. Shorter keeps more keys, longer has more tokens hang on one.
ROTATE_AFTER = timedelta(days=1)

#: Characters of the longest token that is looked at.
MAX_TOKEN = 1024


class Sealer:
    """Tokens' text, in both directions."""

    def __init__(self, db: Database):
        self._db = db
        self._keys: tuple[str, ...] = ()
        self._fernet: MultiFernet | None = None

    def seal(self, payload: TokenPayload) -> str:
        return self._current().encrypt(payload.SerializeToString()).decode().rstrip("=")

    def open(self, token: str) -> TokenPayload:
        """What a token says, whether or not it still holds. Raises Unauthenticated if it is none of ours."""
        try:
            if not token or len(token) > MAX_TOKEN:
                raise InvalidToken
            padded = token.encode("ascii") + b"=" * (-len(token) % 4)
            return TokenPayload.FromString(self._current().decrypt(padded))
        except (InvalidToken, UnicodeEncodeError, DecodeError) as error:
            raise Unauthenticated("token.invalid", "The request you have made requires authentication.") from error

    def _current(self) -> MultiFernet:
        present = time.time()
        keys = sorted(self._db.cache.all(TOKEN_KEY), reverse=True, key=lambda key: (
            key.active_at.seconds <= present, key.active_at.ToMicroseconds(), key.id))
        if not keys:
            raise Unavailable("token.keys", "There is no key for tokens yet: the cloud is still being set up.")
        ids = tuple(key.id for key in keys)
        if self._fernet is None or ids != self._keys:
            self._fernet, self._keys = MultiFernet([Fernet(key.key) for key in keys]), ids
        return self._fernet


def first_key(transaction: Transaction) -> None:
    """Make the first key, where there is none. Its id is fixed, so that two replicas make it once."""
    if not transaction.rows(TOKEN_KEY):
        transaction.put(TOKEN_KEY, TokenKey(id="first", key=Fernet.generate_key(), active_at=clock.now()))


async def rotate(db: Database) -> None:
    """Make a new key and drop those that no valid token can be sealed with any more. Nobody is logged out."""
    key, identifier = Fernet.generate_key(), uuid.uuid4().hex

    def decide(transaction: Transaction) -> None:
        present = clock.now().ToDatetime()
        made = TokenKey(id=identifier, key=key)
        made.active_at.FromDatetime(present + LEAD)
        by_age = sorted(transaction.rows(TOKEN_KEY), key=lambda old: old.active_at.ToMicroseconds())
        for old, successor in itertools.pairwise(by_age):
            if successor.active_at.ToDatetime() + LIFETIME + LEAD < present:
                transaction.delete(TOKEN_KEY, old.id)
        transaction.put(TOKEN_KEY, made)

    await db.transact(decide)


async def keep_rotating(db: Database) -> None:
    """Rotate whenever the newest key has reached its age, until cancelled: a part of the leader's work."""
    while True:
        newest = max((key.active_at.ToDatetime() for key in db.cache.all(TOKEN_KEY)), default=None)
        if newest and clock.now().ToDatetime() - newest > ROTATE_AFTER:
            await rotate(db)
        await asyncio.sleep(600)
