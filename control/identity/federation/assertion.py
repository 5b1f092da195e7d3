"""From a provider's claims to an assertion: values by the names that mappings know them under. Pure.

Beside its own name a claim has those that it has in Keystone behind Apache's mod_auth_openidc, so that mappings written for
that work here. A name that two claims would have is nobody's: a claim cannot stand in for another one.
"""
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

#: Claims, values of one, and objects in objects, that are looked at.
MAX_CLAIMS, MAX_VALUES, MAX_DEPTH = 500, 1000, 4


def assertion_of(claims: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Values by name. A member of an object has the path to it, with dots ("realm_access.roles"); null and "" are nothing."""
    found = [(name, values) for claim, values in _claims(claims) for name in _names(claim)][:MAX_CLAIMS * 5]
    count = Counter(name for name, _ in found)
    return {name: values for name, values in found if values and count[name] == 1}


#: Half of a character: JSON can have it, and UTF-8 cannot.
_HALF = re.compile(r"[\ud800-\udfff]")


def _claims(members: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name, value in members.items():
        if isinstance(value, Mapping):
            if depth < MAX_DEPTH:
                yield from _claims(value, f"{path}{name}.", depth + 1)
            continue
        values = value[:MAX_VALUES] if isinstance(value, list) else [value]
        texts = (_text(each) for each in values)
        yield path + name, tuple(dict.fromkeys(text for text in texts if text))


def _text(value: Any) -> str:
    """A single value as text; "" for what is none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, str | int | float):
        return ""
    return text if (text := str(value)).isascii() or not _HALF.search(text) else ""


def _names(claim: str) -> set[str]:
    """The claim's own name, Apache's for its environment, and those for headers, where only capitals and "_" are left."""
    header = re.sub(r"[^A-Z0-9]", "_", claim.upper())
    return {claim, f"OIDC-{claim}", f"OIDC_CLAIM_{claim}", f"HTTP_OIDC_{header}", f"HTTP_OIDC_CLAIM_{header}"}
