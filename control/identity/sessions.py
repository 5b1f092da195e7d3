"""What a token is worth now: its holder, its scope and their roles, read from the present state each time.

Nothing about a token is trusted but ids and times; so whatever ends one (disabling, revoking, a new password, a role
taken back) needs no more than its own commit, and counts on each replica as soon as that replica has seen it.
"""
import time
from collections import OrderedDict
from dataclasses import dataclass

from google.protobuf.message import Message

from control.identity.holdings import SYSTEM, ancestors, expand, lasts, memberships, roles_on
from control.identity.model import (
    ACCESS_TOKEN,
    CREDENTIAL,
    IDENTITY_PROVIDER,
    KINDS,
    LOGIN,
    MEMBER,
    PROJECT,
    PROTOCOL,
    REVOCATION,
    SIGNED_REQUEST,
    TRUST,
    USER,
)
from control.identity.sealing import Sealer
from control.kernel.access_rules import AccessRule
from control.kernel.cache import Change
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Unauthenticated
from protos.identity.v1.application_credentials_pb2 import ApplicationCredential
from protos.identity.v1.projects_pb2 import Project
from protos.identity.v1.records_pb2 import Membership, ProjectRecord, TokenPayload, UserRecord
from protos.identity.v1.roles_pb2 import Role
from protos.identity.v1.trusts_pb2 import Trust
from protos.identity.v1.users_pb2 import User

#: Tokens remembered with what they are worth. One takes about 2 KiB; one that is forgotten costs 0.2 ms to judge again.
REMEMBERED = 10_000

#: Seconds to wait for a replica that has seen less than the one that issued a token.
BEHIND = 2.0


#: The target of a token that was got with a trust for no project: it has no roles.
NOWHERE = ("", "")

#: Trusts that stand on one another at most.
MAX_CHAIN = 8


@dataclass(frozen=True, slots=True)
class Session:
    """A valid token, with everything that it names."""

    payload: TokenPayload
    user: User
    user_domain: Project
    project: Project | None              # at most one of these three is set
    project_domain: Project | None
    domain: Project | None
    roles: list[Role]                    # by name, implied ones included; [] without scope
    credential: ApplicationCredential | None

    @property
    def scoped(self) -> bool:
        return self.project is not None or self.domain is not None or self.payload.system

    def caller(self) -> Caller:
        project = self.project or Project()
        return Caller(
            user_id=self.user.id, user_name=self.user.name, user_domain_id=self.user.domain_id,
            project_id=project.id, project_name=project.name, project_domain_id=project.domain_id,
            domain_id=self.domain.id if self.domain else "", system=self.payload.system,
            roles=frozenset(role.name for role in self.roles), audit_id=self.payload.audit_id,
            is_delegated=bool(self.payload.trust_id or self.payload.access_token_id
                              or (self.credential is not None and not self.credential.unrestricted)),
            access_rules=None if self.credential is None or not self.credential.access_rules else tuple(
                AccessRule(rule.service, rule.method, rule.path) for rule in self.credential.access_rules))


def refused(why: str) -> Unauthenticated:
    """The one answer to whatever is wrong with credentials; `why` is a reason for programs, alike for all of them."""
    return Unauthenticated(why, "The request you have made requires authentication.")


def session_of(db: Database, payload: TokenPayload) -> Session:
    """Everything behind a payload. Raises Unauthenticated if any of it no longer holds."""
    if payload.expires_at <= time.time_ns() // 1000 or db.get(REVOCATION, payload.audit_id) is not None:
        raise refused("token.ended")
    holder = db.get(USER, payload.user_id)
    if holder is None or not holder.user.enabled or _revoked(holder, payload):
        raise refused("token.user")
    _check_federation(db, holder, payload)
    user_domain = _enabled(db, holder.user.domain_id, payload)
    project = domain = project_domain = None
    target = None
    if payload.project_id:
        project = _enabled(db, payload.project_id, payload)
        above = [_enabled(db, place.id, payload) for place in ancestors(db, project)]
        project_domain = above[-1] if above else project
        target = ("project", project.id)
    elif payload.domain_id:
        domain = _enabled(db, payload.domain_id, payload)
        target = ("domain", domain.id)
    elif payload.system:
        target = SYSTEM
    roles = roles_on(db, holder.user.id, *target) if target and not payload.trust_id else []
    if payload.trust_id:
        target, roles = target or NOWHERE, _entrusted(db, payload)
    if payload.access_token_id:
        roles = _delegated(db, payload, roles)
    credential = None
    if payload.application_credential_id:
        credential, roles = _through(db, payload, roles)
    if target and target != NOWHERE and not roles:
        raise refused("token.roles")
    return Session(payload, holder.user, user_domain, project, project_domain, domain, roles, credential)


def _check_federation(db: Database, holder: UserRecord, payload: TokenPayload) -> None:
    """Raise Unauthenticated where what a token was got through, or an identity provider that its user is of, is no more."""
    if payload.protocol_id and db.get(PROTOCOL, payload.idp_id, payload.protocol_id) is None:
        raise refused("token.protocol")
    for idp_id in {payload.idp_id, *(identity.idp_id for identity in holder.user.federated)} - {""}:
        record = db.get(IDENTITY_PROVIDER, idp_id)
        if record is None or not record.identity_provider.enabled or _revoked(record, payload):
            raise refused("token.idp")
        _enabled(db, record.identity_provider.domain_id, payload)


