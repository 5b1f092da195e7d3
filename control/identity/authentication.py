"""From credentials to a proven user, and from a wish for a scope to ids.

Whatever is wrong with credentials, the answer is one and the same, after the same work.
"""
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Value

from control.identity.compliance import Compliance, expired
from control.identity.logins import Logins
from control.identity.model import CREDENTIAL, PROJECT, USER, id_by_name
from control.identity.passwords import Passwords
from control.identity.sealing import Sealer
from control.identity.second_factor import SecondFactor
from control.identity.sessions import Session, TokenAuthenticator, refused
from control.identity.signed_requests import SignedHeaders, SignedRequests
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, NotFound, Unauthenticated
from control.kernel.rpc import Call
from protos.identity.v1.application_credentials_pb2 import ApplicationCredential
from protos.identity.v1.oauth1_pb2 import AccessToken
from protos.identity.v1.records_pb2 import TokenPayload, UserRecord
from protos.identity.v1.tokens_pb2 import ApplicationCredentialMethod, AuthDomain, AuthIdentity, AuthUser, TotpUser

METHODS = {"password": TokenPayload.PASSWORD, "token": TokenPayload.TOKEN,
           "application_credential": TokenPayload.APPLICATION_CREDENTIAL, "totp": TokenPayload.TOTP,
           "oauth1": TokenPayload.OAUTH1}
SPELLINGS = {number: name for name, number in METHODS.items()}

#: What clients also call the method "token" where the token is that of a user of an identity provider.
_FEDERATED = frozenset({"openid", "mapped"})


@dataclass(slots=True)
class Proof:
    """Who has been proven, and how."""

    user_id: str
    methods: set[TokenPayload.Method] = field(default_factory=set)
    session: Session | None = None                        # of the token that it was proven with
    credential: ApplicationCredential | None = None
    federation: tuple[str, str] = ("", "")                # the identity provider and the protocol that it came through
    access_token: AccessToken | None = None


@dataclass(frozen=True, slots=True)
class Scope:
    """What a token shall be for: one id, the system, or nothing."""

    project_id: str = ""
    domain_id: str = ""
    system: bool = False
    trust_id: str = ""


