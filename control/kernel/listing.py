"""Filters, sorting and pages, the same for every list call.

A page starts after its marker in the sorted order; a marker that is gone is an error, as in OpenStack.
"""
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from control.kernel.errors import Invalid
from control.kernel.naming import field_name, text_of
from protos.brume.v1.options_pb2 import QueryParameter

M = TypeVar("M", bound=Message)

#: Rows in one page at most, whatever the caller asks for.
MAX_PAGE = 1000


def page(rows: Iterable[M], *, limit: int, marker: str, sort: Sequence[tuple[Callable[[M], object], bool]] = (),
         id_of: Callable[[M], str] = lambda row: row.id) -> tuple[list[M], str]:  # type: ignore[attr-defined]
    """One page of rows and the marker for the next one ("" at the end).

    Args:
      limit: rows wanted, 0 for MAX_PAGE.
      marker: id of the last row of the page before; "" for the first page.
      sort: (key function, descending) pairs, the most significant first; ties are broken by id, so pages never overlap.

    Raises:
      Invalid: the limit is negative or the marker names no row.
    """
    if limit < 0:
        raise Invalid("list.limit", f"limit must not be negative, not {limit}")
    ordered = sorted(rows, key=id_of)
    for key, descending in reversed(sort):
        ordered.sort(key=key, reverse=descending)  # type: ignore[arg-type]
    start = 0
    if marker:
        start = next((i + 1 for i, row in enumerate(ordered) if id_of(row) == marker), -1)
        if start < 0:
            raise Invalid("list.marker", f"marker [{marker}] not found")
    size = min(limit or MAX_PAGE, MAX_PAGE)
    rows_here = ordered[start:start + size]
    more = start + size < len(ordered)
    return rows_here, id_of(rows_here[-1]) if more and rows_here else ""


#: Query parameters that are not filters.
CONTROLS = frozenset({"limit", "marker", "sort_key", "sort_dir", "sort", "fields", "page_reverse", "all_tenants"})

_TRUE, _FALSE = frozenset({"true", "1", "yes", "on", "t", "y"}), frozenset({"false", "0", "no", "off", "f", "n"})


def select(rows: Iterable[M], filters: Iterable[QueryParameter]) -> list[M]:
    """The rows that match every filter: a field, named as in JSON, has one of the filter's values.

    Booleans match any usual spelling. A name that is no field of the rows is passed over.
    """
    selected = list(rows)
    if not selected:
        return selected
    fields = {field_name(field): field for field in selected[0].DESCRIPTOR.fields}
    for filter in filters:
        field = fields.get(filter.key)
        if field is None or filter.key in CONTROLS:
            continue
        wanted = {_normal(value) if field.type == field.TYPE_BOOL else value for value in filter.values}
        if field.type == field.TYPE_BOOL:
            selected = [row for row in selected if str(getattr(row, field.name)) in wanted]
        else:
            selected = [row for row in selected if wanted.intersection(text_of(row, field) or [""])]
    return selected


def _normal(value: str) -> str:
    lowered = value.lower()
    return "True" if lowered in _TRUE else "False" if lowered in _FALSE else value
