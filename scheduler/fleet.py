"""The scheduler's door: hosts, consumers and server groups by name, over the engine.

Each placement is taken off the fleet before the next request is looked at, so capacity is never exceeded; what is held
already (`hold`) may exceed it, where a ratio was lowered. A fleet says at which `revision` of the state it stands.
"""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from scheduler import _engine
from scheduler.constraints import Filter, HostSignature, RowSignature, host_signature, host_verdict, row_signature, row_takes
from scheduler.explain import choice, refusal
from scheduler.numeric import Numbers, np
from scheduler.types import (
    GROUP_POLICIES,
    POLICIES,
    Amounts,
    Group,
    Held,
    Host,
    Inventory,
    Placement,
    Refusal,
    Request,
    Row,
    ServerGroup,
    Shape,
    amounts,
)

#: Shapes kept before those that nothing needs are forgotten. Too few make rare shapes cost a look at every host again and
#: again; each costs some hundred bytes and a byte for every signature.
MOST_SHAPES = 4096

#: Distinct reasons that the engine can tell apart for one shape; further ones are counted together.
MOST_REASONS = 254


@dataclass(frozen=True, slots=True)
class Tried:
    """Where many consumers would go: `hosts` has a host's number for each, -1 for none, and `held` what it would hold there.

    `refused` has, by shape and group, how many have no place, and why for the first ones.
    """

    hosts: Numbers
    held: Sequence[tuple[Held, ...]]
    refused: Mapping[tuple[int, int], tuple[int, Refusal | None]]


