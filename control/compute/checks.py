"""What must agree between servers and what is theirs: allocations, ports, hosts, history, ledgers; and states that do not end."""
from collections.abc import Callable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from control.compute import aggregates, deadlines, model
from control.compute.demand import Settings
from control.compute.model import ACTION, DECISION, FLAVOR, FLAVOR_NAME, KEYPAIR, SERVER, SERVER_GROUP
from control.compute.neighbours import Placer, Ports
from control.compute.wanted import wanted
from control.kernel import clock, fleet
from control.kernel.database import Transaction
from control.kernel.findings import WARNING, Check, Finding, ledgers
from protos.compute.v1.records_pb2 import FlavorName, ServerRecord

#: What a server is as a consumer of allocations.
INSTANCE = "INSTANCE"

#: Seconds that a reconciler may be behind before a state that should have ended is a finding.
GRACE = 60


class Checks:
    """The checks of one replica's compute service. `now` is the clock, to be replaced in tests."""

    def __init__(self, ports: Ports, placer: Placer, settings: Settings | None = None, now: Callable[[], Timestamp] = clock.now):
        self._ports = ports
        self._placer = placer
        self._settings = settings or Settings()
        self._now = now

    def all(self) -> list[Check]:
        return [Check("compute.allocations", "A server holds something where it is, and nowhere else.", self.allocations),
                Check("compute.hosts", "Servers are on hosts that there are.", hosts),
                Check("compute.ports", "Servers' ports are where the servers are.", self.ports),
                Check("compute.history", "History and decisions are of servers that there are.", history),
                Check("compute.flavors", "Each flavor has its name, and each name its flavor.", flavors),
                Check("compute.aggregates", "Aggregates have hosts that there are.", aggregate_hosts),
                Check("compute.passing", "Servers do not stay on their way.", self.passing),
                Check("compute.quota", "Each project's ledger is what a recount of its servers says.", recount),
                Check("compute.key_pairs", "Each user's ledger is what a recount of their key pairs says.", recount_keys)]

    def allocations(self, tx: Transaction) -> Iterator[Finding]:
        held = {allocation.consumer_uuid: allocation for allocation in tx.rows(fleet.ALLOCATION)}
        there = {host.name: host for host in tx.rows(fleet.HOST)}
        roots = {provider.uuid: provider.root_uuid for provider in tx.rows(fleet.PROVIDER)}
        for server in tx.rows(SERVER):
            held.pop(server.relocation.id, None)         # the room that waits for it where it moves to
            allocation, host = held.pop(server.id, None), there.get(server.host)
            if allocation is not None and not server.host:
                yield Finding(_named(server), "holds an allocation and is on no host", "The room is lost to others.",
                              remedy="Give it back.", mend=self._release(server.id))
            elif host is not None and allocation is None:
                yield Finding(_named(server), f"is on host {server.host} and holds nothing there",
                              "Others are placed where it takes room.", remedy="Allocate what its flavor needs.",
                              mend=self._hold(server.id))
            elif (host is not None and allocation is not None       # what hosts share may be beside what is the host's
                  and host.id not in {roots.get(uuid) for uuid in allocation.providers}):
                yield Finding(_named(server), f"is on host {server.host} and holds something elsewhere: "
                              f"{', '.join(allocation.providers)}", "Others are placed where it takes room.",
                              remedy="Allocate what its flavor needs where it is, in place of what it holds.",
                              mend=self._hold(server.id))
        for allocation in held.values():
            if allocation.consumer_type == INSTANCE:
                yield Finding(f"allocation {allocation.consumer_uuid}", "its server is gone", "The room is lost to others.",
                              remedy="Give it back.", mend=self._release(allocation.consumer_uuid))

    def _release(self, server_id: str) -> Callable[[Transaction], None]:
        def mend(tx: Transaction) -> None:
            tx.guard_unchanged(SERVER, server_id)
            self._placer.release(tx, server_id)
        return mend

    def _hold(self, server_id: str) -> Callable[[Transaction], None]:
        def mend(tx: Transaction) -> None:
            server = tx.require(SERVER, server_id)
            tx.guard_unchanged(SERVER, server_id)
            self._placer.hold(tx, wanted(tx, server, self._settings), server.host)
        return mend

    def ports(self, tx: Transaction) -> Iterator[Finding]:
        astray: dict[str, list[str]] = {}
        there = {server.id: server for server in tx.rows(SERVER)}
        for port_id, server_id, host in self._ports.bound(tx):
            server = there.get(server_id)
            if server is None or server.host != host:
                astray.setdefault(server_id, []).append(f"port {port_id} on {host or 'no host'}")
        for server_id, found in astray.items():
            server = there.get(server_id)

            def mend(tx: Transaction, server_id: str = server_id, server: ServerRecord | None = server) -> None:
                tx.guard_unchanged(SERVER, server_id)
                if server is None:
                    self._ports.release(tx, server_id)
                else:
                    self._ports.bind(tx, server_id, server.host)

            if server is None:
                yield Finding(f"server {server_id}", f"is gone, and has left {', '.join(found)}",
                              "They keep addresses and quota.", mend=mend,
                              remedy="Delete the ports that were made for it, and free the others.")
            else:
                yield Finding(_named(server), f"is on {server.host or 'no host'}, and has {', '.join(found)}",
                              "Nothing wires them there.", remedy="Bind them to the server's host.", mend=mend)

    def passing(self, tx: Transaction) -> Iterator[Finding]:
        now = self._now()
        for server in tx.rows(SERVER):
            seconds = int((now.ToMicroseconds() - deadlines.since(server).ToMicroseconds()) / 1e6)
            task = model.derive(server).task_state
            if task == "deleting" and seconds > deadlines.DELETING.seconds:
                host = tx.get(fleet.HOST, server.host) if server.host else None
                why = "It has no host, and the leader has not let it go" if host is None else (
                    f"Host {host.name} {'is attached and has not said that it is gone' if host.up else 'is down'}")
                yield Finding(_named(server), f"is being deleted for {seconds} s", f"{why}. Its quota and addresses stay taken.",
                              severity=WARNING, remedy="Bring the host back, or delete the host where it is gone for good.")
            elif (left := deadlines.left(server, now)) is not None and left < -GRACE:
                yield Finding(_named(server), f"is {task} for {seconds} s, {-left:.0f} s longer than it may",
                              "No replica leads, or its reconciler does not get to it.",
                              remedy="Look whether a replica leads, and at its log.")