def _through(db: Database, payload: TokenPayload, roles: list[Role]) -> tuple[ApplicationCredential, list[Role]]:
    """The application credential of a token, and those of its roles that the user still has."""
    record = db.get(CREDENTIAL, payload.application_credential_id)
    if record is None:
        raise refused("token.credential")
    credential = record.application_credential
    if credential.HasField("expires_at") and credential.expires_at.ToMicroseconds() <= time.time_ns() // 1000:
        raise refused("token.credential")
    allowed = {role.id for role in expand(db, (role.id for role in credential.roles))}
    return credential, [role for role in roles if role.id in allowed]


def chain_of(db: Database, trust_id: str) -> list[Trust]:
    """A trust, used up or not, and those that it was made from, nearest first. Raises Unauthenticated where one has ended."""
    found: list[Trust] = []
    while trust_id and len(found) < MAX_CHAIN:
        trust = db.get(TRUST, trust_id)
        if trust is None or (trust.HasField("expires_at") and trust.expires_at.ToMicroseconds() <= time.time_ns() // 1000):
            raise refused("token.trust")
        found.append(trust)
        trust_id = trust.redelegated_trust_id
    return found


def _entrusted(db: Database, payload: TokenPayload) -> list[Role]:
    """The roles of a token that was got with a trust: all of the trust's, as long as its first trustor has each one.

    All who trust and are trusted on the way have to be enabled, whichever of them the token speaks for.
    """
    chain = chain_of(db, payload.trust_id)
    for user_id in {user_id for trust in chain for user_id in (trust.trustor_user_id, trust.trustee_user_id)}:
        holder = db.get(USER, user_id)
        if holder is None or not holder.user.enabled or _revoked(holder, payload):
            raise refused("token.trust")
        _check_federation(db, holder, payload)
        _enabled(db, holder.user.domain_id, payload)
    trust = chain[0]
    if not trust.project_id:
        return []
    held = {role.id for role in roles_on(db, chain[-1].trustor_user_id, "project", trust.project_id)}
    wanted = {role.id for role in trust.roles}
    if not wanted <= held:
        raise refused("token.trust")
    return [role for role in expand(db, wanted) if role.id in held]


def _delegated(db: Database, payload: TokenPayload, held: list[Role]) -> list[Role]:
    """The roles of a consumer's token: all that its access token has, as long as the user who authorized it has each one."""
    record = db.get(ACCESS_TOKEN, payload.access_token_id)
    if record is None or not set(record.role_ids) <= {role.id for role in held}:
        raise refused("token.access_token")
    allowed = {role.id for role in expand(db, record.role_ids)}
    return [role for role in held if role.id in allowed]


def _enabled(db: Database, project_id: str, payload: TokenPayload) -> Project:
    record = db.get(PROJECT, project_id)
    if record is None or not record.project.enabled or _revoked(record, payload):
        raise refused("token.scope")
    return record.project


def _revoked(record: ProjectRecord | Message, payload: TokenPayload) -> bool:
    return payload.issued_at <= record.revoked_before.ToMicroseconds()  # type: ignore[union-attr]


@dataclass(frozen=True, slots=True)
class Remembered:
    """A token as it was judged; the same object until something changes what it is worth."""

    session: Session
    caller: Caller
    good_until: float                    # seconds since 1970


class TokenAuthenticator:
    """kernel.rpc's Authenticator: in process, from the cache; remembers what tokens are worth until identity changes."""

    def __init__(self, db: Database, sealer: Sealer | None = None):
        self._db = db
        self._sealer = sealer or Sealer(db)
        self._known: OrderedDict[str, Remembered] = OrderedDict()
        self._prefixes = frozenset(kind.prefix for kind in KINDS if kind not in (LOGIN, SIGNED_REQUEST))
        self._listening = db.cache.listening(self._on_change)
        self._listening.__enter__()

    async def authenticate(self, token: str) -> Caller:
        """Who a token speaks for. Raises Unauthenticated if it is malformed, expired or revoked."""
        return (await self.remembered(token)).caller

    async def remembered(self, token: str) -> Remembered:
        """What a token is worth, judged again where identity has changed since. Raises as authenticate() does."""
        known = self._known.get(token)
        if known is not None and known.good_until > time.time():
            self._known.move_to_end(token)
            return known
        session = await self.session(token)
        known = self._known[token] = Remembered(session, session.caller(), self._good_until(session))
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known

    def _good_until(self, session: Session) -> float:
        """When a token ends by itself, as seconds since 1970."""
        ends = session.payload.expires_at
        for trust in chain_of(self._db, session.payload.trust_id):
            if trust.HasField("expires_at"):
                ends = min(ends, trust.expires_at.ToMicroseconds())
        if session.credential is not None and session.credential.HasField("expires_at"):
            ends = min(ends, session.credential.expires_at.ToMicroseconds())
        for member in memberships(self._db, "user", session.user.id):
            if member.HasField("expires_at"):
                ends = min(ends, member.expires_at.ToMicroseconds())
        return ends / 1e6

    async def session(self, token: str) -> Session:
        """All that a token is worth. Raises as authenticate() does."""
        payload = self._sealer.open(token)
        await self._db.cache.wait(payload.revision, BEHIND)
        return session_of(self._db, payload)

    def close(self) -> None:
        self._listening.__exit__(None, None, None)

    def _on_change(self, change: Change) -> None:
        if change.kind.prefix in self._prefixes and not (change.kind is MEMBER and _is_renewed(change.before, change.after)):
            self._known.clear()


def _is_renewed(before: Membership | None, after: Membership | None) -> bool:
    """Whether a membership that counts will do so for longer, as each login of an identity provider's user makes it."""
    if before is None or after is None or not lasts(before):
        return False
    return not after.HasField("expires_at") or (
        before.HasField("expires_at") and before.expires_at.ToMicroseconds() <= after.expires_at.ToMicroseconds())
