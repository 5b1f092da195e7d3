"""Links of resources and of pages, per family of APIs.

A link is made of what the client wrote in its request, so that whoever can call can follow.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from control.gateway.apis import Family
from control.gateway.context import Context


@dataclass(frozen=True, slots=True)
class Relation:
    """A collection below a resource: "inventories" of "resource_providers"."""

    name: str
    since: int


def segment(text: str) -> str:
    """A name as one segment of a path."""
    return quote(text, safe="")


def resource_links(family: int, relations: Sequence[Relation]) -> tuple[str, Callable[[Context, str], object]] | None:
    """The JSON key of a resource's links and what makes its value of a path below the endpoint; None: the family has none."""
    def bookmarked(context: Context, tail: str) -> object:
        return [{"rel": "self", "href": f"{context.endpoint}/{tail}"},
                {"rel": "bookmark", "href": f"{context.root}/{tail}"}]

    def related(context: Context, tail: str) -> object:
        path = f"{context.mount}{context.prefix}/{tail}"
        return [{"rel": "self", "href": path}] + [{"rel": relation.name, "href": f"{path}/{relation.name}"}
                                                  for relation in relations if context.version >= relation.since]

    match family:
        case Family.NOVA | Family.CINDER:
            return "links", bookmarked
        case Family.KEYSTONE:
            return "links", lambda context, tail: {"self": f"{context.endpoint}/{tail}"}
        case Family.GLANCE:
            return "self", lambda context, tail: f"{context.prefix}/{tail}"
        case Family.PLACEMENT:
            return "links", related
    return None


def page_links(family: int, collection: str, next_marker: str, path: str, query: Sequence[tuple[str, str]],
               context: Context) -> dict[str, object]:
    """The top-level keys that a list's answer has beside its rows.

    Args:
      collection: the JSON key of the rows, for example "servers".
      next_marker: the marker of the next page, "" at the end.
      path: the request's path as the client wrote it, mount included.
      query: the request's parameters.
    """
    def url(start: str, marker: str) -> str:
        items = [item for item in query if item[0] != "marker"] + ([("marker", marker)] if marker else [])
        return f"{start}?{urlencode(items)}" if items else start

    here = context.base + path
    match family:
        case Family.KEYSTONE:
            own = f"{here}?{urlencode(query)}" if query else here
            return {"links": {"self": own, "previous": None, "next": url(here, next_marker) if next_marker else None}}
        case Family.GLANCE:      # below the mount: its clients join them to the endpoint themselves
            below = path.removeprefix(context.mount)
            first: dict[str, object] = {"first": url(below, "")}
            return first | ({"next": url(below, next_marker)} if next_marker else {})
        case Family.PLACEMENT:
            return {}
    return {f"{collection}_links": [{"rel": "next", "href": url(here, next_marker)}]} if next_marker else {}
