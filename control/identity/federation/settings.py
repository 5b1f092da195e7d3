"""How an identity provider is reached, and what is believed of it: the settings of `[identity.federation.<id>]`."""
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from control.kernel.errors import Invalid

#: Signatures that can be allowed: with a key of the provider's alone. HMACs and "none" are not among them.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512")

#: Characters of a dashboard's address: browsers carry it in a cookie.
MAX_PAGE = 255

#: (least, most) of each number; seconds.
_RANGES = {"timeout": (0.5, 30), "cache_time": (1, 86400), "leeway": (0, 300)}


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One OpenID Connect provider."""

    #: As the provider writes it in its tokens; its settings are found below it. https, but on this machine.
    issuer: str = ""
    #: What the cloud is to the provider, and the file with its secret; a secret is needed for introspection and for browsers.
    client_id: str = ""
    client_secret_file: str = ""
    client_secret: str = field(default="", repr=False)
    #: Whom tokens may be meant for; none: client_id.
    audiences: tuple[str, ...] = ()
    #: Signatures that are accepted.
    algorithms: tuple[str, ...] = ALGORITHMS
    #: How a token that is no JWT is judged: "introspection", "userinfo", or "" for not at all. The userinfo endpoint does not say
    #: whom a token is meant for: with it, a token for any client of the provider is good here.
    opaque_tokens: str = ""
    #: Whether claims are completed by those of the userinfo endpoint, where the token is an access token.
    userinfo_claims: bool = False
    #: Authorities' certificates (PEM); "" for the machine's.
    tls_cacertfile: str = ""
    #: Seconds until the provider counts as silent; for how long its keys are good; by how much clocks may differ.
    timeout: float = 5.0
    cache_time: float = 300.0
    leeway: float = 30.0
    #: Of logins in browsers: what is asked for, and the pages that tokens are handed to.
    scope: str = "openid profile email"
    trusted_dashboards: tuple[str, ...] = ()


def read(section: Mapping[str, Any]) -> dict[str, ProviderSettings]:
    """The providers of an `[identity]` section, by id. Raises Invalid, naming the setting."""
    providers = section.get("federation", {})
    if not isinstance(providers, Mapping):
        raise Invalid("config.identity.federation", "identity.federation must be a table with one table per identity provider")
    if providers and not all(map(importlib.util.find_spec, ("jwt", "httpx"))):
        raise Invalid("config.identity.federation",
                      "identity.federation needs the Python packages PyJWT and httpx: install brume[oidc]")
    return {name: _one(name, values) for name, values in providers.items()}


def _one(name: str, values: Any) -> ProviderSettings:
    where = f"identity.federation.{name}"
    if not isinstance(values, Mapping):
        raise Invalid(f"config.{where}", f"{where} must be a table")
    known = {item.name: item.default for item in fields(ProviderSettings) if item.name != "client_secret"}
    taken: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise Invalid(f"config.{where}", f"unknown setting {where}.{key}; there are {', '.join(sorted(known))}")
        default = known[key]
        if isinstance(default, tuple):
            fits = isinstance(value, list | tuple) and all(isinstance(each, str) and each for each in value)
            wanted = "list of texts"
        elif isinstance(default, float):
            fits, wanted = isinstance(value, int | float) and not isinstance(value, bool), "number"
        else:
            fits, wanted = type(value) is type(default), "boolean" if isinstance(default, bool) else "text"
        if not fits:
            raise Invalid(f"config.{where}", f"{where}.{key} must be a {wanted}, not {value!r}")
        taken[key] = tuple(value) if isinstance(default, tuple) else value
    return check(where, replace(ProviderSettings(), **taken))


def check(where: str, settings: ProviderSettings) -> ProviderSettings:
    """The settings with their secret read, if they make sense. Raises Invalid, naming the setting."""
    def refuse(key: str, why: str) -> Invalid:
        return Invalid(f"config.{where}", f"{where}.{key} {why}")

    if not is_safe(settings.issuer):
        raise refuse("issuer", f"must be an https:// URL, or http:// of this machine, not {settings.issuer!r}")
    if not settings.client_id:
        raise refuse("client_id", "is required")
    unknown = [name for name in settings.algorithms if name not in ALGORITHMS]
    if unknown or not settings.algorithms:
        raise refuse("algorithms", f"must be some of {', '.join(ALGORITHMS)}{f', not {unknown[0]!r}' if unknown else ''}")
    if settings.opaque_tokens not in ("", "introspection", "userinfo"):
        raise refuse("opaque_tokens", f"must be introspection, userinfo or empty, not {settings.opaque_tokens!r}")
    for key, (least, most) in _RANGES.items():
        if not least <= getattr(settings, key) <= most:
            raise refuse(key, f"must be {least} to {most}")
    if "openid" not in settings.scope.split():
        raise refuse("scope", "must have openid in it")
    for page in settings.trusted_dashboards:
        if not is_safe(page) or len(page) > MAX_PAGE:
            raise refuse("trusted_dashboards", f"must have https:// URLs, or http:// of this machine, of at most {MAX_PAGE} "
                                               f"characters, not {page!r}")
    if settings.tls_cacertfile and not os.access(settings.tls_cacertfile, os.R_OK):
        raise refuse("tls_cacertfile", f"{settings.tls_cacertfile} cannot be read")
    secret = ""
    if settings.client_secret_file:
        try:
            secret = Path(settings.client_secret_file).read_text().strip()
        except (OSError, ValueError) as error:
            raise refuse("client_secret_file", f"cannot be read: {getattr(error, 'strerror', error)}") from error
        if not secret:
            raise refuse("client_secret_file", "has no secret in it")
    if settings.opaque_tokens == "introspection" and not secret:
        raise refuse("client_secret_file", "is required for introspection")
    return replace(settings, client_secret=secret, audiences=settings.audiences or (settings.client_id,))


def is_safe(url: str) -> bool:
    """Whether what is sent to an address cannot be read or changed on the way: https, or http on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not host or parts.username is not None or parts.fragment:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
