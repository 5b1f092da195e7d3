"""Server lists: which servers a request names, in which order, and one page of them.

Filters are a table, name -> test; names that are not in it are passed over, as Nova does. Regular expressions come from
clients and run over many names, so those that could run for ever are refused.
"""
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import model
from control.compute.model import SERVER, State
from control.compute.neighbours import Ports
from control.compute.view import Views
from control.kernel import listing
from control.kernel.caller import Caller
from control.kernel.database import Database
from control.kernel.errors import Denied, Invalid
from protos.compute.v1.records_pb2 import ServerRecord
from protos.compute.v1.servers_pb2 import ListServersRequest

#: An expression may repeat this often without bound: each one may cost a factor of the text's length.
MAX_REPEATS = 2

_TRUE = frozenset({"true", "1", "yes", "on", "t", "y"})

Test = Callable[[ServerRecord, State, Sequence[str]], bool]


def expression(text: str, what: str) -> re.Pattern[str]:
    """A client's regular expression, compiled. Raises Invalid where it is none or could take long."""
    simple = (len(text) <= 255 and "(?" not in text and not re.search(r"\\\d|\)[*+?{]", text)
              and len(re.findall(r"[*+{]", text)) <= MAX_REPEATS and text.count("?") <= 8)
    try:
        if simple:
            return re.compile(text)
    except re.error as error:
        raise Invalid(f"compute.server.filter.{what}", f"{what} is not a regular expression: {error}") from error
    raise Invalid(f"compute.server.filter.{what}", f"{what}: the expression is too complex; use at most {MAX_REPEATS} "
                                                   "repetitions, none of a group, and no look-around or back-reference.")


def _is(field: Callable[[ServerRecord, State], str]) -> Test:
    return lambda server, state, values: field(server, state) in values


def _flag(field: Callable[[ServerRecord], bool]) -> Test:
    return lambda server, state, values: field(server) == (values[0].lower() in _TRUE)


def _tag_set(values: Sequence[str]) -> set[str]:
    return {tag for value in values for tag in value.split(",") if tag}


FILTERS: Mapping[str, Test] = {
    "status": lambda server, state, values: state.status in {value.upper() for value in values},
    "vm_state": _is(lambda server, state: state.vm_state),
    "task_state": _is(lambda server, state: state.task_state),
    "power_state": _is(lambda server, state: str(state.power_state)),
    "image": _is(lambda server, state: server.image.id),
    "image_ref": _is(lambda server, state: server.image.id),
    "flavor": _is(lambda server, state: server.flavor.id),
    "uuid": _is(lambda server, state: server.id),
    "user_id": _is(lambda server, state: server.user_id),
    "project_id": _is(lambda server, state: server.project_id),
    "tenant_id": _is(lambda server, state: server.project_id),
    "key_name": _is(lambda server, state: server.key.name),
    "reservation_id": _is(lambda server, state: server.reservation_id),
    "description": _is(lambda server, state: server.description),
    "hostname": _is(lambda server, state: server.hostname),
    "locked": _flag(lambda server: server.locked),
    "config_drive": _flag(lambda server: server.config_drive),
    "tags": lambda server, state, values: _tag_set(values) <= set(server.tags),
    "tags-any": lambda server, state, values: bool(_tag_set(values) & set(server.tags)),
    "not-tags": lambda server, state, values: not _tag_set(values) <= set(server.tags),
    "not-tags-any": lambda server, state, values: not _tag_set(values) & set(server.tags),
}

#: Only admins find servers by these; for others they are passed over.
ADMIN_FILTERS: Mapping[str, Test] = {
    "host": _is(lambda server, state: server.host),
    "node": _is(lambda server, state: server.host),
    "hypervisor_hostname": _is(lambda server, state: server.host),
}


def _moment(moment: Timestamp) -> tuple[int, int]:
    return moment.seconds, moment.nanos


