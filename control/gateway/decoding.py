"""JSON values to messages, strictly: what a descriptor does not name or type is refused with the path of the place.

A null is the same as leaving the key out. Nothing that was sent is repeated in an error beyond names and kinds of
values, since bodies carry passwords.
"""
import base64
import binascii
import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from control.gateway import times
from control.gateway.apis import EVERYTHING, field_options, in_json, number
from control.gateway.context import Context
from control.kernel.naming import enum_spelling, field_name

#: Levels of lists and objects in a google.protobuf.Value. A level costs up to three levels of messages, and parsers of
#: messages give up at 100: what is stored must be readable again, wrapped as it is in the records that hold it.
MAX_DEPTH = 24

_KINDS = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number",
          type(None): "null"}

BITS = {FieldDescriptor.CPPTYPE_INT32: (-2 ** 31, 2 ** 31 - 1), FieldDescriptor.CPPTYPE_UINT32: (0, 2 ** 32 - 1),
         FieldDescriptor.CPPTYPE_INT64: (-2 ** 63, 2 ** 63 - 1), FieldDescriptor.CPPTYPE_UINT64: (0, 2 ** 64 - 1)}

_TOO_LARGE_FOR_SINGLE = 3.4028235677973366e38      # what is below rounds to a number that a float has

_TRUE = frozenset({"true", "1", "yes", "on", "t", "y", ""})     # "": a parameter without a value is a flag
_FALSE = frozenset({"false", "0", "no", "off", "f", "n"})
_DECIMAL = re.compile(r"-?[0-9]{1,19}", re.ASCII)

Set = Callable[[Message, Any, Context], None]


class Wrong(Exception):
    """What is wrong with a JSON value; the path to it grows on the way out."""

    def __init__(self, text: str):
        super().__init__(text)
        self.text = text
        self.path = ""

    def within(self, key: str | int) -> "Wrong":
        """The same, seen from the value that holds it."""
        step = f"[{key}]" if isinstance(key, int) else key
        self.path = step + ("." if self.path and not self.path.startswith("[") else "") + self.path
        return self

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


def expected(what: str, value: Any) -> Wrong:
    """The error of a value of the wrong type."""
    return Wrong(f"expected {what}, not {_KINDS.get(type(value), 'that')}")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a JSON object."""

    name: str              # the field's proto name
    set: Set
    since: int
    until: int
    oneof: str             # "" where the field is in none
    fields: "Fields | None"   # of a single message; None for everything else


class Fields:
    """The keys that a JSON object of one message type may have."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.flatten: Entry | None = None
        self.required: list[tuple[str, int, bool]] = []      # key, microversion since when, whether null will do

    def fill(self, message: Message, value: Any, context: Context) -> None:
        """Set a message's fields from a JSON object. Raises Wrong."""
        if type(value) is not dict:
            raise expected("an object", value)
        for key, item in value.items():
            entry = self.entries.get(key)
            if entry is None or not entry.since <= context.version <= entry.until:
                if self.flatten is None:
                    raise Wrong(f"Additional properties are not allowed ({key!r} was unexpected)")
                self.flatten.set(message, {key: item}, context)
                continue
            if item is None:
                continue
            if entry.oneof and (other := message.WhichOneof(entry.oneof)):
                raise Wrong(f"{key!r} cannot be given together with {other!r}")
            try:
                entry.set(message, item, context)
            except Wrong as wrong:
                raise wrong.within(key)  # noqa: B904 - the same error, with its path
        for key, since, nullable in self.required:
            if context.version >= since and value.get(key) is None and not (nullable and key in value):
                raise Wrong(f"{key!r} is a required property")

    def names(self, value: dict[str, Any]) -> list[str]:
        """The proto names of the fields that an object has keys for, nulls included, each once."""
        found = (self.entries.get(key, self.flatten) for key in value)
        return list(dict.fromkeys(entry.name for entry in found if entry is not None))


