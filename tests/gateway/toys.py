"""Servicers of the toy protos: each says back what it was told, so that a conversation sees what a handler would."""
import hashlib

from google.protobuf.empty_pb2 import Empty
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from toycompute.v1 import servers_pb2 as compute
from toyidentity.v1 import identity_pb2 as identity
from toyimage.v1 import images_pb2 as image
from toynetwork.v1 import networks_pb2 as network
from toyplacement.v1 import providers_pb2 as placement

from control.kernel.errors import (
    Conflict,
    Denied,
    Exhausted,
    Invalid,
    NotFound,
    Stale,
    TooLarge,
    Unavailable,
)
from control.kernel.listing import page

#: Errors by the name that a toy is asked for.
ERRORS = {"conflict": Conflict("toy.state", "The thing is busy."),
          "quota": Exhausted("toy.quota", "Quota exceeded for things: 10."),
          "denied": Denied("toy.owner", "Not yours."), "stale": Stale("toy.stale", "Somebody was faster."),
          "invalid": Invalid("toy.name", "The name is bad."), "away": Unavailable("toy.away", "Come again."),
          "large": TooLarge("toy.large", "Too large."), "markup": NotFound("toy.markup", "No <b>such</b> thing.")}


def fail_if_asked(name: str, text: str = "") -> None:
    if name in ERRORS:
        raise ERRORS[name]
    if name == "missing":
        raise NotFound("network.networks.missing", text or f"Thing {name} could not be found.")


def server(number: int) -> compute.Server:
    """A server as full as a real one."""
    made = compute.Server(
        id=f"5e3a2f0c-0000-4000-8000-{number:012d}", name=f"server-{number}", status=compute.Server.ACTIVE,
        tenant_id="p1", user_id="u1", disk_config="MANUAL", zone="nova", vm_state="active", tags=["blue"],
        metadata={"role": "web", "tier": "one"}, host_id="h" * 56,
        flavor=compute.Flavor(original_name="m1.small", vcpus=1, ram=2048, disk=20),
        created=Timestamp(seconds=1767225600 + number), updated=Timestamp(seconds=1767225600 + number),
        launched_at=Timestamp(seconds=1767225600 + number, nanos=123456000),
        power_state=1, security_groups=[compute.SecurityGroup(name="default")], old="gone soon", size_bytes=2 ** 40,
        ports=[compute.Address(addr=f"10.0.0.{number}", version=4, mac_addr="fa:16:3e:00:00:01", type="fixed")], secret="hidden")
    made.image.id = "1a2b3c4d-0000-4000-8000-000000000001"
    return made


class Servers:
    async def CreateServer(self, request, call):
        fail_if_asked(request.server.name)
        made = compute.Server(id="s1", name=request.server.name, status=compute.Server.BUILD)
        made.swap.string_value = str(MessageToDict(request, preserving_proto_field_name=True))
        return compute.ServerResponse(server=made)

    async def ListServers(self, request, call):
        rows, marker = page([server(i) for i in range(5)], limit=request.limit, marker=request.marker)
        answer = compute.ListServersResponse(servers=rows, next_page_marker=marker)
        if rows:
            answer.servers[0].swap.string_value = str(MessageToDict(request, preserving_proto_field_name=True))
        return answer

    async def GetServer(self, request, call):
        fail_if_asked(request.server_id, f"Instance {request.server_id} could not be found.")
        made = server(1)
        made.id = request.server_id
        return compute.ServerResponse(server=made)

    async def UpdateServer(self, request, call):
        return compute.UpdateServerResponse(mask=request.update_mask.paths, server_id=request.server_id, server=request.server)

    async def DeleteServer(self, request, call):
        return Empty()

    async def StopServer(self, request, call):
        if request.server_id == "s300":
            call.status = 300
        return Empty()

    async def RebootServer(self, request, call):
        if request.reboot.type not in ("SOFT", "HARD"):
            raise Invalid("toy.reboot", "reboot.type must be SOFT or HARD")
        return Empty()

    async def CreateImage(self, request, call):
        return Empty()

    async def CreateImageAnswer(self, request, call):
        return compute.CreateImageResponse(image_id="i1")

    async def SetMetadataItem(self, request, call):
        if set(request.meta) != {request.key}:
            raise Invalid("toy.key", "Request body and URI mismatch")
        return compute.SetMetadataItemResponse(meta=request.meta)

    async def CreateKeypair(self, request, call):
        return compute.KeypairResponse(keypair=request.keypair)

    async def ListTags(self, request, call):
        return compute.TagsResponse(tags=["blue"])

    async def Break(self, request, call):
        raise RuntimeError("a secret of the inside")

    async def Echo(self, request, call):
        return request


