"""DHCP and DNS of one network: dnsmasq's configuration as text, and its process in the network's namespace.

It serves known MAC addresses only, each its own address, and answers for the names of the network's ports. What else it is
asked it hands to the agent at 127.0.0.1:5353 in its namespace (resolver.py): it has no way out of its own.

A process is known by its command line, which names its configuration file, which is named by what it says. So a restarted
agent keeps the process that is right, and one with another configuration is replaced. Hosts come and go by SIGHUP.
"""
import contextlib
import hashlib
import ipaddress
import logging
import os
import pwd
import re
import signal
import stat
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agents.network import kernel, names
from agents.network.wish import HOSTNAME, dhcp_subnets
from protos.internal.v1.hosts_pb2 import HostNetwork, NetworkMember

log = logging.getLogger(__name__)

METADATA_IP = "169.254.169.254"
RESOLVER_PORT = 5353

#: Seconds of a lease. Shorter: a moved address is taken over sooner, and every guest asks more often.
LEASE = 86400
#: Seconds that dnsmasq gets for starting, and for ending before it is killed.
START, END = 10.0, 2.0


def configuration(network: HostNetwork, folder: Path, user: str) -> str:
    domain = network.dns_domain
    lines = [
        f"interface={names.SERVICE_LINK}", "except-interface=lo", "bind-interfaces",
        "no-resolv", "no-hosts", "no-poll", f"server=127.0.0.1#{RESOLVER_PORT}",
        "domain-needed", "bogus-priv", "cache-size=1000", "edns-packet-max=1232", "expand-hosts",
        f"addn-hosts={folder}/names", f"dhcp-hostsfile={folder}/hosts", f"dhcp-leasefile={folder}/leases",
        f"pid-file={folder}/pid", f"log-facility={folder}/log", "quiet-dhcp", f"user={user}",
        "dhcp-authoritative", "no-ping", "dhcp-lease-max=65536", "dhcp-ignore=tag:!known",
    ]
    if domain:
        lines += [f"domain={domain}", f"local=/{domain}/"]
    if network.mtu:
        lines.append(f"dhcp-option-force=option:mtu,{network.mtu}")
    for index, subnet in enumerate(dhcp_subnets(network)):
        cidr, tag = ipaddress.ip_network(subnet.cidr, strict=False), f"subnet{index}"
        lines.append(f"dhcp-range=set:{tag},{cidr.network_address},static,{cidr.netmask},{LEASE}")
        # an empty router option keeps dnsmasq from naming itself
        lines.append(f"dhcp-option=tag:{tag},option:router" + (f",{subnet.gateway_ip}" if subnet.gateway_ip else ""))
        servers = [server for server in subnet.dns_nameservers if ":" not in server] or [subnet.dhcp_ip]
        lines.append(f"dhcp-option=tag:{tag},option:dns-server,{','.join(servers)}")
        # with these a client ignores the router option, so the way out is among them
        routes = [f"{METADATA_IP}/32,{subnet.dhcp_ip}"]
        routes += [f"{route.destination},{route.next_hop}" for route in subnet.routes if ":" not in route.next_hop]
        if subnet.gateway_ip:
            routes.append(f"0.0.0.0/0,{subnet.gateway_ip}")
        lines += [f"dhcp-option=tag:{tag},option:classless-static-route,{','.join(routes)}",
                  f"dhcp-option=tag:{tag},249,{','.join(routes)}"]
    return "\n".join(lines) + "\n"


def hosts(network: HostNetwork) -> str:
    """The hosts file: a line for each address of version 4 in a subnet with DHCP."""
    return "".join(f"{member.mac},{ip},{name}\n" for member, ip, name in _members(network))


def host_names(network: HostNetwork) -> str:
    return "".join(f"{ip} {name}\n" for _, ip, name in _members(network))


def _members(network: HostNetwork) -> list[tuple[NetworkMember, str, str]]:
    """(member, address, name), by address; who has no name is called by the address."""
    served = {subnet.id for subnet in dhcp_subnets(network)}
    found = {}
    for member in network.members:
        name = member.hostname.lower()
        for address in member.addresses:
            if address.subnet_id in served and ":" not in address.ip:
                found[address.ip] = (member, address.ip,
                                     name if HOSTNAME.fullmatch(name) else "host-" + address.ip.replace(".", "-"))
    return [found[ip] for ip in sorted(found, key=ipaddress.IPv4Address)]


def stale_leases(leases: str, wanted: str) -> tuple[str, bool]:
    """Return the lease file without what contradicts the hosts file, and whether anything did.

    An address that has moved to another MAC is not given to it while the old lease stands.
    """
    owners: dict[str, str] = {}
    for line in wanted.splitlines():
        mac, ip, _ = line.split(",")
        owners[ip] = mac
    kept, stale = [], False
    for line in leases.splitlines():
        fields = line.split()
        if len(fields) >= 3 and fields[2] in owners and fields[1] != owners[fields[2]]:
            stale = True
        else:
            kept.append(line)
    return "".join(line + "\n" for line in kept), stale


# The process.

@dataclass(frozen=True, slots=True)
class Process:
    """A dnsmasq that runs with a configuration file, somebody's."""

    pid: int
    configuration: str
    namespace: int     # inode of its network namespace

    def belongs(self, namespace: int, folder: Path) -> bool:
        """Whether it is a network's: in its namespace, or with a file of its folder in one that had the name before."""
        return self.namespace == namespace or Path(self.configuration).parent == folder


