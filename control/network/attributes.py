"""What the attributes of requests may hold, the same for every noun.

Every text from outside has a limit, every address is kept in its canonical form, and an attribute that only the cloud
writes is refused rather than passed over.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from control.kernel import clock
from control.kernel.caller import Caller
from control.kernel.errors import Conflict, Denied, Invalid
from control.kernel.naming import field_name
from control.network.model import MAX_TAGS

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)

#: Attributes that have one value only; a request may name them with that value.
FIXED: dict[str, tuple[Any, ...]] = {
    "qos_policy_id": (),
    "ipv4_address_scope": (),
    "ipv6_address_scope": (),
    "subnetpool_id": (),
    "segment_id": (),
    "flavor_id": (),
    "remote_address_group_id": (),
    "provider_physical_network": (),
    "ipv6_ra_mode": (),
    "ipv6_address_mode": (),
    "extra_dhcp_opts": (),
    "service_types": (),
    "dns_publish_fixed_ip": (False,),
    "distributed": (False,),
    "ha": (False,),
    "vlan_transparent": (False,),
    "use_default_subnetpool": (False,),
    "stateful": (True,),
    "binding_vnic_type": ("normal", ""),
}


def body(request: Any, noun: str) -> Any:
    """The resource that a request carries. Raises Invalid where it carries none."""
    if not request.HasField(noun):
        raise Invalid(f"network.{noun}", f"The request body must have the key {noun!r}.")
    return getattr(request, noun)


def given(resource: Message, mask: FieldMask, *, settable: Iterable[str], verb: str) -> set[str]:
    """The names of the fields that a request sets, null ones included.

    Raises Invalid for a field that requests may not set, or whose one value is another.
    """
    names = {path.partition(".")[0] for path in mask.paths} or {field.name for field, _ in resource.ListFields()}
    allowed = frozenset(settable)
    for name in sorted(names - allowed):
        field = resource.DESCRIPTOR.fields_by_name.get(name)
        spelled = field_name(field) if field is not None else name
        if name not in FIXED or field is None:
            raise Invalid(f"network.{name}", f"Attribute '{spelled}' not allowed in {verb}")
        value = getattr(resource, name)
        present = len(value) > 0 if field.is_repeated else not field.has_presence or resource.HasField(name)
        if present and value not in FIXED[name]:
            offered = " or ".join(repr(item) for item in FIXED[name] if item != "") or "null"
            raise Invalid(
                f"network.{name}", f"'{spelled}' cannot be set here: the only value that this cloud offers is {offered}."
            )
    return names & allowed


def admin_only(caller: Caller, names: Iterable[str], given_names: Iterable[str], noun: str) -> None:
    """Raise Denied where the caller sets what only admins may."""
    refused = sorted(set(names) & set(given_names))
    if refused and not caller.is_admin:
        raise Denied(f"network.{noun}.admin", f"Only an admin may set {', '.join(refused)} of a {noun}.")


def check_texts(resource: Any, *names: str, limit: int = 255) -> None:
    """Raise Invalid for a text that is too long or holds control characters."""
    for name in names:
        text = getattr(resource, name)
        if len(text) > limit:
            raise Invalid(f"network.{name}", f"Invalid input for {name}: it has {len(text)} characters, more than {limit}.")
        if any(ord(char) < 32 for char in text):
            raise Invalid(f"network.{name}", f"Invalid input for {name}: it holds control characters.")


def check_count(what: str, items: Any, limit: int) -> None:
    if len(items) > limit:
        raise Invalid(f"network.{what}", f"Invalid input for {what}: {len(items)} items, more than {limit}.")


def tags(wanted: Iterable[str]) -> list[str]:
    """Labels without repeats, sorted. Raises Invalid for a bad one or too many."""
    kept = sorted(set(wanted))
    check_count("tags", kept, MAX_TAGS)
    for tag in kept:
        if not 1 <= len(tag) <= 60 or "/" in tag or "," in tag:
            raise Invalid("network.tags", f"Invalid tag {tag[:80]!r}: it takes 1 to 60 characters, no slash, no comma.")
    return kept


def mac(text: str) -> str:
    """A unicast MAC in lower case. Raises Invalid."""
    lowered = text.lower().replace("-", ":")
    if not _MAC.fullmatch(lowered) or int(lowered[:2], 16) & 1 or lowered == "00:00:00:00:00:00":
        raise Invalid(
            "network.mac_address", f"Invalid input for mac_address: {text[:40]!r} is not the MAC address of one interface."
        )
    return lowered


def hostname(text: str) -> str:
    """A DNS label, or "". Raises Invalid."""
    if text and not _HOSTNAME.fullmatch(text):
        raise Invalid(
            "network.dns_name", f"Invalid input for dns_name: {text[:80]!r} is not one label of letters, digits and hyphens."
        )
    return text


def address(text: str, what: str) -> Address:
    """Raises Invalid where the text is no address."""
    try:
        if "%" in text:
            raise ValueError
        return ipaddress.ip_address(text)
    except ValueError:
        raise Invalid(f"network.{what}", f"Invalid input for {what}: '{text[:60]}' is not a valid IP address.") from None


def prefix(text: str, what: str, *, strict: bool = True) -> Prefix:
    """Raises Invalid where the text is no CIDR, or, if strict, has host bits."""
    try:
        if "%" in text:
            raise ValueError
        found = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise Invalid(f"network.{what}", f"Invalid input for {what}: '{text[:60]}' is not a valid IP subnet.") from None
    if strict and ipaddress.ip_interface(text).ip != found.network_address:
        raise Invalid(
            f"network.{what}",
            f"Invalid input for {what}: '{text[:60]}' is not a recognized IP subnet cidr, '{found}' is recommended.",
        )
    return found


def stamp(resource: Any) -> None:
    """Say that a resource is new or changed now."""
    resource.revision_number += 1
    moment = clock.now()
    if not resource.HasField("created_at"):
        resource.created_at.CopyFrom(moment)
    resource.updated_at.CopyFrom(moment)


def in_use(noun: str, identifier: str, why: str) -> Conflict:
    """The Conflict of a deletion that something stands against."""
    return Conflict(f"network.{noun}.in_use", f"Unable to complete operation on {noun} {identifier}: {why}")
