"""A router: its namespace's links, addresses, routes and rules, and the hunt for connections that its rules no longer mean.

The rules are text made by a pure function. Floating addresses stand on the gateway's link, /32 each, and are translated both
ways; what else leaves by the gateway takes the gateway's address. From outside nothing enters that no floating address lets in.
"""
import contextlib
import ipaddress
import logging
from typing import Any

from pyroute2 import Conntrack
from pyroute2.netlink.exceptions import NetlinkError

from agents.network import kernel, names
from agents.network.dhcp import METADATA_IP
from agents.network.kernel import Netlink
from agents.network.nft import Nft, replacement
from agents.network.wish import Wish
from protos.internal.v1.hosts_pb2 import HostRouter

log = logging.getLogger(__name__)

#: Answer for an address only on the link that has it; sources are checked against the routes; no redirects either way.
PARAMETERS = {"ip_forward": 1, "conf/all/rp_filter": 1, "conf/all/arp_ignore": 1, "conf/all/arp_announce": 2,
              "conf/all/send_redirects": 0, "conf/default/send_redirects": 0, "conf/all/accept_redirects": 0}


def translations(router: HostRouter) -> tuple[dict[str, str], str]:
    """Return fixed -> floating address, of version 4, and the gateway's own address, "" without a gateway."""
    if not router.HasField("gateway"):
        return {}, ""
    own = next((address.partition("/")[0] for address in router.gateway.addresses if ":" not in address), "")
    outward: dict[str, str] = {}
    for floating in router.floating:
        if ":" not in floating.floating_ip and ":" not in floating.fixed_ip:
            outward.setdefault(floating.fixed_ip, floating.floating_ip)
    return outward, own


def ruleset(table: str, router: HostRouter) -> tuple[str, str]:
    """Return (version, text) of the rules in the router's namespace."""
    outward, own = translations(router)
    gateway = names.gateway_link(router.gateway.port_id) if router.HasField("gateway") else ""
    inward = {floating.floating_ip: floating.fixed_ip for floating in router.floating
              if ":" not in floating.floating_ip and ":" not in floating.fixed_ip} if gateway else {}
    lines = [
        *_map("inward", inward),
        *_map("outward", outward),
        "chain arriving {", "type nat hook prerouting priority -100; policy accept;",
        "dnat to ip daddr map @inward", "}",
    ]
    leaving, through, taken = [], [], []
    if gateway:
        leaving.append(f'oifname "{gateway}" snat to ip saddr map @outward')
        if own and router.gateway.snat:
            leaving.append(f'oifname "{gateway}" ip saddr != {own} snat to {own}')
        if own:
            # between two of its own by a floating address: the answer must come back by the router
            leaving.append(f'ct status dnat iifname != "{gateway}" snat to ip saddr map @outward')
            leaving.append(f'ct status dnat iifname != "{gateway}" snat to {own}')
        if router.gateway.snat:
            through = [f'iifname "{gateway}" ct state established,related accept', f'iifname "{gateway}" ct status dnat accept',
                       f'iifname "{gateway}" drop']
        taken = [f'iifname "{gateway}" ip daddr {METADATA_IP} drop']
    lines += ["chain leaving {", "type nat hook postrouting priority 100; policy accept;", *leaving, "}",
              "chain through {", "type filter hook forward priority 0; policy accept;", *through, "}",
              "chain taken {", "type filter hook input priority 0; policy accept;", *taken, "}"]
    return replacement({("ip", table): lines})


def _map(name: str, pairs: dict[str, str]) -> list[str]:
    elements = ", ".join(f"{key} : {value}" for key, value in pairs.items())
    return [f"map {name} {{", "type ipv4_addr : ipv4_addr", *([f"elements = {{ {elements} }}"] if elements else []), "}"]


