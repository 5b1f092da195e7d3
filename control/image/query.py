"""Which images a list shows and in what order: Glance's filters, operators and sort keys, on rows in memory."""
import csv
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from control.image import access
from control.kernel.caller import Caller
from control.kernel.errors import Invalid
from control.kernel.listing import CONTROLS
from control.kernel.naming import enum_spelling, field_name, text_of
from protos.image.v1.images_pb2 import Image
from protos.image.v1.members_pb2 import Member
from protos.image.v1.records_pb2 import ImageRecord

_FIELDS = {field_name(field): field for field in Image.DESCRIPTOR.fields if field.name != "properties"}
_LISTS = frozenset({"id", "name", "status", "disk_format", "container_format"})       # take "in:"
_TIMES = frozenset({"created_at", "updated_at"})                                      # take the comparisons
_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "gt": operator.gt, "gte": operator.ge, "lt": operator.lt, "lte": operator.le, "eq": operator.eq, "neq": operator.ne}
_TRUE, _FALSE = frozenset({"true", "1", "yes", "on", "t", "y"}), frozenset({"false", "0", "no", "off", "f", "n"})
_SPECIAL = frozenset({"visibility", "member_status", "os_hidden", "tag", "size_min", "size_max"})

_VISIBILITIES = {enum_spelling(value) for value in Image.Visibility.DESCRIPTOR.values} - {""} | {"all"}
_MEMBER_STATUSES = {enum_spelling(value): value.number for value in Member.Status.DESCRIPTOR.values if value.number}

_SORT_KEYS: Mapping[str, Callable[[ImageRecord], object]] = {
    "id": lambda record: record.image.id,
    "name": lambda record: record.image.name,
    "status": lambda record: enum_spelling(Image.Status.DESCRIPTOR.values_by_number[record.image.status]),
    "disk_format": lambda record: record.image.disk_format,
    "container_format": lambda record: record.image.container_format,
    "size": lambda record: record.image.size,
    "created_at": lambda record: _instant(record.image.created_at),
    "updated_at": lambda record: _instant(record.image.updated_at),
}


def select(records: Iterable[ImageRecord], caller: Caller, memberships: Mapping[str, int],
           filters: Mapping[str, Sequence[str]]) -> list[ImageRecord]:
    """The records that a list shows.

    Args:
      records: candidates; those that the caller may not see are passed over.
      memberships: the status of the caller's project by the id of each image that is shared with it.
      filters: query parameters by name.

    Raises:
      Invalid: a filter's value means nothing.
    """
    visibility = _last(filters, "visibility", "")
    if visibility and visibility not in _VISIBILITIES:
        raise Invalid("image.list.visibility", f"Invalid visibility value: {visibility[:80]}; "
                                               f"it must be one of {', '.join(sorted(_VISIBILITIES))}.")
    status = _last(filters, "member_status", "accepted")
    if status != "all" and status not in _MEMBER_STATUSES:
        raise Invalid("image.list.member_status", f"Invalid status: {status[:80]}; one of all, {', '.join(_MEMBER_STATUSES)}.")
    hidden = _boolean("os_hidden", _last(filters, "os_hidden", "false"))
    tests = [_test(name, values) for name, values in filters.items() if name not in _SPECIAL and name not in CONTROLS]
    tests.extend(_tag_test(tag) for tag in filters.get("tag", ()))
    for name, compare in (("size_min", operator.ge), ("size_max", operator.le)):
        if name in filters:
            tests.append(_size_test(compare, _integer(name, _last(filters, name, ""))))

    def listed(image: Image) -> bool:
        if image.os_hidden != hidden:
            return False
        if visibility not in ("", "all") and _text(image, "visibility") != [visibility]:
            return False
        if access.owns(caller, image):
            return True
        if image.visibility == Image.COMMUNITY:
            return visibility in ("community", "all")
        if image.visibility == Image.SHARED:
            return image.id in memberships and status in ("all", _spelled(memberships[image.id]))
        return image.visibility == Image.PUBLIC

    return [record for record in records if listed(record.image) and all(test(record.image) for test in tests)]


