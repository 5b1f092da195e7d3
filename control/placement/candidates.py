"""Which allocations would do for a request: trees of providers in, candidates out. No store, no clock, no I/O.

A candidate never takes of a provider more than it has left or other units than it gives; all its providers are of one tree, or
share with it through an aggregate. Candidates come in turns, one of each tree, so that a limit cuts variety within trees first.
"""
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

#: Candidates in one answer at most.
MAX_CANDIDATES = 1000

#: Choices of a provider that one search looks at. Lower: trees with many alike parts are given up early; higher: one request may
#: keep a replica busy for longer (200,000 take about a third of a second).
MAX_STEPS = 200_000

Amounts = Mapping[str, int]
AnyOf = tuple[frozenset[str], ...]


@dataclass(slots=True)
class Stock:
    """What a provider has of one resource class, in units of the class."""

    capacity: int
    used: int
    min_unit: int = 1
    max_unit: int = 2**31 - 1
    step_size: int = 1

    def gives(self, amount: int) -> bool:
        """Whether one consumer could take so much."""
        return (self.used + amount <= self.capacity and self.min_unit <= amount <= self.max_unit
                and amount % self.step_size == 0)


@dataclass(slots=True, eq=False)
class Node:
    """One provider. `shares`: with every tree that has a member of one of its aggregates."""

    uuid: str
    name: str
    parent: str
    root: str
    generation: int = 0
    stocks: dict[str, Stock] = field(default_factory=dict)
    traits: frozenset[str] = frozenset()
    aggregates: frozenset[str] = frozenset()
    shares: bool = False


class Forest:
    """All providers, as trees, found by what they have."""

    def __init__(self, nodes: Iterable[Node] = ()) -> None:
        self.nodes: dict[str, Node] = {}
        self.trees: dict[str, dict[str, Node]] = {}                # by root
        self.by_class: dict[str, dict[str, Node]] = {}
        self.by_aggregate: dict[str, dict[str, Node]] = {}
        self.sharing: dict[str, Node] = {}
        for node in nodes:
            self.put(node)

    def put(self, node: Node) -> None:
        """Add a provider, or put it in the place of what it was."""
        self.remove(node.uuid)
        self.nodes[node.uuid] = node
        self.trees.setdefault(node.root, {})[node.uuid] = node
        for name in node.stocks:
            self.by_class.setdefault(name, {})[node.uuid] = node
        for aggregate in node.aggregates:
            self.by_aggregate.setdefault(aggregate, {})[node.uuid] = node
        if node.shares:
            self.sharing[node.uuid] = node

    def remove(self, uuid: str) -> None:
        """Forget a provider; nothing where it is not known."""
        node = self.nodes.pop(uuid, None)
        if node is None:
            return
        _drop(self.trees, node.root, uuid)
        for name in node.stocks:
            _drop(self.by_class, name, uuid)
        for aggregate in node.aggregates:
            _drop(self.by_aggregate, aggregate, uuid)
        self.sharing.pop(uuid, None)

    def anchors(self, sharing: Node) -> set[str]:
        """The roots of the trees that a sharing provider serves."""
        return {member.root for aggregate in sharing.aggregates for member in self.by_aggregate[aggregate].values()}

    def below_or_same(self, uuid: str, top: str) -> bool:
        """Whether a provider is another one or below it."""
        while uuid and uuid != top:
            node = self.nodes.get(uuid)
            uuid = node.parent if node is not None else ""
        return uuid == top


def _drop(index: dict[str, dict[str, Node]], key: str, uuid: str) -> None:
    index[key].pop(uuid, None)
    if not index[key]:
        del index[key]


@dataclass(frozen=True, slots=True)
class Group:
    """Part of a request. Without a suffix several providers of a tree may serve it together, with one a single one does.

    `required` and `member_of`: of each set one is wanted.
    """

    resources: Amounts = field(default_factory=dict)
    required: AnyOf = ()
    forbidden: frozenset[str] = frozenset()
    member_of: AnyOf = ()
    not_member_of: frozenset[str] = frozenset()
    in_tree: str = ""              # a provider of the tree that it must be served in; "" for any


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. `groups` are by suffix, "" for the one without."""

    groups: Mapping[str, Group]
    isolate: bool = False                              # no provider serves two groups with a suffix
    root_required: frozenset[str] = frozenset()
    root_forbidden: frozenset[str] = frozenset()
    same_subtrees: Sequence[frozenset[str]] = ()       # of suffixes
    limit: int = MAX_CANDIDATES
    nested: bool = True                                # several providers of one tree may serve it


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve a request."""

    amounts: Mapping[str, Amounts]                     # by provider
    mappings: Mapping[str, Sequence[str]]              # providers by suffix


#: What serves one group in one tree: a provider for each of its resource classes, or one alone for no class.
Service = Mapping[str, Node]


