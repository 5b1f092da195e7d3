"""The root namespace's rules as text: anti-spoofing, security groups, conntrack zones, the way out of external networks.

Pure. Two tables of the cloud's own, `bridge` and `inet`, replaced in one transaction:
    bridge prerouting   a secured port sends from its own addresses only (before anything learns or tracks them)
    bridge input        the host is not there for tenants
    bridge forward      only known links pass anything to each other; the mark says which port a packet is for
    inet prerouting     each tenant's network is a conntrack zone of its own: equal addresses do not meet
    inet forward        security groups. A packet must be let out by its sender's groups and in by its receiver's
    inet postrouting    external networks leave behind the host's own address

What a connection's first direction may send is asked of every packet and not only of the first, so a rule that is taken
away closes what it had let through, with no hunt for entries of conntrack; only replies pass unasked.

The kernel hands bridged packets to `inet` (br_netfilter), where a packet's interface is the bridge: its receiver is known by
the mark, its sender by the MAC address, which anti-spoofing has checked.
"""
import hashlib
import ipaddress
from collections.abc import Iterable, Sequence

from agents.network import names
from agents.network.nft import replacement
from agents.network.wish import Wish, dhcp_subnets, service
from protos.internal.v1.hosts_pb2 import HostPort, HostRule

PROTOCOLS = {"icmp": 1, "igmp": 2, "ipip": 4, "tcp": 6, "egp": 8, "udp": 17, "dccp": 33, "ipv6-encap": 41, "ipv6-route": 43,
             "ipv6-frag": 44, "rsvp": 46, "gre": 47, "esp": 50, "ah": 51, "ipv6-icmp": 58, "icmpv6": 58, "ipv6-nonxt": 59,
             "ipv6-opts": 60, "ospf": 89, "vrrp": 112, "pgm": 113, "sctp": 132, "udplite": 136}
WITH_PORTS = {6: "tcp", 17: "udp", 33: "dccp", 132: "sctp", 136: "udplite"}

Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network


def ruleset(own: names.Names, wish: Wish) -> tuple[str, str]:
    """Return (version, text) of the cloud's tables in the root namespace."""
    return replacement({("bridge", own.table): _bridge_table(wish), ("inet", own.table): _inet_table(own, wish)})


# The bridges: who may send what to whom, packet by packet.

def _bridge_table(wish: Wish) -> list[str]:
    inside = sorted(link for network_id, link in _members(wish) if not wish.networks[network_id].external)
    secured = _secured(wish)
    macs: list[str] = []
    sources: dict[int, list[str]] = {4: [], 6: []}
    adverts: list[str] = []
    chains: list[str] = []
    for port in secured:
        tap, allowed = names.tap(port.id), _sources(port)
        macs += [f"{tap} . {mac}" for mac in allowed]
        for mac, prefixes in allowed.items():
            for prefix in prefixes:
                sources[prefix.version].append(f"{tap} . {mac} . {_text(prefix)}")
        # a neighbour's advertisement speaks for the target that it carries, whatever its source
        targets = ipaddress.collapse_addresses(
            p for prefixes in allowed.values() for p in prefixes if isinstance(p, ipaddress.IPv6Network))
        spans = ", ".join(f"{int(p[0]):#x}" + (f"-{int(p[-1]):#x}" if p.prefixlen < 128 else "") for p in targets)
        chain = f"adverts_{_word(port.id)}"
        chains += [f"chain {chain} {{", f"@th,64,128 != {{ {spans} }} drop", "}"]
        adverts.append(f"{tap} : jump {chain}")
    marks = [f"{names.tap(port.id)} : {mark:#x}" for port, mark in _marked(secured)]
    return [
        *_set("members", "ifname", sorted(link for _, link in _members(wish))),
        *_set("inside", "ifname", inside),
        *_set("secured", "ifname", [names.tap(port.id) for port in secured]),
        *_set("macs", "ifname . ether_addr", macs),
        *_set("sources4", "ifname . ether_addr . ipv4_addr", sources[4], interval=True),
        *_set("sources6", "ifname . ether_addr . ipv6_addr", sources[6], interval=True),
        *_map("marks", "ifname : mark", marks),
        *chains,
        *_map("adverts", "ifname : verdict", adverts),
        *_chain("guard_arp",
                "iifname . arp saddr ether != @macs drop",
                "arp saddr ip 0.0.0.0 accept",    # asks whether an address is taken
                "iifname . arp saddr ether . arp saddr ip @sources4 accept",
                "drop"),
        *_chain("guard4",
                "ip saddr 0.0.0.0 ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept",
                "udp sport 67 udp dport 68 drop",
                "iifname . ether saddr . ip saddr @sources4 accept",
                "drop"),
        *_chain("guard6",
                "icmpv6 type { nd-router-advert, nd-redirect } drop",
                "udp sport 547 udp dport 546 drop",
                "ip6 saddr :: icmpv6 type { nd-neighbor-solicit, nd-router-solicit, mld-listener-report, mld2-listener-report }"
                " accept",
                "icmpv6 type nd-neighbor-advert iifname vmap @adverts",
                "iifname . ether saddr . ip6 saddr @sources6 accept",
                "drop"),
        *_chain("guard",
                "type filter hook prerouting priority -300; policy accept;",
                "iifname != @secured accept",
                "iifname . ether saddr != @macs drop",
                "ether type arp goto guard_arp",
                "ether type ip goto guard4",
                "ether type ip6 goto guard6",
                "drop"),
        *_chain("input",
                "type filter hook input priority -200; policy accept;",
                "iifname @inside drop"),
        *_chain("forward",
                "type filter hook forward priority -200; policy accept;",
                "iifname @members oifname != @members drop",
                "iifname != @members oifname @members drop",
                "iifname != @members accept",
                "oifname @secured ether type != { ip, ip6, arp } drop",
                "meta mark set 0",
                "meta mark set oifname map @marks"),
    ]


