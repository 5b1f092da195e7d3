"""The scheduler's fleet as the state has it, kept current from the cache's changes: what every placement and what-if reads.

Changes are noted as they come and worked in when the fleet is asked for, so that it stands at the cache's revision then. A host's
rows are its root provider and all below it, under their UUIDs; a consumer that holds something in several trees counts in each.
"""
import functools
from collections.abc import Callable, Iterable
from operator import itemgetter

from control.kernel import collector, fleet
from control.kernel.cache import Change
from control.kernel.database import Database
from control.kernel.fleet import AGGREGATE, ALLOCATION, HOST, PROVIDER, USAGE
from control.placement.lives import Lives
from control.placement.neighbours import Demands
from protos.internal.v1 import fleet_pb2
from protos.internal.v1.fleet_pb2 import Allocation, HostRecord, Provider, ProviderInventory
from scheduler.fleet import Fleet
from scheduler.types import MOST, Amounts, Group, Held, Host, Inventory, Request, Row, ServerGroup, Shape, amounts

#: The shape of a consumer until somebody asks what it needs.
ANY = Shape(())

#: What a plan stands on.
_READ = (HOST, PROVIDER, USAGE, AGGREGATE, ALLOCATION)


class LiveFleet:
    """A fleet that follows a database's cache. Between two awaits it is as current as the cache is.

    With `lives` it also knows when servers are expected to end.
    """

    def __init__(self, database: Database, demands: Demands, lives: Lives | None = None):
        self._database = database
        self._cache = cache = database.cache
        self._demands = demands
        self.lives = lives
        self._fleet = Fleet()
        self._hosts: set[str] = set()                 # names and root UUIDs of what changed since the last look
        self._roots: set[str] = set()
        self._consumers: set[str] = set()
        self._names: dict[str, str] = {}              # host by root UUID
        self._homes: dict[str, tuple[str, ...]] = {}  # names in the fleet that a consumer has
        self._fresh = False
        self._moved = 0
        self._listening = cache.listening(self._on_change, *_READ)
        self._listening.__enter__()

    def close(self) -> None:
        self._listening.__exit__(None, None, None)

    def current(self) -> Fleet:
        """The fleet at the cache's revision. Whoever plans on it takes off again what it placed, or plans on a copy."""
        if not self._fresh:
            with collector.loading():
                self._load()
        elif self._hosts or self._roots or self._consumers:
            self._fresh = False            # if this fails, everything is read anew
            self._follow()
            self._fresh = True
        if self.lives is not None:
            self._fleet.engine.now = self.lives.now
            for server_id, until in self.lives.outlived():
                for name in self._homes.get(server_id, ()):
                    self._fleet.extend(name, until)
        self._fleet.revision = self._cache.revision
        return self._fleet

    @property
    def moved(self) -> int:
        """The last revision at which a host, a provider, an aggregate or an allocation changed; or, of those before this fleet
        was first asked for, the one that it was asked for at."""
        self.current()
        return self._moved

    def what_if(self) -> Fleet:
        """A copy to plan on, in which every server is there with all that it asks for, and others ask for what they hold."""
        twin = self.current().copy()
        for consumer, homes in self._homes.items():
            demand = self._demands.demand_of(consumer) if len(homes) == 1 else None
            for name in homes if demand is None else ():
                twin.remember(Request(name, _as_held(twin, name)))
            if demand is not None:
                request, group = demand
                if group is not None and group.id not in twin.groups:
                    twin.set_group(group)
                twin.remember(request)
        return twin

    def host_with(self, root_uuid: str) -> str:
        """The host whose root provider it is; "" for none."""
        self.current()
        return self._names.get(root_uuid, "")

    def is_server(self, consumer: str) -> bool:
        return self._demands.demand_of(consumer) is not None

    def shape_of(self, flavor: str) -> Shape | None:
        """What a server of a flavor, by id or name, asks for; None where there is no such flavor. Raises Invalid."""
        return self._demands.shape_of(flavor)

    # Following

    def _on_change(self, change: Change) -> None:
        if not self._fresh:
            return                                    # all is read when the fleet is asked for
        each = [one for one in (change.before, change.after) if one is not None]
        if change.kind is HOST and len(each) == 2 and _alike(*each):
            return                                    # only who has its stream, or such
        self._moved = max(self._moved, change.revision)
        if change.kind is HOST:
            self._hosts.update(host.name for host in each)
        elif change.kind is PROVIDER:
            self._roots.update(provider.root_uuid for provider in each)
        elif change.kind is AGGREGATE:
            self._hosts.update(name for aggregate in each for name in aggregate.hosts)
        elif change.kind is ALLOCATION:
            self._consumers.update(allocation.consumer_uuid for allocation in each)
            if self.lives is not None and change.after is None:
                self.lives.ended(change.before.consumer_uuid)  # type: ignore[union-attr]
            elif self.lives is not None and change.before is None:
                self.lives.began(change.after.consumer_uuid)  # type: ignore[union-attr]

    def _load(self) -> None:
        """Everything anew: hosts first, so that the fleet has all its classes, then what is held, many at a time."""
        self._forget_changes()
        self._moved = self._cache.revision            # what was deleted before left no trace
        self._names, self._homes = {}, {}
        records = sorted(self._cache.all(HOST), key=lambda record: record.name)
        self._names = {record.id: record.name for record in records}
        self._fleet = Fleet(filter(None, map(self._host, records)))
        groups = self._demands.groups()
        self._take_in(self._cache.all(ALLOCATION), lambda consumer: groups.get(consumer))
        for consumer in self._homes if self.lives is not None else ():
            self._expect(consumer)
        self._fresh = True

    def _follow(self) -> None:
        roots = {root: self._names.get(root, "") for root in self._roots}
        names = self._hosts | {name for name in roots.values() if name}
        consumers = set(self._consumers)
        if not all(roots.values()):
            names |= {record.name for record in self._cache.all(HOST) if record.id in roots}
        self._forget_changes()
        for name in sorted(names):
            record = self._cache.get(HOST, name)
            host = self._host(record) if record is not None else None
            if host == self._fleet.hosts.get(name):
                continue
            if name in self._fleet.hosts:
                here = {consumer.partition("@")[0] for consumer in self._fleet.on(name)}
                rows_stay = host is not None and [row.name for row in host.rows] == [
                    row.name for row in self._fleet.hosts[name].rows]
                if not rows_stay:
                    for consumer in here:
                        self._let_go(consumer)
                    consumers |= here
                    self._fleet.remove_host(name)
            if host is None or record is None:
                self._names = {root: known for root, known in self._names.items() if known != name}
                continue
            self._names[record.id] = name
            self._fleet.set_host(host)
            for provider in self._cache.by(PROVIDER, "root", record.id):
                consumers |= {each.consumer_uuid for each in self._cache.by(ALLOCATION, "provider", provider.uuid)
                              if each.consumer_uuid not in self._homes}
        for consumer in consumers:
            self._let_go(consumer)
        held = (self._cache.get(ALLOCATION, consumer) for consumer in consumers)
        self._take_in([each for each in held if each is not None], self._demands.group_of)
        for consumer in consumers if self.lives is not None else ():
            self._expect(consumer)

    def _take_in(self, allocations: Iterable[Allocation], group_of: Callable[[str], ServerGroup | None]) -> None:
        """Hold what consumers hold that the fleet does not know yet: what is of hosts themselves many at a time."""
        simple: list[tuple[str, str, Amounts, str]] = []
        for allocation in allocations:
            consumer, providers = allocation.consumer_uuid, allocation.providers
            group = group_of(consumer)
            joined = self._joined(group) if group is not None else ""
            uuid = next(iter(providers), "") if len(providers) == 1 else ""
            host = self._names.get(uuid, "")
            if host in self._fleet.hosts:
                simple.append((consumer, host, _amounts(providers[uuid].SerializeToString()), joined))
                self._homes[consumer] = (consumer,)
            else:
                self._hold(consumer, self._parts(allocation), joined)
        self._fleet.hold_many(simple)

    def _expect(self, consumer: str) -> None:
        """Say of a consumer that was taken in when it will end, where that is known."""
        if self.lives is not None and (until := self.lives.began(consumer)):
            for name in self._homes.get(consumer, ()):
                self._fleet.extend(name, until)

    def _forget_changes(self) -> None:
        self._hosts, self._roots, self._consumers = set(), set(), set()

    def _let_go(self, consumer: str) -> None:
        for name in self._homes.pop(consumer, ()):
            self._fleet.release(name)

    def _hold(self, consumer: str, parts: dict[str, list[Held]], group: str) -> None:
        homes: list[str] = []
        for host, held in parts.items():
            name = f"{consumer}@{host}" if homes else consumer
            self._fleet.hold(Request(name, ANY, group if not homes else ""), host, held)
            homes.append(name)
        if homes:
            self._homes[consumer] = tuple(homes)

    def _joined(self, group: ServerGroup) -> str:
        """A group's id; the fleet knows the group."""
        if self._fleet.groups.get(group.id) != group:
            self._fleet.set_group(group)
        return group.id

    # The state's words in the scheduler's

    def _parts(self, allocation: Allocation) -> dict[str, list[Held]]:
        """What a consumer holds, by host; of providers that are no host's nothing."""
        parts: dict[str, list[Held]] = {}
        for uuid, held in allocation.providers.items():
            provider = self._cache.get(PROVIDER, uuid)
            host = self._names.get(provider.root_uuid, "") if provider is not None else ""
            if host in self._fleet.hosts:
                parts.setdefault(host, []).append(Held(uuid, amounts(held.resources)))
        return parts

    def _host(self, record: HostRecord) -> Host | None:
        """A host as the scheduler sees it; None while it has no provider."""
        tree = _in_order(record.id, self._cache.by(PROVIDER, "root", record.id))
        if not tree:
            return None
        places = {provider.uuid: place for place, provider in enumerate(tree)}
        aggregates = {aggregate.id for aggregate in self._cache.by(AGGREGATE, "host", record.name)} | set(tree[0].aggregates)
        return Host(
            record.name, tuple(Row(provider.uuid, tuple(sorted(
                [(name, _inventory(provider.inventories[name].SerializeToString())) for name in provider.inventories],
                key=itemgetter(0))), frozenset(provider.traits), places.get(provider.parent_uuid, 0)) for provider in tree),
            zone=fleet.zone_of(self._database, record), aggregates=frozenset(aggregates),
            closed="disabled" if record.disabled else "" if record.up else "down")


