"""Serves the other replicas: the hosts that are attached here, and the image data that lies here.

It never passes a call on, so that two replicas that are wrong about each other do not ask in a circle.
"""
from collections.abc import AsyncIterator

from control.hosts.neighbours import ImageFiles
from control.hosts.service import Hosts
from control.kernel.errors import Denied
from control.kernel.rpc import Call
from protos.internal.v1 import hosts_pb2
from protos.internal.v1 import peers_pb2 as pb


class PeerCalls:
    """The servicer of internal.v1.Peers."""

    def __init__(self, hosts: Hosts, images: ImageFiles):
        self._hosts = hosts
        self._images = images

    async def AskHost(self, request: pb.AskHostRequest, call: Call) -> hosts_pb2.Reply:
        _require_control(call)
        return await self._hosts.ask_here(request.host, request.query)

    async def ReadImageData(self, request: pb.ReadImageDataRequest, call: Call) -> AsyncIterator[pb.ReadImageDataResponse]:
        _require_control(call)
        length = request.length if request.HasField("length") else None
        async for data in self._images.read_file(request.file, request.start, length):
            yield pb.ReadImageDataResponse(data=data)


def _require_control(call: Call) -> None:
    """Raise Denied for every certificate but the control plane's: agents have theirs from the same authority."""
    if call.peer != "control" and not call.peer.startswith("control-"):
        raise Denied("peer.role", f"The certificate is for {call.peer!r}: only replicas of the control plane may call this.")
