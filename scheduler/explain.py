"""Says why nothing fits and what would, and why a host was taken: from the engine's own count, in words.

Every suggestion was tried on the fleet as it is before it is made.
"""
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from scheduler.reference import SHARE_BITS
from scheduler.types import Choice, Fix, Refusal, Request, Scored, Shape, Term, amounts, thing

if TYPE_CHECKING:
    from scheduler.fleet import Fleet

_GROUPED = {"anti-affinity": "holding members of the server group", "affinity": "without the server group's members"}

#: Relaxations in the order in which they are given up together where none alone is enough: what the user cares for least first.
CONSTRAINTS = ("hosts to avoid", "the server group", "the host asked for", "the zone", "the aggregates", "the traits",
               "the NUMA and device groups")


def refusal(fleet: "Fleet", request: Request, *, fixes: bool = True) -> Refusal:
    """Why no host of the fleet takes a request."""
    shape, group, only, avoid = fleet.numbered(request)
    found = fleet.engine.misses(shape, group, only, avoid)
    ruled_out: dict[str, int] = {}

    def count(reason: str, hosts: int) -> None:
        if hosts:
            ruled_out[reason] = ruled_out.get(reason, 0) + hosts

    count("not the host asked for" if request.only is not None and len(request.only) == 1 else "not among the hosts asked for",
          found.not_asked)
    count("to be avoided", found.avoided)
    for code, hosts in enumerate(found.codes):
        if hosts:
            count(fleet.reasons[shape][code], hosts)
    count(_GROUPED.get(fleet.groups[request.group].policy, "") if request.group else "", found.grouped)
    for column, hosts in enumerate(found.lacking):
        count(f"without enough {thing(fleet.classes[column])}" if hosts else "", hosts)
    count("whose parts do not fit it", found.unassigned)
    lacks = {fleet.classes[column]: lack for column, lack in enumerate(found.lacks) if lack}
    return Refusal(request, found.hosts, ruled_out, fleet.names[found.nearest] if found.nearest >= 0 else "", lacks,
                   tuple(_fixes(fleet, request)) if fixes else ())


def choice(fleet: "Fleet", request: Request, host: int) -> Choice:
    """Why a request goes to a host, which must be the best one of the fleet as it is."""
    shape, group, only, avoid = fleet.numbered(request)
    found = fleet.engine.misses(shape, group, only, avoid)
    second, runner_up = fleet.engine.place(shape, group, only, [*avoid, host], request.until)
    if second >= 0:
        fleet.engine.release(second)
    return Choice(request.shape.policy, found.taking, _scored(fleet, shape, host),
                  _scored(fleet, shape, runner_up) if second >= 0 else None)


def _scored(fleet: "Fleet", shape: int, host: int) -> Scored:
    weights = fleet.weights(fleet.shapes[shape])
    terms = tuple(Term(name, share * 1_000_000 >> SHARE_BITS, weight)
                  for name, share, weight in zip(fleet.classes, fleet.engine.shares(shape, host), weights, strict=False)
                  if share >= 0 and weight)
    return Scored(fleet.names[host], fleet.engine.score(shape, host), terms)


def relaxed(request: Request, fix: Fix) -> Request:
    """The request with a suggestion applied. A group's amounts cannot be lowered by class: a fix drops groups first."""
    shape = request.shape
    lower = dict(fix.lower)
    for constraint in fix.drop:
        match constraint:
            case "hosts to avoid":
                request = replace(request, avoid=frozenset())
            case "the server group":
                request = replace(request, group="")
            case "the host asked for":
                request = replace(request, only=None)
            case "the zone":
                shape = replace(shape, zone="")
            case "the aggregates":
                shape = replace(shape, aggregates=(), not_aggregates=frozenset())
            case "the traits":
                shape = replace(shape, required=frozenset(), forbidden=frozenset(), any_of=())
            case "the NUMA and device groups":
                shape = _ungrouped(shape)
    if lower:
        shape = replace(shape, amounts=amounts({name: min(amount, lower.get(name, amount)) for name, amount in shape.amounts}))
    return replace(request, shape=shape)


def _ungrouped(shape: Shape) -> Shape:
    total = dict(shape.amounts)
    for group in shape.groups:
        for name, amount in group.amounts:
            total[name] = total.get(name, 0) + amount
    return replace(shape, amounts=amounts(total), groups=(), isolate=False, subtrees=())


def _asks(request: Request) -> Iterator[str]:
    """The constraints that a request has, in their order."""
    shape = request.shape
    has = (request.avoid, request.group, request.only is not None, shape.zone, shape.aggregates or shape.not_aggregates,
           shape.required or shape.forbidden or shape.any_of, shape.groups)
    return (constraint for constraint, there in zip(CONSTRAINTS, has, strict=True) if there)


def _fixes(fleet: "Fleet", request: Request) -> Iterator[Fix]:
    """Each single change that is enough; where there is none, the shortest run of changes in the order above that is."""
    asks = list(_asks(request))
    enough = [fix for fix in (Fix((constraint,)) for constraint in asks) if _fits(fleet, request, fix)]
    if lowered := _lowered(fleet, request, ()):
        enough.insert(0, lowered)
    yield from enough
    if enough:
        return
    for many in range(1, len(asks) + 1):
        drop = tuple(asks[:many])
        if many > 1 and _fits(fleet, request, Fix(drop)):
            yield Fix(drop)
            return
        if lowered := _lowered(fleet, request, drop):
            yield lowered
            return


def _fits(fleet: "Fleet", request: Request, fix: Fix) -> bool:
    shape, group, only, avoid = fleet.numbered(relaxed(request, fix))
    claim, _ = fleet.engine.place(shape, group, only, avoid)
    if claim >= 0:
        fleet.engine.release(claim)
    return claim >= 0


def _lowered(fleet: "Fleet", request: Request, drop: tuple[str, ...]) -> Fix | None:
    """The amounts lowered to what the nearest miss has, with some constraints left out."""
    eased = relaxed(request, Fix(drop))
    if eased.shape.groups:
        return None
    most = fleet.most_at_once()
    lower = {name: most[name] for name, amount in eased.shape.amounts if amount > most.get(name, amount)}
    eased = relaxed(eased, Fix(lower=amounts(lower)))
    if not _fits(fleet, eased, Fix()):
        asked = dict(eased.shape.amounts)
        lower |= {name: asked[name] - lack for name, lack in refusal(fleet, eased, fixes=False).lacks.items()}
    if not lower or min(lower.values()) <= 0:
        return None
    fix = Fix(drop, amounts(lower))
    return fix if _fits(fleet, request, fix) else None