def _members(wish: Wish) -> list[tuple[str, str]]:
    """(network id, link) of everything that belongs in one of the cloud's bridges."""
    found = [(port.network_id, names.tap(port.id)) for port in wish.ports.values()]
    found += [(network.id, names.service_veth(network.id)) for network in wish.networks.values() if service(network)]
    found += [(network_id, names.router_veth(port_id)) for network_id, port_id in wish.router_links()]
    return found


def _secured(wish: Wish) -> list[HostPort]:
    return [port for _, port in sorted(wish.ports.items()) if port.port_security]


def _marked(secured: Iterable[HostPort]) -> list[tuple[HostPort, int]]:
    ports = {port.id: port for port in secured}
    return [(ports[port_id], mark) for port_id, mark in sorted(names.numbers(ports, 1 << 32).items())]


def _sources(port: HostPort) -> dict[str, list[Prefix]]:
    """The prefixes that each MAC of the port may send from, none overlapping; for version 6 its link-local address too."""
    found: dict[str, list[Prefix]] = {port.mac: [ipaddress.ip_network(address.ip) for address in port.addresses]}
    for pair in port.allowed_pairs:
        found.setdefault(pair.mac or port.mac, []).append(ipaddress.ip_network(pair.ip, strict=False))
    allowed: dict[str, list[Prefix]] = {}
    for mac, prefixes in found.items():
        four = [prefix for prefix in prefixes if isinstance(prefix, ipaddress.IPv4Network)]
        six = [prefix for prefix in prefixes if isinstance(prefix, ipaddress.IPv6Network)]
        six.append(ipaddress.IPv6Network(_link_local(mac)))
        allowed[mac] = [*ipaddress.collapse_addresses(four), *ipaddress.collapse_addresses(six)]
    return allowed


def _link_local(mac: str) -> ipaddress.IPv6Address:
    """The address that an interface with this MAC gives itself (RFC 4291, appendix A)."""
    octets = bytearray.fromhex(mac.replace(":", ""))
    octets[0] ^= 2
    return ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + bytes(octets[:3]) + b"\xff\xfe" + bytes(octets[3:]))


# Connections: security groups, zones, the way out.