def page(request: ListServersRequest, caller: Caller, database: Database, ports: Ports,
         views: Views) -> tuple[list[ServerRecord], str]:
    """The servers of one page and the marker of the next. Raises Invalid, or Denied for what is for admins."""
    if request.all_tenants and not caller.is_admin:
        raise Denied("compute.server.all_tenants", "Only an admin may list the servers of all projects.")
    if request.deleted:
        return [], ""
    tests = list(_tests(request, caller, ports, views))
    if request.all_tenants and _newest_first(request):       # of all there are, look only at as many as the page needs
        after = SERVER.key(request.marker) if request.marker else ""
        if after and database.cache.at(SERVER, after)[1] is None:
            raise listing.no_marker(request.marker)
        return listing.first((server for server in database.cache.in_order(SERVER, after) if all(test(server) for test in tests)),
                             limit=request.limit)
    servers = database.cache.all(SERVER) if request.all_tenants else database.cache.by(SERVER, "project", caller.project_id)
    for test in tests:
        servers = [server for server in servers if test(server)]
    return listing.page(servers, limit=request.limit, marker=request.marker, sort=_order(request))


def _tests(request: ListServersRequest, caller: Caller, ports: Ports, views: Views) -> Iterator[Callable[[ServerRecord], bool]]:
    """What a server has to be for a request to list it. Raises Invalid."""
    if request.HasField("changes_since"):
        since = _moment(request.changes_since)
        yield lambda server: _moment(server.updated_at) >= since
    if request.HasField("changes_before"):
        before = _moment(request.changes_before)
        yield lambda server: _moment(server.updated_at) <= before
    table = {**FILTERS, **ADMIN_FILTERS} if caller.is_admin else FILTERS
    for filter in request.filters:
        if (test := _test(filter.key, list(filter.values), table, ports, views)) is not None:
            yield test


def _test(key: str, values: list[str], table: Mapping[str, Test], ports: Ports,
          views: Views) -> Callable[[ServerRecord], bool] | None:
    """Whether a server matches a filter; None for one that is passed over."""
    if key == "name":
        pattern = expression(values[0], "name")
        return lambda server: pattern.search(server.name) is not None
    if key in ("ip", "ip6"):
        pattern, version = expression(values[0], key), 4 if key == "ip" else 6
        return lambda server: any(address.version == version and pattern.search(address.ip)
                                  for address in ports.addresses(server.id))
    if key == "availability_zone":
        return lambda server: views.zone(server) in values
    test = table.get(key)
    return (lambda server: test(server, views.state(server), values)) if test is not None else None


def _newest_first(request: ListServersRequest) -> bool:
    """Whether a request wants its servers in the order that their kind has."""
    return list(request.sort_key) in ([], ["created_at"]) and list(request.sort_dir) in ([], ["desc"])


#: sort_key -> what it sorts by. Nova's names of columns, and the fields' own where they differ.
ORDERS: Mapping[str, Callable[[ServerRecord], object]] = {
    "created_at": lambda server: _moment(server.created_at), "updated_at": lambda server: _moment(server.updated_at),
    "launched_at": lambda server: _moment(server.launched_at), "display_name": lambda server: server.name,
    "name": lambda server: server.name, "uuid": lambda server: server.id, "id": lambda server: server.id,
    "host": lambda server: server.host, "node": lambda server: server.host, "hostname": lambda server: server.hostname,
    "key_name": lambda server: server.key.name, "user_id": lambda server: server.user_id,
    "project_id": lambda server: server.project_id, "launch_index": lambda server: server.launch_index,
    "availability_zone": lambda server: server.availability_zone, "locked": lambda server: server.locked,
    "display_description": lambda server: server.description, "image_ref": lambda server: server.image.id,
    "instance_type_id": lambda server: server.flavor.id, "flavor": lambda server: server.flavor.id,
    "vm_state": lambda server: model.derive(server).vm_state, "status": lambda server: model.derive(server).status,
    "task_state": lambda server: model.derive(server).task_state, "power_state": lambda server: model.derive(server).power_state,
    "config_drive": lambda server: server.config_drive, "access_ip_v4": lambda server: server.access_ip_v4,
    "access_ip_v6": lambda server: server.access_ip_v6,
}


def _order(request: ListServersRequest) -> list[tuple[Callable[[ServerRecord], object], bool]]:
    order = []
    for index, key in enumerate(request.sort_key or ["created_at"]):
        direction = request.sort_dir[index] if index < len(request.sort_dir) else "desc"
        if key not in ORDERS or direction not in ("asc", "desc"):
            raise Invalid("compute.server.sort", f"Servers cannot be sorted by {key[:40]!r} {direction[:40]!r}; there are "
                                                 f"{', '.join(sorted(ORDERS))}, each 'asc' or 'desc'.")
        order.append((ORDERS[key], direction == "desc"))
    return order
