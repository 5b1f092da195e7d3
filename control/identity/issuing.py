"""Issues tokens for what has been proven, and says what a token says.

A token that was exchanged for another one ends no later than that one, one for a trust no later than the trust.
"""
import base64
import time
import uuid

from google.protobuf.timestamp_pb2 import Timestamp

from control.identity import access
from control.identity.addresses import catalog_for
from control.identity.authentication import SPELLINGS, Proof, Scope
from control.identity.holdings import memberships
from control.identity.model import ACCESS_TOKEN, SERVICE_PROVIDER, TRUST, missing
from control.identity.sealing import LIFETIME, Sealer
from control.identity.sessions import Session, chain_of, session_of
from control.kernel.database import Database, Transaction
from control.kernel.errors import Unauthenticated
from protos.identity.v1 import tokens_pb2 as pb
from protos.identity.v1.assignments_pb2 import Named, NamedDomain
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.records_pb2 import TokenPayload
from protos.identity.v1.trusts_pb2 import Trust

_SPELLINGS = {**SPELLINGS, TokenPayload.EC2_CREDENTIAL: "ec2credential"}


class Issuer:
    """Makes tokens."""

    def __init__(self, db: Database, sealer: Sealer):
        self._db = db
        self._sealer = sealer

    async def issue(self, proof: Proof, scope: Scope, *, explicit: bool, catalog: bool) -> pb.IssueTokenResponse:
        """A token for a scope. One that nobody asked for is given up where there is no role on it.

        Raises Unauthenticated where the scope gives no role, Denied for a trust that cannot be had so.
        """
        payload = self._payload(proof, scope)
        if scope.trust_id:
            session = await self._through_trust(proof, payload)
        else:
            session = self._session(payload, explicit)
        return pb.IssueTokenResponse(subject_token=self._sealer.seal(session.payload), token=self.shown(session, catalog=catalog))

    def _payload(self, proof: Proof, scope: Scope) -> TokenPayload:
        issued = time.time_ns() // 1000
        payload = TokenPayload(
            user_id=proof.user_id, methods=sorted(proof.methods), project_id=scope.project_id, domain_id=scope.domain_id,
            system=scope.system, trust_id=scope.trust_id, issued_at=issued,
            expires_at=issued + int(LIFETIME.total_seconds() * 1e6),
            audit_id=base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("="), revision=self._db.cache.revision,
            application_credential_id=proof.credential.id if proof.credential else "",
            idp_id=proof.federation[0], protocol_id=proof.federation[1])
        if proof.access_token is not None:
            payload.access_token_id = proof.access_token.id
            payload.expires_at = min(payload.expires_at, proof.access_token.expires_at.ToMicroseconds())
        if proof.session is not None:
            before = proof.session.payload
            if before.trust_id or before.access_token_id:
                raise access.forbidden("auth.rescope", "a token that was got with a trust or an access token cannot be "
                                                       "exchanged for another one")
            payload.expires_at = before.expires_at
            payload.parent_audit_id = before.parent_audit_id or before.audit_id
        return payload

    def _session(self, payload: TokenPayload, explicit: bool) -> Session:
        try:
            return session_of(self._db, payload)
        except Unauthenticated:
            if explicit or not payload.project_id:
                raise
            payload.project_id = ""
            return session_of(self._db, payload)

    async def _through_trust(self, proof: Proof, payload: TokenPayload) -> Session:
        """The session of a trustee's token. Each one counts: the trust's last use is given once, to whoever comes first."""
        def decide(transaction: Transaction) -> Trust:
            trust = usable(transaction, payload.trust_id)
            if trust.trustee_user_id != proof.user_id:
                raise access.forbidden("auth.trust", "the user is not the trustee of the trust")
            fill(payload, trust)
            session_of(self._db, payload)          # what would not be valid costs no use
            if trust.HasField("remaining_uses"):
                trust.remaining_uses -= 1
                transaction.put(TRUST, trust)
            return trust

        try:
            await self._db.transact(decide)
        except Unauthenticated as error:
            raise access.forbidden("auth.trust", "the trust gives no access: its trustor is disabled or lost a role") from error
        payload.revision = self._db.cache.revision
        return session_of(self._db, payload)

    def shown(self, session: Session, *, catalog: bool) -> pb.Token:
        """What a token says."""
        payload = session.payload
        shown = pb.Token(
            methods=[_SPELLINGS.get(method, payload.protocol_id) for method in payload.methods],
            user=pb.TokenUser(id=session.user.id, name=session.user.name, domain=_domain(session.user_domain)),
            roles=[pb.TokenRole(id=role.id, name=role.name) for role in session.roles],
            expires_at=_time(payload.expires_at), issued_at=_time(payload.issued_at),
            audit_ids=[audit for audit in (payload.audit_id, payload.parent_audit_id) if audit])
        if session.user.HasField("password_expires_at"):
            shown.user.password_expires_at.CopyFrom(session.user.password_expires_at)
        if any(identity.idp_id == payload.idp_id for identity in session.user.federated):
            shown.user.federation.CopyFrom(self._federation(session))
        shown.service_providers.extend(
            pb.TokenServiceProvider(id=other.id, auth_url=other.auth_url, sp_url=other.sp_url)
            for other in self._db.cache.all(SERVICE_PROVIDER) if other.enabled)
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
                id=session.credential.id, name=session.credential.name, restricted=not session.credential.unrestricted,
                access_rules=session.credential.access_rules))
        if payload.trust_id:
            trust = chain_of(self._db, payload.trust_id)[0]
            shown.trust.CopyFrom(pb.TokenTrust(
                id=trust.id, impersonation=trust.impersonation, trustor_user=pb.TrustUser(id=trust.trustor_user_id),
                trustee_user=pb.TrustUser(id=trust.trustee_user_id)))
        if payload.access_token_id and (record := self._db.get(ACCESS_TOKEN, payload.access_token_id)) is not None:
            shown.oauth1.CopyFrom(pb.TokenOAuth1(access_token_id=record.access_token.id,
                                                 consumer_id=record.access_token.consumer_id))
        return shown


    def _federation(self, session: Session) -> pb.TokenFederation:
        payload = session.payload
        groups = [row.group_id for row in memberships(self._db, "user", session.user.id) if row.idp_id == payload.idp_id]
        return pb.TokenFederation(groups=[pb.FederationReference(id=group_id) for group_id in sorted(groups)],
                                  identity_provider=pb.FederationReference(id=payload.idp_id),
                                  protocol=pb.FederationReference(id=payload.protocol_id))


def usable(reader: Database | Transaction, trust_id: str) -> Trust:
    """A trust that tokens can be got with. Raises NotFound for one that is gone, has expired or is used up."""
    trust = reader.get(TRUST, trust_id)
    if trust is None or (trust.HasField("remaining_uses") and trust.remaining_uses <= 0) or (
            trust.HasField("expires_at") and trust.expires_at.ToMicroseconds() <= time.time_ns() // 1000):
        raise missing("trust", trust_id)
    return trust


def fill(payload: TokenPayload, trust: Trust) -> None:
    """Make a payload one for a trust: the trustor's or the trustee's, for its project, until it ends."""
    payload.trust_id, payload.project_id = trust.id, trust.project_id
    payload.user_id = trust.trustor_user_id if trust.impersonation else trust.trustee_user_id
    if trust.HasField("expires_at"):
        payload.expires_at = min(payload.expires_at, trust.expires_at.ToMicroseconds())


def _domain(project: Project) -> NamedDomain:
    return NamedDomain(id=project.id, name=project.name)


def _time(micros: int) -> Timestamp:
    at = Timestamp()
    at.FromMicroseconds(micros)
    return at
