"""Scheduler hints of a create request: the server's group, the servers that it shall be beside or away from, its lifetime."""
import re

from google.protobuf.struct_pb2 import Value

from control.compute import model
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Invalid
from protos.compute.v1.records_pb2 import SchedulerHints
from protos.compute.v1.servers_pb2 import CreateServerRequest

#: Hints that would have to be obeyed and cannot be: better refused than passed over.
REFUSED = ("query", "build_near_host_ip", "cidr", "different_cell")

#: Servers that one hint names at most; more would cost a look-up each whenever the server is placed.
MOST_SERVERS = 100

#: Seconds that a server may be expected to live: ten years.
MOST_LIFETIME = 10 * 366 * 24 * 3600


def read(request: CreateServerRequest, caller: Caller, database: Database) -> tuple[str, SchedulerHints]:
    """The id of the server group, "" for none, and the other hints. Raises Invalid for one that cannot be kept."""
    hints: dict[str, Value] = {}
    for given in (request.older_hints, request.hints):
        hints.update(given.fields)
    for name in REFUSED:
        if name in hints:
            raise _invalid(name, "cannot be kept here, so the server was not made: leave the hint out")
    lifetime = hints.get("brume:lifetime")
    return _group(hints, caller, database), SchedulerHints(
        different_host=_servers("different_host", hints, caller, database),
        same_host=_servers("same_host", hints, caller, database),
        lifetime_seconds=0 if lifetime is None else _seconds(lifetime))


def _group(hints: dict[str, Value], caller: Caller, database: Database) -> str:
    if "group" not in hints:
        return ""
    names = _texts("group", hints["group"])
    group = database.get(model.SERVER_GROUP, names[0]) if len(names) == 1 else None
    if group is None or group.project_id != caller.project_id:
        raise _invalid("group", f"names no server group of the project: {', '.join(names)[:80]!r}. It takes one group's id")
    return group.id


def _servers(name: str, hints: dict[str, Value], caller: Caller, database: Database) -> list[str]:
    """Servers that a hint names: of the project, for where others' are is none of its business."""
    ids = sorted(set(_texts(name, hints[name]))) if name in hints else []
    if len(ids) > MOST_SERVERS:
        raise _invalid(name, f"names {len(ids)} servers, more than {MOST_SERVERS}")
    for server_id in ids:
        server = database.get(model.SERVER, server_id)
        if server is None or server.project_id != caller.project_id:
            raise _invalid(name, f"names no server of the project: {server_id[:80]!r}")
    return ids


def _texts(name: str, value: Value) -> list[str]:
    """A hint's text, or list of texts."""
    values = list(value.list_value.values) if value.WhichOneof("kind") == "list_value" else [value]
    if not values or any(each.WhichOneof("kind") != "string_value" or not each.string_value for each in values):
        raise _invalid(name, "takes an id, or a list of ids")
    return [each.string_value for each in values]


def _seconds(value: Value) -> int:
    number = float(value.string_value) if re.fullmatch(r"\d{1,10}", value.string_value) else value.number_value
    if not (number.is_integer() and 1 <= number <= MOST_LIFETIME):
        raise _invalid("brume:lifetime", f"takes a whole number of seconds from 1 to {MOST_LIFETIME}")
    return int(number)


def _invalid(name: str, what: str) -> Invalid:
    return Invalid("compute.server.hints", f"The scheduler hint {name!r} {what}.")