def processes() -> list[Process]:
    """Look through all processes, once."""
    found = [process for entry in os.scandir("/proc") if entry.name.isdigit() and (process := _process(int(entry.name)))]
    return sorted(found, key=lambda process: process.pid)


def _process(pid: int) -> Process | None:
    conf = _configuration_of(pid)
    try:
        return None if conf is None else Process(pid, conf, os.stat(f"/proc/{pid}/ns/net").st_ino)
    except OSError:
        return None


def _configuration_of(pid: int) -> str | None:
    """The configuration file that a dnsmasq was given; None for any other process, and for a dead one."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    if os.path.basename(command[0]) != b"dnsmasq":
        return None
    return next((os.fsdecode(word.removeprefix(b"--conf-file=")) for word in command if word.startswith(b"--conf-file=")), None)


class Server:
    """One network's dnsmasq. Blocking; every call in the thread that works on the host."""

    def __init__(self, namespace: str, folder: Path):
        self._namespace = namespace
        self._folder = folder
        self._pid = 0
        self._child: subprocess.Popen[bytes] | None = None
        self._hosts = ""           # what the process has read, as far as we know
        self._conf = ""

    def alive(self) -> bool:
        if self._child is not None and self._child.poll() is not None:
            return False
        return bool(self._pid) and _process(self._pid) == Process(self._pid, self._conf,
                                                                  kernel.namespace_inode(self._namespace))

    def ensure(self, network: HostNetwork, found: Sequence[Process] | None) -> None:
        """Have exactly one process, with this network's configuration and hosts; `found` is what runs, where it is known."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.chmod(0o755)
        text, wanted = configuration(network, self._folder, _user(self._folder)), hosts(network)
        conf = str(self._folder / f"dnsmasq-{hashlib.sha256(text.encode()).hexdigest()[:16]}.conf")
        stale = self._write_hosts(wanted, host_names(network))
        if not self.alive():
            self._pid, self._hosts = 0, ""
            inode = kernel.namespace_inode(self._namespace)
            for process in processes() if found is None else found:
                if process.configuration == conf and process.namespace == inode and not self._pid:
                    self._pid, self._conf = process.pid, conf
                elif process.belongs(inode, self._folder):
                    end_process(process.pid)
        if self._pid and (self._conf != conf or stale):
            self.stop()
        if not self._pid:
            self._start(conf, text, wanted)
        elif self._hosts != wanted:
            os.kill(self._pid, signal.SIGHUP)
        self._hosts = wanted

    def stop(self) -> None:
        if self._pid:
            end_process(self._pid)
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(END)
        self._pid, self._child, self._conf = 0, None, ""

    def _write_hosts(self, wanted: str, known_names: str) -> bool:
        """Write both files; return whether the lease file contradicts them."""
        for name, text in (("hosts", wanted), ("names", known_names)):
            path = self._folder / name
            if not path.exists() or path.read_text() != text:
                temporary = path.with_suffix(".new")
                temporary.write_text(text)
                temporary.chmod(0o644)
                temporary.replace(path)
        leases = self._folder / "leases"
        return leases.exists() and stale_leases(leases.read_text(), wanted)[1]

    def _start(self, conf: str, text: str, wanted: str) -> None:
        for old in self._folder.glob("dnsmasq-*.conf"):
            if str(old) != conf:
                old.unlink()
        Path(conf).write_text(text)
        pid_file, leases, said = self._folder / "pid", self._folder / "leases", self._folder / "log"
        pid_file.unlink(missing_ok=True)
        said.unlink(missing_ok=True)
        if leases.exists():
            leases.write_text(stale_leases(leases.read_text(), wanted)[0])
        with kernel.inside(self._namespace):
            self._child = subprocess.Popen(
                ["dnsmasq", "--keep-in-foreground", f"--conf-file={conf}"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE, start_new_session=True, cwd="/")
        self._pid, self._conf = self._child.pid, conf
        deadline = time.monotonic() + START
        while not pid_file.exists():
            if self._child.poll() is not None or time.monotonic() > deadline:
                self._child.kill()
                _, errors = self._child.communicate()
                self._pid, self._child = 0, None
                tail = errors.decode(errors="replace").strip() or (said.read_text() if said.exists() else "")
                raise OSError(f"dnsmasq in {self._namespace} does not start: {tail[-500:] or 'it says nothing'}")
            time.sleep(0.01)
        if self._child.stderr:
            self._child.stderr.close()
        log.info("network %s: dnsmasq %d", self._namespace, self._pid)


def end_process(pid: int) -> None:
    """End a process that may not be our child: ask, then insist."""
    for number, patience in ((signal.SIGTERM, END), (signal.SIGKILL, END)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if _ended(pid):
                return
            time.sleep(0.005)


def _ended(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    state = re.sub(r"^.*\) ", "", status, flags=re.DOTALL)[:1]
    return state in ("Z", "X")


def _user(folder: Path) -> str:
    """Whom dnsmasq runs as: it reads its files again when it is no longer root, so it must be able to get at them."""
    for above in folder.absolute().parents:
        if above.exists() and not above.stat().st_mode & stat.S_IXOTH:
            return "root"
    for user in ("dnsmasq", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(user).pw_name
    return "root"
