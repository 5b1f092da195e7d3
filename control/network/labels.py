"""Labels (Neutron's tags) on whatever has them: one servicer for six nouns."""

from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf.empty_pb2 import Empty

from control.kernel.cache import Kind
from control.kernel.database import Database, Transaction
from control.kernel.rpc import Call
from control.network.access import Reader, floating_of, group_of, network_of, port_of, require_owner, router_of, subnet_of
from control.network.attributes import stamp, tags
from control.network.model import FLOATING_IP, GROUP, NETWORK, PORT, ROUTER, SUBNET, absent
from protos.network.v1 import tags_pb2 as pb

_NOUNS: dict[str, tuple[Kind, Callable[..., Any]]] = {
    "networks": (NETWORK, network_of),
    "subnets": (SUBNET, subnet_of),
    "ports": (PORT, port_of),
    "routers": (ROUTER, router_of),
    "floatingips": (FLOATING_IP, floating_of),
    "security-groups": (GROUP, group_of),
}


class Tags:
    def __init__(self, database: Database):
        self._database = database

    async def ListTags(self, request: pb.TagsRequest, call: Call) -> pb.TagsResponse:
        return pb.TagsResponse(tags=self._find(self._database, request, call)[1].tags)

    async def ReplaceTags(self, request: pb.TagsRequest, call: Call) -> pb.TagsResponse:
        return pb.TagsResponse(tags=await self._change(request, call, lambda old: request.tags))

    async def DeleteTags(self, request: pb.TagsRequest, call: Call) -> Empty:
        await self._change(request, call, lambda old: ())
        return Empty()

    async def CheckTag(self, request: pb.TagRequest, call: Call) -> Empty:
        if request.tag not in self._find(self._database, request, call)[1].tags:
            raise absent("tag", request.tag)
        return Empty()

    async def AddTag(self, request: pb.TagRequest, call: Call) -> Empty:
        await self._change(request, call, lambda old: [*old, request.tag])
        return Empty()

    async def DeleteTag(self, request: pb.TagRequest, call: Call) -> Empty:
        def without(old: Iterable[str]) -> list[str]:
            if request.tag not in old:
                raise absent("tag", request.tag)
            return [tag for tag in old if tag != request.tag]

        await self._change(request, call, without)
        return Empty()

    async def _change(
        self, request: pb.TagsRequest | pb.TagRequest, call: Call, change: Callable[[Iterable[str]], Iterable[str]]
    ) -> list[str]:
        def decide(tx: Transaction) -> list[str]:
            kind, resource = self._find(tx, request, call)
            require_owner(call.caller, request.collection.rstrip("s"), resource)
            new = tags(change(resource.tags))
            if new != list(resource.tags):
                resource.tags[:] = new
                stamp(resource)
                tx.put(kind, resource)
            return new

        return await self._database.transact(decide)

    def _find(self, reader: Reader, request: pb.TagsRequest | pb.TagRequest, call: Call) -> tuple[Kind, Any]:
        found = _NOUNS.get(request.collection)
        if found is None:
            raise absent("resource", request.collection)
        kind, find = found
        return kind, find(reader, call.caller, request.id)
