"""Several replicas on one machine: a network namespace for each, a bridge between them, a load balancer in front.

All of it carries the cloud's name, so that it is found and removed without memory. The links' aliases begin with
"<cloud>:", which the agent does not take for its own ("<cloud>/").
"""
import ipaddress
import os
import re
import shutil
from pathlib import Path

from control.kernel.config import Config, in_url

#: What a replica answers 200 to while it can serve.
HEALTH_PATH = "/readyz"

#: How often the balancer looks at a replica in ms, and how many failures in a row take it out. A connection that is refused
#: meanwhile goes to another replica.
CHECK_EVERY, FAILURES = 250, 2

#: Seconds of silence after which the connections to a machine that lost its power are cut.
SILENCE = 5


def namespace_file(config: Config, number: int) -> Path:
    return Path("/run/netns") / _namespace(config, number)


def ensure(config: Config) -> None:
    """Make what is missing of namespaces, bridge and links. Needs root."""
    from agents.network import kernel
    network = ipaddress.ip_network(config.replica_cidr)
    gateway = network.broadcast_address - 1
    with kernel.Netlink() as root:
        bridge = f"{config.name}-rb"
        if root.link(bridge) is None:
            root.add_bridge(bridge, _mac(gateway), 1500, filtered=False)
        link = root.the_link(bridge)
        root.change(link, alias=f"{config.name}:replicas", up=True)
        root.ensure_addresses(link, {f"{gateway}/{network.prefixlen}"})
        for number, place in enumerate(config.places, 1):
            namespace, outside = _namespace(config, number), f"{config.name}-r{number}"
            kernel.ensure_namespace(namespace)
            with kernel.inside(namespace), kernel.Netlink() as inside:
                there = inside.link("eth0")
            if there is None or root.link(outside) is None:
                root.remove(outside)
                root.add_veth(outside, 1500, namespace, "eth0", _mac(ipaddress.ip_address(place.address)))
            root.change(root.the_link(outside), alias=f"{config.name}:replica/{number}", master=link.index, up=True)
            with kernel.inside(namespace), kernel.Netlink() as inside:
                for name, addresses in (("lo", {"127.0.0.1/8"}), ("eth0", {f"{place.address}/{network.prefixlen}"})):
                    own = inside.the_link(name)
                    inside.change(own, up=True)
                    inside.ensure_addresses(own, addresses)
                inside.ensure_routes({("0.0.0.0/0", str(gateway))})       # to this machine's own addresses: it forwards nothing


def remove(config: Config) -> None:
    """Remove whatever ensure() of a cloud of this name made, with any number of replicas. Nothing may run in it."""
    from agents.network import kernel
    for name in kernel.namespace_names():
        if re.fullmatch(re.escape(config.name) + r"-replica-\d+", name):
            kernel.remove_namespace(name)
    with kernel.Netlink() as root:
        for link in root.links().values():
            if link.alias.startswith(f"{config.name}:"):
                root.remove(link.name)


def write_balancer(config: Config) -> None:
    """Write haproxy's configuration. It has no secrets, and haproxy is not root when it reads it."""
    file = config.path("run", "haproxy.cfg")
    file.write_text(balancer(config))
    file.chmod(0o644)


def balancer_command(config: Config) -> list[str]:
    """haproxy as a user of its own, who may still listen on low ports, and who ends with the supervisor."""
    capability = "+net_bind_service"
    haproxy = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") or "haproxy"
    return ["setpriv", "--reuid=haproxy", "--regid=haproxy", "--clear-groups", "--no-new-privs",
            f"--inh-caps={capability}", f"--ambient-caps={capability}", "--pdeathsig=TERM", "--",
            haproxy, "-db", "-f", str(config.path("run", "haproxy.cfg"))]


def balancer(config: Config) -> str:
    """haproxy's configuration for a cloud: connections as they are, to the replica with the fewest, never to one that is down.

    Where none is ready, as while etcd elects a leader, they go to any that listens: it answers what it can, and 503.
    TLS passes through: clients see the replicas' certificate, and agents prove theirs to the replica.
    """
    tls = " check-ssl verify none" if config.certificate else ""
    lines = [
        "# Written by `brume up`; a change is lost.",
        "defaults", "    mode tcp", "    balance leastconn",
        "    timeout connect 1s", "    timeout client 1h", "    timeout server 1h", "    timeout check 2s",
        "    retries 3", "    option redispatch 1", "    option clitcpka", "    option srvtcpka",
        f"    srvtcpka-idle {SILENCE - 3}s", "    srvtcpka-intvl 1s", "    srvtcpka-cnt 3",
        "    option allbackups", f"    option httpchk GET {HEALTH_PATH}", "    http-check expect status 200",
        # Not on-marked-down shutdown-sessions: it ends those that are about to go to another replica, too.
        f"    default-server check port {config.port}{tls} inter {CHECK_EVERY}ms fall {FAILURES} rise 1 tcp-ut {SILENCE}s",
    ]
    for name, address, port in (("rest", config.listen, config.port), ("grpc", config.listen, config.grpc_port),
                                ("agents", config.agent_listen, config.agent_port)):
        lines += [f"listen {name}", f"    bind {in_url(address)}:{port}"]
        lines += [f"    server {place.name} {in_url(place.address)}:{port}" for place in config.places]
        lines += [f"    server {place.name}-any {in_url(place.address)}:{port} backup no-check" for place in config.places]
    return "\n".join(lines) + "\n"


def _namespace(config: Config, number: int) -> str:
    return f"{config.name}-replica-{number}"


def _mac(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    return "02:00:" + ":".join(f"{byte:02x}" for byte in address.packed[-4:])
