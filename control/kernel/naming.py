"""How REST spells what descriptors hold: one rule for fields, one for enum values."""
from google.protobuf.descriptor import EnumValueDescriptor, FieldDescriptor
from google.protobuf.message import Message

from protos.brume.v1 import options_pb2


def field_name(field: FieldDescriptor) -> str:
    """A field's JSON name: its json_name where one was given, else its proto name.

    Python's descriptors do not say whether json_name was given; protoc's default for it is lowerCamelCase.
    """
    head, *rest = field.name.split("_")
    default = head + "".join(part[:1].upper() + part[1:] for part in rest)
    return field.name if field.json_name == default else field.json_name


def enum_spelling(value: EnumValueDescriptor) -> str:
    """How REST writes an enum value: its spelling option, else its name; the zero value is ""."""
    if value.number == 0:
        return ""
    return value.GetOptions().Extensions[options_pb2.spelling] or value.name


def text_of(message: Message, field: FieldDescriptor) -> list[str]:
    """A field's values as a query would spell them; [] for what has no such spelling (messages) or is empty."""
    value = getattr(message, field.name)
    if field.message_type:
        return []
    values = list(value) if field.is_repeated else [value]
    if field.enum_type:
        return [enum_spelling(field.enum_type.values_by_number[number]) for number in values]
    return [str(value) for value in values]
