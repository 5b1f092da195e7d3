"""What a server needs of a host: from its record to a request of the scheduler. Pure: no store, no clock.

Amounts: VCPU (PCPU with dedicated CPUs), MEMORY_MB and DISK_GB of the flavor, changed by its `resources:` specs. A guest with
NUMA cells has its CPUs and RAM in a group for each cell, and each cell on a part of the host of its own: its share of the CPUs,
of the RAM and, with huge pages, of pages. Pages are resources of the classes CUSTOM_MEMORY_HUGE_2MB and CUSTOM_MEMORY_HUGE_1GB,
one unit a page, which the rows of a host's NUMA cells have; RAM in pages counts as MEMORY_MB as well, for a host's pages are part
of its RAM. Huge pages alone make one cell.
"""
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from control.compute import model, specs
from control.kernel.errors import Invalid
from protos.compute.v1.records_pb2 import ServerGroupRecord, ServerRecord
from protos.internal.v1.fleet_pb2 import HostAggregate
from scheduler.types import Amounts, Group, Request, ServerGroup, Shape, amounts

#: What the flavor and image of a server with NUMA cells say of these is in the cells.
_IN_CELLS = ("VCPU", "PCPU", "MEMORY_MB")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the cloud says where a flavor does not.

    `pci_aliases`: alias -> the resource class of such devices; `automatic_evacuation`: servers of a fenced host are started
    elsewhere without anybody's asking.
    """

    policy: str = "spread"
    automatic_evacuation: bool = False
    pci_aliases: Mapping[str, str] = field(default_factory=dict)


def demand(server: ServerRecord, *, settings: Settings, aggregates: Iterable[HostAggregate], host_of: Callable[[str], str],
           group: ServerGroupRecord | None = None) -> tuple[Request, ServerGroup | None]:
    """What a server needs, and the group that it is in.

    Args:
      host_of: the host of a server by id; "" for one without, or that is no more.
      group: the record of the server's group, None for none.

    Raises Invalid where flavor, image and hints ask for what cannot be.
    """
    only = frozenset({server.forced_host}) if server.forced_host else None
    if server.hints.same_host:
        beside = frozenset(filter(None, map(host_of, server.hints.same_host)))
        only = beside if only is None else only & beside
    avoid = frozenset(filter(None, map(host_of, server.hints.different_host)))
    lifetime = server.hints.lifetime_seconds
    request = Request(server.id, _shape(server, settings, aggregates), group.id if group else "", only, avoid,
                      server.created_at.seconds + lifetime if lifetime else 0)
    return request, server_group(group) if group else None


def server_group(record: ServerGroupRecord) -> ServerGroup:
    """A server group as the scheduler sees it."""
    return ServerGroup(record.id, record.policy, record.max_server_per_host or 1)


def _shape(server: ServerRecord, settings: Settings, aggregates: Iterable[HostAggregate]) -> Shape:
    asked = specs.read(server.flavor.extra_specs, server.image.properties)
    own = asked.groups.get("", specs.Group())
    try:
        cells = _cells(server, asked)
        groups = [*cells, *_groups(asked), *_devices(asked, settings)]
        return Shape(
            _amounts(server, asked, own, cells), frozenset(own.required), frozenset(own.forbidden), zone=server.availability_zone,
            aggregates=_aggregates(asked, aggregates) if asked.aggregates else (), groups=tuple(groups),
            isolate=asked.isolate or len(cells) > 1, policy=asked.policy or settings.policy, weights=asked.weights)
    except ValueError as error:
        raise Invalid("compute.server.flavorRef", f"Flavor {server.flavor.name}, with this image, asks for what no host can "
                                                  f"give: {error}.") from error


def _amounts(server: ServerRecord, asked: specs.Specs, own: specs.Group, cells: list[Group]) -> Amounts:
    """What any part of a host may serve."""
    if cells and (changed := sorted(own.resources.keys() & set(_IN_CELLS))):
        raise ValueError(f"resources:{changed[0]} cannot be given for a server with NUMA cells or huge pages")
    whole = {"DISK_GB": model.disk_of(server)}
    if not cells:
        whole |= {_cpu_class(asked): server.flavor.vcpus, "MEMORY_MB": server.flavor.ram_mib}
    return amounts(whole | own.resources)


def _cpu_class(asked: specs.Specs) -> str:
    return "PCPU" if asked.hw.get("cpu_policy") == "dedicated" else "VCPU"


def _cells(server: ServerRecord, asked: specs.Specs) -> list[Group]:
    """The guest's NUMA cells; none where neither these nor huge pages are asked for."""
    page = specs.page_size(asked.hw.get("mem_page_size", ""))
    given = sorted(name for name in asked.hw if name.startswith(("numa_cpus.", "numa_mem.")))
    if "numa_nodes" not in asked.hw:
        if given:
            raise ValueError(f"{given[0]} without numa_nodes")
        if not page:
            return []
    count = int(asked.hw.get("numa_nodes", "1"))
    if given and set(given) != {f"{what}.{cell}" for what in ("numa_cpus", "numa_mem") for cell in range(count)}:
        raise ValueError(f"numa_cpus.N and numa_mem.N are given for each of the {count} cells, or not at all")
    cpus, ram = _given_cells(server, asked, count) if given else _even_cells(server, count)
    cells = []
    for of_cpus, of_ram in zip(cpus, ram, strict=True):
        cell = {_cpu_class(asked): of_cpus, "MEMORY_MB": of_ram}
        if page:
            if of_ram * 2**20 % page:
                raise ValueError(f"{of_ram} MiB of RAM in a NUMA cell are no whole number of pages of {page // 2**20} MiB")
            cell[specs.PAGES[page]] = of_ram * 2**20 // page
        cells.append(Group(amounts(cell)))
    return cells


