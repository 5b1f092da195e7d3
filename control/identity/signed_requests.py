"""Whether an HTTP request was signed by a consumer, as OAuth 1.0a (RFC 5849) describes; oauthlib does the arithmetic.

A signed request is taken once: its mark is written in the commit that acts on it, so a replica that has not seen it yet
loses that commit.
"""
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from oauthlib.oauth1 import SIGNATURE_HMAC_SHA1, SIGNATURE_HMAC_SHA256, RequestValidator, SignatureOnlyEndpoint

from control.identity.model import ACCESS_TOKEN, CONSUMER, REQUEST_TOKEN, SIGNED_REQUEST
from control.identity.sessions import refused
from control.identity.vault import unseal
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.rpc import Call
from protos.brume.v1.options_pb2 import QueryParameter
from protos.identity.v1.oauth1_records_pb2 import AccessTokenRecord, SignedRequestMark

#: Seconds that a request's time may be away from this machine's clock.
FRESH = 600

#: Characters of the header that are looked at.
MAX_HEADER = 4096

#: Expired marks that one request sweeps; more than one each, so that they never pile up.
SWEPT = 20

SecretOf = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class SignedHeaders:
    """What a request says of its signature."""

    authorization: str
    host: str
    query: Iterable[QueryParameter]


@dataclass(frozen=True, slots=True)
class Signed:
    """A request whose signature is right."""

    consumer_id: str
    token_id: str           # of a request token or an access token; "" where it was signed without one
    verifier: str
    mark: SignedRequestMark

    def take(self, transaction: Transaction) -> None:
        """Act on the request in this transaction. Raises Unauthenticated where one has acted on it before."""
        if transaction.get(SIGNED_REQUEST, self.mark.id) is not None:
            raise refused("auth.signature")
        present = clock.now().ToMicroseconds()
        expired = [mark.id for mark in transaction.rows(SIGNED_REQUEST) if mark.expires_at.ToMicroseconds() < present]
        for identifier in expired[:SWEPT]:
            transaction.delete(SIGNED_REQUEST, identifier)
        transaction.put(SIGNED_REQUEST, self.mark)
        transaction.guard_exists(CONSUMER, self.consumer_id)


class SignedRequests:
    """Judges signatures with the secrets that the store has."""

    def __init__(self, db: Database):
        self._db = db

    def of_consumer(self, headers: SignedHeaders, call: Call) -> Signed:
        """A request that its consumer alone signed. Raises Unauthenticated where it did not."""
        return self._check(headers, call, lambda token: None)

    def with_request_token(self, headers: SignedHeaders, call: Call) -> Signed:
        """A request that was signed with a request token, too. Raises Unauthenticated where it was not."""
        def secret_of(token_id: str) -> str | None:
            record = self._db.get(REQUEST_TOKEN, token_id)
            return unseal(self._db, record.sealed_secret) if record is not None else None

        return self._check(headers, call, secret_of)

    async def access_token(self, headers: SignedHeaders, call: Call) -> AccessTokenRecord:
        """The access token that a login was signed with. Raises Unauthenticated where it was not, or was used before."""
        def secret_of(token_id: str) -> str | None:
            record = self._db.get(ACCESS_TOKEN, token_id)
            return unseal(self._db, record.sealed_secret) if record is not None else None

        signed = self._check(headers, call, secret_of)
        record = self._db.get(ACCESS_TOKEN, signed.token_id)
        if record is None or record.access_token.consumer_id != signed.consumer_id:
            raise refused("auth.signature")
        await self._db.transact(signed.take)
        return record

    def _check(self, headers: SignedHeaders, call: Call, token_secret_of: SecretOf) -> Signed:
        if not call.base_url:
            raise Invalid("auth.signature.http", "Signed requests are HTTP requests: a native call has nothing to sign.")
        if not headers.authorization.lower().startswith("oauth ") or len(headers.authorization) > MAX_HEADER:
            raise refused("auth.signature")
        endpoint = SignatureOnlyEndpoint(_Secrets(self._consumer_secret, token_secret_of))
        for url in _urls(headers, call):
            right, request = endpoint.validate_request(url, call.verb, headers={"Authorization": headers.authorization})
            if right:
                made = f"{request.client_key}/{request.resource_owner_key or ''}/{request.timestamp}/{request.nonce}"
                mark = SignedRequestMark(id=hashlib.sha256(made.encode()).hexdigest())
                mark.expires_at.seconds = int(request.timestamp) + FRESH + 1
                return Signed(request.client_key, request.resource_owner_key or "", request.verifier or "", mark)
        raise refused("auth.signature")

    def _consumer_secret(self, consumer_id: str) -> str | None:
        record = self._db.get(CONSUMER, consumer_id)
        return unseal(self._db, record.sealed_secret) if record is not None else None


def _urls(headers: SignedHeaders, call: Call) -> list[str]:
    """What the client may have written to reach us: the cloud's public name, or the host that it says; keystoneauth signs
    without the query."""
    bases = [call.base_url, f"{urlsplit(call.base_url).scheme}://{headers.host}"]
    pairs = [(parameter.key, value) for parameter in headers.query for value in parameter.values or [""]]
    queries = [f"?{urlencode(pairs)}", ""] if pairs else [""]
    return list(dict.fromkeys(base + call.paths[-1] + query for base in bases for query in queries))


class _Secrets(RequestValidator):
    """What oauthlib asks while it judges one request. A key that nobody has costs the same work as one with a wrong secret."""

    allowed_signature_methods = (SIGNATURE_HMAC_SHA1, SIGNATURE_HMAC_SHA256)
    client_key_length = nonce_length = (1, 255)
    timestamp_lifetime = FRESH
    enforce_ssl = False                # the listener's business
    dummy_client = "nobody"
    safe_characters = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~")

    def __init__(self, consumer_secret_of: SecretOf, token_secret_of: SecretOf):
        super().__init__()
        self._consumer_secret_of = consumer_secret_of
        self._token_secret_of = token_secret_of

    def validate_timestamp_and_nonce(self, *args: object, **kwargs: object) -> bool:
        return True                    # Signed.take() does it, on all replicas

    def validate_client_key(self, client_key: str, request: object) -> bool:
        token = getattr(request, "resource_owner_key", None)
        return self._consumer_secret_of(client_key) is not None and (not token or self._token_secret_of(token) is not None)

    def get_client_secret(self, client_key: str, request: object) -> str:
        return self._consumer_secret_of(client_key) or "nobody's"

    def get_access_token_secret(self, client_key: str, token: str, request: object) -> str:
        return self._token_secret_of(token) or "nobody's"
