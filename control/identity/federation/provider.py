"""An OpenID Connect provider over HTTP: what it says of itself, and its keys; read when needed and kept for a while.

Nothing is asked where it could be read on the way, redirects are not followed, and every answer has limits of time and size.
"""
import asyncio
import logging
import ssl
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote_plus

import httpx
import jwt
import orjson

from control.identity.federation.settings import ProviderSettings, is_safe
from control.kernel.errors import Unavailable

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)          # it has a line for each request

#: Bytes of an answer, and keys in a set, at most.
MAX_ANSWER, MAX_KEYS = 512 * 1024, 100

#: Seconds between two readings of the keys for the sake of one that is unknown: anybody can send us such.
KEYS_INTERVAL = 1.0

_KEY_TYPES = {"RS": "RSA", "PS": "RSA", "ES": "EC"}


class Provider:
    """One provider. Verbs raise Unavailable where it does not answer, or not as it must."""

    def __init__(self, name: str, settings: ProviderSettings):
        self.name = name
        self.settings = settings
        self._client: httpx.AsyncClient | None = None
        self._metadata: dict[str, Any] = {}
        self._metadata_until = 0.0
        self._keys: list[dict[str, Any]] = []
        self._keys_read = self._keys_until = 0.0
        self._reading = asyncio.Lock()

    async def endpoint(self, name: str) -> str:
        """The address of one of the provider's endpoints: "token_endpoint" and so on."""
        url = (await self._read_metadata()).get(name)
        if not isinstance(url, str) or not is_safe(url):
            raise self.unavailable(f"it has no {name} that can be asked safely")
        return url

    async def key(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        """The key of an id for signatures of one kind; "" for the only one there is; None where there is none.

        The keys are read again where they are too old, or have no such one: the provider may have made it just now.
        """
        now = time.monotonic()
        found = self._pick(kid, algorithm) if now < self._keys_until else None
        if found is not None or (now < self._keys_until and now < self._keys_read + KEYS_INTERVAL):
            return found
        async with self._reading:
            if self._keys_read <= now:          # nobody has read them while we waited
                await self._read_keys()
        return self._pick(kid, algorithm)

    async def ask(self, verb: str, url: str, *, form: Mapping[str, str] | None = None, bearer: str = "",
                  as_client: bool = False) -> tuple[int, dict[str, Any]]:
        """Status and JSON object of one exchange; {} for an error's answer that is none.

        Args:
          as_client: prove that it is the cloud who asks.
        """
        headers = {"accept": "application/json", "accept-encoding": "identity"}
        sent = dict(form) if form is not None else None
        if bearer:
            headers["authorization"] = f"Bearer {bearer}"
        auth = None
        if as_client:
            known = (await self._read_metadata()).get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
            if self.settings.client_secret and (not isinstance(known, list) or "client_secret_basic" in known):
                auth = httpx.BasicAuth(quote_plus(self.settings.client_id), quote_plus(self.settings.client_secret))
            elif sent is not None:
                sent |= {"client_id": self.settings.client_id}
                if self.settings.client_secret:
                    sent["client_secret"] = self.settings.client_secret
        status, body = await self._exchange(verb, url, headers=headers, data=sent, auth=auth)
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            if status == 200:
                raise self.unavailable(f"{url} answers something that is no JSON object")
            answer = {}
        return status, answer

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def unavailable(self, why: str) -> Unavailable:
        """The error for callers, who learn no more than that; the reason is for the operator."""
        log.warning("identity provider %s: %s", self.name, why)
        return Unavailable("federation.provider",
                           f"The identity provider {self.name} does not answer as it must: try again later.")

    async def _exchange(self, verb: str, url: str, **sent: Any) -> tuple[int, bytes]:
        if self._client is None:
            trusted = ssl.create_default_context(cafile=self.settings.tls_cacertfile or None)
            self._client = httpx.AsyncClient(verify=trusted, trust_env=False, follow_redirects=False,
                                             timeout=self.settings.timeout, limits=httpx.Limits(max_connections=20))
        body = bytearray()
        try:
            async with asyncio.timeout(self.settings.timeout), self._client.stream(verb, url, **sent) as response:
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > MAX_ANSWER:
                        raise self.unavailable(f"{url} answers more than {MAX_ANSWER} bytes")
                return response.status_code, bytes(body)
        except (TimeoutError, OSError, httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.unavailable(f"{url}: {error or type(error).__name__}") from error

    async def _read_metadata(self) -> dict[str, Any]:
        if time.monotonic() >= self._metadata_until:
            url = f"{self.settings.issuer.rstrip('/')}/.well-known/openid-configuration"
            status, found = await self.ask("GET", url)
            if status != 200:
                raise self.unavailable(f"{url} answers {status}")
            if found.get("issuer") != self.settings.issuer:
                raise self.unavailable(f"{url} is of the issuer {str(found.get('issuer'))[:200]!r}, not {self.settings.issuer!r}")
            self._metadata, self._metadata_until = found, time.monotonic() + self.settings.cache_time
        return self._metadata

    async def _read_keys(self) -> None:
        url = await self.endpoint("jwks_uri")
        status, found = await self.ask("GET", url)
        keys = found.get("keys")
        if status != 200 or not isinstance(keys, list):
            raise self.unavailable(f"{url} answers {status} without keys")
        self._keys = [key for key in keys[:MAX_KEYS] if isinstance(key, dict)]
        self._keys_read = time.monotonic()
        self._keys_until = self._keys_read + self.settings.cache_time

    def _pick(self, kid: str, algorithm: str) -> jwt.PyJWK | None:
        fitting = [key for key in self._keys if key.get("kty") == _KEY_TYPES[algorithm[:2]]
                   and key.get("use", "sig") == "sig" and key.get("alg", algorithm) == algorithm
                   and (not kid or key.get("kid") == kid)]
        if len(fitting) != 1:
            return None
        try:
            return jwt.PyJWK(fitting[0], algorithm=algorithm)
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            log.warning("identity provider %s: its key %s cannot be used: %s", self.name, kid[:80], error)
            return None
