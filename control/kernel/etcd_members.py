"""Who is a member of the cloud's etcd cluster: members come one at a time, and none is ever lost by coming.

The first replica founds a cluster of one. Every other adds itself as a learner, which counts for no majority, and becomes
a voter once it has caught up. A member whose data are gone is not taken for a new one: it is removed first, by an operator,
since a majority may have counted on what it had.
"""
import asyncio
import logging
import time
from collections.abc import Mapping

from aetcd.rpc import rpc_pb2

from control.kernel.errors import Conflict, NotFound, Unavailable
from control.kernel.etcd_client import AioRpcError, Client

log = logging.getLogger(__name__)

#: Seconds between two looks at what others do.
PAUSE = 0.3

#: Of what etcd says: the learner lacks entries still; another one is learning.
_BEHIND, _ANOTHER = "can only promote a learner member which is in sync", "too many learner"


async def members(client: Client) -> list[rpc_pb2.Member]:
    """All members; one that was added and never started has no name."""
    answer = await client.call(lambda member: member.cluster.MemberList, rpc_pb2.MemberListRequest())
    return list(answer.members)


async def join(client: Client, name: str, peer_url: str, places: Mapping[str, str], within: float) -> dict[str, str]:
    """Add a member as a learner; name -> peer URL of the whole cluster, as etcd's first start wants it.

    Args:
      places: peer URLs of all replicas by name. A member that is elsewhere by etcd's own word moves first (see settle()).
      within: seconds to wait until the others answer, have moved and nobody else is learning.

    May be repeated: a member that was added and has not started is taken as it is. Raises Conflict where it has started once,
    Unavailable when the time is over.
    """
    give_up = time.monotonic() + within
    while True:
        why = "another member is learning"
        try:
            present = await members(client)
            own = next((member for member in present if peer_url in member.peerURLs), None)
            others = {url: member for member in present if member is not own for url in member.peerURLs}
            if own and own.name:
                raise Conflict("etcd.lost", f"etcd's other members know {name} at {peer_url}, but its data are gone here: `brume "
                                            f"etcd replace {name}` makes the member anew")
            if strange := others.keys() - set(places.values()):
                why = f"the member at {', '.join(strange)} has not moved to its place yet"
            elif own:
                return {name: peer_url} | {other: url for other, url in places.items() if url in others}
            else:
                await client.call(lambda member: member.cluster.MemberAdd,
                                  rpc_pb2.MemberAddRequest(peerURLs=[peer_url], isLearner=True))
                log.info("etcd member %s: added", name)
                continue
        except Unavailable as error:
            why = str(error)
        except AioRpcError as error:
            why = error.details() or ""
            if _ANOTHER not in why and "unhealthy cluster" not in why and "exists" not in why:
                raise
        if time.monotonic() > give_up:
            raise Unavailable("etcd.join", f"etcd member {name} could not join within {within:.0f} s: {why}")
        await asyncio.sleep(PAUSE)


async def settle(client: Client, moved: Mapping[str, str] | None = None) -> set[str]:
    """Bring members to where they shall be, and make voters of learners that have caught up; the names of all voters.

    Args:
      moved: peer URLs by name. A member that was alone was on loopback: it moves when its cloud gets more replicas.
    """
    voters = set()
    for member in await members(client):
        if not member.name:
            continue
        url = (moved or {}).get(member.name)
        if url and list(member.peerURLs) != [url]:
            await client.call(lambda each: each.cluster.MemberUpdate,
                              rpc_pb2.MemberUpdateRequest(ID=member.ID, peerURLs=[url]))
            log.info("etcd member %s: moved to %s", member.name, url)
        if member.isLearner:
            try:
                await client.call(lambda each: each.cluster.MemberPromote, rpc_pb2.MemberPromoteRequest(ID=member.ID))
            except AioRpcError as error:
                if _BEHIND not in (error.details() or ""):
                    raise
                continue
            log.info("etcd member %s: a voter now", member.name)
        voters.add(member.name)
    return voters


async def remove(client: Client, name: str, peer_url: str = "") -> None:
    """Take a member out of the cluster, by its name or, where it never started, its peer URL. Raises NotFound."""
    for member in await members(client):
        if member.name == name or (peer_url and peer_url in member.peerURLs):
            await client.call(lambda each: each.cluster.MemberRemove, rpc_pb2.MemberRemoveRequest(ID=member.ID))
            log.info("etcd member %s: removed", name)
            return
    raise NotFound("etcd.member", f"etcd has no member {name}.")
