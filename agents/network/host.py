"""The real host's networking: makes bridges, taps, namespaces, rules and services like the host's objects.

Invariants
    * One thread touches the kernel (`_worker`), one call of apply at a time; the event loop only serves sockets.
    * What has been made is looked at again when its wish changes, when the process is new, and every LOOK seconds; else a call
      costs a comparison. What is right is not touched.
    * Order: rules, then what is to go, then bridges, taps, services, routers. A port counts as wired when all that is its own
      is done; a thing that fails is logged and tried again by the next call.
"""
import asyncio
import functools
import hashlib
import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from agents.network import dhcp, filters, kernel, names, resolver, responder, routers
from agents.network.kernel import Link, Netlink
from agents.network.listeners import Listeners, Sockets, Where, open_sockets
from agents.network.nft import Nft
from agents.network.wish import Wish, dhcp_subnets, interface_address, service, sort_out
from protos.internal.v1.hosts_pb2 import HostNetwork, HostObject, HostPort, HostRouter

log = logging.getLogger(__name__)

#: Seconds between looks at what nobody asked to change. Shorter repairs sooner what others break, and costs a dump of links.
LOOK = 60.0

#: Says that the host did not forward packets before a cloud of this machine came; the last one to go undoes it.
FORWARDING = Path("/run/brume-ip-forward")


@dataclass(slots=True)
class Work:
    """What one pass over the host came to."""

    wired: set[str] = field(default_factory=set)
    opened: dict[Where, Sockets] = field(default_factory=dict)
    wanted: set[Where] = field(default_factory=set)


