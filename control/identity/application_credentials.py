"""Serves application credentials. The secret is in the answer to its creation, and nowhere else."""
import secrets
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.access_rules import check_rules, keep_rule
from control.identity.model import CREDENTIAL, ENTRY, MAX_DESCRIPTION, PROJECT, USER, check_name, missing, require, take_name
from control.identity.passwords import Passwords
from control.identity.sessions import Session, TokenAuthenticator
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import application_credentials_pb2 as pb
from protos.identity.v1.records_pb2 import ApplicationCredentialRecord

#: Of one user.
MAX_CREDENTIALS = 1000


class ApplicationCredentials:
    """identity.v1.ApplicationCredentials."""

    def __init__(self, db: Database, passwords: Passwords, authenticator: TokenAuthenticator):
        self._db = db
        self._passwords = passwords
        self._authenticator = authenticator

    async def CreateApplicationCredential(self, request: pb.CreateApplicationCredentialRequest,
                                          call: Call) -> pb.CreateApplicationCredentialResponse:
        caller, wanted = call.caller, request.application_credential
        if caller.user_id != request.user_id:
            raise access.denied("create_application_credential")
        if not caller.project_id:
            raise Invalid("identity.credential.scope", "An application credential needs a project-scoped token.")
        check_rules(wanted.access_rules)
        session = await self._session(call)
        check_name("application credential", wanted.name)
        if len(wanted.description) > MAX_DESCRIPTION:
            raise Invalid("identity.description", f"Invalid input for field 'description': at most {MAX_DESCRIPTION} characters.")
        if wanted.HasField("expires_at") and wanted.expires_at.ToMicroseconds() <= clock.now().ToMicroseconds():
            raise Invalid("identity.credential.expires_at", "Invalid input for field 'expires_at': it is in the past.")
        credential = pb.ApplicationCredential(
            id=uuid.uuid4().hex, name=wanted.name, project_id=caller.project_id, user_id=caller.user_id,
            unrestricted=wanted.unrestricted, roles=_roles(session, wanted))
        if wanted.HasField("description"):
            credential.description = wanted.description
        if wanted.HasField("expires_at"):
            credential.expires_at.CopyFrom(wanted.expires_at)
        secret = wanted.secret or secrets.token_urlsafe(64)
        record = ApplicationCredentialRecord(application_credential=credential, secret_hash=await self._passwords.hash(secret))

        def decide(transaction: Transaction) -> None:
            if self._db.cache.count(CREDENTIAL, "user", caller.user_id) >= MAX_CREDENTIALS:
                raise access.forbidden("identity.credential.limit", f"a user has at most {MAX_CREDENTIALS} of them")
            transaction.guard_exists(USER, caller.user_id)
            transaction.guard_exists(PROJECT, caller.project_id)
            take_name(transaction, "application credential", caller.user_id, credential.name, credential.id)
            del record.application_credential.access_rules[:]
            record.application_credential.access_rules.extend(
                keep_rule(transaction, caller.user_id, rule) for rule in wanted.access_rules)
            transaction.put(CREDENTIAL, record)

        await self._db.transact(decide)
        credential = record.application_credential
        answer = pb.CreateApplicationCredentialResponse(application_credential=credential)
        answer.application_credential.secret = secret
        return answer

    async def ListApplicationCredentials(self, request: pb.ListApplicationCredentialsRequest,
                                         call: Call) -> pb.ListApplicationCredentialsResponse:
        access.require_self(call, request.user_id, "list_application_credentials")
        require(self._db, USER, request.user_id)
        held = [record.application_credential for record in self._db.cache.by(CREDENTIAL, "user", request.user_id)]
        rows, marker = page(select(held, request.filters), limit=request.limit, marker=request.marker,
                            sort=[(lambda row: row.name, False)])
        return pb.ListApplicationCredentialsResponse(application_credentials=rows, next_page_marker=marker)

    async def GetApplicationCredential(self, request: pb.GetApplicationCredentialRequest,
                                       call: Call) -> pb.GetApplicationCredentialResponse:
        access.require_self(call, request.user_id, "get_application_credential")
        record = self._db.get(CREDENTIAL, request.application_credential_id)
        if record is None or record.application_credential.user_id != request.user_id:
            raise missing("application credential", request.application_credential_id)
        return pb.GetApplicationCredentialResponse(application_credential=record.application_credential)

    async def DeleteApplicationCredential(self, request: pb.DeleteApplicationCredentialRequest, call: Call) -> Empty:
        if not call.decided and call.caller.user_id != request.user_id and not call.caller.is_admin:
            raise access.denied("delete_application_credential")
        await self._session(call)

        def decide(transaction: Transaction) -> None:
            record = transaction.get(CREDENTIAL, request.application_credential_id)
            if record is None or record.application_credential.user_id != request.user_id:
                raise missing("application credential", request.application_credential_id)
            transaction.delete(CREDENTIAL, request.application_credential_id)
            transaction.delete(ENTRY, "application credential", request.user_id, record.application_credential.name)

        await self._db.transact(decide)
        return Empty()

    async def _session(self, call: Call) -> Session:
        """The caller's session. Raises Denied where it came from a trust, or from a credential that may not manage others."""
        session = await self._authenticator.session(call.token)
        if session.payload.trust_id or session.payload.access_token_id:
            raise access.forbidden("identity.credential.trust",
                                   "a token from a trust or an access token cannot manage application credentials")
        if session.credential is not None and not session.credential.unrestricted:
            raise access.forbidden("identity.credential.restricted",
                                   "a restricted application credential cannot manage application credentials")
        return session


def _roles(session: Session, wanted: pb.ApplicationCredential) -> list[pb.CredentialRole]:
    """The roles of a new credential: those that are named, or all that the token has. Raises Invalid for one that it has not."""
    held = {role.id: role for role in session.roles}
    names = {role.name: role for role in session.roles}
    chosen = []
    for named in wanted.roles:
        role = held.get(named.id) if named.id else names.get(named.name)
        if role is None:
            raise Invalid("identity.credential.role", f"Cannot create an application credential with the unassigned role "
                                                      f"{named.id or named.name}.")
        chosen.append(role)
    return [pb.CredentialRole(id=role.id, name=role.name) for role in chosen or session.roles]
