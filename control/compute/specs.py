"""Reads what flavors and images ask of a host: extra specs and image properties, under Nova's names and Brume's own.

Each item is read on its own, so that a wrong one is refused when it is set; what several say together is for `demand`.

    resources:CLASS=n, resourcesN:CLASS=n, resources_NAME:CLASS=n      amounts; one suffix is one group, 0 takes a class out
    trait:T=required|forbidden, traitN:T, trait_NAME:T                 of the host, or of the part that serves the group
    group_policy=none|isolate                                          groups may share a part of the host, or not
    hw:numa_nodes=n, hw:numa_cpus.N=list, hw:numa_mem.N=MiB            the guest's NUMA cells
    hw:cpu_policy=shared|dedicated                                     VCPU, or PCPU
    hw:mem_page_size=small|large|any|2MB|1GB|KiB                       huge pages
    aggregate_instance_extra_specs:KEY=VALUE                           metadata of an aggregate that the host is in
    pci_passthrough:alias=NAME:n,...                                   devices
    brume:policy=pack|spread, brume:weights=VCPU=2,MEMORY_MB=1         which host of several

An image has trait:T, hw_numa_nodes, hw_numa_cpus.N, hw_numa_mem.N, hw_cpu_policy and hw_mem_page_size.
"""
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import os_resource_classes
import os_traits

from control.kernel.errors import Invalid
from scheduler.types import POLICIES

CLASSES: frozenset[str] = frozenset(os_resource_classes.STANDARDS)
TRAITS: frozenset[str] = frozenset(os_traits.get_traits())

#: Largest amount of one class, and most NUMA cells and devices of a server.
MOST_AMOUNT, MOST_CELLS, MOST_DEVICES = 2**31 - 1, 16, 16

#: Bytes of a page -> the class of such pages; a unit of it is one page.
PAGES: Mapping[int, str] = {2**21: "CUSTOM_MEMORY_HUGE_2MB", 2**30: "CUSTOM_MEMORY_HUGE_1GB"}

_GROUPED = re.compile(r"(resources|trait)(\d{1,9}|_[A-Za-z0-9_-]{1,64})?:(.*)", re.DOTALL)
_CUSTOM = re.compile(r"CUSTOM_[A-Z0-9_]{1,248}\Z")
_UNITS = {"": 2**10, "KB": 2**10, "KIB": 2**10, "MB": 2**20, "MIB": 2**20, "GB": 2**30, "GIB": 2**30}


@dataclass(slots=True)
class Group:
    """What the specs of one suffix ask for together."""

    resources: dict[str, int] = field(default_factory=dict)
    required: set[str] = field(default_factory=set)
    forbidden: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Specs:
    """Extra specs as they were read. `groups` is by suffix, "" for what has none; `hw` by the name after "hw:"."""

    groups: dict[str, Group] = field(default_factory=dict)
    hw: dict[str, str] = field(default_factory=dict)
    aggregates: dict[str, str] = field(default_factory=dict)
    devices: list[tuple[str, int]] = field(default_factory=list)
    isolate: bool = False
    policy: str = ""
    weights: tuple[tuple[str, int], ...] = ()

    def add(self, key: str, value: str) -> None:
        """Read one extra spec; others than those above are nothing to us. Raises ValueError."""
        if match := _GROUPED.match(key):
            self._add_grouped(match[1], match[2] or "", match[3], value)
            return
        namespace, _, name = key.partition(":")
        match namespace:
            case "group_policy":
                self.isolate = _one_of(value, "none", "isolate") == "isolate"
            case "hw" if reader := _HARDWARE.get(re.sub(r"\.\d+\Z", ".", name)):
                reader(value)
                self.hw[name] = value
            case "aggregate_instance_extra_specs" if name:
                if len(value.split()) > 64:
                    raise ValueError("at most 64 words")
                self.aggregates[name] = value
            case "pci_passthrough" if name == "alias":
                self.devices = _devices(value)
            case "brume" if name == "policy":
                self.policy = _one_of(value, *(policy for policy in POLICIES if policy != "first"))
            case "brume" if name == "weights":
                self.weights = _weights(value)
            case "brume":
                raise ValueError("there are brume:policy and brume:weights")
            case _ if name and namespace.startswith(("resources", "trait")):
                raise ValueError("a group's suffix is a number, or _ and at most 64 letters, digits, - and _")

    def _add_grouped(self, what: str, suffix: str, name: str, value: str) -> None:
        group = self.groups.setdefault(suffix, Group())
        if what == "resources":
            group.resources[resource_class(name)] = _number(value, 0, MOST_AMOUNT)
        elif _one_of(value, "required", "forbidden") == "required":
            group.required.add(trait(name))
        else:
            group.forbidden.add(trait(name))

    def add_image(self, key: str, value: str) -> None:
        """Read a property of the image. Raises ValueError, also where the flavor says something else."""
        if key.startswith("trait:"):
            self.add(key, value)
        elif key.startswith("hw_") and re.sub(r"\.\d+\Z", ".", key[3:]) in _HARDWARE:
            name = key[3:]
            if self.hw.get(name, value) != value:
                raise ValueError(f"the flavor asks for {self.hw[name]!r}")
            _HARDWARE[re.sub(r"\.\d+\Z", ".", name)](value)
            self.hw[name] = value


def read(flavor: Mapping[str, str], image: Mapping[str, str]) -> Specs:
    """A flavor's extra specs and its image's properties. Raises Invalid, which names the item that is wrong."""
    specs = Specs()
    for what, items, add in (("Flavor extra spec", flavor, specs.add), ("Image property", image, specs.add_image)):
        for key, value in sorted(items.items()):
            _refuse_wrong(what, key, value, add)
    return specs


