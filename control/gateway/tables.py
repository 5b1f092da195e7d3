"""The tables of the transcoder: from descriptors and options, what encoding.py makes functions of.

A type that the transcoder does not write has no table, nor has one that holds it, and is encoded by the reference. Those are
types whose enums are closed (proto2), that give two fields one JSON name, or whose options do not fit the field they stand
on: flatten anywhere but on one map with string keys, href on what is no string, an id that is none. None are in protos/.
"""
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.timestamp_pb2 import Timestamp

from control.gateway import times
from control.gateway._transcode import Form, Kind, Shape, Table
from control.gateway.apis import field_options, in_json, number
from control.gateway.context import Context
from control.gateway.encoding import EMPTY_IS_NULL, NEXT_MARKER, WRAPPERS, is_map
from control.gateway.links import Relation, resource_links
from control.kernel.naming import enum_spelling, field_name
from protos.brume.v1 import options_pb2

_FOREVER = 2 ** 62


class Wire(IntEnum):
    """How a value stands in a message's bytes, by the numbers of protobuf's wire format."""

    VARINT, FIXED64, BYTES_OF, FIXED32 = 0, 1, 2, 5


_SCALARS = {
    FieldDescriptor.TYPE_INT32: (Kind.INT32, Wire.VARINT), FieldDescriptor.TYPE_INT64: (Kind.INT64, Wire.VARINT),
    FieldDescriptor.TYPE_UINT32: (Kind.UINT32, Wire.VARINT), FieldDescriptor.TYPE_UINT64: (Kind.UINT64, Wire.VARINT),
    FieldDescriptor.TYPE_SINT32: (Kind.SINT32, Wire.VARINT), FieldDescriptor.TYPE_SINT64: (Kind.SINT64, Wire.VARINT),
    FieldDescriptor.TYPE_FIXED32: (Kind.UINT32, Wire.FIXED32), FieldDescriptor.TYPE_FIXED64: (Kind.UINT64, Wire.FIXED64),
    FieldDescriptor.TYPE_SFIXED32: (Kind.INT32, Wire.FIXED32), FieldDescriptor.TYPE_SFIXED64: (Kind.INT64, Wire.FIXED64),
    FieldDescriptor.TYPE_FLOAT: (Kind.FLOAT, Wire.FIXED32), FieldDescriptor.TYPE_DOUBLE: (Kind.DOUBLE, Wire.FIXED64),
    FieldDescriptor.TYPE_BOOL: (Kind.BOOL, Wire.VARINT), FieldDescriptor.TYPE_ENUM: (Kind.ENUM, Wire.VARINT),
    FieldDescriptor.TYPE_STRING: (Kind.STRING, Wire.BYTES_OF), FieldDescriptor.TYPE_BYTES: (Kind.BYTES, Wire.BYTES_OF),
    FieldDescriptor.TYPE_MESSAGE: (Kind.MESSAGE, Wire.BYTES_OF),
}

#: What a value that is not set is written as; everything else as 0.
_ZEROS = {Kind.BOOL: b"false", Kind.ENUM: b'""', Kind.STRING: b'""', Kind.BYTES: b'""', Kind.DOUBLE: b"0.0", Kind.FLOAT: b"0.0"}

_MOMENTS: dict[Callable[[Timestamp], str], Form] = {
    times.zulu: Form.ZULU, times.micros_zulu: Form.MICROS_ZULU, times.micros: Form.MICROS}

_WITHOUT_FIELDS = frozenset({"google.protobuf.Timestamp", "google.protobuf.FieldMask", "google.protobuf.Empty"})

#: What stands for the context's parts and the id while templates of links are made: characters of no text.
_PARTS = ("\ue000", "\ue001", "\ue002", "\ue003")


class Uncovered(Exception):
    """The transcoder has no way to write a type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One field, as Table.fill reads it."""

    number: int
    kind: Kind
    wire: Wire
    shape: Shape = Shape.SINGLE
    name: str = ""                  # its JSON key; "": the value stands alone
    absent: bytes | None = None     # the JSON of a field that is not set; None: it is left out
    zero_is_absent: bool = False    # also where zero was sent
    since: int = 0
    until: int = _FOREVER
    is_href: bool = False
    oneof: int = -1
    child: Table | None = None
    spellings: Sequence[tuple[int, str]] = ()


