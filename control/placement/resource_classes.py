"""The servicer of resource classes."""
from google.protobuf.empty_pb2 import Empty

from control.kernel.database import Database
from control.kernel.errors import NotFound
from control.kernel.fleet import RESOURCE_CLASS
from control.kernel.rpc import Call
from control.placement import custom_names
from control.placement.model import STANDARD_CLASSES, custom_name
from protos.placement.v1 import resource_classes_pb2 as pb


class ResourceClasses:
    def __init__(self, database: Database):
        self._db = database

    async def ListResourceClasses(self, request: pb.ListResourceClassesRequest, call: Call) -> pb.ListResourceClassesResponse:
        custom = sorted(record.name for record in self._db.cache.all(RESOURCE_CLASS))
        return pb.ListResourceClassesResponse(
            resource_classes=[pb.ResourceClass(name=name) for name in (*STANDARD_CLASSES, *custom)])

    async def CreateResourceClass(self, request: pb.CreateResourceClassRequest, call: Call) -> pb.NewResourceClassResponse:
        record, created = await custom_names.create(self._db, RESOURCE_CLASS, request.name)
        if not created:
            raise custom_names.taken(RESOURCE_CLASS, request.name)
        return pb.NewResourceClassResponse(name=record.name)

    async def GetResourceClass(self, request: pb.GetResourceClassRequest, call: Call) -> pb.ResourceClassResponse:
        if not custom_names.exists(self._db, RESOURCE_CLASS, request.name):
            raise _missing(request.name)
        record = self._db.get(RESOURCE_CLASS, request.name)
        return pb.ResourceClassResponse(resource_class=pb.ResourceClass(name=request.name),
                                        last_modified=record.created_at if record is not None else None)

    async def RenameResourceClass(self, request: pb.RenameResourceClassRequest, call: Call) -> pb.ResourceClassResponse:
        old, new = request.old_name, custom_name(request.name, "resource class")
        if custom_names.is_standard(RESOURCE_CLASS, old) or old != new:
            await custom_names.delete(self._db, RESOURCE_CLASS, old, successor=new)
        elif self._db.get(RESOURCE_CLASS, old) is None:
            raise _missing(old)
        return pb.ResourceClassResponse(resource_class=pb.ResourceClass(name=new))

    async def PutResourceClass(self, request: pb.GetResourceClassRequest, call: Call) -> pb.NewResourceClassResponse:
        record, created = await custom_names.create(self._db, RESOURCE_CLASS, request.name)
        call.status = 201 if created else 204
        return pb.NewResourceClassResponse(name=record.name)

    async def DeleteResourceClass(self, request: pb.GetResourceClassRequest, call: Call) -> Empty:
        await custom_names.delete(self._db, RESOURCE_CLASS, request.name)
        return Empty()


def _missing(name: str) -> NotFound:
    return NotFound("name.missing", f"No such resource class {name[:255]}.")

