"""What of a set of protos would not be understood by those who have an earlier one: the differences that break, and no others."""
from collections.abc import Iterator

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet


def breaks(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    """Each change between two versions that a reader, writer or caller of the other one would notice, in words.

    Fields may be added, and may go if their number and name are reserved; enum values likewise; rpcs and messages only come.
    """
    messages, enums = dict(_messages(new)), dict(_enums(new))
    for name, before in _messages(old):
        if name in messages:
            yield from _message(name, before, messages[name])
        else:
            yield f"{name} is gone"
    for name, enum in _enums(old):
        if name in enums:
            yield from _enum(name, enum, enums[name])
        else:
            yield f"{name} is gone"
    yield from _services(old, new)


def _message(name: str, before: DescriptorProto, after: DescriptorProto) -> Iterator[str]:
    fields = {field.number: field for field in after.field}
    for field in before.field:
        now = fields.get(field.number)
        if now is not None:
            said, says = _meaning(before, field), _meaning(after, now)
            if said != says:
                yield f"{name}.{field.name} = {field.number} was {said}, and is {now.name}, {says}"
            elif field.name != now.name:
                yield f"{name}.{field.name} = {field.number} is called {now.name}"
        elif not any(span.start <= field.number < span.end for span in after.reserved_range):
            yield f"{name}.{field.name} = {field.number} is gone, and its number is not reserved"
        elif field.name not in after.reserved_name:
            yield f"{name}.{field.name} = {field.number} is gone, and its name is not reserved"
    taken = {field.name: field.number for field in before.field}
    for field in after.field:
        if taken.get(field.name, field.number) != field.number:
            yield f"{name}.{field.name} = {taken[field.name]} has the number {field.number} now"


def _meaning(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """What decides how a field is read: its type, whether it is repeated, and the oneof that it excludes others in."""
    kind = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    many = "repeated " if field.label == FieldDescriptorProto.LABEL_REPEATED else ""
    oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") and not field.proto3_optional else ""
    presence = "optional " if field.proto3_optional else ""
    return f"{many}{presence}{kind}{field.type_name and ' ' + field.type_name}{oneof and ' of oneof ' + oneof}"


def _enum(name: str, before: EnumDescriptorProto, after: EnumDescriptorProto) -> Iterator[str]:
    values = {value.number: value.name for value in after.value}
    for value in before.value:
        if value.number in values:
            if values[value.number] != value.name:
                yield f"{name}.{value.name} = {value.number} is called {values[value.number]}"
        elif not any(span.start <= value.number <= span.end for span in after.reserved_range):
            yield f"{name}.{value.name} = {value.number} is gone, and its number is not reserved"


def _services(old: FileDescriptorSet, new: FileDescriptorSet) -> Iterator[str]:
    now = {f"{file.package}.{service.name}/{method.name}": method
           for file in new.file for service in file.service for method in service.method}
    for file in old.file:
        for service in file.service:
            for method in service.method:
                name = f"{file.package}.{service.name}/{method.name}"
                if name not in now:
                    yield f"rpc {name} is gone"
                    continue
                for part in ("input_type", "output_type", "client_streaming", "server_streaming"):
                    if getattr(method, part) != getattr(now[name], part):
                        yield f"rpc {name}: {part} was {getattr(method, part)}, and is {getattr(now[name], part)}"


def _messages(files: FileDescriptorSet) -> Iterator[tuple[str, DescriptorProto]]:
    def below(name: str, message: DescriptorProto) -> Iterator[tuple[str, DescriptorProto]]:
        yield name, message
        for nested in message.nested_type:
            yield from below(f"{name}.{nested.name}", nested)

    for file in files.file:
        for message in file.message_type:
            yield from below(f"{file.package}.{message.name}", message)


def _enums(files: FileDescriptorSet) -> Iterator[tuple[str, EnumDescriptorProto]]:
    for file in files.file:
        yield from ((f"{file.package}.{enum.name}", enum) for enum in file.enum_type)
    for name, message in _messages(files):
        yield from ((f"{name}.{enum.name}", enum) for enum in message.enum_type)