class Tables:
    """The tables of one API, made when first asked for."""

    def __init__(self, family: int, relations: Mapping[str, Sequence[Relation]]):
        self._family = family
        self._relations = relations
        self._made: dict[tuple[str, bool], Table] = {}

    def of(self, descriptor: Descriptor) -> Table:
        """The table of a message type. Raises Uncovered."""
        if descriptor.full_name.startswith("google.protobuf."):
            raise Uncovered(f"{descriptor.full_name} has a form of its own only as a field's value")
        return self._table(descriptor, False)

    def field(self, field: FieldDescriptor) -> Table:
        """The table that writes a message as the value of one of its fields; null where that is not set. Raises Uncovered."""
        table = Table(Form.SOLE)
        siblings = field.containing_oneof.fields if _oneof(field) >= 0 else []
        others = [self._unseen(other) for other in siblings if other is not field]
        table.fill([self._row(field, absent=b"null" if field.has_presence else _empty(field)), *others])
        return table

    def _table(self, descriptor: Descriptor, micros: bool) -> Table:
        key = descriptor.full_name, micros
        table = self._made.get(key)
        if table is None:
            table = self._made[key] = Table(self._form(descriptor, micros))      # before it is filled: types may be recursive
            try:
                self._fill(table, descriptor)
            except Uncovered:
                self._made.clear()      # with those that were made for this one and point to it
                raise
        return table

    def _form(self, descriptor: Descriptor, micros: bool) -> Form:
        match descriptor.full_name:
            case "google.protobuf.Timestamp":
                return Form.MICROS if micros else _MOMENTS[times.FORMATS.get(self._family, times.zulu)]
            case "google.protobuf.Value":
                return Form.CHOICE
            case "google.protobuf.Empty":
                return Form.EMPTY
            case "google.protobuf.FieldMask":
                return Form.MASK
            case "google.protobuf.Struct" | "google.protobuf.ListValue":
                return Form.SOLE
            case name if name in WRAPPERS:
                return Form.SOLE
        return Form.OBJECT

    def _fill(self, table: Table, descriptor: Descriptor) -> None:
        if descriptor.full_name == "google.protobuf.Value":
            table.fill([self._choice(field) for field in descriptor.fields])
        elif descriptor.full_name in ("google.protobuf.Struct", "google.protobuf.ListValue"):
            field = descriptor.fields[0]
            table.fill([self._row(field, absent=_empty(field))])
        elif descriptor.full_name in WRAPPERS:
            field = descriptor.fields[0]
            kind, wire = _SCALARS[field.type]
            table.fill([Row(number=field.number, kind=Kind.WIDENED if kind is Kind.FLOAT else kind, wire=wire,
                            absent=_ZEROS.get(kind, b"0"))])
        elif not descriptor.full_name.startswith("google.protobuf."):
            self._object(table, descriptor)
        elif descriptor.full_name in _WITHOUT_FIELDS:
            table.fill([])
        else:
            raise Uncovered(f"{descriptor.full_name} has no JSON form here")

    def _choice(self, field: FieldDescriptor) -> Row:
        kind, wire = _SCALARS[field.type]
        kind = {Kind.ENUM: Kind.NULL_VALUE, Kind.DOUBLE: Kind.NUMBER}.get(kind, kind)
        return Row(number=field.number, kind=kind, wire=wire, oneof=0,
                   child=self._table(field.message_type, False) if field.message_type is not None else None)

    def _object(self, table: Table, descriptor: Descriptor) -> None:
        always: list[tuple[FieldDescriptor, Row]] = []
        sometimes: list[tuple[FieldDescriptor, Row]] = []
        last: list[tuple[FieldDescriptor, Row]] = []
        unseen: list[tuple[FieldDescriptor, Row]] = []
        id_field, links = self._links(descriptor)
        for field in descriptor.fields:
            options = field_options(field)
            if not in_json(field) or field.name == NEXT_MARKER:
                if _oneof(field) >= 0 or field is id_field:
                    unseen.append((field, self._unseen(field)))
            elif options.flatten:
                last.append((field, self._flattened(field)))
            else:
                row = self._row(field, name=field_name(field), **_absence(field))
                (sometimes if row.since or row.until < _FOREVER or row.absent is None else always).append((field, row))
        placed = always + sometimes + last + unseen
        names = [row.name for _, row in always + sometimes]
        if len(set(names)) != len(names) or len(last) > 1:
            raise Uncovered(f"{descriptor.full_name} has two fields of one name, or two flattened ones")
        table.fill([row for _, row in placed])
        if links is not None and links[0] not in map(field_name, descriptor.fields):
            place = next(place for place, (field, _) in enumerate(placed) if field is id_field)
            table.link(links[0], place, bool(_resource(descriptor).id_field), links[1])

    def _unseen(self, field: FieldDescriptor) -> Row:
        _, wire = _scalar(field)
        return Row(number=field.number, kind=Kind.BYTES, wire=wire, shape=Shape.UNSEEN, oneof=_oneof(field))

    def _row(self, field: FieldDescriptor, **rest) -> Row:
        """A field by its type, with what is known of it otherwise."""
        options = field_options(field)
        kind, wire = _scalar(field)
        if options.href and kind is not Kind.STRING and (kind is not Kind.MESSAGE or is_map(field)):
            raise Uncovered(f"{field.full_name} is an href that is no string")
        if is_map(field):
            shape, child = Shape.MAP, self._entry(field)
        else:
            shape = Shape.REPEATED if field.is_repeated else Shape.SINGLE
            child = self._table(field.message_type, options.micros) if field.message_type is not None else None
        return Row(number=field.number, kind=kind, wire=wire, shape=shape, child=child, oneof=_oneof(field),
                   since=number(options.since), until=number(options.until) or _FOREVER, is_href=options.href,
                   spellings=_spellings(field), **rest)

    def _flattened(self, field: FieldDescriptor) -> Row:
        if not is_map(field) or field.message_type.fields_by_name["key"].type != FieldDescriptor.TYPE_STRING:
            raise Uncovered(f"{field.full_name} is flattened and no map with string keys")
        return Row(number=field.number, kind=Kind.MESSAGE, wire=Wire.BYTES_OF, shape=Shape.FLATTENED, child=self._entry(field))

    def _entry(self, field: FieldDescriptor) -> Table:
        key, item = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        table = Table(Form.OBJECT)
        table.fill([self._row(key), self._row(item, absent=_ZEROS.get(_SCALARS[item.type][0], b"0"))])
        return table

    def _links(self, descriptor: Descriptor) -> tuple[FieldDescriptor | None, tuple[str, list] | None]:
        """The field that names a resource, and its links: their key and the templates of their value by microversion."""
        resource = _resource(descriptor)
        if not resource.collection:
            return None, None
        relations = self._relations.get(resource.collection, ())
        made = resource_links(self._family, relations)
        id_field = descriptor.fields_by_name[resource.id_field or "id"]
        if made is None:
            return None, None
        if id_field.type != FieldDescriptor.TYPE_STRING or id_field.is_repeated or _oneof(id_field) >= 0:
            raise Uncovered(f"{id_field.full_name} names a resource and is no string")
        key, links = made
        base, mount, prefix, tail = _PARTS
        templates = []
        for since in sorted({0, *(relation.since for relation in relations)}):
            context = Context(version=since, base=base, mount=mount, prefix=prefix)
            text = b"," + orjson.dumps(key) + b":" + orjson.dumps(links(context, f"{resource.collection}/{tail}"))
            pieces = re.split(f"([{base}-{tail}])", text.decode())
            templates.append((since, [_PARTS.index(piece) if piece in _PARTS else piece.encode() for piece in pieces if piece]))
        return id_field, (key, templates)


