"""What a machine must have before a cloud can start on it, each with the step that mends it."""
import errno
import ipaddress
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from control.kernel.config import Config
from control.kernel.listeners import owner

#: Program -> the Debian package that has it.
PROGRAMS = {
    "etcd": "etcd-server",
    "libvirtd": "libvirt-daemon-system",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
    "haproxy": "haproxy",
}


@dataclass(frozen=True, slots=True)
class Problem:
    what: str
    remedy: str


def check(config: Config) -> list[Problem]:
    """Everything that keeps the cloud from starting here; empty when it can."""
    if os.geteuid() != 0:
        return [Problem("`brume up` makes virtual machines and networks on this host, which only root may do",
                        "run it with sudo")]
    problems = [Problem(f"{program} is not installed", f"apt-get install {package}")
                for program, package in PROGRAMS.items() if not _found(program) and _needed(program, config)]
    for address, port in _ports(config):
        if not _free(address, port):
            by = owner(port)
            problems.append(Problem(f"port {port} on {address} is in use{f' by {by}' if by else ''}",
                                    "stop what uses it, or choose other ports with --port"))
    return problems + _routes(config) + _certificates(config)


def _found(program: str) -> bool:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None


def _needed(program: str, config: Config) -> bool:
    if program == "etcd":
        return config.runs_control and not config.etcd
    if program == "haproxy":
        return config.replicas_here > 1
    return config.runs_agent and not config.hypervisor


def _ports(config: Config) -> list[tuple[str, int]]:
    if not config.runs_control:
        return []
    ports = [(config.listen, config.port), (config.listen, config.grpc_port), (config.agent_listen, config.agent_port)]
    if not config.etcd and config.replicas_here == 1:
        address = config.place.address if config.place else "127.0.0.1"
        ports += [(address, config.port + 3), (address, config.port + 4)]
    if config.metrics_listen and config.replicas_here == 1:
        ports += [(config.metrics_listen, config.port + 5), (config.metrics_listen, config.port + 6)]
    return ports


def _free(address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def _routes(config: Config) -> list[Problem]:
    """The cloud's ranges must not be some that the host already reaches some other way."""
    ranges = []
    if config.runs_agent and not config.hypervisor:
        ranges.append(("public", "--public-cidr", ipaddress.ip_network(config.public_cidr)))
    if config.replicas_here > 1:
        ranges.append(("replicas'", "replica_cidr in a file of settings", ipaddress.ip_network(config.replica_cidr)))
    problems = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        device, destination, mask = (line.split()[i] for i in (0, 1, 7))
        network = ipaddress.ip_network(f"{_address(destination)}/{_address(mask)}")
        for what, setting, own in ranges:
            if network.prefixlen and network.overlaps(own) and not _ours(device, config):
                problems.append(Problem(f"the {what} range {own} overlaps {network}, which this host reaches by {device}",
                                        f"choose another with {setting}"))
    return problems


def _certificates(config: Config) -> list[Problem]:
    """Only the first replica of a new cloud makes its own; all other machines join with a bundle."""
    pki, place, others = config.pki_dir, config.place, [other for other in config.replicas if other != config.place]
    if config.runs_control:
        if place is None or (pki / "ca.key").exists():
            return []
        running = next((other for other in others if _accepts(other.address, config.port + 3)), None)
        if place == config.replicas[0] and not running:
            return []
        there = (running or config.replicas[0]).name
        return [Problem(f"this machine, {place.name}, has no certificates of the cloud",
                        f"run `brume certificate replica {place.name}` on {there}, and `brume join` with its file here")]
    host = config.host_name
    if all((pki / name).exists() for name in ("ca.crt", f"{host}.crt", f"{host}.key")):
        return []
    return [Problem(f"this machine, {host}, is no replica of the cloud, and has no certificate of a host of it",
                    f"run `brume certificate host {host}` on {' or '.join(other.name for other in others)}, and `brume join` "
                    "with its file here")]


def _accepts(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _ours(device: str, config: Config) -> bool:
    """Whether a link is this cloud's own, left by a run that was cut short: the agent takes it up again."""
    try:
        return Path(f"/sys/class/net/{device}/ifalias").read_text().startswith((f"{config.name}/", f"{config.name}:"))
    except OSError:
        return False


def _address(little_endian: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(little_endian, 16).to_bytes(4, "little"))
