"""Limits of what clients may send, and the checks of what several calls take: names, metadata, tags, host names.

Each check returns the value to keep or raises Invalid, which says what is wrong and what would be right.
"""
import ipaddress
import re
from collections.abc import Iterable, Mapping

from control.kernel.errors import Exhausted, Invalid

MAX_TEXT = 255
MAX_TAGS, MAX_TAG = 50, 60
MAX_USER_DATA = 65535                  # characters of base64
MAX_NETWORKS = 16                      # more would not fit in one commit
MAX_SERVERS = 1000                     # of one create call

_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)\Z")


def name(value: str, what: str) -> str:
    """A name without the space around it: 1 to 255 printable characters."""
    stripped = value.strip()
    if not 1 <= len(stripped) <= MAX_TEXT or not stripped.isprintable():
        raise Invalid(f"compute.{what}.name", f"The name of a {what} must have 1 to {MAX_TEXT} printable characters, "
                                              f"not {value[:80]!r}.")
    return stripped


def text(value: str, field: str, longest: int = MAX_TEXT) -> str:
    if len(value) > longest:
        raise Invalid(f"compute.{field}", f"{field} must have at most {longest} characters, not {len(value)}.")
    return value


def metadata(items: Mapping[str, str], most: int) -> Mapping[str, str]:
    """Metadata whose keys and values have at most 255 characters. Raises Exhausted for more than `most` items (-1: any)."""
    if 0 <= most < len(items):
        raise Exhausted("quota.compute", f"Maximum number of metadata items exceeds {most}: {len(items)} were asked for.")
    for key, value in items.items():
        if not 1 <= len(key) <= MAX_TEXT or len(value) > MAX_TEXT:
            raise Invalid("compute.metadata", f"Metadata keys must have 1 to {MAX_TEXT} characters and values at most "
                                              f"{MAX_TEXT}; item {key[:40]!r} has {len(key)} and {len(value)}.")
    return items


def tags(values: Iterable[str]) -> list[str]:
    """Tags without repetition, sorted."""
    unique = sorted(set(values))
    if len(unique) > MAX_TAGS:
        raise Invalid("compute.tags", f"A server has at most {MAX_TAGS} tags; {len(unique)} were asked for.")
    for value in unique:
        if not 1 <= len(value) <= MAX_TAG or "/" in value or "," in value:
            raise Invalid("compute.tags", f"A tag has 1 to {MAX_TAG} characters, and neither '/' nor ','; not {value[:80]!r}.")
    return unique


def address(value: str, version: int) -> str:
    """An IP address of a version in its shortest spelling, or "" for none."""
    try:
        if not value:
            return ""
        if (parsed := ipaddress.ip_address(value)).version == version:
            return str(parsed)
        raise ValueError
    except ValueError:
        raise Invalid(f"compute.accessIPv{version}",
                      f"accessIPv{version} must be an IPv{version} address, not {value[:80]!r}.") from None


def hostname(value: str) -> str:
    if not _HOSTNAME.match(value):
        raise Invalid("compute.hostname", f"A host name has 1 to 63 letters, digits and hyphens, none of these at an end; "
                                          f"not {value[:80]!r}.")
    return value


def hostname_of(server_name: str, server_id: str) -> str:
    """A host name made from a server's name; "Server-<id>" where nothing of it is left."""
    plain = re.sub(r"[^a-z0-9-]", "", re.sub(r"[ _.]", "-", server_name.lower()))
    return plain[:63].strip("-") or f"Server-{server_id}"


def disk_config(value: str) -> str:
    if value not in ("", "AUTO", "MANUAL"):
        raise Invalid("compute.server.diskConfig", f"OS-DCF:diskConfig is 'AUTO' or 'MANUAL', not {value[:80]!r}.")
    return value or "MANUAL"