def links(router: HostRouter, wish: Wish) -> list[tuple[str, str, str, str, set[str]]]:
    """(network id, port id, link in the namespace, MAC, addresses) of each of the router's ends in this host's networks."""
    found = [(interface.network_id, interface.port_id, names.router_link(interface.port_id), interface.mac, {interface.address})
             for interface in router.interfaces if interface.network_id in wish.networks]
    gateway = router.gateway
    if router.HasField("gateway") and gateway.network_id in wish.networks:
        floating = {f"{item.floating_ip}/{128 if ':' in item.floating_ip else 32}" for item in router.floating}
        found.append((gateway.network_id, gateway.port_id, names.gateway_link(gateway.port_id), gateway.mac,
                      {*gateway.addresses, *floating}))
    return found


def furnish(own: names.Names, router: HostRouter, wish: Wish) -> None:
    """Make the namespace, which the calling thread is in and whose links are there, like the router."""
    with Netlink() as netlink:
        for name, value in PARAMETERS.items():
            kernel.set_parameter(f"ipv4/{name}", value)
        everything = [address for *_, addresses in links(router, wish) for address in addresses]
        six = any(":" in address for address in everything)
        kernel.set_parameter("ipv6/conf/default/disable_ipv6", 0 if six else 1)
        kernel.set_parameter("ipv6/conf/all/forwarding", 1 if six else 0)
        # rules before addresses: nothing is answered for before it is translated
        version, text = ruleset(own.table, router)
        with Nft() as nft:
            changed = not nft.has("ip", own.table, version)
            if changed:
                nft.run(text)
        there = netlink.links()
        netlink.ensure_addresses(there["lo"], {"127.0.0.1/8", f"{METADATA_IP}/32"})
        netlink.change(there["lo"], up=True)
        for network_id, _, name, mac, addresses in links(router, wish):
            link = there[name]
            kernel.set_parameter(f"ipv6/conf/{name}/disable_ipv6", 0 if six else 1)
            netlink.change(link, mac=mac, mtu=wish.networks[network_id].mtu)
            netlink.change(link, up=True)
            for address in netlink.ensure_addresses(link, {_canonical(address) for address in addresses}):
                if ":" not in address:
                    # somebody may remember another owner; that nobody listens yet is no failure
                    with contextlib.suppress(OSError):
                        kernel.announce(link, address.partition("/")[0])
        for (target, hop), why in netlink.ensure_routes(_routes(router)).items():
            log.warning("router %s: no route to %s by %s: %s", router.id, target, hop, why)
    if changed:
        forget_connections(router)


def _canonical(address: str) -> str:
    return str(ipaddress.ip_interface(address))


def _routes(router: HostRouter) -> set[tuple[str, str]]:
    wanted = {(str(ipaddress.ip_network(route.destination, strict=False)), route.next_hop) for route in router.routes}
    if router.HasField("gateway") and router.gateway.gateway_ip:
        hop = router.gateway.gateway_ip
        wanted.add(("::/0" if ":" in hop else "0.0.0.0/0", hop))
    return wanted


def forget_connections(router: HostRouter) -> None:
    """Remove the connections of the calling thread's namespace that are translated otherwise than the router would now."""
    outward, own = translations(router)
    inward = {floating.floating_ip: floating.fixed_ip for floating in router.floating}
    table: Any = Conntrack()
    try:
        for entry in list(table.dump_entries()):
            if is_outdated(entry.tuple_orig, entry.tuple_reply, inward, outward, own):
                with contextlib.suppress(NetlinkError):
                    table.delete(entry)
    finally:
        table.close()


def is_outdated(there: Any, back: Any, inward: dict[str, str], outward: dict[str, str], own: str) -> bool:
    """Whether a connection, by its tuples there and back, goes to or comes from an address that it may not any more.

    One that left by the gateway's own address may go on when its sender gets a floating one.
    """
    if inward.get(there.daddr, there.daddr) != back.saddr:
        return True
    return back.daddr not in (there.saddr, outward.get(there.saddr), own)
