"""Serves logins in browsers: the authorization code flow with PKCE, state and nonce.

What a login that was started has to remember is sealed in a cookie of the browser's, so any replica can finish it, and only
that browser can. The token goes to no page but those that the operator trusts.
"""
import base64
import hashlib
import hmac
import html
import logging
import secrets
import time
from typing import Any
from urllib.parse import urlencode

from control.identity.federation.logins import FederatedLogins
from control.identity.federation.providers import Providers
from control.identity.model import IDENTITY_PROVIDER, PROTOCOL
from control.identity.sealing import Sealer
from control.identity.sessions import refused
from control.kernel.database import Database
from control.kernel.errors import Invalid, Unauthenticated
from control.kernel.rpc import Call
from protos.identity.v1 import web_logins_pb2 as pb
from protos.identity.v1.records_pb2 import TokenPayload, WebLogin

log = logging.getLogger(__name__)

#: Where a provider sends browsers back to, below the cloud's root; it has to be registered there.
CALLBACK = "/v3/auth/OS-FEDERATION/redirect"

#: Seconds that a login may take.
LASTS = 600

_COOKIE = "brume-login-"
_SCRIPT = "document.forms[0].submit()"
_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
_POLICY = f"default-src 'none'; base-uri 'none'; frame-ancestors 'none'; script-src 'sha256-{_HASH}'"
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Logging in</title></head><body>
<form method="post" action="{origin}"><input type="hidden" name="token" value="{token}">
<noscript><button type="submit">Go on</button></noscript></form>
<script>{script}</script></body></html>
"""


class WebLogins:
    """identity.v1.WebLogins."""

    def __init__(self, db: Database, logins: FederatedLogins, providers: Providers):
        self._db = db
        self._logins = logins
        self._providers = providers
        self._sealer = Sealer(db)

    async def StartWebLogin(self, request: pb.StartWebLoginRequest, call: Call) -> pb.StartWebLoginResponse:
        if not request.origin or not call.base_url:
            raise Invalid("federation.origin", "Request must have an origin query parameter")
        idp_id = request.idp_id or self._meant(request.protocol_id, request.origin)
        self._logins.reached(idp_id, request.protocol_id)
        tokens = self._providers.get(idp_id)
        if tokens is None or request.origin not in tokens.provider.settings.trusted_dashboards:
            log.warning("identity provider %s: %r is not among its trusted_dashboards", idp_id, request.origin[:200])
            raise Unauthenticated("federation.origin", f"{request.origin[:200]} is not a trusted dashboard host")
        login = WebLogin(idp_id=idp_id, protocol_id=request.protocol_id, origin=request.origin, state=secrets.token_urlsafe(16),
                         nonce=secrets.token_urlsafe(16), verifier=secrets.token_urlsafe(32),
                         redirect_uri=call.base_url + CALLBACK, expires_at=int(time.time()) + LASTS)
        settings = tokens.provider.settings
        challenge = base64.urlsafe_b64encode(hashlib.sha256(login.verifier.encode()).digest()).decode().rstrip("=")
        query = {"response_type": "code", "client_id": settings.client_id, "redirect_uri": login.redirect_uri,
                 "scope": settings.scope, "state": login.state, "nonce": login.nonce, "code_challenge": challenge,
                 "code_challenge_method": "S256"}
        page = await tokens.provider.endpoint("authorization_endpoint")
        return pb.StartWebLoginResponse(
            location=f"{page}{'&' if '?' in page else '?'}{urlencode(query)}", cache_control="no-store",
            set_cookie=_cookie(login.state, self._sealer.seal(TokenPayload(web_login=login)), LASTS, call))

    async def FinishWebLogin(self, request: pb.FinishWebLoginRequest, call: Call) -> pb.FinishWebLoginResponse:
        login = self._started(request)
        provider, protocol = self._logins.reached(login.idp_id, login.protocol_id)
        tokens = self._providers.get(login.idp_id)
        if tokens is None or login.origin not in tokens.provider.settings.trusted_dashboards:
            raise refused("auth.federation.settings")
        if request.error or not request.code:
            raise _refused(login, f"the provider says {request.error[:80]!r}")
        if request.iss and request.iss != tokens.provider.settings.issuer:
            raise _refused(login, "another issuer answers")
        status, answer = await tokens.provider.ask(
            "POST", await tokens.provider.endpoint("token_endpoint"), as_client=True,
            form={"grant_type": "authorization_code", "code": request.code, "redirect_uri": login.redirect_uri,
                  "code_verifier": login.verifier})
        if status != 200 or not isinstance(answer.get("id_token"), str):
            raise _refused(login, f"the provider answers {status} {str(answer.get('error', ''))[:80]!r} to the code")
        claims: dict[str, Any] = await tokens.signed.claims(answer["id_token"], (tokens.provider.settings.client_id,))
        if not hmac.compare_digest(str(claims.get("nonce", "")).encode(), login.nonce.encode()):
            raise _refused(login, "the ID token is for another login")
        if claims.get("azp", tokens.provider.settings.client_id) != tokens.provider.settings.client_id:
            raise _refused(login, "the ID token was made for another client")
        if isinstance(answer.get("access_token"), str):
            claims = await tokens.completed(answer["access_token"], claims)
        issued = await self._logins.log_in(provider, protocol, claims)
        page = _PAGE.format(origin=html.escape(login.origin), token=html.escape(issued.subject_token), script=_SCRIPT)
        return pb.FinishWebLoginResponse(page=page, cache_control="no-store", content_security_policy=_POLICY,
                                         referrer_policy="no-referrer", set_cookie=_cookie(login.state, "", 0, call))

    def _meant(self, protocol_id: str, origin: str) -> str:
        """The only provider that has a protocol and trusts an origin. Raises Invalid where there are none or several."""
        found = [record.identity_provider.id for record in self._db.cache.all(IDENTITY_PROVIDER)
                 if (tokens := self._providers.get(record.identity_provider.id)) is not None
                 and origin in tokens.provider.settings.trusted_dashboards and record.identity_provider.enabled
                 and self._db.get(PROTOCOL, record.identity_provider.id, protocol_id) is not None]
        if len(found) != 1:
            raise Invalid("federation.provider", f"{len(found)} identity providers have the protocol {protocol_id[:64]!r} and "
                                                 "trust the origin: name one, with /identity_providers/ID/protocols/ID/websso")
        return found[0]

    def _started(self, request: pb.FinishWebLoginRequest) -> WebLogin:
        """The login that a browser comes back from. Raises Unauthenticated unless it is the browser that was sent."""
        name = _name(request.state)
        for part in request.cookie.split(";")[:100]:
            key, _, value = part.strip().partition("=")
            if key == name:
                login = self._sealer.open(value).web_login
                if hmac.compare_digest(login.state.encode(), request.state.encode()) and login.expires_at > time.time():
                    return login
        raise refused("auth.federation.state")


def _refused(login: WebLogin, why: str) -> Unauthenticated:
    log.info("identity provider %s: a login in a browser fails: %s", login.idp_id, why)
    return refused("auth.federation")


def _name(state: str) -> str:
    """The cookie of one login: a browser may be at several."""
    return _COOKIE + hashlib.sha256(state.encode()).hexdigest()[:16]


def _cookie(state: str, value: str, seconds: int, call: Call) -> str:
    secure = "; Secure" if call.base_url.startswith("https:") else ""
    return f"{_name(state)}={value}; Max-Age={seconds}; Path={CALLBACK}; HttpOnly; SameSite=Lax{secure}"