def hosts(tx: Transaction) -> Iterator[Finding]:
    there = {host.name for host in tx.rows(fleet.HOST)}
    for server in tx.rows(SERVER):
        if server.host and not server.desired.deleted and server.host not in there:
            yield Finding(_named(server), f"is on host {server.host}, which is no host of this cloud any more",
                          "It runs nowhere.", remedy="Delete the server; or attach the host again.")


def history(tx: Transaction) -> Iterator[Finding]:
    there = {server.id for server in tx.rows(SERVER)}
    left: dict[str, list[str]] = {}
    for row in tx.rows(ACTION):
        if row.server_id not in there:
            left.setdefault(row.server_id, []).append(row.request_id)
    decided = {row.server_id for row in tx.rows(DECISION)} - there
    for server_id in sorted(left.keys() | decided):
        def mend(tx: Transaction, server_id: str = server_id) -> None:
            tx.guard_unchanged(SERVER, server_id)
            for row in tx.rows(ACTION, "server", server_id)[:model.MAX_ACTIONS]:
                tx.delete(ACTION, server_id, row.request_id)
            tx.delete(DECISION, server_id)

        yield Finding(f"server {server_id}", f"is gone, and has left {len(left.get(server_id, ()))} actions"
                      f"{' and a placement decision' if server_id in decided else ''}", "They take room in the store.",
                      severity=WARNING, remedy="Delete them.", mend=mend)


def flavors(tx: Transaction) -> Iterator[Finding]:
    known = {name.name: name.flavor_id for name in tx.rows(FLAVOR_NAME)}
    owners = {}
    for flavor in tx.rows(FLAVOR):
        owners[flavor.name] = flavor.id
        if known.get(flavor.name) != flavor.id:
            def mend(tx: Transaction, name: str = flavor.name, flavor_id: str = flavor.id) -> None:
                tx.guard_unchanged(FLAVOR, flavor_id)
                tx.put(FLAVOR_NAME, FlavorName(name=name, flavor_id=flavor_id))

            yield Finding(f"flavor {flavor.id}", f"its name {flavor.name} is written to {known.get(flavor.name, 'none')}",
                          "Another flavor could get the same name.", remedy="Write the name down for it.", mend=mend)
    for name, flavor_id in known.items():
        if name not in owners:
            def free(tx: Transaction, name: str = name, flavor_id: str = flavor_id) -> None:
                tx.guard_unchanged(FLAVOR, flavor_id)
                tx.delete(FLAVOR_NAME, name)

            yield Finding(f"flavor name {name}", f"belongs to flavor {flavor_id}, which is gone or has another",
                          "No flavor can have the name.", remedy="Free the name.", mend=free)


def aggregate_hosts(tx: Transaction) -> Iterator[Finding]:
    there = {host.name for host in tx.rows(fleet.HOST)}
    for gone in sorted({host for aggregate in tx.rows(fleet.AGGREGATE) for host in aggregate.hosts} - there):
        def mend(tx: Transaction, gone: str = gone) -> None:
            tx.guard_unchanged(fleet.HOST, gone)
            aggregates.forget(tx, gone)

        yield Finding(f"host {gone}", "is in aggregates and no host of this cloud any more",
                      "A host that comes under this name would be in them unasked.", remedy="Take it out of them.", mend=mend)


def recount(tx: Transaction) -> Iterator[Finding]:
    used: dict[str, dict[str, int]] = {}

    def count(project_id: str, amounts: dict[str, int]) -> None:
        mine = used.setdefault(project_id, {})
        for name, amount in amounts.items():
            mine[name] = mine.get(name, 0) + amount

    for server in tx.rows(SERVER):
        count(server.project_id, model.charge_of(server))
    for group in tx.rows(SERVER_GROUP):
        count(group.project_id, {"server_groups": 1})
    yield from ledgers(tx, model.QUOTA, used)


def recount_keys(tx: Transaction) -> Iterator[Finding]:
    used: dict[str, dict[str, int]] = {}
    for pair in tx.rows(KEYPAIR):
        mine = used.setdefault(pair.user_id, {"key_pairs": 0})
        mine["key_pairs"] += 1
    yield from ledgers(tx, model.USER_QUOTA, used)


def _named(server: ServerRecord) -> str:
    return f"server {server.id} ({server.name})" if server.name else f"server {server.id}"