def find(forest: Forest, request: Request) -> list[Candidate]:
    """Candidates, each once, at most request.limit and MAX_CANDIDATES."""
    search = _Search(forest, request)
    limit = min(request.limit, MAX_CANDIDATES)
    found: dict[object, Candidate] = {}
    turns = []
    for root in search.roots():
        if search.is_lone(root):
            lone = search.lone(root)
            if lone is not None:
                found[root] = lone
        else:
            turn = search.tree(root)
            candidate = next(turn, None)
            if candidate is not None:
                turns.append(turn)
                found.setdefault(_identity(candidate), candidate)
        if len(found) >= limit:
            break
    while turns and len(found) < limit:
        left = []
        for turn in turns:
            candidate = next(turn, None)
            if candidate is None:
                continue
            left.append(turn)
            found.setdefault(_identity(candidate), candidate)
            if len(found) >= limit:
                break
        turns = left
    return list(found.values())


def _identity(candidate: Candidate) -> tuple:
    return (frozenset((uuid, frozenset(amounts.items())) for uuid, amounts in candidate.amounts.items()),
            frozenset((suffix, frozenset(uuids)) for suffix, uuids in candidate.mappings.items()))


class _Search:
    """One request over one forest."""

    def __init__(self, forest: Forest, request: Request):
        self._forest = forest
        self._request = request
        self._steps = MAX_STEPS
        self._anchors = {uuid: forest.anchors(node) for uuid, node in forest.sharing.items()}
        wanted = {name for group in request.groups.values() for name in group.resources}
        #: Sharing providers that have something wanted, by the root of the trees that they serve.
        self._sharing: dict[str, list[Node]] = {}
        for uuid, roots in self._anchors.items():
            node = forest.nodes[uuid]
            if not wanted.isdisjoint(node.stocks) or any(not group.resources for group in request.groups.values()):
                for root in roots - {node.root}:
                    self._sharing.setdefault(root, []).append(node)
        # Large groups first fail early; a group of one provider is cheaper than one of several.
        self._order = sorted(request.groups, key=lambda suffix: (suffix == "", -len(request.groups[suffix].resources)))
        #: What all groups together ask for, and the classes that several ask for.
        self._total: dict[str, int] = {}
        self._several: set[str] = set()
        for name, amount in (item for suffix in self._order for item in request.groups[suffix].resources.items()):
            if name in self._total:
                self._several.add(name)
            self._total[name] = self._total.get(name, 0) + amount
        self._may_be_lone = all(group.resources for group in request.groups.values())

    def roots(self) -> list[str]:
        """Roots of the trees that may have a candidate: those with the rarest of the classes that are asked for."""
        forest, request = self._forest, self._request
        roots: Iterable[str] = forest.trees
        wanted = {name for group in request.groups.values() for name in group.resources}
        if wanted:
            rarest = min((forest.by_class.get(name, {}) for name in wanted), key=len)
            having: dict[str, None] = {}
            for uuid, node in rarest.items():
                having[node.root] = None
                having.update(dict.fromkeys(self._anchors.get(uuid, ())))
            roots = having
        return [root for root in roots if self._is_anchor(root)]

    def _is_anchor(self, root: str) -> bool:
        node = self._forest.nodes.get(root)
        return (node is not None and self._request.root_required <= node.traits
                and self._request.root_forbidden.isdisjoint(node.traits))

    def is_lone(self, root: str) -> bool:
        """Whether a tree is one provider, that nobody shares anything with and that shares nothing: most are, of most fleets."""
        return (self._may_be_lone and len(self._forest.trees[root]) == 1 and root not in self._sharing
                and not self._forest.nodes[root].shares)

    def lone(self, root: str) -> Candidate | None:
        """The one candidate that such a tree may have: what `tree` finds, without a search."""
        node, request = self._forest.nodes[root], self._request
        stocks = node.stocks
        for group in request.groups.values():
            for name, amount in group.resources.items():
                if name not in stocks or not stocks[name].gives(amount):
                    return None
            if (not group.forbidden.isdisjoint(node.traits) or not group.not_member_of.isdisjoint(node.aggregates)
                    or not _has_each(group.required, node.traits) or not _has_each(group.member_of, node.aggregates)
                    or (group.in_tree and group.in_tree != root)):
                return None
        if request.isolate and sum(map(bool, self._order)) > 1:
            return None
        if not all(_holds(stocks[name], self._total[name]) for name in self._several):
            return None
        return Candidate({root: dict(self._total)}, {suffix: [root] for suffix in self._order})

    def tree(self, root: str) -> Iterator[Candidate]:
        """The candidates of one tree."""
        if self._order == [""]:          # one by one: there may be many more than are wanted
            for service in self._together(self._request.groups[""], root):
                if (candidate := self._candidate([service])) is not None:
                    yield candidate
            return
        options: list[list[Service]] = []
        for suffix in self._order:
            group = self._request.groups[suffix]
            services = list(self._together(group, root)) if not suffix else list(self._alone(group, root))
            if not services:
                return
            options.append(services)
        yield from self._combine(options, [])

    def _combine(self, options: list[list[Service]], chosen: list[Service]) -> Iterator[Candidate]:
        """Go through the services of each group in turn, giving a branch up when it takes too much."""
        if len(chosen) == len(options):
            if (candidate := self._candidate(chosen)) is not None:
                yield candidate
            return
        for service in options[len(chosen)]:
            self._steps -= 1
            if self._steps < 0:
                return
            chosen.append(service)
            if self._fits(chosen):
                yield from self._combine(options, chosen)
            chosen.pop()

    def _fits(self, chosen: Sequence[Service]) -> bool:
        """Whether the groups served so far, together, take no more than there is and are isolated where that is asked for."""
        if len(chosen) == 1:
            return True
        if self._request.isolate:
            alone = [node.uuid for suffix, service in zip(self._order, chosen, strict=False) if suffix
                     for node in set(service.values())]
            if len(set(alone)) < len(alone):
                return False
        taken: dict[tuple[str, str], int] = {}
        for suffix, service in zip(self._order, chosen, strict=False):
            for name, amount in self._request.groups[suffix].resources.items():
                node = service[name]
                key = node.uuid, name
                taken[key] = taken.get(key, 0) + amount
                if taken[key] > amount and not _holds(node.stocks[name], taken[key]):
                    return False
        return True

    def _candidate(self, chosen: Sequence[Service]) -> Candidate | None:
        """The candidate of a service for each group; None where a constraint on them together fails."""
        amounts: dict[str, dict[str, int]] = {}
        mappings: dict[str, list[str]] = {}
        for suffix, service in zip(self._order, chosen, strict=True):
            mappings[suffix] = list(dict.fromkeys(node.uuid for node in service.values()))
            for name, amount in self._request.groups[suffix].resources.items():
                of_provider = amounts.setdefault(service[name].uuid, {})
                of_provider[name] = of_provider.get(name, 0) + amount
        for suffixes in self._request.same_subtrees:
            uuids = {uuid for suffix in suffixes for uuid in mappings.get(suffix, ())}
            if uuids and not any(all(self._forest.below_or_same(uuid, top) for uuid in uuids) for top in uuids):
                return None
        if not self._request.nested and len({self._forest.nodes[uuid].root for uuid in amounts}) < len(amounts):
            return None
        return Candidate(amounts, mappings)

    def _members(self, group: Group, root: str) -> list[Node]:
        """The providers that a group may be served by in a tree: its own, then what others share with it."""
        forest = self._forest
        if group.in_tree:
            tree = forest.nodes.get(group.in_tree)
            if tree is None:
                return []
            # The tree alone, or what a provider of it shares with this one.
            return [node for node in (*forest.trees[root].values(), *self._sharing.get(root, ())) if node.root == tree.root]
        return [*forest.trees[root].values(), *self._sharing.get(root, ())]

    def _together(self, group: Group, root: str) -> Iterator[Service]:
        """Services of a group that several providers may serve: their traits count together, and aggregates of the root for all
        of its tree."""
        anchor = self._forest.nodes[root]
        members = [node for node in self._members(group, root)
                   if group.forbidden.isdisjoint(node.traits)
                   and group.not_member_of.isdisjoint(node.aggregates | anchor.aggregates)
                   and (_has_each(group.member_of, node.aggregates)
                        or (node.root == root and _has_each(group.member_of, anchor.aggregates)))]
        names = list(group.resources)
        choices = [[node for node in members if name in node.stocks and node.stocks[name].gives(group.resources[name])]
                   for name in names]
        if all(choices):
            yield from self._products(group, names, choices, {})

    def _products(self, group: Group, names: Sequence[str], choices: Sequence[Sequence[Node]],
                  chosen: dict[str, Node]) -> Iterator[Service]:
        if len(chosen) == len(names):
            if not group.required or _has_each(group.required, frozenset().union(*(node.traits for node in chosen.values()))):
                yield dict(chosen)
            return
        name = names[len(chosen)]
        for node in choices[len(chosen)]:
            self._steps -= 1
            if self._steps < 0:
                return
            chosen[name] = node
            yield from self._products(group, names, choices, chosen)
            del chosen[name]

    def _alone(self, group: Group, root: str) -> Iterator[Service]:
        """Services of a group that one provider serves; of one without resources the provider stands under ""."""
        for node in self._members(group, root):
            self._steps -= 1
            if self._steps < 0:
                return
            if (_has_each(group.required, node.traits) and group.forbidden.isdisjoint(node.traits)
                    and group.not_member_of.isdisjoint(node.aggregates) and _has_each(group.member_of, node.aggregates)
                    and all(name in node.stocks and node.stocks[name].gives(amount)
                            for name, amount in group.resources.items())):
                yield dict.fromkeys(group.resources, node) or {"": node}


def _holds(stock: Stock, amount: int) -> bool:
    """Whether a consumer of several groups could take so much: their sum has no step of its own."""
    return stock.used + amount <= stock.capacity and amount <= stock.max_unit


def _has_each(sets: AnyOf, having: frozenset[str]) -> bool:
    """Whether there is something of each set."""
    return all(not one.isdisjoint(having) for one in sets)
