"""The host aggregates' servicer. Every change also writes the sequence, so that all are decided one after another.

A host is in one zone at most by its aggregates, and its zone does not change while it has servers.
"""
import uuid
from collections.abc import Callable

from google.protobuf.empty_pb2 import Empty
from google.protobuf.struct_pb2 import Value

from control.compute import limits
from control.compute.model import SERVER
from control.kernel import clock, fleet
from control.kernel.database import Database, Transaction
from control.kernel.errors import Conflict, Error, Invalid, NotFound
from control.kernel.fleet import AGGREGATE, AGGREGATE_SEQUENCE, ZONE
from control.kernel.rpc import Call
from protos.compute.v1 import aggregates_pb2 as pb
from protos.internal.v1.fleet_pb2 import AggregateSequence, HostAggregate

#: Aggregates and hosts of one at most: a record of so many hosts is some 100 KiB.
MAX_AGGREGATES, MAX_HOSTS, MAX_METADATA = 1000, 5000, 128

#: What changes of aggregates queue for on a replica.
SERIAL = "fleet/aggregates"


class Aggregates:
    """Servicer of compute.v1.Aggregates."""

    def __init__(self, database: Database):
        self._database = database

    async def CreateAggregate(self, request: pb.CreateAggregateRequest, call: Call) -> pb.CreateAggregateResponse:
        name = limits.name(request.aggregate.name, "aggregate")
        aggregate = HostAggregate(id=str(uuid.uuid4()), name=name, created_at=clock.now())
        if request.aggregate.HasField("availability_zone"):
            aggregate.metadata[ZONE] = _zone(request.aggregate.availability_zone)

        def decide(tx: Transaction) -> None:
            _check_name(tx, aggregate)
            if len(tx.rows(AGGREGATE)) >= MAX_AGGREGATES:
                raise Conflict("compute.aggregate.count", f"There are {MAX_AGGREGATES} aggregates, the most there can be.")
            aggregate.number = _next(tx, made=True)
            tx.put(AGGREGATE, aggregate)

        await self._database.transact(decide, serial=SERIAL)
        whole = view(aggregate)
        whole.ClearField("hosts")
        whole.ClearField("metadata")
        return pb.CreateAggregateResponse(aggregate=pb.CreatedAggregate.FromString(whole.SerializeToString()))

    async def ListAggregates(self, request: pb.ListAggregatesRequest, call: Call) -> pb.ListAggregatesResponse:
        rows = sorted(self._database.rows(AGGREGATE), key=lambda aggregate: aggregate.number)
        return pb.ListAggregatesResponse(aggregates=map(view, rows))

    async def GetAggregate(self, request: pb.GetAggregateRequest, call: Call) -> pb.AggregateResponse:
        return pb.AggregateResponse(aggregate=view(_find(self._database, request.aggregate_id)))

    async def UpdateAggregate(self, request: pb.UpdateAggregateRequest, call: Call) -> pb.AggregateResponse:
        new = request.aggregate
        paths = set(request.update_mask.paths) or {field.name for field, _ in new.ListFields()}
        if not paths:
            raise Invalid("compute.aggregate.update", "An update has a name, an availability_zone or both.")

        def change(tx: Transaction, aggregate: HostAggregate) -> None:
            if "name" in paths:
                aggregate.name = limits.name(new.name, "aggregate")
                _check_name(tx, aggregate)
            if "availability_zone" in paths:
                _set(aggregate, ZONE, _zone(new.availability_zone) if new.HasField("availability_zone") else None)

        return await self._change(request.aggregate_id, change, Invalid)

    async def DeleteAggregate(self, request: pb.GetAggregateRequest, call: Call) -> Empty:
        def decide(tx: Transaction) -> None:
            aggregate = _find(tx, request.aggregate_id)
            if aggregate.hosts:
                raise Invalid("compute.aggregate.hosts", f"Cannot remove aggregate {aggregate.number}: it has hosts, "
                                                         f"{aggregate.hosts[0]} among them. Remove them first.")
            _next(tx)
            tx.delete(AGGREGATE, aggregate.id)

        await self._database.transact(decide, serial=SERIAL)
        return Empty()

    async def AddAggregateHost(self, request: pb.AddAggregateHostRequest, call: Call) -> pb.AggregateResponse:
        host = request.add_host.host

        def change(tx: Transaction, aggregate: HostAggregate) -> None:
            if tx.get(fleet.HOST, host) is None:
                raise NotFound("compute.host", f"Compute host {host[:80]} could not be found.")
            tx.guard_exists(fleet.HOST, host)
            if host in aggregate.hosts:
                raise Conflict("compute.aggregate.host", f"Aggregate {aggregate.number} already has host {host}.")
            if len(aggregate.hosts) >= MAX_HOSTS:
                raise Conflict("compute.aggregate.host", f"An aggregate has at most {MAX_HOSTS} hosts.")
            aggregate.hosts[:] = sorted([*aggregate.hosts, host])

        return await self._change(request.aggregate_id, change, Conflict)

    async def RemoveAggregateHost(self, request: pb.RemoveAggregateHostRequest, call: Call) -> pb.AggregateResponse:
        host = request.remove_host.host

        def change(tx: Transaction, aggregate: HostAggregate) -> None:
            if host not in aggregate.hosts:
                raise NotFound("compute.aggregate.host", f"Aggregate {aggregate.number} has no host {host[:80]}.")
            aggregate.hosts.remove(host)

        return await self._change(request.aggregate_id, change, Conflict)

    async def SetAggregateMetadata(self, request: pb.SetAggregateMetadataRequest, call: Call) -> pb.AggregateResponse:
        def change(tx: Transaction, aggregate: HostAggregate) -> None:
            for key, value in request.set_metadata.metadata.items():
                _set(aggregate, key, _text(key, value))
            limits.metadata(aggregate.metadata, MAX_METADATA)

        return await self._change(request.aggregate_id, change, Invalid)

    async def _change(self, aggregate_id: str, change: Callable[[Transaction, HostAggregate], None],
                      refused: type[Error]) -> pb.AggregateResponse:
        """Change an aggregate in one commit. Raises `refused` where a host's zone would not come out right."""
        def decide(tx: Transaction) -> HostAggregate:
            aggregate = _find(tx, aggregate_id)
            before = set(aggregate.hosts)
            zones = {host: _zone_of(tx, host) for host in before}
            change(tx, aggregate)
            zones |= {host: _zone_of(tx, host) for host in set(aggregate.hosts) - before}
            _next(tx)
            aggregate.updated_at.CopyFrom(clock.now())
            tx.put(AGGREGATE, aggregate)
            if wrong := _zone_trouble(tx, zones):
                raise refused("compute.aggregate.zone", f"Cannot change aggregate {aggregate.number}: {wrong}")
            return aggregate

        return pb.AggregateResponse(aggregate=view(await self._database.transact(decide, serial=SERIAL)))


