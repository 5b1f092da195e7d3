"""What a machine must have before a cloud can start on it, each with the step that mends it."""
import errno
import ipaddress
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from control.kernel.config import Config

#: Program -> the Debian package that has it.
PROGRAMS = {
    "etcd": "etcd-server",
    "libvirtd": "libvirt-daemon-system",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "dnsmasq": "dnsmasq-base",
    "nft": "nftables",
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
    problems += [Problem(f"port {port} on {address} is in use{_by_whom(port)}", remedy)
                 for address, port, remedy in _ports(config) if not _free(address, port)]
    return problems + _routes(config)


def _found(program: str) -> bool:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin") is not None


def _needed(program: str, config: Config) -> bool:
    if program == "etcd":
        return not config.etcd
    return not config.hypervisor


def _ports(config: Config) -> list[tuple[str, int, str]]:
    other = "stop what uses it, or choose other ports with --port"
    ports = [(config.listen, config.port, other), (config.listen, config.grpc_port, other),
             (config.agent_listen, config.agent_port, other)]
    if not config.etcd:
        ports += [("127.0.0.1", config.port + 3, other), ("127.0.0.1", config.port + 4, other)]
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


def _by_whom(port: int) -> str:
    """" by <command> (pid n)", or nothing where that cannot be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            cells = line.split()
            if cells[3] == "0A" and int(cells[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{cells[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) in inodes for link in (process / "fd").iterdir()):
                return f" by {(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return ""


def _routes(config: Config) -> list[Problem]:
    """The public range must not be one that the host already reaches some other way."""
    if config.hypervisor:
        return []
    public = ipaddress.ip_network(config.public_cidr)
    problems = []
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        device, destination, mask = (line.split()[i] for i in (0, 1, 7))
        network = ipaddress.ip_network(f"{_address(destination)}/{_address(mask)}")
        if network.prefixlen and network.overlaps(public) and not _ours(device, config):
            problems.append(Problem(f"the public range {public} overlaps {network}, which this host reaches by {device}",
                                    "choose another with --public-cidr"))
    return problems


def _ours(device: str, config: Config) -> bool:
    """Whether a link is this cloud's own, left by a run that was cut short: the agent takes it up again."""
    try:
        return Path(f"/sys/class/net/{device}/ifalias").read_text().startswith(f"{config.name}/")
    except OSError:
        return False


def _address(little_endian: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(little_endian, 16).to_bytes(4, "little"))
