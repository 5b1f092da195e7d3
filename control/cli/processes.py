"""The processes of a cloud on one machine, whatever the machine is for it: what they are, starting, waiting, stopping.

Whether any runs is told by a lock that the supervisor and all its children hold, so a stale pid file says nothing.
"""
import contextlib
import datetime
import fcntl
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from control.cli.session import RestError, Session
from control.kernel import config as settings
from control.kernel.config import Config

if TYPE_CHECKING:
    from control.kernel.etcd_server import Config as EtcdConfig

#: Seconds to wait for the API and the host after a start; on a slow machine they are what a first start needs, threefold.
API_WITHIN, HOST_WITHIN, STOP_WITHIN = 60.0, 90.0, 90.0


#: Deaths of the control plane in a row after which waiting for its API is no use.
HOPELESS = 4


def prepare(config: Config) -> None:
    """Make directories, certificates and, for several replicas here, their places; write the list that the supervisor starts."""
    from control.cli import machines, replica_network
    from control.kernel import etcd_server
    # Servers and dnsmasq run as users of their own, which must be able to pass through; what is secret is 0600 or 0700.
    config.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    config.state_dir.chmod(0o711)
    for part, mode in (("run", 0o711), ("log", 0o700)):
        config.path(part).mkdir(mode=mode, exist_ok=True)
        config.path(part).chmod(mode)
    if config.runs_control:
        _prepare_certificates(config)
    if config.replicas_here > 1:
        replica_network.ensure(config)
        for each in replica_configs(config):
            machines.prepare_replica_here(config, each)
        replica_network.write_balancer(config)
    elif config.runs_control and not config.etcd:
        etcd_server.prepare(etcd_config(config))
    settings.write_private(config.path("run", "processes.json"), json.dumps(plan(config), indent=1).encode())


def _prepare_certificates(config: Config) -> None:
    from control.kernel import etcd_server, pki
    life = datetime.timedelta(days=config.certificate_days)
    etcd_server.client_credentials(config.pki_dir, life=life)
    pki.ensure_leaf(config.pki_dir, "agents", [config.agent_listen, "localhost"], server=True, life=life)
    if config.runs_agent:
        pki.ensure_leaf(config.pki_dir, config.host_name, client=True, life=life)


def replica_configs(config: Config) -> list[Config]:
    """The settings of each replica on this machine: those of a machine of its own."""
    return [replace(config, state_dir=config.path(place.name), replicas=config.places, replicas_here=1, host=place.name,
                    listen=place.address, agent_listen=place.address, host_address=place.address, public_url=config.url,
                    policy_file=str(config.policy_path)) for place in config.places]


def plan(config: Config) -> list[dict[str, Any]]:
    """What runs on this machine, in the order in which it is started."""
    from control.cli import replica_network
    wanted = []
    if config.replicas_here > 1:
        each = replica_configs(config)
        for number, one in enumerate(each, 1):
            namespace = {"namespace": str(replica_network.namespace_file(config, number))}
            wanted += [_etcd(one) | namespace | {"name": f"etcd-{number}"}]
        for number, one in enumerate(each, 1):
            namespace = {"namespace": str(replica_network.namespace_file(config, number))}
            wanted += [_role(one, "control") | namespace | {"name": f"control-{number}"},
                       _journal(one) | namespace | {"name": f"journal-{number}"}]
        wanted.append({"name": "haproxy", "argv": replica_network.balancer_command(config)})
    elif config.runs_control:
        wanted += [_etcd(config)] if not config.etcd else []
        wanted += [_role(config, "control"), _journal(config)]
    if config.runs_agent:
        from agents.hypervisor import libvirtd
        own = config.path("libvirt")
        if not config.hypervisor and (config.libvirt_uri or libvirtd.pick_uri(own)) == libvirtd.private_uri(own):
            wanted.append({"name": "libvirtd", "argv": libvirtd.command(own)})
        wanted.append(_role(config, "agent"))
    return wanted


