"""JSON Schemas of messages, saying what encoding.py writes and decoding.py accepts.

A message has up to three: as it is answered, as a body may hold it, and as a body that creates one must. They are components
of a document, by the message's full name with nothing, ".input" or ".create" after it.
"""
from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from control.gateway import times
from control.gateway.apis import Family, field_options, in_json
from control.gateway.comments import comment
from control.gateway.decoding import BITS
from control.gateway.encoding import NEXT_MARKER
from control.gateway.links import resource_links
from control.kernel.naming import enum_spelling, field_name
from protos.brume.v1 import options_pb2

Schema = dict[str, Any]

ANSWER, INPUT, CREATE = "", ".input", ".create"

_FORMATS = {FieldDescriptor.CPPTYPE_INT32: "int32", FieldDescriptor.CPPTYPE_INT64: "int64"}
_LINK: Schema = {"type": "object", "properties": {"rel": {"type": "string"}, "href": {"type": "string"}},
                 "required": ["rel", "href"]}
_LINKS: Schema = {"type": "array", "items": _LINK}
_RESOURCE_LINKS: dict[int, Schema] = {
    Family.NOVA: _LINKS, Family.CINDER: _LINKS, Family.PLACEMENT: _LINKS, Family.GLANCE: {"type": "string"},
    Family.KEYSTONE: {"type": "object", "properties": {"self": {"type": "string", "format": "uri"}}, "required": ["self"]}}
_NULLABLE_URL: Schema = {"type": ["string", "null"], "format": "uri"}


