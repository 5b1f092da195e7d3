"""Messages to JSON values: one straight-line Python function per message type, written from its descriptor.

What is decided by the descriptor is decided once, when the function is made; what is left to run is reads of fields,
a comparison per microversion bound and a dict. The functions live in one namespace per API, where they call each other.
"""
import base64
import keyword
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from control.gateway import times
from control.gateway.apis import field_options, in_json, number
from control.gateway.context import Context
from control.gateway.links import Relation, resource_links, segment
from control.kernel.naming import enum_spelling, field_name
from protos.brume.v1 import options_pb2

#: The field of a list's answer that says where the next page begins; links are made of it.
NEXT_MARKER = "next_page_marker"

#: The messages that stand for one scalar with presence.
WRAPPERS = frozenset(f"google.protobuf.{kind}Value" for kind in
                      ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String"))

Encode = Callable[[Message, Context], Any]


def any_value(value: Any) -> Any:
    """A google.protobuf.Value as JSON; doubles without a fraction as integers."""
    if text := value.string_value:      # by far the most common, and cheaper to read than to ask for
        return text
    match value.WhichOneof("kind"):
        case "number_value":
            return plain_number(value.number_value)
        case "struct_value":
            return any_struct(value.struct_value)
        case "list_value":
            return any_list(value.list_value)
        case "bool_value":
            return value.bool_value
        case "string_value":
            return ""
    return None


def any_struct(value: Any) -> dict[str, Any]:
    """A google.protobuf.Struct as JSON."""
    fields = value.fields
    return {key: any_value(fields[key]) for key in fields}      # items() of protobuf's maps costs twice as much


def any_list(value: Any) -> list[Any]:
    """A google.protobuf.ListValue as JSON."""
    return [any_value(item) for item in value.values]


def plain_number(value: float) -> int | float:
    """A double as JSON writes it: without a fraction where it has none and is exact, which minus zero would not be."""
    return int(value) if value.is_integer() and abs(value) < 2 ** 53 and (value or math.copysign(1, value) > 0) else value


def shortest_float32(value: float) -> float:
    """The double with the fewest digits that is the same float32."""
    for digits in (6, 7, 8):
        shorter = float(f"{value:.{digits}g}")
        if struct.unpack("f", struct.pack("f", shorter))[0] == value:
            return shorter
    return value


class Encoders:
    """The encoding functions of one API, made when first asked for."""

    def __init__(self, family: int, relations: Mapping[str, Sequence[Relation]]):
        self._family = family
        self._relations = relations
        self._names: dict[str, str] = {}
        self._enums: dict[str, str] = {}
        self._namespace: dict[str, Any] = {
            "any_value": any_value, "any_struct": any_struct, "any_list": any_list, "segment": segment,
            "float32": shortest_float32, "base64": lambda data: base64.b64encode(data).decode(),
            "time": times.FORMATS.get(family, times.zulu), "micros": times.micros,
        }

    def of(self, descriptor: Descriptor) -> Encode:
        """The function that makes a JSON object of a message of this type.

        Raises ValueError where the type has something that JSON cannot carry.
        """
        return self._namespace[self._function(descriptor)]

    def field(self, field: FieldDescriptor) -> Encode:
        """The function that makes the JSON value of one field of a message; null where it is not set."""
        name = f"field{len(self._namespace)}"
        value = self._value(field)
        if field.has_presence:
            value = f"({value} if m.HasField({field.name!r}) else None)"
        self._compile(name, [f"return {value}"], field.full_name)
        return self._namespace[name]

    def _function(self, descriptor: Descriptor) -> str:
        name = self._names.get(descriptor.full_name)
        if name is None:
            name = self._names[descriptor.full_name] = "encode_" + descriptor.full_name.replace(".", "_")
            self._compile(name, self._body(descriptor), descriptor.full_name)
        return name

    def _compile(self, name: str, lines: list[str], origin: str) -> None:
        source = f"def {name}(m, c):\n    " + "\n    ".join(lines) + "\n"
        exec(compile(source, f"<encoder of {origin}>", "exec"), self._namespace)  # noqa: S102 - made of descriptors alone

    def _body(self, descriptor: Descriptor) -> list[str]:
        always, sometimes, last = [], [], []
        for field in descriptor.fields:
            options = field_options(field)
            if not in_json(field) or field.name == NEXT_MARKER:
                continue
            value = self._value(field)
            if options.flatten:
                last += [f"for k, v in {value}.items():", "    d.setdefault(k, v)"]
                continue
            conditions = []
            if options.since:
                conditions.append(f"c.version >= {number(options.since)}")
            if options.until:
                conditions.append(f"c.version <= {number(options.until)}")
            if field.has_presence:
                if options.nullable:
                    value = f"{value} if has({field.name!r}) else None"
                else:
                    conditions.append(f"has({field.name!r})")
            elif options.omit_empty:
                conditions.append(_read(field))
            elif options.nullable and (field.is_repeated or field.type in EMPTY_IS_NULL):
                value = f"{value} if {_read(field)} else None"
            if conditions:
                sometimes.append(f"if {' and '.join(conditions)}: d[{field_name(field)!r}] = {value}")
            else:
                always.append(f"{field_name(field)!r}: {value}")
        return ["has = m.HasField", "d = {" + ", ".join(always) + "}", *sometimes, *last, *self._links(descriptor), "return d"]

    def _links(self, descriptor: Descriptor) -> list[str]:
        options = descriptor.GetOptions()
        if not options.HasExtension(options_pb2.resource):
            return []
        resource = options.Extensions[options_pb2.resource]
        id_field = descriptor.fields_by_name.get(resource.id_field or "id")
        if id_field is None or not resource.collection:
            raise ValueError(f"{descriptor.full_name} has the option (brume.v1.resource) without a collection or an id field")
        made = resource_links(self._family, self._relations.get(resource.collection, ()))
        if made is None or any(field_name(field) == made[0] for field in descriptor.fields):
            return []
        function = f"links{len(self._namespace)}"
        key, self._namespace[function] = made
        id_text = f"segment({_read(id_field)})" if resource.id_field else _read(id_field)
        return [f"d[{key!r}] = {function}(c, {resource.collection + '/'!r} + {id_text})"]

    def _value(self, field: FieldDescriptor) -> str:
        """Source text of a field's JSON value, the field being set."""
        read = _read(field)
        if is_map(field):
            key, item = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
            key_text = "k" if key.type == key.TYPE_STRING else "str(k).lower()" if key.type == key.TYPE_BOOL else "str(k)"
            return f"{{{key_text}: {self._element(item, 'x[k]')} for x in ({read},) for k in x}}"
        if field.is_repeated:
            value = self._element(field, "v")
            return f"[*{read}]" if value == "v" else f"[{value} for v in {read}]"
        return self._element(field, read)

    def _element(self, field: FieldDescriptor, text: str) -> str:
        """Source text of the JSON value of one element, `text` being its Python value."""
        options = field_options(field)
        if field.message_type is not None:
            match field.message_type.full_name:
                case "google.protobuf.Timestamp":
                    return f"{'micros' if options.micros else 'time'}({text})"
                case "google.protobuf.Value":
                    return f"any_value({text})"
                case "google.protobuf.Struct":
                    return f"any_struct({text})"
                case "google.protobuf.ListValue":
                    return f"any_list({text})"
                case "google.protobuf.Empty":
                    return "{}"
                case "google.protobuf.FieldMask":
                    return f"','.join({text}.paths)"
                case name if name in WRAPPERS:
                    return f"{text}.value"
                case name if name.startswith("google.protobuf."):
                    raise ValueError(f"{field.full_name}: {name} has no JSON form here; hide the field or change its type")
            return f"{self._function(field.message_type)}({text}, c)"
        if field.enum_type is not None:
            return f"{self._enum(field.enum_type)}.get({text}, {text})"
        if field.type == field.TYPE_BYTES:
            return f"base64({text})"
        if field.type == field.TYPE_FLOAT:
            return f"float32({text})"
        if options.href:
            return f"({text} and c.endpoint + {text})"
        return text

    def _enum(self, enum: EnumDescriptor) -> str:
        name = self._enums.get(enum.full_name)
        if name is None:
            name = self._enums[enum.full_name] = f"enum{len(self._enums)}"
            self._namespace[name] = {value.number: enum_spelling(value) for value in reversed(enum.values)}
        return name


#: Types without presence whose zero value means "none", so that null can be written for it.
EMPTY_IS_NULL = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_ENUM})


def _read(field: FieldDescriptor) -> str:
    return f"getattr(m, {field.name!r})" if keyword.iskeyword(field.name) else f"m.{field.name}"


def is_map(field: FieldDescriptor) -> bool:
    """Whether a field is a map."""
    return bool(field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry)
