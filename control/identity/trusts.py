"""Serves trusts: one user lets another act for them in a project. A trust never gives more than what it was made from."""
import uuid

from google.protobuf.empty_pb2 import Empty

from control.identity import access
from control.identity.holdings import roles_on
from control.identity.issuing import usable
from control.identity.model import PROJECT, TRUST, USER, missing, require
from control.identity.removal import remove, trusts_below
from control.identity.roles import listed
from control.identity.sessions import Session, TokenAuthenticator
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import trusts_pb2 as pb
from protos.identity.v1.roles_pb2 import GetRoleResponse, ListRolesResponse, Role

#: How often a trust may be passed on.
MAX_REDELEGATIONS = 3

#: Of one trustor.
MAX_TRUSTS, MAX_ROLES = 1000, 100


class Trusts:
    """identity.v1.Trusts."""

    def __init__(self, db: Database, authenticator: TokenAuthenticator):
        self._db = db
        self._authenticator = authenticator

    async def CreateTrust(self, request: pb.CreateTrustRequest, call: Call) -> pb.CreateTrustResponse:
        wanted = request.trust
        session = await self._authenticator.session(call.token)
        _check(wanted, call)
        if session.payload.access_token_id:
            raise access.forbidden("identity.trust.access_token", "a token from an access token cannot make trusts")
        if session.credential is not None and not session.credential.unrestricted:
            raise access.forbidden("identity.trust.restricted", "a restricted application credential cannot make trusts")

        def decide(transaction: Transaction) -> pb.Trust:
            source = usable(transaction, session.payload.trust_id) if session.payload.trust_id else None
            trust = _new(wanted, source)
            for user_id in (trust.trustor_user_id, trust.trustee_user_id):
                require(transaction, USER, user_id)
                transaction.guard_exists(USER, user_id)
            if trust.project_id:
                require(transaction, PROJECT, trust.project_id)
                transaction.guard_exists(PROJECT, trust.project_id)
            if source is not None:
                transaction.guard_exists(TRUST, source.id)
            if len(transaction.rows(TRUST, "trustor", trust.trustor_user_id)) >= MAX_TRUSTS:
                raise access.forbidden("identity.trust.limit", f"a user makes at most {MAX_TRUSTS} trusts")
            trust.roles.extend(self._roles(wanted, session, source))
            transaction.put(TRUST, trust)
            return trust

        return pb.CreateTrustResponse(trust=_shown(await self._db.transact(decide)))

    async def ListTrusts(self, request: pb.ListTrustsRequest, call: Call) -> pb.ListTrustsResponse:
        own = any(parameter.key in ("trustor_user_id", "trustee_user_id") and list(parameter.values) == [call.caller.user_id]
                  for parameter in request.filters)
        if not own:
            access.require_reader(call, "list_trusts")
        rows, marker = page(select(filter(self._is_usable, self._db.cache.all(TRUST)), request.filters), limit=request.limit,
                            marker=request.marker)
        return pb.ListTrustsResponse(trusts=[_shown(row) for row in rows], next_page_marker=marker)

    async def GetTrust(self, request: pb.GetTrustRequest, call: Call) -> pb.GetTrustResponse:
        return pb.GetTrustResponse(trust=_shown(self._visible(request.trust_id, call)))

    async def DeleteTrust(self, request: pb.DeleteTrustRequest, call: Call) -> Empty:
        def check(transaction: Transaction) -> None:
            trust = require(transaction, TRUST, request.trust_id)
            if call.caller.user_id != trust.trustor_user_id and not call.caller.is_admin:
                if call.caller.user_id != trust.trustee_user_id:
                    raise missing("trust", request.trust_id)
                raise access.denied("delete_trust")

        await remove(self._db, check, lambda: trusts_below(self._db, request.trust_id),
                     lambda transaction: transaction.delete(TRUST, request.trust_id))
        return Empty()

    async def ListTrustRoles(self, request: pb.ListTrustRolesRequest, call: Call) -> ListRolesResponse:
        return listed(_as_roles(self._visible(request.trust_id, call)))

    async def GetTrustRole(self, request: pb.GetTrustRoleRequest, call: Call) -> GetRoleResponse:
        return GetRoleResponse(role=self._role(request.trust_id, request.role_id, call))

    async def CheckTrustRole(self, request: pb.CheckTrustRoleRequest, call: Call) -> Empty:
        self._role(request.trust_id, request.role_id, call)
        return Empty()

    def _role(self, trust_id: str, role_id: str, call: Call) -> Role:
        for role in _as_roles(self._visible(trust_id, call)):
            if role.id == role_id:
                return role
        raise missing("role", role_id)

    def _visible(self, trust_id: str, call: Call) -> pb.Trust:
        """A trust that the caller may see. Raises NotFound."""
        trust = usable(self._db, trust_id)
        if call.caller.user_id not in (trust.trustor_user_id, trust.trustee_user_id) and not access.reads_all(call.caller):
            raise missing("trust", trust_id)
        return trust

    def _is_usable(self, trust: pb.Trust) -> bool:
        if trust.HasField("remaining_uses") and not trust.remaining_uses:
            return False
        return not trust.HasField("expires_at") or trust.expires_at.ToMicroseconds() > clock.now().ToMicroseconds()

    def _roles(self, wanted: pb.Trust, session: Session, source: pb.Trust | None) -> list[pb.TrustRole]:
        """The roles that are wanted, by id and name. Raises Denied for one that is not the trustor's to give."""
        if source is not None:
            held = list(session.roles) if wanted.project_id == source.project_id else []
        else:
            held = roles_on(self._db, wanted.trustor_user_id, "project", wanted.project_id) if wanted.project_id else []
            if session.credential is not None:      # it may be narrower than its user
                held = [role for role in held if role in session.roles and wanted.project_id == session.credential.project_id]
        by_id, by_name = {role.id: role for role in held}, {role.name: role for role in held}
        chosen: dict[str, pb.TrustRole] = {}
        for named in wanted.roles:
            role = by_id.get(named.id) if named.id else by_name.get(named.name)
            if role is None:
                raise access.forbidden("identity.trust.role", f"the trustor does not have the role {named.id or named.name}")
            chosen[role.id] = pb.TrustRole(id=role.id, name=role.name)
        return list(chosen.values())