class Tokens:
    async def CreateToken(self, request, call):
        fail_if_asked(request.auth.fields["user"].string_value)
        token = identity.Token(methods=["password"], expires_at=Timestamp(seconds=1767225600, nanos=5000))
        if not request.nocatalog:
            token.catalog.add().struct_value["type"] = "identity"
        return identity.TokenResponse(token=token, subject_token="gAAAA")

    async def ShowToken(self, request, call):
        fail_if_asked("" if request.subject_token == "gAAAA" else "missing")
        return identity.TokenResponse(token=identity.Token(methods=["password"]), subject_token=request.subject_token)

    async def CheckToken(self, request, call):
        fail_if_asked("" if request.subject_token == "gAAAA" else "missing")
        return Empty()

    async def RevokeToken(self, request, call):
        return Empty()


class Users:
    async def ListUsers(self, request, call):
        return identity.ListUsersResponse(users=[identity.User(id="u1", name="one", enabled=True)])

    async def UpdateUser(self, request, call):
        answer = identity.UserResponse(user=request.user)
        answer.user.id = request.user_id
        answer.user.extra["mask"].string_value = ",".join(request.update_mask.paths)
        return answer

    async def CheckGrant(self, request, call):
        fail_if_asked(request.role_id)
        return Empty()


class Images:
    def __init__(self):
        self.stored: dict[str, bytes] = {}

    async def CreateImage(self, request, call):
        fail_if_asked(request.image.name)
        made = image.Image()
        made.CopyFrom(request.image)
        made.id = "i1"
        made.created_at.seconds = 1767225600
        return made

    async def ListImages(self, request, call):
        rows, marker = page([image.Image(id=f"i{i}", name="n") for i in range(3)], limit=request.limit, marker=request.marker)
        filters = {item.key: ",".join(item.values) for item in request.filters}
        return image.ListImagesResponse(images=[image.Image(id=row.id, name=row.name, properties=filters) for row in rows],
                                        next_page_marker=marker)

    async def PatchImage(self, request, call):
        made = image.Image(id=request.image_id)
        for operation in request.operations:
            made.properties[operation.op + operation.path] = str(operation.value.WhichOneof("kind"))
        return made

    async def UploadData(self, requests, call):
        digest, size, first = hashlib.md5(), 0, None
        async for request in requests:
            first = first or request
            fail_if_asked(request.image_id)
            digest.update(request.data)
            size += len(request.data)
        if first.size and first.size != size:
            raise Invalid("toy.size", f"{first.size} bytes were announced, {size} came")
        self.stored[first.image_id] = digest.digest()
        return Empty()

    async def DownloadData(self, request, call):
        fail_if_asked(request.image_id)
        if request.image_id == "empty":
            return
        if request.range:
            call.status = 206
        yield image.DataResponse(data=b"first ", length=0 if request.image_id == "breaks" else 11, md5="abc")
        if request.image_id == "breaks":
            raise RuntimeError("the disk is gone")
        yield image.DataResponse(data=b"later")


class Objects:
    async def GetObject(self, request, call):
        return image.TextResponse(text=f"{request.container}|{request.object}|{request.format}|{request.bulk_delete}")

    async def HeadObject(self, request, call):
        return image.ObjectHeaders(meta={"Colour": "blue\r\nX-Evil: yes", "Größe": "1"}, etag="e1")

    async def CopyObject(self, request, call):
        return image.ObjectHeaders(meta=request.meta, etag=request.destination)

    async def PostText(self, request, call):
        return image.TextResponse(text=request.text.upper())


class Networks:
    async def ListNetworks(self, request, call):
        every = [network.Network(id=f"n{i}", name="net") for i in range(3)]
        rows, marker = page(every, limit=request.limit, marker=request.marker)
        for row in rows:
            row.subnets.extend(f"{item.key}={'+'.join(item.values)}" for item in request.filters)
        return network.ListNetworksResponse(networks=rows, next_page_marker=marker)

    async def CreateNetwork(self, request, call):
        fail_if_asked(request.network.name)
        return network.NetworkResponse(network=request.network)

    async def GetNetwork(self, request, call):
        fail_if_asked(request.network_id)
        return network.NetworkResponse(network=network.Network(id=request.network_id, network_type="vxlan"))


class Providers:
    async def GetProvider(self, request, call):
        fail_if_asked(request.uuid)
        return placement.Provider(uuid=request.uuid, generation=7)

    async def ListTraits(self, request, call):
        return placement.Traits(traits=["HW_CPU_X86_AVX2"])

    async def CreateProvider(self, request, call):
        return placement.Provider(uuid=request.uuid)

    async def ListUsages(self, request, call):
        return placement.Usages(usages={"VCPU": 2}, last_modified=Timestamp(seconds=1767225601))

    async def PutAllocations(self, request, call):
        return request


def servicers():
    """Every toy with its service."""
    for module, toys in ((compute, [Servers]), (identity, [Tokens, Users]), (image, [Images, Objects]), (network, [Networks]),
                         (placement, [Providers])):
        for toy in toys:
            yield toy(), module.DESCRIPTOR.services_by_name[toy.__name__]
