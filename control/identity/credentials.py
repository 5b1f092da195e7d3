"""Serves credentials: secrets of users that are kept sealed and shown again to their users."""
import hashlib
import json
import uuid
from typing import Any

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.model import PROJECT, SECRET, USER, missing
from control.identity.vault import seal, unseal
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import credentials_pb2 as pb
from protos.identity.v1.records_pb2 import CredentialRecord

MAX_TYPE, MAX_BLOB = 255, 64 * 1024

#: Of one user.
MAX_SECRETS = 1000

EC2 = "ec2"

#: Types that people log in with: one that is made with less than its user's own token would give more than that.
LOGINS = frozenset({EC2, "totp"})

#: What of an EC2 secret says how far it reaches. It never changes, or a narrow secret could be made a wide one.
FIXED = ("trust_id", "app_cred_id", "access_token_id")


class Credentials:
    """identity.v1.Credentials."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateCredential(self, request: pb.CreateCredentialRequest, call: Call) -> pb.CreateCredentialResponse:
        credential = pb.Credential()
        credential.CopyFrom(request.credential)
        credential.user_id = credential.user_id or call.caller.user_id
        if credential.user_id != call.caller.user_id and not call.caller.is_admin:
            raise access.denied("create_credential")
        if credential.type in LOGINS:
            access.require_undelegated(call, f"make a credential of the type {credential.type}")
        if any(name in keys_of(credential) for name in FIXED) and not call.caller.is_admin:
            raise Invalid("identity.credential.blob", f"Invalid input for field 'blob': {', '.join(FIXED)} are not the caller's "
                                                      f"to say.")
        credential.id = identifier(credential)
        await self._db.transact(lambda transaction: keep(transaction, credential))
        return pb.CreateCredentialResponse(credential=credential)

    async def ListCredentials(self, request: pb.ListCredentialsRequest, call: Call) -> pb.ListCredentialsResponse:
        held = (self._db.cache.all(SECRET) if access.reads_all(call.caller)
                else self._db.cache.by(SECRET, "user", call.caller.user_id))
        rows, marker = page(select([record.credential for record in held], request.filters), limit=request.limit,
                            marker=request.marker)
        return pb.ListCredentialsResponse(credentials=[opened(self._db, row.id) for row in rows], next_page_marker=marker)

    async def GetCredential(self, request: pb.GetCredentialRequest, call: Call) -> pb.GetCredentialResponse:
        credential = opened(self._db, request.credential_id)
        access.require_self(call, credential.user_id, "get_credential")
        return pb.GetCredentialResponse(credential=credential)

    async def UpdateCredential(self, request: pb.UpdateCredentialRequest, call: Call) -> pb.UpdateCredentialResponse:
        def decide(transaction: Transaction) -> pb.Credential:
            before = self._own(transaction, request.credential_id, call, "update_credential")
            after = pb.Credential()
            after.CopyFrom(before)
            for name in set(request.update_mask.paths) & {"user_id", "type", "blob", "project_id"}:
                setattr(after, name, getattr(request.credential, name))
            if after.user_id != before.user_id and not call.caller.is_admin:
                raise access.denied("update_credential")
            if {before.type, after.type} & LOGINS:
                access.require_undelegated(call, f"change a credential of the type {before.type}")
            old, new = keys_of(before), keys_of(after)
            if EC2 in (before.type, after.type) and before.type != after.type:
                raise Invalid("identity.credential.type", "Invalid input for field 'type': it cannot become or cease to be ec2.")
            identifier(after, before.id)       # which refuses a blob without its keys; the credential's id stays
            if any(old.get(name) != new.get(name) for name in FIXED):
                raise Invalid("identity.credential.blob", f"Invalid input for field 'blob': {', '.join(FIXED)} cannot change.")
            keep(transaction, after, replace=True)
            return after

        return pb.UpdateCredentialResponse(credential=await self._db.transact(decide))

    async def DeleteCredential(self, request: pb.DeleteCredentialRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            self._own(transaction, request.credential_id, call, "delete_credential")
            transaction.delete(SECRET, request.credential_id)

        await self._db.transact(decide)
        return Empty()

    def _own(self, transaction: Transaction, credential_id: str, call: Call, action: str) -> pb.Credential:
        """A credential that the caller may change."""
        credential = opened(transaction, credential_id)
        if credential.user_id != call.caller.user_id and not call.caller.is_admin:
            raise access.denied(action)
        return credential


def keep(transaction: Transaction, credential: pb.Credential, *, replace: bool = False) -> None:
    """Write a credential, sealed. Raises Invalid, NotFound or Conflict where it cannot be so."""
    if not 0 < len(credential.type) <= MAX_TYPE or not 0 < len(credential.blob.encode()) <= MAX_BLOB:
        raise Invalid("identity.credential", f"Invalid input for field 'credential': its type has 1 to {MAX_TYPE} characters "
                                             f"and its blob 1 to {MAX_BLOB} bytes.")
    if transaction.get(USER, credential.user_id) is None:
        raise missing("user", credential.user_id)
    transaction.guard_exists(USER, credential.user_id)
    if credential.project_id:
        if transaction.get(PROJECT, credential.project_id) is None:
            raise missing("project", credential.project_id)
        transaction.guard_exists(PROJECT, credential.project_id)
    elif credential.type == EC2:
        raise Invalid("identity.credential.project", "Invalid input for field 'project_id': an ec2 credential needs one.")
    else:
        credential.ClearField("project_id")
    if not replace:
        if transaction.get(SECRET, credential.id) is not None:
            raise Conflict("identity.credential.duplicate",
                           "Conflict occurred attempting to store credential - the access key is taken.")
        if len(transaction.rows(SECRET, "user", credential.user_id)) >= MAX_SECRETS:
            raise access.forbidden("identity.credential.limit", f"a user has at most {MAX_SECRETS} credentials")
    record = CredentialRecord(credential=credential, sealed_blob=seal(transaction, credential.blob))
    record.credential.ClearField("blob")
    transaction.put(SECRET, record)


def opened(reader: Database | Transaction, credential_id: str) -> pb.Credential:
    """A credential with its blob. Raises NotFound."""
    record = reader.get(SECRET, credential_id)
    if record is None:
        raise missing("credential", credential_id)
    credential = pb.Credential()
    credential.CopyFrom(record.credential)
    credential.blob = unseal(reader, record.sealed_blob)
    return credential


def identifier(credential: pb.Credential, otherwise: str = "") -> str:
    """The id of a credential: of the access key for "ec2", so that it is found by it; else `otherwise`, or a new one."""
    if credential.type != EC2:
        return otherwise or uuid.uuid4().hex
    keys = keys_of(credential)
    if not all(isinstance(keys.get(name), str) and keys[name] for name in ("access", "secret")):
        raise Invalid("identity.credential.blob",
                      "Invalid input for field 'blob': an ec2 credential's is a JSON object with access and secret.")
    return id_of_access(keys["access"])


def id_of_access(key: str) -> str:
    """The id of the credential of an access key."""
    return hashlib.sha256(key.encode()).hexdigest()


def keys_of(credential: pb.Credential) -> dict[str, Any]:
    """What an "ec2" blob holds; {} for what is none."""
    if credential.type != EC2:
        return {}
    try:
        content = json.loads(credential.blob)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
