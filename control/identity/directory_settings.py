"""How a domain's users are found in an LDAP directory: the settings of `[identity.domains.<name>]`, or a domain's configuration.

Options have the names that they have in Keystone's [ldap] section; defaults are those of a directory of inetOrgPersons, or
with kind = "ad" those of an Active Directory.
"""
import importlib.util
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from control.identity.model import DEFAULT_DOMAIN
from control.kernel.errors import Invalid

#: (least, most) of each number. Times are seconds.
_RANGES = {"page_size": (1, 1000), "list_limit": (1, 50_000), "timeout": (0.5, 60), "cache_time": (1, 3600),
           "user_enabled_mask": (0, 2**31 - 1)}


@dataclass(frozen=True, slots=True)
class DirectorySettings:
    """One domain's directory. A tree is the DN that everything searched for lies below."""

    #: "ldap" or "ad": which defaults count.
    kind: str = "ldap"
    #: ldap://host[:port] or ldaps://host[:port]; several, with commas, are tried in turn.
    url: str = ""
    #: DN that the directory is searched as, and the file with its password; both are required.
    user: str = ""
    password_file: str = ""
    password: str = field(default="", repr=False)
    #: StartTLS on an ldap:// address.
    use_tls: bool = False
    #: Authorities' certificates (PEM); "" for the machine's.
    tls_cacertfile: str = ""
    #: Allow passwords to cross the network readable; for a directory on the same machine.
    plaintext: bool = False

    #: "sub" or "one": whether what is searched for may lie deeper than just below its tree.
    query_scope: str = "sub"
    user_tree_dn: str = ""
    user_filter: str = ""
    user_objectclass: str = "inetOrgPerson"
    #: What a user is known by for good: an attribute that is never given to somebody else.
    user_id_attribute: str = "uid"
    user_name_attribute: str = "uid"
    user_mail_attribute: str = "mail"
    user_description_attribute: str = "description"
    #: "" where all users are enabled. With a mask: a user is disabled when a bit of it is set; without one: when it says "FALSE".
    user_enabled_attribute: str = ""
    user_enabled_mask: int = 0
    user_enabled_invert: bool = False

    #: "" for a directory without groups.
    group_tree_dn: str = ""
    group_filter: str = ""
    group_objectclass: str = "groupOfNames"
    group_id_attribute: str = "cn"
    group_name_attribute: str = "cn"
    group_desc_attribute: str = "description"
    group_member_attribute: str = "member"
    #: Members are users' ids (posixGroup's memberUid) instead of DNs.
    group_members_are_ids: bool = False
    #: Attribute of a user that lists the DNs of their groups; "" where there is none. Saves a read per member.
    user_memberof_attribute: str = ""
    #: Groups in groups count (Active Directory's matching rule).
    group_ad_nesting: bool = False

    #: Entries in one answer of the directory, and in one list of ours.
    page_size: int = 500
    list_limit: int = 10_000
    #: Seconds until a directory counts as silent, and that an answer of it is good for.
    timeout: float = 10.0
    cache_time: float = 60.0

    @property
    def urls(self) -> list[str]:
        return [url.strip() for url in self.url.split(",")]


_AD = {"user_objectclass": "user", "user_filter": "(objectCategory=person)", "user_id_attribute": "objectGUID",
       "user_name_attribute": "sAMAccountName", "user_enabled_attribute": "userAccountControl", "user_enabled_mask": 2,
       "group_objectclass": "group", "group_id_attribute": "objectGUID", "group_name_attribute": "sAMAccountName",
       "user_memberof_attribute": "memberOf"}


def read(section: Mapping[str, Any]) -> dict[str, DirectorySettings]:
    """The directories of an `[identity]` section, by domain name. Raises Invalid, naming the setting."""
    for key in section:
        if key not in ("domains", "federation"):
            raise Invalid(f"config.identity.{key}",
                          f"unknown setting identity.{key}; there are identity.domains and identity.federation")
    domains = section.get("domains", {})
    if domains and importlib.util.find_spec("ldap3") is None:
        raise Invalid("config.identity.domains", "identity.domains needs the Python package ldap3: install brume[ldap]")
    if not isinstance(domains, Mapping):
        raise Invalid("config.identity.domains", "identity.domains must be a table with one table per domain")
    return {name: _one(name, values) for name, values in domains.items()}


def _one(name: str, values: Any) -> DirectorySettings:
    where = f"identity.domains.{name}"
    if not isinstance(values, Mapping):
        raise Invalid(f"config.{where}", f"{where} must be a table")
    if name.lower() == DEFAULT_DOMAIN:
        raise Invalid(f"config.{where}", f"{where}: the default domain has the cloud's own users; make another for a directory's")
    known = {item.name: item for item in fields(DirectorySettings) if item.name != "password"}
    for key, value in values.items():
        if key not in known:
            raise Invalid(f"config.{where}", f"unknown setting {where}.{key}; there are {', '.join(sorted(known))}")
        default = known[key].default
        wanted = (int, float) if isinstance(default, float) else type(default)
        if not isinstance(value, wanted) or (isinstance(value, bool) and not isinstance(default, bool)):
            raise Invalid(f"config.{where}", f"{where}.{key} must be a {type(default).__name__}, not {value!r}")
    kind = values.get("kind", "ldap")
    if kind not in ("ldap", "ad"):
        raise Invalid(f"config.{where}", f"{where}.kind must be ldap or ad, not {kind!r}")
    return check(where, replace(DirectorySettings(), **((_AD if kind == "ad" else {}) | dict(values))))


