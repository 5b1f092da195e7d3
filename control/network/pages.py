"""Pages of lists, with Neutron's filters on labels beside those that every list has."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message

from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.naming import field_name
from protos.brume.v1.options_pb2 import QueryParameter

M = TypeVar("M", bound=Message)

_TAGS: dict[str, Callable[[set[str], set[str]], bool]] = {
    "tags": lambda have, named: named <= have,
    "tags-any": lambda have, named: bool(named & have),
    "not-tags": lambda have, named: not named <= have,
    "not-tags-any": lambda have, named: not named & have,
}


def listed(rows: Iterable[M], request: Any, view: Callable[[M], M], *, skip: Iterable[str] = ()) -> tuple[list[M], str]:
    """The page of rows that a list request asks for, each as the caller may see it, and the next page's marker.

    `skip` names filters that the noun has applied in its own way. Raises Invalid for a marker or a sort key that is none.
    """
    plain: list[QueryParameter] = []
    kept = list(rows)
    for parameter in request.filters:
        if parameter.key in _TAGS:
            named = {tag for value in parameter.values for tag in value.split(",")}
            kept = [row for row in kept if _TAGS[parameter.key](set(row.tags), named)]  # type: ignore[attr-defined]
        elif parameter.key not in skip:
            plain.append(parameter)
    kept = select(kept, plain)
    found, marker = page(kept, limit=request.limit, marker=request.marker, sort=_order(request, kept))
    return [view(row) for row in found], marker


def _order(request: Any, rows: list[M]) -> list[tuple[Callable[[M], Any], bool]]:
    if not rows or not request.sort_key:
        return []
    fields = {field_name(field): field for field in rows[0].DESCRIPTOR.fields if not field.is_repeated}
    order: list[tuple[Callable[[M], Any], bool]] = []
    for at, key in enumerate(request.sort_key):
        field = fields.get(key)
        if field is None or (field.message_type and field.message_type.full_name != "google.protobuf.Timestamp"):
            raise Invalid("network.sort_key", f"{key[:60]!r} is not an attribute to sort by.")
        name, message = field.name, bool(field.message_type)
        descending = at < len(request.sort_dir) and request.sort_dir[at] == "desc"
        order.append(
            (
                lambda row, name=name, message=message: (  # type: ignore[misc]
                    getattr(row, name).ToNanoseconds() if message else getattr(row, name)
                ),
                descending,
            )
        )
    return order