class Decoders:
    """The decoding tables of one API, made when first asked for."""

    def __init__(self) -> None:
        self._made: dict[str, Fields] = {}

    def of(self, descriptor: Descriptor) -> Fields:
        """The table of a message type. Raises ValueError where the type has something that JSON cannot carry."""
        fields = self._made.get(descriptor.full_name)
        if fields is None:
            fields = self._made[descriptor.full_name] = Fields()      # before it is filled: types may be recursive
            self._fill(fields, descriptor.fields)
        return fields

    def part(self, fields: Iterable[FieldDescriptor]) -> Fields:
        """A table of some fields of a message: those that a body may set."""
        table = Fields()
        self._fill(table, fields)
        return table

    def _fill(self, table: Fields, fields: Iterable[FieldDescriptor]) -> None:
        for field in fields:
            if not in_json(field):
                continue
            options = field_options(field)
            oneof = field.containing_oneof
            entry = Entry(field.name, self.setter(field), number(options.since), number(options.until) or EVERYTHING,
                          oneof.name if oneof is not None and len(oneof.fields) > 1 else "",
                          self.of(field.message_type) if is_plain_message(field) else None)
            if options.flatten:
                table.flatten = entry
            else:
                table.entries[field_name(field)] = entry
                if options.required_since:
                    table.required.append((field_name(field), number(options.required_since), options.nullable))

    def setter(self, field: FieldDescriptor) -> Set:
        """The function that sets one field of a message from its JSON value, which is not null."""
        name = field.name
        if field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry:
            return self._map(field)
        if field.message_type is None:
            check = scalar(field)
            if not field.is_repeated:
                return lambda message, value, context: setattr(message, name, check(value))
            return _repeated(name, lambda items, value, context: items.append(check(value)))
        fill = self._message(field)
        if field.is_repeated:
            return _repeated(name, lambda items, value, context: fill(items.add(), value, context))

        def single(message: Message, value: Any, context: Context) -> None:
            inner = getattr(message, name)
            inner.SetInParent()
            fill(inner, value, context)
        return single

    def _map(self, field: FieldDescriptor) -> Set:
        name = field.name
        key_field, item_field = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        convert: Callable[[str], Any] = str if key_field.type == key_field.TYPE_STRING else lambda key: from_text(key_field, key)
        fill = self._message(item_field) if item_field.message_type is not None else None
        check = scalar(item_field) if fill is None else None

        def put(message: Message, value: Any, context: Context) -> None:
            if type(value) is not dict:
                raise expected("an object", value)
            items = getattr(message, name)
            for key, item in value.items():
                try:
                    if check is not None:
                        items[convert(key)] = check(item)
                    else:
                        inner = items[convert(key)]
                        inner.SetInParent()
                        fill(inner, item, context)  # type: ignore[misc]
                except Wrong as wrong:
                    raise wrong.within(key)  # noqa: B904
        return put

    def _message(self, field: FieldDescriptor) -> Set:
        """The function that fills a message, given itself, from JSON."""
        full_name = field.message_type.full_name
        if full_name in _WELL_KNOWN:
            return _WELL_KNOWN[full_name]
        if full_name.startswith("google.protobuf."):
            inner = field.message_type.fields_by_name.get("value")
            if inner is None or len(field.message_type.fields) != 1:
                raise ValueError(f"{field.full_name}: {full_name} has no JSON form here; hide the field or change its type")
            check = scalar(inner)
            return lambda message, value, context: setattr(message, "value", check(value))
        fields = self.of(field.message_type)
        if key := field_options(field).wrap:
            return _wrapped(field, fields, key)
        return lambda message, value, context: fields.fill(message, value, context)


def is_plain_message(field: FieldDescriptor) -> bool:
    """Whether a field is one message of our own kind: neither repeated nor one of protobuf's well-known types."""
    return bool(field.message_type is not None and not field.is_repeated
                and not field.message_type.full_name.startswith("google.protobuf."))


def _repeated(name: str, add: Callable[[Any, Any, Context], object]) -> Set:
    def put(message: Message, value: Any, context: Context) -> None:
        if type(value) is not list:
            raise expected("a list", value)
        items = getattr(message, name)
        for index, item in enumerate(value):
            try:
                add(items, item, context)
            except Wrong as wrong:
                raise wrong.within(index)  # noqa: B904
    return put


def _wrapped(field: FieldDescriptor, fields: Fields, key: str) -> Set:
    """What fills the request for one of many from the value of its only key."""
    entry = fields.entries.get(key)
    if entry is None or entry.fields is None:
        raise ValueError(f"{field.full_name}: {field.message_type.full_name} has no message under the key {key!r}")
    put, inner, has_mask = entry.set, entry.fields, "update_mask" in field.message_type.fields_by_name

    def fill(message: Any, value: Any, context: Context) -> None:
        if type(value) is not dict:
            raise expected("an object", value)
        put(message, value, context)
        if has_mask:
            message.update_mask.SetInParent()
            message.update_mask.paths.extend(inner.names(value))
    return fill


def scalar(field: FieldDescriptor) -> Callable[[Any], Any]:
    """The function that checks a JSON value for a scalar field and returns what to set."""
    if field.enum_type is not None:
        return _enum(field)
    if field.cpp_type in BITS:
        return _integer(*BITS[field.cpp_type], lenient=field_options(field).lenient)
    if field.type == field.TYPE_BOOL:
        return _lenient_boolean if field_options(field).lenient else _boolean
    if field.type == field.TYPE_BYTES:
        return _bytes
    if field.type == field.TYPE_FLOAT:
        return _single
    return _string if field.type == field.TYPE_STRING else _float


def _string(value: Any) -> str:
    if type(value) is not str:
        raise expected("a string", value)
    return value


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise expected("a boolean", value)
    return value


def _lenient_boolean(value: Any) -> bool:
    text = str(value).lower() if type(value) in (bool, int, str) else None
    if text not in _TRUE and text not in _FALSE:
        raise expected("a boolean", value)
    return text in _TRUE


