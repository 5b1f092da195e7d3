"""JSON patches of images: which attributes they may name and what they do, operation by operation, on a copy.

An attribute is a field that may be set, or else a property; every other field is read-only. The errors are Glance's.
"""
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Value

from control.image import model
from control.image.formats import CONTAINER_FORMATS, DISK_FORMATS
from control.kernel.errors import Conflict, Denied, Invalid
from control.kernel.naming import field_name
from protos.image.v1.images_pb2 import Image, PatchOperation

MAX_OPERATIONS = 256

_FIELDS = {field_name(field): field.name for field in Image.DESCRIPTOR.fields}
_VISIBILITY = {"private": Image.PRIVATE, "public": Image.PUBLIC, "shared": Image.SHARED, "community": Image.COMMUNITY}


def apply(image: Image, operations: Sequence[PatchOperation], is_admin: bool) -> None:
    """Change the image by each operation in order. What the result may hold is model.check's to say.

    Raises:
      Invalid: an operation is malformed or a value has the wrong type.
      Denied: an attribute is read-only, reserved or cannot be removed.
      Conflict: a property to replace or remove is not there.
    """
    if len(operations) > MAX_OPERATIONS:
        raise Invalid("image.patch.length", f"A patch may have {MAX_OPERATIONS} operations, not {len(operations)}.")
    for operation in operations:
        verb, name = _parse(operation)
        if name in _FIELDS and name != "properties":
            if _FIELDS[name] not in model.SETTABLE or name == "id":
                raise Denied("image.patch.read_only", f"Attribute '{name}' is read-only.")
            if verb == "remove":
                raise Denied("image.patch.remove", f"Attribute '{name}' may not be removed.")
            _set_field(image, name, _plain(operation.value), is_admin)
        else:
            model.check_property_name(name)
            _change_property(image, verb, name, operation.value)
    model.tidy_tags(image)


def _parse(operation: PatchOperation) -> tuple[str, str]:
    """(verb, attribute) of either spelling of an operation."""
    older = [(verb, getattr(operation, verb)) for verb in ("add", "replace", "remove") if getattr(operation, verb)]
    if older and (len(older) > 1 or operation.op or operation.path):
        raise Invalid("image.patch.operation", "An operation of a patch must name one change.")
    verb, path = older[0] if older else (operation.op, operation.path)
    if verb not in ("add", "replace", "remove"):
        raise Invalid("image.patch.operation", f"Unable to find 'op' in a JSON Schema change: add, replace and remove are known, "
                                               f"not {verb[:40]!r}.")
    if not path.startswith("/") or path.endswith("/") or "//" in path:
        raise Invalid("image.patch.path", f"Pointer `{path[:300]}` must start with a slash and have no empty part.")
    name, *deeper = path[1:].split("/")
    name = name.replace("~1", "/").replace("~0", "~")
    if deeper and name != "locations":
        raise Invalid("image.patch.path", f"Pointer `{path[:300]}` names a part of an attribute: only whole ones can be changed.")
    return verb, name


def _plain(value: Value) -> Any:
    """A JSON value in Python's types; an absent one is null."""
    if value.WhichOneof("kind") is None:
        return None
    plain = json_format.MessageToDict(value)
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def _set_field(image: Image, name: str, value: Any, is_admin: bool) -> None:
    if name == "tags":
        if not isinstance(value, list) or not all(isinstance(tag, str) for tag in value):
            raise _wrong(name, "a list of strings")
        del image.tags[:]
        image.tags.extend(value)
    elif name == "visibility":
        if value not in _VISIBILITY:
            raise _wrong(name, f"one of {', '.join(_VISIBILITY)}")
        image.visibility = _VISIBILITY[value]
    elif name in ("protected", "os_hidden"):
        setattr(image, name, _typed(name, value, lambda: isinstance(value, bool), "true or false"))
    elif name in ("min_disk", "min_ram"):
        setattr(image, name, _typed(name, value, lambda: type(value) is int and 0 <= value <= model.MAX_NUMBER,
                                    f"an integer from 0 to {model.MAX_NUMBER}"))
    elif name == "owner" and not is_admin:
        raise Denied("image.patch.owner", "Owner cannot be updated by non admin.")
    else:
        if name in ("disk_format", "container_format"):
            _check_format(image, name, value)
        if value is None:
            image.ClearField(name)  # type: ignore[arg-type]
        else:
            setattr(image, name, _typed(name, value, lambda: isinstance(value, str), "a string or null"))


def _check_format(image: Image, name: str, value: Any) -> None:
    if image.status != Image.QUEUED:
        raise Denied("image.patch.format", f"Attribute {name} can be only replaced for a queued image.")
    values = DISK_FORMATS if name == "disk_format" else CONTAINER_FORMATS
    if value is not None and value not in values:
        raise _wrong(name, f"one of {', '.join(values)}")


def _change_property(image: Image, verb: str, name: str, value: Value) -> None:
    if verb in ("replace", "remove") and name not in image.properties:
        raise Conflict("image.patch.property", f"Property {name} does not exist.")
    if verb == "remove" or value.HasField("null_value"):
        if name in image.properties:
            del image.properties[name]
    elif not value.HasField("string_value"):
        raise _wrong(name, "a string")
    else:
        image.properties[name].CopyFrom(value)


def _typed(name: str, value: Any, fits: Callable[[], bool], wanted: str) -> Any:
    if not fits():
        raise _wrong(name, wanted)
    return value


def _wrong(name: str, wanted: str) -> Invalid:
    return Invalid(f"image.patch.{name}", f"Invalid value for attribute '{name}': it must be {wanted}.")
