"""From a server's record to what the scheduler is asked."""
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.compute import specs
from control.compute.demand import Settings, demand
from control.kernel.errors import Invalid
from protos.compute.v1.records_pb2 import FlavorRecord, SchedulerHints, ServerGroupRecord, ServerRecord
from protos.internal.v1.fleet_pb2 import HostAggregate
from protos.internal.v1.hosts_pb2 import BootImage
from scheduler.types import Group, Request, ServerGroup

AGGREGATES = [HostAggregate(id="fast", metadata={"ssd": "true", "size": "8"}),
              HostAggregate(id="slow", metadata={"ssd": "no, maybe"}),
              HostAggregate(id="east", metadata={"availability_zone": "east"})]


def server(extra_specs: dict | None = None, properties: dict | None = None, *, vcpus=4, ram=4096, disk=10,
           **fields) -> ServerRecord:
    record = ServerRecord(id="s", image=BootImage(properties=properties or {}), flavor=FlavorRecord(
        id="f", name="f", vcpus=vcpus, ram_mib=ram, disk_gib=disk, extra_specs=extra_specs or {}), **fields)
    record.created_at.seconds = 1000
    return record


def needs(record: ServerRecord, group: ServerGroupRecord | None = None, **settings) -> tuple[Request, ServerGroup | None]:
    return demand(record, settings=Settings(**settings), aggregates=AGGREGATES, group=group,
                  host_of={"a": "node-a", "b": "node-b", "waiting": ""}.get)


def shape(*arguments, **more):
    return needs(server(*arguments, **more))[0].shape


def test_a_plain_flavor_is_its_cpus_ram_and_disk():
    asked = shape()
    assert dict(asked.amounts) == {"VCPU": 4, "MEMORY_MB": 4096, "DISK_GB": 10}
    assert (asked.groups, asked.aggregates, asked.zone, asked.policy, asked.weights) == ((), (), "", "spread", ())


@pytest.mark.parametrize(("extra_specs", "amounts"), [
    ({"resources:VCPU": "0", "resources:CUSTOM_BAREMETAL": "1"}, {"CUSTOM_BAREMETAL": 1, "MEMORY_MB": 4096, "DISK_GB": 10}),
    ({"resources:MEMORY_MB": "1", "resources:DISK_GB": "0"}, {"VCPU": 4, "MEMORY_MB": 1}),
    ({"resources:VGPU": "2"}, {"VCPU": 4, "MEMORY_MB": 4096, "DISK_GB": 10, "VGPU": 2}),
    ({"hw:cpu_policy": "dedicated"}, {"PCPU": 4, "MEMORY_MB": 4096, "DISK_GB": 10}),
    ({"hw:cpu_policy": "shared", "hw:mem_page_size": "small", "unscoped": "x", "hw:watchdog_action": "reset",
      "quota:cpu_shares": "1"},
     {"VCPU": 4, "MEMORY_MB": 4096, "DISK_GB": 10}),
])
def test_specs_change_the_amounts(extra_specs, amounts):
    assert dict(shape(extra_specs).amounts) == amounts


def test_traits_come_from_flavor_and_image_and_zone_and_weights_from_where_they_are_said():
    asked = shape({"trait:HW_CPU_X86_AVX2": "required", "trait:CUSTOM_OLD": "forbidden", "brume:policy": "pack",
                   "brume:weights": "VCPU=2, MEMORY_MB=1"}, {"trait:CUSTOM_LICENSED": "required", "hw_disk_bus": "virtio"},
                  availability_zone="east")
    assert asked.required == {"HW_CPU_X86_AVX2", "CUSTOM_LICENSED"} and asked.forbidden == {"CUSTOM_OLD"}
    assert (asked.zone, asked.policy, asked.weights) == ("east", "pack", (("MEMORY_MB", 1), ("VCPU", 2)))


def test_suffixed_resources_are_groups_each_with_its_traits():
    asked = shape({"resources1:VGPU": "1", "trait1:CUSTOM_NVIDIA": "required", "resources_NIC:CUSTOM_VF": "2",
                   "trait_NIC:CUSTOM_SLOW": "forbidden", "group_policy": "isolate"})
    assert asked.groups == (Group((("VGPU", 1),), frozenset({"CUSTOM_NVIDIA"})),
                            Group((("CUSTOM_VF", 2),), frozenset(), frozenset({"CUSTOM_SLOW"})))
    assert asked.isolate and not shape({"resources1:VGPU": "1", "resources2:VGPU": "1", "group_policy": "none"}).isolate


