"""Serves tokens: issues, shows and ends them, and says what their holder can reach."""
import time
from collections import OrderedDict

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.addresses import catalog_for
from control.identity.authentication import Authentication
from control.identity.holdings import SYSTEM, reachable, roles_on
from control.identity.issuing import Issuer
from control.identity.model import PROJECT, REVOCATION, USER, domain_of
from control.identity.sessions import Remembered, TokenAuthenticator
from control.identity.signed_requests import SignedHeaders
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, NotFound, Unauthenticated
from control.kernel.listing import page
from control.kernel.rpc import Call
from protos.identity.v1 import tokens_pb2 as pb
from protos.identity.v1.assignments_pb2 import SystemScope
from protos.identity.v1.domains_pb2 import ListDomainsResponse
from protos.identity.v1.projects_pb2 import ListProjectsResponse
from protos.identity.v1.records_pb2 import Revocation

#: Expired revocations that one revocation sweeps; more than one each, so that they never pile up.
SWEPT = 20

#: Answers about tokens remembered. One takes some 10 KiB with a catalog; each is good for as long as its token is remembered.
SHOWN = 1000

#: Revocation events in one answer at most.
MAX_EVENTS = 10_000


class Tokens:
    """identity.v1.Tokens."""

    def __init__(self, db: Database, authentication: Authentication, authenticator: TokenAuthenticator, issuer: Issuer):
        self._db = db
        self._authentication = authentication
        self._authenticator = authenticator
        self._issuer = issuer
        self._shown: OrderedDict[tuple[str, bool], tuple[Remembered, pb.ShowTokenResponse]] = OrderedDict()

    async def IssueToken(self, request: pb.IssueTokenRequest, call: Call) -> pb.IssueTokenResponse:
        if not request.HasField("auth") or not request.auth.HasField("identity"):
            raise Invalid("auth.identity", "Expecting to find identity in auth. The server could not comply with the request "
                                           "since it is either malformed or otherwise incorrect.")
        signed = SignedHeaders(request.authorization, request.host, request.query)
        proof = await self._authentication.prove(request.auth.identity, request.auth_receipt, (signed, call))
        scope, explicit = self._authentication.scope(request.auth.scope if request.auth.HasField("scope") else None, proof)
        return await self._issuer.issue(proof, scope, explicit=explicit, catalog=catalog_wanted(request.query))

    async def ShowToken(self, request: pb.ShowTokenRequest, call: Call) -> pb.ShowTokenResponse:
        known = await self._subject(request.subject_token, call, "validate_token")
        key = request.subject_token, catalog_wanted(request.query)
        judged, answer = self._shown.get(key, (None, None))
        if answer is None or judged is not known:
            answer = pb.ShowTokenResponse(subject_token=request.subject_token,
                                          token=self._issuer.shown(known.session, catalog=key[1]))
            self._shown[key] = known, answer
            if len(self._shown) > SHOWN:
                self._shown.popitem(last=False)
        self._shown.move_to_end(key)
        return answer

    async def RevokeToken(self, request: pb.RevokeTokenRequest, call: Call) -> Empty:
        payload = (await self._subject(request.subject_token, call, "revoke_token", writes=True)).session.payload

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

    async def ListRevocationEvents(self, request: pb.ListRevocationEventsRequest,
                                   call: Call) -> pb.ListRevocationEventsResponse:
        since = request.since.ToMicroseconds()
        events = [pb.RevocationEvent(audit_id=row.audit_id, issued_before=row.expires_at)
                  for row in self._db.cache.all(REVOCATION) if row.expires_at.ToMicroseconds() >= since]
        for holder in self._db.cache.all(USER):
            if holder.HasField("revoked_before") and holder.revoked_before.ToMicroseconds() >= since:
                events.append(pb.RevocationEvent(user_id=holder.user.id, issued_before=holder.revoked_before))
        for record in self._db.cache.all(PROJECT):
            if record.HasField("revoked_before") and record.revoked_before.ToMicroseconds() >= since:
                event = pb.RevocationEvent(issued_before=record.revoked_before)
                setattr(event, "domain_id" if record.project.is_domain else "project_id", record.project.id)
                events.append(event)
        return pb.ListRevocationEventsResponse(events=events[:MAX_EVENTS])

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

    async def _subject(self, token: str, call: Call, action: str, *, writes: bool = False) -> Remembered:
        """What a token is worth that somebody shows us: their own user's, or any for who may."""
        if not token:
            raise Invalid("token.subject", "Expecting to find X-Subject-Token in the request's headers.")
        try:
            known = await self._authenticator.remembered(token)
        except Unauthenticated as error:
            raise NotFound("token.missing", "Could not find token.") from error
        may = call.caller.is_admin if writes else access.reads_all(call.caller)
        if known.session.user.id != call.caller.user_id and not may:
            raise access.denied(action)
        return known


def catalog_wanted(query) -> bool:
    """Whether an answer shall have the catalog: unless the query has "nocatalog"."""
    return not any(parameter.key == "nocatalog" for parameter in query)
