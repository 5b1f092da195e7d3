"""Whose a provider's token is: three ways to judge one, each of which gives the claims of a token that is good here.

Whatever is wrong with a token, the caller hears the same; the log says what it was, without the token.
"""
import logging
import re
import time
from typing import Any, Protocol

import jwt

from control.identity.federation.provider import Provider
from control.identity.sessions import refused
from control.kernel.errors import Unauthenticated

log = logging.getLogger(__name__)

#: Characters of a token that is looked at.
MAX_TOKEN = 16 * 1024

_TOKEN = re.compile(r"[A-Za-z0-9\-._~+/]+=*", re.ASCII)

#: Kinds of JWTs that say who somebody is; others (of a logout, of a proof) are signed with the same keys.
_TYPES = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})

_DECODER = jwt.PyJWT(options={"enforce_minimum_key_length": True})


class Verifier(Protocol):
    """One way to judge tokens."""

    async def claims(self, token: str) -> dict[str, Any]:
        """What a token says: "iss", and whose it is: "sub", or "client_id" for a program's own. May be repeated.

        Raises Unauthenticated for what is no token, or none that is good here now; Unavailable where that cannot be known.
        """


class SignedTokens:
    """JWTs, by the provider's signature."""

    def __init__(self, provider: Provider):
        self._provider = provider

    async def claims(self, token: str, audiences: tuple[str, ...] = ()) -> dict[str, Any]:
        """As Verifier has it. `audiences`: whom it has to be for; none: whom the settings say."""
        settings = self._provider.settings
        try:
            header = jwt.get_unverified_header(token)
            kid, algorithm = header.get("kid", ""), header.get("alg")
            if algorithm not in settings.algorithms:
                raise self._no("its signature is of a kind that is not allowed")
            if str(header.get("typ", "")).lower() not in _TYPES:
                raise self._no("it is another kind of JWT")
            key = await self._provider.key(kid, algorithm)
            if key is None:
                raise self._no("the provider has no such key")
            claims = _DECODER.decode(token, key, algorithms=[algorithm], audience=audiences or settings.audiences,
                                     issuer=settings.issuer, leeway=settings.leeway,
                                     options={"require": ["iss", "sub", "aud", "exp"]})
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise self._no(str(error)) from error
        if "cnf" in claims:
            raise self._no("it is bound to a key of its holder's, which nobody has shown")
        return claims

    def _no(self, why: str) -> Unauthenticated:
        return _refused(self._provider, why)


class Introspection:
    """Tokens of any form, by asking the provider (RFC 7662)."""

    def __init__(self, provider: Provider):
        self._provider = provider

    async def claims(self, token: str) -> dict[str, Any]:
        provider, settings = self._provider, self._provider.settings
        status, claims = await provider.ask("POST", await provider.endpoint("introspection_endpoint"), as_client=True,
                                            form={"token": token, "token_type_hint": "access_token"})
        if status != 200:
            raise provider.unavailable(f"introspection answers {status}: are client_id and client_secret_file right?")
        if claims.get("active") is not True:
            raise _refused(provider, "the provider says that it is not active")
        now = time.time()
        if not _at_most(now - settings.leeway, claims.get("exp")) or not _at_most(claims.get("nbf"), now + settings.leeway):
            raise _refused(provider, "its time has not come or is over")
        _check_origin(provider, claims)
        audience = claims.get("aud", claims.get("client_id"))
        meant = audience if isinstance(audience, list) else [audience]
        if not any(each in meant for each in settings.audiences):
            raise _refused(provider, "it is for somebody else")
        if "cnf" in claims:
            raise _refused(provider, "it is bound to a key of its holder's, which nobody has shown")
        return claims


class UserInfo:
    """Access tokens of any form, by what the provider tells of a user to whoever has one."""

    def __init__(self, provider: Provider):
        self._provider = provider

    async def claims(self, token: str) -> dict[str, Any]:
        provider = self._provider
        status, claims = await provider.ask("GET", await provider.endpoint("userinfo_endpoint"), bearer=token)
        if status in (400, 401, 403):
            raise _refused(provider, f"the userinfo endpoint answers {status}")
        if status != 200:
            raise provider.unavailable(f"the userinfo endpoint answers {status}")
        _check_origin(provider, claims)
        return claims


class Tokens:
    """Whatever a provider gives its users: JWTs by their signature, others as the settings say."""

    def __init__(self, provider: Provider):
        self.provider = provider
        self.signed = SignedTokens(provider)
        self._userinfo = UserInfo(provider)
        self._opaque: Verifier | None = None
        match provider.settings.opaque_tokens:
            case "introspection":
                self._opaque = Introspection(provider)
            case "userinfo":
                self._opaque = self._userinfo

    async def claims(self, token: str) -> dict[str, Any]:
        if len(token) > MAX_TOKEN or not _TOKEN.fullmatch(token):
            raise _refused(self.provider, "it is no bearer token")
        if token.count(".") == 2:
            claims = await self.signed.claims(token)
        elif self._opaque is not None:
            claims = await self._opaque.claims(token)
        else:
            raise _refused(self.provider, "it is no JWT, and the settings do not say how to judge others")
        return await self.completed(token, claims)

    async def completed(self, token: str, claims: dict[str, Any]) -> dict[str, Any]:
        """Claims with those of the userinfo endpoint, where that is wanted and the token is one that it takes."""
        if not self.provider.settings.userinfo_claims or self._opaque is self._userinfo:
            return claims
        try:
            further = await self._userinfo.claims(token)
        except Unauthenticated:
            return claims           # an ID token, which says all that there is to say
        if further.get("sub") != claims.get("sub"):
            raise _refused(self.provider, "the userinfo endpoint tells of somebody else")
        return {**further, **claims}


def _refused(provider: Provider, why: str) -> Unauthenticated:
    log.info("identity provider %s: a token is refused: %s", provider.name, why[:200])
    return refused("auth.federation")


def _check_origin(provider: Provider, claims: dict[str, Any]) -> None:
    """Raise Unauthenticated for claims of another issuer, or of nobody. An answer of the provider's own may leave out "iss"."""
    issuer = provider.settings.issuer
    whose = claims.get("sub", claims.get("client_id"))
    if claims.setdefault("iss", issuer) != issuer or not isinstance(whose, str) or not whose:
        raise _refused(provider, "it is another issuer's, or of nobody")


def _at_most(early: Any, late: Any) -> bool:
    """Whether one moment is not after another; None is no moment, and every other thing that is no number never fits."""
    numbers = [each for each in (early, late) if isinstance(each, int | float) and not isinstance(each, bool)]
    if len(numbers) == 2:
        return numbers[0] <= numbers[1]
    return None in (early, late)