def test_numa_cells_share_cpus_and_ram_evenly_and_lie_apart():
    asked = shape({"hw:numa_nodes": "2", "hw:cpu_policy": "dedicated"})
    cell = Group((("MEMORY_MB", 2048), ("PCPU", 2)))
    assert asked.groups == (cell, cell) and asked.isolate and dict(asked.amounts) == {"DISK_GB": 10}
    assert shape({}, {"hw_numa_nodes": "1"}).groups == (Group((("MEMORY_MB", 4096), ("VCPU", 4))),)


def test_numa_cells_may_be_given_one_by_one():
    asked = shape({"hw:numa_nodes": "2", "hw:numa_cpus.0": "0-2", "hw:numa_mem.0": "3072", "hw:numa_cpus.1": "0-3,^0,^1,^2",
                   "hw:numa_mem.1": "1024"})
    assert [dict(group.amounts) for group in asked.groups] == [{"VCPU": 3, "MEMORY_MB": 3072}, {"VCPU": 1, "MEMORY_MB": 1024}]


@pytest.mark.parametrize(("size", "pages"), [
    ("large", {"CUSTOM_MEMORY_HUGE_2MB": 2048}), ("2MB", {"CUSTOM_MEMORY_HUGE_2MB": 2048}),
    ("2048", {"CUSTOM_MEMORY_HUGE_2MB": 2048}),
    ("1GB", {"CUSTOM_MEMORY_HUGE_1GB": 4}), ("1048576", {"CUSTOM_MEMORY_HUGE_1GB": 4})])
def test_huge_pages_are_resources_of_a_cell(size, pages):
    [cell] = shape({"hw:mem_page_size": size}).groups
    assert dict(cell.amounts) == {"VCPU": 4, "MEMORY_MB": 4096, **pages}


@pytest.mark.parametrize(("key", "wish", "ids"), [
    ("ssd", "true", {"fast"}), ("ssd", "maybe", {"slow"}), ("ssd", "<or> true <or> no", {"fast", "slow"}),
    ("size", ">= 4", {"fast"}),
    ("size", "= 9", set()), ("ssd", "s!= true", {"slow"}), ("ssd", "<in> ru", {"fast"}), ("none", "x", set()),
    ("availability_zone", "east", {"east"}), ("size", "<= x", set()), ("ssd", "<all-in> t ue", {"fast"})])
def test_aggregates_are_those_whose_metadata_is_asked_for(key, wish, ids):
    assert shape({f"aggregate_instance_extra_specs:{key}": wish}).aggregates == (frozenset(ids),)


def test_each_item_of_metadata_is_asked_for_by_itself():
    asked = shape({"aggregate_instance_extra_specs:ssd": "true", "aggregate_instance_extra_specs:availability_zone": "east"})
    assert asked.aggregates == (frozenset({"east"}), frozenset({"fast"}))


def test_hints_name_hosts_by_their_servers():
    request, _ = needs(server(hints=SchedulerHints(different_host=["a", "gone", "waiting"], lifetime_seconds=60)))
    assert (request.avoid, request.only, request.until) == ({"node-a"}, None, 1060)
    assert needs(server(hints=SchedulerHints(same_host=["a", "b"])))[0].only == {"node-a", "node-b"}
    assert needs(server(hints=SchedulerHints(same_host=["a"]), forced_host="node-b"))[0].only == frozenset()
    assert needs(server(forced_host="node-b"))[0].only == {"node-b"}


def test_the_group_goes_along():
    record = server(server_group="g")
    request, group = needs(record, ServerGroupRecord(id="g", policy="anti-affinity", max_server_per_host=3))
    assert request.group == "g" and group == ServerGroup("g", "anti-affinity", 3)
    assert needs(record)[0].group == "" and needs(record)[1] is None, "the group is gone"


