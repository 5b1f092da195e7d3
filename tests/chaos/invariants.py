"""What must hold of the state when all is at rest, whatever happened: each function tells what does not, in sentences.

They recount from the records alone and share no code with what keeps them right.
"""
import ipaddress
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from control.compute import model
from control.compute.model import SERVER
from control.kernel import fleet
from control.kernel.database import Database
from control.kernel.quota import LEDGER
from control.network.model import ALLOCATION as ADDRESS
from control.network.model import DHCP, PORT, SUBNET
from control.network.model import SERVER as SERVER_PORT
from protos.internal.v1.hosts_pb2 import HostServer
from tests.chaos.history import History, Outcome


def findings(database: Database) -> list[str]:
    """All that is out of step in a cloud at rest."""
    return [text for check in CHECKS for text in check(database)]


def at_rest(database: Database) -> Iterator[str]:
    """The servers that are in a passing state."""
    for server in database.rows(SERVER):
        state = model.derive(server)
        if state.task_state or state.status == "BUILD":
            yield f"server {server.name} is {state.status} and {state.task_state or 'building'} on {server.host or 'no host'}"


def _claims(database: Database) -> Iterator[str]:
    """A server with a host holds what its flavor says there, once; nothing else holds anything of a host."""
    servers = {server.id: server for server in database.rows(SERVER)}
    roots = {host.name: host.id for host in database.rows(fleet.HOST)}
    held = {each.consumer_uuid: each for each in database.rows(fleet.ALLOCATION)}
    for server in servers.values():
        claim = held.get(server.id)
        if server.host and claim is None:
            yield f"server {server.name} is on {server.host} without a claim"
        elif not server.host and claim is not None:
            yield f"server {server.name} is on no host and holds a claim"
        elif claim is not None:
            if list(claim.providers) != [roots.get(server.host)]:
                yield f"server {server.name} is on {server.host} and holds something of {', '.join(claim.providers)}"
            elif claim.providers[roots[server.host]].resources["VCPU"] != server.flavor.vcpus:
                yield f"server {server.name} holds {claim.providers[roots[server.host]].resources} for {server.flavor.vcpus} CPUs"
    for consumer in held.keys() - servers.keys():
        yield f"{consumer} holds a claim and is no server"


def _usages(database: Database) -> Iterator[str]:
    """A usage is the sum of its claims, and no more than there is."""
    sums: dict[str, Counter[str]] = {}
    for claim in database.rows(fleet.ALLOCATION):
        for uuid, amounts in claim.providers.items():
            sums.setdefault(uuid, Counter()).update(amounts.resources)
    for usage in database.rows(fleet.USAGE):
        counted = sums.pop(usage.provider_uuid, Counter())
        if dict(usage.used) != {name: amount for name, amount in counted.items() if amount}:
            yield f"provider {usage.provider_uuid} says {dict(usage.used)} used, and its claims are {dict(counted)}"
        provider = database.get(fleet.PROVIDER, usage.provider_uuid)
        for name, amount in usage.used.items():
            have = provider.inventories[name] if provider is not None else None
            if have is None or amount > (have.total - have.reserved) * have.allocation_ratio:
                yield f"provider {usage.provider_uuid} has given away {amount} of {name}, more than it has"
    for uuid in sums:
        yield f"claims of provider {uuid} are in no usage"


def _quotas(database: Database) -> Iterator[str]:
    """What ledgers of compute and network say used equals a recount, and is within the limit."""
    counted: dict[tuple[str, str], Counter[str]] = {}
    for server in database.rows(SERVER):
        mine = counted.setdefault(("compute", server.project_id), Counter())
        mine.update(instances=1, cores=server.flavor.vcpus, ram=server.flavor.ram_mib)
    for port in database.rows(PORT):
        if port.charged:
            counted.setdefault(("network", port.project_id), Counter()).update(port=1)
    for ledger in database.rows(LEDGER):
        for name in {"compute": ("instances", "cores", "ram"), "network": ("port",)}.get(ledger.service, ()):
            used, right = ledger.used.get(name, 0), counted.get((ledger.service, ledger.project_id), Counter())[name]
            if used != right:
                yield f"project {ledger.project_id} is charged {used} {name} and has {right}"
            if -1 < ledger.limits.get(name, -1) < used:
                yield f"project {ledger.project_id} uses {used} {name} of {ledger.limits[name]}"


