"""Keeps secrets that must be shown again: sealed in the store with keys of the store's own, open nowhere but in memory.

The first secret that is kept makes the first key, in the same commit.
"""
from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from control.identity.model import SECRET, VAULT_KEY
from control.kernel.database import Database, Transaction
from control.kernel.errors import Unavailable
from protos.identity.v1.records_pb2 import VaultKey


def seal(transaction: Transaction, text: str) -> bytes:
    """A text sealed with the store's key, which is made where there is none. Its id is fixed: two replicas make it once."""
    keys = transaction.rows(VAULT_KEY)
    if not keys:
        keys = [VaultKey(id="first", key=Fernet.generate_key())]
        transaction.put(VAULT_KEY, keys[0])
    return Fernet(keys[-1].key).encrypt(text.encode())


def unseal(reader: Database | Transaction, sealed: bytes) -> str:
    """The text that was sealed. Raises Unavailable where no key of the store opens it."""
    keys = reader.rows(VAULT_KEY) if isinstance(reader, Transaction) else reader.cache.all(VAULT_KEY)
    try:
        if not keys:
            raise InvalidToken
        return MultiFernet([Fernet(key.key) for key in keys]).decrypt(sealed).decode()
    except InvalidToken as error:
        raise Unavailable("vault.key", "The key that this secret was sealed with is not in the store.") from error


def secrets_of(db: Database, user_id: str, type: str) -> list[str]:
    """The blobs of a user's credentials of a type: the seeds of "totp", for example."""
    return [unseal(db, record.sealed_blob) for record in db.cache.by(SECRET, "user", user_id) if record.credential.type == type]