@functools.lru_cache(10_000)
def _inventory(given: bytes) -> Inventory:
    """Hosts of one make have the same inventories: one object for all of them."""
    have = ProviderInventory.FromString(given)
    return Inventory(min(have.total, MOST), min(have.reserved, MOST), min(have.allocation_ratio, 1e6) or 1e-9, have.min_unit,
                     have.max_unit, have.step_size)


@functools.lru_cache(10_000)
def _amounts(given: bytes) -> Amounts:
    """What is held of one provider, of a record's Amounts: of a flavor always the same."""
    return amounts(dict(fleet_pb2.Amounts.FromString(given).resources))


def _alike(before: HostRecord, after: HostRecord) -> bool:
    """Whether two records of a host say the same to the scheduler."""
    return all(getattr(before, name) == getattr(after, name) for name in ("id", "up", "disabled", "inventory"))


def _in_order(root: str, providers: Iterable[Provider]) -> list[Provider]:
    """A tree with parents before children, siblings by name; empty where its root is not there."""
    children: dict[str, list[Provider]] = {}
    for provider in sorted(providers, key=lambda provider: provider.name):
        children.setdefault(provider.parent_uuid if provider.uuid != root else "", []).append(provider)
    ordered = children.get("", [])[:1]
    for provider in ordered:
        ordered += children.get(provider.uuid, [])
    return ordered


def _as_held(hosts: Fleet, consumer: str) -> Shape:
    """The shape of a consumer that asks for what it holds: of parts of its host, of as many parts."""
    root = hosts.hosts[hosts.host_of(consumer)].rows[0].name
    held = hosts.held(consumer)
    return Shape(next((part.amounts for part in held if part.row == root), ()),
                 groups=tuple(Group(part.amounts) for part in held if part.row != root), isolate=True)
