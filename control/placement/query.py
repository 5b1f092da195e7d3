"""What the queries of lists and candidates say: resources, traits, aggregates and groups of them, by microversion."""
import re
from collections.abc import Mapping, Sequence
from typing import Any

from control.kernel.database import Database
from control.kernel.errors import Invalid
from control.kernel.fleet import RESOURCE_CLASS, TRAIT
from control.kernel.rpc import Call
from control.placement import custom_names
from control.placement.candidates import MAX_CANDIDATES, AnyOf, Group, Request
from control.placement.model import MAX_AMOUNT, MAX_CLASSES, uuid_of

#: Groups of one request, and names in one parameter, at most.
MAX_GROUPS, MAX_NAMES = 50, 500

_PREFIXES = ("resources", "required", "member_of", "in_tree")
_NUMBERED = re.compile(rf"({'|'.join(_PREFIXES)})([1-9][0-9]{{0,9}})?", re.ASCII)
_NAMED = re.compile(rf"({'|'.join(_PREFIXES)})([a-zA-Z0-9_-]{{1,64}})?", re.ASCII)

#: The microversions from which a parameter of the whole request, or a group's own, is known.
_WHOLE = {"limit": 16, "group_policy": 25, "root_required": 35, "same_subtree": 36}
_GROUPED = {"resources": 10, "required": 17, "member_of": 21, "in_tree": 31}


def minor(call: Call) -> int:
    """The microversion's second number; of a native call one beyond all."""
    return call.microversion[1] if call.microversion is not None else 1000


