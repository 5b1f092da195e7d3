"""What-if: what would happen to a fleet, worked out on a copy, and carried out later if the fleet is still the same.

A plan names the revision that it was made at. `apply` does what the plan says, all of it, or raises Moved and changes nothing.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from scheduler.explain import refusal
from scheduler.fleet import Fleet
from scheduler.types import Host, Inventory, Placement, Refusal, Request

#: Consumers of the fullest host that one step of `balance` tries to move, the largest first.
TRIED = 32


class Moved(Exception):
    """The fleet is no longer what a plan was made for."""


@dataclass(frozen=True, slots=True)
class Move:
    consumer: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Plan:
    """`closed` hosts take nothing more, `changed` ones get these inventories, then the moves are made together, then the new
    consumers placed. `refused` says of whom there is no place for and why; `overfull` which hosts hold more than they have."""

    revision: int
    moves: tuple[Move, ...] = ()
    placed: tuple[Placement, ...] = ()
    refused: tuple[Refusal, ...] = ()
    closed: tuple[str, ...] = ()
    changed: tuple[Host, ...] = ()
    overfull: tuple[str, ...] = ()


def drain(fleet: Fleet, hosts: Iterable[str], because: str = "drained") -> Plan:
    """Empty hosts, and keep them so. Raises KeyError for a host that is not there.

    All leave at once, the largest first, so that affinity groups go together. Losing a rack is draining its hosts.
    """
    twin, names = fleet.copy(), sorted(set(hosts))
    for name in names:
        twin.set_host(replace(twin.hosts[name], closed=because))
    leaving = {consumer: (name, twin.request(consumer), twin.held(consumer)) for name in names for consumer in twin.on(name)}
    for consumer in leaving:
        twin.release(consumer)
    moves, refused = [], []
    for consumer, (name, request, _) in sorted(leaving.items(), key=lambda item: (-_size(twin, item[1][1]), item[0])):
        answer = twin.place(request)
        if isinstance(answer, Placement):
            moves.append(Move(consumer, name, answer.host))
        else:
            refused.append(answer)
    return Plan(fleet.revision, tuple(moves), (), tuple(refused), tuple(names))


def add(fleet: Fleet, requests: Sequence[Request]) -> Plan:
    """Place new consumers, as many as there is room for."""
    answers = fleet.copy().dry_run(requests)
    return Plan(fleet.revision, placed=tuple(answer for answer in answers if isinstance(answer, Placement)),
                refused=tuple(answer for answer in answers if isinstance(answer, Refusal)))


def change(fleet: Fleet, hosts: Iterable[Host]) -> Plan:
    """Give hosts other inventories, traits or aggregates, and say which of them then hold more than they have."""
    twin, changed = fleet.copy(), tuple(hosts)
    for host in changed:
        twin.set_host(host)
    return Plan(fleet.revision, changed=changed, overfull=tuple(
        host.name for host in changed if any(amount < 0 for amount in twin.free(host.name).values())))


def change_ratio(fleet: Fleet, resource: str, ratio: float, hosts: Iterable[str] | None = None) -> Plan:
    """Over-commit a class anew on some hosts, or all. Raises ValueError for a ratio that is not above 0."""
    def with_ratio(inventory: Inventory) -> Inventory:
        return replace(inventory, allocation_ratio=ratio)

    chosen = [fleet.hosts[name] for name in (sorted(fleet.hosts) if hosts is None else hosts)]
    return change(fleet, [replace(host, rows=tuple(replace(row, inventories=tuple(
        (name, with_ratio(inventory) if name == resource else inventory) for name, inventory in row.inventories))
        for row in host.rows)) for host in chosen])


def balance(fleet: Fleet, *, most_moves: int, threshold_ppm: int = 100_000) -> Plan:
    """Even the hosts' loads out, by few moves: until none is above the mean by more than the threshold, the limit is
    reached, or no move helps. A host's load is the largest used share of any class.

    Each step moves, from the fullest host that it helps, the consumer that leaves the fuller of both hosts least full.
    """
    twin = fleet.copy()
    moves: list[Move] = []
    where = {consumer: twin.host_of(consumer) for consumer in twin.claims}
    while len(moves) < most_moves:
        loads = {name: load_ppm(twin, name) for name, host in twin.hosts.items() if not host.closed}
        if len(loads) < 2:
            break
        mean = sum(loads.values()) // len(loads)
        above = [name for name in sorted(loads, key=lambda name: (-loads[name], name)) if loads[name] - mean > threshold_ppm]
        step = next((step for step in (_lighten(twin, name) for name in above) if step), None)
        if step is None:
            break
        twin.move(step.consumer, only=[step.target])
        moves.append(step)
    return Plan(fleet.revision, tuple(_joined(moves, where)))


def consolidate(fleet: Fleet, *, most_moves: int) -> Plan:
    """Empty as many hosts as the limit of moves allows, those with the fewest consumers first; none is opened for it."""
    twin = fleet.copy()
    moves: list[Move] = []
    where = {consumer: twin.host_of(consumer) for consumer in twin.claims}
    candidates = sorted((name for name in twin.hosts if twin.on(name)), key=lambda name: (len(twin.on(name)), name))
    received: set[str] = set()
    for name in candidates:
        leaving = twin.on(name)
        if name in received or len(moves) + len(leaving) > most_moves:
            continue
        trial = drain(twin, [name])
        used = {host for host in twin.hosts if twin.on(host)}
        if trial.refused or any(move.target not in used for move in trial.moves):
            continue
        _move_together(twin, trial.moves)
        received.update(move.target for move in trial.moves)
        moves += trial.moves
    return Plan(fleet.revision, tuple(_joined(moves, where)))


def apply(fleet: Fleet, plan: Plan) -> None:
    """Do what a plan says. Raises Moved, with nothing changed, where the fleet's revision is another than the plan's."""
    if fleet.revision != plan.revision:
        raise Moved(f"the plan was made at revision {plan.revision}; the fleet is at {fleet.revision}: make it anew")
    for name in plan.closed:
        fleet.set_host(replace(fleet.hosts[name], closed=fleet.hosts[name].closed or "drained"))
    for host in plan.changed:
        fleet.set_host(host)
    _move_together(fleet, plan.moves)
    for placement in plan.placed:
        fleet.hold(placement.request, placement.host, placement.held)


def load_ppm(fleet: Fleet, host: str) -> int:
    """The largest used share of any class of a host, in parts per million."""
    free, capacity = fleet.free(host), fleet.capacity(host)
    return max(((capacity[name] - free[name]) * 1_000_000 // capacity[name] for name in free), default=0)


def _move_together(fleet: Fleet, moves: Sequence[Move]) -> None:
    requests = {move.consumer: fleet.request(move.consumer) for move in moves}
    before = {move.consumer: (fleet.host_of(move.consumer), fleet.held(move.consumer)) for move in moves}
    for move in moves:
        fleet.release(move.consumer)
    done: list[str] = []
    for move in moves:
        answer = fleet.place(replace(requests[move.consumer], only=frozenset([move.target])))
        if isinstance(answer, Refusal):
            for consumer in done:
                fleet.release(consumer)
            for consumer, (host, held) in before.items():
                fleet.hold(requests[consumer], host, held)
            raise Moved(f"{move.consumer} does not fit {move.target}: {refusal(fleet, answer.request, fixes=False).reason()}")
        done.append(move.consumer)
    for move in moves:
        fleet.remember(requests[move.consumer])


def _lighten(fleet: Fleet, name: str) -> Move | None:
    """The move off a host that leaves the fuller of both least full, and less than it was."""
    least, best = load_ppm(fleet, name), None
    for consumer in sorted(fleet.on(name), key=lambda consumer: (-_size(fleet, fleet.request(consumer)), consumer))[:TRIED]:
        request, host, held = fleet.request(consumer), name, fleet.held(consumer)
        fleet.release(consumer)
        spread = replace(request, shape=replace(request.shape, policy="spread", weights=()), avoid=request.avoid | {name})
        answer = fleet.place(spread)
        if isinstance(answer, Placement):
            fuller = max(load_ppm(fleet, name), load_ppm(fleet, answer.host))
            if fuller < least:
                least, best = fuller, Move(consumer, name, answer.host)
            fleet.release(consumer)
        fleet.hold(request, host, held)
    return best


def _joined(moves: Sequence[Move], where: dict[str, str]) -> list[Move]:
    """One move for each consumer: where it was, to where it ends; none where these are the same."""
    last = {move.consumer: move.target for move in moves}
    return [Move(consumer, where[consumer], target) for consumer, target in last.items() if target != where[consumer]]


def _size(fleet: Fleet, request: Request) -> int:
    """A request's largest share of what the fleet has of a class, in parts per million of the mean host."""
    asked = dict(request.shape.amounts)
    for group in request.shape.groups:
        for name, amount in group.amounts:
            asked[name] = asked.get(name, 0) + amount
    totals = fleet.totals()
    return max((amount * 1_000_000 * len(fleet.hosts) // totals[name] for name, amount in asked.items() if totals.get(name)),
               default=0)
