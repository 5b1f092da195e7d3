"""Serves delegated access (OAuth 1.0a): request tokens, what users authorize, and the access tokens that come of it.

A request token is exchanged once, in the commit that makes the access token. What consumers can do with that is never more
than what the user could, and what the user authorized.
"""
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from control.identity import access
from control.identity.holdings import roles_on
from control.identity.model import ACCESS_TOKEN, CONSUMER, PROJECT, REQUEST_TOKEN, ROLE, USER, missing, require
from control.identity.roles import listed
from control.identity.sessions import refused
from control.identity.signed_requests import SignedHeaders, SignedRequests
from control.identity.vault import seal
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, Unauthenticated
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import oauth1_pb2 as pb
from protos.identity.v1.oauth1_records_pb2 import AccessTokenRecord, RequestToken
from protos.identity.v1.roles_pb2 import GetRoleResponse, ListRolesResponse, Role

#: How long a consumer may take to exchange its request token, and how long an access token lasts.
REQUEST_LIFETIME, ACCESS_LIFETIME = timedelta(hours=8), timedelta(days=1)

#: Request tokens of a consumer, access tokens of a user, and roles of one.
MAX_REQUESTS, MAX_TOKENS, MAX_ROLES = 1000, 1000, 100


class AccessTokens:
    """identity.v1.AccessTokens."""

    def __init__(self, db: Database):
        self._db = db
        self._signed = SignedRequests(db)

    async def CreateRequestToken(self, request: pb.CreateRequestTokenRequest, call: Call) -> pb.CreateRequestTokenResponse:
        signed = self._signed.of_consumer(SignedHeaders(request.authorization, request.host, request.query), call)
        if not request.requested_project_id:
            raise Invalid("identity.request_token.project", "Expecting to find Requested-Project-Id in the request's headers.")
        secret = secrets.token_hex(32)
        token = RequestToken(id=uuid.uuid4().hex, consumer_id=signed.consumer_id, project_id=request.requested_project_id,
                             expires_at=_after(REQUEST_LIFETIME))

        def decide(transaction: Transaction) -> None:
            signed.take(transaction)
            require(transaction, PROJECT, token.project_id)
            transaction.guard_exists(PROJECT, token.project_id)
            if _sweep(transaction, REQUEST_TOKEN, "consumer", token.consumer_id) >= MAX_REQUESTS:
                raise access.forbidden("identity.request_token.limit",
                                       f"a consumer has at most {MAX_REQUESTS} request tokens that were not exchanged")
            token.sealed_secret = seal(transaction, secret)
            transaction.put(REQUEST_TOKEN, token)

        await self._db.transact(decide)
        return pb.CreateRequestTokenResponse(form=_form(token.id, secret, token.expires_at))

    async def AuthorizeRequestToken(self, request: pb.AuthorizeRequestTokenRequest,
                                    call: Call) -> pb.AuthorizeRequestTokenResponse:
        access.require_undelegated(call, "authorize a request token")
        user_id, verifier = call.caller.user_id, secrets.token_urlsafe(12)

        def decide(transaction: Transaction) -> None:
            token = require_request(transaction, request.request_token_id)
            if token.authorizing_user_id not in ("", user_id):
                raise access.forbidden("identity.request_token.user", "another user has authorized the request token")
            token.authorizing_user_id = user_id
            token.verifier_hash = hashlib.sha256(verifier.encode()).digest()
            del token.role_ids[:]
            token.role_ids.extend(self._authorized(request.roles, user_id, token.project_id))
            transaction.guard_exists(USER, user_id)
            transaction.put(REQUEST_TOKEN, token)

        await self._db.transact(decide)
        return pb.AuthorizeRequestTokenResponse(token=pb.AuthorizedRequestToken(oauth_verifier=verifier))

    async def CreateAccessToken(self, request: pb.CreateAccessTokenRequest, call: Call) -> pb.CreateAccessTokenResponse:
        signed = self._signed.with_request_token(SignedHeaders(request.authorization, request.host, request.query), call)
        verifier_hash = hashlib.sha256(signed.verifier.encode()).digest()
        identifier, secret = uuid.uuid4().hex, secrets.token_hex(32)

        def decide(transaction: Transaction) -> pb.AccessToken:
            signed.take(transaction)
            wish = require_request(transaction, signed.token_id)
            if wish.consumer_id != signed.consumer_id or not hmac.compare_digest(wish.verifier_hash, verifier_hash):
                raise refused("auth.signature")
            token = pb.AccessToken(id=identifier, consumer_id=wish.consumer_id, project_id=wish.project_id,
                                   authorizing_user_id=wish.authorizing_user_id, expires_at=_after(ACCESS_LIFETIME))
            require(transaction, USER, token.authorizing_user_id)
            require(transaction, PROJECT, token.project_id)
            transaction.guard_exists(USER, token.authorizing_user_id)
            transaction.guard_exists(PROJECT, token.project_id)
            if _sweep(transaction, ACCESS_TOKEN, "user", token.authorizing_user_id) >= MAX_TOKENS:
                raise access.forbidden("identity.access_token.limit", f"a user has at most {MAX_TOKENS} access tokens")
            transaction.delete(REQUEST_TOKEN, wish.id)
            transaction.put(ACCESS_TOKEN, AccessTokenRecord(access_token=token, role_ids=wish.role_ids,
                                                            sealed_secret=seal(transaction, secret)))
            return token

        token = await self._db.transact(decide)
        return pb.CreateAccessTokenResponse(form=_form(token.id, secret, token.expires_at))

    async def ListAccessTokens(self, request: pb.ListAccessTokensRequest, call: Call) -> pb.ListAccessTokensResponse:
        access.require_undelegated(call, "list access tokens")
        require(self._db, USER, request.user_id)
        held = [record.access_token for record in self._db.cache.by(ACCESS_TOKEN, "user", request.user_id)
                if not _is_over(record.access_token.expires_at)]
        rows, marker = page(select(held, request.filters), limit=request.limit, marker=request.marker)
        return pb.ListAccessTokensResponse(access_tokens=map(_shown, rows), next_page_marker=marker)

    async def GetAccessToken(self, request: pb.GetAccessTokenRequest, call: Call) -> pb.GetAccessTokenResponse:
        return pb.GetAccessTokenResponse(access_token=_shown(self._of(self._db, request).access_token))

    async def DeleteAccessToken(self, request: pb.DeleteAccessTokenRequest, call: Call) -> Empty:
        access.require_undelegated(call, "delete an access token")

        def decide(transaction: Transaction) -> None:
            transaction.delete(ACCESS_TOKEN, self._of(transaction, request).access_token.id)

        await self._db.transact(decide)
        return Empty()

    async def ListAccessTokenRoles(self, request: pb.ListAccessTokenRolesRequest, call: Call) -> ListRolesResponse:
        return listed(self._roles(request))

    async def GetAccessTokenRole(self, request: pb.GetAccessTokenRoleRequest, call: Call) -> GetRoleResponse:
        for role in self._roles(request):
            if role.id == request.role_id:
                return GetRoleResponse(role=role)
        raise missing("role", request.role_id)

    def _roles(self, request: Any) -> list[Role]:
        roles = (self._db.get(ROLE, role_id) for role_id in self._of(self._db, request).role_ids)
        return [role for role in roles if role is not None]

    def _of(self, reader: Database | Transaction, request: Any) -> AccessTokenRecord:
        """A user's access token. Raises NotFound."""
        record = reader.get(ACCESS_TOKEN, request.access_token_id)
        if record is None or record.access_token.authorizing_user_id != request.user_id or _is_over(
                record.access_token.expires_at):
            raise missing("access token", request.access_token_id)
        return record

    def _authorized(self, wanted: Iterable[pb.AuthorizedRole], user_id: str, project_id: str) -> list[str]:
        """Ids of the roles that are wanted. Raises Unauthenticated, as Keystone does, for one that the user has not."""
        held = roles_on(self._db, user_id, "project", project_id)
        by_id, by_name = {role.id: role.id for role in held}, {role.name: role.id for role in held}
        found = [by_id.get(role.id) if role.id else by_name.get(role.name) for role in wanted]
        if not 0 < len(found) <= MAX_ROLES:
            raise Invalid("identity.request_token.roles", f"Invalid input for field 'roles': 1 to {MAX_ROLES} are expected.")
        if None in found:
            raise Unauthenticated("identity.request_token.roles", "authorizing user does not have role required")
        return list(dict.fromkeys(role_id for role_id in found if role_id))