def resources(text: str) -> dict[str, int]:
    """Amounts by class of "VCPU:2,MEMORY_MB:1024". Raises Invalid."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, colon, amount = (each.strip() for each in part.partition(":"))
        if not colon or not name:
            raise Invalid("query.resources", "Badly formed resources parameter. Expected resources query string parameter in "
                                             f"form: ?resources=VCPU:2,MEMORY_MB:1024. Got: {text[:80] or 'empty string'}.")
        if not re.fullmatch(r"[0-9]{1,10}", amount, re.ASCII) or not 1 <= int(amount) <= MAX_AMOUNT:
            raise Invalid("query.resources", f"Requested resource {name[:80]} requires an integer amount of 1 to {MAX_AMOUNT}. "
                                             f"Got: {amount[:40]}.")
        found[name] = int(amount)
    if len(found) > MAX_CLASSES:
        raise Invalid("query.resources", f"resources names more than {MAX_CLASSES} classes.")
    return found


def traits(values: Sequence[str], version: int, key: str = "required") -> tuple[AnyOf, frozenset[str]]:
    """Required traits, of each set one, and forbidden ones. Before 1.39 the last value counts alone. Raises Invalid."""
    required: list[frozenset[str]] = []
    forbidden: set[str] = set()
    for value in values if version >= 39 else values[-1:]:
        if value.startswith("in:") and version >= 39:
            names = frozenset(name.strip() for name in value[3:].split(","))
            if "" in names or any(name.startswith("!") for name in names):
                raise _bad_traits(key, value, "in:HW_CPU_X86_VMX,CUSTOM_MAGIC")
            required.append(names)
            continue
        if value.startswith("in:"):
            raise Invalid(f"query.{key}", "Invalid query string parameters: The format 'in:HW_CPU_X86_VMX,CUSTOM_MAGIC' only "
                                          f"supported since microversion 1.39. Got: {value[:80]}")
        for name in value.split(","):
            name = name.strip()
            bare = name.lstrip("!")
            if not bare or (name != bare and version < 22):
                raise _bad_traits(key, value, "HW_CPU_X86_VMX,!CUSTOM_MAGIC" if version >= 22 else "HW_CPU_X86_VMX,CUSTOM_MAGIC")
            if name == bare:
                required.append(frozenset({name}))
            else:
                forbidden.add(bare)
    if sum(map(len, required)) + len(forbidden) > MAX_NAMES:
        raise Invalid(f"query.{key}", f"{key} names more than {MAX_NAMES} traits.")
    return tuple(required), frozenset(forbidden)


def _bad_traits(key: str, value: str, form: str) -> Invalid:
    return Invalid(f"query.{key}", f"Invalid query string parameters: Expected 'required' parameter value of the form: {form}. "
                                   f"Got: {value[:80]}")


def aggregates(values: Sequence[str], version: int, key: str = "member_of") -> tuple[AnyOf, frozenset[str]]:
    """Aggregates, of each set one, and those that must not be. Raises Invalid."""
    if len(values) > 1 and version < 24:
        raise Invalid(f"query.{key}", f"Multiple {key} parameters are not supported")
    required: list[frozenset[str]] = []
    forbidden: set[str] = set()
    for value in values:
        wanted = value.removeprefix("!")
        several = wanted.startswith("in:")
        names = wanted.removeprefix("in:").split(",")
        if len(names) > 1 and not several:
            raise Invalid(f"query.{key}", "Multiple values for 'member_of' must be prefixed with the 'in:' or '!in:' keyword "
                                          f"using the valid microversion. Got: {value[:80]}")
        if len(names) > MAX_NAMES:
            raise Invalid(f"query.{key}", f"{key} names more than {MAX_NAMES} aggregates.")
        try:
            found = frozenset(uuid_of(name, key) for name in names)
        except Invalid:
            raise Invalid(f"query.{key}", "Invalid query string parameters: Expected 'member_of' parameter to contain valid "
                                          f"UUID(s). Got: {value[:80]}") from None
        if value.startswith("!"):
            if version < 32:
                raise Invalid(f"query.{key}", f"Forbidden {key} parameters are not supported in the specified microversion")
            forbidden |= found
        else:
            required.append(found)
    return tuple(required), frozenset(forbidden)


def in_tree(text: str) -> str:
    try:
        return uuid_of(text.strip(), "in_tree")
    except Invalid:
        raise Invalid("query.in_tree", "Invalid query string parameters: Expected 'in_tree' parameter to be a format of uuid. "
                                       f"Got: {text[:80]}") from None


def check_names(database: Database, groups: Sequence[Group], root: frozenset[str] = frozenset()) -> None:
    """Raise Invalid where a query names a class or trait that is not there."""
    classes = {name for group in groups for name in group.resources}
    if unknown := {name for name in classes if not custom_names.exists(database, RESOURCE_CLASS, name)}:
        text = custom_names.unknown(RESOURCE_CLASS, unknown)
        raise Invalid("query.resources", f"Invalid resource class in resources parameter: {text}")
    names = root.union(*(group.forbidden.union(*group.required) for group in groups))
    if unknown := {name for name in names if not custom_names.exists(database, TRAIT, name)}:
        raise custom_names.unknown(TRAIT, unknown)


def request(parameters: Mapping[str, Sequence[str]], version: int) -> Request:
    """A request for candidates. Raises Invalid for one that says nothing or contradicts itself."""
    groups = _groups(parameters, version)
    root_required, root_forbidden = traits(parameters.get("root_required", ()), min(version, 38), "root_required")
    if len(parameters.get("root_required", ())) > 1:
        raise Invalid("placement.query.duplicate_key", "Query parameter 'root_required' may be specified only once.")
    wanted_of_root = frozenset().union(*root_required)
    if clash := wanted_of_root & root_forbidden:
        raise Invalid("placement.query.bad_value", "Conflicting required and forbidden traits found in root_required: "
                                                   f"{', '.join(sorted(clash))}")
    same_subtrees = _same_subtrees(parameters.get("same_subtree", ()), groups)
    _check_groups(groups, same_subtrees, version)
    policy = parameters.get("group_policy", [""])[0]
    if policy not in ("none", "isolate") and "group_policy" in parameters:
        raise Invalid("query.group_policy", f"group_policy must be 'none' or 'isolate', not {policy[:40]!r}")
    if not policy and sum(bool(suffix) for suffix in groups) > 1:
        raise Invalid("query.group_policy", 'The "group_policy" parameter is required when specifying more than one '
                                            '"resources{N}" parameter.')
    return Request(groups, policy == "isolate", wanted_of_root, root_forbidden, same_subtrees,
                   _limit(parameters.get("limit", ())), nested=version >= 29)


def _limit(values: Sequence[str]) -> int:
    if not values:
        return MAX_CANDIDATES
    if not re.fullmatch(r"[1-9][0-9]{0,18}", values[0], re.ASCII):
        raise Invalid("query.limit", "Invalid query string parameters: limit must be an integer of at least 1, not "
                                     f"{values[0][:40]!r}")
    return int(values[0])


def _groups(parameters: Mapping[str, Sequence[str]], version: int) -> dict[str, Group]:
    pattern = _NAMED if version >= 33 else _NUMBERED
    found: dict[str, dict[str, Any]] = {}
    for key, values in parameters.items():
        if version >= _WHOLE.get(key, 1001):
            continue
        match = pattern.fullmatch(key)
        if match is None or version < _GROUPED[match[1]] or (match[2] and version < 25):
            raise Invalid(f"query.{key[:40]}", f"Invalid query string parameters: Additional properties are not allowed "
                                               f"({key[:80]!r} was unexpected)")
        group = found.setdefault(match[2] or "", {})
        match match[1]:
            case "resources":
                group["resources"] = resources(values[-1])
            case "required":
                group["required"], group["forbidden"] = traits(values, version, key)
            case "member_of":
                group["member_of"], group["not_member_of"] = aggregates(values, version, key)
            case "in_tree":
                group["in_tree"] = in_tree(values[-1])
    if len(found) > MAX_GROUPS:
        raise Invalid("query.groups", f"A request has at most {MAX_GROUPS} groups.")
    return {suffix: Group(**fields) for suffix, fields in found.items()}


def _same_subtrees(values: Sequence[str], groups: Mapping[str, Group]) -> list[frozenset[str]]:
    if len(values) > MAX_GROUPS:
        raise Invalid("query.same_subtree", f"same_subtree may be given at most {MAX_GROUPS} times.")
    found = [frozenset(suffix.strip() for suffix in value.split(",")) for value in values]
    for suffixes in found:
        if "" in suffixes:
            raise Invalid("placement.query.bad_value", "Empty string (unsuffixed group) can not be specified in `same_subtree`")
        if unknown := suffixes - groups.keys():
            raise Invalid("placement.query.bad_value", "Real suffixes should be specified in `same_subtree`: "
                                                       f"{sorted(unknown)} not found in {sorted(groups)}.")
    return found


def _check_groups(groups: Mapping[str, Group], same_subtrees: Sequence[frozenset[str]], version: int) -> None:
    bare = [suffix for suffix, group in groups.items() if not group.resources]
    if version >= 36:
        if len(bare) == len(groups):
            raise Invalid("placement.query.missing_value", "There must be at least one resources or resources[$S] parameter.")
        if lone := sorted(set(bare) - frozenset().union(*same_subtrees)):
            raise Invalid("placement.query.bad_value", "Resourceless suffixed group request should be specified in "
                                                       f"`same_subtree` query param: bad group(s) - {lone}.")
    elif bare or not groups:
        orphans = [suffix for suffix in bare if groups[suffix].required]
        text = ("All traits parameters must be associated with resources.  Found the following orphaned traits keys: "
                + ", ".join(f"required{suffix}" for suffix in orphans)) if orphans else ""
        if not text and (orphans := [suffix for suffix in bare if groups[suffix].member_of or groups[suffix].not_member_of]):
            text = ("All member_of parameters must be associated with resources. Found the following orphaned member_of keys: "
                    + ", ".join(f"member_of{suffix}" for suffix in orphans))
        raise Invalid("query.resources", text or ("All request groups must specify resources." if groups else
                                                  "At least one request group (`resources` or `resources{$S}`) is required: "
                                                  "'resources' is a required property"))
    clashes = [f"required{suffix}: ({', '.join(sorted(any_of))})" for suffix, group in groups.items()
               for any_of in group.required if any_of <= group.forbidden]
    if clashes:
        raise Invalid("query.required", "Conflicting required and forbidden traits found in the following traits keys: "
                                        + ", ".join(sorted(clashes)))
