"""The servicer of members: sharing an image with projects, which accept or reject it."""
from google.protobuf.empty_pb2 import Empty

from control.image import access, model
from control.image.model import IMAGE, MEMBER
from control.kernel import clock
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Denied, Invalid, NotFound
from control.kernel.rpc import Call
from protos.image.v1 import members_pb2 as pb
from protos.image.v1.images_pb2 import Image
from protos.image.v1.members_pb2 import Member


class Members:
    """Serves image.v1.Members."""

    def __init__(self, database: Database):
        self._database = database

    async def CreateMember(self, request: pb.CreateMemberRequest, call: Call) -> Member:
        if not request.member or len(request.member) > model.MAX_NAME:
            raise Invalid("image.members.id", f"Member must be the id of a project: 1 to {model.MAX_NAME} characters.")
        now = clock.now()

        def decide(tx: Transaction) -> Member:
            record = access.owned(tx, call.caller, request.image_id)
            if record.image.visibility != Image.SHARED:
                raise Denied("image.members.visibility", "Only shared images have members: set its visibility to shared first.")
            if tx.get(MEMBER, request.image_id, request.member) is not None:
                raise Conflict("image.members.exists",
                               f"Project {request.member} is already associated with image {request.image_id}.")
            if len(tx.rows(MEMBER, "image", request.image_id)) >= model.MAX_MEMBERS:
                raise Conflict("image.members.limit", f"An image may have {model.MAX_MEMBERS} members: make it a community one.")
            member = Member(image_id=request.image_id, member_id=request.member, status=Member.PENDING,
                            created_at=now, updated_at=now)
            tx.put(MEMBER, member)
            tx.put(IMAGE, record)      # so that a deletion of the image meanwhile, which would not see this member, fails
            return _shown(member)

        return await self._database.transact(decide)

    async def ListMembers(self, request: pb.ListMembersRequest, call: Call) -> pb.ListMembersResponse:
        image = access.seen(self._database, call.caller, request.image_id).image
        members = [member for member in self._database.cache.by(MEMBER, "image", image.id) if _sees(call.caller, image, member)]
        if not members and not access.owns(call.caller, image):
            raise access.missing(image.id)
        return pb.ListMembersResponse(members=map(_shown, members), schema="/v2/schemas/members")

    async def GetMember(self, request: pb.GetMemberRequest, call: Call) -> Member:
        image = access.seen(self._database, call.caller, request.image_id).image
        member = self._database.get(MEMBER, image.id, request.member_id)
        if member is None or not _sees(call.caller, image, member):
            raise _missing(request.image_id, request.member_id)
        return _shown(member)

    async def UpdateMember(self, request: pb.UpdateMemberRequest, call: Call) -> Member:
        now = clock.now()
        if not request.status:
            raise Invalid("image.members.status", "A member's status must be pending, accepted or rejected.")

        def decide(tx: Transaction) -> Member:
            image = access.seen(tx, call.caller, request.image_id).image
            member = tx.get(MEMBER, request.image_id, request.member_id)
            if member is None or not _sees(call.caller, image, member):
                raise _missing(request.image_id, request.member_id)
            if member.member_id != call.caller.project_id and not call.caller.is_admin:
                raise Denied("image.members.status", "You are not permitted to change another project's membership.")
            member.status = request.status
            member.updated_at.CopyFrom(now)
            tx.put(MEMBER, member)
            return _shown(member)

        return await self._database.transact(decide)

    async def DeleteMember(self, request: pb.DeleteMemberRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            access.owned(tx, call.caller, request.image_id)
            if tx.get(MEMBER, request.image_id, request.member_id) is None:
                raise _missing(request.image_id, request.member_id)
            tx.delete(MEMBER, request.image_id, request.member_id)

        await self._database.transact(decide)
        return Empty()


def _sees(caller: Caller, image: Image, member: Member) -> bool:
    """An owner sees every member of its image, a member itself."""
    return access.owns(caller, image) or member.member_id == caller.project_id


def _shown(member: Member) -> Member:
    shown = Member(schema="/v2/schemas/member")
    shown.MergeFrom(member)
    return shown


def _missing(image_id: str, member_id: str) -> NotFound:
    return NotFound("image.members.missing", f"Project {member_id} is not a member of image {image_id}.")