def _check(wanted: pb.Trust, call: Call) -> None:
    """Raise Invalid or Denied for what no trust can be."""
    if call.caller.user_id != wanted.trustor_user_id:
        raise access.forbidden("identity.trust.trustor", "the trustor has to be the caller")
    if not wanted.HasField("impersonation"):
        raise Invalid("identity.trust.impersonation", "Invalid input for field 'trust': 'impersonation' is a required property.")
    if wanted.project_id and not wanted.roles:
        raise access.forbidden("identity.trust.roles", "at least one role should be specified")
    if len(wanted.roles) > MAX_ROLES or (wanted.roles and not wanted.project_id):
        raise Invalid("identity.trust.roles", f"Invalid input for field 'roles': at most {MAX_ROLES}, with a project_id.")
    if wanted.HasField("expires_at") and wanted.expires_at.ToMicroseconds() <= clock.now().ToMicroseconds():
        raise Invalid("identity.trust.expires_at", "Invalid input for field 'expires_at': it is in the past.")
    if wanted.HasField("remaining_uses") and (wanted.remaining_uses < 1 or wanted.allow_redelegation):
        raise Invalid("identity.trust.remaining_uses", "Invalid input for field 'remaining_uses': it is at least 1, and not "
                                                       "given for a trust that may be passed on.")


def _new(wanted: pb.Trust, source: pb.Trust | None) -> pb.Trust:
    """A new trust, but for its roles. Raises Denied where it would go further than the one that it is made from."""
    trust = pb.Trust(id=uuid.uuid4().hex, trustor_user_id=wanted.trustor_user_id, trustee_user_id=wanted.trustee_user_id,
                     impersonation=wanted.impersonation, allow_redelegation=wanted.allow_redelegation)
    if wanted.project_id:
        trust.project_id = wanted.project_id
    for name in ("expires_at", "remaining_uses"):
        if wanted.HasField(name):
            trust.MergeFrom(pb.Trust(**{name: getattr(wanted, name)}))
    allowed = MAX_REDELEGATIONS
    if source is not None:
        allowed = source.redelegation_count - 1
        if not source.allow_redelegation or allowed < 0:
            raise access.forbidden("identity.trust.redelegation", "the trust may not be passed on (any further)")
        if trust.impersonation and not source.impersonation:
            raise access.forbidden("identity.trust.redelegation", "the trust that it is made from does not impersonate")
        if source.HasField("expires_at"):
            if trust.expires_at.ToMicroseconds() > source.expires_at.ToMicroseconds():
                raise access.forbidden("identity.trust.redelegation", "it would last longer than the trust that it is made from")
            if not trust.HasField("expires_at"):
                trust.expires_at.CopyFrom(source.expires_at)
        trust.redelegated_trust_id = source.id
    count = wanted.redelegation_count if wanted.HasField("redelegation_count") else allowed
    if trust.allow_redelegation and not 0 <= count <= allowed:
        raise access.forbidden("identity.trust.redelegation", f"a redelegation_count of {count} is not between 0 and {allowed}")
    trust.redelegation_count = count if trust.allow_redelegation else 0
    return trust


def _as_roles(trust: pb.Trust) -> list[Role]:
    return [Role(id=role.id, name=role.name) for role in trust.roles]


def _shown(trust: pb.Trust) -> pb.Trust:
    shown = pb.Trust()
    shown.CopyFrom(trust)
    shown.roles_links.self = f"/OS-TRUST/trusts/{trust.id}/roles"
    return shown