def _float(value: Any) -> float:
    if type(value) not in (int, float):
        raise expected("a number", value)
    return value


def _single(value: Any) -> float:
    if abs(_float(value)) >= _TOO_LARGE_FOR_SINGLE:      # it would be stored as infinity
        raise Wrong("the number is out of range: -3.4e38 to 3.4e38")
    return value


def _integer(low: int, high: int, lenient: bool = False) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if lenient and type(value) is str and _DECIMAL.fullmatch(value):
            value = int(value)
        if type(value) is float and math.isfinite(value) and value.is_integer():
            value = int(value)
        if type(value) is not int:
            raise Wrong("expected an integer, not a fraction") if type(value) is float else expected("an integer", value)
        if not low <= value <= high:
            raise Wrong(f"{value} is out of range: {low} to {high}")
        return value
    return check


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(_string(value), validate=True)
    except (binascii.Error, ValueError):
        raise Wrong("expected base64") from None


def _enum(field: FieldDescriptor) -> Callable[[Any], int]:
    numbers = {enum_spelling(value): value.number for value in field.enum_type.values}

    def check(value: Any) -> int:
        found = numbers.get(_string(value))
        if found is None:
            raise Wrong(f"{value[:40]!r} is not one of {', '.join(repr(spelling) for spelling in numbers if spelling)}")
        return found
    return check


def text_reader(field: FieldDescriptor) -> Callable[[str], Any]:
    """The function that says what to set a scalar field to from a path, query or header. It raises Wrong."""
    check, is_integer = scalar(field), field.cpp_type in BITS

    def read_number(text: str) -> int | float:
        try:
            if is_integer:
                if not text.removeprefix("-").isdecimal() or len(text) > 20:
                    raise ValueError
                return check(int(text))
            value = float(text)
            if not math.isfinite(value):
                raise ValueError
            return value
        except ValueError:
            raise Wrong(f"expected {'an integer' if is_integer else 'a number'}, not {text[:40]!r}") from None

    if field.enum_type is not None or field.type == field.TYPE_STRING:
        return check
    if field.type == field.TYPE_BOOL:
        return _lenient_boolean
    return str.encode if field.type == field.TYPE_BYTES else read_number


def from_text(field: FieldDescriptor, text: str) -> Any:
    """What to set a scalar field to. Raises Wrong."""
    return text_reader(field)(text)


# Well-known types

def fill_value(message: Any, value: Any, depth: int = 0) -> None:
    """Set a google.protobuf.Value to any JSON."""
    kind = type(value)
    if kind is str:
        message.string_value = value
    elif kind is bool:
        message.bool_value = value
    elif kind is int or kind is float:
        message.number_value = value
    elif kind is dict:
        message.struct_value.SetInParent()
        _fill_struct(message.struct_value, value, depth)
    elif kind is list:
        message.list_value.SetInParent()
        _fill_list(message.list_value, value, depth)
    else:
        message.null_value = 0


def _fill_struct(message: Any, value: Any, depth: int = 0) -> None:
    if type(value) is not dict:
        raise expected("an object", value)
    _check_depth(depth)
    for key, item in value.items():
        fill_value(message.fields[key], item, depth + 1)


def _fill_list(message: Any, value: Any, depth: int = 0) -> None:
    if type(value) is not list:
        raise expected("a list", value)
    _check_depth(depth)
    for item in value:
        fill_value(message.values.add(), item, depth + 1)


def _check_depth(depth: int) -> None:
    if depth >= MAX_DEPTH:
        raise Wrong(f"nested more than {MAX_DEPTH} levels deep")


def _fill_timestamp(message: Any, value: Any, context: Context) -> None:
    try:
        message.CopyFrom(times.parse(_string(value)))
    except ValueError:
        raise Wrong("expected a time such as 2026-01-31T12:00:00Z") from None


def _fill_empty(message: Any, value: Any, context: Context) -> None:
    if value != {}:
        raise Wrong("expected an empty object")


def _fill_mask(message: Any, value: Any, context: Context) -> None:
    message.paths.extend(part for part in _string(value).split(",") if part)


_WELL_KNOWN: dict[str, Set] = {
    "google.protobuf.Value": lambda message, value, context: fill_value(message, value),
    "google.protobuf.Struct": lambda message, value, context: _fill_struct(message, value),
    "google.protobuf.ListValue": lambda message, value, context: _fill_list(message, value),
    "google.protobuf.Timestamp": _fill_timestamp,
    "google.protobuf.Empty": _fill_empty,
    "google.protobuf.FieldMask": _fill_mask,
}


def binding_fields(descriptor: Descriptor, taken: Collection[str]) -> list[FieldDescriptor]:
    """The top-level fields of a request that are bound neither by path nor header, nor hidden."""
    return [field for field in descriptor.fields
            if field.name not in taken and in_json(field)
            and not (field.message_type is not None and field.name == "update_mask")]
