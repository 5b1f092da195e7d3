"""A message with something in every field, made from its descriptor alone; and messages as plain values, for comparison."""
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

#: How deep messages are nested in a filled one; what is recursive ends there.
DEPTH = 4


def filled(kind: type[Message]) -> Message:
    """Every field set to a value that is not its default and that no other field of the message has. Of a oneof, the last one."""
    message = kind()
    _fill(message, DEPTH)
    return message


def _fill(message: Any, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and depth == 0:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            entries = getattr(message, field.name)
            if value.message_type is not None:
                _fill(entries[_scalar(key)], depth - 1)
            else:
                entries[_scalar(key)] = _scalar(value)
        elif field.is_repeated:
            values = getattr(message, field.name)
            for number in range(2):
                if field.message_type is not None:
                    _fill(values.add(), depth - 1)
                else:
                    values.append(_scalar(field, number))
        elif field.message_type is not None:
            own = getattr(message, field.name)
            own.SetInParent()
            _fill(own, depth - 1)
        else:
            setattr(message, field.name, _scalar(field))


def _scalar(field: FieldDescriptor, number: int = 0) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = f"{field.name}-{number}"
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case FieldDescriptor.CPPTYPE_ENUM:
            return _last(field.enum_type)
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return field.number + number + 0.5
        case _:
            return field.number + 100 * (number + 1)


def _last(enum: EnumDescriptor) -> int:
    return max(value.number for value in enum.values)


def plain(message: Message) -> dict[str, Any]:
    """What a message says, by the names of its fields; enums as numbers, since a reader need not know a newer value's name."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True, use_integers_for_enums=True)


def known(values: dict[str, Any], kind: Descriptor) -> dict[str, Any]:
    """The part of plain values that a message type has fields for."""
    fields = kind.fields_by_name
    return {name: _known(value, fields[name]) for name, value in values.items() if name in fields}


def _known(value: Any, field: FieldDescriptor) -> Any:
    kind = field.message_type
    if kind is None or kind.full_name.startswith("google.protobuf."):
        return value
    if kind.GetOptions().map_entry:
        inner = kind.fields_by_name["value"]
        return {key: _known(each, inner) for key, each in value.items()}
    return [known(each, kind) for each in value] if isinstance(value, list) else known(value, kind)


def names(kind: Descriptor) -> Iterator[str]:
    """The full names of a message and of all nested in it."""
    yield kind.full_name
    for nested in kind.nested_types:
        yield from names(nested)
