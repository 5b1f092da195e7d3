"""Compute's kinds that can be watched: who has them in their lists, and what else is shown with them."""
from collections.abc import Iterable
from dataclasses import replace

from control.compute.aggregates import view as aggregate_view
from control.compute.flavors import view as flavor_view
from control.compute.hosts import Hosts
from control.compute.keypairs import summary
from control.compute.model import FLAVOR, KEYPAIR, SERVER, SERVER_GROUP
from control.compute.neighbours import Ports
from control.compute.server_groups import ServerGroups
from control.compute.view import Views
from control.kernel import fleet
from control.kernel.database import Database
from control.kernel.watchable import EVERYBODY, Reader, Related, Watchable, project
from protos.compute.v1.records_pb2 import FlavorRecord, ServerGroupRecord, ServerRecord
from protos.internal.v1.fleet_pb2 import HostAggregate, HostRecord, Usage


def watchables(database: Database, ports: Ports) -> list[Watchable]:
    """What users of compute can watch."""
    views, hosts, groups = Views(database, ports), Hosts(database), ServerGroups(database)
    return [
        Watchable("servers", SERVER, "/compute.v1.Servers/ListServersDetail", views.server,
                  audience=lambda reader, server: [project(server.project_id)],
                  candidates=lambda reader, project_id: reader.rows(SERVER, "project", project_id),
                  related=[Related(fleet.HOST, lambda reader, host: _on(reader, host.name), _shown_of_host),
                           Related(fleet.AGGREGATE, _in_aggregate, _shown_of_aggregate),
                           Related(SERVER_GROUP, _in_group, lambda group: None),
                           *(replace(related, keys=_keys_of(related)) for related in ports.shown_with_servers())]),
        Watchable("server-groups", SERVER_GROUP, "/compute.v1.ServerGroups/ListServerGroups",
                  lambda group, call: groups.view(group), audience=lambda reader, group: [project(group.project_id)],
                  related=[Related(SERVER, _group_of, lambda server: (server.server_group, server.desired.deleted))]),
        Watchable("flavors", FLAVOR, "/compute.v1.Flavors/ListFlavorsDetail", flavor_view, audience=_may_use),
        Watchable("keypairs", KEYPAIR, "/compute.v1.KeyPairs/ListKeyPairs", lambda pair, call: summary(pair),
                  audience=lambda reader, pair: [_user(pair.user_id)], listens=lambda caller: [_user(caller.user_id)]),
        Watchable("aggregates", fleet.AGGREGATE, "/compute.v1.Aggregates/ListAggregates",
                  lambda aggregate, call: aggregate_view(aggregate), audience=lambda reader, aggregate: [EVERYBODY]),
        Watchable("hypervisors", fleet.HOST, "/compute.v1.Hosts/ListHypervisorsDetail",
                  lambda host, call: hosts.hypervisor(host, call, with_servers=False), audience=lambda reader, host: [EVERYBODY],
                  related=[Related(fleet.USAGE, _host_of_provider), Related(SERVER, _host_of, lambda server: server.host)]),
    ]


def _user(user_id: str) -> str:
    return f"user/{user_id}"


def _may_use(reader: Reader, flavor: FlavorRecord) -> Iterable[str]:
    return [EVERYBODY] if flavor.is_public else map(project, flavor.projects)


def _shown_of_host(host: HostRecord) -> tuple:
    return host.up, host.inventory.availability_zone


def _shown_of_aggregate(aggregate: HostAggregate) -> tuple:
    return aggregate.metadata.get(fleet.ZONE), list(aggregate.hosts)


# The keys of what a record is shown with

def _keys_of(related: Related):
    """The keys of the servers whose ids a neighbour gives."""
    return lambda reader, record: map(SERVER.key, related.keys(reader, record))


def _on(reader: Reader, host: str) -> Iterable[str]:
    servers: list[ServerRecord] = reader.rows(SERVER, "host", host)
    return map(SERVER.key_of, servers)


def _in_aggregate(reader: Reader, aggregate: HostAggregate) -> Iterable[str]:
    return [key for host in aggregate.hosts for key in _on(reader, host)]


def _in_group(reader: Reader, group: ServerGroupRecord) -> Iterable[str]:
    servers: list[ServerRecord] = reader.rows(SERVER, "group", group.id)
    return map(SERVER.key_of, servers)


def _group_of(reader: Reader, server: ServerRecord) -> Iterable[str]:
    return [SERVER_GROUP.key(server.server_group)] if server.server_group else []


def _host_of(reader: Reader, server: ServerRecord) -> Iterable[str]:
    return [fleet.HOST.key(server.host)] if server.host else []


def _host_of_provider(reader: Reader, usage: Usage) -> Iterable[str]:
    hosts: list[HostRecord] = reader.rows(fleet.HOST, "id", usage.provider_uuid)
    return map(fleet.HOST.key_of, hosts)