def require_request(transaction: Transaction, identifier: str) -> RequestToken:
    """A request token that can still be authorized or exchanged. Raises NotFound; Unauthenticated where it is too late."""
    token = transaction.get(REQUEST_TOKEN, identifier)
    if token is None or transaction.get(CONSUMER, token.consumer_id) is None:
        raise missing("request token", identifier)
    if _is_over(token.expires_at):
        raise Unauthenticated("identity.request_token.expired", "Request token is expired")
    return token


def _sweep(transaction: Transaction, kind: Any, index: str, value: str) -> int:
    """How many tokens of a consumer or a user there are, after some of those that are over have gone."""
    rows = transaction.rows(kind, index, value)
    over = [row for row in rows if _is_over(row.access_token.expires_at if kind is ACCESS_TOKEN else row.expires_at)]
    for row in over[:20]:
        transaction.delete(kind, *kind.id_of(row))
    return len(rows) - len(over)


def _is_over(expires_at: Timestamp) -> bool:
    return expires_at.ToMicroseconds() <= clock.now().ToMicroseconds()


def _after(lifetime: timedelta) -> Timestamp:
    at = Timestamp()
    at.FromDatetime(clock.now().ToDatetime() + lifetime)
    return at


def _form(key: str, secret: str, expires_at: Timestamp) -> str:
    """What OAuth answers with; the time in Keystone's format."""
    expires = f"{expires_at.ToDatetime():%Y-%m-%dT%H:%M:%S.%fZ}"
    return urlencode({"oauth_token": key, "oauth_token_secret": secret, "oauth_expires_at": expires})


def _shown(token: pb.AccessToken) -> pb.AccessToken:
    shown = pb.AccessToken()
    shown.CopyFrom(token)
    shown.links.self = f"/users/{token.authorizing_user_id}/OS-OAUTH1/access_tokens/{token.id}"
    shown.links.roles = f"{shown.links.self}/roles"
    return shown
