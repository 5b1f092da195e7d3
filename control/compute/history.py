"""Instance actions: a row for each thing that was asked of a server, opened with the wish and closed when it came true.

A row is written in the commit of what it tells of, so history neither misses a change nor tells of one that was not made.
"""
from google.protobuf.timestamp_pb2 import Timestamp

from agents.telemetry import traces
from control.compute import model
from control.compute.access import find_server
from control.compute.model import ACTION
from control.kernel import listing
from control.kernel.caller import Caller
from control.kernel.database import Database, Transaction
from control.kernel.errors import NotFound
from control.kernel.rpc import Call, new_request_id
from protos.compute.v1 import actions_pb2 as pb
from protos.compute.v1.records_pb2 import ActionRecord, MaintenanceRecord, ServerRecord

#: Action -> the event that Nova has for it.
EVENTS = {
    "create": "compute__do_build_and_run_instance", "start": "compute_start_instance", "stop": "compute_stop_instance",
    "reboot": "compute_reboot_instance", "delete": "compute_terminate_instance", "lock": "api_lock", "unlock": "api_unlock",
    "evacuate": "compute_rebuild_instance", "migrate": "compute_prep_resize"}


def opened(transaction: Transaction, server: ServerRecord, action: str, call: Call, now: Timestamp, *,
           done: bool = False) -> None:
    """Note that a caller asked for something; `done` where it is carried out by the same commit.

    The server, which is to be put in the same transaction, bears the request's ids from then on.
    """
    row = ActionRecord(server_id=server.id, request_id=call.request_id, action=action, event=EVENTS.get(action, action),
                       user_id=call.caller.user_id, project_id=call.caller.project_id, started_at=now,
                       global_request_id=call.global_request_id)
    server.desired.request_ids[:] = filter(None, (call.request_id, call.global_request_id))
    server.desired.traceparent = traces.parent()
    if done:
        row.finished_at.CopyFrom(now)
        row.result = "Success"
    kept = transaction.rows(ACTION, "server", server.id)
    if len(kept) >= model.MAX_ACTIONS:
        for old in sorted(kept, key=_started)[:len(kept) + 1 - model.MAX_ACTIONS]:
            transaction.delete(ACTION, server.id, old.request_id)
    transaction.put(ACTION, row)


def noted(transaction: Transaction, server: ServerRecord, action: str, now: Timestamp,
          asked: MaintenanceRecord | None = None) -> None:
    """Note that the cloud itself does something; `asked`: the drain that it is a part of."""
    asked = asked or MaintenanceRecord(request_id=new_request_id())
    transaction.put(ACTION, ActionRecord(server_id=server.id, request_id=asked.request_id, action=action, event=EVENTS[action],
                                         user_id=asked.user_id, project_id=asked.project_id, started_at=now))


def closed(transaction: Transaction, server: ServerRecord, now: Timestamp) -> None:
    """Close what is open where the server came to rest: well, or in ERROR with the fault's text."""
    if model.derive(server).task_state:
        return
    for row in transaction.rows(ACTION, "server", server.id):
        if not row.result:
            copy = ActionRecord()
            copy.CopyFrom(row)
            copy.finished_at.CopyFrom(now)
            failed = server.HasField("fault")
            copy.result, copy.message = ("Error", server.fault.message) if failed else ("Success", "")
            transaction.put(ACTION, copy)


def failed(transaction: Transaction, server: ServerRecord, message: str, now: Timestamp) -> None:
    """Close what is open where it was given up, and the server is as it was."""
    for row in transaction.rows(ACTION, "server", server.id):
        if not row.result:
            copy = ActionRecord()
            copy.CopyFrom(row)
            copy.finished_at.CopyFrom(now)
            copy.result, copy.message = "Error", message[:255]
            transaction.put(ACTION, copy)


def _started(row: ActionRecord) -> tuple[int, int]:
    return row.started_at.seconds, row.started_at.nanos


class InstanceActions:
    """Servicer of compute.v1.InstanceActions."""

    def __init__(self, database: Database):
        self._database = database

    async def ListInstanceActions(self, request: pb.ListInstanceActionsRequest, call: Call) -> pb.ListInstanceActionsResponse:
        server = find_server(self._database, call.caller, request.server_id)
        rows = [row for row in self._database.cache.by(ACTION, "server", server.id)
                if (not request.HasField("changes_since") or _key(_updated(row)) >= _key(request.changes_since))
                and (not request.HasField("changes_before") or _key(_updated(row)) <= _key(request.changes_before))]
        page, marker = listing.page(rows, limit=request.limit, marker=request.marker, sort=[(_started, True)],
                                    id_of=lambda row: row.request_id)
        return pb.ListInstanceActionsResponse(actions=[_view(row) for row in page], next_page_marker=marker)

    async def GetInstanceAction(self, request: pb.GetInstanceActionRequest, call: Call) -> pb.GetInstanceActionResponse:
        server = find_server(self._database, call.caller, request.server_id)
        row = self._database.get(ACTION, server.id, request.request_id)
        if row is None:
            raise NotFound("compute.action", f"Action for request_id {request.request_id[:80]} on instance {server.id} not found")
        view = _view(row)
        view.events.append(_event(row, server, call.caller))
        return pb.GetInstanceActionResponse(action=view)


def _updated(row: ActionRecord) -> Timestamp:
    return row.finished_at if row.HasField("finished_at") else row.started_at


def _key(moment: Timestamp) -> tuple[int, int]:
    return moment.seconds, moment.nanos


def _view(row: ActionRecord) -> pb.InstanceAction:
    return pb.InstanceAction(
        action=row.action, instance_uuid=row.server_id, request_id=row.request_id, user_id=row.user_id, project_id=row.project_id,
        start_time=row.started_at, updated_at=_updated(row), message="Error" if row.result == "Error" else None)


def _event(row: ActionRecord, server: ServerRecord, caller: Caller) -> pb.InstanceAction.Event:
    return pb.InstanceAction.Event(
        event=row.event, start_time=row.started_at, finish_time=row.finished_at if row.HasField("finished_at") else None,
        result=row.result or None, host_hash=model.host_hash(server), host=server.host if caller.is_admin else None,
        details=row.message or None)
