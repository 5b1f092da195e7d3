"""Which microversion a request asks for, and the headers that say which one it got.

A client that names none gets the lowest; "latest" gets the highest; what is out of range is 406, what is no version 400.
"""
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from control.gateway.apis import EVERYTHING, Api, Family, number
from control.kernel.errors import Invalid, NotAcceptable

_HEADER, _LEGACY = "OpenStack-API-Version", "X-OpenStack-Nova-API-Version"

#: Characters of the two headers at most, for what they mean to be remembered.
MAX_REMEMBERED = 200

_VERSION = re.compile(r"([1-9]\d{0,4})\.(0|[1-9]\d{0,4})\Z", re.ASCII)


def pair(version: str) -> tuple[int, int]:
    """ "2.96" as (2, 96)."""
    major, minor = version.split(".")
    return int(major), int(minor)


@dataclass(frozen=True, slots=True)
class Chosen:
    """The microversion that a request gets, and the headers that say so."""

    pair: tuple[int, int] | None = None     # None: the API has none
    number: int = EVERYTHING
    headers: tuple[tuple[str, str], ...] = ()


def negotiate(api: Api, path: str, alias: bool, headers: Mapping[str, str]) -> Chosen:
    """The microversion of a request.

    Args:
      path: the request's path below the mount, aliases resolved.
      alias: whether the client used an alias, which offers only the lowest microversion.
      headers: the request's, names in lower case.

    Raises:
      Invalid: the header holds no version.
      NotAcceptable: the API does not have that version.
    """
    modern, legacy = headers.get(_HEADER.lower(), ""), headers.get(_LEGACY.lower()) if api.is_nova else None
    choose = _choose if len(modern) + len(legacy or "") < MAX_REMEMBERED else _choose.__wrapped__
    return choose(api, path, alias, modern, legacy)


@functools.lru_cache(maxsize=1000)
def _choose(api: Api, path: str, alias: bool, modern: str, legacy: str | None) -> Chosen:
    offered = api.version_of(path)
    if offered is None:
        return Chosen()
    low, high = pair(offered.min_version), pair(offered.max_version)
    if alias:
        return Chosen(low, _number(low))
    wanted = _requested(api, modern, legacy)
    if wanted is None:
        chosen = low
    elif wanted == "latest":
        chosen = high
    else:
        if not _VERSION.match(wanted):
            raise Invalid("microversion", f"API Version String {wanted[:40]} is of invalid format. "
                                          f"Must be of format MajorNum.MinorNum.")
        chosen = pair(wanted)
        if not low <= chosen <= high:
            raise NotAcceptable("microversion", f"Version {wanted} is not supported by the API. Minimum is {offered.min_version} "
                                                f"and maximum is {offered.max_version}.")
    text = f"{chosen[0]}.{chosen[1]}"
    answer = (_HEADER, f"{service_name(api)} {text}")
    if api.is_nova:
        return Chosen(chosen, _number(chosen), (answer, (_LEGACY, text), ("Vary", f"{_HEADER}, {_LEGACY}")))
    return Chosen(chosen, _number(chosen), (answer, ("Vary", _HEADER)))


def _number(version: tuple[int, int]) -> int:
    return number(f"{version[0]}.{version[1]}")


def service_name(api: Api) -> str:
    """The name that the header gives an API, which for block storage is not its catalog type."""
    return "volume" if api.family == Family.CINDER else api.type


def _requested(api: Api, modern: str, legacy: str | None) -> str | None:
    service = service_name(api)
    for item in modern.split(","):
        name, _, version = item.strip().partition(" ")
        if name.lower() == service:
            return version.strip()
    return legacy
