"""Serves tokens: issues, shows and ends them, and says what their holder can reach.

A token that was exchanged for another one ends no later than that one.
"""
import base64
import time
import uuid

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from control.identity import access
from control.identity.addresses import catalog_for
from control.identity.authentication import SPELLINGS, Authentication, Proof, Scope
from control.identity.holdings import SYSTEM, reachable, roles_on
from control.identity.model import REVOCATION, domain_of
from control.identity.sealing import LIFETIME, Sealer
from control.identity.sessions import Session, TokenAuthenticator, session_of
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, NotFound, Unauthenticated
from control.kernel.listing import page
from control.kernel.rpc import Call
from protos.identity.v1 import tokens_pb2 as pb
from protos.identity.v1.assignments_pb2 import Named, NamedDomain, SystemScope
from protos.identity.v1.domains_pb2 import ListDomainsResponse
from protos.identity.v1.projects_pb2 import ListProjectsResponse, Project
from protos.identity.v1.records_pb2 import Revocation, TokenPayload

#: Expired revocations that one revocation sweeps; more than one each, so that they never pile up.
SWEPT = 20


class Tokens:
    """identity.v1.Tokens."""

    def __init__(self, db: Database, authentication: Authentication, authenticator: TokenAuthenticator, sealer: Sealer):
        self._db = db
        self._authentication = authentication
        self._authenticator = authenticator
        self._sealer = sealer

    async def IssueToken(self, request: pb.IssueTokenRequest, call: Call) -> pb.IssueTokenResponse:
        if not request.HasField("auth") or not request.auth.HasField("identity"):
            raise Invalid("auth.identity", "Expecting to find identity in auth. The server could not comply with the request "
                                           "since it is either malformed or otherwise incorrect.")
        proof = await self._authentication.prove(request.auth.identity)
        scope, explicit = self._authentication.scope(request.auth.scope if request.auth.HasField("scope") else None, proof)
        session = self._session(proof, scope, explicit)
        return pb.IssueTokenResponse(subject_token=self._sealer.seal(session.payload),
                                     token=self._shown(session, catalog=_catalog_wanted(request.query)))

    async def ShowToken(self, request: pb.ShowTokenRequest, call: Call) -> pb.ShowTokenResponse:
        session = await self._subject(request.subject_token, call, "validate_token")
        return pb.ShowTokenResponse(subject_token=request.subject_token,
                                    token=self._shown(session, catalog=_catalog_wanted(request.query)))

    async def RevokeToken(self, request: pb.RevokeTokenRequest, call: Call) -> Empty:
        payload = (await self._subject(request.subject_token, call, "revoke_token", writes=True)).payload

        def decide(transaction: Transaction) -> None:
            present = time.time()
            expired = [old for old in transaction.rows(REVOCATION) if old.expires_at.seconds + 60 < present]
            for old in expired[:SWEPT]:
                transaction.delete(REVOCATION, old.audit_id)
            revocation = Revocation(audit_id=payload.audit_id)
            revocation.expires_at.FromMicroseconds(payload.expires_at)
            transaction.put(REVOCATION, revocation)

        await self._db.transact(decide)
        return Empty()

    async def ShowCatalog(self, request: pb.ShowCatalogRequest, call: Call) -> pb.ShowCatalogResponse:
        caller = call.caller
        if not (caller.project_id or caller.domain_id or caller.system):
            raise access.forbidden("auth.catalog", "a token without scope has no catalog")
        return pb.ShowCatalogResponse(catalog=catalog_for(self._db, caller.project_id))

    async def ListReachableProjects(self, request: pb.ListReachableProjectsRequest, call: Call) -> ListProjectsResponse:
        rows, marker = page(reachable(self._db, call.caller.user_id, "project"), limit=request.limit, marker=request.marker,
                            sort=[(lambda project: project.name, False)])
        return ListProjectsResponse(projects=rows, next_page_marker=marker)

    async def ListReachableDomains(self, request: pb.ListReachableDomainsRequest, call: Call) -> ListDomainsResponse:
        rows, marker = page(reachable(self._db, call.caller.user_id, "domain"), limit=request.limit, marker=request.marker,
                            sort=[(lambda project: project.name, False)])
        return ListDomainsResponse(domains=[domain_of(project) for project in rows], next_page_marker=marker)

    async def ListReachableSystems(self, request: pb.ListReachableSystemsRequest, call: Call) -> pb.ListReachableSystemsResponse:
        held = roles_on(self._db, call.caller.user_id, *SYSTEM)
        return pb.ListReachableSystemsResponse(system=[SystemScope(all=True)] if held else [])

    def _session(self, proof: Proof, scope: Scope, explicit: bool) -> Session:
        """The session of a new token. A scope that nobody asked for is given up where there is no role on it."""
        issued = time.time_ns() // 1000
        payload = TokenPayload(
            user_id=proof.user_id, methods=sorted(proof.methods), project_id=scope.project_id, domain_id=scope.domain_id,
            system=scope.system, issued_at=issued, expires_at=issued + int(LIFETIME.total_seconds() * 1e6),
            audit_id=base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="), revision=self._db.cache.revision,
            application_credential_id=proof.credential.id if proof.credential else "")
        if proof.session is not None:
            before = proof.session.payload
            payload.expires_at = before.expires_at
            payload.parent_audit_id = before.parent_audit_id or before.audit_id
        try:
            return session_of(self._db, payload)
        except Unauthenticated:
            if explicit or not payload.project_id:
                raise
            payload.project_id = ""
            return session_of(self._db, payload)

    async def _subject(self, token: str, call: Call, action: str, *, writes: bool = False) -> Session:
        """The session of a token that somebody shows us: their own user's, or any for who may."""
        if not token:
            raise Invalid("token.subject", "Expecting to find X-Subject-Token in the request's headers.")
        try:
            session = await self._authenticator.session(token)
        except Unauthenticated as error:
            raise NotFound("token.missing", "Could not find token.") from error
        may = call.caller.is_admin if writes else access.reads_all(call.caller)
        if session.user.id != call.caller.user_id and not may:
            raise access.denied(action)
        return session

    def _shown(self, session: Session, *, catalog: bool) -> pb.Token:
        payload = session.payload
        shown = pb.Token(
            methods=[SPELLINGS[method] for method in payload.methods],
            user=pb.TokenUser(id=session.user.id, name=session.user.name, domain=_domain(session.user_domain)),
            roles=[pb.TokenRole(id=role.id, name=role.name) for role in session.roles],
            expires_at=_time(payload.expires_at), issued_at=_time(payload.issued_at),
            audit_ids=[audit for audit in (payload.audit_id, payload.parent_audit_id) if audit])
        if session.user.HasField("password_expires_at"):
            shown.user.password_expires_at.CopyFrom(session.user.password_expires_at)
        if session.project is not None and session.project_domain is not None:
            shown.project.CopyFrom(Named(id=session.project.id, name=session.project.name,
                                         domain=_domain(session.project_domain)))
            shown.is_domain = session.project.is_domain
        elif session.domain is not None:
            shown.domain.CopyFrom(_domain(session.domain))
        elif payload.system:
            shown.system.all = True
        if catalog and session.scoped:
            shown.catalog.extend(catalog_for(self._db, payload.project_id))
        if session.credential is not None:
            shown.application_credential.CopyFrom(pb.TokenApplicationCredential(
                id=session.credential.id, name=session.credential.name, restricted=not session.credential.unrestricted))
        return shown


def _domain(project: Project) -> NamedDomain:
    return NamedDomain(id=project.id, name=project.name)


def _time(micros: int) -> Timestamp:
    at = Timestamp()
    at.FromMicroseconds(micros)
    return at


def _catalog_wanted(query) -> bool:
    return not any(parameter.key == "nocatalog" for parameter in query)
