"""How REST spells what descriptors hold: one rule for fields, one for enum values."""
import functools
import importlib
from pathlib import PurePosixPath

from google.protobuf.descriptor import Descriptor, EnumValueDescriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto
from google.protobuf.message import Message

from protos.brume.v1 import options_pb2


@functools.cache
def _given_names(message: Descriptor) -> dict[str, str]:
    """The json_names that a message's fields were given: only a descriptor's proto form tells them from protoc's own."""
    form = DescriptorProto()
    message.CopyToProto(form)
    return {field.name: field.json_name for field in form.field if field.json_name}


def field_name(field: FieldDescriptor) -> str:
    """A field's JSON name: its json_name where one was given, else its proto name."""
    return _given_names(field.containing_type).get(field.name, field.name)


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


def api_options(file: FileDescriptor) -> options_pb2.Api | None:
    """The (brume.v1.api) option of a file or of the api.proto beside it; None where neither has one."""
    own = file.GetOptions()
    if own.HasExtension(options_pb2.api):
        return own.Extensions[options_pb2.api]
    try:
        module = importlib.import_module(".".join(PurePosixPath(file.name).parent.parts) + ".api_pb2")
    except ImportError:
        return None
    beside = module.DESCRIPTOR.GetOptions()
    return beside.Extensions[options_pb2.api] if beside.HasExtension(options_pb2.api) else None