class Fleet:
    """Hosts and what is held of them. Of hosts that are equally good the one that was added first is taken.

    `engine` makes the engine (resources) -> Engine: the Cython one, or the reference.
    """

    def __init__(self, hosts: Iterable[Host] = (), *, groups: Iterable[ServerGroup] = (), filters: Sequence[Filter] = (),
                 engine: Any = _engine.Engine):
        self.revision = 0
        self._make, self._filters = engine, tuple(filters)
        self.hosts: dict[str, Host] = {}
        self.groups: dict[str, ServerGroup] = {}
        self._clear(())
        hosts = list(hosts)
        self._widen({name for host in hosts for row in host.rows for name, _ in row.inventories})
        for host in hosts:
            if host.name in self.hosts:
                raise ValueError(f"two hosts are called {host.name}")
            self.set_host(host)
        for group in groups:
            self.set_group(group)

    def _clear(self, classes: Iterable[str]) -> None:
        self.classes: list[str] = list(classes)
        self._columns = {name: column for column, name in enumerate(self.classes)}
        self.engine = self._make(max(len(self.classes), 1))
        self.numbers: dict[str, int] = {}                     # of hosts
        self.names: list[str] = []                            # by host number, "" for none
        self._free_numbers: list[int] = []
        self.group_numbers: dict[str, int] = {}
        self._free_groups: list[int] = []
        self.claims: dict[str, int] = {}                      # by consumer
        self._consumers: list[str] = []                       # by claim number
        self._requests: dict[str, Request] = {}               # of consumers whose claims do not tell it
        self._claim_shapes: list[int] = []                    # by claim number
        self._claim_groups: dict[str, str] = {}               # by consumer
        self._totals: dict[str, int] | None = None
        self._most: dict[str, int] | None = None
        self._shape_room = MOST_SHAPES
        self.shapes: list[Shape] = []
        self.reasons: list[list[str]] = []                    # by shape and code
        self._shape_numbers: dict[Shape, int] = {}
        self._signatures: dict[HostSignature, int] = {}
        self._row_signatures: dict[RowSignature, int] = {}

    def copy(self) -> "Fleet":
        """The same fleet, to be planned on. Costs a copy of the state, no look at any host."""
        twin = object.__new__(Fleet)
        for name, value in vars(self).items():
            setattr(twin, name, value.copy() if isinstance(value, dict | list) or name == "engine" else value)
        twin.reasons = [list(reasons) for reasons in self.reasons]
        return twin

    # What there is

    def set_host(self, host: Host) -> None:
        """Add a host, or change one: what is held of it stays. Raises ValueError if a row of which something is held goes."""
        if not host.rows or len({row.name for row in host.rows}) < len(host.rows):
            raise ValueError(f"host {host.name}: no row, or two of one name")
        self._widen({name for row in host.rows for name, _ in row.inventories})
        number = self.numbers.get(host.name)
        if number is not None and [row.name for row in self.hosts[host.name].rows] != [row.name for row in host.rows]:
            self._keep_rows(host, number)
        rows = [row_signature(row) for row in host.rows]
        signature = self._signature(host, rows[0])
        if number is None:
            number = self._free_numbers.pop() if self._free_numbers else len(self.names)
        capacity = [[0] * len(self.classes) or [0] for _ in host.rows]
        for row, columns in zip(host.rows, capacity, strict=True):
            for name, inventory in row.inventories:
                columns[self._columns[name]] = inventory.capacity
        self.engine.set_host(number, signature, capacity, [self._row_signature(row) for row in rows],
                             [row.parent for row in host.rows])
        if number == len(self.names):
            self.names.append("")
        self.names[number], self.numbers[host.name], self.hosts[host.name] = host.name, number, host
        self._totals = self._most = None

    def _keep_rows(self, host: Host, number: int) -> None:
        """Rows are numbers below: what is held moves along with its row when rows come and go."""
        before, places = self.hosts[host.name], {row.name: place for place, row in enumerate(host.rows)}
        held = {consumer: self.held(consumer) for consumer in self.on(host.name)}
        for consumer, parts in held.items():
            if missing := [part.row for part in parts if part.row not in places]:
                raise ValueError(f"host {host.name}: {consumer} holds something of row {missing[0]}, which is to go")
        kept = {consumer: self.request(consumer) for consumer in held}
        for consumer in held:
            self.release(consumer)
        self.engine.remove_host(number)
        self.names[number] = ""
        self._free_numbers.append(number)
        del self.numbers[host.name], self.hosts[host.name]
        try:
            self.set_host(host)
        except ValueError:
            self.set_host(before)
            raise
        finally:
            for consumer, parts in held.items():
                self.hold(kept[consumer], host.name, parts)

    def remove_host(self, name: str) -> None:
        """Take a host out. Raises ValueError while something is held of it, KeyError if there is none."""
        self.engine.remove_host(self.numbers[name])
        number = self.numbers.pop(name)
        del self.hosts[name]
        self.names[number] = ""
        self._totals = self._most = None
        self._free_numbers.append(number)

    def set_group(self, group: ServerGroup) -> None:
        """Make or change a server group."""
        number = self.group_numbers.get(group.id)
        if number is None:
            number = self._free_groups.pop() if self._free_groups else len(self.group_numbers)
            self.group_numbers[group.id] = number
        self.engine.set_group(number, GROUP_POLICIES[group.policy], group.most)
        self.groups[group.id] = group

    def remove_group(self, group_id: str) -> None:
        """Forget a group; its members stay where they are, on their own. Nothing where there is none."""
        if group_id in self.groups:
            for consumer in [consumer for consumer, group in self._claim_groups.items() if group == group_id]:
                request, host, held = replace(self.request(consumer), group=""), self.host_of(consumer), self.held(consumer)
                self.release(consumer)
                self.hold(request, host, held)
            del self.groups[group_id]
            self._free_groups.append(self.group_numbers.pop(group_id))

    # Placing

    def place(self, request: Request, *, explain: bool = False) -> Placement | Refusal:
        """The best host for a request, claimed for it; or why there is none, and what would make it fit.

        Raises ValueError for a consumer that has a place already, or a group that is not there.
        """
        if request.id in self.claims:
            raise ValueError(f"{request.id} has a place already")
        shape, group, only, avoid = self.numbered(request)
        claim, host = self.engine.place(shape, group, only, avoid, request.until)
        if claim < 0:
            return refusal(self, request)
        why = None
        if explain:
            self.engine.release(claim)
            why = choice(self, request, host)
            claim, host = self.engine.place(shape, group, only, avoid, request.until)
        self._note(request, claim, shape)
        return Placement(request, self.names[host], self.held(request.id), why)

    def place_all(self, requests: Sequence[Request]) -> list[Placement | Refusal]:
        """All of them, or none: then the refusals of those that did not fit beside the others.

        They are tried in the order given, and once more the largest first.
        """
        answers: list[Placement | Refusal] = []
        as_given = list(range(len(requests)))
        for order in (as_given, sorted(as_given, key=lambda i: self._size(requests[i].shape), reverse=True)):
            tried = [(i, self.place(requests[i])) for i in order]
            answers = [answer for _, answer in sorted(tried, key=lambda pair: pair[0])]
            if all(isinstance(answer, Placement) for answer in answers):
                return answers
            for _, answer in reversed(tried):
                if isinstance(answer, Placement):
                    self.release(answer.request.id)
        return [answer for answer in answers if isinstance(answer, Refusal)]

    def dry_run(self, requests: Sequence[Request], *, explain: bool = False) -> list[Placement | Refusal]:
        """What `place` would answer to each, in order, each seeing those before it; nothing is claimed."""
        answers = []
        try:
            for request in requests:
                answers.append(self.place(request, explain=explain))
        finally:
            for answer in reversed(answers):
                if isinstance(answer, Placement):
                    self.release(answer.request.id)
        return answers

    def place_many(self, shapes: Sequence[Shape], which: Numbers, groups: Numbers | None = None, names: Sequence[str] = (), *,
                   all_or_nothing: bool = False, held: bool = False, reasons: int = 0) -> Tried:
        """Where many consumers without names would go, in order, each seeing those before it; nothing stays claimed.

        Args:
          shapes: the distinct ones, at most MOST_SHAPES / 2.
          which: (consumers,) the place of each one's shape.
          groups: (consumers,) the place of each one's server group in `names`, -1 for none.
          names: ids of server groups of this fleet.
          all_or_nothing: nobody has a place where one has none. They are tried as given, and once more the largest first.
          held: say what each would hold, too.
          reasons: refusals to explain at most, one for each shape and group.

        Raises ValueError for a group that is not there.
        """
        if len(shapes) > MOST_SHAPES // 2:
            raise ValueError(f"more than {MOST_SHAPES // 2} distinct shapes")
        if missing := [name for name in names if name not in self.group_numbers]:
            raise ValueError(f"there is no server group {missing[0]}")
        for shape in shapes:
            self.shape_number(shape)                  # may make room, and then those before it have other numbers
        numbers = np.array([self.shape_number(shape) for shape in shapes] or [0], np.int32)
        members = np.array([*(self.group_numbers[name] for name in names), -1], np.int32)
        asked, grouped = numbers[which], members[groups] if groups is not None else np.full(len(which), -1, np.int32)
        orders = [np.arange(len(which))]
        if all_or_nothing:
            orders.append(np.argsort(-np.array([self._size(shape) for shape in shapes] or [0])[which], kind="stable"))
        for order in orders:
            claims, hosts = np.empty(len(which), np.int32), np.empty(len(which), np.int32)
            made, found = np.empty(len(which), np.int32), np.empty(len(which), np.int32)
            self.engine.replay(asked[order], grouped[order], made, found)
            claims[order], hosts[order] = made, found
            try:
                fits = bool((claims >= 0).all())
                if not fits and order is not orders[-1]:
                    continue
                refused = {} if fits else self._refused(shapes, which, groups, names, claims, reasons)
                if all_or_nothing and not fits:
                    return Tried(np.full(len(which), -1, np.int32), (), refused)
                return Tried(hosts, self._parts_many(shapes, which, claims, hosts) if held else (), refused)
            finally:
                self.engine.release_many(claims[claims >= 0])
        raise AssertionError("the last order has an answer")

    def _refused(self, shapes: Sequence[Shape], which: Numbers, groups: Numbers | None, names: Sequence[str], claims: Numbers,
                 reasons: int) -> dict[tuple[int, int], tuple[int, Refusal | None]]:
        """How many of each shape and group have no claim, and why, while the others have theirs."""
        without = np.flatnonzero(claims < 0)
        found: dict[tuple[int, int], tuple[int, Refusal | None]] = {}
        pairs = np.stack([which[without], groups[without] if groups is not None else np.full(len(without), -1, np.int32)])
        kinds, counts = np.unique(pairs, axis=1, return_counts=True)
        for (shape, group), count in zip(kinds.T.tolist(), counts.tolist(), strict=True):
            request = Request("", shapes[shape], names[group] if group >= 0 else "")
            found[shape, group] = count, refusal(self, request) if len(found) < reasons else None
        return found

    def _parts_many(self, shapes: Sequence[Shape], which: Numbers, claims: Numbers, hosts: Numbers) -> list[tuple[Held, ...]]:
        """What each claim holds, by row; those of one shape on one host without parts share theirs."""
        known: dict[tuple[int, int], tuple[Held, ...]] = {}
        parts: list[tuple[Held, ...]] = []
        for shape, claim, host in zip(which.tolist(), claims.tolist(), hosts.tolist(), strict=True):
            if claim < 0:
                parts.append(())
                continue
            if (shape, host) in known:
                parts.append(known[shape, host])
                continue
            one = self._held_by(claim, self.hosts[self.names[host]])
            if len(self.hosts[self.names[host]].rows) == 1:
                known[shape, host] = one
            parts.append(one)
        return parts

    def hold(self, request: Request, host: str, held: Sequence[Held]) -> None:
        """Claim what a consumer holds already, whether it fits or not."""
        if request.id in self.claims:
            raise ValueError(f"{request.id} has a place already")
        self._widen({name for part in held for name, _ in part.amounts})
        places = {row.name: place for place, row in enumerate(self.hosts[host].rows)}
        try:
            parts = [(places[part.row], self._vector(part.amounts)) for part in held if part.amounts]
        except KeyError as missing:
            raise ValueError(f"host {host} has no row {missing.args[0]}") from missing
        shape = self.shape_number(request.shape)
        _, group, _, _ = self.numbered(request)
        claim = self.engine.hold(self.numbers[host], parts or [(0, self._vector(()))], group, request.until)
        self._note(request, claim, shape)

    def hold_many(self, held: Sequence[tuple[str, str, Amounts, str]]) -> None:
        """Claim for many what they hold of their host's first row: (consumer, host, amounts, group or "")."""
        if not held:
            return
        distinct = {amounts for _, _, amounts, _ in held}
        self._widen({name for each in distinct for name, _ in each})
        if self._shape_room < len(self.shapes) + len(distinct):
            self._rebuild(self.classes)                   # forgets those that nothing needs
            self._shape_room = max(self._shape_room, 2 * (len(self.shapes) + len(distinct)))
        if twice := next((consumer for consumer, *_ in held if consumer in self.claims), ""):
            raise ValueError(f"{twice} has a place already")
        numbers = {given: self.shape_number(Shape(given)) for given in distinct}
        claims = np.empty(len(held), np.int32)
        self.engine.hold_many(np.array([self.numbers[host] for _, host, _, _ in held], np.int32),
                              np.array([numbers[given] for _, _, given, _ in held], np.int32),
                              np.array([self.group_numbers[group] if group else -1 for *_, group in held], np.int32), claims)
        more = int(claims.max(initial=-1)) + 1 - len(self._consumers)
        self._consumers += [""] * more
        self._claim_shapes += [0] * more
        for (consumer, _, given, group), claim in zip(held, claims.tolist(), strict=True):
            self.claims[consumer] = claim
            self._consumers[claim], self._claim_shapes[claim] = consumer, numbers[given]
            if group:
                self._claim_groups[consumer] = group

    def release(self, consumer: str) -> None:
        """Give back what a consumer holds. KeyError if it holds nothing."""
        claim = self.claims.pop(consumer)
        self.engine.release(claim)
        self._requests.pop(consumer, None)
        self._claim_groups.pop(consumer, None)
        self._consumers[claim] = ""

    def extend(self, consumer: str, until: int) -> None:
        """Say anew when a consumer is expected to end. KeyError if it holds nothing."""
        self.engine.extend(self.claims[consumer], until)

    def move(self, consumer: str, *, only: Iterable[str] | None = None) -> Placement | Refusal:
        """Place a consumer anew on another host than its own; where none fits it stays as it is."""
        request, host, held = self.request(consumer), self.host_of(consumer), self.held(consumer)
        self.release(consumer)
        wish = replace(request, avoid=request.avoid | {host}, only=request.only if only is None else frozenset(only))
        answer = self.place(wish)
        if isinstance(answer, Placement):
            self.remember(request)
            return replace(answer, request=request)
        self.hold(request, host, held)
        return answer

    def remember(self, request: Request) -> None:
        """Say anew what a consumer was placed for, wherever it is: its group stays what it was."""
        number = self.shape_number(request.shape)          # may make room, and then claims have other numbers
        self._claim_shapes[self.claims[request.id]] = number
        self._keep(request)

    def _keep(self, request: Request) -> None:
        self._requests.pop(request.id, None)
        if request.only is not None or request.avoid or request.until:
            self._requests[request.id] = request

    # Looking

    def host_of(self, consumer: str) -> str:
        return self.names[self.engine.host_of(self.claims[consumer])]

    def held(self, consumer: str) -> tuple[Held, ...]:
        """What a consumer holds, by row."""
        return self._held_by(self.claims[consumer], self.hosts[self.host_of(consumer)])

    def _held_by(self, claim: int, host: Host) -> tuple[Held, ...]:
        by_row: dict[int, list[int]] = {}
        for row, vector in self.engine.parts_of(claim):
            by_row[row] = [a + b for a, b in zip(by_row.get(row, [0] * len(vector)), vector, strict=True)]
        return tuple(Held(host.rows[row].name, self._named(vector)) for row, vector in sorted(by_row.items()))

    def on(self, host: str) -> list[str]:
        """The consumers of a host, in order of their ids."""
        number = self.numbers[host]
        return sorted(self._consumers[claim] for claim in self.engine.claims_on(number))

    def request(self, consumer: str) -> Request:
        """The request that a consumer was placed or held for."""
        claim = self.claims[consumer]
        return self._requests.get(consumer) or Request(consumer, self.shapes[self._claim_shapes[claim]],
                                                       self._claim_groups.get(consumer, ""))

    def free(self, host: str) -> dict[str, int]:
        """What is free of a host by class, its rows added up; below zero where more is held than there is."""
        totals = [sum(column) for column in zip(*self.engine.free(self.numbers[host]), strict=True)]
        return {name: totals[column] for column, name in enumerate(self.classes) if self.capacity(host).get(name)}

    def capacity(self, host: str) -> dict[str, int]:
        """What may be claimed of a host by class, its rows added up."""
        totals: dict[str, int] = {}
        for row in self.hosts[host].rows:
            for name, inventory in row.inventories:
                totals[name] = totals.get(name, 0) + inventory.capacity
        return totals

    def totals(self) -> dict[str, int]:
        """What may be claimed of all hosts together, by class."""
        if self._totals is None:
            self._totals = {}
            for host in self.hosts:
                for name, amount in self.capacity(host).items():
                    self._totals[name] = self._totals.get(name, 0) + amount
        return self._totals

    def most_at_once(self) -> dict[str, int]:
        """The largest amount of each class that any row would give one consumer, had it all free."""
        if self._most is None:
            self._most = {}
            for host in self.hosts.values():
                for row in host.rows:
                    for name, inventory in row.inventories:
                        most = min(inventory.max_unit, inventory.capacity)
                        self._most[name] = max(self._most.get(name, 0), most - most % inventory.step_size)
        return self._most

    def numbered(self, request: Request) -> tuple[int, int, list[int] | None, list[int]]:
        """A request in the engine's numbers: shape, group, only, avoid. Raises ValueError for a group that is not there."""
        if request.group and request.group not in self.group_numbers:
            raise ValueError(f"there is no server group {request.group}")
        only = None if request.only is None else [self.numbers[name] for name in request.only if name in self.numbers]
        avoid = [self.numbers[name] for name in request.avoid if name in self.numbers]
        return self.shape_number(request.shape), self.group_numbers.get(request.group, -1), only, avoid

    # Names and numbers

    def shape_number(self, shape: Shape) -> int:
        number = self._shape_numbers.get(shape)
        if number is None:
            if len(self.shapes) >= self._shape_room:
                self._rebuild(self.classes)
            number = self._add_shape(shape)
        return number

    def _add_shape(self, shape: Shape) -> int:
        parts = [self._vector(part.amounts if isinstance(part, Group) else part) for part in _parts(shape)]
        number = self.engine.add_shape(parts, len(shape.groups), shape.isolate, shape.subtrees,
                                       POLICIES[shape.policy], self.weights(shape))
        self.shapes.append(shape)
        self.reasons.append([""])
        self._shape_numbers[shape] = number
        self.engine.judge(number, bytes(self._code(number, signature) for signature in self._signatures))
        for part, asked in enumerate(_parts(shape)):
            self.engine.judge_rows(number, part, bytes(not row_takes(asked, signature) for signature in self._row_signatures))
        return number

    def weights(self, shape: Shape) -> list[int]:
        """The weight of each column."""
        given = dict(shape.weights)
        if not given and shape.policy == "spread":
            given = {name: 1 for name, _ in (*shape.amounts, *(pair for group in shape.groups for pair in group.amounts))}
        elif not given:
            given = dict.fromkeys(self.classes, 1)
        return [given.get(name, 0) for name in self.classes] or [0]

    def _code(self, shape: int, signature: HostSignature) -> int:
        verdict, reasons = host_verdict(self.shapes[shape], signature, self._filters), self.reasons[shape]
        if verdict not in reasons:
            if len(reasons) > MOST_REASONS - 1:
                verdict = "ruled out for other reasons"
            if verdict not in reasons:
                reasons.append(verdict)
        return reasons.index(verdict)

    def _signature(self, host: Host, row: RowSignature) -> int:
        signature = host_signature(host, row)
        if signature not in self._signatures:
            self._signatures[signature] = len(self._signatures)
            for shape in range(len(self.shapes)):
                self.engine.judge_next(shape, self._code(shape, signature))
        return self._signatures[signature]

    def _row_signature(self, signature: RowSignature) -> int:
        if signature not in self._row_signatures:
            self._row_signatures[signature] = len(self._row_signatures)
            for number, shape in enumerate(self.shapes):
                for part, asked in enumerate(_parts(shape)):
                    self.engine.judge_rows(number, part, bytes(not row_takes(asked, one) for one in self._row_signatures))
        return self._row_signatures[signature]

    def _vector(self, given: Iterable[tuple[str, int]]) -> list[int]:
        vector = [0] * max(len(self.classes), 1)
        for name, amount in given:
            if name in self._columns:                    # of a class that no host has none is asked: `host_verdict` refuses it
                vector[self._columns[name]] += amount
        return vector

    def _named(self, vector: Sequence[int]) -> tuple[tuple[str, int], ...]:
        return amounts(dict(zip(self.classes, vector, strict=False)))

    def _size(self, shape: Shape) -> int:
        return sum(amount for _, amount in shape.amounts) + sum(amount for group in shape.groups for _, amount in group.amounts)

    def _note(self, request: Request, claim: int, shape: int) -> None:
        while len(self._consumers) <= claim:
            self._consumers.append("")
            self._claim_shapes.append(0)
        self.claims[request.id] = claim
        self._consumers[claim], self._claim_shapes[claim] = request.id, shape
        if request.group:
            self._claim_groups[request.id] = request.group
        self._keep(request)

    # Growing

    def _widen(self, classes: set[str]) -> None:
        if classes - self._columns.keys():
            self._rebuild([*self.classes, *sorted(classes - self._columns.keys())])

    def _rebuild(self, classes: Sequence[str]) -> None:
        """An engine with these classes, and with the shapes that somebody holds: rare, and a look at everything there is."""
        hosts, groups = [self.hosts[name] for name in self.names if name], list(self.groups.values())
        held = [(self.request(consumer), self.host_of(consumer), self.held(consumer)) for consumer in self.claims]
        self.hosts, self.groups = {}, {}
        self._clear(list(classes))
        self._shape_room = len(held) + 1
        for host in hosts:
            self.set_host(host)
        for group in groups:
            self.set_group(group)
        for request, name, parts in held:
            self.hold(request, name, parts)
        self._shape_room = max(MOST_SHAPES, 2 * len(self.shapes))


def _parts(shape: Shape) -> list[Group | Amounts]:
    """What one row each must serve: the groups, then the other amounts, a class each; at least one."""
    return [*shape.groups, *(((name, amount),) for name, amount in shape.amounts)] or [()]


def single_row(name: str, inventories: Mapping[str, Inventory], **more: Any) -> Host:
    """A host without parts."""
    return Host(name, (Row(name, tuple(sorted(inventories.items())), more.pop("traits", frozenset())),), **more)