def _inet_table(own: names.Names, wish: Wish) -> list[str]:
    tenants = {network.id: names.bridge(network.id) for network in wish.networks.values() if not network.external}
    outside = [network for network in wish.networks.values() if network.external]
    prefixes = [ipaddress.ip_network(subnet.cidr, strict=False) for network in outside for subnet in network.subnets]
    services = [f"{names.bridge(network.id)} . {subnet.dhcp_ip}" for network in wish.networks.values() if service(network)
                for subnet in dhcp_subnets(network)]
    secured = _secured(wish)
    egress = [f"{bridge} . {mac} : jump out_{_groups_word(groups)}" for (bridge, mac), groups in _senders(secured).items()]
    ingress = [f"{mark:#x} : goto in_{_groups_word(port.security_group_ids)}" for port, mark in _marked(secured)]
    # a port in an external network is also reached by the host itself, which routes and does not bridge: known by address
    routed = [f"{names.bridge(port.network_id)} . {address.ip} : goto in_{_groups_word(port.security_group_ids)}"
              for port in secured if port.network_id not in tenants for address in port.addresses if ":" not in address.ip]
    zones = [f"{tenants[network_id]} : {zone}"
             for network_id, zone in sorted(names.numbers(tenants, 1 << 16, own.cloud).items())]
    return [
        *_set("tenants", "ifname", sorted(tenants.values())),
        *_set("externals", "ifname", [names.bridge(network.id) for network in outside]),
        *_set("outside4", "ipv4_addr", _collapsed(prefixes, 4), interval=True),
        *_set("outside6", "ipv6_addr", _collapsed(prefixes, 6), interval=True),
        *_set("services", "ifname . ipv4_addr", services),
        *_groups(wish, secured),
        *_map("ingress", "mark : verdict", ingress),
        *_chain("deliver", "meta mark vmap @ingress", "accept"),
        *_gates(wish, secured),
        *_map("egress", "ifname . ether_addr : verdict", egress),
        *_map("routed", "ifname . ipv4_addr : verdict", routed),
        # earlier than defragmentation (-400), which keeps the zones apart too
        *_chain("zones",
                "type filter hook prerouting priority -450; policy accept;",
                *([f"ct zone set iifname map {{ {', '.join(zones)} }}"] if zones else [])),
        *_chain("bridged",
                "ct state related accept",
                "ct direction reply accept",
                "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit, nd-router-advert, mld-listener-query,"
                " mld-listener-report, mld2-listener-report } accept",
                # the network's own services, which have no mark, and nobody else's
                "meta mark 0 udp sport 68 udp dport 67 accept",
                "meta mark 0 iifname . ip daddr @services udp dport { 53, 67 } accept",
                "meta mark 0 iifname . ip daddr @services tcp dport { 53, 80 } accept",
                "meta mark 0 ip daddr 169.254.169.254 tcp dport 80 accept",
                "iifname . ip saddr @services udp sport 67 udp dport 68 accept",
                "iifname . ether saddr vmap @egress",
                "goto deliver"),
        *_chain("from_external",
                "ct state related accept",
                "ct direction reply accept",
                "iifname . ether saddr vmap @egress"),
        *_chain("to_external",
                "ct state related accept",
                "ct direction reply accept",
                "oifname . ip daddr vmap @routed"),
        *_chain("forward",
                "type filter hook forward priority 0; policy accept;",
                "iifname @tenants oifname != @tenants drop",
                "iifname @tenants goto bridged",
                "oifname @tenants drop",
                "iifname @externals oifname @externals goto bridged",
                "iifname @externals ip saddr != @outside4 drop",
                "iifname @externals ip6 saddr != @outside6 drop",
                "iifname @externals goto from_external",
                "oifname @externals goto to_external"),
        *_chain("input",
                "type filter hook input priority 0; policy accept;",
                "iifname @externals goto from_external"),
        *_chain("output",
                "type filter hook output priority 0; policy accept;",
                "oifname @externals goto to_external"),
        *_chain("outward",
                "type nat hook postrouting priority 100; policy accept;",
                "oifname @tenants accept",
                "oifname @externals accept",
                "ip saddr @outside4 ip daddr != @outside4 masquerade"),
    ]


def _senders(secured: Iterable[HostPort]) -> dict[tuple[str, str], set[str]]:
    """(bridge, MAC) -> groups of whoever may send with it. Ports that are allowed one MAC in common send by the groups of all."""
    senders: dict[tuple[str, str], set[str]] = {}
    for port in secured:
        for mac in sorted({port.mac} | {pair.mac for pair in port.allowed_pairs if pair.mac}):
            senders.setdefault((names.bridge(port.network_id), mac), set()).update(port.security_group_ids)
    return senders


def _gates(wish: Wish, secured: Sequence[HostPort]) -> list[str]:
    """A pair of chains for each set of groups that somebody has: what it may receive is accepted, what it may send delivered."""
    lines: list[str] = []
    wanted = [*(set(port.security_group_ids) for port in secured), *_senders(secured).values()]
    for word, groups in sorted({_groups_word(groups): groups for groups in wanted}.items()):
        known = [_word(group_id) for group_id in sorted(groups) if group_id in wish.groups]
        lines += _chain(f"in_{word}", *(f"jump receive_{group}" for group in known), "drop")
        lines += _chain(f"out_{word}", *(f"jump send_{group}" for group in known), "drop")
    return lines


