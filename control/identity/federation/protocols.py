"""Serves the protocols of identity providers."""
from urllib.parse import quote

from google.protobuf.empty_pb2 import Empty

from control.identity.federation.records import change, check_id, taken
from control.identity.model import IDENTITY_PROVIDER, MAPPING, PROTOCOL, require
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.listing import page, select
from control.kernel.rpc import Call
from protos.identity.v1 import protocols_pb2 as pb

MAX_ATTRIBUTE = 255


class Protocols:
    """identity.v1.Protocols."""

    def __init__(self, db: Database):
        self._db = db

    async def CreateProtocol(self, request: pb.CreateProtocolRequest, call: Call) -> pb.ProtocolResponse:
        protocol = pb.Protocol()
        protocol.CopyFrom(request.protocol)
        protocol.id, protocol.idp_id = request.protocol_id, request.idp_id
        protocol.ClearField("links")
        check_id("federation protocol", protocol.id)

        def decide(transaction: Transaction) -> None:
            require(transaction, IDENTITY_PROVIDER, request.idp_id)
            transaction.guard_exists(IDENTITY_PROVIDER, request.idp_id)
            if transaction.get(PROTOCOL, request.idp_id, request.protocol_id) is not None:
                raise taken("federation protocol", request.protocol_id)
            _check(transaction, protocol)
            transaction.put(PROTOCOL, protocol)

        await self._db.transact(decide)
        return pb.ProtocolResponse(protocol=_shown(protocol))

    async def ListProtocols(self, request: pb.ListProtocolsRequest, call: Call) -> pb.ListProtocolsResponse:
        require(self._db, IDENTITY_PROVIDER, request.idp_id)
        rows, marker = page(select(self._db.cache.by(PROTOCOL, "idp", request.idp_id), request.filters), limit=request.limit,
                            marker=request.marker)
        return pb.ListProtocolsResponse(protocols=map(_shown, rows), next_page_marker=marker)

    async def GetProtocol(self, request: pb.GetProtocolRequest, call: Call) -> pb.ProtocolResponse:
        require(self._db, IDENTITY_PROVIDER, request.idp_id)
        return pb.ProtocolResponse(protocol=_shown(require(self._db, PROTOCOL, request.idp_id, request.protocol_id)))

    async def UpdateProtocol(self, request: pb.UpdateProtocolRequest, call: Call) -> pb.ProtocolResponse:
        def decide(transaction: Transaction) -> pb.Protocol:
            protocol = require(transaction, PROTOCOL, request.idp_id, request.protocol_id)
            change(protocol, request.protocol, request.update_mask.paths)
            _check(transaction, protocol)
            transaction.put(PROTOCOL, protocol)
            return protocol

        return pb.ProtocolResponse(protocol=_shown(await self._db.transact(decide)))

    async def DeleteProtocol(self, request: pb.DeleteProtocolRequest, call: Call) -> Empty:
        def decide(transaction: Transaction) -> None:
            require(transaction, PROTOCOL, request.idp_id, request.protocol_id)
            transaction.delete(PROTOCOL, request.idp_id, request.protocol_id)

        await self._db.transact(decide)
        return Empty()


def _check(transaction: Transaction, protocol: pb.Protocol) -> None:
    if len(protocol.remote_id_attribute) > MAX_ATTRIBUTE:
        raise Invalid("identity.protocol.attribute",
                      f"Invalid input for field 'remote_id_attribute': at most {MAX_ATTRIBUTE} characters.")
    if not protocol.mapping_id:
        raise Invalid("identity.protocol.mapping", "Invalid input for field 'protocol': 'mapping_id' is a required property.")
    if transaction.get(MAPPING, protocol.mapping_id) is None:
        raise Invalid("identity.protocol.mapping", f"Invalid input for field 'mapping_id': there is no mapping "
                                                   f"{protocol.mapping_id[:64]!r}.")
    transaction.guard_exists(MAPPING, protocol.mapping_id)


def _shown(protocol: pb.Protocol) -> pb.Protocol:
    provider = f"/OS-FEDERATION/identity_providers/{quote(protocol.idp_id, safe='')}"
    shown = pb.Protocol(links=pb.ProtocolLinks(self=f"{provider}/protocols/{quote(protocol.id, safe='')}",
                                               identity_provider=provider))
    shown.MergeFrom(protocol)
    return shown
