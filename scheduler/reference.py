"""What the engine means, in plain Python: the oracle that the Cython engine is tested against, to the bit.

Everything here is integers. Hosts, rows, shapes, groups and claims are numbers; `scheduler.fleet` gives them names.

A host has rows: the first is the host itself, others are its parts (NUMA cells, devices). A shape is what many requests
have in common: its parts (amounts that one row must serve together), a policy and weights. Whether a host or a row may
serve a shape at all, whatever it has free, depends on its signature alone, and is told with `judge` and `judge_rows`.
"""
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

PACK, SPREAD, FIRST = 0, 1, 2
ANTI_AFFINITY, AFFINITY, SOFT_ANTI_AFFINITY, SOFT_AFFINITY = 0, 1, 2, 3

#: A share of a capacity is told in 2**-14; a score stays below 2**30.
SHARE_BITS = 14
SCORE_BITS = 30

#: Largest amount of anything, in its class's unit.
MOST = 2**40

#: Tries of one search for rows. Too low and hosts with many cells refuse what they could serve; too high and one such
#: request keeps all others waiting. A search of 8 parts over 8 cells that all fit takes 8.
TRIES = 4096

#: A gap between a server's end and its host's counts by powers of two of this many seconds.
GAP_BITS = 10


@dataclass(slots=True)
class Rows:
    """One host. Lists by row, then by resource class."""

    signature: int
    capacity: list[list[int]]
    free: list[list[int]]
    row_signatures: list[int]
    parents: list[int]
    claims: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Shape:
    """The first `groups` parts are groups; where `isolate`, no two of these share a row. A subtree names groups of which
    one's row must be an ancestor of the rows of all others, or the same."""

    parts: tuple[tuple[int, ...], ...]
    groups: int
    isolate: bool
    subtrees: tuple[tuple[int, ...], ...]
    policy: int
    weights: tuple[int, ...]


@dataclass(slots=True)
class Claim:
    host: int
    parts: list[tuple[int, tuple[int, ...]]]          # row, amounts
    group: int = -1
    until: int = 0


