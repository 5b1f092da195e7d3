"""From nothing to a login: `brume up` until the API answers, a server until ACTIVE and until SSH, and memory at rest.

A cloud of its own is brought up on this machine, beside any other, and taken away at the end. Needs root.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from control.cli import credentials, processes
from control.cli.session import RestError, Session
from control.kernel import config as settings
from control.kernel.config import Config

NAME, PORT, PUBLIC = "brumebench", 5200, "172.24.52.0/24"

#: What the figures are to be, in seconds and MiB.
AIMS = {"up_to_api_s": 5.0, "create_to_active_s": 3.0, "create_to_ssh_s": 12.0, "memory_mib": 250.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line")
    parser.add_argument("--quick", action="store_true", help="one server instead of five")
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("a cloud needs root: run with sudo")
    state_dir = Path(tempfile.mkdtemp(prefix="brume-", dir="/var/tmp"))
    try:
        figures = measure(state_dir, servers=1 if options.quick else 5)
    finally:
        brume(state_dir, "down", "--purge", "--yes", check=False)
        shutil.rmtree(state_dir, ignore_errors=True)
    if options.json:
        print(json.dumps(figures))
        return
    for name, aim in AIMS.items():
        print(f"{name:<20} {figures[name]:8.2f}   aim {aim:g}")
    for name, mib in figures["processes_mib"].items():
        print(f"  {name:<18} {mib:8.1f} MiB")


def measure(state_dir: Path, servers: int) -> dict[str, Any]:
    first = time_up(state_dir)                      # makes certificates, flavors and the image
    brume(state_dir, "down")
    again = time_up(state_dir)                      # what is there already is started
    config = settings.load(state_dir)
    session = credentials.ensure(config)["demo"].session(config)
    boots = [boot(config, session, f"bench-{number}") for number in range(servers)]
    idle = memory(config)
    return {
        "up_to_api_s": again["api"], "first_up_to_api_s": first["api"], "up_s": again["all"], "first_up_s": first["all"],
        "create_to_active_s": statistics.median(run["active"] for run in boots),
        "create_to_ssh_s": statistics.median(run["ssh"] for run in boots), "servers": boots,
        "memory_mib": round(sum(mib for name, mib in idle.items() if name != "libvirtd"), 1), "processes_mib": idle, "aims": AIMS}


def time_up(state_dir: Path) -> dict[str, float]:
    """Seconds from the start of `brume up` to the first 200 of /v3, and to its end."""
    started = time.monotonic()
    up = subprocess.Popen([sys.executable, "-m", "control.cli.main", "--state-dir", str(state_dir), "up", "--name", NAME,
                           "--port", str(PORT), "--public-cidr", PUBLIC, "--json"], stdout=subprocess.PIPE, text=True)
    answered = 0.0
    while up.poll() is None:
        if not answered and (state_dir / "cloud.json").exists() and processes.api_answers(settings.load(state_dir)):
            answered = time.monotonic() - started
        time.sleep(0.02)
    if up.returncode:
        raise SystemExit(f"brume up failed with status {up.returncode}")
    return {"api": round(answered, 2), "all": round(time.monotonic() - started, 2)}


def boot(config: Config, session: Session, name: str) -> dict[str, float]:
    """Make a server with a floating address, wait for SSH, delete it; seconds from the create call on."""
    image = session.request("GET", "image", "/v2/images?name=tiny")["images"][0]
    flavor = next(row for row in session.request("GET", "compute", "/flavors")["flavors"] if row["name"] == "m1.tiny")
    network = session.request("GET", "network", "/v2.0/networks?name=private")["networks"][0]
    external = session.request("GET", "network", "/v2.0/networks?name=public")["networks"][0]
    group = session.request("GET", "network", "/v2.0/security-groups?name=default")["security_groups"][0]
    for rule in ({"protocol": "icmp"}, {"protocol": "tcp", "port_range_min": 22, "port_range_max": 22}):
        try:
            session.request("POST", "network", "/v2.0/security-group-rules", {"security_group_rule": {
                "security_group_id": group["id"], "direction": "ingress", **rule}})
        except RestError as error:
            if error.status != 409:
                raise
    pair = session.request("POST", "compute", "/os-keypairs", {"keypair": {"name": name}})["keypair"]
    key = config.path(f"{name}.key")
    settings.write_private(key, pair["private_key"].encode())
    started = time.monotonic()
    server = session.request("POST", "compute", "/servers", {"server": {
        "name": name, "imageRef": image["id"], "flavorRef": flavor["id"], "key_name": name,
        "networks": [{"uuid": network["id"]}]}})["server"]
    port = session.request("GET", "network", f"/v2.0/ports?device_id={server['id']}")["ports"][0]
    floating = session.request("POST", "network", "/v2.0/floatingips", {"floatingip": {
        "floating_network_id": external["id"], "port_id": port["id"]}})["floatingip"]
    while (status := session.request("GET", "compute", f"/servers/{server['id']}")["server"]["status"]) != "ACTIVE":
        if status == "ERROR" or time.monotonic() - started > 120:
            raise SystemExit(f"server {server['id']} is {status}")
        time.sleep(0.05)
    active = time.monotonic() - started
    login = ["ssh", "-i", str(key), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
             "-o", "ConnectTimeout=1", "-o", "LogLevel=ERROR", f"root@{floating['floating_ip_address']}", "true"]
    while subprocess.run(login, capture_output=True, check=False).returncode:
        if time.monotonic() - started > 180:
            raise SystemExit("SSH does not answer")
        time.sleep(0.1)
    ssh = time.monotonic() - started
    session.request("DELETE", "network", f"/v2.0/floatingips/{floating['id']}")
    session.request("DELETE", "compute", f"/servers/{server['id']}")
    session.request("DELETE", "compute", f"/os-keypairs/{name}")
    return {"active": round(active, 2), "ssh": round(ssh, 2)}


def memory(config: Config) -> dict[str, float]:
    """Proportional memory (Pss) of each process at rest, dnsmasq's together, in MiB."""
    time.sleep(5)
    rows = {row["name"]: processes.memory_mib(row["pid"]) for row in processes.status(config)}
    rows["dnsmasq"] = sum(
        processes.memory_mib(int(entry.name)) for entry in Path("/proc").glob("[0-9]*")
        if _is_ours(entry, config))
    return {name: round(mib, 1) for name, mib in rows.items()}


def _is_ours(process: Path, config: Config) -> bool:
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False
    return command.startswith(b"dnsmasq") and str(config.state_dir).encode() in command


def brume(state_dir: Path, *arguments: str, check: bool = True) -> None:
    subprocess.run([sys.executable, "-m", "control.cli.main", "--state-dir", str(state_dir), *arguments],
                   check=check, capture_output=True)


if __name__ == "__main__":
    main()