def _brume(config: Config) -> list[str]:
    return [sys.executable, "-m", "control.cli.main", "--state-dir", str(config.state_dir)]


def _role(config: Config, name: str) -> dict[str, Any]:
    # gRPC's C core writes what it thinks of TLS and of forks to stderr; errors reach our own logs.
    quiet = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}
    # One heap for all threads: what is free in it goes back to the system (control/identity/passwords.py).
    lean = {"MALLOC_ARENA_MAX": "1"}
    return {"name": name, "argv": [*_brume(config), name], "environment": quiet | lean, "is_role": True}


def _journal(config: Config) -> dict[str, Any]:
    """The audit journal's writer, which goes on until all roles have ended: what they change as they end is in it, too."""
    return _role(config, "journal") | {"is_role": False}


def _etcd(config: Config) -> dict[str, Any]:
    """A member that is alone is started as it is; one of several first finds out whether it has to join the others."""
    from control.kernel import etcd_server
    argv = [*_brume(config), "etcd", "run"] if config.place else etcd_server.command(etcd_config(config))
    environment = {name: value for name, value in etcd_server.environment().items() if name.startswith("ETCD_")}
    return {"name": "etcd", "argv": argv, "environment": environment}


def etcd_config(config: Config) -> "EtcdConfig":
    """This replica's own member."""
    from control.kernel import etcd_server
    address = config.place.address if config.place else "127.0.0.1"
    life = datetime.timedelta(days=config.certificate_days)
    return etcd_server.Config(data_dir=config.path("etcd"), quota_bytes=config.etcd_quota_mib << 20, address=address,
                              name=config.place.name if config.place else "brume",
                              credentials=etcd_server.server_credentials(config.pki_dir, address, life),
                              client_port=config.port + 3, peer_port=config.port + 4)


# Starting

def supervisor_pid(config: Config) -> int:
    """The supervisor's pid; 0 when none runs."""
    pid = _read_pid(config.path("run", "supervisor.pid"))
    return pid if pid and not _lock_is_free(config) and _alive(pid) else 0


def wait_for_lock(config: Config, within: float = 25.0) -> bool:
    """Wait until nothing of an earlier run is left; False when something stays."""
    limit = time.monotonic() + within
    while not _lock_is_free(config):
        if time.monotonic() > limit:
            return False
        time.sleep(0.1)
    return True


