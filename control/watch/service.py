"""The servicer of watches: who may watch what, from where on; then what the hub tells, until one of the two ends it."""
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace

from google.protobuf.descriptor import ServiceDescriptor

from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Denied, Invalid, NotFound, Unauthenticated, Unavailable
from control.kernel.rpc import Call
from control.kernel.watchable import Watchable
from control.watch.errors import TooOld
from control.watch.history import MARK
from control.watch.hub import ALL, Hub
from protos.watch.v1 import watches_pb2 as pb

#: Seconds between two signs of life where nothing happens.
KEEP_ALIVE = 5.0

#: Raises unless the caller of a call may make another one, by its name; brings the call's caller up to date.
Admit = Callable[[str, Call], Awaitable[None]]

__all__ = ["Hub", "Watches", "servicers"]


def servicers(database: Database, hub: Hub, admit: Admit) -> list[tuple[object, ServiceDescriptor]]:
    """What the dispatcher shall serve."""
    return [(Watches(database, hub, admit), pb.DESCRIPTOR.services_by_name["Watches"])]


class Watches:
    """Servicer of watch.v1.Watches."""

    def __init__(self, database: Database, hub: Hub, admit: Admit, *, keep_alive: float = KEEP_ALIVE):
        self._database = database
        self._hub = hub
        self._admit = admit
        self._keep_alive = keep_alive

    async def Watch(self, request: pb.WatchRequest, call: Call) -> AsyncGenerator[pb.WatchEvent, None]:
        watchable = self._find(request.kind)
        after = _revision(request)
        call.microversion = call.microversions.get(watchable.method.split("/")[1].rpartition(".")[0])
        await self._admit(watchable.method, call)
        caller, listens = call.caller, _listens(watchable, request, call.caller)
        if after:
            await self._wait(after)
            await self._hub.history.reach(after)
        # From here to the first event nothing is awaited: what is told begins where the reader's steps end.
        with self._hub.reading(watchable, listens, call) as reader:
            revision = self._hub.revision
            for event in self._hub.begin(reader, after, request.project_id or caller.project_id):
                yield event
            yield _bookmark(revision)
            reader.revision = revision
            while True:
                told = await reader.take(self._keep_alive)
                revision = self._hub.revision if told is None else told.revision
                await self._admit(watchable.method, call)
                if call.caller is not caller:           # judged anew
                    if (call.caller.is_admin, _listens(watchable, request, call.caller)) != (caller.is_admin, listens):
                        raise Unauthenticated("watch.changed", "What your token allows has changed: watch anew.")
                    caller = call.caller
                for event in told.events if told is not None else [_bookmark(revision)]:
                    yield event
                reader.revision = revision

    def _find(self, name: str) -> Watchable:
        watchable = self._hub.watchables.get(name)
        if watchable is None:
            raise NotFound("watch.kind", f"{name[:40]!r} cannot be watched; there are {', '.join(sorted(self._hub.watchables))}.")
        return watchable

    async def _wait(self, revision: int) -> None:
        """Wait until this replica has seen a revision that another may have told. Raises TooOld where there is no such one."""
        try:
            await self._database.cache.wait(revision)
        except Unavailable:
            now = (await self._database.store.scan(MARK))[1]
            if now < revision:
                raise TooOld("watch.ahead", f"Revision {revision} is none of this cloud's, which is at {now}: list again, and "
                                            "watch from that list's revision.", now) from None
            raise


def _revision(request: pb.WatchRequest) -> int:
    """Where to go on. Raises Invalid where it is no revision."""
    given = request.last_event_id
    if given and not (given.isascii() and given.isdigit() and len(given) < 19):
        raise Invalid("watch.revision", f"Last-Event-ID {given[:40]!r} is no revision: send the id of an event, or none.")
    revision = int(given) if given else request.from_revision
    if revision < 0:
        raise Invalid("watch.revision", f"from_revision must not be negative, not {revision}.")
    return revision


def _listens(watchable: Watchable, request: pb.WatchRequest, caller: Caller) -> frozenset[str] | None:
    """The names that a caller listens to. Raises Denied, or Invalid where the request does not know what it wants."""
    if request.all_projects and request.project_id:
        raise Invalid("watch.project", "project_id and all_projects exclude each other: send one of them.")
    if not caller.is_admin and (request.all_projects or request.project_id not in ("", caller.project_id)):
        raise Denied("watch.project", "Only an admin may watch what other projects have.")
    if request.all_projects:
        return ALL
    return frozenset(watchable.listens(replace(caller, project_id=request.project_id) if request.project_id else caller))


def _bookmark(revision: int) -> pb.WatchEvent:
    return pb.WatchEvent(type=pb.WatchEvent.BOOKMARK, revision=revision)