def check(key: str, value: str) -> None:
    """Raises Invalid where an extra spec that is about to be set could not be read."""
    _refuse_wrong("Flavor extra spec", key, value, Specs().add)


def _refuse_wrong(what: str, key: str, value: str, add: Callable[[str, str], None]) -> None:
    try:
        add(key, value)
    except ValueError as error:
        raise Invalid("compute.flavor.spec", f"{what} {key[:80]}={value[:80]}: {error}.") from error


def resource_class(name: str) -> str:
    """A resource class: a standard one or CUSTOM_... Raises ValueError."""
    if name not in CLASSES and not _CUSTOM.match(name):
        raise ValueError(f"there is no resource class {name[:80]!r}; there are {', '.join(sorted(CLASSES)[:4])} ... and CUSTOM_*")
    return name


def trait(name: str) -> str:
    """A trait: a standard one or CUSTOM_... Raises ValueError."""
    if name not in TRAITS and not _CUSTOM.match(name):
        raise ValueError(f"there is no trait {name[:80]!r}; there are the standard ones (os-traits) and CUSTOM_*")
    return name


def cpus(text: str) -> frozenset[int]:
    """The numbers of a list of guest CPUs, as "0-3,^2,7". Raises ValueError."""
    wanted: set[int] = set()
    left_out: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\^?)(\d{1,4})(?:-(\d{1,4}))?\s*", part)
        if not match or (match[1] and match[3]):
            raise ValueError("expected numbers of CPUs as 0-3,^2,7")
        (left_out if match[1] else wanted).update(range(int(match[2]), int(match[3] or match[2]) + 1))
    if not wanted - left_out:
        raise ValueError("names no CPU")
    return frozenset(wanted - left_out)


def page_size(text: str) -> int:
    """Bytes of the pages that are asked for, 0 for small ones: so "any" means; "large" is 2 MiB. Raises ValueError."""
    if text.lower() in ("small", "any", ""):
        return 0
    if text.lower() == "large":
        return 2**21
    match = re.fullmatch(r"(\d{1,9})\s*([A-Za-z]*)", text)
    size = int(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0
    if size not in PAGES and size != 4096:
        raise ValueError("expected small, large, any, 4KB, 2MB, 1GB or one of these in KiB")
    return size if size in PAGES else 0


def matches(wish: str, values: Iterable[str]) -> bool:
    """Whether one of an aggregate's values is what an extra spec wishes, in Nova's language of operators.

    Without an operator it is to be equal. "<or> a <or> b" one of these, "<in> a" holds it, "<all-in> a b" holds all;
    = (at least), ==, !=, <=, >= by number; s==, s!=, s<, s<=, s>, s>= by text.
    """
    first, *rest = wish.split() or [""]
    operand = " ".join(rest)
    if first == "<or>":
        return any(value in [word for word in rest if word != "<or>"] for value in values)
    if first == "<all-in>":
        return any(all(word in value for word in rest) for value in values)
    if first in _OPERATORS and operand:
        return any(_OPERATORS[first](value, operand) for value in values)
    return wish in values


def _by_number(test: Callable[[float, float], bool]) -> Callable[[str, str], bool]:
    def compare(value: str, operand: str) -> bool:
        try:
            return test(float(value), float(operand))
        except ValueError:
            return False
    return compare


_OPERATORS: Mapping[str, Callable[[str, str], bool]] = {
    "<in>": lambda value, operand: operand in value,
    "=": _by_number(lambda value, operand: value >= operand), "==": _by_number(lambda value, operand: value == operand),
    "!=": _by_number(lambda value, operand: value != operand), "<=": _by_number(lambda value, operand: value <= operand),
    ">=": _by_number(lambda value, operand: value >= operand),
    "s==": lambda value, operand: value == operand, "s!=": lambda value, operand: value != operand,
    "s<": lambda value, operand: value < operand, "s<=": lambda value, operand: value <= operand,
    "s>": lambda value, operand: value > operand, "s>=": lambda value, operand: value >= operand}


def _one_of(value: str, *allowed: str) -> str:
    if value not in allowed:
        raise ValueError(f"expected {' or '.join(allowed)}")
    return value


def _number(value: str, least: int, most: int) -> int:
    if not re.fullmatch(r"\d{1,12}", value) or not least <= int(value) <= most:
        raise ValueError(f"expected a whole number from {least} to {most}")
    return int(value)


def _cpu_policy(value: str) -> str:
    if value == "mixed":
        raise ValueError("servers with both shared and dedicated CPUs cannot be had: take shared or dedicated")
    return _one_of(value, "shared", "dedicated")


def _devices(value: str) -> list[tuple[str, int]]:
    devices = []
    for part in value.split(","):
        name, _, count = part.strip().partition(":")
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,255}", name):
            raise ValueError("expected aliases and counts as gpu:2,nic:1")
        devices.append((name, _number(count or "1", 1, MOST_DEVICES)))
    return devices


def _weights(value: str) -> tuple[tuple[str, int], ...]:
    weights = {}
    for part in value.split(","):
        name, _, weight = part.strip().partition("=")
        weights[resource_class(name)] = _number(weight, 0, 100)
    if not any(weights.values()):
        raise ValueError("a weight must be above 0")
    return tuple(sorted(weights.items()))


#: What stands after "hw:" -> its reader; a name that ends in "." goes on with the number of a cell.
_HARDWARE: Mapping[str, Callable[[str], object]] = {
    "numa_nodes": lambda value: _number(value, 1, MOST_CELLS), "numa_cpus.": cpus,
    "numa_mem.": lambda value: _number(value, 1, MOST_AMOUNT), "cpu_policy": _cpu_policy, "mem_page_size": page_size}
