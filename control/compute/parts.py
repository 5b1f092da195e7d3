"""The servicer of servers' parts: metadata and tags, which clients change, and addresses, which the network has."""
from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Value

from control.compute import access, limits, model
from control.compute.access import find_server
from control.compute.model import SERVER
from control.compute.neighbours import Ports
from control.compute.view import by_network
from control.kernel import clock
from control.kernel.database import Database, Transaction
from control.kernel.errors import Invalid, NotFound
from control.kernel.rpc import Call
from protos.compute.v1 import server_parts_pb2 as pb
from protos.compute.v1.records_pb2 import ServerRecord


class ServerParts:
    """Servicer of compute.v1.ServerParts."""

    def __init__(self, database: Database, ports: Ports):
        self._database = database
        self._ports = ports

    def _find(self, call: Call, server_id: str) -> ServerRecord:
        return find_server(self._database, call.caller, server_id)

    # Metadata

    async def ListMetadata(self, request: pb.ListMetadataRequest, call: Call) -> pb.Metadata:
        return pb.Metadata(metadata=self._find(call, request.server_id).metadata)

    async def AddMetadata(self, request: pb.SetMetadataRequest, call: Call) -> pb.Metadata:
        return await self._change_metadata(call, request.server_id, lambda items: items | dict(request.metadata))

    async def ReplaceMetadata(self, request: pb.SetMetadataRequest, call: Call) -> pb.Metadata:
        return await self._change_metadata(call, request.server_id, lambda items: dict(request.metadata))

    async def GetMetadataItem(self, request: pb.MetadataItemRequest, call: Call) -> pb.MetadataItem:
        items = self._find(call, request.server_id).metadata
        if request.key not in items:
            raise _no_item()
        return pb.MetadataItem(meta={request.key: items[request.key]})

    async def SetMetadataItem(self, request: pb.SetMetadataItemRequest, call: Call) -> pb.MetadataItem:
        if list(request.meta) != [request.key]:
            raise Invalid("compute.metadata.key", "Request body and URI mismatch: 'meta' must have one item, of the path's key.")
        changed = await self._change_metadata(call, request.server_id, lambda items: items | dict(request.meta))
        return pb.MetadataItem(meta={request.key: changed.metadata[request.key]})

    async def DeleteMetadataItem(self, request: pb.MetadataItemRequest, call: Call) -> Empty:
        def without(items: dict[str, str]) -> dict[str, str]:
            if request.key not in items:
                raise _no_item()
            return {key: value for key, value in items.items() if key != request.key}

        await self._change_metadata(call, request.server_id, without)
        return Empty()

    async def _change_metadata(self, call: Call, server_id: str,
                               change: Callable[[dict[str, str]], dict[str, str]]) -> pb.Metadata:
        def decide(server: ServerRecord) -> None:
            items = limits.metadata(change(dict(server.metadata)),
                                    access.limit(self._database, server.project_id, "metadata_items"))
            if items != dict(server.metadata):
                server.metadata.clear()
                server.metadata.update(items)
                server.desired.generation += 1     # the guest is told

        return pb.Metadata(metadata=(await self._change(call, server_id, decide)).metadata)

    # Tags

    async def ListTags(self, request: pb.ListTagsRequest, call: Call) -> pb.Tags:
        return pb.Tags(tags=self._find(call, request.server_id).tags)

    async def ReplaceTags(self, request: pb.ReplaceTagsRequest, call: Call) -> pb.Tags:
        return pb.Tags(tags=await self._change_tags(call, request.server_id, lambda tags: set(request.tags)))

    async def DeleteTags(self, request: pb.ListTagsRequest, call: Call) -> Empty:
        await self._change_tags(call, request.server_id, lambda tags: set())
        return Empty()

    async def CheckTag(self, request: pb.TagRequest, call: Call) -> Empty:
        if request.tag not in self._find(call, request.server_id).tags:
            raise _no_tag(request)
        return Empty()

    async def AddTag(self, request: pb.TagRequest, call: Call) -> Empty:
        new = request.tag not in self._find(call, request.server_id).tags
        await self._change_tags(call, request.server_id, lambda tags: tags | {request.tag})
        call.status = 201 if new else 204
        return Empty()

    async def DeleteTag(self, request: pb.TagRequest, call: Call) -> Empty:
        def without(tags: set[str]) -> set[str]:
            if request.tag not in tags:
                raise _no_tag(request)
            return tags - {request.tag}

        await self._change_tags(call, request.server_id, without)
        return Empty()

    async def _change_tags(self, call: Call, server_id: str, change: Callable[[set[str]], set[str]]) -> list[str]:
        def decide(server: ServerRecord) -> None:
            server.tags[:] = limits.tags(change(set(server.tags)))

        return list((await self._change(call, server_id, decide)).tags)

    async def _change(self, call: Call, server_id: str, change: Callable[[ServerRecord], None]) -> ServerRecord:
        """Change an unlocked server in one commit; the server as it is then."""
        def decide(tx: Transaction) -> ServerRecord:
            server = find_server(tx, call.caller, server_id)
            model.check_unlocked(server, call.caller.is_admin)
            change(server)
            server.updated_at.CopyFrom(clock.now())
            tx.put(SERVER, server)
            return server

        return await self._database.transact(decide)

    # Addresses

    async def ListAddresses(self, request: pb.ListAddressesRequest, call: Call) -> pb.Addresses:
        server = self._find(call, request.server_id)
        return pb.Addresses(addresses=by_network(self._ports.addresses(server.id), extended=False))

    async def GetAddresses(self, request: pb.GetAddressesRequest, call: Call) -> pb.NetworkAddresses:
        server = self._find(call, request.server_id)
        rows = by_network(self._ports.addresses(server.id), extended=False).get(request.network)
        if rows is None:
            raise NotFound("compute.addresses", f"Instance {server.id} has no address on a network {request.network[:80]!r}.")
        return pb.NetworkAddresses(network={request.network: Value(list_value=rows)})

    # Interfaces

    async def ListInterfaces(self, request: pb.ListInterfacesRequest, call: Call) -> pb.ListInterfacesResponse:
        return pb.ListInterfacesResponse(interfaces=self._interfaces(self._find(call, request.server_id)))

    async def GetInterface(self, request: pb.GetInterfaceRequest, call: Call) -> pb.GetInterfaceResponse:
        server = self._find(call, request.server_id)
        for interface in self._interfaces(server):
            if interface.port_id == request.port_id:
                return pb.GetInterfaceResponse(interface=interface)
        raise NotFound("compute.interface", f"Instance {server.id} has no port {request.port_id[:80]}.")

    def _interfaces(self, server: ServerRecord) -> list[pb.Interface]:
        """A server's ports that have an address."""
        found: dict[str, pb.Interface] = {}
        for address in self._ports.addresses(server.id):
            if address.type == "fixed":
                interface = found.setdefault(address.port_id, pb.Interface(
                    port_id=address.port_id, net_id=address.network_id, mac_addr=address.mac, port_state=address.port_state))
                interface.fixed_ips.add(subnet_id=address.subnet_id, ip_address=address.ip)
        return list(found.values())

    async def ListServerSecurityGroups(self, request: pb.ListServerSecurityGroupsRequest,
                                       call: Call) -> pb.ListServerSecurityGroupsResponse:
        names = self._ports.security_groups(self._find(call, request.server_id).id)
        return pb.ListServerSecurityGroupsResponse(
            security_groups=[pb.ListServerSecurityGroupsResponse.Group(name=name) for name in names])

    async def ListVolumeAttachments(self, request: pb.ListVolumeAttachmentsRequest,
                                    call: Call) -> pb.ListVolumeAttachmentsResponse:
        self._find(call, request.server_id)
        return pb.ListVolumeAttachmentsResponse()


def _no_item() -> NotFound:
    return NotFound("compute.metadata.item", "Metadata item was not found")


def _no_tag(request: pb.TagRequest) -> NotFound:
    return NotFound("compute.tag", f"Instance {request.server_id[:80]} has no tag {request.tag[:80]!r}.")
