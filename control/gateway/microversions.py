"""Which microversion a request asks for, and the headers that say which one it got.

A client that names none gets the lowest; "latest" gets the highest; what is out of range is 406, what is no version 400.
"""
import re
from collections.abc import Mapping

from control.gateway.apis import Api, Family
from control.kernel.errors import Invalid, NotAcceptable

_HEADER, _LEGACY = "OpenStack-API-Version", "X-OpenStack-Nova-API-Version"
_VERSION = re.compile(r"([1-9]\d{0,4})\.(0|[1-9]\d{0,4})\Z", re.ASCII)


def pair(version: str) -> tuple[int, int]:
    """ "2.96" as (2, 96)."""
    major, minor = version.split(".")
    return int(major), int(minor)


def negotiate(api: Api, path: str, alias: bool, headers: Mapping[str, str],
              ) -> tuple[tuple[int, int] | None, list[tuple[str, str]]]:
    """The microversion of a request and the headers of its answer; (None, []) where the API has none.

    Args:
      path: the request's path below the mount, aliases resolved.
      alias: whether the client used an alias, which offers only the lowest microversion.
      headers: the request's, names in lower case.

    Raises:
      Invalid: the header holds no version.
      NotAcceptable: the API does not have that version.
    """
    offered = api.version_of(path)
    if offered is None:
        return None, []
    low, high = pair(offered.min_version), pair(offered.max_version)
    if alias:
        return low, []
    wanted = _requested(api, headers)
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
    answer = [(_HEADER, f"{service_name(api)} {text}")]
    if api.family == Family.NOVA:
        return chosen, [*answer, (_LEGACY, text), ("Vary", f"{_HEADER}, {_LEGACY}")]
    return chosen, [*answer, ("Vary", _HEADER)]


def service_name(api: Api) -> str:
    """The name that the header gives an API, which for block storage is not its catalog type."""
    return "volume" if api.family == Family.CINDER else api.type


def _requested(api: Api, headers: Mapping[str, str]) -> str | None:
    service = service_name(api)
    for item in headers.get(_HEADER.lower(), "").split(","):
        name, _, version = item.strip().partition(" ")
        if name.lower() == service:
            return version.strip()
    if api.family == Family.NOVA:
        return headers.get(_LEGACY.lower())
    return None
