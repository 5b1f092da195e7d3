"""Serves mappings. Rules that mean nothing are refused when they are given, not when somebody logs in."""
import math
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict

from control.identity.federation import mapping as language
from control.identity.federation.records import change, check_id, taken
from control.identity.model import MAPPING, require
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import mappings_pb2 as pb

#: Bytes of a mapping's rules at most.
MAX_RULES = 256 * 1024


class Mappings:
    """identity.v1.Mappings."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateMapping(self, request: pb.CreateMappingRequest, call: Call) -> pb.MappingResponse:
        mapping = pb.Mapping(schema_version="1.0")
        mapping.MergeFrom(request.mapping)
        mapping.id = request.mapping_id
        check_id("mapping", mapping.id)
        rules_of(mapping)

        def decide(transaction: Transaction) -> None:
            if transaction.get(MAPPING, mapping.id) is not None:
                raise taken("mapping", mapping.id)
            transaction.put(MAPPING, mapping)

        await self._db.transact(decide)
        return pb.MappingResponse(mapping=mapping)

    async def ListMappings(self, request: pb.ListMappingsRequest, call: Call) -> pb.ListMappingsResponse:
        rows, marker = page(select(self._db.cache.all(MAPPING), request.filters), limit=request.limit, marker=request.marker)
        return pb.ListMappingsResponse(mappings=rows, next_page_marker=marker)

    async def GetMapping(self, request: pb.GetMappingRequest, call: Call) -> pb.MappingResponse:
        return pb.MappingResponse(mapping=require(self._db, MAPPING, request.mapping_id))

    async def UpdateMapping(self, request: pb.UpdateMappingRequest, call: Call) -> pb.MappingResponse:
        def decide(transaction: Transaction) -> pb.Mapping:
            mapping = require(transaction, MAPPING, request.mapping_id)
            before = mapping.schema_version
            change(mapping, request.mapping, request.update_mask.paths)
            if not mapping.HasField("schema_version"):
                mapping.schema_version = before
            rules_of(mapping)
            transaction.put(MAPPING, mapping)
            return mapping

        return pb.MappingResponse(mapping=await self._db.transact(decide))

    async def DeleteMapping(self, request: pb.DeleteMappingRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            require(transaction, MAPPING, request.mapping_id)
            transaction.delete(MAPPING, request.mapping_id)

        await self._db.transact(decide)
        return Empty()


def rules_of(mapping: pb.Mapping) -> language.Rules:
    """A mapping, ready to be applied. Raises Invalid, naming the place of what means nothing."""
    if mapping.rules.ByteSize() > MAX_RULES:
        raise Invalid("mapping.rules", f"rules: at most {MAX_RULES} bytes")
    rules: Any = MessageToDict(mapping.rules) if mapping.HasField("rules") and _is_finite(mapping.rules) else None
    return language.parse(rules, mapping.schema_version)


def _is_finite(value: Any) -> bool:
    """Whether JSON can have all numbers in a value: native callers may send others."""
    match value.WhichOneof("kind"):
        case "number_value":
            return math.isfinite(value.number_value)
        case "struct_value":
            return all(map(_is_finite, value.struct_value.fields.values()))
        case "list_value":
            return all(map(_is_finite, value.list_value.values))
    return True