def start_supervisor(config: Config) -> None:
    """Start the supervisor as a daemon of its own session."""
    log = os.open(config.path("log", "supervisor.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        subprocess.Popen([sys.executable, "-S", str(Path(__file__).with_name("supervisor.py")), str(config.state_dir)],
                         stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")
    finally:
        os.close(log)


def wait_for_api(config: Config) -> None:
    """Return once GET /v3 answers 200. Raises ClickException with the end of the log that says why not."""
    limit = time.monotonic() + API_WITHIN
    before = log_size(config, "supervisor")
    deaths = 0
    while not api_answers(config):
        with contextlib.suppress(FileNotFoundError), config.path("log", "supervisor.log").open() as said:
            said.seek(before)
            deaths = len(re.findall(r": control(?:-\d)? \(pid ", said.read()))
        if time.monotonic() > limit or deaths >= HOPELESS * config.replicas_here:
            raise click.ClickException(f"the API does not answer at {config.auth_url}\n" + log_ends(config, *names(config)))
        time.sleep(0.05)


def wait_for_members(config: Config) -> None:
    """Return once this machine's etcd members count for the majority. Raises ClickException saying what keeps them."""
    import asyncio

    from control.kernel import etcd_members, etcd_server
    from control.kernel.errors import Unavailable
    from control.kernel.etcd_client import AioRpcError, Client
    mine = replica_configs(config) if config.replicas_here > 1 else [config]
    moved = {place.name: etcd_config(one).peer_url for one in mine if (place := one.place)}
    if config.etcd or not moved:
        return

    async def wait() -> None:
        limit = time.monotonic() + API_WITHIN
        waiting = set(moved)
        client = Client(config.etcd_endpoints, etcd_server.client_credentials(config.pki_dir))
        try:
            while True:
                with contextlib.suppress(Unavailable, AioRpcError):
                    waiting = set(moved) - await etcd_members.settle(client, moved)
                    if not waiting:
                        return
                if time.monotonic() > limit:
                    raise click.ClickException(f"etcd on {', '.join(sorted(waiting))} has not joined the others within "
                                               f"{API_WITHIN:.0f} s\n" + log_ends(config, "supervisor", *names(config)))
                await asyncio.sleep(0.2)
        finally:
            await client.close()

    asyncio.run(wait())
    for one in mine:
        etcd_marker(one).touch(mode=0o600)


def etcd_marker(config: Config) -> Path:
    """A file that says that this replica's etcd is one of a cluster that is there: it never founds another."""
    return config.path("etcd.joined")


def log_size(config: Config, name: str) -> int:
    """Bytes of a process's log."""
    log = config.path("log", f"{name}.log")
    return log.stat().st_size if log.exists() else 0


def wait_for_attached(config: Config, since: int) -> None:
    """Return once the agent has said, after the first `since` bytes of its log, that the control plane took it.

    A machine that only is a host knows no user whom it could ask the API as.
    """
    limit = time.monotonic() + HOST_WITHIN
    while True:
        with contextlib.suppress(FileNotFoundError), config.path("log", "agent.log").open() as said:
            said.seek(since)
            if "attached to the control plane at" in re.sub("not attached to.*", "", said.read()):
                return
        if time.monotonic() > limit:
            raise click.ClickException(f"host {config.host_name} did not attach to any of {', '.join(config.agent_endpoints)} "
                                       f"within {HOST_WITHIN:.0f} s\n" + log_ends(config, "supervisor", "libvirtd", "agent"))
        time.sleep(0.1)


def wait_for_host(config: Config, session: Session) -> None:
    """Return once this host is up in the cloud's eyes. Raises ClickException with the end of the log that says why not."""
    limit = time.monotonic() + HOST_WITHIN
    while True:
        try:
            services = session.request("GET", "compute", "/os-services?binary=nova-compute")["services"]
            if any(service["host"] == config.host_name and service["state"] == "up" for service in services):
                return
        except RestError as error:
            if error.status and error.status < 500:
                raise
        if time.monotonic() > limit:
            raise click.ClickException(f"host {config.host_name} did not attach within {HOST_WITHIN:.0f} s\n"
                                       + log_ends(config, "supervisor", "libvirtd", "agent"))
        time.sleep(0.1)


def api_answers(config: Config) -> bool:
    parts = urlsplit(config.url)
    host = "127.0.0.1" if config.listen == "0.0.0.0" else "::1" if config.listen == "::" else config.listen
    if config.certificate:
        context = ssl.create_default_context(cafile=config.certificate)
        context.check_hostname = False      # it is asked by its address; clients check the name
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, config.port, timeout=5, context=context)
    else:
        connection = http.client.HTTPConnection(host, config.port, timeout=5)
    try:
        connection.request("GET", "/v3", headers={"Host": parts.netloc})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def log_ends(config: Config, *names: str, lines: int = 6) -> str:
    """The last lines of some processes' logs, for an error message."""
    parts = []
    for name in names:
        log = config.path("log", f"{name}.log")
        if log.exists() and (tail := log.read_text(errors="replace").splitlines()[-lines:]):
            parts.append(f"--- {log}\n" + "\n".join(tail))
    return "\n".join(parts)


# Looking

def names(config: Config) -> list[str]:
    """What the supervisor was told to run on this machine."""
    try:
        return [item["name"] for item in json.loads(config.path("run", "processes.json").read_text())]
    except FileNotFoundError:
        return []


def certificates(config: Config) -> list[dict[str, Any]]:
    """One row per certificate of this machine: name, days until it expires."""
    from control.kernel import pki
    found = {"": pki.expiries(config.pki_dir)}
    for place in config.places if config.replicas_here > 1 else ():
        found[f"{place.name}/"] = pki.expiries(config.path(place.name, "pki"))
    if config.certificate and (until := pki.expiry(Path(config.certificate))):
        found["clients: "] = {config.certificate: until}
    now = datetime.datetime.now(datetime.UTC)
    return [{"name": prefix + name, "days": round((until - now).total_seconds() / 86400, 1)}
            for prefix, files in found.items() for name, until in files.items() if not (prefix and name == "ca")]


def status(config: Config) -> list[dict[str, Any]]:
    """One row per process: name, pid (0: does not run), seconds since its start, resident memory."""
    running = bool(supervisor_pid(config))
    rows = []
    for name in ["supervisor", *names(config)]:
        pid = _read_pid(config.path("run", f"{name}.pid")) if running else 0
        pid = pid if pid and _alive(pid) else 0
        rows.append({"name": name, "pid": pid, "seconds": _age(pid), "memory_mib": round(memory_mib(pid), 1),
                     "log": str(config.path("log", f"{name}.log"))})
    return rows


def notice(config: Config) -> str:
    """What an operator should know of this host: that guests are emulated, and why. "" for nothing."""
    if config.hypervisor or not config.runs_agent:
        return ""
    from agents.hypervisor import kvm, libvirtd
    own = config.path("libvirt")
    return kvm.unusable(own, libvirtd.guest_user(own))     # the agent has asked before: the answer is kept


def memory_mib(pid: int) -> float:
    """Resident memory of a process in MiB, shared pages counted by their share (Pss); 0 when it does not run."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


# Stopping

def stop_roles(config: Config) -> None:
    """Ask the supervisor to end the agent and the control plane, and to keep the rest for the teardown."""
    if pid := supervisor_pid(config):
        os.kill(pid, signal.SIGUSR1)
        files = [config.path("run", f"{name}.pid") for name in names(config) if re.match("agent|control", name)]
        _wait(lambda: not any(path.exists() for path in files), "the agent and the control plane")


def teardown_host(config: Config) -> None:
    """Take down servers, networks and tables that this cloud made on the host."""
    if not config.runs_agent:
        return
    import asyncio

    from agents.main import teardown
    from control.cli.roles import agent_config
    asyncio.run(teardown(agent_config(config)))


def stop_supervisor(config: Config) -> None:
    """End the supervisor and with it every process of the cloud."""
    if pid := supervisor_pid(config):
        os.kill(pid, signal.SIGTERM)
    _wait(lambda: _lock_is_free(config), "the cloud's processes")


def clean_up_after_libvirtd(config: Config) -> None:
    """Remove what the cloud's own libvirtd made outside the state directory; once it has ended."""
    if not config.runs_agent:
        return
    from agents.hypervisor import libvirtd
    libvirtd.cleanup(config.path("libvirt"))


def remove_replica_network(config: Config) -> None:
    """Remove namespaces and links of the replicas on this machine; once they have ended."""
    from control.cli import replica_network
    replica_network.remove(config)


def _wait(done: Any, what: str) -> None:
    limit = time.monotonic() + STOP_WITHIN
    while not done():
        if time.monotonic() > limit:
            raise click.ClickException(f"{what} did not end within {STOP_WITHIN:.0f} s")
        time.sleep(0.05)


def _lock_is_free(config: Config) -> bool:
    try:
        lock = os.open(config.path("run", "lock"), os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(lock)


def _read_pid(path: Path) -> int:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):
        return 0


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return True
    except ProcessLookupError:
        return False
    except PermissionError:
        return True


def _age(pid: int) -> float:
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except OSError:
        return 0.0
