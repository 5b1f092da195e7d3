"""Filters, sorting and pages, the same for every list call.

A page starts after its marker in the sorted order; a marker that is gone is an error, as in OpenStack.
"""
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from control.kernel import clock
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
    size = _size(limit)
    ordered = list(rows)
    for key, descending in reversed(sort):
        ordered.sort(key=key, reverse=descending)  # type: ignore[arg-type]
    # Rows mostly come in an order that is near the one that is asked for, and so are sorted quickly. Their ids are not: only ties
    # that the page touches are put in order of them.
    start = at = 0
    if marker:
        first = _start_of_run(ordered, _find(ordered, marker, id_of), sort)
        at = _order_run(ordered, first, sort, id_of)
        start = _find(ordered, marker, id_of, first) + 1
    while at < min(len(ordered), start + size + 1):
        at = _order_run(ordered, at, sort, id_of)
    rows_here = ordered[start:start + size]
    more = start + size < len(ordered)
    return rows_here, id_of(rows_here[-1]) if more and rows_here else ""


def first(rows: Iterator[M], *, limit: int) -> tuple[list[M], str]:
    """As page(), of rows that come in order and begin after the marker: no more of them are looked at than the page needs."""
    size = _size(limit)
    found = list(itertools.islice(rows, size + 1))
    return found[:size], found[size - 1].id if len(found) > size else ""  # type: ignore[attr-defined]


def _size(limit: int) -> int:
    if limit < 0:
        raise Invalid("list.limit", f"limit must not be negative, not {limit}")
    return min(limit or MAX_PAGE, MAX_PAGE)


def no_marker(marker: str) -> Invalid:
    return Invalid("list.marker", f"marker [{marker[:255]}] not found")


_Sort = Sequence[tuple[Callable[[M], object], bool]]


def _find(ordered: Sequence[M], marker: str, id_of: Callable[[M], str], first: int = 0) -> int:
    """The place of a marker's row, at or after `first`."""
    for place in range(first, len(ordered)):
        if id_of(ordered[place]) == marker:
            return place
    raise no_marker(marker)


def _start_of_run(ordered: Sequence[M], at: int, sort: _Sort) -> int:
    """The first of the rows beside one that sort as it does."""
    keys = [key(ordered[at]) for key, _ in sort]
    while at > 0 and all(key(ordered[at - 1]) == own for (key, _), own in zip(sort, keys, strict=True)):
        at -= 1
    return at


def _order_run(ordered: list[M], at: int, sort: _Sort, id_of: Callable[[M], str]) -> int:
    """Put the rows from one on that sort as it does in order of their ids; the place after the last of them."""
    keys, last = [key(ordered[at]) for key, _ in sort], at + 1
    while last < len(ordered) and all(key(ordered[last]) == own for (key, _), own in zip(sort, keys, strict=True)):
        last += 1
    if last - at > 1:
        ordered[at:last] = sorted(ordered[at:last], key=id_of)
    return last


#: Query parameters that are not filters.
CONTROLS = frozenset({"limit", "marker", "sort_key", "sort_dir", "sort", "fields", "page_reverse", "all_tenants"})

_TRUE, _FALSE = frozenset({"true", "1", "yes", "on", "t", "y"}), frozenset({"false", "0", "no", "off", "f", "n"})


#: How a filter's name may end: "name__contains" keeps rows whose name contains one of its values. An i before it ignores case.
INEXACT: dict[str, Callable[[str, str], bool]] = {
    "contains": str.__contains__, "startswith": str.startswith, "endswith": str.endswith}

#: What may stand before a time: "lt:2026-01-31T12:00:00Z".
ORDERS: dict[str, Callable[[int, int], bool]] = {
    "lt": operator.lt, "lte": operator.le, "gt": operator.gt, "gte": operator.ge, "eq": operator.eq, "neq": operator.ne}


def select(rows: Iterable[M], filters: Iterable[QueryParameter]) -> list[M]:
    """The rows that match every filter: a field, named as in JSON, has one of the filter's values.

    Booleans match any usual spelling. A text may be compared as INEXACT says; a time, which all of the filter's values have to
    match, as ORDERS says, and a row without one is not kept. A name that is no field of the rows is passed over.
    Raises Invalid for a time that is none.
    """
    selected = list(rows)
    if not selected:
        return selected
    fields = {field_name(field): field for field in selected[0].DESCRIPTOR.fields}
    for filter in filters:
        test = _test(fields, filter) if filter.key not in CONTROLS else None
        if test is not None:
            selected = [row for row in selected if test(row)]
    return selected


def _test(fields: Mapping[str, FieldDescriptor], filter: QueryParameter) -> Callable[[Message], bool] | None:
    """Whether a row matches a filter; None for a filter of something else."""
    field, values = fields.get(filter.key), list(filter.values)
    if field is None:
        name, _, how = filter.key.rpartition("__")
        field, folded = fields.get(name), how.startswith("i")
        compare = INEXACT.get(how.removeprefix("i"))
        if field is None or compare is None or field.type != field.TYPE_STRING:
            return None
        fold: Callable[[str], str] = str.casefold if folded else str
        parts = [fold(value) for value in values]
        return lambda row: any(compare(fold(text), part) for text in text_of(row, field) for part in parts)
    if field.type == field.TYPE_BOOL:
        spelled = {_normal(value) for value in values}
        return lambda row: str(getattr(row, field.name)) in spelled
    if field.message_type is not None and field.message_type.full_name == "google.protobuf.Timestamp" and not field.is_repeated:
        bounds = [_bound(filter.key, value) for value in values]
        return lambda row: row.HasField(field.name) and all(
            order(getattr(row, field.name).ToMicroseconds(), moment) for order, moment in bounds)
    wanted = set(values)
    return lambda row: bool(wanted.intersection(text_of(row, field) or [""]))


def _bound(key: str, value: str) -> tuple[Callable[[int, int], bool], int]:
    """What "lt:2026-01-31T12:00:00Z" asks; without an operator the time itself. Microseconds since 1970."""
    name, _, text = value.partition(":")
    order = ORDERS.get(name)
    try:
        return order or operator.eq, clock.parse(text if order else value).ToMicroseconds()
    except ValueError:
        raise Invalid("list.time", f"Invalid input for field '{key}': expecting to find one of {', '.join(ORDERS)} and a time, "
                                   f"such as lt:2026-01-31T12:00:00Z.") from None


def _normal(value: str) -> str:
    lowered = value.lower()
    return "True" if lowered in _TRUE else "False" if lowered in _FALSE else value