class LinuxNetworking:
    """Networking of `host` for one cloud, in the root namespace that the process runs in. Needs root.

    `run_dir` holds dnsmasq's files and may be lost with the machine's memory. `tap_owner` is the user who may open taps
    without being root; `nameservers` are asked what dnsmasq does not know, the host's own where none are given.
    """

    def __init__(self, cloud: str, host: str, run_dir: Path, *, tap_owner: int | None = None, nameservers: Sequence[str] = ()):
        self._names = names.Names(cloud)
        self._host = host
        self._run_dir = run_dir
        self._tap_owner = tap_owner
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._lock = asyncio.Lock()
        self._wish = Wish()
        self._listeners = Listeners(lambda: self._wish, resolver.Upstream(nameservers))
        # The rest belongs to the worker.
        self._netlink: Netlink | None = None
        self._links: dict[str, Link] = {}
        self._looked = -LOOK
        self._stale = False                          # something failed: the world may not be what we think
        self._done: dict[str, bytes] = {}            # what, "bridge/<id>" -> digest of the wish that it is like
        self._version = ""                           # of the rules in place
        self._servers: dict[str, dhcp.Server] = {}    # by namespace
        self._listening: set[Where] = set()
        self._wired: set[str] = set()
        self._troubles: dict[str, str] = {}

    async def apply(self, objects: Mapping[str, HostObject]) -> set[str]:
        # once begun it goes on to its end: sockets that were opened must be served
        return await asyncio.shield(self._apply(objects))

    async def _apply(self, objects: Mapping[str, HostObject]) -> set[str]:
        async with self._lock:
            wish = sort_out(objects)
            self._report("wish", {key: f"{key} is left out: {why}" for key, why in wish.refused.items()})
            # guests that are there already are answered by what is known now
            self._wish = wish
            loop = asyncio.get_running_loop()
            work = await loop.run_in_executor(self._worker, self._work, wish)
            self._listeners.stop_others(work.wanted)
            for where, sockets in work.opened.items():
                await self._listeners.serve(where, sockets)
            return work.wired

    async def teardown(self) -> None:
        async with self._lock:
            self._wish = Wish()
            self._listeners.stop_others(set())
            await asyncio.get_running_loop().run_in_executor(self._worker, self._teardown)

    async def close(self) -> None:
        """Stop serving and let go of the kernel; everything on the host stays as it is."""
        async with self._lock:
            self._listeners.stop_others(set())
            await asyncio.get_running_loop().run_in_executor(self._worker, self._let_go)
            self._worker.shutdown()

    # In the worker.

    def _work(self, wish: Wish) -> Work:
        self._look()
        work = Work()
        if not self._attempt("rules", lambda: self._ensure_rules(wish)):
            # everything stays as it is, under the rules that were: a link that they do not know passes nothing
            work.wanted, work.wired = set(self._listening), self._wired & wish.ports.keys()
            return work
        self._remove_others(wish)
        bridges = {network.id for network in wish.networks.values()
                   if self._attempt(f"network {network.id}", functools.partial(self._ensure_bridge, network))}
        for port in wish.ports.values():
            if port.network_id in bridges and self._attempt(f"port {port.id}", functools.partial(self._ensure_tap, port, wish)):
                work.wired.add(port.id)
        processes: list[dhcp.Process] | None = None
        for network_id in sorted(bridges):
            network = wish.networks[network_id]
            if service(network):
                namespace = self._names.dhcp_namespace(network_id)
                if processes is None and namespace not in self._servers:
                    processes = dhcp.processes()
                self._attempt(f"network {network_id}: DHCP",
                              functools.partial(self._ensure_service, network, namespace, processes, work))
        for router in wish.routers.values():
            if router.admin_up:
                self._attempt(f"router {router.id}", functools.partial(self._ensure_router, router, wish, bridges, work))
        self._listening &= work.wanted
        self._wired = set(work.wired)
        return work

    def _attempt(self, what: str, do: Callable[[], None]) -> bool:
        """Do it; return whether it went well. A trouble is logged when it begins, changes and ends, not at every try."""
        try:
            do()
        except Exception as error:
            self._report(what, {what: f"{what}: {error}"})
            log.debug("%s", what, exc_info=True)
            self._stale = True
            return False
        self._report(what, {})
        return True

    def _report(self, source: str, troubles: Mapping[str, str]) -> None:
        text = "; ".join(troubles[key] for key in sorted(troubles))
        if text != self._troubles.get(source, ""):
            if text:
                log.warning("%s", text)
                self._troubles[source] = text
            else:
                del self._troubles[source]
                log.info("%s: in order again", source)

    def _look(self) -> None:
        """See what links there are, after a failure and now and then; now and then all that was done is checked too."""
        if self._netlink is None:
            self._netlink = Netlink()
        due = time.monotonic() - self._looked >= LOOK
        if due or self._stale:
            self._links, self._stale = self._netlink.links(), False
        if due:
            self._done.clear()
            self._version = ""
            self._looked = time.monotonic()

    def _root(self) -> Netlink:
        if self._netlink is None:
            raise RuntimeError("no netlink handle")
        return self._netlink

    def _is_done(self, what: str, *parts: bytes) -> Callable[[], None] | None:
        """None when `what` is like this already; else what to call when it is."""
        digest = hashlib.sha256(b"\0".join(parts)).digest()
        if self._done.get(what) == digest:
            return None
        self._done.pop(what, None)
        return lambda: self._done.__setitem__(what, digest)

    def _ensure_rules(self, wish: Wish) -> None:
        version, text = filters.ruleset(self._names, wish)
        if version == self._version:
            return
        if not Path("/proc/sys/net/bridge").exists():
            subprocess.run(["modprobe", "br_netfilter"], check=False, capture_output=True)
            if not Path("/proc/sys/net/bridge").exists():
                raise OSError("the kernel has no br_netfilter, without which security groups cannot be kept")
        with Nft() as nft:
            if not all(nft.has(family, self._names.table, version) for family in ("bridge", "inet")):
                nft.run(text)
                log.info("rules of %s: %s", self._names.cloud, version)
        self._version = version

    def _remove_others(self, wish: Wish) -> None:
        """Remove the links and namespaces of objects that are not among the wishes."""
        spaces = {self._names.dhcp_namespace(network.id) for network in wish.networks.values() if service(network)}
        spaces |= {self._names.router_namespace(router.id) for router in wish.routers.values() if router.admin_up}
        links = {names.bridge(network_id) for network_id in wish.networks} | {names.tap(port_id) for port_id in wish.ports}
        links |= {names.service_veth(network.id) for network in wish.networks.values() if service(network)}
        links |= {names.router_veth(port_id) for _, port_id in wish.router_links()}
        for link in list(self._links.values()):
            if self._names.owns_alias(link.alias) and link.name not in links:
                self._attempt(f"link {link.name} ({link.alias})", functools.partial(self._remove_link, link.name))
        for name in kernel.namespace_names():
            if self._names.owns_namespace(name) and name not in spaces:
                self._attempt(f"namespace {name}", functools.partial(self._remove_namespace, name))
        known = wish.networks.keys() | wish.ports.keys() | wish.routers.keys()
        for what in [what for what in self._done if what.partition("/")[2] not in known]:
            del self._done[what]

    def _remove_link(self, name: str) -> None:
        self._root().remove(name)
        self._links.pop(name, None)
        log.info("link %s: removed", name)

    def _remove_namespace(self, name: str) -> None:
        folder = self._run_dir / "dhcp" / name
        if server := self._servers.pop(name, None):
            server.stop()
        for process in dhcp.processes():
            if process.belongs(kernel.namespace_inode(name), folder):
                dhcp.end_process(process.pid)
        kernel.remove_namespace(name)
        shutil.rmtree(folder, ignore_errors=True)
        log.info("namespace %s: removed", name)

    def _ensure_link(self, name: str, alias: str, make: Callable[[], None]) -> Link:
        """Have the link; one that is there already is taken if it is ours or nobody's. Raises OSError for another's."""
        link = self._links.get(name)
        if link is None:
            link = self._root().link(name)
        if link is None:
            make()
            link = self._root().link(name)
            if link is None:
                raise OSError(f"link {name} is gone again")
        if link.alias not in ("", alias):
            raise OSError(f"a link {name} is there already and is another's ({link.alias})")
        self._links[name] = link
        self._root().change(link, alias=alias)
        return link

    def _ensure_bridge(self, network: HostNetwork) -> None:
        bare = HostNetwork()
        bare.CopyFrom(network)
        bare.ClearField("members")
        done = self._is_done(f"bridge/{network.id}", bare.SerializeToString(deterministic=True))
        if done is None:
            return
        name, mtu = names.bridge(network.id), network.mtu or 1500
        # a MAC of its own, or it would change with the ports that it has
        octets = hashlib.sha256(f"{self._names.cloud}{network.id}".encode()).digest()[:5]
        mac = f"02:{octets.hex(':')}"
        bridge = self._ensure_link(name, self._names.alias("network", network.id),
                                   lambda: self._root().add_bridge(name, mac, mtu))
        gateways = {interface_address(subnet, subnet.gateway_ip) for subnet in network.subnets
                    if network.external and subnet.gateway_ip}
        six = any(":" in address for address in gateways)
        kernel.set_parameter(f"ipv6/conf/{name}/disable_ipv6", 0 if six else 1)
        if six:
            kernel.set_parameter(f"ipv6/conf/{name}/accept_ra", 0)
        self._root().change(bridge, mtu=mtu)
        self._root().change(bridge, up=True)
        self._root().ensure_addresses(bridge, gateways)
        if network.external:
            self._route_for_others()
        # A tunnel to other hosts would be made and joined to the bridge here: a vxlan link of the network's VNI without
        # learning, and a forwarding entry for each member whose `host` is another one.
        done()

    def _route_for_others(self) -> None:
        """Have the host forward packets, and remember if that was our doing."""
        switch = Path("/proc/sys/net/ipv4/ip_forward")
        if switch.read_text().strip() == "0":
            FORWARDING.write_text("0")
            switch.write_text("1")
            log.info("forwarding of packets turned on, for external networks")

    def _join(self, link: Link, network: HostNetwork, up: bool) -> None:
        """Have the link in the network's bridge."""
        kernel.set_parameter(f"ipv6/conf/{link.name}/disable_ipv6", 1)
        self._root().change(link, master=self._links[names.bridge(network.id)].index, mtu=network.mtu or 1500)
        self._root().change(link, up=up)

    def _ensure_tap(self, port: HostPort, wish: Wish) -> None:
        network = wish.networks[port.network_id]
        bridge = self._links[names.bridge(network.id)]
        done = self._is_done(f"tap/{port.id}", str((network.mtu, bridge.index, port.admin_up)).encode())
        if done is None:
            return
        name = names.tap(port.id)
        link = self._ensure_link(name, self._names.alias("port", port.id), lambda: kernel.add_tap(name, self._tap_owner))
        self._join(link, network, port.admin_up)
        done()

    def _ensure_pair(self, name: str, alias: str, namespace: str, peer: str, mac: str, network: HostNetwork) -> None:
        """Have a pair of veth between the network's bridge and a namespace."""
        with kernel.inside(namespace), Netlink() as there:
            whole = there.link(peer) is not None
        if not whole:
            self._root().remove(name)    # its other end went elsewhere, or with another namespace of that name
            self._links.pop(name, None)
        mtu = network.mtu or 1500
        link = self._ensure_link(name, alias, lambda: self._root().add_veth(name, mtu, namespace, peer, mac))
        self._join(link, network, True)

    def _ensure_service(self, network: HostNetwork, namespace: str, processes: list[dhcp.Process] | None,
                        work: Work) -> None:
        member = service(network)
        if member is None:
            return
        done = self._is_done(f"dhcp/{network.id}", network.SerializeToString(deterministic=True),
                             str(self._links[names.bridge(network.id)].index).encode())
        server = self._servers.setdefault(namespace, dhcp.Server(namespace, self._run_dir / "dhcp" / namespace))
        if done is not None:
            kernel.ensure_namespace(namespace)
            self._ensure_pair(names.service_veth(network.id), self._names.alias("dhcp", network.id), namespace,
                              names.SERVICE_LINK, member.mac, network)
            with kernel.inside(namespace), Netlink() as there:
                kernel.set_parameter("ipv4/ip_forward", 0)
                kernel.fill_in_checksums(names.SERVICE_LINK)
                kernel.set_parameter("ipv6/conf/all/disable_ipv6", 1)
                links = there.links()
                there.change(links["lo"], up=True)
                there.change(links[names.SERVICE_LINK], mac=member.mac, mtu=network.mtu or 1500)
                there.change(links[names.SERVICE_LINK], up=True)
                addresses = {interface_address(subnet, subnet.dhcp_ip) for subnet in dhcp_subnets(network)}
                there.ensure_addresses(links[names.SERVICE_LINK], addresses | {f"{dhcp.METADATA_IP}/32"})
        self._ensure_listening(namespace, responder.Place(network_id=network.id), work)
        if done is not None or not server.alive():
            server.ensure(network, processes)
        if done is not None:
            done()

    def _ensure_router(self, router: HostRouter, wish: Wish, bridges: set[str], work: Work) -> None:
        namespace = self._names.router_namespace(router.id)
        ends = routers.links(router, wish)
        if missing := sorted({network_id for network_id, *_ in ends} - bridges):
            raise OSError(f"waits for networks {', '.join(missing)}")
        joined = [(end[0], wish.networks[end[0]].mtu, self._links[names.bridge(end[0])].index) for end in ends]
        done = self._is_done(f"router/{router.id}", router.SerializeToString(deterministic=True), str(joined).encode())
        if done is not None:
            kernel.ensure_namespace(namespace)
            for network_id, port_id, link, mac, _ in ends:
                self._ensure_pair(names.router_veth(port_id), self._names.alias("router", port_id), namespace, link, mac,
                                  wish.networks[network_id])
            with kernel.inside(namespace):
                routers.furnish(self._names, router, wish)
        self._ensure_listening(namespace, responder.Place(router_id=router.id), work)
        if done is not None:
            done()

    def _ensure_listening(self, namespace: str, place: responder.Place, work: Work) -> None:
        """Have the agent's sockets in the namespace: metadata in each, dnsmasq's other questions where there is a dnsmasq."""
        where = namespace, kernel.namespace_inode(namespace)
        work.wanted.add(where)
        if where not in self._listening:
            with kernel.inside(namespace):
                work.opened[where] = open_sockets(place)
            self._listening.add(where)

    def _let_go(self) -> None:
        if self._netlink:
            self._netlink.close()
        self._netlink = None
        self._links, self._looked = {}, -LOOK
        self._listening.clear()

    def _teardown(self) -> None:
        self._looked = -LOOK
        self._look()
        self._listening.clear()
        failures: list[str] = []

        def attempt(what: str, do: Callable[[], None]) -> None:
            try:
                do()
            except Exception as error:
                failures.append(f"{what}: {error}")

        # links first: a namespace that somebody else still holds would keep its own
        others = any("/network/" in link.alias and not self._names.owns_alias(link.alias) for link in self._links.values())
        for link in list(self._links.values()):
            if self._names.owns_alias(link.alias):
                attempt(f"link {link.name}", functools.partial(self._remove_link, link.name))
        for name in kernel.namespace_names():
            if self._names.owns_namespace(name):
                attempt(f"namespace {name}", functools.partial(self._remove_namespace, name))
        for process in dhcp.processes():
            if Path(process.configuration).is_relative_to(self._run_dir / "dhcp"):
                attempt(f"process {process.pid}", functools.partial(dhcp.end_process, process.pid))
        with Nft() as nft:
            for family in ("bridge", "inet"):
                attempt(f"rules, {family}", functools.partial(nft.drop, family, self._names.table))
        if FORWARDING.exists() and not others:
            Path("/proc/sys/net/ipv4/ip_forward").write_text(FORWARDING.read_text())
            FORWARDING.unlink()
        shutil.rmtree(self._run_dir / "dhcp", ignore_errors=True)
        self._servers.clear()
        self._let_go()
        if failures:
            raise OSError("left behind on the host: " + "; ".join(failures))