def order(sort: str, keys: Sequence[str], directions: Sequence[str]) -> list[tuple[Callable[[ImageRecord], object], bool]]:
    """(key function, descending) pairs for kernel.listing.page; newest first where nothing is asked. Raises Invalid."""
    if sort:
        if keys or directions:
            raise Invalid("image.list.sort", "Old and new sorting syntax cannot be combined.")
        pairs = [(key, direction or "desc") for key, _, direction in (part.strip().partition(":") for part in sort.split(","))]
    else:
        wanted = list(keys) or ["created_at"]
        given = list(directions) or ["desc"]
        if len(given) == 1:
            given *= len(wanted)
        if len(given) != len(wanted):
            raise Invalid("image.list.sort", "Number of sort dirs does not match the number of sort keys.")
        pairs = list(zip(wanted, given, strict=True))
    for key, direction in pairs:
        if key not in _SORT_KEYS:
            raise Invalid("image.list.sort_key", f"Invalid sort key: {key[:80]}; it must be one of {', '.join(_SORT_KEYS)}.")
        if direction not in ("asc", "desc"):
            raise Invalid("image.list.sort_dir", f"Invalid sort direction: {direction[:80]}; it must be asc or desc.")
    return [(_SORT_KEYS[key], direction == "desc") for key, direction in pairs]


def _test(name: str, values: Sequence[str]) -> Callable[[Image], bool]:
    if name in _TIMES:
        comparisons = [_comparison(name, value) for value in values]
        return lambda image: all(compare(_instant(getattr(image, name)), moment) for compare, moment in comparisons)
    if name in _LISTS:
        wanted = frozenset(part for value in values for part in _parts(value))
    elif name in _FIELDS and _FIELDS[name].type == _FIELDS[name].TYPE_BOOL:
        wanted = frozenset(str(_boolean(name, value)) for value in values)
    else:
        wanted = frozenset(values)
    return lambda image: not wanted.isdisjoint(_text(image, name))


def _text(image: Image, name: str) -> list[str]:
    """The values of a field or property as a query spells them."""
    if name in _FIELDS:
        return text_of(image, _FIELDS[name])
    return [image.properties[name].string_value] if name in image.properties else []


def _parts(value: str) -> list[str]:
    """The values of "in:a,b" (quotes keep a comma), or the one value."""
    return next(csv.reader([value[3:]]), []) if value.startswith("in:") else [value]


def _comparison(name: str, value: str) -> tuple[Callable[[Any, Any], bool], float]:
    head, colon, rest = value.partition(":")
    compare, text = (_COMPARISONS[head], rest) if colon and head in _COMPARISONS else (operator.eq, value)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise Invalid(f"image.list.{name}",
                      f"Filter {name} needs a time as in gt:2026-01-31T12:00:00Z, not {value[:80]!r}.") from error
    return compare, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _instant(moment: Timestamp) -> float:
    """Whole seconds: what the API shows and clients send back."""
    return moment.seconds


def _tag_test(tag: str) -> Callable[[Image], bool]:
    return lambda image: tag in image.tags


def _size_test(compare: Callable[[Any, Any], bool], bound: int) -> Callable[[Image], bool]:
    return lambda image: image.HasField("size") and compare(image.size, bound)


def _spelled(status: int) -> str:
    return enum_spelling(Member.Status.DESCRIPTOR.values_by_number[status])


def _last(filters: Mapping[str, Sequence[str]], name: str, default: str) -> str:
    return filters[name][-1] if filters.get(name) else default


def _boolean(name: str, value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise Invalid(f"image.list.{name}", f"Filter {name} must be true or false, not {value[:80]!r}.")


def _integer(name: str, value: str) -> int:
    try:
        number = int(value)
    except ValueError:
        number = -1
    if number < 0:
        raise Invalid(f"image.list.{name}", f"Filter {name} must be a number of bytes, not {value[:80]!r}.")
    return number
