"""Serves EC2 credentials and issues tokens for what was signed with them.

A pair of keys that was made with an application credential or a trust gives what that one gives, and ends with it.
"""
import json
import secrets
from datetime import UTC, datetime

from google.protobuf.empty_pb2 import Empty

from control.identity import access, signatures
from control.identity.authentication import Proof, Scope
from control.identity.credentials import EC2, id_of_access, keep, keys_of, opened
from control.identity.holdings import roles_on
from control.identity.issuing import Issuer
from control.identity.model import CREDENTIAL, PROJECT, SECRET, TRUST, USER, missing, require
from control.identity.sessions import TokenAuthenticator, refused
from control.identity.tokens import catalog_wanted
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.rpc import Call
from protos.identity.v1 import ec2_pb2 as pb
from protos.identity.v1.credentials_pb2 import Credential
from protos.identity.v1.records_pb2 import TokenPayload
from protos.identity.v1.tokens_pb2 import IssueTokenResponse

#: Parameters and headers of a signed request that are looked at.
MAX_PARAMETERS = 1000


class Ec2Credentials:
    """identity.v1.Ec2Credentials."""

    def __init__(self, db: Database, authenticator: TokenAuthenticator, issuer: Issuer):
        self._db = db
        self._authenticator = authenticator
        self._issuer = issuer

    async def CreateEc2Credential(self, request: pb.CreateEc2CredentialRequest, call: Call) -> pb.CreateEc2CredentialResponse:
        self._require_own(call, request.user_id, "ec2_create_credential", writes=True)
        payload = (await self._authenticator.session(call.token)).payload
        if payload.access_token_id:
            raise access.forbidden("identity.ec2.access_token", "a token from an access token cannot make EC2 credentials")
        require(self._db, USER, request.user_id)
        require(self._db, PROJECT, request.tenant_id)
        narrow = {"trust_id": payload.trust_id, "app_cred_id": payload.application_credential_id}
        narrow = {name: value for name, value in narrow.items() if value}
        if narrow and (request.user_id, request.tenant_id) != (payload.user_id, payload.project_id):
            raise access.forbidden("identity.ec2.scope", "the token is for one user in one project alone")
        if not narrow and not roles_on(self._db, request.user_id, "project", request.tenant_id):
            raise access.forbidden("identity.ec2.roles", "the user has no role in the project")
        keys = {"access": secrets.token_hex(16), "secret": secrets.token_hex(16), **narrow}
        credential = Credential(id=id_of_access(keys["access"]), user_id=request.user_id, project_id=request.tenant_id, type=EC2,
                                blob=json.dumps(keys))
        await self._db.transact(lambda transaction: keep(transaction, credential))
        return pb.CreateEc2CredentialResponse(credential=_shown(credential))

    async def ListEc2Credentials(self, request: pb.ListEc2CredentialsRequest, call: Call) -> pb.ListEc2CredentialsResponse:
        self._require_own(call, request.user_id, "ec2_list_credentials")
        require(self._db, USER, request.user_id)
        held = [record.credential.id for record in self._db.cache.by(SECRET, "user", request.user_id)
                if record.credential.type == EC2]
        return pb.ListEc2CredentialsResponse(credentials=[_shown(opened(self._db, identifier)) for identifier in held])

    async def GetEc2Credential(self, request: pb.GetEc2CredentialRequest, call: Call) -> pb.GetEc2CredentialResponse:
        self._require_own(call, request.user_id, "ec2_get_credential")
        return pb.GetEc2CredentialResponse(credential=_shown(self._of(self._db, request.user_id, request.access)))

    async def DeleteEc2Credential(self, request: pb.DeleteEc2CredentialRequest, call: Call) -> Empty:
        self._require_own(call, request.user_id, "ec2_delete_credential", writes=True)

        def decide(transaction: Transaction) -> None:
            transaction.delete(SECRET, self._of(transaction, request.user_id, request.access).id)

        await self._db.transact(decide)
        return Empty()

    async def IssueEc2Token(self, request: pb.IssueEc2TokenRequest, call: Call) -> IssueTokenResponse:
        _require_service(call, "ec2tokens")
        signed = request.credentials if request.HasField("credentials") else request.ec2_credentials
        params, headers = _texts(signed.params), _texts(signed.headers)
        credential = self._signer(signed.access)
        secret = keys_of(credential).get("secret", "") if credential else ""
        right = signatures.ec2(secret, signed.signature, verb=signed.verb, host=signed.host, path=signed.path, params=params,
                               headers=headers, body_hash=signed.body_hash)
        if credential is None or not right or not signatures.is_fresh(params, headers, datetime.now(UTC)):
            raise refused("auth.signature")
        return await self._issue(credential, catalog=catalog_wanted(request.query))

    async def IssueS3Token(self, request: pb.IssueS3TokenRequest, call: Call) -> IssueTokenResponse:
        _require_service(call, "s3tokens")
        try:
            signed = signatures.decoded(request.credentials.token)
        except ValueError as error:
            raise Invalid("identity.s3.token", "Invalid input for field 'credentials/token': base64 is expected.") from error
        credential = self._signer(request.credentials.access)
        secret = keys_of(credential).get("secret", "") if credential else ""
        right = signatures.s3(secret, request.credentials.signature, signed)
        if credential is None or not right or not signatures.is_fresh_text(signed, datetime.now(UTC)):
            raise refused("auth.signature")
        return await self._issue(credential, catalog=catalog_wanted(request.query))

    async def _issue(self, credential: Credential, *, catalog: bool) -> IssueTokenResponse:
        """A token for whoever signed with a credential: no more than what the keys were made with."""
        keys = keys_of(credential)
        proof = Proof(credential.user_id, {TokenPayload.EC2_CREDENTIAL})
        scope = Scope(project_id=credential.project_id)
        if trust_id := keys.get("trust_id"):
            trust = self._db.get(TRUST, str(trust_id))
            if trust is None:
                raise refused("auth.signature")
            proof.user_id, scope = trust.trustee_user_id, Scope(trust_id=trust.id)
        elif keys.get("app_cred_id"):
            record = self._db.get(CREDENTIAL, str(keys["app_cred_id"]))
            if record is None:
                raise refused("auth.signature")
            proof.credential = record.application_credential
        return await self._issuer.issue(proof, scope, explicit=True, catalog=catalog)

    def _signer(self, key: str) -> Credential | None:
        record = self._db.get(SECRET, id_of_access(key))
        if record is None or record.credential.type != EC2:
            return None
        credential = opened(self._db, record.credential.id)
        return credential if keys_of(credential).get("access") == key else None       # a key that was replaced signs nothing

    def _of(self, reader: Database | Transaction, user_id: str, key: str) -> Credential:
        """A user's credential with an access key. Raises NotFound."""
        record = reader.get(SECRET, id_of_access(key))
        if record is None or record.credential.user_id != user_id or record.credential.type != EC2:
            raise missing("credential", key)
        return opened(reader, record.credential.id)

    def _require_own(self, call: Call, user_id: str, action: str, *, writes: bool = False) -> None:
        if call.caller.user_id != user_id and not (call.caller.is_admin if writes else access.reads_all(call.caller)):
            raise access.denied(action)


def _require_service(call: Call, action: str) -> None:
    """Whoever saw a signed request could otherwise make it a token, which is worth more."""
    if not call.caller.is_admin and "service" not in call.caller.roles:
        raise access.denied(action)


def _texts(values) -> dict[str, str]:
    """Parameters or headers as texts: JSON may have carried numbers."""
    if len(values) > MAX_PARAMETERS:
        raise Invalid("identity.ec2.parameters", f"Invalid input for field 'credentials': at most {MAX_PARAMETERS} parameters.")
    found = {}
    for name, value in values.items():
        if value.WhichOneof("kind") == "number_value":
            number = value.number_value
            found[name] = str(int(number) if number.is_integer() else number)
        else:
            found[name] = value.string_value
    return found


def _shown(credential: Credential) -> pb.Ec2Credential:
    keys = keys_of(credential)
    shown = pb.Ec2Credential(access=keys.get("access", ""), secret=keys.get("secret", ""), user_id=credential.user_id,
                             tenant_id=credential.project_id)
    if keys.get("trust_id"):
        shown.trust_id = keys["trust_id"]
    shown.links.self = f"/users/{credential.user_id}/credentials/OS-EC2/{shown.access}"
    return shown