def test_devices_are_a_group_each_where_the_cloud_has_them():
    record = server({"pci_passthrough:alias": "gpu:2,nic"})
    request, _ = needs(record, pci_aliases={"gpu": "CUSTOM_GPU", "nic": "CUSTOM_NIC"})
    assert [group.amounts for group in request.shape.groups] == [(("CUSTOM_GPU", 1),)] * 2 + [(("CUSTOM_NIC", 1),)]
    with pytest.raises(Invalid, match="no PCI devices under the alias 'gpu'"):
        needs(record)


@pytest.mark.parametrize(("extra_specs", "text"), [
    ({"resources:CPUS": "1"}, "no resource class 'CPUS'"), ({"resources:VCPU": "-1"}, "whole number"),
    ({"resources:VCPU": "x"}, "whole number"), ({"resources:": "1"}, "no resource class"), ({"resources1a:VCPU": "1"}, "suffix"),
    ({"trait:FAST": "required"}, "no trait 'FAST'"), ({"trait:CUSTOM_A": "yes"}, "required or forbidden"),
    ({"group_policy": "all"}, "none or isolate"), ({"hw:numa_nodes": "0"}, "from 1"), ({"hw:numa_cpus.0": "3-1"}, "names no CPU"),
    ({"hw:cpu_policy": "mixed"}, "shared or dedicated"), ({"hw:cpu_policy": "x"}, "shared or dedicated"),
    ({"hw:mem_page_size": "3MB"}, "2MB"), ({"pci_passthrough:alias": "gpu:x"}, "whole number"),
    ({"brume:policy": "first"}, "pack"),
    ({"brume:weights": "VCPU"}, "whole number"), ({"brume:weights": "VCPU=0"}, "above 0"), ({"brume:other": "x"}, "brume:policy"),
])
def test_a_wrong_spec_is_refused_by_name(extra_specs, text):
    [(key, value)] = extra_specs.items()
    with pytest.raises(Invalid, match=text) as refused:
        specs.check(key, value)
    assert f"{key}={value}" in str(refused.value)
    with pytest.raises(Invalid, match=text):
        shape(extra_specs)


@pytest.mark.parametrize(("extra_specs", "properties", "text"), [
    ({"trait:CUSTOM_A": "required"}, {"trait:CUSTOM_A": "forbidden"}, "CUSTOM_A is both required and forbidden"),
    ({"trait1:CUSTOM_A": "required"}, {}, "trait1 without resources1"),
    ({"hw:numa_nodes": "3"}, {}, "cannot be divided by 3"), ({"hw:numa_mem.0": "1"}, {}, "without numa_nodes"),
    ({"hw:numa_nodes": "1", "hw:numa_cpus.0": "0-3"}, {}, "for each of the 1 cells"),
    ({"hw:numa_nodes": "1", "hw:numa_cpus.0": "0-2", "hw:numa_mem.0": "4096"}, {}, "each of the CPUs 0 to 3"),
    ({"hw:numa_nodes": "1", "hw:numa_cpus.0": "0-3", "hw:numa_mem.0": "1"}, {}, "1 of 4096 MiB"),
    ({"hw:numa_nodes": "1", "resources:VCPU": "1"}, {}, "resources:VCPU cannot"),
    ({"hw:numa_nodes": "1"}, {"hw_numa_nodes": "2"}, "the flavor asks for '1'"), ({}, {"hw_numa_nodes": "x"}, "hw_numa_nodes=x"),
    ({"hw:numa_nodes": "4", "hw:mem_page_size": "1GB", "hw:numa_cpus.0": "0"}, {}, "for each of the 4 cells"),
    ({f"resources{i}:CUSTOM_X": "1" for i in range(40)}, {}, "at most 32"),
])
def test_what_makes_no_sense_together_is_refused(extra_specs, properties, text):
    with pytest.raises(Invalid, match=text):
        shape(extra_specs, properties)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_spec_raises_anything_but_invalid(key, value):
    for text in (key, f"resources:{key}", f"hw:{key}", f"trait{key}", "hw:numa_cpus.0", "hw:mem_page_size", "brume:weights"):
        try:
            specs.check(text, value)
        except Invalid:
            continue
    specs.matches(value, [key])