def _even_cells(server: ServerRecord, count: int) -> tuple[list[int], list[int]]:
    vcpus, ram = server.flavor.vcpus, server.flavor.ram_mib
    if vcpus % count or ram % count:
        raise ValueError(f"{vcpus} CPUs and {ram} MiB of RAM cannot be divided by {count} NUMA cells: give numa_cpus.N and "
                         "numa_mem.N")
    return [vcpus // count] * count, [ram // count] * count


def _given_cells(server: ServerRecord, asked: specs.Specs, count: int) -> tuple[list[int], list[int]]:
    cpus = [specs.cpus(asked.hw[f"numa_cpus.{cell}"]) for cell in range(count)]
    ram = [int(asked.hw[f"numa_mem.{cell}"]) for cell in range(count)]
    if sum(map(len, cpus)) != server.flavor.vcpus or frozenset().union(*cpus) != frozenset(range(server.flavor.vcpus)):
        raise ValueError(f"numa_cpus.N do not name each of the CPUs 0 to {server.flavor.vcpus - 1} once")
    if sum(ram) != server.flavor.ram_mib:
        raise ValueError(f"numa_mem.N add up to {sum(ram)} of {server.flavor.ram_mib} MiB of RAM")
    return [len(each) for each in cpus], ram


def _groups(asked: specs.Specs) -> Iterable[Group]:
    for suffix, group in sorted(asked.groups.items()):
        if suffix:
            if not any(group.resources.values()):
                raise ValueError(f"trait{suffix} without resources{suffix}")
            yield Group(amounts(group.resources), frozenset(group.required), frozenset(group.forbidden))


def _devices(asked: specs.Specs, settings: Settings) -> Iterable[Group]:
    for alias, count in asked.devices:
        if alias not in settings.pci_aliases:
            raise ValueError(f"this cloud has no PCI devices under the alias {alias!r}")
        for _ in range(count):
            yield Group(((settings.pci_aliases[alias], 1),))


def _aggregates(asked: specs.Specs, aggregates: Iterable[HostAggregate]) -> tuple[frozenset[str], ...]:
    """For each item of metadata that is asked for, the ids of the aggregates that have it."""
    rows = list(aggregates)
    return tuple(frozenset(aggregate.id for aggregate in rows if key in aggregate.metadata and specs.matches(
        wish, [value.strip() for value in aggregate.metadata[key].split(",")])) for key, wish in sorted(asked.aggregates.items()))
