"""What a security group's rule may say, in one canonical form.

Two rules with one meaning are equal here, however they were spelled: "tcp" and 6, a prefix with and without host bits.
"""

import ipaddress
import uuid

from google.protobuf.struct_pb2 import Value

from control.kernel.errors import Invalid
from control.network.attributes import check_texts, prefix
from protos.network.v1.security_groups_pb2 import SecurityGroupRule

#: Names of protocols with their numbers.
PROTOCOLS = {
    "ah": 51,
    "dccp": 33,
    "egp": 8,
    "esp": 50,
    "gre": 47,
    "icmp": 1,
    "icmpv6": 58,
    "igmp": 2,
    "ipip": 4,
    "ipv6-encap": 41,
    "ipv6-frag": 44,
    "ipv6-icmp": 58,
    "ipv6-nonxt": 59,
    "ipv6-opts": 60,
    "ipv6-route": 43,
    "ospf": 89,
    "pgm": 113,
    "rsvp": 46,
    "sctp": 132,
    "tcp": 6,
    "udp": 17,
    "udplite": 136,
    "vrrp": 112,
}
_PORTED, _ICMP = frozenset({6, 17, 33, 132, 136}), frozenset({1, 58})


def checked_rule(wish: SecurityGroupRule) -> SecurityGroupRule:
    """A rule in canonical form. Raises Invalid where it means nothing."""
    check_texts(wish, "description")
    if wish.direction not in ("ingress", "egress"):
        raise Invalid("network.direction", f"Invalid input for direction: '{wish.direction[:40]}' is not ingress or egress.")
    ethertype = {"": "IPv4", "ipv4": "IPv4", "ipv6": "IPv6"}.get(wish.ethertype.lower())
    if ethertype is None:
        raise Invalid(
            "network.ethertype",
            f"Security group rule for ethertype '{wish.ethertype[:40]}' not supported. Allowed values are IPv4 and IPv6.",
        )
    protocol = _protocol(wish.protocol)
    number = _number(protocol)
    if number == PROTOCOLS["ipv6-icmp"] and ethertype == "IPv4":
        raise Invalid("network.protocol", f"Invalid ethertype IPv4 for protocol {protocol}.")
    rule = new_rule("", wish.direction, ethertype, protocol=protocol, description=wish.description)
    if wish.remote_ip_prefix and wish.remote_group_id:
        raise Invalid("network.remote", "Only remote_ip_prefix or remote_group_id may be provided.")
    if wish.remote_ip_prefix:
        cidr = prefix(wish.remote_ip_prefix, "remote_ip_prefix", strict=False)
        if (cidr.version == 4) != (ethertype == "IPv4"):
            raise Invalid(
                "network.remote_ip_prefix", f"Conflicting value ethertype {ethertype} for CIDR {wish.remote_ip_prefix[:60]}"
            )
        interface = ipaddress.ip_interface(wish.remote_ip_prefix)
        rule.remote_ip_prefix, rule.normalized_cidr = str(interface), str(cidr)
    elif wish.remote_group_id:
        rule.remote_group_id = wish.remote_group_id
    _check_range(wish, protocol, number)
    for name in ("port_range_min", "port_range_max"):
        if wish.HasField(name):
            setattr(rule, name, getattr(wish, name))
    if rule.HasField("port_range_min") and not rule.HasField("port_range_max") and number in _PORTED:
        rule.port_range_max = rule.port_range_min
    return rule


def _check_range(wish: SecurityGroupRule, protocol: str, number: int) -> None:
    low = wish.port_range_min if wish.HasField("port_range_min") else None
    high = wish.port_range_max if wish.HasField("port_range_max") else None
    if low is None and high is None:
        return
    if number in _PORTED:
        for port in (low, high):
            if port is not None and not 0 <= port <= 65535:
                raise Invalid("network.port_range", f"Invalid value for port {port}: it takes 0 to 65535.")
        if low is None:
            raise Invalid("network.port_range", "For TCP/UDP protocols, port_range_min must be <= port_range_max: send both.")
        if high is not None and low > high:
            raise Invalid("network.port_range", "For TCP/UDP protocols, port_range_min must be <= port_range_max")
    elif number in _ICMP:
        if low is None:
            raise Invalid(
                "network.port_range", f"ICMP code (port-range-max) {high} is provided but ICMP type (port-range-min) is missing."
            )
        for what, value in (("type (port-range-min)", low), ("code (port-range-max)", high)):
            if value is not None and not 0 <= value <= 255:
                raise Invalid("network.port_range", f"Invalid value for ICMP {what} {value}. It must be 0 to 255.")
    elif not protocol:
        raise Invalid("network.port_range", "Must also specify protocol if port range is given.")
    else:
        raise Invalid("network.port_range", f"Port range cannot be given for protocol {protocol}: it has no ports.")


def _protocol(value: Value) -> str:
    """A protocol's name or number as text, "" for any. Raises Invalid."""
    match value.WhichOneof("kind"):
        case None | "null_value":
            return ""
        case "number_value":
            text = str(int(value.number_value)) if value.number_value.is_integer() else str(value.number_value)
        case "string_value":
            text = value.string_value.lower()
        case _:
            text = "of another type"
    if text in ("any", ""):
        return ""
    if text in PROTOCOLS or (text.isascii() and text.isdecimal() and len(text) <= 3 and int(text) <= 255):
        return "ipv6-icmp" if text == "icmpv6" else text
    raise Invalid(
        "network.protocol",
        f"Security group rule protocol {text[:40]} not supported. Only protocol values "
        f"{', '.join(sorted(PROTOCOLS))} and integer representations [0 to 255] are supported.",
    )


def new_rule(
    project_id: str, direction: str, ethertype: str, *, protocol: str = "", remote_group_id: str = "", description: str = ""
) -> SecurityGroupRule:
    """A rule with an id of its own, for a group of the project's."""
    rule = SecurityGroupRule(
        id=str(uuid.uuid4()),
        project_id=project_id,
        tenant_id=project_id,
        direction=direction,
        ethertype=ethertype,
        description=description,
    )
    if protocol:
        rule.protocol.string_value = protocol
    if remote_group_id:
        rule.remote_group_id = remote_group_id
    return rule


def meaning(rule: SecurityGroupRule) -> tuple:
    """What a rule lets through, however it is spelled."""
    low = rule.port_range_min if rule.HasField("port_range_min") else None
    high = rule.port_range_max if rule.HasField("port_range_max") else None
    protocol = rule.protocol.string_value
    return (
        rule.direction,
        rule.ethertype,
        _number(protocol),
        low,
        high,
        rule.normalized_cidr,
        rule.remote_group_id,
    )


def _number(protocol: str) -> int:
    """A protocol's number; -1 for any."""
    return int(protocol) if protocol.isdecimal() else PROTOCOLS.get(protocol, -1)