class Authentication:
    """Checks credentials."""

    def __init__(self, db: Database, passwords: Passwords, authenticator: TokenAuthenticator,
                 compliance: Compliance | None = None):
        self._db = db
        self._passwords = passwords
        self._authenticator = authenticator
        self.compliance = compliance or Compliance()
        self._logins = Logins(db, self.compliance)
        self._second = SecondFactor(db, Sealer(db))
        self._signed = SignedRequests(db)

    async def prove(self, identity: AuthIdentity, receipt: str = "", signed: tuple[SignedHeaders, Call] | None = None) -> Proof:
        """Who the credentials of every method named belong to. `receipt` tells of methods that were proven before,
        `signed` what an HTTP request says of its signature.

        Raises Invalid for what is incomplete, NotFound for a token that does not hold, else Unauthenticated;
        Insufficient where the user has to prove more.
        """
        methods = list(dict.fromkeys(identity.methods))
        if not methods:
            raise Invalid("auth.methods", "Invalid input for field 'identity/methods': at least one method is required.")
        for method in methods:
            if method not in METHODS and method not in _FEDERATED:
                raise refused("auth.method")
            if not identity.HasField(method):
                raise Invalid("auth.method", f"Expecting to find {method} in identity. The server could not comply with the "
                                             f"request since it is either malformed or otherwise incorrect.")
        proofs = []
        for method in methods:
            match method:
                case "password":
                    proofs.append(Proof(await self.password(identity.password.user), {TokenPayload.PASSWORD}))
                case "totp":
                    proofs.append(Proof(await self._passcode(identity.totp.user), {TokenPayload.TOTP}))
                case "token" | "openid" | "mapped":
                    session = await self._exchanged(getattr(identity, method).id)
                    through = (session.payload.idp_id, session.payload.protocol_id)
                    if method in _FEDERATED and not session.payload.idp_id:
                        raise refused("auth.federation")
                    proofs.append(Proof(session.user.id, {TokenPayload.TOKEN, *session.payload.methods}, session,
                                        session.credential, through))
                case "oauth1" if signed is not None:
                    token = (await self._signed.access_token(*signed)).access_token
                    proofs.append(Proof(token.authorizing_user_id, {TokenPayload.OAUTH1}, access_token=token))
                case _:
                    credential = await self._application_credential(identity.application_credential)
                    proofs.append(Proof(credential.user_id, {TokenPayload.APPLICATION_CREDENTIAL}, None, credential))
        proof = proofs[0]
        for other in proofs[1:]:
            if other.user_id != proof.user_id:
                raise refused("auth.users")
            proof = Proof(proof.user_id, proof.methods | other.methods, proof.session or other.session,
                          proof.credential or other.credential,
                          proof.federation if any(proof.federation) else other.federation,
                          proof.access_token or other.access_token)
        if receipt:
            proof.methods |= self._second.open(receipt, proof.user_id)
        if proof.credential is None and proof.access_token is None:     # who has one has logged in with all that it takes
            self._second.require(proof.user_id, {method: SPELLINGS.get(method, "") for method in proof.methods})
        return proof

    async def _exchanged(self, token: str) -> Session:
        """The session of a token that is exchanged for another. Raises NotFound, as Keystone does, for one that does not hold."""
        try:
            return await self._authenticator.session(token)
        except Unauthenticated as error:
            raise NotFound("token.missing", "Could not find token.") from error

    async def password(self, wanted: AuthUser) -> str:
        """The id of the user whose password this is. A hash made with old parameters is made anew.

        Raises Unauthenticated where it is wrong, has expired, or the user cannot log in; wrong ones count.
        """
        record = await self.right_password(wanted)
        if (error := expired(record.user, clock.now())) is not None:
            raise error
        return record.user.id

    async def right_password(self, wanted: AuthUser) -> UserRecord:
        """As password(), but the password may have expired."""
        record = self._user(wanted)
        encoded = record.password_hash if record is not None else ""
        right = await self._passwords.verify(encoded, wanted.password)
        if record is None or self._logins.closed(record):
            raise refused("auth.password")
        if not right:
            await self._logins.failed(record)
            raise refused("auth.password")
        await self._logins.succeeded(record)
        if self._passwords.outdated(encoded):
            await self._renew(record.user.id, encoded, await self._passwords.hash(wanted.password))
        return record

    async def _passcode(self, wanted: TotpUser) -> str:
        """The id of the user whose device shows this passcode. Each is taken once; wrong ones count as wrong passwords do."""
        record = self._user(AuthUser(id=wanted.id, name=wanted.name,
                                     domain=wanted.domain if wanted.HasField("domain") else None))
        if record is None or self._logins.closed(record):
            raise refused("auth.totp")
        step = self._second.step_of(record.user.id, wanted.passcode)
        if not step:
            await self._logins.failed(record)
            raise refused("auth.totp")
        await self._logins.succeeded(record, step)
        return record.user.id

    async def _renew(self, user_id: str, before: str, after: str) -> None:
        def decide(transaction: Transaction) -> None:
            record = transaction.get(USER, user_id)
            if record is not None and record.password_hash == before:
                record.password_hash = after
                transaction.put(USER, record)

        await self._db.transact(decide)

    async def _application_credential(self, wanted: ApplicationCredentialMethod) -> ApplicationCredential:
        identifier = wanted.id
        if not identifier:
            if not wanted.HasField("user"):
                raise Invalid("auth.credential", "Expecting to find id, or name and user, in application_credential.")
            user = self._user(wanted.user)
            identifier = id_by_name(self._db, "application credential", user.user.id, wanted.name) if user else ""
        record = self._db.get(CREDENTIAL, identifier) if identifier else None
        if not await self._passwords.verify(record.secret_hash if record else "", wanted.secret) or record is None:
            raise refused("auth.credential")
        return record.application_credential

    def _user(self, wanted: AuthUser) -> UserRecord | None:
        """The user of an id, or of a name in a domain; None where there is none."""
        if wanted.id:
            return self._db.get(USER, wanted.id)
        if not wanted.name:
            raise Invalid("auth.user", "Expecting to find id or name in user. The server could not comply with the request "
                                       "since it is either malformed or otherwise incorrect.")
        if not wanted.HasField("domain"):
            raise Invalid("auth.user.domain", "Expecting to find domain in user. The server could not comply with the "
                                              "request since it is either malformed or otherwise incorrect.")
        domain_id = self._domain(wanted.domain.id, wanted.domain.name)
        identifier = id_by_name(self._db, "user", domain_id, wanted.name) if domain_id else ""
        return self._db.get(USER, identifier) if identifier else None

    def _domain(self, identifier: str, name: str) -> str:
        return identifier or (id_by_name(self._db, "domain", "", name) if name else "")

    # Scope

    def scope(self, wanted: Value | None, proof: Proof) -> tuple[Scope, bool]:
        """What the token shall be for, and whether the caller said so. Raises Invalid for a shape that is none."""
        if proof.credential is not None:
            return Scope(project_id=proof.credential.project_id), True
        if proof.access_token is not None:
            return Scope(project_id=proof.access_token.project_id), True
        if wanted is None or wanted.WhichOneof("kind") in (None, "null_value"):
            return self._usual(proof.user_id), False
        if wanted.string_value == "unscoped":
            return Scope(), True
        content: Any = MessageToDict(wanted)
        if not isinstance(content, dict) or len(content) != 1:
            raise _malformed("exactly one of project, domain and system")
        (what, value), = content.items()
        if not isinstance(value, dict):
            raise _malformed(f"an object in {what}")
        match what:
            case "system":
                if value.get("all") is not True:
                    raise _malformed('{"all": true} in system')
                return Scope(system=True), True
            case "domain":
                named = _reference(value)
                return Scope(domain_id=self._domain(named.id, named.name) or "-"), True
            case "project":
                return Scope(project_id=self._project(value) or "-"), True
            case "OS-TRUST:trust":
                return Scope(trust_id=_reference(value).id or "-"), True
        raise _malformed("project, domain or system")

    def _project(self, wanted: dict) -> str:
        if wanted.get("id"):
            return _reference(wanted).id
        domain = wanted.get("domain")
        if not isinstance(domain, dict):
            raise _malformed("an id, or a name and a domain, in project")
        named, place = _reference({key: value for key, value in wanted.items() if key != "domain"}), _reference(domain)
        domain_id = self._domain(place.id, place.name)
        if not domain_id:
            return ""
        found = id_by_name(self._db, "project", domain_id, named.name)
        acting = self._db.get(PROJECT, domain_id)
        if not found and acting is not None and acting.project.name == named.name:
            return domain_id          # the project that acts as that domain
        return found

    def _usual(self, user_id: str) -> Scope:
        record = self._db.get(USER, user_id)
        return Scope(project_id=record.user.default_project_id if record else "")


def _reference(value: dict) -> AuthDomain:
    identifier, name = value.get("id", ""), value.get("name", "")
    if not isinstance(identifier, str) or not isinstance(name, str) or not (identifier or name):
        raise _malformed("an id or a name, as text")
    return AuthDomain(id=identifier, name=name)


def _malformed(expected: str) -> Invalid:
    return Invalid("auth.scope", f"Invalid input for field 'auth/scope': expecting to find {expected}. The server could not "
                                 f"comply with the request since it is either malformed or otherwise incorrect.")