def _ports(database: Database) -> Iterator[str]:
    """A server's port has a server, is where it is, and each server has its ports."""
    servers = {server.id: server for server in database.rows(SERVER)}
    with_port = set()
    for port in database.rows(PORT):
        if port.device_owner != SERVER_PORT:
            continue
        server = servers.get(port.device_id)
        if server is None:
            yield f"port {port.id} is of server {port.device_id}, which is not there"
        elif port.binding_host_id != server.host:
            yield f"port {port.id} is bound to {port.binding_host_id or 'no host'}, its server {server.name} to {server.host}"
        with_port.add(port.device_id)
    for server_id in servers.keys() - with_port:
        yield f"server {servers[server_id].name} has no port"


def _addresses(database: Database) -> Iterator[str]:
    """An address is one port's, a MAC is one port's in its network, and each is written down with the port that has it.

    That of DHCP stands in its subnet.
    """
    owners = {(each.subnet_id, each.ip): each.port_id for each in database.rows(ADDRESS)}
    for port in database.rows(PORT):
        if port.device_owner == DHCP:
            owners |= {(subnet.id, subnet.dhcp_ip): port.id for subnet in database.rows(SUBNET, "network", port.network_id)
                       if subnet.dhcp_ip}
    held: dict[tuple[str, str], str] = {}
    macs: dict[tuple[str, str], str] = {}
    for port in database.rows(PORT):
        if other := macs.get((port.network_id, port.mac_address)):
            yield f"ports {other} and {port.id} have one MAC, {port.mac_address}"
        macs[port.network_id, port.mac_address] = port.id
        for fixed in port.fixed_ips:
            place = (fixed.subnet_id, str(ipaddress.ip_address(fixed.ip_address)))
            if other := held.get(place):
                yield f"ports {other} and {port.id} have one address, {fixed.ip_address}"
            held[place] = port.id
    for place in owners.keys() | held.keys():
        if owners.get(place) != held.get(place):
            yield f"address {place[1]} is written down for port {owners.get(place)} and is port {held.get(place)}'s"


CHECKS: tuple[Callable[[Database], Iterable[str]], ...] = (at_rest, _claims, _usages, _quotas, _ports, _addresses)


def against_history(database: Database, history: History) -> list[str]:
    """What clients were told about servers, names and addresses, and is not so."""
    found = []
    names = Counter(server.name for server in database.rows(SERVER) if not server.desired.deleted)
    for thing, operations in history.by_thing("server/").items():
        name = thing.removeprefix("server/")
        made = [each.outcome for each in operations if each.verb == "create"]
        gone = [each.outcome for each in operations if each.verb == "delete"]
        least = int(made == [Outcome.OK] and not any(each in (Outcome.OK, Outcome.REFUSED, Outcome.UNKNOWN) for each in gone))
        most = int(made[0] in (Outcome.OK, Outcome.UNKNOWN) and Outcome.OK not in gone) if made else 0
        if not least <= names[name] <= most:
            found.append(f"server {name}: its clients' answers allow {least} to {most} of it, and there are {names[name]}")
    told = {thing.removeprefix("server/") for thing in history.by_thing("server/")}
    found += [f"server {name} was asked for by nobody" for name in names if name not in told]
    return found


def against_world(database: Database, domains: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What runs on hosts and should not, and the reverse.

    Args:
      domains: by host, what is there: "running" or "shutoff" by server id.
    """
    found = []
    right = {(server.host, server.id): "running" if server.desired.power == HostServer.RUNNING else "shutoff"
             for server in database.rows(SERVER) if server.host and not server.HasField("fault")}
    there = {(host, server_id): power for host, servers in domains.items() for server_id, power in servers.items()}
    faulty = {(server.host, server.id) for server in database.rows(SERVER) if server.HasField("fault")}
    for place in right.keys() | (there.keys() - faulty):
        if right.get(place) != there.get(place) and not (right.get(place) == "shutoff" and place not in there):
            found.append(f"server {place[1]} is {there.get(place, 'not there')} on {place[0]} "
                         f"and should be {right.get(place, 'not there')}")
    twice = [server_id for server_id, count in Counter(server_id for _, server_id in there).items() if count > 1]
    return found + [f"server {server_id} is on several hosts" for server_id in twice]
