"""Requests that a caller is limited to: (service, method, path) rules of application credentials.

In a path, "*" and "{name}" stand for one segment, "**" for any number of them.
"""
import functools
import re
from dataclasses import dataclass

_PIECE = re.compile(r"\{[^}]*\}|\*\*|\*|[^{*]+|\{")


@dataclass(frozen=True, slots=True)
class AccessRule:
    """One kind of request."""

    service: str       # catalog type: "compute"
    method: str        # "GET"
    path: str          # "/v2.1/servers/*"

    def matches(self, service: str, method: str, paths: tuple[str, ...]) -> bool:
        """Whether a request, whose path may have several spellings, is of the kind."""
        return service == self.service and method == self.method and any(_pattern(self.path).fullmatch(path) for path in paths)


@functools.lru_cache(maxsize=1024)
def _pattern(path: str) -> re.Pattern[str]:
    pieces = []
    for piece in _PIECE.findall(path):
        if piece == "**":
            pieces.append(".*")
        elif piece == "*" or (piece.startswith("{") and piece.endswith("}")):
            pieces.append("[^/]+")
        else:
            pieces.append(re.escape(piece))
    return re.compile("".join(pieces))