def from_options(domain_id: str, options: Mapping[str, Any], list_limit: Any = None) -> DirectorySettings:
    """The settings that a domain's configuration makes, `options` being its group "ldap" with Keystone's defaults.

    Raises Invalid, naming the option, for what is incomplete, makes no sense, or asks for what is not had: least of all does it
    pass over something that would let people in who shall stay out.
    """
    where = f"configuration of domain {domain_id}: ldap"
    if importlib.util.find_spec("ldap3") is None:
        raise Invalid(f"config.{where}", f"{where} needs the Python package ldap3: install brume[ldap]")
    given = {name: value for name, value in options.items() if value is not None}
    for name, harmless in _UNSUPPORTED.items():
        if name in given and str(given[name]).lower() not in harmless:
            raise Invalid(f"config.{where}", f"{where}.{name}: {given[name]!r} is not supported")
    wanted: dict[str, Any] = {}
    for item in fields(DirectorySettings):
        if item.name in given and item.name not in ("kind", "password_file", "plaintext", "timeout", "cache_time"):
            wanted[item.name] = _converted(f"{where}.{item.name}", given[item.name], item.default)
    if suffix := given.get("suffix"):
        wanted.setdefault("user_tree_dn", f"ou=Users,{suffix}")
        wanted.setdefault("group_tree_dn", f"ou=UserGroups,{suffix}")
    if not wanted.get("page_size"):                     # Keystone's 0: as the directory likes
        wanted.pop("page_size", None)
    if list_limit is not None:
        wanted["list_limit"] = _converted(f"configuration of domain {domain_id}: identity.list_limit", list_limit, 0)
    timeout = _converted(f"{where}.connection_timeout", given.get("connection_timeout", -1), 0)
    if timeout > 0:
        wanted["timeout"] = min(float(timeout), _RANGES["timeout"][1])
    if not wanted.get("password"):
        raise Invalid(f"config.{where}", f"{where}.password is required: a directory is never searched without one")
    settings = replace(DirectorySettings(), **wanted)
    return check(where, replace(settings, plaintext=all(_is_local(url) for url in settings.urls)))


#: Options of Keystone's that change who is who or how safe a connection is, and the values that ask for nothing.
_UNSUPPORTED = {"tls_cacertdir": ("",), "tls_req_cert": ("demand",), "chase_referrals": ("false",),
                "user_enabled_emulation": ("false",), "user_enabled_default": ("true", "512", "512.0", "0", "0.0", "")}


def _converted(where: str, value: Any, default: Any) -> Any:
    """An option's value in the type of its default: JSON has numbers without a kind, and some clients send all as texts."""
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(default, int):
            if float(value) != int(float(value)):
                raise ValueError
            return int(float(value))
    except (KeyError, ValueError, TypeError, OverflowError):
        raise Invalid("config.domain", f"{where} must be a {type(default).__name__}, not {value!r}") from None
    if not isinstance(value, str):
        raise Invalid("config.domain", f"{where} must be a text")
    return value


def _is_local(url: str) -> bool:
    """Whether an address is this machine's own: there a password cannot be read on its way."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check(where: str, settings: DirectorySettings) -> DirectorySettings:
    """The settings with their password read, if they make sense. Raises Invalid, naming the setting."""
    def refuse(key: str, why: str) -> Invalid:
        return Invalid(f"config.{where}", f"{where}.{key} {why}")

    for url in settings.urls:
        parts = urlsplit(url)
        if parts.scheme not in ("ldap", "ldaps") or not parts.hostname or parts.path.strip("/"):
            raise refuse("url", f"must be ldap://host[:port] or ldaps://host[:port], not {url!r}")
        if parts.scheme == "ldap" and not (settings.use_tls or settings.plaintext):
            raise refuse("url", "would send passwords readable: take ldaps://, or set use_tls (or plaintext, on one machine)")
    for key in ("user", "user_tree_dn", "user_objectclass", "user_id_attribute", "user_name_attribute", "group_objectclass",
                "group_id_attribute", "group_name_attribute", "group_member_attribute"):
        if not getattr(settings, key):
            raise refuse(key, "is required")
    if settings.query_scope not in ("sub", "one"):
        raise refuse("query_scope", f"must be sub or one, not {settings.query_scope!r}")
    for key in ("user_filter", "group_filter"):
        value = getattr(settings, key)
        if value and not (value.startswith("(") and value.endswith(")")):
            raise refuse(key, f"must be a filter in parentheses, not {value!r}")
    for key, (least, most) in _RANGES.items():
        if not least <= getattr(settings, key) <= most:
            raise refuse(key, f"must be {least} to {most}")
    if settings.tls_cacertfile and not os.access(settings.tls_cacertfile, os.R_OK):
        raise refuse("tls_cacertfile", f"{settings.tls_cacertfile} cannot be read")
    try:
        password = settings.password or Path(settings.password_file).read_text().strip()
    except OSError as error:
        raise refuse("password_file", f"cannot be read: {error.strerror}") from error
    if not password:
        raise refuse("password_file", "has no password in it: a directory is never searched without one")
    return replace(settings, password=password)
