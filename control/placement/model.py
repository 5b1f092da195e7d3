"""What providers, inventories and names are, in plain functions: limits, defaults and checks of what comes from outside."""
import math
import re
import uuid
from collections.abc import Mapping
from typing import Any

import os_resource_classes
import os_traits

from control.kernel.errors import Invalid
from protos.internal.v1.fleet_pb2 import Provider, ProviderInventory, Usage

STANDARD_CLASSES: tuple[str, ...] = tuple(os_resource_classes.STANDARDS)
STANDARD_TRAITS: frozenset[str] = frozenset(os_traits.get_traits())

#: Its inventory serves every tree that has a provider in one of its aggregates, too.
SHARING: str = os_traits.MISC_SHARES_VIA_AGGREGATE

#: What a consumer belongs to that was written by a microversion without projects and users.
NOBODY = str(uuid.UUID(int=0))

#: Units of one inventory or allocation at most; of what may be allocated of one inventory, over-committed, in all.
MAX_AMOUNT, MAX_CAPACITY = 2**31 - 1, 2**40
MAX_RATIO = 3.40282e38

#: Providers of one tree, and levels of it. A tree is moved, or deleted with its host, in one commit: three keys a provider.
MAX_TREE, MAX_DEPTH = 40, 10

#: Of one provider.
MAX_CLASSES, MAX_TRAITS, MAX_AGGREGATES = 100, 1000, 200

#: Of one request.
MAX_PROVIDERS, MAX_CONSUMERS = 40, 100

_NAME = re.compile(r"[A-Z0-9_]{1,255}", re.ASCII)
_CUSTOM = re.compile(r"CUSTOM_[A-Z0-9_]+", re.ASCII)


def capacity(inventory: ProviderInventory) -> int:
    """How much of an inventory may be allocated: (total - reserved) times the ratio, floored, from 0 to MAX_CAPACITY."""
    return int(min(max((inventory.total - inventory.reserved) * inventory.allocation_ratio, 0), MAX_CAPACITY))


def generation(provider: Provider, usage: Usage | None) -> int:
    """A provider's generation in the API: how often it was written and how often allocations of it were."""
    return provider.generation + (usage.generation if usage is not None else 0)


def uuid_of(text: str, what: str) -> str:
    """A UUID in its usual spelling. Raises Invalid where the text is none."""
    try:
        return str(uuid.UUID(text)) if 32 <= len(text) <= 36 else _no_uuid(text, what)
    except ValueError:
        return _no_uuid(text, what)


def _no_uuid(text: str, what: str) -> str:
    raise Invalid(f"uuid.{what}", f"{what}: {text[:40]!r} is not a UUID.")


def bounded(text: str, what: str, longest: int = 255) -> str:
    """A text of 1 to so many characters. Raises Invalid otherwise."""
    if not 1 <= len(text) <= longest:
        raise Invalid(f"text.{what}", f"{what} must have 1 to {longest} characters.")
    return text


def upper_name(text: str, what: str) -> str:
    """A name of capital letters, digits and underscores. Raises Invalid otherwise."""
    if not _NAME.fullmatch(text):
        raise Invalid(f"name.{what}", f"{what}: {text[:40]!r} is not of 'A' to 'Z', '0' to '9' and '_', at most 255 characters.")
    return text


def custom_name(text: str, what: str) -> str:
    """A name that an operator may give. Raises Invalid otherwise."""
    if len(text) > 255 or not _CUSTOM.fullmatch(text):
        raise Invalid(f"name.{what}", f"The {what} {text[:40]!r} must be no longer than 255 characters, start with the prefix "
                                      '"CUSTOM_" and use the characters "A"-"Z", "0"-"9" and "_".')
    return text


def amounts_of(resources: Mapping[str, int], where: str) -> dict[str, int]:
    """Amounts by resource class, each 1 to MAX_AMOUNT. Raises Invalid where there are none or one is out of range."""
    if not 1 <= len(resources) <= MAX_CLASSES:
        raise Invalid("resources", f"{where}: resources must name 1 to {MAX_CLASSES} resource classes.")
    for name, amount in resources.items():
        upper_name(name, "resource class")
        if not 1 <= amount <= MAX_AMOUNT:
            raise Invalid("resources.amount", f"{where}: {amount} of {name} is not within 1 to {MAX_AMOUNT}.")
    return dict(resources)


def inventory_of(request: Any, resource_class: str, may_be_empty: bool) -> ProviderInventory:
    """An inventory of the fields that a request gives for it, with the defaults of the others. Raises Invalid.

    Args:
      may_be_empty: all of it may be reserved.
    """
    upper_name(resource_class, "resource class")
    made = ProviderInventory(total=request.total, min_unit=1, max_unit=MAX_AMOUNT, step_size=1, allocation_ratio=1.0)
    for field in ("reserved", "min_unit", "max_unit", "step_size", "allocation_ratio"):
        if request.HasField(field):
            setattr(made, field, getattr(request, field))
    for field, least in (("total", 1), ("reserved", 0), ("min_unit", 1), ("max_unit", 1), ("step_size", 1)):
        if not least <= getattr(made, field) <= MAX_AMOUNT:
            raise Invalid(f"inventory.{field}", f"{resource_class}: {field} must be {least} to {MAX_AMOUNT}, not "
                                                f"{getattr(made, field)}.")
    if not (math.isfinite(made.allocation_ratio) and 0 <= made.allocation_ratio <= MAX_RATIO):
        raise Invalid("inventory.allocation_ratio", f"{resource_class}: allocation_ratio must be 0 to {MAX_RATIO}.")
    if made.reserved > made.total or (not may_be_empty and capacity(made) == 0):
        raise Invalid("inventory.reserved", f"Invalid inventory for '{resource_class}': the reserved value is greater than "
                                            f"{'' if may_be_empty else 'or equal to '}total.")
    return made