def _scalar(field: FieldDescriptor) -> tuple[Kind, Wire]:
    if field.type not in _SCALARS or (field.enum_type is not None and field.enum_type.is_closed):
        raise Uncovered(f"{field.full_name} is a group or a closed enum")
    return _SCALARS[field.type]


def _resource(descriptor: Descriptor) -> options_pb2.Resource:
    return descriptor.GetOptions().Extensions[options_pb2.resource]


def _oneof(field: FieldDescriptor) -> int:
    """The oneof that a field shares with others; -1: none."""
    oneof = field.containing_oneof
    return oneof.index if oneof is not None and len(oneof.fields) > 1 else -1


def _empty(field: FieldDescriptor) -> bytes:
    """The JSON of a field without presence that is empty."""
    return b"{}" if is_map(field) else b"[]" if field.is_repeated else _ZEROS.get(_SCALARS[field.type][0], b"0")


def _absence(field: FieldDescriptor) -> dict:
    """What is written for a field that is not set, and whether zero is the same."""
    options = field_options(field)
    if field.has_presence:
        return {"absent": b"null" if options.nullable else None}
    if options.omit_empty:
        return {"absent": None, "zero_is_absent": True}
    if options.nullable and (field.is_repeated or field.type in EMPTY_IS_NULL):
        return {"absent": b"null", "zero_is_absent": True}
    return {"absent": _empty(field)}


def _spellings(field: FieldDescriptor) -> list[tuple[int, str]]:
    """An enum's numbers with what is written for each, in the order of the numbers."""
    if field.enum_type is None:
        return []
    return sorted({value.number: enum_spelling(value) for value in reversed(field.enum_type.values)}.items())
