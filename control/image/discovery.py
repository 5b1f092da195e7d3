"""The servicer of what the image API tells about itself: JSON schemas, import methods and stores.

The schemas are made from the proto descriptors and the bounds that model.py checks, so they cannot say something else.
"""
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.struct_pb2 import Struct

from control.image import model
from control.image.formats import CONTAINER_FORMATS, DISK_FORMATS
from control.kernel.errors import NotFound
from control.kernel.naming import enum_spelling, field_name
from control.kernel.rpc import Call
from protos.brume.v1 import options_pb2
from protos.image.v1 import discovery_pb2 as pb
from protos.image.v1.images_pb2 import Image
from protos.image.v1.members_pb2 import Member

_VALUES = {"disk_format": DISK_FORMATS, "container_format": CONTAINER_FORMATS}
_LONGEST = {"name": model.MAX_NAME, "owner": model.MAX_NAME}


class Discovery:
    """Serves image.v1.Discovery."""

    async def GetSchema(self, request: pb.GetSchemaRequest, call: Call) -> pb.GetSchemaResponse:
        schemas = {"image": _image, "images": lambda: _collection("images", _image()),
                   "member": _member, "members": lambda: _collection("members", _member())}
        if request.name not in schemas:
            raise NotFound("image.schemas.missing", f"There is no schema {request.name[:80]!r}: {', '.join(schemas)} are known.")
        return pb.GetSchemaResponse(schema=json_format.ParseDict(schemas[request.name](), Struct()))

    async def GetImportInfo(self, request: pb.GetImportInfoRequest, call: Call) -> pb.GetImportInfoResponse:
        return pb.GetImportInfoResponse(import_methods=pb.ImportMethods(
            description="Import methods available.", type="array", value=["glance-direct"]))

    async def ListStores(self, request: pb.ListStoresRequest, call: Call) -> pb.ListStoresResponse:
        return pb.ListStoresResponse(stores=[pb.Store(id="file", description="Files of the control plane", default="true")])


def _image() -> dict[str, Any]:
    properties = {field_name(field): _property(field, field.name not in model.SETTABLE)
                  for field in Image.DESCRIPTOR.fields if field.name != "properties"}
    relations = {"self": "self", "enclosure": "file", "describedby": "schema"}
    links = [{"rel": relation, "href": f"{{{name}}}"} for relation, name in relations.items()]
    return {"name": "image", "properties": properties, "additionalProperties": {"type": "string"}, "links": links}


def _member() -> dict[str, Any]:
    return {"name": "member", "properties": {field_name(field): _property(field, False) for field in Member.DESCRIPTOR.fields}}


def _collection(name: str, item: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {name: {"type": "array", "items": item}, "schema": {"type": "string"}}
    if name == "images":
        properties |= {"first": {"type": "string"}, "next": {"type": "string"}}
    return {"name": name, "properties": properties,
            "links": [{"rel": rel, "href": f"{{{rel}}}"} for rel in ("first", "next") if rel in properties]
            + [{"rel": "describedby", "href": "{schema}"}]}


def _property(field: FieldDescriptor, read_only: bool) -> dict[str, Any]:
    said: dict[str, Any]
    if field.is_repeated:
        said = {"type": "array", "items": {"type": "string", "maxLength": model.MAX_TAG}}
    elif field.enum_type:
        said = {"type": "string", "enum": [enum_spelling(value) for value in field.enum_type.values if value.number]}
    elif field.type == field.TYPE_BOOL:
        said = {"type": "boolean"}
    elif field.type == field.TYPE_INT64:
        said = {"type": "integer"}
    else:
        said = {"type": "string"}
    if field.GetOptions().Extensions[options_pb2.field].nullable:
        said["type"] = ["null", said["type"]]
    if field.name in _VALUES:
        said["enum"] = [None, *_VALUES[field.name]]
    if field.name in _LONGEST:
        said["maxLength"] = _LONGEST[field.name]
    if read_only:
        said["readOnly"] = True
    return said