class Engine:
    """Hosts and the claims on them. `place` takes the best host there is, never beyond a capacity."""

    def __init__(self, resources: int):
        """Args: resources: number of resource classes, 1 or more."""
        if resources < 1:
            raise ValueError("there must be a resource class")
        self.resources = resources
        self.now = 0
        self._hosts: dict[int, Rows] = {}
        self._shapes: list[Shape] = []
        self._codes: list[bytes] = []
        self._row_codes: list[list[bytes]] = []
        self._groups: dict[int, tuple[int, int]] = {}
        self._claims: dict[int, Claim] = {}
        self._unused: list[int] = []

    def copy(self) -> "Engine":
        """The same hosts and claims under the same numbers, free to be planned on."""
        twin = Engine(self.resources)
        twin.now = self.now
        twin._hosts = {number: replace(host, free=[list(row) for row in host.free], claims=set(host.claims))
                       for number, host in self._hosts.items()}
        twin._shapes, twin._codes = list(self._shapes), list(self._codes)
        twin._row_codes = [list(codes) for codes in self._row_codes]
        twin._groups, twin._unused = dict(self._groups), list(self._unused)
        twin._claims = {number: replace(claim) for number, claim in self._claims.items()}
        return twin

    # What there is

    def set_host(self, host: int, signature: int, capacity: Sequence[Sequence[int]], row_signatures: Sequence[int] = (0,),
                 parents: Sequence[int] = (0,)) -> None:
        """Add a host, or change one: its claims stay, also where they exceed the new capacity.

        Args:
          host: a number of the caller's choice, 0 or more; of equal hosts the lowest number is taken.
          capacity: (rows, resources), 0 to MOST each.
          row_signatures, parents: (rows,); a parent is the number of an earlier row of the host; the first row's is 0.

        Raises:
          ValueError: shapes that disagree, an amount out of range, fewer rows than the claims there need.
        """
        rows = len(capacity)
        check_host(host, signature, capacity, row_signatures, parents, self.resources)
        before = self._hosts.get(host)
        claims = before.claims if before else set()
        free = [list(row) for row in capacity]
        for claim in claims:
            if any(row >= rows for row, _ in self._claims[claim].parts):
                raise ValueError(f"host {host}: a claim stands on a row that is to go")
        for claim in claims:
            for row, amounts in self._claims[claim].parts:
                free[row] = [have - amount for have, amount in zip(free[row], amounts, strict=True)]
        self._hosts[host] = Rows(signature, [list(row) for row in capacity], free, list(row_signatures), list(parents), claims)

    def remove_host(self, host: int) -> None:
        """Take a host out. Raises ValueError while it holds claims, or if there is none."""
        if host not in self._hosts:
            raise ValueError(f"there is no host {host}")
        if self._hosts[host].claims:
            raise ValueError(f"host {host} holds claims")
        del self._hosts[host]

    def add_shape(self, parts: Sequence[Sequence[int]], groups: int, isolate: bool, subtrees: Sequence[Sequence[int]],
                  policy: int, weights: Sequence[int]) -> int:
        """A shape's number. `parts` is (parts, resources), 0 to MOST; `weights` (resources,), 0 to 100. See Shape."""
        check_shape(parts, groups, subtrees, policy, weights, self.resources)
        self._shapes.append(Shape(tuple(map(tuple, parts)), groups, bool(isolate), tuple(map(tuple, subtrees)), policy,
                                  tuple(weights)))
        self._codes.append(b"")
        self._row_codes.append([b""] * len(parts))
        return len(self._shapes) - 1

    def judge(self, shape: int, codes: bytes) -> None:
        """Say for each host signature whether it may serve a shape: 0 it may, else the caller's code of why not.

        What a host of one row may not serve for the sake of that row is to be said here, too.
        """
        self._check_shape(shape)
        self._codes[shape] = bytes(codes)

    def judge_next(self, shape: int, code: int) -> None:
        """Say it for the next signature, which no host has yet."""
        self._check_shape(shape)
        self._codes[shape] += bytes([code])

    def judge_rows(self, shape: int, part: int, codes: bytes) -> None:
        """Say for each row signature whether it may serve a part of a shape: 0 it may. Counts on hosts of several rows."""
        self._check_shape(shape)
        self._row_codes[shape][part] = bytes(codes)

    def set_group(self, group: int, policy: int, most: int = 1) -> None:
        """Make or change a server group; anti-affinity allows `most` members a host."""
        if group < 0 or not 0 <= policy <= SOFT_AFFINITY or most < 1:
            raise ValueError(f"group {group}: unknown policy, or fewer than one member a host")
        self._groups[group] = (policy, most)

    # Placing

    def place(self, shape: int, group: int = -1, only: Sequence[int] | None = None, avoid: Iterable[int] = (),
              until: int = 0) -> tuple[int, int]:
        """Claim the best host for a shape: (claim, host), or (-1, -1) when none fits.

        The best has the least of: members of a soft group (affinity: the most), the lifetime gap's class, the score, the
        number. `until` is when the server is expected to end, in seconds on the clock of `now`; 0: not known.
        """
        self._check_shape(shape)
        self._check_group(group)
        host = self._best(shape, group, only, frozenset(avoid), until)
        if host < 0:
            return -1, -1
        rows = self.assign(shape, host)
        return self._claim(host, self._parts_on(shape, host, rows), group, until), host

    def hold(self, host: int, parts: Sequence[tuple[int, Sequence[int]]], group: int = -1, until: int = 0) -> int:
        """Claim amounts of given rows of a host, whether they fit or not: what is so already. The claim's number."""
        self._check_group(group)
        if host not in self._hosts:
            raise ValueError(f"there is no host {host}")
        if not parts or any(not 0 <= row < len(self._hosts[host].free) or len(amounts) != self.resources
                            or not all(0 <= amount <= MOST for amount in amounts) for row, amounts in parts):
            raise ValueError("a part is of no row of the host, or its amounts are out of range")
        return self._claim(host, [(row, tuple(amounts)) for row, amounts in parts], group, until)

    def release(self, claim: int) -> None:
        """Give a claim back. Its number may be used again."""
        if claim not in self._claims:
            raise ValueError(f"there is no claim {claim}")
        given = self._claims.pop(claim)
        host = self._hosts[given.host]
        host.claims.remove(claim)
        for row, amounts in given.parts:
            host.free[row] = [have + amount for have, amount in zip(host.free[row], amounts, strict=True)]
        self._unused.append(claim)

    def extend(self, claim: int, until: int) -> None:
        """Say anew when a claim is expected to end."""
        if claim not in self._claims:
            raise ValueError(f"there is no claim {claim}")
        self._claims[claim].until = until

    def _claim(self, host: int, parts: list[tuple[int, tuple[int, ...]]], group: int, until: int) -> int:
        number = self._unused.pop() if self._unused else len(self._claims)
        self._claims[number] = Claim(host, parts, group, until)
        self._hosts[host].claims.add(number)
        for row, amounts in parts:
            free = self._hosts[host].free
            free[row] = [have - amount for have, amount in zip(free[row], amounts, strict=True)]
        return number

    # Looking

    def host_of(self, claim: int) -> int:
        return self._claims[claim].host

    def claims_on(self, host: int) -> list[int]:
        """The claims of a host, in no order."""
        return list(self._hosts[host].claims)

    def parts_of(self, claim: int) -> list[tuple[int, tuple[int, ...]]]:
        """What a claim holds: (row, amounts) in order."""
        return list(self._claims[claim].parts)

    def free(self, host: int) -> list[list[int]]:
        """(rows, resources); below zero where claims exceed a capacity."""
        return [list(row) for row in self._hosts[host].free]

    def score(self, shape: int, host: int) -> int:
        """How well a host fits a shape, less is better; -1 where it does not."""
        rows = self._hosts.get(host)
        if rows is None or self._code(shape, rows.signature) or self.assign(shape, host) is None:
            return -1
        kind = self._shapes[shape]
        demand = [sum(part[r] for part in kind.parts) for r in range(self.resources)]
        total = 0
        for r in range(self.resources):
            share = self.share(host, r, demand[r])
            if share >= 0 and kind.policy != FIRST:
                total += kind.weights[r] * (share if kind.policy == PACK else (1 << SHARE_BITS) - share) ** 2
        return total >> max(0, sum(kind.weights).bit_length() + 2 * SHARE_BITS - SCORE_BITS)

    def share(self, host: int, resource: int, demand: int) -> int:
        """What a host would have left of a class, in 2**-14 of its capacity; -1 where it has no capacity of it."""
        rows = self._hosts[host]
        capacity = sum(row[resource] for row in rows.capacity)
        if capacity == 0:
            return -1
        left = sum(row[resource] for row in rows.free) - demand
        return max(left, 0) * ((1 << (40 + SHARE_BITS)) // capacity) >> 40

    def shares(self, shape: int, host: int) -> list[int]:
        """The share of each class, with the shape placed."""
        return [self.share(host, r, sum(part[r] for part in self._shapes[shape].parts)) for r in range(self.resources)]

    def misses(self, shape: int, group: int = -1, only: Sequence[int] | None = None,
               avoid: Iterable[int] = ()) -> "Misses":
        """Why each host does not take a shape. See Misses."""
        self._check_shape(shape)
        self._check_group(group)
        counts, codes = self._members(group), [0] * 256
        found = Misses(hosts=len(self._hosts), lacking=[0] * self.resources, codes=codes)
        wanted = None if only is None else frozenset(only)
        shunned = frozenset(avoid)
        kind = self._shapes[shape]
        demand = [sum(part[r] for part in kind.parts) for r in range(self.resources)]
        least = -1
        for number in sorted(self._hosts):
            host = self._hosts[number]
            if wanted is not None and number not in wanted:
                found.not_asked += 1
            elif number in shunned:
                found.avoided += 1
            elif code := self._code(shape, host.signature):
                codes[code] += 1
            elif self._group_forbids(group, counts, number):
                found.grouped += 1
            elif self.assign(shape, number) is not None:
                continue
            elif any(lacks := [max(demand[r] - sum(row[r] for row in host.free), 0) if demand[r] else 0
                               for r in range(self.resources)]):
                found.lacking[next(r for r in range(self.resources) if lacks[r])] += 1
                distance = sum(min((min(lack, MOST) << 20) // max(sum(row[r] for row in host.capacity), 1), MOST)
                               for r, lack in enumerate(lacks))
                if least < 0 or distance < least:
                    least, found.nearest, found.lacks = distance, number, lacks
            else:
                found.unassigned += 1
        return found

    # The parts of a choice

    def _best(self, shape: int, group: int, only: Sequence[int] | None, avoid: frozenset[int], until: int) -> int:
        counts = self._members(group)
        policy = self._groups[group][0] if group >= 0 else -1
        best, least = -1, (0, 0, 0)
        for host in sorted(self._hosts if only is None else self._hosts.keys() & set(only)):
            if host in avoid or self._group_forbids(group, counts, host) or (score := self.score(shape, host)) < 0:
                continue
            members = counts.get(host, 0)
            rank = {SOFT_ANTI_AFFINITY: members, SOFT_AFFINITY: -members}.get(policy, 0)
            key = (rank, self._gap(host, until), score)
            if best < 0 or key < least:
                best, least = host, key
        return best

    def _gap(self, host: int, until: int) -> int:
        """The class of the time that a host would have to live on for a server: 0 none, else by powers of two."""
        if until == 0:
            return 0
        lasts = max([self.now, *(self._claims[claim].until for claim in self._hosts[host].claims)])
        return (max(until - lasts, 0) >> GAP_BITS).bit_length()

    def _members(self, group: int) -> dict[int, int]:
        counts: dict[int, int] = {}
        for claim in self._claims.values():
            if group >= 0 and claim.group == group:
                counts[claim.host] = counts.get(claim.host, 0) + 1
        return counts

    def _group_forbids(self, group: int, counts: dict[int, int], host: int) -> bool:
        if group < 0:
            return False
        policy, most = self._groups[group]
        if policy == ANTI_AFFINITY:
            return counts.get(host, 0) >= most
        return policy == AFFINITY and bool(counts) and host not in counts

    def assign(self, shape: int, host: int) -> list[int] | None:
        """A row for each part, the first in the order of rows, or None when the host's free amounts allow none.

        On a host of one row all parts are on it, without regard to isolation: `judge` speaks for such hosts.
        """
        rows, kind = self._hosts[host], self._shapes[shape]
        if len(rows.free) == 1:
            fits = all(sum(part[r] for part in kind.parts) <= rows.free[0][r] or not any(part[r] for part in kind.parts)
                       for r in range(self.resources))
            return [0] * len(kind.parts) if fits else None
        free = [list(row) for row in rows.free]
        chosen: list[int] = []
        tries = 0

        def search(part: int) -> bool:
            nonlocal tries
            if part == len(kind.parts):
                return all(self._related(rows.parents, [chosen[group] for group in subtree]) for subtree in kind.subtrees)
            amounts, codes = kind.parts[part], self._row_codes[shape][part]
            for row in range(len(free)):
                tries += 1
                if tries > TRIES:
                    return False
                signature = rows.row_signatures[row]
                if (signature >= len(codes) or codes[signature]
                        or any(amount and amount > have for amount, have in zip(amounts, free[row], strict=True))
                        or (kind.isolate and part < kind.groups and row in chosen[:kind.groups])):
                    continue
                free[row] = [have - amount for have, amount in zip(free[row], amounts, strict=True)]
                chosen.append(row)
                if search(part + 1):
                    return True
                chosen.pop()
                free[row] = [have + amount for have, amount in zip(free[row], amounts, strict=True)]
            return False

        return chosen if search(0) else None

    @staticmethod
    def _related(parents: list[int], rows: list[int]) -> bool:
        """Whether one of the rows is an ancestor of all others, or the same."""
        def line(row: int) -> list[int]:
            above = [row]
            while row:
                row = parents[row]
                above.append(row)
            return above

        return any(all(top in line(row) for row in rows) for top in rows)

    def _parts_on(self, shape: int, host: int, rows: list[int] | None) -> list[tuple[int, tuple[int, ...]]]:
        assert rows is not None
        parts = self._shapes[shape].parts
        if len(self._hosts[host].free) == 1:
            return [(0, tuple(sum(part[r] for part in parts) for r in range(self.resources)))]
        return list(zip(rows, parts, strict=True))

    def _code(self, shape: int, signature: int) -> int:
        """Why a signature may not serve a shape; 255 where nothing was said of it."""
        codes = self._codes[shape]
        return codes[signature] if signature < len(codes) else 255

    def _check_shape(self, shape: int) -> None:
        if not 0 <= shape < len(self._shapes):
            raise ValueError(f"there is no shape {shape}")

    def _check_group(self, group: int) -> None:
        if group != -1 and group not in self._groups:
            raise ValueError(f"there is no group {group}")


@dataclass(slots=True)
class Misses:
    """Hosts by the first thing that keeps them from a shape, in the order of these fields; those that take it are the rest.

    `codes` counts by the code given to `judge`; `lacking` by the first class of which a host has too little.
    `nearest` is the host that lacks least, by shares of its capacity added up, the lowest number of equals; -1 when no
    host lacks anything. `lacks` is what it lacks, by class.
    """

    hosts: int
    not_asked: int = 0
    avoided: int = 0
    codes: list[int] = field(default_factory=list)
    grouped: int = 0
    lacking: list[int] = field(default_factory=list)
    unassigned: int = 0
    nearest: int = -1
    lacks: list[int] = field(default_factory=list)

    @property
    def taking(self) -> int:
        """How many hosts would take it."""
        return (self.hosts - self.not_asked - self.avoided - sum(self.codes) - self.grouped - sum(self.lacking)
                - self.unassigned)


def check_host(host: int, signature: int, capacity: Sequence[Sequence[int]], row_signatures: Sequence[int],
               parents: Sequence[int], resources: int) -> None:
    """Raises ValueError for what set_host may not be given."""
    if host < 0 or signature < 0 or not len(capacity) == len(row_signatures) == len(parents) >= 1:
        raise ValueError(f"host {host}: rows, row signatures and parents disagree")
    if any(len(row) != resources or not all(0 <= amount <= MOST for amount in row) for row in capacity):
        raise ValueError(f"host {host}: a capacity is outside 0 to 2**40, or a row has not {resources} classes")
    if sum(map(sum, capacity)) > MOST * resources or any(sum(column) > MOST for column in zip(*capacity, strict=True)):
        raise ValueError(f"host {host}: its rows together have more than 2**40 of a class")
    if parents[0] or any(not 0 <= parent < row for row, parent in enumerate(parents) if row) or min(row_signatures) < 0:
        raise ValueError(f"host {host}: a row's parent must come before it")


def check_shape(parts: Sequence[Sequence[int]], groups: int, subtrees: Sequence[Sequence[int]], policy: int,
                weights: Sequence[int], resources: int) -> None:
    """Raises ValueError for what add_shape may not be given."""
    if not 1 <= len(parts) <= 32 or not 0 <= groups <= len(parts) or any(len(part) != resources for part in parts):
        raise ValueError("a shape has 1 to 32 parts, each with an amount for every class")
    if any(not 0 <= amount <= MOST for part in parts for amount in part):
        raise ValueError("an amount is outside 0 to 2**40")
    if len(weights) != resources or not all(0 <= weight <= 100 for weight in weights):
        raise ValueError("there must be a weight from 0 to 100 for every class")
    if policy not in (PACK, SPREAD, FIRST):
        raise ValueError(f"unknown policy {policy}")
    if any(not subtree or not all(0 <= group < groups for group in subtree) for subtree in subtrees):
        raise ValueError("a subtree names no group, or one that is not there")