class Schemas:
    """The component schemas of one API's document, made when they are first referred to."""

    def __init__(self, family: int):
        self._family = family
        self.components: dict[str, Schema] = {}

    def message(self, descriptor: Descriptor, kind: str) -> Schema:
        """A reference to the schema of a message type."""
        name = descriptor.full_name + kind
        if name not in self.components:
            self.components[name] = {}      # before it is filled: types may be recursive
            fields = descriptor.fields
            made = self.answer(descriptor) if kind == ANSWER else self.body(fields, kind, comment(descriptor))
            if kind == ANSWER and self._family == Family.NEUTRON:
                made.pop("required", None)      # `fields` in a query takes any of a resource's keys away
            self.components[name] = made
        return {"$ref": f"#/components/schemas/{name}"}

    def answer(self, descriptor: Descriptor, rows: str = "") -> Schema:
        """What a message is in an answer; with `rows`, the key of a list's rows, what the family adds for pages."""
        properties: dict[str, Schema] = {}
        required: list[str] = []
        others: Any = False
        for field in descriptor.fields:
            if not in_json(field) or field.name == NEXT_MARKER:
                continue
            options = field_options(field)
            if options.flatten:
                others = self._value(field.message_type.fields_by_name["value"], ANSWER)
                continue
            name, schema = field_name(field), self.field(field, ANSWER)
            if options.nullable:
                schema = or_null(schema)
            properties[name] = schema
            left_out = options.omit_empty or options.since or options.until or (field.has_presence and not options.nullable)
            if not left_out:
                required.append(name)
        if descriptor.GetOptions().HasExtension(options_pb2.resource):
            links = resource_links(self._family, ())
            if links is not None and links[0] not in properties:
                properties[links[0]] = _RESOURCE_LINKS[self._family]
                required.append(links[0])
        if rows:
            pages, always = self._pages(rows)
            properties = pages | properties
            required += always
        return _object(properties, required, others, comment(descriptor))

    def body(self, fields: Iterable[FieldDescriptor], kind: str, description: str = "") -> Schema:
        """What an object of some fields of a message is in a request."""
        properties: dict[str, Schema] = {}
        required: list[str] = []
        others: Any = False
        for field in fields:
            if not in_json(field):
                continue
            if field_options(field).flatten:
                others = self._value(field.message_type.fields_by_name["value"], kind)
                continue
            name, schema, text = field_name(field), self.field(field, kind), comment(field)
            if text.startswith("Output only"):
                schema["readOnly"] = True
            options = field_options(field)
            always = options.required_since == "1.0"
            if always or (kind == CREATE and text.startswith("Required") and not options.since):
                required.append(name)
                properties[name] = or_null(schema) if always and options.nullable else schema
            else:
                properties[name] = or_null(schema)
        return _object(properties, required, others, description)

    def field(self, field: FieldDescriptor, kind: str) -> Schema:
        """The schema of one field's value, with what its comment and options say."""
        schema = dict(self._of_field(field, kind))
        if text := comment(field):
            schema["description"] = text
        options = field_options(field)
        if options.since or options.until:
            schema["x-openstack-microversion"] = bounds(options.since, options.until)
        return schema

    def _of_field(self, field: FieldDescriptor, kind: str) -> Schema:
        if field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry:
            return {"type": "object", "additionalProperties": self._value(field.message_type.fields_by_name["value"], kind)}
        if field.is_repeated:
            wrap = field_options(field).wrap if kind != ANSWER else ""
            return {"type": "array", "items": self._value(named(field.message_type, wrap) if wrap else field, kind)}
        return self._value(field, kind)

    def _value(self, field: FieldDescriptor, kind: str) -> Schema:
        """The schema of one element of a field."""
        if field.message_type is None:
            return self._scalar(field, kind)
        match field.message_type.full_name.removeprefix("google.protobuf."):
            case "Timestamp":
                zoned = times.FORMATS.get(self._family) is not times.micros and not field_options(field).micros
                return {"type": "string", "format": "date-time"} if zoned and kind == ANSWER else {"type": "string"}
            case "Value":
                return {}
            case "Struct":
                return {"type": "object"}
            case "ListValue":
                return {"type": "array"}
            case "Empty":
                return {"type": "object", "maxProperties": 0}
            case "FieldMask":
                return {"type": "string"}
            case name if name != field.message_type.full_name:
                return self._scalar(field.message_type.fields_by_name["value"], kind)
        return self.message(field.message_type, kind)

    def _scalar(self, field: FieldDescriptor, kind: str) -> Schema:
        options = field_options(field)
        lenient = options.lenient and kind != ANSWER
        if field.enum_type is not None:
            return {"type": "string", "enum": spellings(field.enum_type)}
        if field.cpp_type in BITS:
            low, high = BITS[field.cpp_type]
            schema: Schema = {"type": "integer", "minimum": low, "maximum": high}
            if field.cpp_type in _FORMATS:
                schema["format"] = _FORMATS[field.cpp_type]
            return {"anyOf": [schema, {"type": "string", "pattern": "^-?[0-9]{1,19}$"}]} if lenient else schema
        if field.type == field.TYPE_BOOL:
            return {"type": ["boolean", "string", "integer"]} if lenient else {"type": "boolean"}
        if field.type == field.TYPE_BYTES:
            return {"type": "string", "contentEncoding": "base64"}
        if field.type == field.TYPE_STRING:
            return {"type": "string"}
        return {"type": ["number", "null"] if kind == ANSWER else "number"}      # no JSON for what is not finite

    def _pages(self, rows: str) -> tuple[dict[str, Schema], list[str]]:
        """The keys that links.page_links adds, and those that are always there."""
        match self._family:
            case Family.KEYSTONE:
                links = {"self": {"type": "string", "format": "uri"}, "previous": _NULLABLE_URL, "next": _NULLABLE_URL}
                return {"links": _object(links, list(links))}, ["links"]
            case Family.GLANCE:
                return {"first": {"type": "string"}, "next": {"type": "string"}}, ["first"]
            case Family.PLACEMENT:
                return {}, []
        return {f"{rows}_links": _LINKS}, []


def named(descriptor: Descriptor, name: str) -> FieldDescriptor:
    """A message's field by its JSON name."""
    return next(field for field in descriptor.fields if field_name(field) == name)


def spellings(enum: EnumDescriptor) -> list[str]:
    """Every value of an enum as REST writes it, the zero value's "" included."""
    return list(dict.fromkeys(enum_spelling(value) for value in enum.values))


def or_null(schema: Schema) -> Schema:
    """The same schema, of null too."""
    if "$ref" in schema:
        rest = {key: item for key, item in schema.items() if key != "$ref"}
        return {"anyOf": [{"$ref": schema["$ref"]}, {"type": "null"}], **rest}
    if "anyOf" in schema:
        return schema | {"anyOf": [*schema["anyOf"], {"type": "null"}]}
    if "type" not in schema:
        return schema
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    made = schema | {"type": [*types, "null"]}
    return made | {"enum": [*schema["enum"], None]} if "enum" in schema else made


def bounds(since: str, until: str) -> dict[str, str]:
    """The value of x-openstack-microversion: the bounds that are there, inclusive."""
    return {key: version for key, version in (("since", since), ("until", until)) if version}


def _object(properties: dict[str, Schema], required: list[str], others: Any = False, description: str = "") -> Schema:
    made: Schema = {"type": "object", "properties": properties, "additionalProperties": others}
    if required:
        made["required"] = required
    if description:
        made["description"] = description
    return made
