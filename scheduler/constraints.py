"""Which hosts may serve a shape whatever they have free: asked once for each pair of equivalence classes, of hosts and of shapes.

A host's signature is everything but its amounts, so that a fleet of many hosts has few signatures. A filter of one's own is a
function of a shape and a signature that answers with its reason, or "" to let the host pass.
"""
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scheduler.types import MOST, UNITS, Amounts, Group, Host, Row, Shape, thing

Bounds = tuple[tuple[str, int, int, int], ...]         # class, min_unit, max_unit, step_size


@dataclass(frozen=True, slots=True)
class RowSignature:
    traits: frozenset[str]
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class HostSignature:
    zone: str
    aggregates: frozenset[str]
    closed: str
    row: RowSignature
    single: bool               # it has no row but itself


Filter = Callable[[Shape, HostSignature], str]


def row_signature(row: Row) -> RowSignature:
    """A bound that only says what the capacity says too is none, so that hosts of different sizes have one signature."""
    return RowSignature(row.traits, tuple((
        name, inventory.min_unit, inventory.max_unit if inventory.max_unit < inventory.capacity else MOST, inventory.step_size)
        for name, inventory in row.inventories))


def host_signature(host: Host, row: RowSignature) -> HostSignature:
    """`row`: its first row's."""
    return HostSignature(host.zone, host.aggregates, host.closed, row, len(host.rows) == 1)


def host_verdict(shape: Shape, host: HostSignature, filters: Iterable[Filter] = ()) -> str:
    """Why a host's signature rules it out for a shape, as it stands after a number of hosts; "" if it does not."""
    if host.closed:
        return host.closed
    if shape.zone and host.zone != shape.zone:
        return f"not in zone {shape.zone}"
    for some in shape.aggregates:
        if not some & host.aggregates:
            return "outside the aggregates asked for"
    if shape.not_aggregates & host.aggregates:
        return "in an aggregate to be avoided"
    if verdict := traits_verdict(shape, host.row.traits):
        return verdict
    if host.single:
        for group in shape.groups:
            if verdict := traits_verdict(group, host.row.traits) or bounds_verdict(group.amounts, host.row):
                return verdict
        if shape.isolate and len(shape.groups) > 1:
            return f"without {len(shape.groups)} separate parts"
        if verdict := bounds_verdict(shape.amounts, host.row):
            return verdict
    return next((verdict for verdict in (one(shape, host) for one in filters) if verdict), "")


def row_takes(part: Group | Amounts, row: RowSignature) -> bool:
    """Whether a row of a host of several may serve a group, or a single amount."""
    if isinstance(part, Group):
        return not traits_verdict(part, row.traits) and not bounds_verdict(part.amounts, row)
    return not bounds_verdict(part, row)


def traits_verdict(asked: Shape | Group, traits: frozenset[str]) -> str:
    if missing := asked.required - traits:
        return f"without trait {min(missing)}"
    if present := asked.forbidden & traits:
        return f"with trait {min(present)}"
    for some in asked.any_of:
        if not some & traits:
            return f"without any trait of {', '.join(sorted(some))}"
    return ""


def bounds_verdict(amounts: Amounts, row: RowSignature) -> str:
    bounds = {name: units for name, *units in row.bounds}
    for name, amount in amounts:
        if name not in bounds:
            return f"without {thing(name)}"
        least, most, step = bounds[name]
        if amount > most:
            return f"that give one consumer at most {most} {UNITS.get(name, name)}"
        if amount < least or amount % step:
            return f"that give {UNITS.get(name, name)} from {least} up in steps of {step}"
    return ""