def forget(tx: Transaction, host: str) -> None:
    """Take a host that goes out of its aggregates."""
    rows = list(tx.rows(AGGREGATE, "host", host))
    for row in rows:
        aggregate = tx.require(AGGREGATE, row.id)
        aggregate.hosts.remove(host)
        tx.put(AGGREGATE, aggregate)
    if rows:
        _next(tx)


def _next(tx: Transaction, *, made: bool = False) -> int:
    """Note in the sequence that aggregates change; the number for a new one."""
    sequence = tx.get(AGGREGATE_SEQUENCE, "last") or AggregateSequence()
    sequence.changes += 1
    sequence.last_number += made
    tx.put(AGGREGATE_SEQUENCE, sequence)
    return sequence.last_number


def _find(reads: Database | Transaction, aggregate_id: str) -> HostAggregate:
    """An aggregate by number or UUID; from a transaction a copy. Raises NotFound."""
    for row in reads.rows(AGGREGATE):
        if aggregate_id in (row.id, str(row.number)):
            copy = HostAggregate()
            copy.CopyFrom(row)
            return copy
    raise NotFound("compute.aggregate", f"Aggregate {aggregate_id[:80]} could not be found.")


def _check_name(tx: Transaction, aggregate: HostAggregate) -> None:
    if any(row.name == aggregate.name and row.id != aggregate.id for row in tx.rows(AGGREGATE)):
        raise Conflict("compute.aggregate.name", f"Aggregate {aggregate.name} already exists.")


def _zone_of(tx: Transaction, host: str) -> str:
    record = tx.get(fleet.HOST, host)
    return fleet.zone_of(tx, record) if record is not None else ""


def _zone_trouble(tx: Transaction, before: dict[str, str]) -> str:
    """What is wrong with the zones of hosts as they would be, against those they had; "" for nothing."""
    for host, zone in sorted(before.items()):
        given = {row.metadata[ZONE] for row in tx.rows(AGGREGATE, "host", host) if ZONE in row.metadata}
        if len(given) > 1:
            return f"host {host} would be in the zones {' and '.join(sorted(given))}."
        if zone and _zone_of(tx, host) != zone and tx.rows(SERVER, "host", host):
            return f"host {host} has servers in zone {zone}. Move or delete them first."
    return ""


def _set(aggregate: HostAggregate, key: str, value: str | None) -> None:
    if value is None:
        aggregate.metadata.pop(key, None)
    else:
        aggregate.metadata[key] = value


def _text(key: str, value: Value) -> str | None:
    """A metadata value; None for null, which removes it."""
    match value.WhichOneof("kind"):
        case "null_value":
            return None
        case "string_value":
            return _zone(value.string_value) if key == ZONE else value.string_value
    raise Invalid("compute.aggregate.metadata", f"metadata.{key[:40]}: expected a string or null.")


def _zone(name: str) -> str:
    zone = limits.name(name, "availability zone")
    if ":" in zone:
        raise Invalid("compute.aggregate.zone", f"The name of a zone has no ':', unlike {zone[:80]!r}.")
    return zone


def view(aggregate: HostAggregate) -> pb.Aggregate:
    metadata = aggregate.metadata
    return pb.Aggregate(
        id=aggregate.number, name=aggregate.name, availability_zone=metadata.get(ZONE),
        hosts=aggregate.hosts, metadata=metadata, created_at=aggregate.created_at,
        updated_at=aggregate.updated_at if aggregate.HasField("updated_at") else None, uuid=aggregate.id)
