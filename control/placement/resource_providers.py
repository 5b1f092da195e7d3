"""The servicer of providers: lists with their filters, and the trees that providers are."""
import uuid
from collections.abc import Sequence

from google.protobuf.empty_pb2 import Empty

from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid
from control.kernel.fleet import PROVIDER
from control.kernel.rpc import Call
from control.placement import query, trees
from control.placement.candidates import Group, Node
from control.placement.model import bounded, uuid_of
from control.placement.view import View
from protos.internal.v1.fleet_pb2 import Provider
from protos.placement.v1 import resource_providers_pb2 as pb

#: Characters of a provider's name at most.
MAX_NAME = 200


class ResourceProviders:
    def __init__(self, database: Database, view: View):
        self._db = database
        self._view = view

    async def ListResourceProviders(self, request: pb.ListResourceProvidersRequest,
                                    call: Call) -> pb.ListResourceProvidersResponse:
        version = query.minor(call)
        required, forbidden = query.traits(request.required, version)
        member_of, not_member_of = query.aggregates(request.member_of, version)
        resources = query.resources(request.resources) if request.HasField("resources") else {}
        in_tree = query.in_tree(request.in_tree) if request.in_tree else ""
        wanted = Group(resources, required, forbidden, member_of, not_member_of, in_tree)
        query.check_names(self._db, [wanted])
        if request.uuid:
            uuid_of(request.uuid, "uuid")
        nodes = [node for node in self._candidates(request)
                 if request.name in ("", node.name) and self._passes(node, wanted)]
        rows = [self._db.require(PROVIDER, node.uuid) for node in sorted(nodes, key=lambda node: node.name)]
        return pb.ListResourceProvidersResponse(
            resource_providers=[shown(self._db, provider) for provider in rows],
            last_modified=max((provider.updated_at for provider in rows), key=lambda at: (at.seconds, at.nanos), default=None))

    def _candidates(self, request: pb.ListResourceProvidersRequest) -> Sequence[Node]:
        forest = self._view.forest
        if request.uuid:
            return [node] if (node := forest.nodes.get(request.uuid)) else []
        if request.in_tree:
            member = forest.nodes.get(request.in_tree)
            return list(forest.trees[member.root].values()) if member is not None else []
        return list(forest.nodes.values())

    def _passes(self, node: Node, wanted: Group) -> bool:
        if wanted.in_tree and ((member := self._view.forest.nodes.get(wanted.in_tree)) is None or member.root != node.root):
            return False
        return (all(not any_of.isdisjoint(node.traits) for any_of in wanted.required) and wanted.forbidden.isdisjoint(node.traits)
                and all(not any_of.isdisjoint(node.aggregates) for any_of in wanted.member_of)
                and wanted.not_member_of.isdisjoint(node.aggregates)
                and all(name in node.stocks and node.stocks[name].gives(amount) for name, amount in wanted.resources.items()))

    async def CreateResourceProvider(self, request: pb.CreateResourceProviderRequest, call: Call) -> pb.ResourceProviderResponse:
        name = bounded(request.name, "name", MAX_NAME)
        identifier = uuid_of(request.uuid, "uuid") if request.uuid else str(uuid.uuid4())
        parent = uuid_of(request.parent_provider_uuid, "parent_provider_uuid") if request.parent_provider_uuid else ""
        if parent == identifier:
            raise Invalid("provider.parent", f"Unable to create resource provider \"{name}\", {identifier}: parent provider UUID "
                                             "cannot be same as UUID.")
        return self._response(await self._db.transact(lambda tx: trees.create(tx, identifier, name, parent)))

    async def GetResourceProvider(self, request: pb.GetResourceProviderRequest, call: Call) -> pb.ResourceProviderResponse:
        return self._response(trees.require(self._db, request.uuid))

    async def UpdateResourceProvider(self, request: pb.UpdateResourceProviderRequest, call: Call) -> pb.ResourceProviderResponse:
        trees.require(self._db, request.uuid)
        name = bounded(request.name, "name", MAX_NAME)
        parent = uuid_of(request.parent_provider_uuid, "parent_provider_uuid") if request.parent_provider_uuid else ""

        def decide(tx: Transaction) -> Provider:
            provider = trees.require(tx, request.uuid)
            trees.rename(tx, provider, name)
            if parent or "parent_provider_uuid" in request.update_mask.paths:
                trees.move(tx, provider, parent, may_leave=query.minor(call) >= 37)
            return provider

        return self._response(await self._db.transact(decide))

    async def DeleteResourceProvider(self, request: pb.GetResourceProviderRequest, call: Call) -> Empty:
        await self._db.transact(lambda tx: trees.delete(tx, request.uuid))
        return Empty()

    def _response(self, provider: Provider) -> pb.ResourceProviderResponse:
        return pb.ResourceProviderResponse(resource_provider=shown(self._db, provider), last_modified=provider.updated_at)


def shown(db: Database, provider: Provider) -> pb.ResourceProvider:
    """A provider as users see it."""
    return pb.ResourceProvider(
        uuid=provider.uuid, name=provider.name, generation=trees.generation(db, provider),
        parent_provider_uuid=provider.parent_uuid or None, root_provider_uuid=provider.root_uuid)