def _groups(wish: Wish, secured: Sequence[HostPort]) -> list[str]:
    """The groups that some port has: their rules, written once each, and the members of the groups that these name."""
    used = sorted({group_id for port in secured for group_id in port.security_group_ids if group_id in wish.groups})
    rules = {group_id: list(wish.groups[group_id].rules) for group_id in used}
    lines: list[str] = []
    for remote in sorted({rule.remote_group_id for group_rules in rules.values() for rule in group_rules} & wish.groups.keys()):
        members = [ipaddress.ip_network(member) for member in wish.groups[remote].members if _is_address(member)]
        lines += _set(f"members4_{_word(remote)}", "ipv4_addr", _collapsed(members, 4), interval=True)
        lines += _set(f"members6_{_word(remote)}", "ipv6_addr", _collapsed(members, 6), interval=True)
    known = wish.groups.keys()
    lines += _chain("deliver")    # named before it is filled: the groups' chains point at it
    for group_id, group_rules in rules.items():
        received = dict.fromkeys(match for rule in group_rules if rule.ingress and (match := rule_match(rule, known)))
        sent = dict.fromkeys(match for rule in group_rules if not rule.ingress and (match := rule_match(rule, known)))
        lines += _chain(f"receive_{_word(group_id)}", *(f"{match} accept" for match in received))
        lines += _chain(f"send_{_word(group_id)}", *(f"{match} goto deliver" for match in sent))
    return lines


def rule_match(rule: HostRule, groups: Iterable[str]) -> str | None:
    """Return what a packet must be for the rule to let it through; None for a rule that can match nothing."""
    version = 6 if rule.ethertype == "IPv6" else 4
    side = ("ip6 " if version == 6 else "ip ") + ("saddr" if rule.ingress else "daddr")
    parts = [f"meta nfproto ipv{version}"]
    if rule.remote_group_id:
        if rule.remote_group_id not in groups:
            return None
        parts = [f"{side} @members{version}_{_word(rule.remote_group_id)}"]
    elif rule.remote_cidr:
        try:
            remote = ipaddress.ip_network(rule.remote_cidr, strict=False)
        except ValueError:
            return None
        if remote.version != version:
            return None
        if remote.prefixlen:
            parts = [f"{side} {_text(remote)}"]
    if rule.protocol not in ("", "any"):
        number = PROTOCOLS.get(rule.protocol.lower())
        if number is None:
            if not (rule.protocol.isascii() and rule.protocol.isdigit() and int(rule.protocol) < 256):
                return None
            number = int(rule.protocol)
        parts += _protocol_match(58 if version == 6 and number == 1 else number, rule.port_min, rule.port_max)
    return " ".join(parts)


def _protocol_match(number: int, low: int, high: int) -> list[str]:
    if number in (1, 58) and low >= 0:
        name = "icmp" if number == 1 else "icmpv6"
        return [f"{name} type {low & 0xff}"] + ([f"{name} code {high & 0xff}"] if high >= 0 else [])
    if number in WITH_PORTS and (low > 0 or high > 0):
        low, high = max(low, 0), min(high if high > 0 else 65535, 65535)
        return [f"{WITH_PORTS[number]} dport {low}-{high}" if low != high else f"{WITH_PORTS[number]} dport {low}"]
    return [f"meta l4proto {number}"]


# Words of the language.

def _groups_word(group_ids: Iterable[str]) -> str:
    return hashlib.sha256(" ".join(sorted(set(group_ids))).encode()).hexdigest()[:24]


def _word(object_id: str) -> str:
    return object_id.replace("-", "_")


def _text(prefix: Prefix) -> str:
    return str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _collapsed(prefixes: Iterable[Prefix], version: int) -> list[str]:
    if version == 4:
        return [_text(p) for p in ipaddress.collapse_addresses(p for p in prefixes if isinstance(p, ipaddress.IPv4Network))]
    return [_text(p) for p in ipaddress.collapse_addresses(p for p in prefixes if isinstance(p, ipaddress.IPv6Network))]


def _set(name: str, kind: str, elements: Sequence[str], interval: bool = False) -> list[str]:
    return [f"set {name} {{", f"type {kind}", *(["flags interval"] if interval else []),
            *([f"elements = {{ {', '.join(elements)} }}"] if elements else []), "}"]


def _map(name: str, kind: str, elements: Sequence[str]) -> list[str]:
    return [f"map {name} {{", f"type {kind}", *([f"elements = {{ {', '.join(elements)} }}"] if elements else []), "}"]


def _chain(name: str, *rules: str) -> list[str]:
    return [f"chain {name} {{", *rules, "}"]

